"""Grants of which nobody knows whether they were made, as their answers were lost.

`locks` notes them here. An owner that is one word for everybody is no proof of who asks, so who
holds such a lock is not granted it again; but for who was told that the outcome is unknown.
"""

import time

# So many locks, of all connections; of too many the oldest is forgotten.
DOUBTED = 1000


class Doubts:
    """Locks that may have been granted to somebody who was told that the outcome is unknown.

    Who asks again with the same owner, on whatever connection, is told once that it holds the lock.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[str, float]] = {}  # by key; until when

    def note(self, key: bytes, owner: str, seconds: float) -> None:
        """Note that nobody knows whether an owner was granted a lock for so long."""
        self._owners.pop(key, None)
        if len(self._owners) >= DOUBTED:
            self._owners.pop(next(iter(self._owners)))
        self._owners[key] = (owner, time.monotonic() + seconds)

    def about(self, key: bytes, owner: str) -> bool:
        """Return whether an owner may hold a lock without having been told."""
        noted, until = self._owners.get(key, ("", 0.0))
        return noted == owner and time.monotonic() < until

    def settle(self, key: bytes) -> None:
        """Note that who holds a lock has been told."""
        self._owners.pop(key, None)
