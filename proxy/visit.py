"""The bytes that a visitor of the admin port sends, within a budget of bytes and a deadline.

Used by `admin`, in the thread of the visitor. Always true: whatever is sent and however slowly,
reading ends at the deadline and memory is bounded.
"""

import io
import socket
import time
from typing import Any, Final

# Ten times what curl, kubelet and Prometheus send.
HEAD_BYTES: Final = 8192


class TooMuch(Exception):
    """The visitor said more than its budget."""


class Visit(io.RawIOBase):
    """The bytes of a visitor, within a budget of bytes and a deadline for all of them."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._room = HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        # A timeout for each receive would let a visitor stay for ever with a byte now and then.
        left = self._deadline - time.monotonic()
        if self._room <= 0:
            raise TooMuch
        if left <= 0:
            raise TimeoutError("the visitor is too slow")
        self._connection.settimeout(left)
        count = self._connection.recv_into(memoryview(target)[: self._room])
        self._room -= count
        return count
