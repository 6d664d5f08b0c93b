"""Who may do what with a key: many who write to it, or one who must know all that was written.

Kept by `behind`, used by its handlers: a write is in the journal some milliseconds before it is in
Redis, and whoever puts a value into Redis that counts what is journalled must not meet it there.

Always true: who wants to be alone lets nobody else in, so it waits for those who are inside only;
who gives up leaves nothing behind.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """Those of all keys."""

    def __init__(self) -> None:
        self._inside: dict[bytes, list[bool]] = {}  # of each who is inside, whether it is a sum
        self._closed: dict[bytes, asyncio.Event] = {}  # set when whoever is alone has left
        self._empty: dict[bytes, asyncio.Event] = {}  # set when nobody is inside any more

    async def enter(self, key: bytes, sums: bool) -> bool:
        """Wait until nobody is alone with a key; return whether the order with others matters.

        That of sums does not. `leave` must follow.
        """
        while (closed := self._closed.get(key)) is not None:
            await closed.wait()
        others = self._inside.setdefault(key, [])
        others.append(sums)
        return len(others) > 1 and not all(others)

    def busy(self, key: bytes) -> bool:
        """Return whether anybody is inside, or alone."""
        return key in self._inside or key in self._closed

    def leave(self, key: bytes, sums: bool) -> None:
        others = self._inside[key]
        others.remove(sums)
        if not others:
            del self._inside[key]
            if (empty := self._empty.get(key)) is not None:
                empty.set()

    @contextlib.asynccontextmanager
    async def alone(self, key: bytes) -> AsyncIterator[None]:
        """Keep everybody else out, once all have left."""
        while (before := self._closed.get(key)) is not None:
            await before.wait()
        closed = self._closed[key] = asyncio.Event()
        try:
            if key in self._inside:
                empty = self._empty[key] = asyncio.Event()
                await empty.wait()
            yield
        finally:
            self._empty.pop(key, None)
            del self._closed[key]
            closed.set()
