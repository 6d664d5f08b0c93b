"""The bytes of a visitor, from a real socket."""

import socket
import time

import pytest

from proxy import visit
from proxy.visit import TooMuch, Visit


def test_a_visitor_has_so_many_bytes() -> None:
    """They are read as they come; what is beyond them is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * (visit.HEAD_BYTES + 1))
        mine = Visit(ours, time.monotonic() + 10)
        read = 0
        while read < visit.HEAD_BYTES:
            read += mine.readinto(bytearray(3000))
        assert read == visit.HEAD_BYTES
        with pytest.raises(TooMuch):
            mine.readinto(bytearray(1))


def test_a_visitor_has_so_much_time() -> None:
    """For all bytes together: whoever is silent, or comes after the deadline, is not heard."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            Visit(ours, time.monotonic() + 0.01).readinto(bytearray(1))
        theirs.sendall(b"late")
        with pytest.raises(TimeoutError, match="too slow"):
            Visit(ours, time.monotonic() - 1).readinto(bytearray(1))
