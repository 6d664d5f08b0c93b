"""Commands under other names."""

import pytest

from proxy import wire
from tests.policy.rulebook import Folder
from tests.wire.stage import Stage


def _refused(side: wire.Downstream, *words: bytes) -> bytes:
    assert side.receive_data(wire.pack(words), 0.0) is None
    return side.data_to_send()


def test_a_command_has_one_name(folder: Folder) -> None:
    """The new name is the command, the old one is unknown; sub-commands go with it."""
    rules = folder.compile("commands: {rename: {CONFIG: CONFIG_b8, get: FETCH}}")
    names = [rules.commands[rules.find_command(name)].name for name in (b"config_B8", b"fetch")]
    assert names == [b"config", b"get"]
    assert rules.find_command(b"config_b8|get") == rules.find_command(b"CONFIG_B8|GET") >= 0
    assert rules.find_command(b"get") == rules.find_command(b"config") == -1
    assert rules.find_command(b"config|get") == -1


def test_nodes_and_handlers_see_the_old_name(folder: Folder) -> None:
    """A frame leaves with the name that nodes know, and a Request has it too."""
    rules = folder.compile("commands: {rename: {CONFIG: CONFIG_b8, GET: FETCH}}")
    stage = Stage(rules)
    [node] = stage.upstreams
    node.available = True
    side = stage.client()
    assert side.receive_data(wire.pack([b"Fetch", b"k"]), 0.0) is None
    assert node.data_to_send(0.0) == wire.pack([b"get", b"k"])
    request = side.receive_data(b"CONFIG_b8 GET maxmemory\r\n", 0.0)
    assert request is not None
    assert request.name == b"config|get"
    assert request.arguments == [b"config", b"GET", b"maxmemory"]
    unknown = side.receive_data(wire.pack([b"GET", b"k"]), 0.0)
    assert unknown is not None
    assert unknown.row == -1


def test_roles_and_keyspaces_speak_of_the_old_name(folder: Folder) -> None:
    """What a role denies it denies under the new name."""
    rules = folder.compile("""
        commands: {rename: {DEL: REMOVE}}
        roles: {default: {commands: {deny: [DEL]}}}
    """)
    side = Stage(rules).client()
    line = b"-NOPERM this user has no permissions to run the 'del' command\r\n"
    assert _refused(side, b"remove", b"k") == line


def test_two_commands_may_change_places(folder: Folder) -> None:
    """A name that another command gives up may be taken."""
    rules = folder.compile("commands: {rename: {GET: SET, SET: GET}}")
    assert rules.commands[rules.find_command(b"set")].name == b"get"


@pytest.mark.parametrize(
    ("rename", "complaint"),
    [
        ("{SETT: x}", '"SETT" is no command with a name of its own; did you mean'),
        ("{CONFIG GET: x}", '"CONFIG GET" is no command with a name of its own'),
        ("{GET: SET}", '"SET" is the name of another command'),
        ("{GET: x, SET: X}", '"X" is the name of another command'),
        ("{COMMAND: " + "x" * 30 + "}", "a new name of COMMAND has at most"),
        ('{GET: "a b"}', "GET"),
        ('{GET: ""}', "GET"),
    ],
)
def test_names_that_cannot_be(folder: Folder, rename: str, complaint: str) -> None:
    """What is no command, and a name that is taken, too long or no word, is refused at load."""
    [found] = folder.complaints(f"commands: {{rename: {rename}}}")
    assert complaint in found
