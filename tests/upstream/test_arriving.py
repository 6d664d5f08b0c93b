"""Replies of nodes that are larger than the proxy may keep."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from proxy import errors, wire
from tests.fakenode import Answer, FakeNode
from tests.front import Front, front
from tests.integration.rig import Caller, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

MIB = 1 << 20

# What all replies that are not whole may come to.
LIMIT = 4 * MIB

REFUSED = errors.REPLY_TOO_LARGE[1:-2].decode()


@pytest.fixture
async def house() -> AsyncIterator[Front]:
    async with front(output_total_bytes=LIMIT - MIB, input_total_bytes=MIB) as house:
        house.node.values |= {b"k": b"x" * 3 * MIB, b"huge": b"x" * 3 * LIMIT}
        yield house


def asked(node: FakeNode, *words: bytes) -> int:
    return node.commands.count(list(words))


async def test_a_reply_above_the_limit_is_refused(
    house: Front, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client hears why and stays, the rest of it is not read, and no node is asked again."""
    caller = await house.connect()
    with caplog.at_level(logging.INFO, "sidecache"):
        assert str(await caller.call("GET", "huge")) == REFUSED
        assert len(await caller.call("GET", "k")) == 3 * MIB
        house.server.arriving.look(0.0)
    assert asked(house.node, b"GET", b"huge") == 1
    assert house.server.arriving.total == 0
    lines = [each for each in caplog.records if each.message.startswith("replies")]
    assert [each.message for each in lines] == ["replies_over_limit", "replies_within_limit"]
    assert 'reason="oversized"} 1.0' in house.stand.page()


async def test_others_of_its_connection_are_answered(house: Front) -> None:
    """What is behind it was sent to a connection that is lost: reads are sent again, writes not."""
    caller, other, writer = [await house.connect() for _ in range(3)]
    house.node.answers["GET"] = lambda connection, words: (
        Answer(b"$%d\r\n" % (3 * LIMIT)) if words[1] == b"huge" else None
    )
    caller.writer.write(pack("GET", "huge"))
    await wait_for(lambda: asked(house.node, b"GET", b"huge"), "the question")
    (shared,) = [each for each in house.node.connections if each.asked(b"GET")]
    other.writer.write(pack("GET", "k"))
    writer.writer.write(pack("INCR", "n"))
    await wait_for(
        lambda: asked(house.node, b"GET", b"k") and shared.asked(b"INCR"), "those behind it"
    )
    shared._answers.clear()
    shared.put(b"x" * (LIMIT + MIB))
    assert str(await caller.next()) == REFUSED
    assert len(await other.next()) == 3 * MIB
    assert str(await writer.next()) == errors.UNKNOWN_OUTCOME[1:-2].decode()
    assert asked(house.node, b"GET", b"huge") == 1


async def halted(house: Front, size: int) -> Caller:
    """Return a client that waits for a reply of which so much has come."""
    house.node.answers["GET"] = lambda connection, words: (
        Answer(b"$%d\r\n%b" % (LIMIT, b"x" * size)) if words[1] == b"part" else None
    )
    caller = await house.connect()
    caller.writer.write(pack("GET", "part"))
    await wait_for(lambda: house.server.arriving.total >= size, "the part")
    return caller


async def test_the_largest_of_several_is_refused(house: Front) -> None:
    """Over the limit it is the largest that goes, whichever grows; the smaller one is delivered."""
    large = await halted(house, 3 * MIB + MIB // 2)
    small = await house.connect()
    await small.call("HELLO", 3)  # those have connections of their own
    assert len(await small.call("GET", "k")) == 3 * MIB
    assert str(await large.next()) == REFUSED
    assert asked(house.node, b"GET", b"part") == 1


async def test_what_is_whole_counts_no_longer(house: Front) -> None:
    """Large replies one after the other, on several connections, come to no more than one."""
    for protocol in (2, 3, 2, 3):
        caller = await house.connect()
        await caller.call("HELLO", protocol)
        assert len(await caller.call("GET", "k")) == 3 * MIB
    assert [each.open for each in house.node.connections if each.asked(b"GET")] == [True] * 2


async def test_on_a_connection_of_its_own(house: Front) -> None:
    """Who has a connection for itself is told so too, and has it no longer."""
    pin = house.stand.pools.pins.acquire("watching", wire.Location(0, 0), 2)
    assert pin is not None
    deadline = asyncio.get_running_loop().time() + 5.0
    reply = await pin.ask(wire.pack([b"GET", b"huge"]), deadline)
    assert reply == errors.REPLY_TOO_LARGE
    await wait_for(lambda: pin.lost, "the end of the connection")
