"""Writes that happen in Redis alone, though PostgreSQL stands behind the key."""

import pytest

from proxy import errors
from tests.handlers.backed_desk import BackedDesk, plan

BESIDE = [b"UNLINK", b"sidecache:lease:{user:1}", b"sidecache:none:{user:1}"]


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan(type="string"))


async def test_a_write_and_the_end_of_fetches_are_one_step(table: BackedDesk) -> None:
    """A node is given both in one transaction, with the window added to the time."""
    client = table.connect()
    client.send(b"SET", b"user:1", b"v", b"EX", b"10")
    assert await table.asked() == [
        [b"MULTI"], BESIDE, [b"SET", b"user:1", b"v", b"PX", b"40000"], [b"EXEC"],
    ]  # fmt: skip
    await table.answer(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n+OK\r\n")
    assert await client.reply() == b"+OK\r\n"


async def test_an_error_of_the_node_is_the_answer(table: BackedDesk) -> None:
    """What a node says of the write reaches the client, and what is no reply does not hang it."""
    client = table.connect()
    for replies, said in (
        (b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n-WRONGTYPE no\r\n", b"-WRONGTYPE no\r\n"),
        (b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*0\r\n", errors.INTERNAL),
        (b"+OK\r\n-OOM no\r\n-OOM no\r\n-EXECABORT previous errors\r\n", b"-OOM no\r\n"),
    ):
        client.send(b"SET", b"user:1", b"v")
        await table.asked()
        await table.answer(replies)
        assert await client.reply() == said


async def test_a_part_waits_for_the_whole(table: BackedDesk) -> None:
    """Where the whole value cannot be had, a part of it is not written alone."""
    client = table.connect()
    client.send(b"APPEND", b"user:1", b"x")
    assert (await table.asked())[0][0] == b"lease"
    await table.answer(b"$3\r\nwon\r\n")
    assert (await table.asked())[0][0] == b"fill"
    await table.answer(b":1\r\n")
    assert await client.reply() == errors.ORIGIN_DOWN
    table.away()
    client.send(b"APPEND", b"user:1", b"x")
    assert await client.reply() == errors.CLUSTERDOWN


async def test_a_node_that_has_not_heard_of_changes_is_not_asked(table: BackedDesk) -> None:
    """Nothing is told from it, changed there in part, or put where look-ups do not go."""
    client = table.connect()
    table.admit(0)
    for words in (
        (b"LCS", b"user:1", b"user:1"), (b"GETEX", b"user:1"), (b"GETDEL", b"user:1"),
        (b"SET", b"user:1", b"v"), (b"MSET", b"user:1", b"v"),
    ):  # fmt: skip
        client.send(*words)
        assert await client.reply() == errors.CLUSTERDOWN
    assert table.home.sent == b""
    client.send(b"DEL", b"user:1")
    assert (await table.asked())[-2] == [b"DEL", b"user:1"]


async def test_what_is_written_to_a_node_is_looked_up_there(table: BackedDesk) -> None:
    """While its share grows, PostgreSQL is asked for none of what only the node has."""
    client = table.connect()
    table.admit(10)
    for _ in range(100):
        client.send(b"GET", b"user:1")
        assert await table.asked() == [[b"PTTL", b"user:1"], [b"GET", b"user:1"]]
        await table.answer(b":90000\r\n", b"$1\r\nv\r\n")
        assert await client.reply() == b"$1\r\nv\r\n"


async def test_a_write_of_a_transaction_ends_fetches_too(table: BackedDesk) -> None:
    """The node ends them in the same step, and the client hears of its own commands alone."""
    client = table.connect()
    for words in ([b"MULTI"], [b"SET", b"user:1", b"v", b"PX", b"10"], [b"GET", b"user:1"]):
        client.send(*words)
    assert client.take() == b"+OK\r\n+QUEUED\r\n+QUEUED\r\n"
    client.send(b"EXEC")
    assert await table.asked() == [
        [b"MULTI"], [b"SET", b"user:1", b"v", b"PX", b"30010"], BESIDE, [b"GET", b"user:1"],
        [b"EXEC"],
    ]  # fmt: skip
    await table.answer(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+OK\r\n:1\r\n$1\r\nv\r\n")
    assert await client.reply() == b"*2\r\n+OK\r\n$1\r\nv\r\n"
