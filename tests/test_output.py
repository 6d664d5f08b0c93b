"""How far a client is behind with reading, and what follows from it."""

import pytest

from proxy.output import CAUGHT_UP, OUTPUT_HIGH
from tests.front import Front, front
from tests.integration.rig import Caller, wait_for
from tests.replies import pack
from tests.test_session import near

pytestmark = pytest.mark.integration


async def asked(house: Front, size: int) -> Caller:
    """Return a client that asks for a value and reads nothing."""
    house.node.values[b"k"] = b"x" * size
    caller = await near(house)
    caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
    caller.writer.write(pack("GET", "k"))
    await wait_for(lambda: house.session.unread_bytes > size // 2, "the reply")
    return caller


async def test_a_client_is_paused_and_goes_on() -> None:
    """Who leaves a lot unread is asked nothing more of, until it has read most of it."""
    async with front() as house:
        caller = await asked(house, 8 * OUTPUT_HIGH)
        assert house.session.downstream.paused
        assert house.server.unread.sizes[house.session] >= 4 * OUTPUT_HIGH
        caller.writer.write(pack("PING"))
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await caller.next()) == 8 * OUTPUT_HIGH
        assert await caller.next() == b"PONG"
        assert not house.session.downstream.paused
        assert house.session not in house.server.unread.sizes


async def test_a_client_that_is_behind_counts_until_it_has_caught_up() -> None:
    """Less than a pause takes counts in the total of all, and no longer when it is read."""
    async with front() as house:
        caller = await asked(house, OUTPUT_HIGH - CAUGHT_UP)
        assert not house.session.downstream.paused
        assert house.server.unread.sizes[house.session] > CAUGHT_UP
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await caller.next()
        await wait_for(lambda: not house.server.unread.sizes, "the end of the account")
