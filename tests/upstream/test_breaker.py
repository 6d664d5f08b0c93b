"""When a breaker opens, when it asks, and how a node gets its share back."""

import asyncio
from collections.abc import Callable

import pytest

from proxy.upstream import breaker
from proxy.upstream.breaker import FEWEST_CALLS, FIRST_SHARE, HOLD_DOWN, RAMP, Breaker
from tests.integration.rig import wait_for


class Clock:
    """The loop's timers, run by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, act: Callable[[], None]) -> "Clock.Timer":
        timer = (self.now + delay, act)
        self.timers.append(timer)
        return Clock.Timer(self, timer)

    class Timer:
        def __init__(self, clock: "Clock", timer: tuple[float, Callable[[], None]]) -> None:
            self._clock = clock
            self._timer = timer

        def cancel(self) -> None:
            if self._timer in self._clock.timers:
                self._clock.timers.remove(self._timer)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due."""
        until = self.now + seconds
        while self.timers and min(due for due, _ in self.timers) <= until:
            timer = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = until


class Guarded:
    """A node as a breaker sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(breaker.asyncio, "get_running_loop", lambda: self.clock)
        self.shares: list[int] = []
        self.questions: list[Callable[[bool], None]] = []
        self.trusted = True
        self.changes = 0
        self.breaker = Breaker(
            self.shares.append,
            lambda seconds, judge: self.questions.append(judge),
            lambda: self.trusted,
            self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    @property
    def share(self) -> int:
        return self.shares[-1] if self.shares else 100

    def come_back(self) -> None:
        """Let the node be reached and answer well."""
        self.breaker.reached()
        self.questions[-1](True)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(monkeypatch)


def test_a_node_that_is_lost_gets_nothing(node: Guarded) -> None:
    """It opens at once, asks twice a second, and says so once."""
    node.breaker.lost()
    node.breaker.lost()
    assert not node.breaker.closed
    assert (node.share, node.changes) == (0, 1)
    node.clock.pass_by(10.0)
    assert 16 <= len(node.questions) <= 26
    assert node.share == 0


def test_a_node_that_takes_over_gets_nothing_before_it_is_trusted(node: Guarded) -> None:
    """It has been there all the time, and may not have heard of all that changed."""
    node.breaker.took_over()
    assert node.shares == []
    node.trusted = False
    node.breaker.took_over()
    assert node.breaker.closed
    assert (node.share, node.breaker.since) == (0, node.clock.now)
    node.trusted = True
    node.breaker.look(0)
    node.clock.pass_by(RAMP + 0.2)
    assert node.breaker.whole


def test_an_answer_closes_it_and_the_share_grows(node: Guarded) -> None:
    """From a tenth to all, never down, within three seconds."""
    node.breaker.lost()
    node.clock.pass_by(60.0)
    before = len(node.shares)
    node.come_back()
    assert node.breaker.closed
    assert not node.breaker.whole
    node.clock.pass_by(RAMP + 0.2)
    grown = node.shares[before:]
    assert grown[0] == FIRST_SHARE
    assert grown[-1] == 100
    assert grown == sorted(grown)
    assert len(grown) > 20
    assert node.breaker.whole
    assert not node.clock.timers


def test_the_share_grows_in_the_time_that_it_was_away(node: Guarded) -> None:
    """Who was away for a moment has lost nothing, and is whole after another."""
    node.breaker.lost()
    node.clock.pass_by(0.35)
    node.come_back()
    node.clock.pass_by(0.3)
    assert not node.breaker.whole
    node.clock.pass_by(0.15)
    assert node.breaker.whole


def test_a_bad_answer_and_a_late_one_change_nothing(node: Guarded) -> None:
    """An answer to a question before the last one is of a time that is gone."""
    node.breaker.lost()
    node.clock.pass_by(0.7)
    node.questions[-1](False)
    node.clock.pass_by(0.7)
    node.questions[0](True)
    assert not node.breaker.closed
    node.questions[-1](True)
    assert node.breaker.closed


def test_a_node_that_flaps_is_waited_for_longer_and_longer(node: Guarded) -> None:
    """Lost within five seconds of a return, it is not asked as soon as it can be reached."""
    pauses = []
    for _ in range(4):
        node.breaker.lost()
        asked, since = len(node.questions), node.clock.now
        node.breaker.reached()
        while len(node.questions) == asked:
            node.clock.pass_by(0.05)
        pauses.append(node.clock.now - since)
        node.questions[-1](True)
        node.clock.pass_by(HOLD_DOWN / 2)
    assert pauses[0] < 0.1
    assert pauses[1] < pauses[2] < pauses[3]
    node.clock.pass_by(HOLD_DOWN)
    node.breaker.lost()
    asked = len(node.questions)
    node.breaker.reached()
    assert len(node.questions) == asked + 1


def test_half_of_the_calls_fail(node: Guarded) -> None:
    """Twenty calls of which ten fail open it; fewer do not, nor do failures among many answers."""
    for _ in range(FEWEST_CALLS - 1):
        node.breaker.failed(0)
    assert node.breaker.closed
    node.breaker.failed(0)
    assert not node.breaker.closed


def test_failures_among_many_answers(node: Guarded) -> None:
    """What went well in the same window counts, and a window ends."""
    for second in range(1, 31):
        node.breaker.failed(100 * second, 40)
        node.breaker.look(100 * second)
        node.clock.pass_by(1.0)
    assert node.breaker.closed
    node.breaker.failed(3020, 30)
    assert not node.breaker.closed


def test_a_node_that_is_not_trusted(node: Guarded) -> None:
    """It gets nothing while what it holds is not what it should be, whether or not it was away."""
    node.trusted = False
    node.breaker.look(0)
    assert node.breaker.closed
    assert (node.share, node.changes) == (0, 1)
    node.clock.pass_by(60.0)
    node.trusted = True
    node.breaker.look(0)
    assert node.share == FIRST_SHARE
    node.breaker.lost()
    node.trusted = False
    node.come_back()
    assert node.breaker.closed
    assert node.share == 0
    node.trusted = True
    node.breaker.look(0)
    node.clock.pass_by(RAMP + 0.2)
    assert node.breaker.whole


async def test_it_runs_on_the_loop() -> None:
    """Its timers are the loop's, and end with it."""
    asked = asyncio.Event()
    made = Breaker(lambda share: None, lambda s, judge: asked.set(), lambda: True, lambda: None)
    made.lost()
    made.reached()
    await wait_for(asked.is_set, "a question")
    made.stop()
