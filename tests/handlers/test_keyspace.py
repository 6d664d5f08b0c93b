"""KEYS, RANDOMKEY, DBSIZE, FLUSHDB and FLUSHALL."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from proxy import errors, wire
from tests.handlers.desk import Desk, parsed
from tests.handlers.keeper import Keeper, answered, keepers
from tests.wire.stage import ruleset


def filled(desk: Desk) -> list[Keeper]:
    """Return the nodes, with keys at three of them."""
    found = keepers(desk)
    found[0].keys = [b"b", b"sidecache:lease", b"b"]
    found[1].keys = [b"a"]
    found[3].keys = [b"seat_lock:{a}:1"]
    return found


def numbered(flushable: Sequence[int] = ()) -> Desk:
    """Return a desk whose database 1 is the first cluster, and 2 the second."""
    desk = Desk()
    desk.server.config = replace(desk.server.config, databases={1: 0, 2: 1})
    desk.server.router.ruleset = ruleset(flushable=flushable)
    return desk


async def test_keys() -> None:
    """KEYS lists each key once, under its client's name."""
    desk = Desk()
    found, client = filled(desk), desk.connect()
    reply = parsed(await answered(client, found, b"KEYS", b"*"))
    assert sorted(reply) == [b"a", b"b", b"seat_lock:a:1"]
    reply = parsed(await answered(client, found, b"KEYS", b"seat_lock:?:1"))
    assert reply == [b"seat_lock:a:1"]


async def test_too_many_keys() -> None:
    """A list that is larger than what a client may leave unread is an error that names SCAN."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[1].keys = [b"{a}" + b"%01000d" % number for number in range(1200)]
    assert await answered(client, found, b"KEYS", b"*") == errors.KEYS_TOO_MANY


async def test_keys_of_a_node_that_is_away() -> None:
    """A list with a part missing is no list."""
    desk = Desk()
    found, client = filled(desk), desk.connect()
    found[1].node.upstream.available = False
    assert await answered(client, found, b"KEYS", b"*") == errors.CLUSTERDOWN


async def test_dbsize() -> None:
    """DBSIZE is the sum over all primaries."""
    desk = Desk()
    found, client = filled(desk), desk.connect()
    assert await answered(client, found, b"DBSIZE") == b":5\r\n"


@pytest.mark.parametrize(("number", "count"), [(b"0", 5), (b"1", 4), (b"2", 1)])
async def test_dbsize_of_a_database(number: bytes, count: int) -> None:
    """DBSIZE in a database that chooses a cluster counts that cluster."""
    desk = numbered()
    found, client = filled(desk), desk.connect()
    client.ask(b"SELECT", number)
    assert await answered(client, found, b"DBSIZE") == b":%d\r\n" % count


async def test_randomkey() -> None:
    """A random key has its client's name, and no node without keys is asked."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[3].keys = [b"seat_lock:{a}:1"]
    assert parsed(await answered(client, found, b"RANDOMKEY")) == b"seat_lock:a:1"
    assert [words[0] for words in found[0].asked] == [b"DBSIZE"]


@pytest.mark.parametrize("keys", [[], [b"sidecache:lease"]])
async def test_no_randomkey(keys: list[bytes]) -> None:
    """Where there is nothing to be shown, the answer is nil."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[0].keys = keys
    assert await answered(client, found, b"RANDOMKEY") == b"$-1\r\n"


@pytest.mark.parametrize("words", [b"FLUSHALL", b"FLUSHDB ASYNC", b"flushall sync"])
async def test_flush(words: bytes) -> None:
    """Only clusters that the policies let go are emptied, each primary of them."""
    desk = Desk()
    desk.server.router.ruleset = ruleset(flushable=(0,))
    found, client = filled(desk), desk.connect()
    assert await answered(client, found, *words.split()) == b"+OK\r\n"
    assert [one.asked for one in found] == [[words.split()], [words.split()], [], []]


@pytest.mark.parametrize(
    ("number", "words", "flushed"),
    [
        (b"2", b"FLUSHDB", [2, 3]),
        (b"1", b"FLUSHDB ASYNC", [0, 1]),
        (b"0", b"FLUSHDB", [0, 1, 2, 3]),
        (b"2", b"FLUSHALL", [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("queued", [False, True])
async def test_a_database_that_chooses_a_cluster_is_flushed_alone(
    number: bytes, words: bytes, flushed: list[int], queued: bool
) -> None:
    """FLUSHDB empties the cluster of its database, in MULTI too; FLUSHALL what policies say."""
    desk = numbered(flushable=(0, 1))
    found, client = filled(desk), desk.connect()
    assert client.ask(b"SELECT", number) == b"+OK\r\n"
    if queued:
        assert client.ask(b"MULTI") == b"+OK\r\n"
        assert client.ask(*words.split()) == b"+QUEUED\r\n"
        assert await answered(client, found, b"EXEC") == b"*1\r\n+OK\r\n"
    else:
        assert await answered(client, found, *words.split()) == b"+OK\r\n"
    assert [place for place, one in enumerate(found) if one.asked] == flushed


async def test_a_database_whose_cluster_may_not_be_flushed() -> None:
    """FLUSHDB is refused where the policies keep the database's cluster, and nothing is emptied."""
    desk = numbered(flushable=(0,))
    found, client = filled(desk), desk.connect()
    client.ask(b"SELECT", b"2")
    assert client.ask(b"FLUSHDB") == errors.FLUSH_REFUSED
    client.ask(b"SELECT", b"1")
    assert await answered(client, found, b"FLUSHDB") == b"+OK\r\n"
    assert [place for place, one in enumerate(found) if one.asked] == [0, 1]


@pytest.mark.parametrize("words", [b"FLUSHALL NOW", b"FLUSHDB ASYNC SYNC"])
async def test_bad_flush(words: bytes) -> None:
    """Other words are a syntax error."""
    assert Desk().connect().ask(*words.split()) == errors.SYNTAX


async def test_nothing_may_be_flushed() -> None:
    """Where the policies let no cluster go, the answer says so."""
    assert Desk().connect().ask(b"FLUSHALL") == errors.FLUSH_REFUSED


async def test_one_primary_that_was_not_flushed() -> None:
    """A flush that failed somewhere says at how many primaries it took effect."""
    desk = Desk()
    desk.server.router.ruleset = ruleset(flushable=(0,))
    found, client = filled(desk), desk.connect()
    found[1].node.upstream.available = False
    expected = errors.partial(errors.CLUSTERDOWN, 1, 2)
    assert await answered(client, found, b"FLUSHALL") == expected


def test_nothing_is_flushable_unless_it_is_said() -> None:
    """Rules that say nothing of it let no cluster be emptied."""
    rules: wire.Ruleset = ruleset()
    assert rules.flushable == ()
