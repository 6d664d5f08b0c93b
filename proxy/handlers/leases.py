"""Who fetches a key for all sidecars, and what becomes of a key that has changed: in Redis.

`reading` takes leases and fills keys with them, `through` makes keys void. Each is one script on
the node of the key (lua/lease.lua, fill.lua, invalidate.lua).

Always true:
  * no call takes longer than SECONDS: a node that does not answer is one that is away;
  * a key whose invalidation did not arrive is owed to its cluster and tried again, OWED keys at
    most; beyond that all keys of its keyspace are swept away, as soon as that can be;
  * what is owed nobody here is shown from Redis: `Router.owed` tells the data plane.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterable, Sequence

from proxy import log, wire
from proxy.handlers.targets import Target
from proxy.plans import Plan
from proxy.upstream.errands import Errands, Script
from proxy.upstream.owing import repay

LEASE = Script("lease")
FILL = Script("fill")
INVALIDATE = Script("invalidate")

# A script of a few keys takes a fraction of a millisecond; who waits for it is a client.
SECONDS = 0.25

# Some two megabytes of names.
OWED = 10_000

# How often what is owed is tried again, in seconds.
ROUND = 0.25

# What is said of a lease: one of these, or that nobody answered.
THERE, NONE, WON, HELD, AWAY = "there", "none", "won", "held", "away"

_SAID = {b"$%d\r\n%b\r\n" % (len(word), word.encode()): word for word in (THERE, NONE, WON, HELD)}


class Leases:
    """Those of one sidecar, in all clusters."""

    def __init__(self, router: wire.Router, errands: Errands, states: log.StateLog) -> None:
        self._router = router
        self._errands = errands
        self._states = states
        self._mine = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._owed: dict[bytes, Target] = {}  # by the names that clients use
        router.owed = self._owed
        self._sweep: Callable[[Plan], None] = lambda plan: None

    def beyond(self, sweep: Callable[[Plan], None]) -> None:
        """Take what removes all keys of a plan: it is called where too many are owed."""
        self._sweep = sweep

    @property
    def owed(self) -> int:
        """Return how many keys are to be invalidated as soon as their nodes are back."""
        return len(self._owed)

    def token(self) -> bytes:
        """Return a word that no other lease has."""
        return f"{self._mine}-{next(self._numbers)}".encode()

    async def take(self, target: Target, token: bytes, least_ms: int) -> str:
        """Ask for the lease of a key; return what is said of it."""
        arguments = (token, b"%d" % target.plan.age.lease_ms, b"%d" % least_ms)
        return _SAID.get(await self._ask(LEASE, target.plan.cluster, target.keys, arguments), AWAY)

    async def fill(self, target: Target, token: bytes, arguments: Sequence[bytes]) -> bool:
        """Store what was fetched; return whether the lease still allowed it."""
        said = await self._ask(FILL, target.plan.cluster, target.keys, (token, *arguments))
        return said == b":1\r\n"

    async def void(self, target: Target) -> bool:
        """Make a key one that nobody has, as soon as its node is there; return whether it is."""
        before = self._owed.get(target.key)
        gone = await self._void(target.plan.cluster, _all_of(target))
        if not gone:
            self.owe(target)
        elif self._owed.get(target.key) is before:
            # What is owed since is owed for a later change.
            self._owed.pop(target.key, None)
        return gone

    async def settled(self, targets: Iterable[Target]) -> bool:
        """Return whether nothing is owed of keys, once their nodes have been told again."""
        owed = [target for target in targets if self.owes(target)]
        return not owed or all(await asyncio.gather(*map(self.void, owed)))

    def owes(self, target: Target) -> bool:
        """Return whether a key is to be invalidated as soon as its node is there."""
        return target.key in self._owed

    def forgive(self, target: Target) -> None:
        """Let a key be after all: it is written as a whole."""
        self._owed.pop(target.key, None)

    def owe(self, target: Target) -> None:
        """Make a key one that nobody has, soon."""
        if len(self._owed) >= OWED and target.key not in self._owed:
            plan = self._owed.pop(next(iter(self._owed))).plan
            self._states.change(log.WARNING, "owed keys", "dropped", "invalidations_dropped")
            if plan.read is not None:
                self._sweep(plan)
        # An object of its own, by which a round sees that this is not what it has sent.
        self._owed[target.key] = Target(*target)
        self._states.change(log.WARNING, "invalidations", "owed", "invalidations_owed")

    async def release(self, target: Target) -> None:
        """End every fetch of a key that has been written in Redis, and forget that it was none."""
        if target.lease is not None and target.marker is not None:
            await self._void(target.plan.cluster, (target.lease, target.marker))

    async def watch(self) -> None:
        """Repay what is owed, for ever."""
        while True:
            await asyncio.sleep(ROUND)
            if self._owed:
                await self._repay()

    async def _repay(self) -> None:
        """Send what is owed to nodes that answer."""
        owed = [(target.plan.cluster, target.name, target) for target in self._owed.values()]
        await repay(self._router.slots, owed, self._repaid)
        if not self._owed:
            self._states.change(log.INFO, "invalidations", "sent", "invalidations_sent")
            self._states.change(log.INFO, "owed keys", "kept", "invalidations_kept")

    async def _repaid(self, target: Target) -> bool:
        if self._owed.get(target.key) is not target:
            return True
        gone = await self._void(target.plan.cluster, _all_of(target))
        if gone and self._owed.get(target.key) is target:
            del self._owed[target.key]
        return gone

    async def _void(self, cluster: int, keys: Sequence[bytes]) -> bool:
        return (await self._ask(INVALIDATE, cluster, keys, ()))[:1] == b":"

    async def _ask(
        self, script: Script, cluster: int, keys: Sequence[bytes], arguments: Sequence[bytes]
    ) -> bytes:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._errands.ask(script, cluster, keys, arguments)
        except TimeoutError:
            return b"-TIMEOUT\r\n"


def _all_of(target: Target) -> Sequence[bytes]:
    """Return all that goes with a key."""
    return (target.name,) if target.lease is None else target.keys
