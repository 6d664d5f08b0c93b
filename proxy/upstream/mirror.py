"""What Redis shows of locks about which PostgreSQL decides: a mirror, and a gate for crowds.

`grants` asks the gate before PostgreSQL and changes the mirror after COMMIT. Each is one script on
the node of the lock (lua/lock_look.lua, lock_put.lua, lock_drop.lua).

Always true:
  * nothing here grants or releases anything, and no failure here is one of the caller's: the gate
    knows nothing then, and a lock that stays in the mirror too long is found out by `grants`;
  * a lock is shown with its fencing token beside it, so that what is late does not undo what is
    later;
  * many who ask about one lock at a time are answered by one question, and who comes less than SEEN
    after it was put by its answer; nothing that was asked before a change made here is told after.
"""

import asyncio
from typing import NamedTuple

from proxy import resp, wire
from proxy.plans import TOKEN, Plan, companion
from proxy.upstream.errands import Errands, Script

LOOK = Script("lock_look")
PUT = Script("lock_put")
DROP = Script("lock_drop")

# A question before another question: where Redis is slower than PostgreSQL would be, in seconds, it
# is of no use.
PATIENCE = 0.05

# What has come by then is read before this is over as well, seconds.
READING = 0.001

# How long an answer is as good as another question, in seconds, and of how many locks: somebody who
# is told that a seat is taken would not have been quicker by that.
SEEN = 0.02
SEEN_LOCKS = 1000

# While one asks again others are told the old answer for so long, in seconds. A loop that a crowd
# keeps busy has to come round within it, or everybody asks and nobody profits by an answer.
GRACE = 0.03


class Shown(NamedTuple):
    """What the mirror has of one lock."""

    value: bytes
    ends: float  # a time of the loop
    until: float  # how long this is as good as another question, a time of the loop


class Mirror:
    """The locks of all keyspaces as Redis has them."""

    def __init__(self, router: wire.Router, errands: Errands) -> None:
        self.refusals = router.refusals
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._errands = errands
        self._asked: dict[bytes, asyncio.Future[Shown | None]] = {}
        self._seen: dict[bytes, Shown] = {}

    def seen(self, key: bytes) -> Shown | None:
        """Return what was shown of a lock just now; None where that has to be asked."""
        shown = self._seen.get(key)
        return shown if shown is not None and self._loop.time() < shown.until else None

    def stands(self, key: bytes, shown: Shown) -> bool:
        """Return whether nothing was changed here since that was shown, however long ago."""
        return self._seen.get(key) is shown

    async def look(self, plan: Plan, key: bytes) -> Shown | None:
        """Return what is shown of a lock; None where that is nothing, or nobody knows."""
        if (shown := self.seen(key)) is not None:
            return shown
        return await asyncio.shield(self._asked.get(key) or self._ask(plan, key))

    def _ask(self, plan: Plan, key: bytes) -> asyncio.Future[Shown | None]:
        asked = self._asked[key] = self._loop.create_future()

        def settle(shown: Shown | None) -> None:
            late.cancel()
            if asked.done():
                return
            asked.set_result(shown)
            # After a change made here it is another's question that is waited for.
            if self._asked.get(key) is asked:
                del self._asked[key]
                self._keep(key, shown)

        # A loop that was busy for so long comes to its timers before it reads the answer.
        late = self._loop.call_later(PATIENCE, lambda: self._loop.call_later(READING, settle, None))
        name = self._router.ruleset.upstream_name(key)
        self._errands.run(
            LOOK, plan.cluster, name, (), lambda reply: settle(_shown(reply, self._loop.time()))
        )
        return asked

    def _keep(self, key: bytes, shown: Shown | None) -> None:
        if len(self._seen) >= SEEN_LOCKS:
            self._seen.clear()
        if shown is not None:
            self._seen[key] = shown

    def _forget(self, key: bytes) -> None:
        """Take what was seen of a lock, or is asked just now, for old."""
        self.refusals.open(key)
        self._seen.pop(key, None)
        self._asked.pop(key, None)

    def put(self, plan: Plan, key: bytes, token: int, value: bytes, left_ms: int) -> None:
        """Show a grant; nobody waits for it."""
        self._forget(key)
        name, beside = self._names(key)
        if beside is not None:
            arguments = (b"%d" % token, value, b"%d" % left_ms)
            self._errands.run(PUT, plan.cluster, name, arguments, _ignored, (beside,))

    async def drop(self, plan: Plan, key: bytes, token: int) -> None:
        """Show a grant no longer: who is told of a release finds the gate open."""
        self._forget(key)
        name, beside = self._names(key)
        if beside is None:
            return
        done = self._loop.create_future()

        def heard(reply: bytes) -> None:
            if not done.done():
                done.set_result(None)

        self._errands.run(DROP, plan.cluster, name, (b"%d" % token,), heard, (beside,))
        await asyncio.wait([done], timeout=PATIENCE)

    def _names(self, key: bytes) -> tuple[bytes, bytes | None]:
        """Return a lock as nodes name it, and the key of its token."""
        name = self._router.ruleset.upstream_name(key)
        return name, companion(TOKEN, name)


def _shown(reply: bytes, now: float) -> Shown | None:
    if reply[:1] != b"*":
        return None
    value, left = resp.decode(reply)
    ends = now + left / 1000
    return Shown(value, ends, min(now + SEEN, ends)) if left > 0 else None


def _ignored(reply: bytes) -> None:
    pass
