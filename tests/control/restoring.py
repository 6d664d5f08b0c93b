"""A sidecar's appliers together with what restores, between a real database and a real cluster."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from proxy import wire
from proxy.config import Database
from proxy.control.invalidation import Lost, Untrusted
from proxy.control.positions import keys_of, tag_of
from proxy.control.refill import Surroundings
from proxy.control.restore import Progress, Restoration, Restore
from proxy.embedded.node import Node
from proxy.embedded.redis import Cluster
from proxy.origin.postgres import Postgres
from proxy.secret import Secret
from proxy.settings import Pace
from tests.control.bench import Bench, ask
from tests.integration.rig import wait_for

POLICIES = """
keyspaces:
  event:
    key: event:{event_id}
    cluster: cache
    type: hash
    ttl: {default: 300s}
    origin: {read: "SELECT title, venue FROM event WHERE id = :event_id"}
    invalidate:
      - {table: event, key: {event_id: id}, also: {venue: {venue: venue}}}
    on_loss: restore
    restore: {sql: "SELECT id AS event_id, title, venue FROM event;", priority: 2, rate: 600/s}
  hold:
    key: hold:{event_id}
    cluster: cache
    type: string
    ttl: {default: 300s, max: 600s}
    on_loss: restore
    restore:
      sql: |
        SELECT id AS event_id, title AS value, venue AS ttl FROM event WHERE venue IS NOT NULL
        -- what is held
      priority: 1
  venue:
    key: venue:{venue:int}:events
    cluster: cache
    type: list
    ttl: {default: 300s}
    on_loss: restore
    restore:
      sql: "SELECT venue, array_agg(id ORDER BY id) AS value FROM event GROUP BY venue"
      priority: 3
  cart:
    key: cart:{user}
    cluster: cache
    ttl: {default: 300s}
    on_loss: lost
"""


class Restorer(Bench):
    """One sidecar's appliers, and its restorations."""

    def __init__(self, cluster: Cluster, ruleset: wire.Ruleset, url: str, pace: Pace) -> None:
        super().__init__(cluster, ruleset, url, pace)
        self.postgres = Postgres(Database(Secret(url), Secret(url)), self.metrics.origin)
        self.dirty: set[bytes] = set()
        plumbing = self.pools.plumbing
        self.restore = Restore(
            Surroundings(
                self.router, plumbing.batch, plumbing.states, self.metrics.restore, ("cache",),
                self.postgres, lambda plan, key: key in self.dirty,
            ),
            self.invalidation.appliers,
        )  # fmt: skip

    def report(self, report: Lost | Untrusted) -> None:
        super().report(report)
        if isinstance(report, Lost):
            self.restore.lost(report)

    @property
    def restoration(self) -> Restoration:
        return self.restore._of[0]

    @property
    def progress(self) -> dict[str, Progress]:
        return {each.keyspace: each for each in self.restoration.progress}

    async def start(self) -> None:
        await self.postgres.start()
        await super().start()
        self._tasks.append(asyncio.create_task(self.restore.watch()))

    async def stop(self) -> None:
        await super().stop()
        await self.postgres.stop()


@contextlib.asynccontextmanager
async def restorer(cluster: Cluster, ruleset: wire.Ruleset, url: str) -> AsyncIterator[Restorer]:
    bench = Restorer(cluster, ruleset, url, Pace(poll="20ms"))
    try:
        await bench.start()
        yield bench
    finally:
        await bench.stop()


async def marked(cluster: Cluster) -> int:
    """Return how many primaries have a mark."""
    counts = [len(await node.ask("KEYS", "sidecache:generation:*")) for node in cluster.primaries]
    return sum(map(bool, counts))


async def whole(cluster: Cluster) -> None:
    """Wait until every shard is marked."""

    async def all_marked() -> bool:
        return await marked(cluster) == len(cluster.primaries)

    await wait_for(all_marked, "every shard to be marked", patience=20)


async def names_on(node: Node, pattern: str) -> set[str]:
    return set(await node.ask("KEYS", pattern))


async def mark_of(cluster: Cluster, slot: int) -> Any:
    """Return the mark of the shard whose first slot it is."""
    name = keys_of(tag_of(slot))[1].decode()
    return await ask(cluster, name, "GET", name)
