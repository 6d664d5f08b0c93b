"""Everything that stands between clients and PostgreSQL, made, started and stopped as one.

Made by `app` where a database is configured. Clients are served while PostgreSQL is away. What the
appliers report is taken here: keyspaces that are not to be trusted are swept, shards that have lost
their data are restored.
"""

import asyncio
from collections.abc import Coroutine, Iterable

from proxy import log, wire
from proxy.config import Config, Database
from proxy.control.drift import Drift
from proxy.control.drift import Surroundings as DriftSurroundings
from proxy.control.expiry import Expiry
from proxy.control.expiry import Surroundings as ExpirySurroundings
from proxy.control.invalidation import (
    Invalidation,
    Lost,
    Statistics,
    Surroundings,
    Untrusted,
)
from proxy.control.moved import Moved
from proxy.control.refill import Surroundings as RestoreSurroundings
from proxy.control.restore import Restore
from proxy.control.returned import Returned
from proxy.control.sweeping import Sweeper
from proxy.handlers.grants import Grants
from proxy.handlers.leases import Leases
from proxy.handlers.reading import Reads
from proxy.handlers.targets import target_of
from proxy.origin.behind import WriteBehind
from proxy.origin.postgres import Postgres
from proxy.plans import Plan, plans_in
from proxy.upstream.errands import Errands
from proxy.upstream.mirror import Mirror
from proxy.upstream.pool import Plumbing

# Told to a server that looks who is there.
INVALIDATION = "sidecache invalidation"
JOURNAL = "sidecache journal"
LOCKS = "sidecache locks"

# Who closes connections to a server that has gone waits no longer.
STOP_SECONDS = 1.0


class Backing:
    """PostgreSQL, what is read from it and written to it, and the loops that keep Redis in step."""

    def __init__(
        self, config: Config, database: Database, router: wire.Router, plumbing: Plumbing
    ) -> None:
        clusters, metrics = tuple(config.clusters), plumbing.metrics
        self._database = database
        self._router = router
        self._states = plumbing.states
        self._leases = Leases(router, Errands(router, plumbing.batch), self._states)
        self.postgres = Postgres(database, metrics.origin)
        self.postgres.watch(self._turned)
        self.reads = Reads(self.postgres, self._leases, metrics.reads)
        mirror = Mirror(router, Errands(router, plumbing.batch))
        self.grants = Grants(self.postgres, mirror, metrics.locks)
        self.expiry = Expiry(
            ExpirySurroundings(
                router, mirror, metrics.locks, plumbing.states,
                lambda: self.postgres.connect(LOCKS), self.postgres.misfits,
            )
        )  # fmt: skip
        self.behind: WriteBehind | None = None
        self._moved: Moved | None = None
        if config.journal is not None:
            self.behind = WriteBehind(
                config.journal,
                lambda: self.postgres.connect(JOURNAL),
                lambda: plans_in(router.ruleset),
                metrics.behind,
            )
            self.behind.lacks.watch(self._void)
            self.reads.spare(self.behind.waits)
            self._moved = Moved(router, self.behind)
        self._sweeper = sweeper = Sweeper(router, plumbing.batch, clusters)
        self._leases.beyond(lambda plan: sweeper.ask(plan.cluster, frozenset((plan.keyspace,))))
        self.invalidation = Invalidation(
            Surroundings(
                router, plumbing.batch, plumbing.states, metrics.invalidation, clusters,
                lambda: self.postgres.connect(INVALIDATION), self._report, self._sweeper.busy,
                database.pace,
            )
        )  # fmt: skip
        self.restore = Restore(
            RestoreSurroundings(
                router, plumbing.batch, plumbing.states, metrics.restore, clusters, self.postgres,
                self._dirty,
            ),
            self.invalidation.appliers,
        )  # fmt: skip
        self.returned = Returned(self.invalidation.appliers, lambda: self.postgres.up)
        self.drift = Drift(
            DriftSurroundings(
                router, plumbing.batch, plumbing.states, metrics.drift, clusters, self.postgres,
                self._dirty,
            ),
            self.invalidation.appliers,
        )  # fmt: skip

    async def start(self) -> None:
        """Connect, which takes no longer than a connection may where there is no server."""
        if self.behind is not None:
            # Before anybody is served: what was acknowledged is looked at first.
            await self.behind.start()
        await self.postgres.start()
        self._turned(self.postgres.up)

    def loops(self) -> tuple[Coroutine[None, None, None], ...]:
        """Return what runs for ever."""
        moved = () if self._moved is None else (self._moved.watch(),)
        return (
            self._leases.watch(), self.invalidation.watch(), self._sweeper.watch(),
            self.restore.watch(), self.drift.watch(), self.expiry.watch(), *moved,
        )  # fmt: skip

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Return what has been running since the start, and ends with `drain`."""
        return () if self.behind is None else tuple(self.behind.tasks)

    async def drain(self, timeout: float) -> None:
        """Flush what waits; what is not flushed in time is journalled, and is after a start."""
        if self.behind is not None:
            await self.behind.stop(timeout)

    async def stop(self) -> None:
        """Close everything."""
        self.reads.stop()
        self.returned.stop()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.postgres.stop()
        except TimeoutError:
            log.event(log.WARNING, "postgres_left_open")

    def statistics(self) -> tuple[Statistics, ...]:
        return self.invalidation.statistics()

    def uninstalled(self) -> bool:
        """Return whether functions for locks were called that PostgreSQL lacks."""
        return self.postgres.misfits.among(plans_in(self._router.ruleset).by_keyspace.values())

    def lacks(self, cluster: int, slot: int, since: float) -> bool:
        """Return whether the shard with this first slot, back since then, lacks what it needs."""
        return self.restore.recovering(cluster, slot) or self.returned.lacks(cluster, slot, since)

    def moved(self, cluster: int, slots: Iterable[int]) -> None:
        """Hear which slots have another primary, which may have heard less."""
        if self._moved is not None:
            self._moved.take(cluster, slots)

    def _void(self, key: bytes) -> None:
        """Make a key one that Redis does not have, soon."""
        target = target_of(self._router.ruleset, key)
        if target is not None:
            self.reads.changed(key)
            self._leases.owe(target)

    def _dirty(self, plan: Plan, key: bytes) -> bool:
        """Return whether PostgreSQL lacks writes of a key."""
        return self.behind is not None and self.behind.waits(plan, key)

    def _report(self, report: Lost | Untrusted) -> None:
        if isinstance(report, Untrusted):
            self._sweeper.ask(report.cluster, report.keyspaces)
        else:
            self.restore.lost(report)

    def _turned(self, up: bool) -> None:
        if up:
            self._states.change(log.INFO, "postgres", "up", "postgres_up")
        else:
            self._states.change(log.WARNING, "postgres", "down", "postgres_down")


def backing_for(config: Config, router: wire.Router, plumbing: Plumbing) -> Backing | None:
    """Return what stands behind keyspaces; None, and a line in the log, without a database."""
    if config.database is not None:
        return Backing(config, config.database, router, plumbing)
    names = sorted(plan.name for plan in plans_in(router.ruleset).by_keyspace.values())
    if names:
        log.event(
            log.WARNING, "no_database", keyspaces=", ".join(names),
            reason="they live in Redis alone; set `database:` in sidecache.yaml or DATABASE_URL",
        )  # fmt: skip
    return None
