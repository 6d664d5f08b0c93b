"""Keys of keyspaces that are not to be trusted are looked for at every node, and taken away.

Where a table was truncated, or changes of it are not in the outbox any more, nobody can say which
keys are stale. So all keys of the keyspaces that are made of it go, found by SCAN, at a pace that
leaves nodes to their clients. Always true: what is asked for while it runs is done after it, once;
a pass in which slots moved is made again, because a key may have moved from a node that was not
looked at yet to one that had been.

Whoever fetches a row from before the change still holds a lease, and would store the row behind us.
So there are two passes: the first takes all leases, and what was stored meanwhile lies there before
the second begins.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from proxy import log, plans, resp, wire
from proxy.control.positions import INVALIDATE, beside
from proxy.errors import SidecacheError
from proxy.keys import client_name
from proxy.upstream.errands import Errands
from proxy.wire.rules import Keyspace, Segment

# Keys that a node looks at in one step, some hundred microseconds of it, and the pause behind
# each step, in seconds: at most 50,000 keys a second are looked at per cluster.
STEP, PAUSE = b"500", 0.01

# How long after a failure a pass begins again, in seconds.
RETRY = 1.0


class _Away(SidecacheError):
    """A node did not answer."""


class Sweeper:
    """Of all clusters."""

    def __init__(self, router: wire.Router, batch: wire.Batch, clusters: Sequence[str]) -> None:
        self._router = router
        self._clusters = clusters
        self._errands = Errands(router, batch)
        self._due: dict[int, set[str]] = defaultdict(set)  # by cluster: names of keyspaces
        self._sweeping: int | None = None  # the cluster that is being swept
        self._asked = asyncio.Event()
        self.passes = self.failures = 0

    def ask(self, cluster: int, keyspaces: frozenset[int]) -> None:
        """Take all keys of keyspaces away, soon. They are known by name: rules may change."""
        known = self._router.ruleset.keyspaces
        self._due[cluster] |= {known[index].name for index in keyspaces}
        self._asked.set()

    def busy(self, cluster: int) -> bool:
        """Return whether anything that was asked for is not done."""
        return self._sweeping == cluster or bool(self._due.get(cluster))

    async def watch(self) -> None:
        """Sweep whenever somebody asks, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            for cluster in list(self._due):
                self._sweeping = cluster
                try:
                    await self._sweep(cluster)
                except _Away:
                    self.failures += 1
                    self._asked.set()
                    await asyncio.sleep(RETRY)
                finally:
                    self._sweeping = None

    async def _sweep(self, cluster: int) -> None:
        names = frozenset(self._due[cluster])
        if not names:
            return
        # What is asked for from here on may be about keys that have been passed.
        self._due[cluster] = set()
        count = 0
        try:
            while True:
                slots = self._router.slots
                count_of = slots.slot_count(cluster)
                if any(slots.owner(cluster, slot) < 0 for slot in range(count_of)):
                    raise _Away("a slot has no node, and its keys may come back with one")
                spaces = [k for k in self._router.ruleset.keyspaces if k.name in names]
                for keyspace in (*spaces, *spaces):
                    for place in slots.places(cluster):
                        count += await self._pass(cluster, place, keyspace)
                if self._router.slots is slots:
                    break
        except _Away:
            self._due[cluster] |= names
            raise
        self.passes += 1
        log.event(log.INFO, "keyspaces_swept", cluster=self._clusters[cluster], keys=count,
                  keyspaces=" ".join(sorted(names)))  # fmt: skip

    async def _pass(self, cluster: int, place: wire.Location, keyspace: Keyspace) -> int:
        """Take a keyspace's keys from one node; return how many there were."""
        # With what stands beside the keys, before the name and behind it.
        pattern, cursor, count = b"*%b*" % glob_of(keyspace), b"0", 0
        while True:
            words = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", STEP]
            reply = await self._errands.tell(place, words)
            if reply[:1] != b"*":
                raise _Away("a node did not answer")
            cursor, found = resp.decode(reply)
            for name in {plans.beside_which(bytes(name)) for name in found}:
                count += await self._take(cluster, keyspace, name)
            if cursor == b"0":
                return count
            await asyncio.sleep(PAUSE)

    async def _take(self, cluster: int, keyspace: Keyspace, name: bytes) -> bool:
        ruleset = self._router.ruleset
        plain = client_name(ruleset, name)
        # A pattern may match keys of others.
        if plain is None or (index := ruleset.find_keyspace(plain)) < 0:
            return False
        if ruleset.keyspaces[index].name != keyspace.name:
            return False
        for key in beside(name):
            reply = await self._errands.ask(INVALIDATE, cluster, [key])
            if reply[:1] != b":":
                raise _Away("a node did not answer")
        return True


def glob_of(keyspace: Keyspace) -> bytes:
    """Return the pattern of MATCH for a keyspace's keys as nodes name them."""
    parts = []
    for index, part in enumerate(keyspace.pattern):
        if isinstance(part, Segment):
            parts.append(b"{*}" if keyspace.hash_tag == index else b"*")
        else:
            parts.append(_literal(part))
    if isinstance(keyspace.hash_tag, bytes):
        parts.insert(0, b"{%b}" % _literal(keyspace.hash_tag))
    return b"".join(parts)


def _literal(text: bytes) -> bytes:
    return b"".join(b"\\" + text[i : i + 1] if text[i] in b"*?[]\\^-" else text[i : i + 1]
                    for i in range(len(text)))  # fmt: skip
