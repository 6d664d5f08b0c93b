"""What the system knows of a socket."""

import asyncio
import socket

import pytest

from proxy import sockets
from tests.integration.rig import wait_for


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (("127.0.0.1", 6379), "127.0.0.1:6379"), (("::1", 6379, 0, 0), "[::1]:6379"),
        ("/run/redis.sock", "/run/redis.sock:0"), (b"\0abstract", "\0abstract:0"), ("", ":0"),
        (None, ":0"),
    ],
)  # fmt: skip
def test_names_are_those_of_redis(name: object, written: str) -> None:
    """An address of version 6 has brackets, a path the port 0."""
    assert sockets.address(name) == written


def test_what_is_sent_in_part_is_kept_whole() -> None:
    """A write is let go when its last byte is sent; small ones count together."""
    kept = sockets.Kept()
    for size in (100_000, 10, 20):
        kept.add(size)
    assert kept.of(100_030) == kept.of(31) == 100_030
    assert kept.of(30) == kept.of(1) == 30
    assert kept.of(500) == 500
    assert kept.of(0) == 0


async def test_what_nobody_has_read_and_the_end_are_seen() -> None:
    """Both are known before the loop has heard of them."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    assert not sockets.has_more(transport)
    assert not sockets.has_ended(transport)
    theirs.send(b"x")
    await wait_for(lambda: sockets.has_more(transport), "a byte")
    assert not sockets.has_ended(transport)
    theirs.close()
    await wait_for(lambda: sockets.has_ended(transport), "the end")
    transport.abort()
