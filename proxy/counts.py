"""Tables of counters of a ruleset as lines of the metrics page.

These have a series for each keyspace, so they are rendered from texts that are prepared once for
each set of rules: by the first scrape in its thread, as a reload would hold up the event loop with
them. `metrics` owns them and puts the page together.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.wire import AMENDMENTS, LIMIT_OUTCOMES, OUTCOMES, Counters, Rate, Ruleset
from proxy.wire.rules import RULES


def quoted(value: str) -> str:
    """Return a label value in its quotes."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


class Kind(NamedTuple):
    """A table of counters of a ruleset, and the metric that it is shown as."""

    name: str
    text: str
    label: str  # of what is counted beside keyspace and outcome
    outcomes: Sequence[str]
    source: Callable[[Ruleset], tuple[Counters, Sequence[str]]]


REQUESTS = Kind(
    "sidecache_requests_total",
    "Requests from clients by keyspace, command family and outcome.",
    "command",
    OUTCOMES,
    lambda ruleset: (ruleset.counters, ruleset.families),
)
# What a rule on trial lets through would have been refused.
BREACHES = Kind(
    "sidecache_policy_breaches_total",
    "Commands that broke a rule of a keyspace: refused, or let through by a rule on trial.",
    "reason",
    ("observed", "error", "refused", "abandoned"),
    lambda ruleset: (ruleset.breaches, RULES),
)
AMENDED = Kind(
    "sidecache_policy_amended_total",
    "Commands that rules have changed: rewritten, or followed by one of ours, of which some fail.",
    "how",
    OUTCOMES,
    lambda ruleset: (ruleset.amended, AMENDMENTS),
)


class Counts:
    """A table of counters of a ruleset with the label texts of its lines."""

    def __init__(self, kind: Kind, ruleset: Ruleset) -> None:
        self.kind = kind
        self.counters, names = kind.source(ruleset)
        self.keyspaces = [keyspace.name for keyspace in ruleset.keyspaces]
        self.families = list(names)

    @cached_property
    def _heads(self) -> list[str]:
        # Index -1, a key of no keyspace or no key at all, is the last element of the list.
        return [
            f"{self.kind.name}{{keyspace={quoted(name)},{self.kind.label}="
            for name in (*self.keyspaces, "none")
        ]

    @cached_property
    def _tails(self) -> list[list[str]]:
        return [
            [f"{quoted(family)},outcome={quoted(outcome)}}} " for outcome in self.kind.outcomes]
            for family in self.families
        ]

    def render(self, rows: Iterable[tuple[int, int, int, int]]) -> str:
        heads, tails = self._heads, self._tails
        return "".join(
            f"{heads[keyspace]}{tails[family][outcome]}{count}\n"
            for keyspace, family, outcome, count in rows
        )

    def places_in(self, after: "Counts") -> list[int]:
        """Return where each keyspace is in a table of other rules: -1 where it is gone."""
        places = {name: index for index, name in enumerate(after.keyspaces)}
        return [places.get(name, -1) for name in self.keyspaces]

    def go_on_as(self, after: "Counts", places: Sequence[int]) -> None:
        """Let a table of new rules have all counts, those that come late included.

        places are those of `places_in`. A keyspace that is gone takes its series with it, as
        Prometheus expects.
        """
        self.counters.follow(after.counters, places)


class Limits(Collector):
    """Rate limits: what became of the commands that count in each, and how full its table is."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset

    def collect(self) -> Iterator[Metric]:
        named = list(self._named())
        outcomes = CounterMetricFamily(
            "sidecache_rate_limited",
            "Commands that counted in a rate limit, by outcome; alone is without Redis.",
            labels=["keyspace", "reason", "outcome"],
        )
        overflows = CounterMetricFamily(
            "sidecache_rate_table_overflows",
            "Times that an id had to share a cell with others, because its places were taken.",
            labels=["keyspace", "reason"],
        )
        fill = GaugeMetricFamily(
            "sidecache_rate_table_fill",
            "Part of the cells of a rate limit's table that are in use, of a sample.",
            labels=["keyspace", "reason"],
        )
        now = time.monotonic()
        for labels, rate in named:
            for outcome, count in zip(LIMIT_OUTCOMES, rate.statistics(), strict=True):
                outcomes.add_metric((*labels, outcome), count)
            overflows.add_metric(labels, rate.table.overflows)
            fill.add_metric(labels, rate.table.fill(now))
        yield outcomes
        yield overflows
        yield fill

    def _named(self) -> Iterator[tuple[tuple[str, str], Rate]]:
        """Yield each limit with its labels: the keyspace, and what tells it from the others."""
        seen = Counter[str]()
        for rate in self.ruleset.rates:
            kind, _, name = rate.row.owner.partition(" ")
            number = seen[rate.row.owner]
            seen[rate.row.owner] += 1
            text = f"{number}: {rate.row.label}"
            yield ((name, text) if kind == "keyspace" else ("none", f"role {name} {text}")), rate
