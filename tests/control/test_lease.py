"""One of several holds a lease, and it goes with the connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from proxy.control import lease
from proxy.control.lease import FAILURES, leading, number_of
from proxy.embedded.postgres import Postgres
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration


class Candidate:
    """Somebody who would lead, and for how long it did."""

    def __init__(self, url: str, name: str = "work") -> None:
        self.url = url
        self.led = 0
        self.connection: Any = None
        self.release = asyncio.Event()
        self.task = asyncio.create_task(self.run(name))

    async def connect(self) -> Any:
        self.connection = await asyncpg.connect(self.url, timeout=5)
        return self.connection

    async def run(self, name: str) -> None:
        async with leading(lambda: name, self.connect):
            self.led += 1
            await self.release.wait()


@pytest.fixture
async def candidates(postgres: str) -> AsyncIterator[list[Candidate]]:
    found = [Candidate(postgres) for _ in range(3)]
    yield found
    for each in found:
        each.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, *FAILURES):
            await each.task


async def test_one_leads_and_the_next_follows(candidates: list[Candidate]) -> None:
    """Nobody else does while it does; when it lets go, another one does."""
    for count in range(1, 4):
        await wait_for(lambda n=count: sum(each.led for each in candidates) == n, "a leader")
        first = next(each for each in candidates if each.led and not each.release.is_set())
        first.release.set()
        await first.task
        assert first.connection.is_closed()


async def test_a_killed_session_gives_the_lease_away(
    candidates: list[Candidate], postgres: str
) -> None:
    """The server frees the lock with the session, and who waits for it gets it."""
    await wait_for(lambda: sum(each.led for each in candidates) == 1, "a leader")
    first = next(each for each in candidates if each.led)
    first.connection.terminate()
    await wait_for(lambda: sum(each.led for each in candidates) == 2, "another leader")


async def test_waiting_on_a_lost_connection_fails(candidates: list[Candidate]) -> None:
    """Whoever waits hears that its connection is gone, and does not wait for ever."""
    await wait_for(lambda: sum(each.led for each in candidates) == 1, "a leader")
    await wait_for(lambda: all(each.connection for each in candidates), "connections")
    waiting = next(each for each in candidates if not each.led)
    waiting.connection.terminate()
    with pytest.raises(FAILURES):
        await asyncio.wait_for(waiting.task, 5)


async def test_leases_of_other_names_are_others(postgres: str) -> None:
    """Two names are led side by side."""
    both = [Candidate(postgres, name) for name in ("one", "two")]
    await wait_for(lambda: all(each.led for each in both), "both")
    for each in both:
        each.release.set()
        await each.task


async def test_a_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connecting has a deadline too."""
    monkeypatch.setattr(lease, "DEADLINE", 0.05)

    async def silent() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with leading(lambda: "work", silent):
            raise AssertionError("nobody can lead")


async def test_a_frozen_server_is_noticed(
    postgres_server: Postgres, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is not answered in time ends the wait."""
    monkeypatch.setattr(lease, "DEADLINE", 0.3)
    leader = Candidate(postgres)
    await wait_for(lambda: leader.led, "a leader")
    waiting = Candidate(postgres)
    await wait_for(lambda: waiting.connection, "a connection")
    postgres_server.pause()
    try:
        with pytest.raises(FAILURES):
            await asyncio.wait_for(waiting.task, 5)
    finally:
        postgres_server.resume()
    leader.release.set()
    await leader.task


def test_numbers_are_those_of_all_sidecars() -> None:
    """A name is the same number everywhere, within 64 bits."""
    assert number_of("a") == number_of("a") != number_of("b")
    assert all(-(2**63) <= number_of(str(n)) < 2**63 for n in range(100))
