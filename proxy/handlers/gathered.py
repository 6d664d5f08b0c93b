"""Replies of nodes that a handler keeps until it can answer, in the account of its client.

Used by what makes one reply of any number: `fanout`, `several`, `execution`. Always true: what is
gathered counts as output that waits (`wire.Downstream.gather`, `proxy.memory`), by steps and not by
replies, until nothing refers to it any more, however its handler ends.
"""

from proxy import wire
from proxy.wire import BEHIND


class Gathered:
    """What one command has gathered."""

    __slots__ = ("_counted", "_downstream", "_size")

    def __init__(self, downstream: wire.Downstream) -> None:
        self._downstream = downstream
        self._size = self._counted = 0

    def add(self, size: int) -> bool:
        """Take note of a reply; return whether to keep it, and those before it.

        Of what is not small nothing is kept for who has gone, or was closed for what it holds.
        """
        self._size += size
        return self._size <= BEHIND or self._count()

    def _count(self) -> bool:
        if self._downstream.owner is None:
            self.clear()
            return False
        if self._size - self._counted > BEHIND:
            self._downstream.gather(self._size - self._counted)
            self._counted = self._size
        return True

    def clear(self) -> None:
        """Count no longer what was gathered: it is let go."""
        if self._counted:
            self._downstream.gather(-self._counted)
            self._counted = 0

    __del__ = clear
