"""Turns at PostgreSQL: bounded, by share, and never for ever."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from proxy.errors import OriginBusy
from proxy.origin.budget import BACKGROUND, Budget, Share

BIG, SMALL = Share("big", 0.6), Share("small", 0.2)


class Crowd:
    """Tasks that want a slot, each until it is let go."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.inside: list[tuple[Share, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def want(self, *shares: Share) -> None:
        for share in shares:
            self.tasks.append(asyncio.create_task(self._hold(share)))
        await settled()

    async def _hold(self, share: Share) -> None:
        async with self.budget.slot(share):
            over = asyncio.Event()
            self.inside.append((share, over))
            await over.wait()

    async def leave(self, count: int = 1) -> None:
        for _ in range(count):
            self.inside.pop(0)[1].set()
        await settled()

    @property
    def names(self) -> Counter[str]:
        return Counter(share.name for share, _ in self.inside)

    async def end(self) -> Sequence[object]:
        for task in self.tasks:
            task.cancel()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_slots_are_inside() -> None:
    """The rest waits, and comes in as slots become free."""
    crowd = Crowd(Budget(3, 10, 60))
    await crowd.want(*[BIG] * 8)
    assert (crowd.budget.used, crowd.budget.waiting) == (3, 5)
    await crowd.leave(2)
    assert (crowd.budget.used, crowd.budget.waiting) == (3, 3)
    await crowd.end()
    assert (crowd.budget.used, crowd.budget.waiting) == (0, 0)


async def test_who_waits_hears_in_time() -> None:
    """After its patience a waiting one is refused, and takes no slot."""
    budget = Budget(1, 10, 0.01)
    async with budget.slot(BIG):
        with pytest.raises(OriginBusy):
            async with budget.slot(SMALL):
                pass
    assert (budget.used, budget.waiting) == (0, 0)


async def test_slots_are_shared_by_weight() -> None:
    """Everybody gets what nobody else wants; when all want, each its part."""
    crowd = Crowd(Budget(8, 100, 60))
    await crowd.want(*[SMALL] * 20)
    assert crowd.names == {"small": 8}
    await crowd.want(*[BIG] * 20)
    await crowd.leave(8)
    assert crowd.names == {"big": 6, "small": 2}
    await crowd.end()


async def test_background_work_gets_what_is_left() -> None:
    """Never more than half of the slots, and none that somebody waits for."""
    crowd = Crowd(Budget(4, 100, 60))
    await crowd.want(*[BACKGROUND] * 5)
    assert crowd.names == {"background": 2}
    await crowd.want(*[SMALL] * 6)
    await crowd.leave(2)
    assert crowd.names == {"small": 4}
    await crowd.leave(4)
    assert crowd.names == {"small": 2, "background": 2}
    await crowd.end()


async def test_a_full_queue_drops_the_oldest_of_who_waits_most() -> None:
    """The newest still has a client that listens; a small class is not pushed out by a big one."""
    crowd = Crowd(Budget(1, 3, 60))
    await crowd.want(BIG, SMALL, BIG, BIG)
    assert crowd.budget.waiting == 3
    await crowd.want(*[BIG] * 5)
    assert crowd.budget.waiting == 3
    ended = [task for task in crowd.tasks if task.done()]
    assert len(ended) == 5
    assert all(isinstance(task.exception(), OriginBusy) for task in ended)
    assert not crowd.tasks[-1].done()
    await crowd.end()


async def test_more_waiting_than_slots_are_served_newest_first() -> None:
    """Overloaded, the one that came last is answered and not the one that gives up next."""
    crowd = Crowd(Budget(1, 10, 60))
    await crowd.want(*[BIG] * 5)
    await crowd.leave()
    assert [task.done() for task in crowd.tasks] == [True, False, False, False, False]
    crowd.inside[0][1].set()
    await settled()
    assert crowd.tasks[-1].done()
    await crowd.end()


async def test_a_cancelled_one_gives_its_slot_back() -> None:
    """Whether it waited, or was given a slot in the same moment."""
    budget = Budget(1, 10, 60)
    crowd = Crowd(budget)
    await crowd.want(BIG, BIG, BIG)
    crowd.inside.pop(0)[1].set()
    await asyncio.sleep(0)
    await crowd.end()
    assert (budget.used, budget.waiting) == (0, 0)
    async with budget.slot(SMALL):
        assert budget.used == 1
