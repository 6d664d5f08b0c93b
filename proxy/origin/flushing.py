"""One partition's way into PostgreSQL: batches in their order, each in one transaction.

Rows are sorted by key, so that two sidecars lock them in the same order. The transaction moves the
position of this sidecar and partition along: after a crash, what is journalled up to there is
passed over, and a COMMIT of which nobody knows whether it happened is recognised by it.

Always true:
  * a batch is committed once, or it waits: what PostgreSQL refuses for good (a row that it cannot
    take) goes to the dead letters in the same transaction, all else is tried again until it works;
  * a statement that does not fit the tables is nobody's row's fault: the batch waits for a person;
  * at most FLUSH_SECONDS pass in one attempt, then its connection is given up.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from proxy import log
from proxy.errors import SidecacheError
from proxy.origin.batching import Connection, Many, arguments_of, prepared, run
from proxy.origin.merging import Batch, Partition, Row
from proxy.origin.pool import LOST
from proxy.origin.records import Entry
from proxy.plans import Plan

FLUSH_SECONDS = 30.0
CONNECT_SECONDS = 5.0
FIRST_PAUSE = 0.1  # seconds, of the waits after a failure; they double up to
LONGEST_PAUSE = 30.0
# While nobody knows whether a batch is committed, readers wait for this loop.
LONGEST_DOUBT = 0.5  # seconds

# Of an error's text in a dead letter: it may quote a value of any length.
ERROR_CHARACTERS = 500

# SQL states of what may work later: a lost connection, a standby, a conflict, no resources, a lock,
# a shutdown or timeout, the disk, a bug; 42501 is a right that somebody has to grant. All others
# are a row's fault: a value that a type (22), a constraint (23) or a trigger does not take, or two
# keys that are one row (21), which only fail together.
_LATER = ("08", "25", "40", "42501", "53", "55", "57", "58", "XX")

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
_BURY = """
INSERT INTO sidecache_dead_letters (keyspace, key, payload, sqlstate, error, attempts, sidecar)
VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7)
"""

Connect = Callable[[], Awaitable[Connection]]


class Misfit(SidecacheError):
    """A statement that PostgreSQL does not take as it stands."""


class Flushed(NamedTuple):
    """What became of a batch."""

    batch: Batch
    rows: int
    dead: int


class Observer(NamedTuple):
    """Who hears of a flusher."""

    settled: Callable[[Sequence[Entry]], Awaitable[None]]  # entries that were flushed before
    flushed: Callable[[Flushed], Awaitable[None]]
    failed: Callable[[int, str], None]  # partition and why; "" when it works again
    lacking: Callable[[tuple[str, bytes]], bool]  # whether Redis may lack what a key's row has


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
        self._committing = False  # nobody knows whether the first sealed batch is committed
        self.turn = asyncio.Lock()  # of those who write by what was there before
        self._writer = writer
        self._connect = connect
        self._plans = plans
        self._observer = observer
        self._connection: Connection | None = None
        self._statements: dict[str, Many] = {}
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
        return self._committing or self.partition.position is None

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
                self._observer.failed(self._writer.partition, _described(error))
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
            self._observer.failed(self._writer.partition, "")
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
        if self._attempts:
            committed = await self._position(connection) >= batch.last
            self._committing = False
            if committed:
                return Flushed(batch, len(batch.rows), 0)
        groups = self._grouped(batch)
        for name, (plan, _) in groups.items():
            if plan is not None:
                await self._prepare(connection, name, plan)
        dead = 0
        # Not the driver's own block: after an error it would wait for ROLLBACK. Whatever goes wrong
        # here, the connection is given up with the transaction in it.
        await connection.execute(_BEGIN)
        for name, (plan, rows) in groups.items():
            # What this changes is no news where Redis had it first.
            known = not any(self._observer.lacking((name, row.key)) for row in rows)
            writer = name if known else ""
            await connection.execute("SELECT set_config('sidecache.origin', $1, true)", writer)
            dead += await self._write(connection, plan, rows)
        await connection.execute(_MOVE, *self._writer[:2], batch.last)
        self._committing = True
        await connection.execute("COMMIT")
        self._committing = False
        return Flushed(batch, len(batch.rows), dead)

    def _grouped(self, batch: Batch) -> dict[str, tuple[Plan | None, list[Row]]]:
        """Return plan and rows of each keyspace, rows in the order of their keys."""
        plans = self._plans()
        groups: dict[str, tuple[Plan | None, list[Row]]] = {}
        for (name, _), row in sorted(batch.rows.items()):
            groups.setdefault(name, (plans.get(name), []))[1].append(row)
        return groups

    async def _prepare(self, connection: Connection, name: str, plan: Plan) -> None:
        assert plan.writing is not None
        statement = plan.writing.statement
        if statement.text in self._statements:
            return
        try:
            self._statements[statement.text] = await prepared(connection, statement)
        except asyncpg.PostgresError as error:
            if _guilty(error):
                raise Misfit(f"{statement.place}: {error}") from error
            raise

    async def _write(self, connection: Connection, plan: Plan | None, rows: list[Row]) -> int:
        """Write the rows of one keyspace; return how many became dead letters."""
        if plan is None or plan.writing is None:
            for row in rows:
                await self._bury(connection, row, "", "no keyspace of this name is written behind")
            return len(rows)
        arguments, dead = [], 0
        for row in rows:
            try:
                arguments.append((row, arguments_of(plan, row)))
            except ValueError as error:
                await self._bury(connection, row, "22021", str(error))
                dead += 1
        many = self._statements[plan.writing.statement.text]
        return dead + await self._attempt(connection, many, arguments)

    async def _attempt(
        self, connection: Connection, many: Many, rows: Sequence[tuple[Row, list[str | None]]]
    ) -> int:
        """Write rows, halving them around those that PostgreSQL does not take."""
        if not rows:
            return 0
        await connection.execute("SAVEPOINT rows")
        try:
            await run(connection, many, [arguments for _, arguments in rows])
        except asyncpg.PostgresError as error:
            if not _guilty(error):
                raise
            await connection.execute("ROLLBACK TO rows")
            if len(rows) == 1:
                await self._bury(connection, rows[0][0], error.sqlstate or "", str(error))
                return 1
        else:
            await connection.execute("RELEASE rows")
            return 0
        middle = len(rows) // 2
        first = await self._attempt(connection, many, rows[:middle])
        return first + await self._attempt(connection, many, rows[middle:])

    async def _bury(self, connection: Connection, row: Row, state: str, error: str) -> None:
        fields = {
            _plain(name): {"op": cell.op.name.lower(), "value": _plain(cell.value)}
            for name, cell in row.flushed().items()
        }
        payload = json.dumps({"fields": fields, "dropped": row.dropped})
        await connection.execute(
            _BURY, row.keyspace, row.key, payload, state, _plain(error.encode())[:ERROR_CHARACTERS],
            self._attempts + 1, self._writer.sidecar,
        )  # fmt: skip


def _guilty(error: asyncpg.PostgresError) -> bool:
    """Return whether a row is at fault, and not the moment."""
    return not (error.sqlstate or "XX").startswith(_LATER)


def _plain(text: bytes) -> str:
    """Return text that JSON of PostgreSQL takes: it has no zero byte."""
    return text.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _pause(attempts: int, longest: float) -> float:
    """Return how long to wait after so many failures: anything up to twice as long each time."""
    return random.uniform(0.0, min(longest, FIRST_PAUSE * 2 ** min(attempts, 16)))
