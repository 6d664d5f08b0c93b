"""What Redis shows of locks about which PostgreSQL decides: a mirror, and a gate for crowds.

`grants` asks the gate before PostgreSQL and changes the mirror after COMMIT. Each is one script on
the node of the lock (lua/lock_look.lua, lock_put.lua, lock_drop.lua).

Always true:
  * nothing here grants or releases anything, and no failure here is one of the caller's: the gate
    knows nothing then, and a lock that stays in the mirror too long is found out by `grants`;
  * a lock is shown with its fencing token beside it, so that what is late does not undo what is
    later;
  * many who ask about one lock at a time are answered by one question.
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


class Shown(NamedTuple):
    """What the mirror has of one lock."""

    value: bytes
    left_ms: int


class Mirror:
    """The locks of all keyspaces as Redis has them."""

    def __init__(self, router: wire.Router, errands: Errands) -> None:
        self._router = router
        self._errands = errands
        self._asked: dict[bytes, asyncio.Future[Shown | None]] = {}

    async def look(self, plan: Plan, key: bytes) -> Shown | None:
        """Return what is shown of a lock; None where that is nothing, or nobody knows."""
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.get_running_loop().create_future()
            self._ask(plan, key, asked)
        return await asyncio.shield(asked)

    def _ask(self, plan: Plan, key: bytes, asked: asyncio.Future[Shown | None]) -> None:
        def settle(shown: Shown | None) -> None:
            late.cancel()
            if not asked.done():
                self._asked.pop(key, None)
                asked.set_result(shown)

        late = asyncio.get_running_loop().call_later(PATIENCE, settle, None)
        name = self._router.ruleset.upstream_name(key)
        self._errands.run(
            LOOK, plan.cluster, name, (), lambda reply: settle(_shown(reply))
        )  # fmt: skip

    def put(self, plan: Plan, key: bytes, token: int, value: bytes, left_ms: int) -> None:
        """Show a grant; nobody waits for it."""
        name, beside = self._names(key)
        if beside is not None:
            arguments = (b"%d" % token, value, b"%d" % left_ms)
            self._errands.run(PUT, plan.cluster, name, arguments, _ignored, (beside,))

    async def drop(self, plan: Plan, key: bytes, token: int) -> None:
        """Show a grant no longer: who is told of a release finds the gate open."""
        name, beside = self._names(key)
        if beside is None:
            return
        done = asyncio.get_running_loop().create_future()

        def heard(reply: bytes) -> None:
            if not done.done():
                done.set_result(None)

        self._errands.run(DROP, plan.cluster, name, (b"%d" % token,), heard, (beside,))
        await asyncio.wait([done], timeout=PATIENCE)

    def _names(self, key: bytes) -> tuple[bytes, bytes | None]:
        """Return a lock as nodes name it, and the key of its token."""
        name = self._router.ruleset.upstream_name(key)
        return name, companion(TOKEN, name)


def _shown(reply: bytes) -> Shown | None:
    if reply[:1] != b"*":
        return None
    value, left = resp.decode(reply)
    return Shown(value, left) if left > 0 else None


def _ignored(reply: bytes) -> None:
    pass
