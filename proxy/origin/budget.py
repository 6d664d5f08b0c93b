"""Who may ask PostgreSQL now: so many statements at a time, shared by weight.

`Postgres` asks it before it takes a connection. Whoever finds no room waits a moment in a bounded
queue; a slot that becomes free goes to the waiting class that has the least of its share. So a
class uses all there is while nobody else wants it, and its share when everybody does. Background
work has no share: it gets what nobody waits for, and half of the slots at most.

Always true: whoever waits hears within `patience`. With more waiting than slots the newest goes
first, because its client still listens, and a full queue drops the oldest of who waits most.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from proxy.errors import OriginBusy
from proxy.plans import Plan


class Share(NamedTuple):
    """Who asks: a class by its name, and which part of the budget is its own (0 to 1)."""

    name: str
    part: float | None = None  # None: an ordinary one

    @property
    def weight(self) -> float:
        return ORDINARY if self.part is None else self.part


# What a keyspace gets that names no share.
ORDINARY = 0.1

BACKGROUND = Share("background", 0.0)


def share_of(plan: Plan) -> Share:
    """Return with which share a keyspace's own reads and writes come."""
    return Share(plan.name, plan.detour.share)


_Turn = asyncio.Future[None]


class Budget:
    """The slots of one sidecar."""

    def __init__(self, slots: int, queue: int, patience: float) -> None:
        self._slots = slots
        self._queue = queue
        self._patience = patience
        self._held: Counter[Share] = Counter()
        self._queues: dict[Share, deque[_Turn]] = {}
        self.used = 0
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def slot(self, share: Share) -> AsyncIterator[None]:
        """Hold a slot. Raises OriginBusy where there is none in time."""
        if self._free(share):
            self._hold(share)
        else:
            await self._wait(share)
        try:
            yield
        finally:
            self._give_back(share)

    def _free(self, share: Share) -> bool:
        room = self._slots if share.weight else max(1, self._slots // 2)
        return self.used < self._slots and self._held[share] < room

    def _hold(self, share: Share) -> None:
        self.used += 1
        self._held[share] += 1

    def _give_back(self, share: Share) -> None:
        self.used -= 1
        self._held[share] -= 1
        if not self._held[share]:
            del self._held[share]
        self._grant()

    async def _wait(self, share: Share) -> None:
        if not self._queue:
            raise OriginBusy("every slot is taken")
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queues.setdefault(share, deque()).append(turn)
        self.waiting += 1
        if self.waiting > self._queue:
            self._shed()
        timer = loop.call_later(self._patience, _expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give_back(share)
            raise
        finally:
            timer.cancel()
            self._forget(share, turn)

    def _forget(self, share: Share, turn: _Turn) -> None:
        turns = self._queues.get(share)
        if turns is not None and turn in turns:
            turns.remove(turn)
            self._left(share)

    def _left(self, share: Share) -> None:
        self.waiting -= 1
        if not self._queues[share]:
            del self._queues[share]

    def _grant(self) -> None:
        while able := [share for share in self._queues if self._free(share)]:
            share = min(able, key=lambda each: _load(self._held[each], each))
            turns = self._queues[share]
            turn = turns.pop() if len(turns) > self._slots else turns.popleft()
            self._left(share)
            # One that has just been cancelled or is too late has not yet gone away itself.
            if not turn.done():
                self._hold(share)
                turn.set_result(None)
                return

    def _shed(self) -> None:
        share = max(self._queues, key=lambda each: _load(len(self._queues[each]), each))
        turn = self._queues[share].popleft()
        self._left(share)
        if not turn.done():
            turn.set_exception(OriginBusy("too many wait for a slot"))


def _expire(turn: _Turn) -> None:
    if not turn.done():
        turn.set_exception(OriginBusy("no slot became free in time"))


def _load(count: int, share: Share) -> tuple[bool, float]:
    """Return how much of its part a class has; who has none comes after all others."""
    return not share.weight, (count + 1) / (share.weight or 1.0)
