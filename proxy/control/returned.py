"""Whether a shard that was away has heard what changed meanwhile.

A node that is back with its data, or has taken over, holds keys as they were when it was last told
of changes. Whoever leads the invalidations sends it what it is owed, and writes its position when
nothing is owed any more. So a position that was written after the return says that all is told.
No clocks are compared: it is only looked whether the position has become another meanwhile.

Always true: one question at a time for each shard that is waited for; a shard is waited for no
longer than PATIENCE, because where nobody leads no position is ever written.
"""

import asyncio
from collections.abc import Callable, Sequence

from proxy.control.invalidation import Applier

# How often a shard is asked while it is waited for, in seconds. Positions are written four times
# as seldom.
PERIOD = 0.06

# How long a shard is waited for at most, in seconds.
PATIENCE = 3.0


class Returned:
    """The shards of all clusters that are back."""

    def __init__(self, appliers: Sequence[Applier], needed: Callable[[], bool]) -> None:
        """Needed tells whether there is anybody to ask instead of such a shard."""
        self._appliers = appliers
        self._needed = needed
        self._loop = asyncio.get_running_loop()
        self._told: dict[tuple[int, int], float] = {}  # by shard: which return is done with
        self._waiting: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.changed: Callable[[], None] = lambda: None  # set by who wants to hear of it

    def lacks(self, cluster: int, slot: int, since: float) -> bool:
        """Return whether the shard with this first slot, back since then, may hold what is old."""
        shard = cluster, slot
        if self._told.get(shard, 0.0) >= since or not self._needed():
            return False
        if self._loop.time() - since > PATIENCE or not self._appliers[cluster].concerned():
            return False
        if shard not in self._waiting:
            task = self._loop.create_task(self._wait(shard))
            self._waiting[shard] = task
            task.add_done_callback(lambda done: self._waiting.pop(shard, None))
        return True

    def stop(self) -> None:
        for task in self._waiting.values():
            task.cancel()

    async def _wait(self, shard: tuple[int, int]) -> None:
        """Wait until a position is written that was not there before."""
        cluster, slot = shard
        since, first = self._loop.time(), None
        while self._loop.time() - since < PATIENCE:
            position = await self._appliers[cluster].positions.of(slot)
            # One without a position has lost its data with it, or nobody has ever led.
            if position == b"" or (first is not None and position not in (None, first)):
                self._told[shard] = since
                break
            first = position if first is None else first
            await asyncio.sleep(PERIOD)
        self._loop.call_soon(self.changed)
