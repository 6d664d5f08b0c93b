"""What is noted of a connection's writes."""

import pytest

from proxy import errors
from tests.handlers.bound_desk import KEY, BoundDesk, close, unbinding


@pytest.fixture
async def desk() -> BoundDesk:
    return BoundDesk()


@pytest.mark.parametrize(
    ("words", "reply", "is_noted"),
    [
        ((b"SET", KEY, b"v"), b"+OK\r\n", True),
        ((b"SET", KEY, b"v", b"NX"), b"$-1\r\n", False),
        ((b"SET", KEY, b"v", b"GET"), b"$-1\r\n", True),
        ((b"SET", KEY, b"v", b"NX", b"GET"), b"$1\r\nw\r\n", False),
        ((b"SETEX", KEY, b"9", b"v"), b"+OK\r\n", True),
        ((b"SETNX", KEY, b"v"), b":0\r\n", False),
        ((b"GETSET", KEY, b"v"), b"$-1\r\n", True),
        ((b"MSET", KEY, b"v", KEY, b"v"), b"+OK\r\n", True),
        ((b"SET", KEY, b"v"), b"-OOM no\r\n", False),
        ((b"SET", KEY, b"v"), errors.UNKNOWN_WRITE, True),
    ],
)
async def test_what_a_reply_says_was_done_is_noted(
    desk: BoundDesk, words: tuple[bytes, ...], reply: bytes, is_noted: bool
) -> None:
    """A value that was set, or may have been, goes with its connection, and no other."""
    client = desk.connect()
    desk.wrote(client, reply, *words)
    close(client)
    assert await desk.errands() == ([unbinding(b"v")] if is_noted else [])


async def test_a_key_is_compared_with_what_was_written(desk: BoundDesk) -> None:
    """The node is given the digest of the newest value that the connection wrote."""
    client = desk.connect()
    desk.wrote(client, b"+OK\r\n", b"SET", KEY, b"old")
    desk.wrote(client, b"+OK\r\n", b"SET", KEY, b"new")
    close(client)
    assert await desk.errands() == [unbinding(b"new")]


async def test_what_was_taken_away_is_forgotten(desk: BoundDesk) -> None:
    """DEL and SREM, by whichever client of the proxy, leave nothing to do for the end."""
    one, other = desk.connect(), desk.connect()
    desk.wrote(one, b":2\r\n", b"SADD", KEY, b"a", b"b")
    desk.wrote(other, b":1\r\n", b"SREM", KEY, b"a")
    close(one)
    assert await desk.errands() == [[b"SREM", KEY, b"b"]]
    desk.wrote(other, b"+OK\r\n", b"SET", KEY, b"v")
    desk.wrote(other, b":1\r\n", b"DEL", KEY)
    close(other)
    assert await desk.errands() == []
