"""What we answer ourselves, byte for byte as real servers do, in RESP2 and RESP3."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handlers.desk import Desk
from tests.handlers.servers import PROGRAMS, Client, program_of, running

SAME = """
PING|PING hello|PING a b|ECHO x|ECHO|SELECT 0|SELECT abc|SELECT 99|SELECT -1|SELECT 16
AUTH x|AUTH a b|AUTH a b c|AUTH
HELLO 4|HELLO 1|HELLO abc|HELLO 2 FOO|HELLO 3 AUTH a|HELLO 3 AUTH a b|HELLO 2 SETNAME
CLIENT GETNAME|CLIENT SETNAME x|CLIENT SETNAME a\tb|CLIENT KILL nobody|CLIENT KILL foo bar
CLIENT KILL ID 0|CLIENT KILL ID -1|CLIENT KILL TYPE foo|CLIENT KILL SKIPME maybe
CLIENT KILL USER nobody|CLIENT KILL LADDR x|CLIENT KILL ID|CLIENT KILL ADDR x TYPE normal
CLIENT LIST TYPE foo|CLIENT LIST TYPE pubsub|CLIENT LIST foo|CLIENT LIST ID 9999999
CLIENT NO-EVICT x|CLIENT NO-EVICT on|CLIENT|CLIENT ID x
ROLE|ROLE x|TIME x|CONFIG GET nosuch|CONFIG GET maxmemory|CONFIG GET MAXMEMOR? maxmemory
CONFIG GET|CONFIG GET notify-keyspace-events
ACL WHOAMI|ACL USERS|ACL CAT nosuch|ACL GENPASS 5000|ACL GENPASS 0|ACL GENPASS a
INFO nosuch|COMMAND INFO nosuch|COMMAND LIST FOO|COMMAND LIST FILTERBY FOO bar
COMMAND LIST FILTERBY ACLCAT nosuch|COMMAND LIST FILTERBY MODULE nosuch
COMMAND LIST FILTERBY PATTERN incrbyf*|COMMAND DOCS nosuch
COMMAND GETKEYS NOSUCH a|COMMAND GETKEYS GET a b|COMMAND GETKEYS MSET a 1 b 2
COMMAND GETKEYS ZUNION 0 a|COMMAND GETKEYS SORT a BY x STORE b|COMMAND GETKEYS OBJECT foo a
COMMAND GETKEYS OBJECT encoding a|COMMAND GETKEYS PING x|COMMAND GETKEYS
CLIENT GETREDIR|CLIENT GETREDIR x|LATENCY LATEST|LATENCY HISTORY x|LATENCY RESET|LATENCY RESET a b
LATENCY GRAPH x|LATENCY GRAPH|MEMORY PURGE|MEMORY USAGE|MEMORY DOCTOR x|CONFIG RESETSTAT
ACL LIST|ACL GETUSER nobody|ACL GETUSER|ACL LOG reset|ACL LOG x|ACL LOG 1 2
ACL DRYRUN default GET a|ACL DRYRUN default GET|ACL DRYRUN default NOSUCH|ACL DRYRUN nobody GET a
ACL DRYRUN default CONFIG|ACL DRYRUN default CONFIG NOSUCH x|ACL DRYRUN default CONFIG GET x
CLUSTER SLOTS|CLUSTER HELP|CLUSTER FOO|CLUSTER|CLUSTER ADDSLOTS 1|CLUSTER SLOTS x
COMMAND GETKEYSANDFLAGS SET a b|COMMAND GETKEYSANDFLAGS SET a b GET|COMMAND GETKEYSANDFLAGS GET a
COMMAND GETKEYSANDFLAGS BITFIELD a GET u8 0|COMMAND GETKEYSANDFLAGS BITFIELD a INCRBY u8 0 1
COMMAND GETKEYSANDFLAGS ZUNIONSTORE d 2 a b|COMMAND GETKEYSANDFLAGS SMOVE a b c
COMMAND GETKEYSANDFLAGS SORT a STORE b|COMMAND GETKEYSANDFLAGS MEMORY USAGE a
COMMAND GETKEYSANDFLAGS COPY a b|COMMAND GETKEYSANDFLAGS GEORADIUS a 1 1 1 m STORE b
COMMAND GETKEYSANDFLAGS XREADGROUP GROUP g c STREAMS a b 0 0|COMMAND GETKEYSANDFLAGS PING x
COMMAND GETKEYS EVAL x 0|COMMAND GETKEYS EVAL x 1 a|COMMAND GETKEYS XREAD STREAMS a b 0 0
SLOWLOG GET 1 2|SLOWLOG GET x|ACL CAT a b|ACL GENPASS 1 2|ACL LOG -1
NOSUCH|NOSUCH a b|nosuch %|RESET|FLUSHALLL a|GET|GET a b|DEL|CLUSTER KEYSLOT
COPY a {a}b OVER|COPY a {a}b DB|QUIT
EVAL x y|EVAL x -1|EVAL x 2 a|EVAL_RO x 01 a|EVAL x|SCRIPT LOAD|SCRIPT|SCRIPT EXISTS|FCALL f
"""

# What takes a number of keys, here #, with fewer than nine words behind it.
COUNTED = [
    *(f"{name} # k" for name in ("ZUNION", "ZINTER", "ZDIFF", "ZINTERCARD", "SINTERCARD")),
    *(f"{name} d # k" for name in ("ZUNIONSTORE", "ZINTERSTORE", "ZDIFFSTORE")),
    "LMPOP # k LEFT", "ZMPOP # k MIN", "BLMPOP 0 # k LEFT", "BZMPOP 0 # k MIN",
    "EVAL x # k", "EVAL_RO x # k",
]  # fmt: skip
COUNTS = ["-1", "a", "01", "+1", "9", "9999999999", str(2**63), str(-(2**63) - 1), "9" * 40]

COMMANDS = [
    *(line for line in SAME.replace("\n", "|").split("|") if line),
    *(line.replace("#", count) for line in COUNTED for count in COUNTS),
    *(line.replace("#", "0") for line in COUNTED if not line.startswith("EVAL")),
]


@pytest.fixture(scope="module", params=PROGRAMS)
def server(request: pytest.FixtureRequest) -> Iterator[Path]:
    with running(program_of(request)) as path:
        yield path


def _words(command: str) -> list[bytes]:
    return [word.replace("%", "'\"x").encode() for word in command.split(" ")]


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [b"2", b"3"])
@pytest.mark.parametrize("command", COMMANDS)
async def test_same_bytes(server: Path, command: str, protocol: bytes) -> None:
    """A reply of our own cannot be told from that of a server."""
    real = Client(server)
    ours = Desk().connect()
    real.ask_raw(b"HELLO", protocol)
    ours.ask(b"HELLO", protocol)
    expected, reply = real.ask_raw(*_words(command)), ours.ask(*_words(command))
    real.close()
    assert reply == expected


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_hello_has_the_same_shape(server: Path, protocol: bytes) -> None:
    """HELLO answers the same fields in the same order and types."""
    real = Client(server)
    ours = Desk().connect()
    expected, reply = real.ask(b"HELLO", protocol), ours.value(b"HELLO", protocol)
    real.close()
    pairs = zip(_flat(expected), _flat(reply), strict=True)
    assert all(type(theirs) is type(mine) for theirs, mine in pairs)
    assert _flat(expected)[::2] == _flat(reply)[::2]


def _flat(reply: object) -> list[object]:
    if isinstance(reply, dict):
        return [part for pair in reply.items() for part in pair]
    assert isinstance(reply, list)
    return reply


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_command_info_has_the_same_content(server: Path, protocol: bytes) -> None:
    """Names, arity, flags, key positions and categories are those of the server."""
    real = Client(server)
    ours = Desk().connect()
    real.ask(b"HELLO", protocol)
    ours.ask(b"HELLO", protocol)
    names = [b"get", b"mset", b"zunionstore", b"xread", b"sort", b"bitop", b"hset", b"object"]
    expected = real.ask(b"COMMAND", b"INFO", *names)
    reply = ours.value(b"COMMAND", b"INFO", *names)
    real.close()
    assert isinstance(expected, list)
    for theirs, mine in zip(expected, reply, strict=True):
        assert mine[:2] + mine[3:6] == theirs[:2] + theirs[3:6]
        assert set(mine[2]) <= set(theirs[2])
        assert sorted(mine[6]) == sorted(theirs[6])
        assert [type(field) for field in mine] == [type(field) for field in theirs]
    # A single range is published in the same words.
    for index in (0, 1, 6):
        assert _specs(expected[index]) == _specs(reply[index])


def _specs(entry: list[object]) -> list[object]:
    """Return the key specifications of an entry but their flags, of which ours are two."""
    specs = entry[8]
    assert isinstance(specs, list)
    return [_flat(spec)[2:] for spec in specs]
