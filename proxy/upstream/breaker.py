"""Circuit breaker of one node: how much of what PostgreSQL can answer too still goes to the node.

The pool makes one per node and tells it what happens on the node's connections; it sets the share
of look-ups that the data plane sends there. Commands that only Redis can answer are not its
business: they end at once where no connection is open, and at their deadline otherwise.

1. It opens at once when the node cannot be connected to, is silent while look-ups wait, or says
   that it does not serve, and when half of its calls in a window fail.
2. Open, it lets one question through now and then. A good answer closes it; an answer that does
   not come in time is a bad one.
3. Closed again, the share grows from a tenth to all within the time that it was open, at most
   three seconds: an empty node would pass every miss on to PostgreSQL together.
4. A node that answers and is not trusted with what it holds is closed and gets nothing.

Always true: one timer and one question at most; a node that serves and is trusted has all its
share a pause and a ramp later, whatever happened before, unless it flaps.
"""

import asyncio
import math
import random
from collections.abc import Callable

# Pause before an open breaker asks again, in seconds, give or take a fifth so that sidecars do not
# ask together. It doubles with every time that the node fails within HOLD_DOWN of having returned,
# and only then: one that is simply away is asked twice a second, and is back at once.
FIRST_PAUSE = 0.5
MOST_FLAPS = 6  # half a minute
HOLD_DOWN = 5.0

# How long the answer to such a question is waited for, in seconds.
PROBE_SECONDS = 0.2

# From which share, in percent, in which steps and for how long at most it grows, in seconds.
FIRST_SHARE = 10
STEP = 0.1
RAMP = 3.0

# Half of the calls of a window must have failed, of so many at least. A window is as short as it
# can be: what went well before a failure hides it.
FEWEST_CALLS = 20
SHORTEST_WINDOW = 0.9  # seconds: one between two looks
LONGEST_WINDOW = 10.0


class Breaker:
    """The breaker of one node."""

    def __init__(
        self,
        admit: Callable[[int], None],
        ask: Callable[[float, Callable[[bool], None]], None],
        trusted: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        """Take what it acts on.

        admit sets the share in percent. ask puts a question to the node, where a connection is
        open, and tells within these seconds whether the answer is a good one. changed is called
        when `closed` or `whole` has become another.
        """
        self._admit = admit
        self._ask = ask
        self._trusted = trusted
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.closed = True
        self._share = 100
        self._away_since = 0.0  # when it opened, or ceased to be trusted
        self._ramp_since = 0.0
        self._returned = -HOLD_DOWN
        self.since = -math.inf  # when it began to serve what it serves, as far as is known
        self._flaps = 0
        self._question = 0  # its number: an answer to a former one says nothing
        self._timer: asyncio.TimerHandle | None = None
        self._window_since = 0.0
        self._answered = 0  # when the window began
        self._failures = 0

    @property
    def whole(self) -> bool:
        """Whether everything goes to the node."""
        return self._share == 100

    # What the pool tells.

    def lost(self) -> None:
        """Take note that the node cannot be reached, or does not answer."""
        if not self.closed:
            return
        now = self._loop.time()
        flaps = now - self._returned < HOLD_DOWN
        self._flaps = min(self._flaps + 1, MOST_FLAPS) if flaps else 0
        if self.whole:
            self._away_since = now
        self.closed = False
        self._set(0)
        self._wait(self._pause())
        self._changed()

    def reached(self) -> None:
        """Take note that a connection is open: no need to wait, unless it flaps."""
        if not self.closed and not self._flaps:
            self._try()

    def took_over(self) -> None:
        """Take note that the node serves what another has served: it may have heard less of it."""
        self.since = self._loop.time()
        if self.closed and not self._trusted():
            self._distrust()

    def failed(self, answered: int, failures: int = 1) -> None:
        """Count calls that failed; answered is how many the node has ever answered."""
        self._failures += failures
        calls = answered - self._answered + self._failures
        if calls >= FEWEST_CALLS and 2 * self._failures >= calls:
            self._failures = 0
            self.lost()

    def look(self, answered: int) -> None:
        """Ask again whether the node is trusted, and begin a new window. Called every second."""
        now = self._loop.time()
        age, calls = now - self._window_since, answered - self._answered + self._failures
        if age >= LONGEST_WINDOW or (age >= SHORTEST_WINDOW and calls >= FEWEST_CALLS):
            self._window_since, self._answered, self._failures = now, answered, 0
        if not self.closed:
            return
        if not self._trusted():
            self._distrust()
        elif not self.whole and self._timer is None:
            self._rise()

    def stop(self) -> None:
        self._question += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Open.

    def _pause(self) -> float:
        return FIRST_PAUSE * (1 << self._flaps) * random.uniform(0.8, 1.2)

    def _wait(self, seconds: float) -> None:
        self.stop()
        self._timer = self._loop.call_later(seconds, self._try)

    def _try(self) -> None:
        """Ask the node whether it serves."""
        self._wait(self._pause())
        question = self._question

        def judge(good: bool) -> None:
            if good and question == self._question and not self.closed:
                self._close()

        self._ask(PROBE_SECONDS, judge)

    def _close(self) -> None:
        self.stop()
        self.closed = True
        self._returned = self.since = self._loop.time()
        if self._trusted():
            self._rise()
        else:
            self._distrust()
        self._changed()

    # Closed.

    def _distrust(self) -> None:
        if self.whole:
            self._away_since = self._loop.time()
        self.stop()
        if self._share:
            self._set(0)
            self._changed()

    def _rise(self) -> None:
        """Begin to give the node its share again."""
        self._ramp_since = self._loop.time()
        self._step()

    def _step(self) -> None:
        self._timer = None
        now = self._loop.time()
        length = min(RAMP, self._ramp_since - self._away_since)
        passed = (now - self._ramp_since) / length if length > STEP else 1.0
        if passed >= 1:
            self._set(100)
            self._changed()
            return
        self._set(FIRST_SHARE + int((100 - FIRST_SHARE) * passed))
        self._timer = self._loop.call_later(STEP, self._step)

    def _set(self, share: int) -> None:
        self._share = share
        self._admit(share)
