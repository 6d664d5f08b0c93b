"""Key specifications, against those that real servers publish."""

from typing import Any

import pytest

from proxy.commands import COMMANDS, INDEX
from proxy.handlers.specifications import flags_of, specifications
from proxy.resp import encode
from tests.handlers.desk import parsed
from tests.handlers.servers import PROGRAMS, Client, program_of, running

# MIGRATE has keys behind a word of its own; it is refused, and the rule of its row is "none".
NOT_DESCRIBED = {"migrate"}

# Where versions differ, and ours are the words of the older one.
LATER_FLAGS = {"variable_flags"}
DIFFERENT_FLAGS = {"sinterstore"}


def _plain(specs: list[Any], name: str) -> list[Any]:
    """Return specifications without notes, with sets of flags."""
    found = []
    for spec in specs:
        fields = (
            dict(spec) if isinstance(spec, dict) else dict(zip(spec[::2], spec[1::2], strict=True))
        )
        fields.pop(b"notes", None)
        flags = {flag.decode() for flag in fields.pop(b"flags")} - LATER_FLAGS
        found.append((set() if name in DIFFERENT_FLAGS else flags, fields))
    return found


@pytest.mark.integration
@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_they_are_those_of_the_server(program: Any) -> None:
    """Beginnings, ends and flags of every group of keys are the server's own."""
    with running(program) as path:
        client = Client(path)
        listed: Any = client.ask(b"COMMAND")
        client.close()
    for entry in (item for command in listed for item in (command, *command[9])):
        name = entry[0].decode()
        if name in NOT_DESCRIBED:
            continue
        ours = parsed(encode(specifications(COMMANDS[INDEX[entry[0]]]), 2))
        assert _plain(ours, name) == _plain(entry[8], name), name


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Any:
    return program_of(request)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("SET a b", ["OW update"]),
        ("SET a GET", ["OW update"]),
        ("SET a b XX GET", ["RW access update"]),
        ("BITFIELD a GET u8 0", ["RO access"]),
        ("BITFIELD a GET u8 0 SET u8 0 1", ["RW access update"]),
        ("RENAME a b", ["RW access delete", "OW update"]),
        ("GET a", ["RO access"]),
        ("HSET a b c", ["RW update"]),
    ],
)
def test_flags_follow_the_arguments(command: str, flags: list[str]) -> None:
    """What a command does with a key may depend on its options."""
    words = command.encode().split()
    row = COMMANDS[INDEX[words[0].lower()]]
    assert [" ".join(flags_of(row, words, index)) for index in range(len(flags))] == flags
