"""What changes of rows are told on channels, whoever made them.

Used by the applier that leads in front of the cluster of a channel, with each page of changes. A
message is a hint. Always true:
  * a changed row is one message, in the order of changes; the message has the row as it is when it
    is told, so several changes within one look are told once, by the last;
  * nobody waits for an answer, so no slow shard holds messages up. Without an answer at most
    UNANSWERED are under way, the rest is left out and counted; where a node refuses one, those
    behind it go to another;
  * after a leader or a shard was lost some are told twice or not at all. What is older than FRESH
    is told by nobody: after an outage subscribers read what is there instead.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg

from proxy import plans, wire
from proxy.control.work import Row, key_of, present
from proxy.origin.outbox import Change
from proxy.origin.render import rendered
from proxy.tallies import InvalidationMetrics
from proxy.upstream.errands import Errands

# How old a change may be that is still news, by the database's clock, in milliseconds.
FRESH = 30_000

# Messages that no node has answered yet.
UNANSWERED = 5_000


class Newsroom:
    """That of one cluster."""

    def __init__(
        self, router: wire.Router, errands: Errands, cluster: tuple[int, str],
        metrics: InvalidationMetrics,
    ) -> None:  # fmt: skip
        """Take the cluster by its index and its name."""
        self._router = router
        self._errands = errands
        self._cluster, self._name = cluster
        self._metrics = metrics
        self._unanswered = 0
        self._turn = 0  # which of the nodes is told

    def concerned(self) -> bool:
        """Return whether anything is told on channels of this cluster."""
        news = plans.plans_in(self._router.ruleset).news
        return any(each.cluster == self._cluster for rules in news.values() for each in rules)

    async def tell(
        self, connection: "asyncpg.Connection[Any]", changes: Sequence[Change], now: int
    ) -> int:
        """Publish what changes mean, now in milliseconds of the database; return how many."""
        by_table = plans.plans_in(self._router.ruleset).news
        # The outbox has two rows of a change that moves a row from one key to another.
        wanted: dict[tuple[plans.News, bytes, Row], None] = {}
        for change in changes:
            if change.everything or now - change.at > FRESH:
                continue
            for rule in by_table.get(change.table, ()):
                given = _given(rule, self._cluster, change)
                if given is not None:
                    wanted[rule, *given] = None
        messages = await _messages(connection, [*wanted])
        places = self._router.slots.places(self._cluster) if wanted else []
        for (_, channel, _), message in zip(wanted, messages, strict=True):
            if message is not None:
                self._publish(places, channel, message)
        return len(wanted)

    def _publish(self, places: Sequence[wire.Location], channel: bytes, message: bytes) -> None:
        if not places or self._unanswered >= UNANSWERED:
            self._metrics.unpublished.count(self._name)
            return
        self._unanswered += 1
        turn = self._turn

        def heard(reply: bytes) -> None:
            self._unanswered -= 1
            if reply[:1] == b":":
                self._metrics.published.count(self._name)
                return
            self._metrics.unpublished.count(self._name)
            # The first that fails moves on, those that were sent beside it do not.
            if turn == self._turn:
                self._turn += 1

        # All through one node: from there every other hears them in this order.
        self._errands.post(places[turn % len(places)], [b"PUBLISH", channel, message], heard)


def _given(rule: plans.News, cluster: int, change: Change) -> tuple[bytes, Row] | None:
    """Return the channel of a changed row and what the statement is given; None: it is no news."""
    if rule.cluster != cluster:
        return None
    key = change.key
    try:
        given = tuple([key[column] for column in rule.present.columns])
        channel = key_of(rule.pattern, [key[column] for column in rule.columns])
    except KeyError:
        return None
    return None if channel is None else (channel, given)


async def _messages(
    connection: "asyncpg.Connection[Any]", wanted: Sequence[tuple[plans.News, bytes, Row]]
) -> list[bytes | None]:
    """Return the message of each changed row, None of one that is gone."""
    asked: dict[plans.News, dict[Row, int]] = {}
    for rule, _, row in wanted:
        rows = asked.setdefault(rule, {})
        rows.setdefault(row, len(rows))
    found = {
        rule: await present(connection, rule.present, list(rows)) for rule, rows in asked.items()
    }
    messages: list[bytes | None] = []
    for rule, _, row in wanted:
        told = found[rule].get(asked[rule][row])
        message = told[0]["message"] if told else None
        messages.append(None if message is None else rendered(message))
    return messages
