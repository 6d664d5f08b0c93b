"""What was read from PostgreSQL while Redis is away, for seconds, inside this sidecar: the gutter.

`reading` puts in and takes out. It spares PostgreSQL most of what a hot key costs, and is what is
left where PostgreSQL cannot answer either.

Always true: it holds at most BYTES, those that were looked at last; what is older than SECONDS is
only given to who asks for something stale; that there is no row is remembered too.
"""

from collections import OrderedDict
from typing import NamedTuple

from proxy.origin.render import Value, flat

BYTES = 32 << 20

# As long as a page takes to be read, and no longer than an invalidation may take.
SECONDS = 2.0

# What a place costs beside the bytes of its key and members.
_PLACE, _MEMBER = 400, 60


class Copy(NamedTuple):
    """A value and when it was read, by the clock of the loop."""

    value: Value | None
    read: float
    size: int


class Gutter:
    """Copies by key."""

    def __init__(self, most: int = BYTES) -> None:
        self._most = most
        self._copies: OrderedDict[bytes, Copy] = OrderedDict()
        self.size = 0

    def put(self, key: bytes, value: Value | None, now: float) -> None:
        self.drop(key)
        size = _PLACE + len(key) + (0 if value is None else _size(value))
        if size > self._most // 16:
            return
        self._copies[key] = Copy(value, now, size)
        self.size += size
        while self.size > self._most:
            self.size -= self._copies.popitem(last=False)[1].size

    def get(self, key: bytes, now: float, seconds: float = SECONDS) -> Copy | None:
        """Return a copy that is no older than so many seconds."""
        copy = self._copies.get(key)
        if copy is None or now - copy.read > seconds:
            return None
        self._copies.move_to_end(key)
        return copy

    def drop(self, key: bytes) -> None:
        copy = self._copies.pop(key, None)
        if copy is not None:
            self.size -= copy.size


def _size(value: Value) -> int:
    return sum(len(member) + _MEMBER for member in flat(value))
