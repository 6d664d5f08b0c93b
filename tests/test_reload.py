"""New rules come into force as a whole, one set at a time, or the old ones stay."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy import wire
from proxy.commands import ROWS
from proxy.errors import StartError
from proxy.metrics import Metrics
from proxy.policy.draft import Draft, DraftFailed, DraftRefused, Order, Writer, drafted_here
from proxy.policy.files import look, mark
from proxy.reload import MOST_LINES, Reloads
from tests.integration.rig import wait_for
from tests.policy.rulebook import CLUSTERS, Folder


class Gated(Writer):
    """Drafts that are made in this process, when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.open = threading.Semaphore(0)
        self.failure: Exception | None = None

    def drafted(self, order: Order) -> Draft:
        self.begun += 1
        assert self.open.acquire(timeout=10)
        if self.failure is not None:
            raise self.failure
        draft, _ = drafted_here(order)
        return replace(draft, ruleset=None) if draft.settled == order.before else draft

    def stop(self) -> None:
        self.open.release(10)


def rules(*names: str) -> str:
    return "keyspaces:\n" + "".join(f"  {name}: {{key: '{name}:{{id}}'}}\n" for name in names)


class Room:
    """Reloads over a folder, and what they have put in force."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        folder.write(rules("a"))
        order = Order(folder.path, CLUSTERS, None)
        first, ruleset = drafted_here(order)
        self.writer = Gated()
        self.in_force = [ruleset]
        self.unfit: StartError | None = None
        self.metrics = Metrics("1", CLUSTERS, wire.Latencies(2, len(ROWS)), ruleset)
        self.reloads = Reloads(order, first, self.metrics, self.apply, self.writer)

    async def apply(self, ruleset: wire.Ruleset | None) -> bool:
        if self.unfit is not None:
            raise self.unfit
        if ruleset is not None:
            self.in_force.append(ruleset)
        return False

    async def reload(self, text: str) -> str:
        self.folder.write(text)
        self.writer.open.release()
        return await self.reloads.reload()

    @property
    def keyspaces(self) -> list[list[str]]:
        return [[space.name for space in ruleset.keyspaces] for ruleset in self.in_force]


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(Folder(tmp_path))
    yield room
    room.reloads.stop()


async def test_new_rules_are_in_force(room: Room) -> None:
    """What changed is applied and named, with a hash that everybody computes alike."""
    before = room.reloads.state
    assert await room.reload(rules("a", "b")) == (
        f"changed: rules {mark(room.folder.path)} are in force"
    )
    assert room.keyspaces == [["a"], ["a", "b"]]
    assert room.reloads.state.mark == mark(room.folder.path) != before.mark
    assert room.reloads.state.since >= before.since
    assert room.reloads.looked == look(room.folder.path)


async def test_who_asks_meanwhile_shares_the_next(room: Room) -> None:
    """One runs at a time; all who ask then get one more, of the files as they are then."""
    first = asyncio.create_task(room.reloads.reload())
    await wait_for(lambda: room.writer.begun == 1, "the first")
    others = [asyncio.create_task(room.reloads.reload()) for _ in range(5)]
    room.reloads.ask()
    room.writer.open.release()
    assert (await first).startswith("unchanged")
    room.folder.write(rules("b"))
    others[0].cancel()
    room.writer.open.release()
    assert {outcome[:7] for outcome in await asyncio.gather(*others[1:])} == {"changed"}
    assert room.writer.begun == 2
    assert room.keyspaces == [["a"], ["b"]]


async def test_mistakes_leave_the_old_rules(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is told, a line for each of so many mistakes, until a reload succeeds."""
    wrong = "".join(f"  k{number}: {{kee: 1}}\n" for number in range(2 * MOST_LINES))
    before = room.reloads.state
    with pytest.raises(DraftRefused):
        await room.reload("keyspaces:\n" + wrong)
    state = room.reloads.state
    assert (state.mark, state.since) == (before.mark, before.since)
    assert len(state.mistakes) == MOST_LINES
    assert state.mistakes[0].startswith(f"{room.folder.path}/a.yaml:2:8: ")
    assert caplog.messages.count("reload_failed") == MOST_LINES + 1
    assert room.reloads.looked == look(room.folder.path)
    assert room.keyspaces == [["a"]]
    assert (await room.reload(rules("a"))).startswith("unchanged")
    assert room.reloads.state.mistakes == ()


async def test_rules_that_do_not_fit_are_refused(room: Room) -> None:
    """What stands against the configuration is a failure, and the comparison is with the old."""
    room.unfit = StartError("a user has a role that is gone")
    with pytest.raises(StartError):
        await room.reload(rules("b"))
    assert room.reloads.state.mistakes == ("a user has a role that is gone",)
    room.unfit = None
    assert (await room.reload(rules("b"))).startswith("changed")


async def test_a_failure_of_our_own_is_no_mistake_of_the_files(room: Room) -> None:
    """Files that could not be judged are still to be tried."""
    before = room.reloads.looked
    room.folder.write(rules("b"))
    for failure in (DraftFailed("no process"), ValueError("two keyspaces have one pattern")):
        room.writer.failure = failure
        with pytest.raises(DraftFailed):
            await room.reload(rules("b"))
        assert room.reloads.looked == before
        assert len(room.reloads.state.mistakes) == 1


async def test_stopping_ends_what_is_under_way(room: Room) -> None:
    """After stop nothing is put in force any more."""
    asked = [asyncio.create_task(room.reloads.reload()) for _ in range(2)]
    await wait_for(lambda: room.writer.begun == 1, "the first")
    room.folder.write(rules("b"))
    room.reloads.stop()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert room.keyspaces == [["a"]]
