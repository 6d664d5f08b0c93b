"""What came in time counts as in time, however late the loop is."""

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from proxy.origin import deadlines
from proxy.origin.deadlines import until

LONG = 0.05  # seconds that the loop of a test is kept busy, beyond what counts as late


def busy() -> None:
    """Keep the loop from everything for a while."""
    ends = time.monotonic() + LONG
    while time.monotonic() < ends:
        pass


async def read_late() -> bytes:
    """Return what arrives while the loop has its hands full with what another socket brings."""
    here, there = socket.socketpair()
    crowd, pushing = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    loop = asyncio.get_running_loop()

    def read_crowd() -> None:
        loop.remove_reader(crowd)
        busy()
        there.send(b"answer")

    try:
        async with until(loop.time() + LONG / 4):
            loop.add_reader(crowd, read_crowd)
            pushing.send(b"x")
            return await reader.readexactly(6)
    finally:
        writer.close()
        for end in (there, crowd, pushing):
            end.close()


def test_a_late_loop_reads_before_a_deadline_passes() -> None:
    """An answer that arrived while the loop was busy is read, though its time is over by then."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(read_late()) == b"answer"


async def nothing(deadline: float, first: Callable[[], object]) -> None:
    """Wait until a deadline for what does not come; before that the loop does something else."""
    async with until(deadline):
        asyncio.get_running_loop().call_soon(first)
        await asyncio.Event().wait()


async def test_a_deadline_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come ends at its time, and a little later where the loop was late."""
    monkeypatch.setattr(deadlines, "GRACE", 0.2)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(TimeoutError):
        await nothing(started + 0.01, busy)
    assert loop.time() - started >= 0.2
    monkeypatch.setattr(deadlines, "GRACE", 3600.0)
    monkeypatch.setattr(deadlines, "LATE", 3600.0)
    with pytest.raises(TimeoutError):
        await nothing(loop.time() + 0.01, loop.time)
