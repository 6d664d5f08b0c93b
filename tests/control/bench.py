"""Appliers between a real database and a real cluster, as one sidecar has them, without clients."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from proxy import log, plans, wire
from proxy.config import Cluster as ClusterConfig
from proxy.config import NodeURL
from proxy.control.invalidation import (
    Applier,
    Invalidation,
    Lost,
    Surroundings,
    Untrusted,
)
from proxy.embedded.redis import Cluster
from proxy.metrics import Metrics
from proxy.policy import compiler
from proxy.settings import Pace
from proxy.upstream.connection import Flusher
from proxy.upstream.pool import Plumbing, Pools
from tests.integration.rig import wait_for

POLICIES = """
keyspaces:
  event:
    key: event:{event_id}
    cluster: cache
    ttl: {default: 300s}
    origin: {read: "SELECT title FROM event WHERE id = :event_id"}
    invalidate:
      - {table: event, key: {event_id: id}, also: {venue_events: {venue: venue}}}
  venue_events:
    key: venue:{venue:int}:events
    cluster: cache
    ttl: {default: 300s}
  seats:
    key: seats:{event_id}:all
    cluster: cache
    hash_tag: event_id
    ttl: {default: 300s}
    origin: {read: "SELECT count(*) FROM sales.seat WHERE event = :event_id"}
    invalidate:
      - {table: sales.seat, key: {event_id: event}}
"""

_numbers = itertools.count(1)


def rules(folder: Path, text: str = POLICIES) -> wire.Ruleset:
    file = folder / f"policies{next(_numbers)}.yaml"
    file.write_text(text, "utf-8")
    return compiler.from_files(file, ("cache",))[0]


class Bench:
    """One sidecar's appliers."""

    def __init__(self, cluster: Cluster, ruleset: wire.Ruleset, url: str, pace: Pace) -> None:
        loop = asyncio.get_running_loop()
        latencies = wire.Latencies(1)
        flusher = Flusher(loop)
        self.batch = flusher.batch
        nodes = tuple(NodeURL("127.0.0.1", n.port, None, None, False) for n in cluster.primaries)
        config = ClusterConfig("cache", "cluster", nodes, None, None, 1.0, 1)
        self.url = url
        self.router = wire.Router(ruleset, wire.SlotMap([], []))
        self.metrics = Metrics("0", ("cache",), latencies, ruleset)
        states = log.StateLog()
        plumbing = Plumbing(flusher.batch, latencies, self.metrics, states)
        self.pools = Pools([config], self.router, plumbing)
        self.pools.publish()
        self.busy = False  # cleaning keyspaces
        self.reports: list[Lost | Untrusted] = []
        self.pids: list[int] = []  # of the database's sessions, the latest last
        self.invalidation = Invalidation(
            Surroundings(
                self.router, flusher.batch, states, self.metrics.invalidation, ("cache",),
                self.connect, self.report, lambda cluster: self.busy, pace,
            )
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> "asyncpg.Connection[Any]":
        connection = await asyncpg.connect(self.url, timeout=5)
        self.pids.append(connection.get_server_pid())
        return connection

    def report(self, report: Lost | Untrusted) -> None:
        self.reports.append(report)

    @property
    def applier(self) -> Applier:
        return self.invalidation.appliers[0]

    @property
    def leads(self) -> bool:
        return self.invalidation.statistics()[0].leading

    async def start(self) -> None:
        (cluster,) = self.pools.clusters
        self._tasks.append(asyncio.create_task(cluster.refresher.run()))
        await wait_for(lambda: cluster.available, "the topology")
        self._tasks.append(asyncio.create_task(self.invalidation.watch()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pools.stop()
        for error in ended:
            if not isinstance(error, asyncio.CancelledError):
                raise AssertionError("a loop has ended") from error

    def page(self) -> str:
        return b"".join(self.metrics.render()).decode()


@contextlib.asynccontextmanager
async def sidecar(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, pace: Pace | None = None
) -> AsyncIterator[Bench]:
    bench = Bench(cluster, ruleset, url, pace or Pace(poll="20ms"))
    try:
        await bench.start()
        yield bench
    finally:
        await bench.stop()


@contextlib.asynccontextmanager
async def without_database(cluster: Cluster, folder: Path) -> AsyncIterator[Bench]:
    """Start a sidecar that never leads."""
    bench = Bench(cluster, rules(folder), "postgresql://nobody@127.0.0.1:1/x", Pace())
    await bench.start()
    yield bench
    await bench.stop()


async def ask(cluster: Cluster, key: str, *words: str | int) -> Any:
    """Send a command to the primary of a key's slot."""
    owner = await cluster.owner(wire.key_slot(key.encode()))
    return await owner.ask(*words)


async def fill(cluster: Cluster, *names: str) -> None:
    for name in names:
        await ask(cluster, name, "SET", name, "old")


async def gone(cluster: Cluster, *names: str) -> float:
    """Wait until keys, as nodes name them, are gone; return the seconds that took."""

    async def none() -> bool:
        return not any([await ask(cluster, name, "EXISTS", name) for name in names])

    return await wait_for(none, f"{names} to go")


async def held(cluster: Cluster, names: Sequence[str]) -> list[str]:
    """Return those keys that are there."""
    return [name for name in names if await ask(cluster, name, "EXISTS", name)]


async def positions(cluster: Cluster) -> list[str]:
    """Return the names of all positions, of every primary."""
    found: list[str] = []
    for node in cluster.primaries:
        found += await node.ask("KEYS", "sidecache:position:*")
    return found


def companions(name: str) -> list[str]:
    """Return a key with the lease and the marker that stand beside it."""
    beside = [plans.companion(prefix, name.encode()) for prefix in (plans.LEASE, plans.ABSENT)]
    return [name, *(key.decode() for key in beside if key is not None)]
