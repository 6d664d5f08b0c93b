"""Runs of scripts and functions: sent by their keys, and sent again when a node has forgotten them.

Used by `scripts` and `functions`. A node that was restarted, promoted, added or flushed answers
NOSCRIPT to what ran yesterday. That proves that nothing ran, so the run is sent again with its
body, if the body is known here. Whether it may be sent can be a question to other nodes; until that
is answered, the run counts as unanswered.

Always true:
  * a run is repeated at most once, and only behind an answer that proves that it did not run;
  * effects keep the client's order. From such an answer on no further command is taken until all
    runs of this client are answered. A run that another command of the client has overtaken, at
    the same slot or of another kind, is not repeated: its client hears what the node said, as from
    any Redis. So a pipeline of nothing but runs is repeated whole, from the first one forgotten;
  * every run has one reply, whatever happens.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from proxy import wire

Frames = Sequence[bytes]

# From an error line to what is to be sent instead, or nothing: at once, or when it is known.
Mend = Callable[[bytes], Frames | Awaitable[Frames]]


class Run:
    """One command on its way. The last of the frames that mend it is the run itself."""

    __slots__ = (
        "followers", "frames", "future", "inquiry", "location", "mend", "number", "reply",
        "request",
    )  # fmt: skip

    def __init__(self, request: wire.Request, location: wire.Location, mend: Mend) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.request = request
        self.location = location
        self.mend = mend
        self.frames: Frames = ()
        self.inquiry: asyncio.Task[None] | None = None
        self.followers: list[bytes] = []  # what rules send behind it
        self.number = -1  # as which of its client's commands it was sent; -1: no node was asked
        self.reply = b""

    def end(self, reply: bytes) -> None:
        if not self.future.done():
            self.future.set_result(reply)


class Runs:
    """The runs of one client that may have to be repeated, in the order they were sent."""

    def __init__(self, downstream: wire.Downstream) -> None:
        self._downstream = downstream
        self._runs: deque[Run] = deque()
        self._unanswered = 0
        self._holding = False

    def start(
        self,
        request: wire.Request,
        location: wire.Location,
        frame: bytes,
        mend: Mend,
        followers: list[bytes],
    ) -> asyncio.Future[bytes]:
        """Queue a run, and what rules send behind it; return a future of its reply.

        mend gets an error line and returns what to send instead, or nothing.
        """
        run = Run(request, location, mend)
        run.followers = followers
        self._runs.append(run)
        self._unanswered += 1
        self._submit(run, frame, partial(self._take, run))
        if not run.reply:
            run.number = self._downstream.sent
        return run.future

    def _submit(self, run: Run, frame: bytes, deliver: Callable[[bytes], None]) -> None:
        request = run.request
        self._downstream.submit(run.location, frame, request.row, request.received, deliver, True)
        if run.followers:
            self._downstream.follow(run.location, run.followers, request.received)

    def _take(self, run: Run, reply: bytes) -> None:
        run.reply = reply
        if reply[:1] == b"-" and self._downstream.owner is not None:
            mending = run.mend(reply)
            if isinstance(mending, Awaitable):
                self._hold()
                run.inquiry = asyncio.get_running_loop().create_task(self._inquire(run, mending))
                return
            run.frames = mending
            if run.frames:
                self._hold()
        self._answered(run)

    async def _inquire(self, run: Run, mending: Awaitable[Frames]) -> None:
        try:
            run.frames = await mending
        finally:
            self._answered(run)

    def _hold(self) -> None:
        if not self._holding:
            self._holding = True
            self._downstream.hold()

    def _answered(self, run: Run) -> None:
        """Take note that all is known of a run."""
        self._unanswered -= 1
        if not self._holding:
            run.end(run.reply)
        elif not self._unanswered:
            self._settle()
        while self._runs and self._runs[0].reply and not self._holding:
            self._runs.popleft()

    def _settle(self) -> None:
        """Repeat what was forgotten and not overtaken; nothing of this client is on its way."""
        runs, self._runs = self._runs, deque()
        repeated = self._repeatable(runs)
        for run in runs:
            if run not in repeated:
                run.end(run.reply)
                continue
            for frame in run.frames[:-1]:
                self._submit(run, frame, _drop)
            self._submit(run, run.frames[-1], run.end)
        self._holding = False
        self._downstream.release()

    def _repeatable(self, runs: Sequence[Run]) -> set[Run]:
        """Return the forgotten runs behind which this client has sent nothing that ran."""
        repeatable: set[Run] = set()
        ran: set[tuple[int, int]] = set()
        expected = self._downstream.sent
        for run in reversed(runs):
            if run.number < 0:
                continue
            if run.number != expected:
                break
            expected -= 1
            place = run.location.cluster, run.location.slot
            if not run.frames:
                ran.add(place)
            elif place not in ran:
                repeatable.add(run)
        return repeatable


def _drop(reply: bytes) -> None:
    """Ignore the reply of what only prepares a run: the run itself tells."""
