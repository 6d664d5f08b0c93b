"""One fetch per key at a time, whoever asks for it: single flight.

1. The task belongs to the proxy: a client that leaves takes nothing with it. The flight has the
   deadline, so that each of ten thousand who wait needs neither one of its own nor a task.
2. A flight is taken off the list before its result can be seen, so nobody joins one that is over.
3. Those who wait are told some at a time, so that other clients are served in between.
4. What a flight began to read before a key was changed may be told to those who joined it before
   that, and to nobody else: `void` takes it off the list, and it must not store what it brings.
5. An error is told to all who wait, and for a moment to those who come; it is a value, because one
   exception raised in ten thousand places grows with each of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

from proxy import errors, log
from proxy.errors import OriginBusy, OriginError

Outcome = TypeVar("Outcome")
Heard = TypeVar("Heard")

# Keys that are fetched at a time, and clients that wait for them, some two kilobytes each.
FLIGHTS = 1000
WAITERS = 20_000

# Of those who wait so many are told in one turn of the loop: a few milliseconds.
TOLD_PER_TURN = 200

# Beyond all deadlines of a fetch together, in seconds: a wait for another sidecar, a turn, a
# connection, a statement, a fill.
PATIENCE = 4.0

# For how long a failure is told to whoever asks next, in seconds, and of how many keys.
FAILED = 0.2
FAILURES = 1000


class Flight(Generic[Outcome]):
    """One fetch."""

    def __init__(self) -> None:
        self.stores = True  # nothing has changed the key since it began
        self.waiting: list[Callable[[Outcome | OriginError], None]] = []
        self.outcome: Outcome | OriginError = OriginError("a fault of ours", errors.INTERNAL)


Fetch = Callable[[Flight[Outcome]], Awaitable[Outcome | OriginError]]


class Flights(Generic[Outcome]):
    """All that are under way."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[Outcome]] = {}
        self._failures: dict[Hashable, tuple[float, OriginError]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(self, key: Hashable, fetch: Fetch[Outcome]) -> Outcome | OriginError:
        """Return what a fetch brings: one that is under way, or a new one."""
        return await heard(partial(self.hear, key, fetch))

    def hear(
        self, key: Hashable, fetch: Fetch[Outcome], tell: Callable[[Outcome | OriginError], None]
    ) -> None:
        """Call tell, which does not raise, with the same; at once, where there is no fetch."""
        failed = self._failures.get(key)
        if failed is not None and failed[0] > self._loop.time():
            tell(failed[1])
            return
        flight = self._flights.get(key)
        if flight is None and len(self._tasks) >= FLIGHTS:
            tell(OriginBusy("too many keys are fetched"))
        elif self.waiting >= WAITERS:
            tell(OriginBusy("too many clients wait for a key"))
        else:
            flight = flight or self._begin(key, fetch)
            flight.waiting.append(tell)
            self.waiting += 1

    def void(self, key: Hashable) -> None:
        """Hear that a key is changed: what is under way for it must not be stored."""
        self._failures.pop(key, None)
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.stores = False

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _begin(self, key: Hashable, fetch: Fetch[Outcome]) -> Flight[Outcome]:
        flight = self._flights[key] = Flight[Outcome]()
        task = self._loop.create_task(self._fly(key, flight, fetch))
        self._tasks.add(task)
        task.add_done_callback(self._landed)
        return flight

    async def _fly(self, key: Hashable, flight: Flight[Outcome], fetch: Fetch[Outcome]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                flight.outcome = await fetch(flight)
        except TimeoutError:
            flight.outcome = OriginBusy("the fetch takes too long")
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if flight.stores and isinstance(flight.outcome, OriginError):
                self._remember(key, flight.outcome)
            self._tell(flight.waiting, flight.outcome)

    def _tell(
        self, waiting: Sequence[Callable[[Outcome | OriginError], None]],
        outcome: Outcome | OriginError,
    ) -> None:  # fmt: skip
        """Let those who wait hear, the first of them in this turn of the loop."""
        first, others = waiting[:TOLD_PER_TURN], waiting[TOLD_PER_TURN:]
        self.waiting -= len(first)
        for tell in first:
            tell(outcome)
        if others:
            self._loop.call_soon(self._tell, others, outcome)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.event(log.ERROR, "fetch_failed", error=error)

    def _remember(self, key: Hashable, error: OriginError) -> None:
        if isinstance(error, OriginBusy):
            # There may be room at once; only those who wait are told that there was none.
            return
        if len(self._failures) >= FAILURES:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = (self._loop.time() + FAILED, error)


async def heard(ask: Callable[[Callable[[Heard], None]], None]) -> Heard:
    """Return what is told to whom ask is given."""
    told: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
    ask(partial(_settle, told))
    return await told


def _settle(told: asyncio.Future[Heard], outcome: Heard) -> None:
    # Who waited may be gone.
    if not told.done():
        told.set_result(outcome)
