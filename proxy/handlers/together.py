"""Wishes that PostgreSQL hears together: one call for what several clients want at a time.

`grants` has one of these for each thing that is wanted of one lock of a keyspace. A wish that comes
while few calls are under way goes at once; others gather, and the next call takes them all. So a
round trip, a COMMIT and whatever triggers do are shared by those who came meanwhile, and nobody
waits for company.

Always true:
  * a call is for one version of the policies, has each lock once and each owner whose locks are
    counted once, and its locks in the order of their keys: what triggers lock beyond them is locked
    in one order too;
  * what a call leaves open is for who asked to ask alone, and so is what PostgreSQL refuses: only
    who is alone with a refusal knows that it is meant;
  * who has waited for PATIENCE hears OriginBusy, and nothing of it was sent.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from proxy.errors import OriginBusy
from proxy.plans import Plan

# Calls at a time: while one waits for its COMMIT another is being made. And wishes in one.
CALLS = 2
MOST = 64

# Wishes that wait, and for how long, in seconds.
WAITING = 4096
PATIENCE = 1.0

# Of those that wait, so many are looked at for one call: a crowd that wants the same costs no more.
LOOKED = 512


class Wish(NamedTuple):
    """What is wanted of a lock; `what` is for who makes the calls."""

    plan: Plan
    key: bytes
    owner: str
    what: tuple[str | None, ...]
    counted: str | None = None  # whose number of locks it changes; None: nobody's is counted


Answer = TypeVar("Answer")
Call = Callable[[Sequence[Wish]], Coroutine[Any, Any, Sequence[Answer]]]
_Asked = tuple[Wish, asyncio.Future[Answer]]


class Together(Generic[Answer]):
    """Wishes of one kind, for the locks of one keyspace."""

    def __init__(self, call: Call[Answer]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Wish, asyncio.Future[Answer], float]] = deque()
        self._calls: set[asyncio.Task[Sequence[Answer]]] = set()
        self._late: asyncio.TimerHandle | None = None  # for who has waited longest

    async def ask(self, wish: Wish) -> Answer:
        """Return what a call has answered to a wish. Raises OriginError."""
        if len(self._waiting) >= WAITING:
            raise OriginBusy("too many wait for locks")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append((wish, answer, self._loop.time()))
        self._go_on()
        self._watch()
        return await answer

    def _watch(self) -> None:
        """Let who has waited longest hear when it is too long."""
        if self._waiting and self._late is None:
            self._late = self._loop.call_at(self._waiting[0][2] + PATIENCE, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        oldest = self._loop.time() - PATIENCE
        while self._waiting and self._waiting[0][2] <= oldest:
            _, answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(OriginBusy("PostgreSQL is busy with other locks"))
        self._watch()

    def _go_on(self) -> None:
        while self._waiting and len(self._calls) < CALLS:
            if chosen := self._next():
                task = self._loop.create_task(self._call([wish for wish, _ in chosen]))
                self._calls.add(task)
                task.add_done_callback(partial(self._made, chosen))

    def _made(self, chosen: Sequence[_Asked[Answer]], task: asyncio.Task[Sequence[Answer]]) -> None:
        self._calls.discard(task)
        error = None if task.cancelled() else task.exception()
        for place, (_, answer) in enumerate(chosen):
            if answer.done():
                continue
            if task.cancelled():
                answer.cancel()
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result()[place])
        self._go_on()

    def _next(self) -> list[_Asked[Answer]]:
        """Return those of the next call: who came first, in the order of their keys."""
        chosen: list[_Asked[Answer]] = []
        later: list[tuple[Wish, asyncio.Future[Answer], float]] = []
        taken: set[bytes | str] = set()
        first: Plan | None = None
        for _ in range(min(len(self._waiting), LOOKED)):
            if len(chosen) == MOST:
                break
            wish, answer, since = self._waiting.popleft()
            first = first or wish.plan
            if answer.done():
                continue
            alone: set[bytes | str] = {wish.key}
            if wish.counted is not None:
                alone.add(wish.counted)
            if wish.plan is first and taken.isdisjoint(alone):
                taken |= alone
                chosen.append((wish, answer))
            else:
                later.append((wish, answer, since))
        self._waiting.extendleft(reversed(later))
        chosen.sort(key=lambda each: each[0].key)
        return chosen
