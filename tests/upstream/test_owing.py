"""What nodes are owed, sent to those that answer."""

import asyncio

import pytest

from proxy import wire
from proxy.upstream.owing import HANDFUL, repay
from tests.handlers.desk import Desk

NAMES = [b"key:%d" % number for number in range(5 * HANDFUL)]


@pytest.fixture
async def slots() -> wire.SlotMap:
    """Two nodes of cluster 0, each with a half of the slots."""
    return Desk().server.router.slots


async def test_a_node_that_answers_gets_all_whoever_stays_away(slots: wire.SlotMap) -> None:
    """It is told of every key at once; the other is asked for one, and holds nobody up."""
    told: dict[int, list[bytes]] = {0: [], 1: []}
    back = asyncio.Event()

    async def pay(name: bytes) -> bool:
        node = slots.owner(0, slots.place_of(0, name).slot)
        told[node].append(name)
        if node == 1:
            await back.wait()
        return node == 0

    paying = asyncio.create_task(repay(slots, [(0, name, name) for name in NAMES], pay))
    own = {name for name in NAMES if slots.owner(0, slots.place_of(0, name).slot) == 0}
    async with asyncio.timeout(5):
        while len(told[0]) < len(own):
            await asyncio.sleep(0)
    back.set()
    await paying
    assert set(told[0]) == own
    assert len(told[1]) == 1


async def test_a_node_is_sent_a_handful_at_a_time(slots: wire.SlotMap) -> None:
    """First one key, and never more than that at once."""
    under_way = 0
    most: list[int] = []

    async def pay(name: bytes) -> bool:
        nonlocal under_way
        under_way += 1
        most.append(under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return True

    own = [name for name in NAMES if slots.owner(0, slots.place_of(0, name).slot) == 0]
    await repay(slots, [(0, name, name) for name in own], pay)
    assert most[:2] == [1, 1]
    assert max(most) == HANDFUL
    assert len(most) == len(own)


async def test_a_key_that_is_refused_keeps_no_other_waiting_for_ever(slots: wire.SlotMap) -> None:
    """Its slot moves, say: sooner or later a round begins with another."""
    owed = {b"{k}:%d" % number for number in range(10)}

    async def pay(name: bytes) -> bool:
        if name != b"{k}:0":
            owed.discard(name)
        return name != b"{k}:0"

    async with asyncio.timeout(5):
        while len(owed) > 1:
            await repay(slots, [(0, name, name) for name in sorted(owed)], pay)
