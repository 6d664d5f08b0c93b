"""One partition's way into PostgreSQL: batches in their order, each in one transaction.

Rows are sorted by key, so that two sidecars lock them in the same order. The transaction moves the
position of this sidecar and partition along: after a crash, what is journalled up to there is
passed over, and a COMMIT of which nobody knows whether it happened is recognised by it.

Always true:
  * a batch is committed once, or it waits: what PostgreSQL refuses for good goes to dead letters in
    the same transaction (`letters`), all else is tried again until it works;
  * a statement that does not fit the tables is nobody's row's fault: the batch waits for a person;
  * at most FLUSH_SECONDS pass in one attempt, then its connection is given up.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from proxy import log
from proxy.errors import SidecacheError
from proxy.origin.batching import Connection, Many, kind_of, prepared
from proxy.origin.letters import Apart, Letters, Misfit, guilty
from proxy.origin.merging import Batch, Partition, Row
from proxy.origin.pool import LOST
from proxy.origin.records import Entry, Place
from proxy.plans import Plan, Statement

FLUSH_SECONDS = 30.0
CONNECT_SECONDS = 5.0
FIRST_PAUSE = 0.1  # seconds, of the waits after a failure; they double up to
LONGEST_PAUSE = 30.0
# While nobody knows whether a batch is committed, readers wait for this loop.
LONGEST_DOUBT = 0.5  # seconds

# Longer than the deadlines of those for whom a client waits.
_BEGIN = f"""
BEGIN; SET LOCAL statement_timeout = '{FLUSH_SECONDS:.0f}s'; SET LOCAL lock_timeout = '5s'
"""
# Waits for a COMMIT that is under way on a connection that was given up, and so sees its outcome.
_POSITION = """
INSERT INTO sidecache_write_positions AS p (sidecar, partition, sequence) VALUES ($1, $2, 0)
    ON CONFLICT (sidecar, partition) DO UPDATE SET sequence = p.sequence RETURNING sequence
"""
_MOVE = """
INSERT INTO sidecache_write_positions (sidecar, partition, sequence) VALUES ($1, $2, $3)
    ON CONFLICT (sidecar, partition) DO UPDATE SET sequence = excluded.sequence, at = excluded.at
"""

Connect = Callable[[], Awaitable[Connection]]


class Flushed(NamedTuple):
    """What became of a batch."""

    batch: Batch
    dead: Sequence[Place]  # of each dead letter


class Observer(NamedTuple):
    """Who hears of a flusher."""

    settled: Callable[[Sequence[Entry]], Awaitable[None]]  # entries that were flushed before
    flushed: Callable[[Flushed], Awaitable[None]]
    failed: Callable[[int, Exception | None], None]  # partition and why; None: it works again
    lacking: Callable[[Place], bool]  # whether Redis may lack what a key's row has
    apart: Apart  # what the rows of a batch were merged of


class Writer(NamedTuple):
    """Whose writes these are."""

    sidecar: str
    partition: int
    run: int = 1  # the first sequence that was given out since the start


class Flusher:
    """The loop of one partition, with a connection of its own while it has something to write."""

    def __init__(
        self,
        writer: Writer,
        partition: Partition,
        connect: Connect,
        plans: Callable[[], Mapping[str, Plan]],
        observer: Observer,
    ) -> None:
        """plans gives the plans that are in force, by the names of their keyspaces."""
        self.partition = partition
        # Held during a transaction, and told of what is known after it.
        self._known = asyncio.Condition()
        self._doubt: Flushed | None = None  # whether this is committed nobody knows
        self.turn = asyncio.Lock()  # of those who write by what was there before
        self._writer = writer
        self._connect = connect
        self._plans = plans
        self._observer = observer
        self._connection: Connection | None = None
        self._statements: dict[str, Many] = {}
        self._types: dict[str, Mapping[bytes, str]] = {}  # also while there is no connection
        self._wake = asyncio.Event()
        self._urgent = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._attempts = 0

    def poke(self) -> None:
        """Look again: something landed."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Hold flushes back, once it is known what they did: PostgreSQL lacks just the overlay."""
        async with self._known:
            await self._known.wait_for(lambda: not self._doubtful)
            yield

    @property
    def _doubtful(self) -> bool:
        """Whether PostgreSQL may have what still counts as waiting."""
        return self._doubt is not None or self.partition.position is None

    def types(self, statement: Statement) -> Mapping[bytes, str]:
        """Return the types of a statement's parameters, none before PostgreSQL has told them."""
        return self._types.get(statement.text, {})

    async def through(self, sequence: int, seconds: float) -> bool:
        """Flush at once; return whether everything up to a sequence was committed in time."""
        position = self.partition.position
        if position is not None and position >= sequence:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((sequence, waiter))
        self._urgent = True
        self._wake.set()
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters = [each for each in self._waiters if each[1] is not waiter]
        return True

    async def run(self) -> None:
        """Flush what is due, for ever."""
        while True:
            pause = self._due()
            if pause > 0:
                await self._rest(pause)
                continue
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._step()
            except (*LOST, asyncpg.PostgresError, TimeoutError, SidecacheError) as error:
                self._drop_connection()
                self._attempts += 1
                self._observer.failed(self._writer.partition, error)
                longest = LONGEST_DOUBT if self._doubtful else LONGEST_PAUSE
                await asyncio.sleep(_pause(self._attempts, longest))

    async def drain(self, seconds: float) -> bool:
        """Flush everything; return whether it was done in time."""
        newest = self.partition.newest
        return await self.through(newest, seconds) if newest else True

    def stop(self) -> None:
        self._drop_connection()

    def _due(self) -> float:
        """Return the seconds until there is something to do: 0 for now."""
        partition = self.partition
        if partition.position is None or partition.sealed:
            return 0.0
        active = partition.active
        if not active.rows:
            self._urgent = False
            return LONGEST_PAUSE
        plans = self._plans()
        rules = [plan.writing for name in active.sizes if (plan := plans.get(name)) is not None]
        limits = [rule.rows for rule in rules if rule is not None]
        every = min((rule.every for rule in rules if rule is not None), default=0.0)
        if self._urgent or len(active.rows) >= min(limits, default=1):
            return 0.0
        return max(0.0, active.oldest + every - time.time())

    async def _rest(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _step(self) -> None:
        connection = await self._connected()
        if self.partition.position is None:
            # A query must follow, whose end lets go of the tables that were looked at.
            await self._learn(connection)
            async with self._telling():
                settled = self.partition.settle(await self._begin(connection))
            await self._observer.settled(settled)
        else:
            if not self.partition.sealed:
                self.partition.seal()
            self._urgent = False
            async with self._telling():
                flushed = await self._flush(connection, self.partition.sealed[0])
                self.partition.done()
            await self._observer.flushed(flushed)
        if self._attempts:
            self._attempts = 0
            self._observer.failed(self._writer.partition, None)
        for sequence, waiter in self._waiters:
            if (self.partition.position or 0) >= sequence and not waiter.done():
                waiter.set_result(None)
            else:
                self._urgent = True

    @contextlib.asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """Let nobody read meanwhile, and those who wait look again."""
        async with self._known:
            try:
                yield
            finally:
                self._known.notify_all()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._statements.clear()
            async with asyncio.timeout(CONNECT_SECONDS):
                self._connection = await self._connect()
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            # Never closed: that waits for a server that may not answer.
            self._connection.terminate()
            self._connection = None

    async def _begin(self, connection: Connection) -> int:
        """Return up to where an earlier run has flushed.

        What this run has numbered cannot be flushed yet: where PostgreSQL says so, the directory is
        a copy or was put back from one, and the position goes back, or writes would be passed over.
        """
        position = await self._position(connection)
        if position < self._writer.run:
            return position
        log.event(log.ERROR, "journal_of_another", sidecar=self._writer.sidecar,
                  partition=self._writer.partition, position=position)  # fmt: skip
        await connection.execute(_MOVE, *self._writer[:2], self._writer.run - 1)
        return self._writer.run - 1

    async def _position(self, connection: Connection) -> int:
        return int(await connection.fetchval(_POSITION, *self._writer[:2]))

    async def _flush(self, connection: Connection, batch: Batch) -> Flushed:
        """Commit a batch, unless an attempt whose end nobody saw has committed it."""
        if self._doubt is not None:
            committed = await self._position(connection) >= batch.last
            flushed, self._doubt = self._doubt, None
            if committed:
                return flushed
        groups = self._grouped(batch)
        for name, (plan, _) in groups.items():
            if plan is not None:
                await self._prepare(connection, name, plan)
        letters = Letters(
            connection, batch, self._writer.sidecar, self._attempts + 1, self._observer.apart
        )
        # Not the driver's own block: after an error it would wait for ROLLBACK. Whatever goes wrong
        # here, the connection is given up with the transaction in it.
        await connection.execute(_BEGIN)
        for name, (plan, rows) in groups.items():
            # What this changes is no news where Redis had it first.
            known = not any(self._observer.lacking((name, row.key)) for row in rows)
            writer = name if known else ""
            await connection.execute("SELECT set_config('sidecache.origin', $1, true)", writer)
            await self._write(letters, plan, rows)
        await connection.execute(_MOVE, *self._writer[:2], batch.last)
        flushed = self._doubt = Flushed(batch, letters.dead)
        await connection.execute("COMMIT")
        self._doubt = None
        return flushed

    async def _write(self, letters: Letters, plan: Plan | None, rows: Sequence[Row]) -> None:
        """Write the rows of one keyspace."""
        if plan is not None and plan.writing is not None:
            await letters.write(plan, self._statements[plan.writing.statement.text], rows)
            return
        for row in rows:
            await letters.bury(row, "", "no keyspace of this name is written behind")

    def _grouped(self, batch: Batch) -> dict[str, tuple[Plan | None, list[Row]]]:
        """Return plan and rows of each keyspace, rows in the order of their keys."""
        plans = self._plans()
        groups: dict[str, tuple[Plan | None, list[Row]]] = {}
        for (name, _), row in sorted(batch.rows.items()):
            groups.setdefault(name, (plans.get(name), []))[1].append(row)
        return groups

    async def _learn(self, connection: Connection) -> None:
        """Hear the types of parameters; what does not fit is told where a row needs it."""
        for name, plan in self._plans().items():
            with contextlib.suppress(Misfit, asyncpg.PostgresError):
                await self._prepare(connection, name, plan)

    async def _prepare(self, connection: Connection, name: str, plan: Plan) -> None:
        assert plan.writing is not None
        statement = plan.writing.statement
        if statement.text in self._statements:
            return
        try:
            many = self._statements[statement.text] = await prepared(connection, statement)
            names = (name.encode() for name, _ in statement.parameters)
            self._types[statement.text] = dict(zip(names, map(kind_of, many.types), strict=True))
        except asyncpg.PostgresError as error:
            if guilty(error):
                raise Misfit(f"{statement.place}: {error}") from error
            raise


def _pause(attempts: int, longest: float) -> float:
    """Return how long to wait after so many failures: anything up to twice as long each time."""
    return random.uniform(0.0, min(longest, FIRST_PAUSE * 2 ** min(attempts, 16)))
