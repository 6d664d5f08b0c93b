"""One fetch per key, whoever asks, whoever leaves."""

import asyncio

import pytest

from proxy import errors
from proxy.errors import OriginBusy, OriginDown, OriginError
from proxy.handlers import flights
from proxy.handlers.flights import Flight, Flights


class Runway:
    """Fetches that end when a test says so."""

    def __init__(self) -> None:
        self.flights: Flights[str] = Flights()
        self.begun: list[tuple[Flight[str], asyncio.Future[str | OriginError]]] = []

    async def fetch(self, flight: Flight[str]) -> str | OriginError:
        end: asyncio.Future[str | OriginError] = asyncio.get_running_loop().create_future()
        self.begun.append((flight, end))
        return await end

    async def join(self, count: int = 1, key: str = "k") -> list[asyncio.Task[str | OriginError]]:
        tasks = [asyncio.create_task(self.flights.join(key, self.fetch)) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)
        return tasks

    def land(self, outcome: str | OriginError, number: int = -1) -> None:
        self.begun[number][1].set_result(outcome)


async def test_all_who_ask_share_one_fetch() -> None:
    """Whoever comes while a key is fetched gets what that brings; then it is forgotten."""
    runway = Runway()
    tasks = await runway.join(100)
    assert len(runway.begun) == 1
    runway.land("value")
    assert set(await asyncio.gather(*tasks)) == {"value"}
    await runway.join()
    assert len(runway.begun) == 2
    runway.land("value")


async def test_a_client_that_leaves_takes_nothing_with_it() -> None:
    """The first caller is cancelled; the others hear all the same."""
    runway = Runway()
    first, second = await runway.join(2)
    first.cancel()
    await asyncio.wait((first,))
    assert first.cancelled()
    runway.land("value")
    assert await second == "value"


async def test_a_change_parts_those_before_from_those_after() -> None:
    """What began before a change is told to those who joined before it, and is not stored."""
    runway = Runway()
    (before,) = await runway.join()
    runway.flights.void("k")
    (after,) = await runway.join()
    assert [flight.stores for flight, _ in runway.begun] == [False, True]
    runway.land("old", 0)
    assert await before == "old"
    (third,) = await runway.join()
    assert len(runway.begun) == 2  # the end of the old one takes nothing off the list
    runway.land("new", 1)
    assert {await after, await third} == {"new"}


async def test_an_error_is_told_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is shared and remembered, so that a broken query is not run by every client."""
    runway = Runway()
    tasks = await runway.join(3)
    error = OriginDown("gone")
    runway.land(error)
    assert await asyncio.gather(*tasks) == [error] * 3
    assert await runway.flights.join("k", runway.fetch) is error
    assert len(runway.begun) == 1
    runway.flights.void("k")
    (busy,) = await runway.join()
    assert len(runway.begun) == 2
    runway.land(OriginBusy("no room"))
    assert isinstance(await busy, OriginBusy)
    await runway.join()
    assert len(runway.begun) == 3
    runway.land("value")
    monkeypatch.setattr(flights, "FAILED", 0.0)
    for number in range(2):
        (task,) = await runway.join(key="other")
        assert len(runway.begun) == 4 + number
        runway.land(error)
        await task


async def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are fetched and clients that wait are bounded, and nobody waits for ever."""
    monkeypatch.setattr(flights, "FLIGHTS", 2)
    monkeypatch.setattr(flights, "WAITERS", 4)
    runway = Runway()
    waiting = [*await runway.join(3, "a"), *await runway.join(1, "b")]
    assert isinstance(await runway.flights.join("c", runway.fetch), OriginBusy)
    assert isinstance(await runway.flights.join("a", runway.fetch), OriginBusy)
    runway.land("a", 0)
    runway.land("b", 1)
    await asyncio.gather(*waiting)
    monkeypatch.setattr(flights, "PATIENCE", 0.01)
    assert isinstance(await runway.flights.join("d", runway.fetch), OriginBusy)
    runway.flights.stop()


async def test_a_fault_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to a fetch, nobody waits for ever, and the log says what it was."""

    async def fail(flight: Flight[str]) -> str:
        raise ZeroDivisionError

    outcome = await Flights[str]().join("k", fail)
    await asyncio.sleep(0)
    assert isinstance(outcome, OriginError)
    assert outcome.line == errors.INTERNAL
    assert [record.message for record in caplog.records] == ["fetch_failed"]


async def test_many_are_told_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between those who wait for one key the loop has a turn for others; nobody is forgotten."""
    monkeypatch.setattr(flights, "TOLD_PER_TURN", 4)
    runway, heard = Runway(), list[str | OriginError]()
    for _ in range(10):
        runway.flights.hear("k", runway.fetch, heard.append)
    await asyncio.sleep(0)
    runway.land("value")
    counts = [0]
    while len(heard) < 10:
        await asyncio.sleep(0)
        counts.append(len(heard))
    assert sorted(set(counts)) == [0, 4, 8, 10]
    assert runway.flights.waiting == 0
