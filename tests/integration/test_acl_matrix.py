"""Every command of the table, for every role, in every form: as `acl_matrix.tsv` says.

The file is reviewed by people and says by which questions. A command that is new in the table has
no line, and what changes a right changes a line.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy import commands
from proxy.commands import COMMANDS, INDEX, Row
from proxy.embedded.redis import Servers
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.policy import compiler
from proxy.wire.rules import KeyKind
from proxy.wire.rules import Path as Way
from tests.conftest import Clusters
from tests.integration.rig import Caller
from tests.policy.rulebook import SHIPPED
from tests.replies import pack

pytestmark = pytest.mark.integration

MATRIX = Path(__file__).parent / "acl_matrix.tsv"

# Beside the roles that are shipped: one of some keys, one that only reads.
MORE = """
roles:
  tenant: {keys: ["a:{rest:path}"]}
  reader: {commands: {allow: ["@read", "@connection", "@transaction"]}}
"""
ROLES = ("default", "booking", "untrusted", "tenant", "reader")
FORMS = ("array", "inline", "mixed case", "MULTI", "HELLO 3", "behind a failed AUTH")

DENIED = "NOPERM this user has no permissions to run the '"
NO_KEY = "NOPERM No permissions to access a key"

# What changes who the client is, or how it is answered, is not sent where it is allowed.
UNSENT = {
    "auth", "hello", "quit", "reset", "monitor", "subscribe", "psubscribe", "ssubscribe", "multi",
    "exec", "discard", "watch",
}  # fmt: skip

# What nodes of a cluster and their proxy tell each other anyway.
BACKGROUND = {"ping", "info", "hello", "auth", "replconf", "psync", "readonly", "asking", "select",
              "publish", "spublish"}  # fmt: skip


def matrix() -> dict[str, dict[str, str]]:
    """Return the reviewed cells by command and role."""
    head, *lines = (line for line in MATRIX.read_text().splitlines() if not line.startswith("#"))
    roles = head.split("\t")[1:]
    cells = (line.split("\t") for line in lines)
    return {name: dict(zip(roles, marks, strict=True)) for name, *marks in cells}


CELLS = matrix()

# A container without a word of its own is no command.
SENT = [row for row in COMMANDS if row.path is not Way.CONTAINER]


def words_of(row: Row, key: str) -> list[str]:
    """Return a command with as many words as it needs, in which all keys are this one.

    The other words are no numbers: what is allowed is refused by the node at the latest.
    """
    words = row.name.decode().split("|")
    words += ["x"] * (abs(row.arity) - len(words))
    kind, first, last, step = row.keys
    if kind is KeyKind.RANGE:
        for place in range(first, (last if last >= 0 else len(words) + last) + 1, step):
            words[place] = key
    elif kind is KeyKind.NUMKEYS:
        words += ["x"] * (first + 2 - len(words))
        words[first : first + 2] = ["1", key]
        if last:
            words[last] = key
    elif kind is KeyKind.STREAMS:
        words = [words[0], *(["GROUP", "g", "c"] if row.write else []), "STREAMS", key, "0"]
    elif kind is not KeyKind.NONE:
        words[1] = key
    # A word too many for these, or they would do what they are for.
    return [*words, "x"] if words[0] in ("flushall", "flushdb") else words


def sent_as(form: str, command: Sequence[str]) -> bytes:
    """Return the bytes of a command in one form."""
    if form == "inline":
        return " ".join(command).encode() + b"\r\n"
    if form == "mixed case":
        name = "".join(c.upper() if at % 2 else c for at, c in enumerate(command[0]))
        return pack(name, *command[1:])
    return pack(*command)


async def say(caller: Caller, form: str, asked: Sequence[Sequence[str]]) -> list[str]:
    """Send commands in one form, as one pipeline; return what each was answered."""
    around: dict[str, tuple[list[list[str]], list[list[str]]]] = {
        "MULTI": ([["MULTI"]], [["DISCARD"]]),
        "HELLO 3": ([["HELLO", "3"]], [["HELLO", "2"]]),
        "behind a failed AUTH": ([["AUTH", "nobody", "x"]], []),
    }
    before, after = around.get(form, ([], []))
    frames = [pack(*words) for words in before]
    frames += [sent_as(form, words) for words in asked]
    caller.writer.write(b"".join([*frames, *(pack(*words) for words in after)]))
    replies = [str(await caller.next()) for _ in range(len(frames) + len(after))]
    return replies[len(before) : len(frames)]


def write_policies(folder: Path) -> None:
    folder.mkdir()
    (folder / "roles.yaml").write_text((SHIPPED / "roles.yaml").read_text())
    (folder / "more.yaml").write_text(MORE)


@pytest.fixture(scope="module")
async def started(
    both_clusters: dict[str, Servers], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sidecar]:
    folder = tmp_path_factory.mktemp("matrix")
    write_policies(folder / "policies")
    users = {role: {"nopass": True, "role": role} for role in ROLES}
    configuration = configuration_for(both_clusters, policies="policies", users=users)
    async with Sidecar(configuration, folder) as sidecar:
        yield sidecar


async def calls(clusters: Clusters) -> Counter[str]:
    """Return how often each command reached a node, refused by it or not."""
    found = Counter[str]()
    for node in [*clusters.locks.nodes, *clusters.cache.nodes]:
        for line in (await node.ask("INFO", "commandstats")).splitlines():
            head, _, fields = line.partition(":")
            counts = dict(part.partition("=")[::2] for part in fields.split(",") if part)
            if head.startswith("cmdstat_"):
                name = head.removeprefix("cmdstat_")
                found[name] += sum(int(counts.get(kind, 0)) for kind in ("calls", "rejected_calls"))
    return found


def test_the_table_is_whole(tmp_path: Path) -> None:
    """Each command has its line, and each cell is what the policies say."""
    write_policies(tmp_path / "policies")
    rules, _ = compiler.from_files(tmp_path / "policies", ("locks", "cache"))
    roles = {role.name: role for role in rules.roles}
    assert list(CELLS) == sorted(row.name.decode() for row in COMMANDS)
    found = {
        row.name.decode(): {
            name: "." if not row.offered and roles[name].allowed[index]
            else "+" if roles[name].allowed[index] else "-"
            for name in ROLES
        }
        for index, row in enumerate(COMMANDS)
    }  # fmt: skip
    assert {name: cells for name, cells in found.items() if CELLS[name] != cells} == {}
    assert [row.name for row in rules.commands] == [row.name for row in commands.ROWS]


@pytest.mark.parametrize("role", ROLES)
async def test_cells(started: Sidecar, empty_clusters: Clusters, role: str) -> None:
    """What is denied is refused in every form and no node hears of it; the rest is not refused."""
    caller = await Caller.open(started.port)
    assert await caller.call("AUTH", role, "x") == b"OK"
    denied = [row for row in SENT if CELLS[row.name.decode()][role] != "+"]
    before = await calls(empty_clusters)
    for form in FORMS:
        replies = await say(caller, form, [words_of(row, "a:1") for row in denied])
        for row, reply in zip(denied, replies, strict=True):
            name = row.name.decode()
            if CELLS[name][role] == "-":
                assert reply == f"{DENIED}{name}' command", (form, name)
            else:
                assert not reply.startswith("NOPERM"), (form, name, reply)
    heard = await calls(empty_clusters) - before
    names = {row.name.decode() for row in denied}
    assert {name for name in heard if name in names - BACKGROUND} == set()
    allowed = [row for row in SENT if CELLS[row.name.decode()][role] == "+"]
    allowed = [row for row in allowed if row.name.decode() not in UNSENT]
    for form in FORMS:
        replies = await say(caller, form, [words_of(row, "a:1") for row in allowed])
        for row, reply in zip(allowed, replies, strict=True):
            assert not reply.startswith(DENIED), (form, row.name, reply)
            assert not reply.startswith(NO_KEY), (form, row.name, reply)


async def test_keys_of_others_in_every_command(started: Sidecar, empty_clusters: Clusters) -> None:
    """Whatever names a key is refused where the role may not name it, and no node hears of it."""
    caller = await Caller.open(started.port)
    assert await caller.call("AUTH", "tenant", "x") == b"OK"
    keyed = [
        row
        for row in COMMANDS
        if row.keys.kind is not KeyKind.NONE
        and CELLS[row.name.decode()]["tenant"] == "+"
        # These name channels.
        and "pubsub" not in row.flags
    ]
    before = await calls(empty_clusters)
    for form in FORMS:
        asked = [row for row in keyed if form != "MULTI" or row.name != b"watch"]
        replies = await say(caller, form, [words_of(row, "z:1") for row in asked])
        for row, reply in zip(asked, replies, strict=True):
            assert reply == NO_KEY, (form, row.name)
    heard = await calls(empty_clusters) - before
    assert {row.name.decode() for row in keyed} & set(heard) == set()


def test_denied_is_not_much_or_everything() -> None:
    """The cells that a reader looks at first."""
    assert all(marks["default"] in "+." for marks in CELLS.values())
    for name in ("flushdb", "flushall", "keys", "config|get", "config|set", "eval"):
        assert CELLS[name]["booking"] == CELLS[name]["untrusted"] == "-"
    assert not any(marks["reader"] == "+" and COMMANDS[INDEX[name.encode()]].write
                   for name, marks in CELLS.items())  # fmt: skip
