"""Every metric by name, and the page that a scrape reads.

The application makes one `Metrics`, gives its parts to the rooms that count, and hands `render` to
`admin`. What is counted per command lives as plain integers in `wire` and is rendered from label
texts prepared when rules load; the rest, which moves by the second or is small, goes through
prometheus-client.

Always true:
  * a label value comes from a closed set: configuration, topology, or a tuple in this module;
    anything else counts as `other`, so no client and no node can add a series;
  * a count never goes down while its keyspace and its node exist, reloads included;
  * `render` works in pieces of less than a millisecond, and its caller rests between two.
"""

import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import log
from proxy.counts import AMENDED, BREACHES, REQUESTS, Counts, Limits, quoted
from proxy.tallies import (
    OTHER,
    BehindMetrics,
    DriftMetrics,
    InvalidationMetrics,
    LockMetrics,
    OriginMetrics,
    PinMetrics,
    RateMetrics,
    ReadMetrics,
    RestoreMetrics,
    StateMetrics,
    Tally,
)
from proxy.wire import LATENCY_BOUNDS, OUTCOMES, Latencies, Ruleset
from proxy.wire.rules import RULES

# The text format that every Prometheus since 0.4 reads.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Why a client was turned away at once, and why a connection ended.
REFUSALS: Final = ("clients", "draining")
CLOSINGS: Final = (
    "client", "quit", "idle", "unauthenticated", "protocol", "output", "input", "killed", "drain",
    "failed", "gap", "rights",
)  # fmt: skip

# Why a command had to be sent again or given up: the kinds of `wire.Orphan`.
REDIRECTS: Final = (
    "moved", "ask", "tryagain", "unavailable", "readonly", "lost", "overdue", "oversized",
)  # fmt: skip

NODE_STATES: Final = ("connecting", "up", "down")
NODE_ERRORS: Final = ("name", "refused", "timeout", "reset", "protocol", "authentication", "tls")

# With which commands clients subscribe.
SUBSCRIBING: Final = ("subscribe", "psubscribe", "ssubscribe")

REFRESHES: Final = ("changed", "unchanged", "failed")
RELOADS: Final = ("changed", "unchanged", "failed")
ACCESS_LINES: Final = ("written", "dropped")

# A cluster of Redis has at most a few dozen nodes in practice; a topology that names more shares
# the label `other` beyond this.
MAX_NODES: Final = 128

# Lines of the hot counters per piece: some 250 µs of one core.
PIECE_LINES: Final = 1000

# Part of a request's time as `wire` names it: metric, help.
_PARTS: Final = {
    "queue": (
        "sidecache_request_queue_seconds",
        "Time of a request from its arrival to its write to a node.",
    ),
    "upstream": (
        "sidecache_request_upstream_seconds",
        "Time of a request from its write to a node to the node's reply.",
    ),
    "total": (
        "sidecache_request_seconds",
        "Time of a request from its arrival to the node's reply.",
    ),
}

# Creation times double the number of series of every counter and answer nobody's question.
disable_created_metrics()  # type: ignore[no-untyped-call]


def _nothing() -> int:
    return 0


class NodeMetrics:
    """What one node's connections report: the upstream room counts, a scrape reads."""

    def __init__(self) -> None:
        # Two functions that a scrape asks, in its own thread, so they may only read.
        self.connections: Callable[[], int] = _nothing
        self.in_flight: Callable[[], int] = _nothing
        self.state = NODE_STATES[0]  # one of NODE_STATES
        self.redirects = dict.fromkeys((*REDIRECTS, OTHER), 0)
        self.errors = dict.fromkeys((*NODE_ERRORS, OTHER), 0)

    def redirect(self, reason: str) -> None:
        self.redirects[reason if reason in self.redirects else OTHER] += 1

    def error(self, reason: str) -> None:
        self.errors[reason if reason in self.errors else OTHER] += 1


class _Nodes(Collector):
    """The per-node metrics, read from the nodes that the topology knows at this moment."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], NodeMetrics] = {}

    def collect(self) -> Iterator[Metric]:
        nodes = list(self.known.items())
        connections = GaugeMetricFamily(
            "sidecache_node_connections",
            "Open connections to a node.",
            labels=["cluster", "node"],
        )
        in_flight = GaugeMetricFamily(
            "sidecache_node_in_flight",
            "Commands sent to a node or queued for it, not answered yet.",
            labels=["cluster", "node"],
        )
        for key, node in nodes:
            connections.add_metric(key, node.connections())
            in_flight.add_metric(key, node.in_flight())
        yield connections
        yield in_flight
        state = GaugeMetricFamily(
            "sidecache_node_state",
            "1 for the state a node is in.",
            labels=["cluster", "node", "state"],
        )
        for key, node in nodes:
            for name in NODE_STATES:
                state.add_metric((*key, name), node.state == name)
        yield state
        yield self._counts(
            "sidecache_node_redirects",
            "Commands that a node did not answer itself, by what became of them.",
            {key: node.redirects for key, node in nodes},
        )
        yield self._counts(
            "sidecache_node_errors",
            "Connections to a node that failed or were given up, by reason.",
            {key: node.errors for key, node in nodes},
        )

    def _counts(
        self, name: str, text: str, counts: Mapping[tuple[str, str], Mapping[str, int]]
    ) -> Metric:
        # What never happened is left out: twelve nodes would add 168 zeros to every scrape.
        family = CounterMetricFamily(name, text, labels=["cluster", "node", "reason"])
        for key, reasons in counts.items():
            for reason, count in reasons.items():
                if count:
                    family.add_metric((*key, reason), count)
        return family


class _LogLines(Collector):
    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "sidecache_log_lines_dropped",
            "Log lines that were not written because there were too many or nobody read them.",
            value=log.dropped(),
        )


class _One(Collector):
    """A registry of one family, so that the library renders one at a time."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class _Histograms:
    """The latency histograms, all series from the start because clusters do not change."""

    def __init__(self, clusters: Sequence[str], latencies: Latencies) -> None:
        self._latencies = latencies
        bounds = [*(repr(bound) for bound in LATENCY_BOUNDS), "+Inf"]
        self._texts = {
            (index, part): (
                [f"{name}_bucket{{cluster={quoted(cluster)},le={quoted(b)}}} " for b in bounds],
                f"{name}_sum{{cluster={quoted(cluster)}}} ",
                f"{name}_count{{cluster={quoted(cluster)}}} ",
            )
            for index, cluster in enumerate(clusters)
            for part, (name, _) in _PARTS.items()
        }

    def render(self) -> str:
        by_part: dict[str, list[str]] = {
            part: [_header(name, text, "histogram")] for part, (name, text) in _PARTS.items()
        }
        for cluster, part, counts, seconds in self._latencies.latencies():
            buckets, sum_text, count_text = self._texts[cluster, part]
            lines = by_part[part]
            below = 0
            for text, count in zip(buckets, counts, strict=True):
                below += count
                lines.append(f"{text}{below}\n")
            lines.append(f"{sum_text}{seconds!r}\n{count_text}{below}\n")
        return "".join(line for lines in by_part.values() for line in lines)


def _header(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


class PubSub:
    """What is counted of subscriptions and their messages."""

    def __init__(self, registry: CollectorRegistry, clusters: Sequence[str]) -> None:
        subscriptions = Gauge(
            "sidecache_subscriptions",
            "Channels and patterns that clients are subscribed to, each client's counted.",
            ["command"],
            registry=registry,
        )
        self.subscriptions = {word: subscriptions.labels(word) for word in SUBSCRIBING}
        self.delivered = Tally(
            registry,
            "sidecache_messages_delivered",
            "Messages of channels that were sent to a client.",
        )
        self.gaps = Tally(
            registry,
            "sidecache_subscription_gaps",
            "Channels and patterns that no node was listened to for, for a moment: what was "
            "published then is lost.",
            cluster=clusters,
        )


def access_lines(registry: CollectorRegistry) -> Tally:
    """Return the counter of the lines of the access log."""
    return Tally(
        registry,
        "sidecache_access_log_lines",
        "Commands that were sampled for the access log, by what became of their lines.",
        outcome=ACCESS_LINES,
    )


class Metrics:
    """All metrics of a proxy."""

    def __init__(
        self, version: str, clusters: Sequence[str], latencies: Latencies, ruleset: Ruleset
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._nodes = _Nodes()
        self.latencies = latencies
        self._histograms = _Histograms(clusters, latencies)
        self._counts = [Counts(kind, ruleset) for kind in (REQUESTS, BREACHES, AMENDED)]
        # A scrape reads in its own thread while a reload moves counts on the loop.
        self._lock = threading.Lock()

        tally, gauge = partial(Tally, registry), partial(Gauge, registry=registry)
        self.connections_received = tally(
            "sidecache_connections_received", "Connections accepted from clients."
        )
        self.connections_refused = tally(
            "sidecache_connections_refused",
            "Connections from clients that were closed at once, by reason.",
            reason=REFUSALS,
        )
        self.connections_closed = tally(
            "sidecache_connections_closed",
            "Connections from clients that ended, by reason.",
            reason=CLOSINGS,
        )
        self.clients = gauge("sidecache_clients", "Clients that are connected.")
        self.topology_refreshes = tally(
            "sidecache_topology_refreshes",
            "Times that the topology of a cluster was read, by outcome.",
            cluster=clusters,
            outcome=REFRESHES,
        )
        self.pins = PinMetrics(registry)
        self.pubsub = PubSub(registry, clusters)
        self.rates = RateMetrics(registry, clusters)
        self.behind = BehindMetrics(registry)
        self.origin = OriginMetrics(registry)
        self.states = StateMetrics(registry, clusters)
        self.reads = ReadMetrics(registry)
        self.locks = LockMetrics(registry)
        self.invalidation = InvalidationMetrics(registry, clusters)
        self.restore = RestoreMetrics(registry, clusters)
        self.drift = DriftMetrics(registry)
        self._limits = Limits(ruleset)
        registry.register(self._limits)
        self._make_reloads(registry)
        self.draining = gauge(
            "sidecache_draining", "1 while the proxy finishes and takes no clients."
        )
        self.loop_lag = gauge(
            "sidecache_loop_lag_seconds", "How late the event loop last came to its heartbeat."
        )
        build = gauge("sidecache_build_info", "What is running.", ["version", "python"])
        build.labels(version, platform.python_version()).set(1)
        registry.register(self._nodes)
        registry.register(_LogLines())
        ProcessCollector(registry=registry)

    def _make_reloads(self, registry: CollectorRegistry) -> None:
        self.reloads = Tally(
            registry,
            "sidecache_reloads",
            "Times that the rules were read again, by outcome.",
            outcome=RELOADS,
        )
        self.access_lines = access_lines(registry)
        self.reloaded = Gauge(
            "sidecache_last_reload_success_timestamp_seconds",
            "When rules were last loaded without a mistake.",
            registry=registry,
        )
        self.reload_failed = Gauge(
            "sidecache_reload_failed",
            "1 while the files read last are not in force and former rules are.",
            registry=registry,
        )

    def adopt(self, ruleset: Ruleset) -> None:
        """Count by a new ruleset from here on; what was counted stays, by name.

        Called on the loop, in the same step as the router takes the ruleset.
        """
        adopted = [Counts(counts.kind, ruleset) for counts in self._counts]
        places = self._counts[0].places_in(adopted[0])
        with self._lock:
            for before, after in zip(self._counts, adopted, strict=True):
                before.go_on_as(after, places)
            self._counts = adopted
            self._limits.ruleset = ruleset

    def node(self, cluster: str, address: str) -> NodeMetrics:
        """Return what a node's connections report to: the same one for the same node."""
        key = (cluster, address)
        if key not in self._nodes.known and len(self._nodes.known) >= MAX_NODES:
            key = (cluster, OTHER)
        return self._nodes.known.setdefault(key, NodeMetrics())

    def keep_nodes(self, cluster: str, addresses: Iterable[str]) -> None:
        """Drop the series of every node of a cluster but these."""
        wanted = {*addresses, OTHER}
        self._nodes.known = {
            key: node
            for key, node in self._nodes.known.items()
            if key[0] != cluster or key[1] in wanted
        }

    def render(self) -> Iterator[bytes]:
        """Yield the page in pieces."""
        yield from self._render_counts()
        yield self._histograms.render().encode()
        for family in self._registry.collect():
            yield generate_latest(_One(family))

    def _render_counts(self) -> Iterator[bytes]:
        with self._lock:
            pages = [(counts, counts.counters.requests()) for counts in self._counts]
        for counts, rows in pages:
            yield _header(counts.kind.name, counts.kind.text, "counter").encode()
            for start in range(0, len(rows), PIECE_LINES):
                yield counts.render(rows[start : start + PIECE_LINES]).encode()


def series(ruleset: Ruleset, clusters: Sequence[str]) -> tuple[int, int]:
    """Return how many series the page has at most with these rules, and more for each node."""
    metrics = Metrics("", clusters, Latencies(len(clusters)), ruleset)
    requests = (len(ruleset.keyspaces) + 1) * len(ruleset.families) * len(OUTCOMES)
    breaches = len(ruleset.keyspaces) * len(RULES) * 2
    amended = len(ruleset.keyspaces) * 3  # what is rewritten cannot fail
    histograms = len(clusters) * len(_PARTS) * (len(LATENCY_BOUNDS) + 3)
    per_node = 2 + len(NODE_STATES) + len(REDIRECTS) + 1 + len(NODE_ERRORS) + 1
    rest = sum(len(family.samples) for family in metrics._registry.collect())
    return requests + breaches + amended + histograms + rest, per_node
