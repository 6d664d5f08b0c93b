"""The command table against itself and against the COMMAND of real servers."""

import pytest

from proxy.commands import CATEGORIES, COMMANDS, FAMILIES, INDEX, ROWS, Row
from proxy.handlers.table import HANDLERS
from proxy.wire.rules import KeyKind, Path
from tests.handlers.servers import PROGRAMS, Client, program_of, running

# Arity where Redis 7.0 and Valkey 9 differ; the table has the one that lets more through.
LOOSER_ARITY = {
    "zrank", "zrevrank", "cluster|replicate", "command|getkeys", "command|getkeysandflags",
    "script|debug",
}  # fmt: skip

# Flags, and the categories that follow from them, that Redis 7.0 does not have yet.
LATER_FLAGS = {"wait": {"blocking"}}

# Scripts have no write flag and may write; whoever judges by the flag must count them as writes.
SCRIPTS = {"eval", "evalsha", "fcall"}

# Keys that first, last and step do not describe, and that have no rule: MIGRATE, which is refused,
# may name them behind KEYS.
UNDESCRIBED = {"migrate"}

FLAGS = {"write", "readonly", "denyoom", "admin", "pubsub", "blocking", "fast", "no_auth"}


@pytest.fixture(scope="module", params=PROGRAMS)
def entries(request: pytest.FixtureRequest) -> dict[str, list[object]]:
    """Every command and sub-command that a real server lists, by name."""
    with running(program_of(request)) as path:
        client = Client(path)
        listed = client.ask(b"COMMAND")
        client.close()
    assert isinstance(listed, list)
    return {item[0].decode(): item for entry in listed for item in (entry, *entry[9])}


def _words(field: object) -> set[str]:
    assert isinstance(field, list)
    return {word.decode() for word in field}


def _row(name: str) -> Row:
    return COMMANDS[INDEX[name.encode()]]


@pytest.mark.integration
def test_every_command_of_the_server_has_a_row(entries: dict[str, list[object]]) -> None:
    """An upgrade that brings a command cannot open or close anything unnoticed."""
    assert sorted(name for name in entries if name.encode() not in INDEX) == []


@pytest.mark.integration
def test_arity_is_that_of_the_server(entries: dict[str, list[object]]) -> None:
    """A command passes our arity check whenever it passes the server's, and mostly only then."""
    differing = {name for name, entry in entries.items() if entry[1] != _row(name).arity}
    assert differing <= LOOSER_ARITY
    for name in differing:
        ours, theirs = _row(name).arity, entries[name][1]
        assert isinstance(theirs, int)
        assert 0 < -ours <= abs(theirs), name


@pytest.mark.integration
def test_flags_are_those_of_the_server(entries: dict[str, list[object]]) -> None:
    """Every flag that the table keeps is the server's flag, the write flag above all."""
    for name, entry in entries.items():
        row = _row(name)
        assert row.flags == (_words(entry[2]) & FLAGS) - LATER_FLAGS.get(name, set()), name
        assert ROWS[INDEX[row.name]].write == ("write" in row.flags or name in SCRIPTS), name


@pytest.mark.integration
def test_categories_are_those_of_the_server(entries: dict[str, list[object]]) -> None:
    """ACL categories, most of them derived, are exactly the server's."""
    for name, entry in entries.items():
        theirs = {word.removeprefix("@") for word in _words(entry[6])}
        assert _row(name).categories == theirs - LATER_FLAGS.get(name, set()), name


@pytest.mark.integration
def test_ranges_are_those_of_the_server(entries: dict[str, list[object]]) -> None:
    """First key, last key and step agree wherever a range describes the keys."""
    for name, entry in entries.items():
        keys = _row(name).keys
        if keys.kind is KeyKind.RANGE:
            assert [keys.first, keys.last, keys.step] == entry[3:6], name
        elif keys.kind is KeyKind.NONE:
            assert entry[3:6] == [0, 0, 0] or name in UNDESCRIBED, name
        else:
            assert "movablekeys" in _words(entry[2]), name


def test_names_are_unique_and_lower_case() -> None:
    """Every row has a name of its own, as the data plane looks it up."""
    assert len(INDEX) == len(COMMANDS)
    assert all(row.name == row.name.lower() for row in COMMANDS)


def test_every_subcommand_has_its_container() -> None:
    """A row with a bar belongs to a row that is a container, and containers have words."""
    containers = {row.container for row in COMMANDS if b"|" in row.name}
    assert containers == {row.name for row in COMMANDS if row.path is Path.CONTAINER}


def test_every_slow_row_has_one_handler() -> None:
    """What can become a Request has a handler, and no handler stands for what cannot."""
    slow = {Path.LOCAL, Path.BARRIER, Path.SPLIT}
    wanted = {
        row.name
        for row in ROWS
        if row.path in slow or row.names_in_reply or row.keys.kind is KeyKind.STREAMS
    }
    # An unknown command, and COMMAND without a word, which is a container and a command.
    assert wanted | {b"", b"command"} == set(HANDLERS)


def test_forwarded_rows_have_keys() -> None:
    """A command without a key has no node to go to."""
    for row in COMMANDS:
        if row.path in (Path.FORWARD, Path.SPLIT):
            assert row.keys.kind is not KeyKind.NONE, row.name


def test_only_plain_reads_are_repeatable() -> None:
    """What is sent a second time by itself changes nothing and follows no cursor."""
    repeatable = {row.name for row in ROWS if row.repeatable}
    assert not any(row.write for row in ROWS if row.repeatable)
    assert {b"get", b"mget", b"hgetall", b"zrange", b"xrange", b"ttl"} <= repeatable
    assert not repeatable & {b"pfcount", b"sort", b"georadius", b"getex", b"hscan", b"xread"}


def test_families_are_a_closed_set() -> None:
    """Each of the eight families of the metrics has commands, and every row is in one."""
    assert {FAMILIES[row.family] for row in ROWS} == set(FAMILIES)
    for name, family in {
        b"setbit": "string", b"pfadd": "string", b"hset": "hash", b"lpush": "list",
        b"sadd": "set", b"geoadd": "zset", b"xadd": "stream", b"del": "generic",
        b"sort": "generic", b"client|id": "connection", b"info": "connection",
        b"memory|usage": "generic", b"eval": "generic",
    }.items():  # fmt: skip
        assert FAMILIES[ROWS[INDEX[name]].family] == family, name


def test_categories_name_rows() -> None:
    """A policy that denies @dangerous denies what Redis calls so."""
    assert {b"keys", b"flushall", b"config|set", b"debug"} <= CATEGORIES["dangerous"]
    assert b"get" in CATEGORIES["read"]
    assert b"get" not in CATEGORIES["write"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (b"flushall", b"-ERR unknown command 'flushall', with args beginning with: \r\n"),
        (b"client|reply", b"-ERR unknown subcommand 'reply'. Try CLIENT HELP.\r\n"),
        (b"client", b"-ERR unknown subcommand. Try CLIENT HELP.\r\n"),
    ],
)
def test_refusals_are_redis_own_words(name: bytes, line: bytes) -> None:
    """What is not offered looks like what an older Redis does not have."""
    assert ROWS[INDEX[name]].refused_error == line


def test_arity_errors_are_redis_own_words() -> None:
    """The name in the line is the full name of the sub-command."""
    line = b"-ERR wrong number of arguments for 'cluster|keyslot' command\r\n"
    assert ROWS[INDEX[b"cluster|keyslot"]].arity_error == line
