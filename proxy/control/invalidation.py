"""What changes in PostgreSQL takes the keys that were made of it out of Redis.

One `Applier` per cluster in every sidecar; of those in front of one cluster one leads and reads the
outbox, the others wait for its lease. Each page of changes becomes keys (`work`), each key a script
on the node of its slot (`delivery`): it deletes the value, the marker that there is none, and the
lease of whoever fetches it. That is all that other sidecars need: `fill.lua` stores nothing without
its lease, so a fetch that began before the change answers those who wait for it and leaves nothing
behind. Where the policies say what a changed row means, fields of the value are set instead.

Always true:
  * a position is written only when everything before it is acknowledged by all shards;
  * what could not be sent is owed and tried again; where too much is owed to be remembered the
    outbox is read again instead;
  * who leads is no question of safety: two appliers cost time, and their positions agree;
  * what cannot be repaired here is reported: data that was lost, keyspaces that are not to be
    trusted because their changes are not in the outbox any more, or never said which keys.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import asyncpg

from proxy import log, plans, wire
from proxy.control.delivery import AsOf, Delivery
from proxy.control.lease import FAILURES, Connect, leading
from proxy.control.news import Newsroom
from proxy.control.positions import Found, Position, Positions
from proxy.control.work import orders_of, tables_of, work_of
from proxy.errors import SidecacheError
from proxy.origin import outbox
from proxy.origin.codecs import set_codecs
from proxy.origin.outbox import Outbox, Snapshot
from proxy.settings import Pace
from proxy.tallies import InvalidationMetrics
from proxy.upstream.errands import Errands

# How soon it is looked again while there is news that somebody may be listening to, in seconds.
FOLLOWING = 0.015

# How often positions are written, and so looked at, when nothing changes, in seconds.
HEARTBEAT = 0.25

# How often it is looked for old rows and for tables without triggers, in seconds.
HOUSEKEEPING = 30.0

# How long after a failure it is tried again, in seconds: at first, and at most. Up to twice as
# long at random, so that all sidecars do not come back at once.
PAUSE, LONGEST_PAUSE = 0.25, 1.0

# How often a cluster is asked for its identity before it is led without.
QUESTIONS = 4


class Lost(NamedTuple):
    """Shards have lost their data. Reported once by whoever leads, before anything is marked."""

    cluster: int
    tags: tuple[bytes, ...]  # of the shards' positions
    begun: tuple[bytes, ...] = ()  # of those that a leader before us had begun to restore


class Untrusted(NamedTuple):
    """Keys of keyspaces may be stale, and nobody knows which."""

    cluster: int
    keyspaces: frozenset[int]
    reason: str  # "truncated" "retention" "unmapped" "position" "database"


Report = Callable[[Lost | Untrusted], None]


@dataclass(frozen=True)
class Surroundings:
    """What all appliers of a process share."""

    router: wire.Router
    batch: wire.Batch
    states: log.StateLog
    metrics: InvalidationMetrics
    clusters: tuple[str, ...]
    connect: Connect
    report: Report
    busy: Callable[[int], bool]  # whether keyspaces of a cluster are still being cleaned
    pace: Pace


@dataclass(frozen=True)
class Statistics:
    """One applier, for whoever looks."""

    cluster: str
    leading: bool
    lag: float  # seconds since everything was applied; 0 where another leads
    changes: int
    replays: int
    owed: int
    position: int


class NotReached(SidecacheError):
    """A cluster that has to be asked before anything is done does not answer."""


class Applier:
    """That of one cluster."""

    def __init__(self, surroundings: Surroundings, cluster: int) -> None:
        self._around = surroundings
        self._cluster = cluster
        self._name = surroundings.clusters[cluster]
        self._loop = asyncio.get_running_loop()
        self._errands = Errands(surroundings.router, surroundings.batch)
        self._news = Newsroom(
            surroundings.router, self._errands, (cluster, self._name), surroundings.metrics
        )
        self.positions = Positions(surroundings.router, self._errands, cluster)
        self._turn = asyncio.Lock()
        self._leading = False
        self.current = False  # every change that can be read has been seen to
        self._identity = secrets.token_hex(8).encode()
        self._history = ""
        self._floor = 0
        self._applied = 0.0  # time of the loop when nothing was left to do
        self._said = (0, 0.0)  # the position that was written last, and when
        self._delivery = Delivery(
            surroundings.router, self._errands, cluster,
            partial(surroundings.metrics.patched.count, self._name),
        )  # fmt: skip
        self._changes = self._replays = 0
        self._cleaned = 0.0
        surroundings.metrics.lag(self._name, lambda: self.lag)

    @property
    def lag(self) -> float:
        """Return for how long something has been left to do, in seconds."""
        return self._loop.time() - self._applied if self._leading else 0.0

    @property
    def identity(self) -> str:
        """Return what the sidecars in front of this cluster know it by."""
        return self._identity.decode()

    def statistics(self) -> Statistics:
        return Statistics(self._name, self._leading, self.lag, self._changes, self._replays,
                          len(self._delivery.owed), self._said[0])  # fmt: skip

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[bool]:
        """Keep invalidations waiting; give whether this sidecar leads.

        Whoever reads rows and writes them to Redis beside fills does both within. A change that
        was committed after the rows were read is then applied after they were written.
        """
        async with self._turn:
            yield self._leading

    async def run(self) -> None:
        """Lead whenever nobody else does, for ever."""
        pause = PAUSE
        while True:
            if self.concerned():
                try:
                    await self._lead()
                except FAILURES as error:
                    pause = PAUSE if self._leading else min(2 * pause, LONGEST_PAUSE)
                    self._tell(log.WARNING, "failed", reason=str(error) or "no answer in time")
                finally:
                    self._leading = False
                    self._around.metrics.leader.labels(self._name).set(0)
            await asyncio.sleep(pause * (1 + random.random()))

    def concerned(self) -> bool:
        """Return whether anything of this cluster is made of what is in PostgreSQL."""
        ruleset = self._around.router.ruleset
        known = plans.plans_in(ruleset)
        spaces = {plan.keyspace for plan in known.by_keyspace.values()}
        spaces |= {each.keyspace for rows in known.by_table.values() for each in rows}
        keys = any(ruleset.keyspaces[index].cluster == self._cluster for index in spaces)
        return keys or self._news.concerned()

    async def _lead(self) -> None:
        # Sidecars in front of other clusters of the same name have nothing to do with this lease.
        await self._identify()
        lease = f"invalidation {self._identity.decode()}"
        async with leading(lambda: lease, self._around.connect) as connection:
            await set_codecs(connection)
            async with self._turn:
                reader = await self._begin(connection)
                self._leading, self._applied = True, self._loop.time()
            self._around.metrics.leader.labels(self._name).set(1)
            self._tell(log.INFO, "leading", position=reader.position)
            self._cleaned = 0.0
            while self.concerned():
                async with self._turn:
                    told = await self._round(connection, reader)
                if reader.complete:
                    poll = self._around.pace.poll
                    await asyncio.sleep(min(poll, FOLLOWING) if told else poll)

    async def _identify(self) -> None:
        """Ask what the sidecars of this cluster know it by.

        While the shard that knows is away, several may lead. It is asked again for a while, because
        at its start a sidecar asks before it is connected.
        """
        for _ in range(QUESTIONS):
            if (identity := await self.positions.identity(self._identity)) is not None:
                self._identity = identity
                return
            await asyncio.sleep(PAUSE)

    # Where to begin.

    async def _begin(self, connection: "asyncpg.Connection[Any]") -> Outbox:
        """Return a reader that begins where the oldest of the shards is."""
        now = await outbox.moment(connection)
        self._history, self._floor = now.history, now.floor
        self._delivery.forget()
        self.current = False
        self.positions.withheld.clear()
        latest = now.snapshot.xmin
        reader = Outbox(connection, Snapshot.before(latest))
        reader.now = now.now
        found = await self.positions.look()
        if not found:
            raise NotReached(f"no shard of cluster {self._name} answers")
        await self._reconcile(connection, reader, found)
        self._said = (reader.position, 0.0)
        return reader

    async def _reconcile(
        self, connection: "asyncpg.Connection[Any]", reader: Outbox, found: Collection[Found]
    ) -> None:
        """Read again what shards do not have, and report what reading cannot bring back."""
        lost = tuple(each.tag for each in found if each.lost)
        begun = tuple(each.tag for each in found if each.unfinished)
        if lost:
            self._tell(log.WARNING, "lost", shards=len(lost))
        if lost or begun:
            self._around.report(Lost(self._cluster, lost, begun))
        for each in found:
            if each.new and each.position is None:
                continue
            xid = await self._origin_of(connection, reader, each)
            if xid is not None and xid < reader.position:
                self._replays += 1
                self._around.metrics.replays.count(self._name)
                self._around.states.change(
                    log.INFO, f"replay {self._name}", str(xid), "invalidation_replay",
                    cluster=self._name, position=xid, reached=reader.position,
                )  # fmt: skip
                reader.rewind(xid)
                self.current = False

    async def _origin_of(
        self, connection: "asyncpg.Connection[Any]", reader: Outbox, found: Found
    ) -> int | None:
        """Return from which transaction on a shard may lack changes."""
        replay = round(self._around.pace.replay * 1000)
        position = found.position
        if position is None:
            if not found.lost:
                # The data is there, and nobody knows how old. Nobody has taken this one away.
                self._distrust(self._all(), "position")
            # What was stored before anybody led is not older than this: while the mark is missing
            # nothing is stored, and sidecars hear of that within seconds.
            return await outbox.since(connection, reader.now - replay)
        if position.history == self._history and (position.xid <= reader.position or self._leading):
            if position.xid <= self._floor:
                self._distrust(self._all(), "retention")
            return position.xid
        if position.history.partition(".")[0] != self._history.partition(".")[0]:
            self._distrust(self._all(), "database")
            return await outbox.since(connection, reader.now - replay)
        # A standby has taken over, or an older copy of the files. Numbers of what was lost are
        # given out again, so the time decides, with room for what had not been replicated.
        again = await outbox.since(connection, position.at - replay)
        return position.xid if again is None else min(again, position.xid)

    def _all(self) -> frozenset[int]:
        ruleset = self._around.router.ruleset
        rows = (row for rows in plans.plans_in(ruleset).by_table.values() for row in rows)
        return frozenset(
            row.keyspace for row in rows
            if ruleset.keyspaces[row.keyspace].cluster == self._cluster
        )  # fmt: skip

    def _distrust(self, keyspaces: frozenset[int], reason: str) -> None:
        if keyspaces:
            names = [self._around.router.ruleset.keyspaces[index].name for index in keyspaces]
            log.event(log.WARNING, "keyspaces_untrusted", cluster=self._name, reason=reason,
                      keyspaces=" ".join(sorted(names)))  # fmt: skip
            self._around.report(Untrusted(self._cluster, keyspaces, reason))

    # One round.

    async def _round(self, connection: "asyncpg.Connection[Any]", reader: Outbox) -> int:
        """Apply a page of changes; return how many messages were told of them."""
        ruleset = self._around.router.ruleset
        # The other cluster's are no concern of this one, and may be most.
        changes = await reader.read(tables_of(ruleset, self._cluster))
        owed = bool(self._delivery.owed)
        work = work_of(ruleset, self._cluster, changes)
        for reason, keyspaces in work.doubtful.items():
            self._distrust(frozenset(keyspaces), reason)
        told = await self._news.tell(connection, changes, reader.now)
        moment = AsOf(self._history, reader.finished)
        await self._delivery.send(await orders_of(connection, work), moment)
        if owed:
            # News first: most shards are not those that are owed, and would wait for these.
            await self._delivery.catch_up(moment)
            if self._delivery.overflowed and not self._delivery.owed:
                self._delivery.overflowed = False
                reader.rewind(self._said[0])
        self._changes += len(changes)
        self._around.metrics.changes.count(self._name, amount=len(changes))
        self._around.metrics.owed.labels(self._name).set(len(self._delivery.owed))
        now, busy = self._loop.time(), self._around.busy(self._cluster)
        self.current = reader.complete and not busy
        # While keyspaces are cleaned the position stays: whoever leads if we die cleans them again.
        if self.current and not self._delivery.owed:
            self._applied = now
            xid, at = self._said
            if reader.position != xid or now - at >= HEARTBEAT:
                self._said = (reader.position, now)
                await self._say(connection, reader)
        if now - self._cleaned > HOUSEKEEPING:
            await self._keep_house(connection, reader)
        return told

    async def _say(self, connection: "asyncpg.Connection[Any]", reader: Outbox) -> None:
        position = Position(reader.position, reader.began, self._history)
        found = await self.positions.write(position)
        if found:
            await self._reconcile(connection, reader, found)
            # Whoever comes behind us should meet us: the identity may have gone with a shard.
            await self.positions.identity(self._identity)

    async def _keep_house(self, connection: "asyncpg.Connection[Any]", reader: Outbox) -> None:
        """Delete old rows, and look whether changes are noted at all."""
        if await reader.clean(self._around.pace.retention) < outbox.CLEANED:
            self._cleaned = self._loop.time()
        known = plans.plans_in(self._around.router.ruleset)
        tables = dict.fromkeys((*known.by_table, *known.news))
        blind = [table for table in tables if not await outbox.noting(connection, table)]
        self._around.metrics.unwatched.labels(self._name).set(len(blind))
        self._around.states.change(
            log.WARNING if blind else log.INFO, f"triggers {self._name}", " ".join(blind),
            "tables_unwatched" if blind else "tables_watched", cluster=self._name,
            **({"tables": " ".join(blind), "remedy": "sidecache sql install"} if blind else {}),
        )  # fmt: skip

    def _tell(self, level: int, state: str, **fields: object) -> None:
        self._around.states.change(
            level, f"invalidation {self._name}", state, f"invalidation_{state}",
            cluster=self._name, **fields,
        )  # fmt: skip


class Invalidation:
    """All clusters."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.appliers = tuple(
            Applier(surroundings, cluster) for cluster in range(len(surroundings.clusters))
        )

    async def watch(self) -> None:
        """Run all appliers, for ever."""
        async with asyncio.TaskGroup() as group:
            for applier in self.appliers:
                group.create_task(applier.run())

    def statistics(self) -> tuple[Statistics, ...]:
        return tuple(applier.statistics() for applier in self.appliers)
