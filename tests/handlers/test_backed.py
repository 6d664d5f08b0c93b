"""Keyspaces that PostgreSQL stands behind, where their Requests come in."""

import pytest

from proxy import errors
from proxy.commands import ROWS
from proxy.handlers import backed
from proxy.plans import Age
from proxy.wire.rules import Duty, Keyspace, Segment
from tests.handlers import desk
from tests.handlers.backed_desk import BackedDesk, plan
from tests.handlers.desk import Desk

BACKED = Keyspace(
    name="user",
    pattern=[b"user:", Segment("id", "text")],
    cluster=0,
    hash_tag=None,
    characters=None,
    max_key_bytes=512,
    denied=bytes(len(ROWS)),
    key_error=b"-POLICY key\r\n",
    denied_error=b"-NOPERM denied\r\n",
    duties=bytes(Duty.ORIGIN * (row.looks_up or row.write) for row in ROWS),
    detours=True,
)


@pytest.fixture
async def table(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(desk, "KEYSPACES", [BACKED])
    return Desk()


async def test_what_redis_lacks_is_nil_without_plans(table: Desk) -> None:
    """A miss that nobody can fill is answered as the node answered it."""
    client = table.connect()
    client.send(b"GET", b"user:1")
    table.node(1).answer(b"$-1\r\n")
    assert await client.reply() == b"$-1\r\n"


async def test_a_write_reaches_the_node_in_its_turn(table: Desk) -> None:
    """A write waits for the reads before it and goes to the node as it is."""
    client = table.connect()
    client.send(b"GET", b"user:1")
    client.send(b"SET", b"user:1", b"x")
    node = table.node(1)
    node.answer(b"$1\r\no\r\n")
    assert await client.reply() == b"$1\r\no\r\n"
    node.answer(b"+OK\r\n")
    assert await client.reply() == b"+OK\r\n"


async def test_a_cluster_that_is_away_is_said_so(table: Desk) -> None:
    """Where no plan says otherwise, the data plane's own words are the answer."""
    client = table.connect()
    table.node(1).upstream.available = False
    client.send(b"GET", b"user:1")
    assert await client.reply() == errors.CLUSTERDOWN


async def test_what_is_answered_at_once_does_not_strand_who_waits(table: Desk) -> None:
    """A write behind a look-up that its handler answers at once gets its turn."""
    client = table.connect()
    client.send(b"GET", b"user:1")
    client.send(b"DEL", b"user:1")
    client.send(b"PING")
    node = table.node(1)
    node.answer(b"$-1\r\n")
    assert await client.reply() == b"$-1\r\n"
    node.answer(b":0\r\n")
    assert await client.reply() == b":0\r\n+PONG\r\n"


@pytest.mark.parametrize(
    "words",
    [
        b"GET user:007", b"SET user:007 x", b"DEL user:1 user:007", b"MGET user:007",
        b"TTL user:-0", b"HSCAN user:007 0", b"EVAL x 1 user:007", b"BLPOP user:007 0",
    ],
)  # fmt: skip
async def test_a_key_has_one_spelling(words: bytes) -> None:
    """What an invalidation would not find is neither read nor written: it would be old for ever."""
    own = plan(pattern=(b"user:", Segment("id", "int")), type=None, age=Age())
    table = BackedDesk(own)
    client = table.connect()
    client.send(*words.split())
    if words.startswith((b"GET", b"MGET")):
        for pair in table.nodes:
            for node in pair:
                if node.commands():
                    node.answer(b"$-1\r\n" if words.startswith(b"GET") else b"*1\r\n$-1\r\n")
    refused = errors.key_refused("user", "a segment is not written as PostgreSQL prints it")
    assert await client.reply() == refused
    assert not any(node.sent for pair in table.nodes for node in pair)
    client.send(b"MULTI")
    client.send(*words.split())
    assert await client.reply() == b"+OK\r\n" + refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (b"GETDEL user:1", errors.UNKNOWN_WRITE),
        (b"HSCAN user:1 0", errors.TIMEOUT),
        (b"TTL user:1", errors.TIMEOUT),
    ],
)
async def test_nobody_is_held_for_ever(
    words: bytes, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that never answers costs a command its deadline, and its client goes on."""
    monkeypatch.setattr(backed, "longest", lambda config: 0.0)
    table = BackedDesk(plan(read=None))
    client = table.connect()
    client.send(*words.split())
    client.send(b"PING")
    assert await client.reply() == line + b"+PONG\r\n"
