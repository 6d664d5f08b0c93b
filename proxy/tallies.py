"""Counters whose label values are closed sets, and the groups of them that a room counts with.

`metrics` makes them all and renders them; a room is handed what it counts. Always true: a label
value that is in no set counts as `other`, so nothing that a client or a node says adds a series.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

OTHER: Final = "other"

# What clients have a connection of their own for, and what became of elements that were taken from
# a collection for a client that had gone.
PIN_USES: Final = ("blocked", "watching")
UNDELIVERED: Final = ("dropped", "pushed_back", "unknown")

# What write-behind is in, and what became of the rows that it has written.
BEHIND_STATES: Final = ("open", "late", "through", "misfit", "full", "failed")
BEHIND_ROWS: Final = ("written", "dead")

# What became of a question to Redis about a shared rate limit.
RATE_ANSWERS: Final = ("granted", "none", "failed")

# What PostgreSQL is asked for, by the last word of a statement's name, and what became of it.
STATEMENTS: Final = (
    "read", "write", "restore", "take", "grab", "release", "confirm", "queue", "sweep", "held",
    "shown", "mine",
)  # fmt: skip
STATEMENT_OUTCOMES: Final = ("answered", "busy", "down", "refused")


# Where an answer came from that a look at Redis did not give, and why Redis was not given a value.
SOURCES: Final = ("redis", "none", "origin", "gutter", "stale", "error")
UNFILLED: Final = ("held", "away", "lease")

# What became of an operation on a lock: what the database says, `gate` where Redis alone refused,
# `vanished` where the client that was granted it had gone.
LOCK_OUTCOMES: Final = (
    "acquired", "extended", "held", "gate", "queue", "limit", "missing", "lost", "released",
    "not_held", "confirmed", "expired", "vanished",
)  # fmt: skip

# In which state a shard can be, from the best to the worst.
SHARD_STATES: Final = (
    "NORMAL", "SLOW", "RECOVERING", "PG_DOWN", "REDIS_DOWN", "BOTH_DOWN", "DRAINING",
)  # fmt: skip


class Tally(Collector):
    """A counter whose label values are closed sets; every combination shows from the start.

    Any thread may count: a line of a log is lost in the one that writes it.
    """

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, **labels: Sequence[str]
    ) -> None:
        self._made = partial(CounterMetricFamily, name, text, labels=list(labels))
        self._sets = [frozenset(values) for values in labels.values()]
        self._counts = dict.fromkeys(product(*labels.values()), 0)
        self._lock = threading.Lock()
        registry.register(self)

    def count(self, *values: str, amount: int = 1) -> None:
        if values not in self._counts:
            known = zip(values, self._sets, strict=True)
            values = tuple(v if v in s else OTHER for v, s in known)
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + amount

    def describe(self) -> Iterable[Metric]:
        # By this a registry knows the name, and refuses it to a second one.
        return [self._made()]

    def collect(self) -> Iterable[Metric]:
        family = self._made()
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        return [family]


class PinMetrics:
    """Connections that clients have for themselves, and what was lost with them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tally = partial(Tally, registry)
        self.used = Gauge(
            "sidecache_pins",
            "Connections to nodes that single clients have for themselves, by use.",
            ["use"],
            registry=registry,
        )
        for use in PIN_USES:
            self.used.labels(use)
        self.refused = tally(
            "sidecache_pins_refused",
            "Commands that were refused because too many clients had a connection of their own.",
            use=PIN_USES,
        )
        self.watches_lost = tally(
            "sidecache_watches_lost",
            "Times that what a client watched was given up: its connection ended or idled.",
        )
        self.undelivered = tally(
            "sidecache_undelivered_elements",
            "Elements taken from a collection for a blocked client that had gone, by what became "
            "of them; unknown where the node was lost as well.",
            outcome=UNDELIVERED,
        )


class RateMetrics:
    """How shared rate limits get their cells."""

    def __init__(self, registry: CollectorRegistry, clusters: Sequence[str]) -> None:
        self.answers = Tally(
            registry,
            "sidecache_rate_reservations",
            "Times that Redis was asked for cells of a shared rate limit, by outcome.",
            outcome=RATE_ANSWERS,
        )
        self.away = Gauge(
            "sidecache_rate_limits_alone",
            "1 while shared rate limits of a cluster are decided without Redis.",
            ["cluster"],
            registry=registry,
        )
        for cluster in clusters:
            self.away.labels(cluster).set(0)


class BehindMetrics:
    """Writes that PostgreSQL is told later."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, registry=registry)
        self.journal = gauge("sidecache_journal_bytes", "Size of the journal's segments.")
        self.waiting = gauge("sidecache_write_behind_rows", "Rows that wait to be flushed.")
        self.age = gauge(
            "sidecache_write_behind_age_seconds", "Age of the oldest write that waits."
        )
        self.flushed = Tally(
            registry,
            "sidecache_write_behind_flushed_rows",
            "Rows that were taken off the journal, by what became of them.",
            outcome=BEHIND_ROWS,
        )
        self.state = gauge(
            "sidecache_write_behind_state",
            "1 for the state that write-behind is in.",
            ["state"],
        )
        for state in BEHIND_STATES:
            self.state.labels(state).set(0)

    def enter(self, state: str) -> None:
        """Show a state, one of BEHIND_STATES, and no other."""
        for each in BEHIND_STATES:
            self.state.labels(each).set(each == state)


class RestoreMetrics:
    """What shards have lost, and what is brought back."""

    def __init__(self, registry: CollectorRegistry, clusters: Sequence[str]) -> None:
        tally = partial(Tally, registry)
        self.lost = tally(
            "sidecache_shards_lost_data",
            "Times that a shard was found without its data, by whoever leads.",
            cluster=clusters,
        )
        self.keys = tally(
            "sidecache_restored_keys",
            "Keys that were lost and brought back from PostgreSQL.",
            cluster=clusters,
        )
        self.running = Gauge(
            "sidecache_restore_running",
            "1 while this sidecar brings back what shards have lost.",
            ["cluster"],
            registry=registry,
        )
        for cluster in clusters:
            self.running.labels(cluster).set(0)


class DriftMetrics(Collector):
    """Keys that were compared with their rows, by the names of keyspaces of the rules."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts: dict[str, dict[tuple[str, ...], int]] = {
            "samples": {}, "": {}, "repairs": {}
        }  # fmt: skip
        self._stopped: dict[str, bool] = {}
        registry.register(self)

    def sampled(self, keyspace: str) -> None:
        self._count("samples", keyspace)

    def found(self, keyspace: str, kind: str) -> None:
        self._count("", keyspace, kind)

    def repaired(self, keyspace: str) -> None:
        self._count("repairs", keyspace)

    def stopped(self, keyspace: str, stopped: bool) -> None:
        self._stopped[keyspace] = stopped

    def _count(self, what: str, *labels: str) -> None:
        cells = self._counts[what]
        cells[labels] = cells.get(labels, 0) + 1

    def collect(self) -> Iterable[Metric]:
        texts = {
            "samples": "Keys that were compared with their rows.",
            "": "Keys that were found to differ from their rows, and still did two seconds later.",
            "repairs": "Keys that were taken away because they differed.",
        }
        for what, text in texts.items():
            labels = ["keyspace"] if what else ["keyspace", "kind"]
            name = f"sidecache_drift_{what}" if what else "sidecache_drift"
            family = CounterMetricFamily(name, text, labels=labels)
            for place, count in list(self._counts[what].items()):
                family.add_metric(place, count)
            yield family
        gauge = GaugeMetricFamily(
            "sidecache_drift_repairs_stopped",
            "1 while too many keys of a keyspace differ for repairs to be the answer.",
            labels=["keyspace"],
        )
        for keyspace, stopped in list(self._stopped.items()):
            gauge.add_metric([keyspace], stopped)
        yield gauge


class StateMetrics:
    """In which state clusters and their shards are."""

    def __init__(self, registry: CollectorRegistry, clusters: Sequence[str]) -> None:
        gauge = partial(Gauge, labelnames=["cluster", "state"], registry=registry)
        self._state = gauge(
            "sidecache_state", "1 for the state a cluster is in: the worst of its shards'."
        )
        self._shards = gauge("sidecache_shards", "Shards of a cluster by the state they are in.")
        for cluster in clusters:
            self.show(cluster, "", {})

    def show(self, cluster: str, state: str, shards: Mapping[str, int]) -> None:
        """Show a state, one of SHARD_STATES, and no other."""
        for each in SHARD_STATES:
            self._state.labels(cluster, each).set(each == state)
            self._shards.labels(cluster, each).set(shards.get(each, 0))


class OriginMetrics:
    """What is asked of PostgreSQL, and whether it is there."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.statements = Tally(
            registry,
            "sidecache_origin_statements",
            "Statements for PostgreSQL by what they are for and by outcome: busy found no room or "
            "was given up, down found no server or lost it.",
            command=STATEMENTS,
            outcome=STATEMENT_OUTCOMES,
        )
        self.seconds = Histogram(
            "sidecache_origin_seconds",
            "Time of a statement at PostgreSQL, without its wait for a turn.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
            registry=registry,
        )
        gauge = partial(Gauge, registry=registry)
        self.used = gauge("sidecache_origin_used", "Statements at PostgreSQL at this moment.")
        self.waiting = gauge("sidecache_origin_waiting", "Statements that wait for their turn.")
        self.up = gauge(
            "sidecache_origin_up", "1 while a PostgreSQL server can be reached.", ["node"]
        )


class ReadMetrics(Collector):
    """Where answers about keys come from that PostgreSQL stands behind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers: dict[tuple[str, str], int] = {}
        self.lost = Tally(
            registry,
            "sidecache_origin_unfilled",
            "Values that Redis was not given: another sidecar held the lease for too long (held), "
            "no node answered (away), or the key was changed meanwhile (lease).",
            reason=UNFILLED,
        )
        gauge = partial(Gauge, registry=registry)
        self._flights = gauge("sidecache_origin_flights", "Keys that are fetched at this moment.")
        self._gutter = gauge(
            "sidecache_origin_gutter_bytes", "Copies inside this sidecar for while Redis is away."
        )
        self._owed = gauge(
            "sidecache_origin_owed", "Keys that go from Redis as soon as their nodes are back."
        )
        registry.register(self)

    def watch(
        self, flights: Callable[[], int], gutter: Callable[[], int], owed: Callable[[], int]
    ) -> None:
        self._flights.set_function(flights)
        self._gutter.set_function(gutter)
        self._owed.set_function(owed)

    def answer(self, keyspace: str, source: str) -> None:
        """Count an answer by a keyspace of the rules and one of SOURCES."""
        place = (keyspace, source)
        self._answers[place] = self._answers.get(place, 0) + 1

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "sidecache_origin_answers",
            "Answers about keys that Redis lacked, had too old or could not be asked for, by where "
            "they came from.",
            labels=["keyspace", "source"],
        )
        for place, count in list(self._answers.items()):
            family.add_metric(place, count)
        yield family


class LockMetrics(Collector):
    """Locks about which PostgreSQL decides."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = dict.fromkeys((*LOCK_OUTCOMES, OTHER), 0)
        self._refused: Callable[[], int] = lambda: 0
        registry.register(self)

    def watch(self, refused: Callable[[], int]) -> None:
        """Take what counts the refusals of the data plane."""
        self._refused = refused

    def count(self, outcome: str, amount: int = 1) -> None:
        """Count operations by one of LOCK_OUTCOMES; the state of a row is `other`."""
        self._counts[outcome if outcome in self._counts else OTHER] += amount

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "sidecache_locks",
            "Operations on locks by what became of them; gate was refused by Redis alone, expired "
            "are those that a sweep gave back.",
            labels=["outcome"],
        )
        for outcome, count in self._counts.items():
            family.add_metric([outcome], count + (self._refused() if outcome == "gate" else 0))
        yield family


class InvalidationMetrics:
    """What changes in PostgreSQL, on its way to Redis."""

    def __init__(self, registry: CollectorRegistry, clusters: Sequence[str]) -> None:
        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(name, text, ["cluster"], registry=registry)
            for cluster in clusters:
                made.labels(cluster).set(0)
            return made

        def tally(name: str, text: str) -> Tally:
            return Tally(registry, name, text, cluster=clusters)

        self.leader = gauge(
            "sidecache_invalidation_leader", "1 while this sidecar invalidates for all."
        )
        self._lag = gauge(
            "sidecache_invalidation_lag_seconds",
            "How long ago all changes were applied; 0 where another sidecar leads.",
        )
        self.owed = gauge("sidecache_invalidation_owed", "Keys whose shard has not answered yet.")
        self.unwatched = gauge(
            "sidecache_invalidation_tables_unwatched",
            "Tables that policies depend on and that have no triggers.",
        )
        self.changes = tally(
            "sidecache_invalidation_changes", "Changes that were read from the outbox."
        )
        self.patched = tally(
            "sidecache_invalidation_patched", "Hashes that were kept in step field by field."
        )
        self.published = tally(
            "sidecache_changes_published", "Messages about changed rows that a node has taken."
        )
        self.unpublished = tally(
            "sidecache_changes_unpublished",
            "Messages about changed rows that no node has taken, or that were too many.",
        )
        self.replays = tally(
            "sidecache_invalidation_replays",
            "Times that changes were read again because a shard did not have them.",
        )

    def lag(self, cluster: str, seconds: Callable[[], float]) -> None:
        """Let a scrape ask for the lag, in its own thread."""
        self._lag.labels(cluster).set_function(seconds)
