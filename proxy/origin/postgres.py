"""PostgreSQL as handlers and control loops see it: statements with text in and rows out.

Made by `app`, used by `handlers` and `control`. Each call has a turn in the budget, a connection, a
deadline and one of four ends: an answer, OriginBusy, OriginDown or OriginRefused (`errors`).
Reads that allow it go to a replica, and to the primary when no replica answers.

Always true: a call ends within patience and timeout together, or twice the timeout where a replica
was asked first and is silent; clients are served while PostgreSQL is away, so `start` does not
fail.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import cycle

import asyncpg

from proxy import errors
from proxy.config import Database
from proxy.errors import OriginBusy, OriginDown, OriginRefused
from proxy.origin import pool
from proxy.origin.budget import Budget, Share
from proxy.origin.misfits import Misfits
from proxy.origin.pool import Connection, Pool
from proxy.plans import Statement
from proxy.tallies import OriginMetrics

__all__ = ["Argument", "Connection", "Postgres", "Record", "Share", "Transaction"]

Record = asyncpg.Record

# Text as `codecs.text_of` gives it, nothing, or the elements of an array.
Argument = str | Sequence[str | None] | None


class Transaction:
    """Several statements that happen together or not at all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, statement: Statement, arguments: Sequence[Argument]) -> list[Record]:
        rows: list[Record] = await self._connection.fetch(statement.text, *arguments)
        return rows

    async def execute(self, statement: Statement, arguments: Sequence[Argument]) -> int:
        """Run a statement and return how many rows it was about."""
        # What came back is not wanted, but a prepared statement is: `execute` with arguments
        # prepares one too, and tells of rows only as text such as "INSERT 0 1".
        status = await self._connection.execute(statement.text, *arguments)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def run(self, text: str) -> None:
        """Run words of our own, without parameters."""
        await self._connection.execute(text)


class Postgres:
    """The primary, its replicas, and what may be asked of them."""

    def __init__(self, database: Database, metrics: OriginMetrics) -> None:
        self._database = database
        self._metrics = metrics
        self._budget = budget = Budget(database.connections, database.queue, database.patience)
        self._primary = Pool("primary", database.url, database, self._turned)
        self._replicas = [
            Pool(f"replica{number}", url, database, self._turned)
            for number, url in enumerate(database.replicas, 1)
        ]
        self._next = cycle(range(max(1, len(self._replicas))))
        self._watchers: list[Callable[[bool], None]] = []
        self.misfits = Misfits()
        metrics.used.set_function(lambda: budget.used)
        metrics.waiting.set_function(lambda: budget.waiting)
        for each in (self._primary, *self._replicas):
            metrics.up.labels(each.name).set(0)

    @property
    def up(self) -> bool:
        """Whether the primary can be reached."""
        return self._primary.up

    def watch(self, changed: Callable[[bool], None]) -> None:
        """Call changed with `up` whenever it becomes another."""
        self._watchers.append(changed)

    async def start(self) -> None:
        """Connect; return within connect_timeout whether or not there is a server."""
        await asyncio.gather(*(each.start() for each in (self._primary, *self._replicas)))

    async def stop(self) -> None:
        """Give every connection up, whatever it does."""
        await asyncio.gather(*(each.stop() for each in (self._primary, *self._replicas)))

    async def fetch(
        self,
        statement: Statement,
        arguments: Sequence[Argument],
        share: Share,
        *,
        primary: bool = False,
    ) -> list[Record]:
        """Return the rows of a statement; one that only reads may go to a replica."""
        with self._told(statement):
            async with self._budget.slot(share):
                replica = None if primary else self._replica()
                if replica is not None:
                    # A replica that cancels what its primary vacuumed, or is lost, is no reason
                    # not to answer.
                    with contextlib.suppress(OriginBusy, OriginDown):
                        async with self._turn(replica) as turn:
                            return await turn.fetch(statement, arguments)
                async with self._turn(self._primary) as turn:
                    return await turn.fetch(statement, arguments)

    async def execute(
        self, statement: Statement, arguments: Sequence[Argument], share: Share
    ) -> int:
        """Run a statement on the primary and return how many rows it was about."""
        with self._told(statement):
            async with self._budget.slot(share), self._turn(self._primary) as turn:
                return await turn.execute(statement, arguments)

    @contextlib.asynccontextmanager
    async def transaction(
        self, share: Share, timeout: float | None = None
    ) -> AsyncIterator[Transaction]:
        """Run statements of a transaction on the primary, all within the timeout (seconds).

        It is committed at the end of the block. OriginDown with `sent` leaves open whether.
        """
        with self._counted("write"):
            async with self._budget.slot(share), self._turn(self._primary, timeout) as turn:
                # The driver's own block would roll back after a deadline too, and wait for that.
                await turn.run("BEGIN")
                try:
                    yield turn
                except Exception:
                    await turn.run("ROLLBACK")
                    raise
                await turn.run("COMMIT")

    async def connect(self, name: str = "sidecache leader") -> Connection:
        """Return a connection to the primary past PgBouncer, outside the budget.

        For one that needs a session of its own: an advisory lock, LISTEN. It has the codecs of
        the driver. Its user gives every call a deadline, and terminates it. Raises OriginDown.
        """
        connection = await pool.connect(self._database.direct_url, self._database, name)
        if not self._database.prepared:
            # What PgBouncer would have refused at the start.
            for setting, value in pool.session_settings(self._database).items():
                await connection.execute(
                    f"SET {setting} = '{value}'", timeout=self._database.connect_timeout
                )
        return connection

    def _replica(self) -> Pool | None:
        for _ in self._replicas:
            if (replica := self._replicas[next(self._next)]).up:
                return replica
        return None

    @contextlib.asynccontextmanager
    async def _turn(self, server: Pool, timeout: float | None = None) -> AsyncIterator[Transaction]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + (timeout or self._database.timeout)
        async with server.connection(deadline) as connection:
            yield Transaction(connection)
        self._metrics.seconds.observe(loop.time() - started)

    @contextlib.contextmanager
    def _told(self, statement: Statement) -> Iterator[None]:
        """Count a statement, and see whether what it calls is there."""
        keyspace, _, purpose = statement.name.rpartition(" ")
        try:
            with self._counted(purpose):
                yield
        except OriginRefused as error:
            if self.misfits.refused(statement, error.__cause__):
                error.line = errors.not_installed(keyspace)
            raise
        self.misfits.answered(statement)

    @contextlib.contextmanager
    def _counted(self, purpose: str) -> Iterator[None]:
        outcome = "answered"
        try:
            yield
        except OriginBusy:
            outcome = "busy"
            raise
        except OriginDown:
            outcome = "down"
            raise
        except OriginRefused:
            outcome = "refused"
            raise
        finally:
            self._metrics.statements.count(purpose, outcome)

    def _turned(self, server: Pool) -> None:
        self._metrics.up.labels(server.name).set(server.up)
        if server is self._primary:
            for changed in self._watchers:
                changed(server.up)
