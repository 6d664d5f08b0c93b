"""New rules as a transaction: all of them are in force, or none and the old ones stay.

The application makes one `Reloads` and asks it to reload: by a signal, by the admin port, or
because the files have changed. Always true:
  * one runs at a time; whoever asks meanwhile shares the one that comes next, which reads what is
    there then;
  * what it costs is paid in another process, and here in slices: see `policy.draft`;
  * the swap is one step on the loop, and a failure changes nothing but what `state` says, until
    one succeeds.
"""

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from proxy import log, wire
from proxy.documents import MistakesFound
from proxy.errors import SidecacheError
from proxy.handlers import RuleStatistics
from proxy.metrics import Metrics
from proxy.policy.draft import DEADLINE, Draft, DraftFailed, DraftRefused, Order, Settled, Writer
from proxy.policy.files import Look
from proxy.policy.model import Policies

# A file of nonsense has thousands of mistakes; whoever mends these sees the rest by `check`.
MOST_LINES = 20

# Beyond the writer's own deadline, which ends its process.
_GRACE = 10.0  # seconds


class Reloads:
    """Takes new rules in, one set at a time."""

    def __init__(
        self,
        order: Order,
        first: Draft,
        metrics: Metrics,
        apply: Callable[[wire.Ruleset | None], Awaitable[bool]],
        writer: Writer | None = None,
    ) -> None:
        """apply puts rules in force, None for those that are, and all that goes with them.

        It returns whether anything else has changed, and raises where they do not fit.
        """
        self._order = order
        self._metrics = metrics
        self._apply = apply
        self._writer = writer or Writer()
        self._settled = first.settled
        self._running: asyncio.Task[str] | None = None
        self._waiting: asyncio.Task[str] | None = None
        self.looked: Look = first.look
        self.state = RuleStatistics(first.mark, time.time())

    @property
    def policies(self) -> Policies:
        """Return what the rules in force say, as it was read."""
        settled: Settled = pickle.loads(self._settled)  # noqa: S301 -- our own bytes
        return settled.policies

    async def reload(self) -> str:
        """Read the files again and return what that changed; raise where the old rules stay.

        Whoever is cancelled leaves it to the others.
        """
        return await asyncio.shield(self._next())

    def ask(self) -> None:
        """Ask for a reload of which only the log tells."""
        self._next()

    def stop(self) -> None:
        """End what is under way: it changes nothing."""
        self._writer.stop()
        for task in (self._waiting, self._running):
            if task is not None:
                task.cancel()

    def _next(self) -> asyncio.Task[str]:
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._take_turn(self._running))
            self._waiting.add_done_callback(_retrieve)
        return self._waiting

    async def _take_turn(self, before: asyncio.Task[str] | None) -> str:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._waiting = self._waiting, None
        try:
            return await self._reload()
        except SidecacheError as error:
            self._tell_failure(error)
            raise
        finally:
            self._running = None

    async def _reload(self) -> str:
        try:
            draft = await self._drafted()
        except DraftRefused as refused:
            self.looked = refused.look
            raise
        self.looked = draft.look
        others = await self._apply(draft.ruleset)
        self._settled = draft.settled
        self.state = RuleStatistics(draft.mark, time.time())
        return self._tell_success(draft, others or draft.ruleset is not None)

    async def _drafted(self) -> Draft:
        order = self._order._replace(before=self._settled)
        work = asyncio.to_thread(self._writer.drafted, order)
        try:
            return await asyncio.wait_for(work, DEADLINE + _GRACE)
        except TimeoutError as error:
            raise DraftFailed(f"the rules were not read within {DEADLINE:.0f} s") from error
        except ValueError as error:
            raise DraftFailed(f"the rules contradict each other: {error}") from error

    def _tell_success(self, draft: Draft, changed: bool) -> str:
        outcome = "changed" if changed else "unchanged"
        self._metrics.reloads.count(outcome)
        self._metrics.reload_failed.set(0)
        self._metrics.reloaded.set_to_current_time()
        log.event(log.INFO, "reloaded", outcome=outcome, rules=draft.mark)
        for line in draft.differences[:MOST_LINES]:
            log.event(log.INFO, "rules_changed", difference=line)
        if len(draft.differences) > MOST_LINES:
            left_out = len(draft.differences) - MOST_LINES
            log.event(log.INFO, "rules_changed", differences_left_out=left_out)
        return "\n".join([f"{outcome}: rules {draft.mark} are in force", *draft.differences])

    def _tell_failure(self, error: SidecacheError) -> None:
        lines = [str(error)]
        if isinstance(error, MistakesFound):
            lines = [str(mistake) for mistake in error.mistakes]
        self.state = replace(self.state, mistakes=tuple(lines[:MOST_LINES]))
        self._metrics.reloads.count("failed")
        self._metrics.reload_failed.set(1)
        for line in lines[:MOST_LINES]:
            log.event(log.ERROR, "reload_failed", mistake=line)
        if len(lines) > MOST_LINES:
            log.event(log.ERROR, "reload_failed", mistakes_left_out=len(lines) - MOST_LINES)


def _retrieve(task: asyncio.Task[str]) -> None:
    """Take the outcome of a reload whose askers have gone: the log has told it."""
    if not task.cancelled():
        task.exception()
