"""Many inside at a time, or one alone."""

import asyncio

import pytest

from proxy.origin.turns import Turns

KEY = b"k"


async def turn() -> None:
    """Let all tasks run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_is_alone_meets_nobody() -> None:
    """He waits for those who are inside; whoever comes meanwhile waits for him; others do not."""
    turns, seen = Turns(), []
    await turns.enter(KEY, sums=True)
    await turns.enter(KEY, sums=True)

    async def alone() -> None:
        async with turns.alone(KEY):
            seen.append("alone")
            await asyncio.sleep(0)
            seen.append("left")

    async def inside() -> None:
        await turns.enter(KEY, sums=True)
        seen.append("inside")
        turns.leave(KEY, sums=True)

    tasks = [asyncio.create_task(each()) for each in (alone, inside, alone, inside)]
    await turn()
    await turns.enter(b"another", sums=True)
    turns.leave(KEY, sums=True)
    await turn()
    assert seen == []
    turns.leave(KEY, sums=True)
    await asyncio.gather(*tasks)
    assert seen[:2] == ["alone", "left"]
    assert sorted(seen) == ["alone", "alone", "inside", "inside", "left", "left"]
    assert seen.index("alone", 1) + 1 == seen.index("left", 2)


async def test_who_gives_up_leaves_nothing_behind() -> None:
    """Neither in the way of those who were inside, nor of those who come later."""
    turns = Turns()
    await turns.enter(KEY, sums=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), turns.alone(KEY):
            raise AssertionError("somebody is inside")
    async with asyncio.timeout(1):
        await turns.enter(KEY, sums=True)
    turns.leave(KEY, sums=True)
    turns.leave(KEY, sums=True)
    async with asyncio.timeout(1), turns.alone(KEY):
        waits = asyncio.create_task(turns.enter(KEY, sums=True))
        await turn()
        waits.cancel()
    async with asyncio.timeout(1), turns.alone(KEY):
        pass


async def test_only_the_order_of_sums_does_not_matter() -> None:
    """Who sets a value while others write is told that it may have been in another order."""
    turns = Turns()
    assert not await turns.enter(KEY, sums=True)
    assert not await turns.enter(KEY, sums=True)
    assert await turns.enter(KEY, sums=False)
    assert await turns.enter(KEY, sums=True)
    turns.leave(KEY, sums=False)
    assert not await turns.enter(KEY, sums=True)
    assert turns.busy(KEY)
    for _ in range(4):
        turns.leave(KEY, sums=True)
    assert not turns.busy(KEY)
    assert not await turns.enter(KEY, sums=False)
