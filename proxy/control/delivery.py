"""What is to be done with keys, sent to the nodes that have them, and what they are owed.

Used by the applier of a cluster, one round after the other. Always true:
  * what could not be sent is owed and tried again; a shard that does not answer holds up others
    for twice SENDING at most, and memory is bounded: beyond OWED keys `overflowed` says that the
    outbox has to be read again;
  * a patch that is owed has become a deletion, and nothing that a patch says comes into force
    behind a later change, however long it was under way: `AsOf` tells the two apart, and a patch
    that a node cannot tell apart deletes. What shows as many transactions of one history shows
    the same, because each that ends makes the number greater.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from proxy import plans, wire
from proxy.control.positions import INVALIDATE, beside
from proxy.control.work import Orders
from proxy.upstream.errands import Errands, Script
from proxy.upstream.owing import repay

PATCH = Script("patch")

# How long the answers to a page of keys are waited for, in seconds, and then how long what is owed
# is repaid. A node answers within a millisecond; who takes longer, or is owed much, gets the rest
# later, so that other shards are not held up.
SENDING = 0.25

# Keys that are remembered while their shard is away, some ten megabytes.
OWED = 50_000

# How long a node remembers as of when it has kept a key in step, in milliseconds: an hour. Of a
# key that changes less often the first change takes it away.
REMEMBERED = b"3600000"


class AsOf(NamedTuple):
    """A moment of a database that can be compared with others."""

    history: str  # which database, and which of its histories
    finished: int  # how many transactions

    def words(self) -> list[bytes]:
        return [self.history.encode(), b"%d" % self.finished, REMEMBERED]


class Delivery:
    """That of one cluster."""

    def __init__(
        self, router: wire.Router, errands: Errands, cluster: int, patched: Callable[[], None]
    ) -> None:
        """Patched is told of each key that is kept in step."""
        self._router = router
        self._errands = errands
        self._cluster = cluster
        self._patched = patched
        self.owed: dict[bytes, bool] = {}  # by key: whether patches of it may be under way
        self.overflowed = False

    def forget(self) -> None:
        """Owe nothing, because all will be read again."""
        self.owed.clear()
        self.overflowed = False

    async def send(self, orders: Orders, now: AsOf) -> None:
        """Carry out orders about keys; those for which nobody answers in time are owed."""
        waiting = set(orders)
        done = asyncio.Event()

        def heard(name: bytes, reply: bytes) -> None:
            if reply[:1] != b":":
                return
            waiting.discard(name)
            if reply == b":1\r\n" and orders[name] is not None:
                self._patched()
            if not waiting:
                done.set()

        for name, words in orders.items():
            self._post(name, words, now, partial(heard, name))
        if waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SENDING):
                    await done.wait()
        for name in waiting:
            if name in self.owed or len(self.owed) < OWED:
                self.owed[name] = self.owed.get(name, False) or orders[name] is not None
            else:
                self.overflowed = True

    def _post(
        self, name: bytes, words: Sequence[bytes] | None, now: AsOf,
        heard: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        first, *others = beside(name)
        moment = plans.companion(plans.PATCHED, name)
        if words is None or moment is None:
            self._errands.run(INVALIDATE, self._cluster, first, (), heard, others)
        else:
            arguments = [*now.words(), *words]
            self._errands.run(PATCH, self._cluster, moment, arguments, heard, [first, *others])

    async def catch_up(self, now: AsOf) -> None:
        """Send what is owed to nodes that answer.

        Of a slot that moves, keys are sent one by one: a node refuses commands with several of
        which it has only some.
        """
        owed = [(self._cluster, name, name) for name in self.owed]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SENDING):
                await repay(self._router.slots, owed, lambda name: self._repaid(name, now))

    async def _repaid(self, name: bytes, now: AsOf) -> bool:
        moment = plans.companion(plans.PATCHED, name) if self.owed[name] else None
        if moment is not None:
            # Before the key goes: a patch that arrives behind it must find that it is late.
            words = [*now.words(), b"", b""]
            if not await self._answered(PATCH, moment, words):
                return False
        for key in beside(name):
            if not await self._answered(INVALIDATE, key):
                return False
        self.owed.pop(name, None)
        return True

    async def _answered(self, script: Script, key: bytes, words: Sequence[bytes] = ()) -> bool:
        reply = await self._errands.ask(script, self._cluster, [key], words)
        return reply[:1] == b":"
