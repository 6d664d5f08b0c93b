"""In which state each cluster and each of its shards is, as one value made of what is known.

The application makes one `States`. The admin port and INFO ask `said`; changes are told in the log
and in the metrics. A shard is a primary with its slots; slots without one are a shard too, one that
is down.

Always true: a state is worked out when it is asked for and kept nowhere, so it cannot outlive its
reasons; one shard's state says nothing of another's; a cluster's is the worst of its shards.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from proxy import log
from proxy.plans import Plans
from proxy.tallies import SHARD_STATES, StateMetrics
from proxy.upstream.pool import ClusterPool, Node, Pools

# From the best to the worst:
#   NORMAL      its breaker is closed, everything goes to the node
#   SLOW        so it does, and one in twenty replies is late
#   RECOVERING  the node serves, and its share grows, or what it holds is not what it should be
#   PG_DOWN     PostgreSQL is away, the node is there
#   REDIS_DOWN  its breaker is open, or its slots have no primary; PostgreSQL is there
#   BOTH_DOWN   neither is
#   DRAINING    this process is about to end
NORMAL, SLOW, RECOVERING, PG_DOWN, REDIS_DOWN, BOTH_DOWN, DRAINING = SHARD_STATES

# How often it is looked whether shards are slow or have lost what they held, in seconds.
PERIOD = 1.0

# Nodes that die together are told of together, so many seconds later; well below the second within
# which a metric has to show it.
SETTLE = 0.02

# A shard is slow when so many periods in a row had enough replies and one in LATE_SHARE was late;
# it ceases to be after as many without.
PERIODS = 3
FEWEST_REPLIES = 20
LATE_SHARE = 20


class Origin(Protocol):
    """PostgreSQL, as far as it matters here."""

    @property
    def up(self) -> bool: ...
    def watch(self, changed: Callable[[bool], None]) -> None: ...


class Speed:
    """Whether one node has been slow for some periods."""

    def __init__(self) -> None:
        self.slow = False
        self._periods = 0  # in a row that say otherwise
        self._answered = 0
        self._late = 0

    def look(self, answered: int, late: int) -> None:
        """Take what the node has ever answered, and how much of it late."""
        replies, lates = answered - self._answered, late - self._late
        self._answered, self._late = answered, late
        slow = replies >= FEWEST_REPLIES and lates * LATE_SHARE > replies
        self._periods = 0 if slow == self.slow else self._periods + 1
        if self._periods == PERIODS:
            self.slow, self._periods = slow, 0


class States:
    """Those of all clusters."""

    def __init__(
        self,
        pools: Pools,
        plans: Callable[[], Plans],
        origin: Origin | None,
        lines: log.StateLog,
        metrics: StateMetrics,
    ) -> None:
        """origin is None where no database is configured; plans are those in force."""
        self._pools = pools
        self._plans = plans
        self._origin = origin
        self._lines = lines
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._speeds: dict[Node, Speed] = {}
        self._backed: tuple[Plans, frozenset[int]] = (Plans(), frozenset())
        self._soon: asyncio.TimerHandle | None = None
        pools.changed = self.look_soon
        if origin is not None:
            origin.watch(lambda up: self.look_soon())

    def counts(self, pool: ClusterPool) -> Counter[str]:
        """Return how many shards of a cluster are in which state."""
        return Counter(self._state(pool, node) for node in pool.shards)

    def said(self, pool: ClusterPool) -> str:
        """Return a cluster's state in a word: up, or the worst and how many shards are in it."""
        counts = self.counts(pool)
        state = worst(counts)
        return "up" if state == NORMAL else f"{state.lower()}({counts[state]}/{counts.total()})"

    def drain(self) -> None:
        self._draining = True
        self.look_soon()

    def look_soon(self) -> None:
        """Look again whether nodes are trusted, and tell what has changed."""
        if self._soon is None:
            self._soon = self._loop.call_later(SETTLE, self._look)

    async def watch(self) -> None:
        """Notice what nobody tells of."""
        try:
            while True:
                await asyncio.sleep(PERIOD)
                owners = [node for pool in self._pools.clusters for node in pool.primaries()]
                self._speeds = {node: self._speeds.get(node) or Speed() for node in owners}
                for node, speed in self._speeds.items():
                    speed.look(node.answered, node.late)
                self._look()
        finally:
            if self._soon is not None:
                self._soon.cancel()

    def _look(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        for pool in self._pools.clusters:
            for node in pool.primaries():
                node.breaker.look(node.answered)
            self._tell(pool)

    def _tell(self, pool: ClusterPool) -> None:
        name, counts = pool.config.name, self.counts(pool)
        state = worst(counts)
        self._metrics.show(name, state, counts)
        shards = ", ".join(f"{counts[each]} {each}" for each in SHARD_STATES if counts[each])
        level = log.INFO if state in (NORMAL, DRAINING) else log.WARNING
        self._lines.change(
            level, f"state {name}", shards, "state_changed", cluster=name, state=state,
            shards=shards,
        )  # fmt: skip

    def _state(self, pool: ClusterPool, node: Node | None) -> str:
        if self._draining:
            return DRAINING
        answers = self._origin is None or self._origin.up or not self._is_backed(pool.index)
        if node is None or not node.breaker.closed:
            return REDIS_DOWN if answers else BOTH_DOWN
        if not answers:
            return PG_DOWN
        if not node.breaker.whole:
            return RECOVERING
        speed = self._speeds.get(node)
        return SLOW if speed is not None and speed.slow else NORMAL

    def _is_backed(self, cluster: int) -> bool:
        """Whether PostgreSQL stands behind anything in a cluster."""
        plans = self._plans()
        if self._backed[0] is not plans:
            clusters = (plan.cluster for plan in plans.by_keyspace.values())
            self._backed = plans, frozenset(clusters)
        return cluster in self._backed[1]


def worst(counts: Counter[str]) -> str:
    return max(counts, key=SHARD_STATES.index)
