"""Rows into PostgreSQL, around what it does not take: that becomes dead letters.

Made by `flushing` for one transaction, whose savepoints it uses. Rows are halved around those that
are refused, and a refused row around the writes that it was merged of, in their order: what is
innocent is written. A statement that fits the tables no more is nobody's fault.

Always true: each write of a row is in its table or in one dead letter, and both are committed with
the position or not at all; an error that is nobody's row's fault is raised.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

import asyncpg

from proxy.errors import SidecacheError
from proxy.origin.batching import Connection, Many, arguments_of, run
from proxy.origin.merging import Batch, Row, merged
from proxy.origin.records import Entry, Place
from proxy.plans import Plan

# Of an error's text in a dead letter: it may quote a value of any length.
ERROR_CHARACTERS = 500

# SQL states of what may work later: a lost connection, a standby, a conflict, no resources, a lock,
# a shutdown or timeout, the disk, a bug; 42501 is a right that somebody has to grant. All others
# are a row's fault: a value that a type (22), a constraint (23) or a trigger does not take, or two
# keys that are one row (21), which only fail together.
_LATER = ("08", "25", "40", "42501", "53", "55", "57", "58", "XX")

_BURY = """
INSERT INTO sidecache_dead_letters (keyspace, key, payload, sqlstate, error, attempts, sidecar)
VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7)
"""

# A table, a column, a type or a function that a statement names is not what it was; a trigger may
# say so of a row. Before the next attempt the statement is prepared again, which tells them apart.
_MISFIT = "42"

# Returns the writes that the rows of a batch were merged of, by place, as far as it can.
Apart = Callable[[Batch], Awaitable[Mapping[Place, Sequence[Entry]]]]
_Refused = asyncpg.PostgresError | ValueError


class Misfit(SidecacheError):
    """A statement that PostgreSQL does not take as it stands."""


class Letters:
    """Those of one transaction."""

    def __init__(
        self, connection: Connection, batch: Batch, sidecar: str, attempt: int, apart: Apart
    ) -> None:
        self._connection = connection
        self._batch = batch
        self._sidecar = sidecar
        self._attempt = attempt
        self._apart = apart
        self._entries: Mapping[Place, Sequence[Entry]] | None = None
        self.dead: list[Place] = []  # of each letter

    async def write(self, plan: Plan, many: Many, rows: Sequence[Row]) -> None:
        """Write rows of one keyspace."""
        if (refused := await self._refused(plan, many, rows)) is None:
            return
        if len(rows) == 1:
            await self._split(plan, many, rows[0], await self._merged_of(plan, rows[0]), refused)
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            await self.write(plan, many, half)

    async def bury(self, row: Row, state: str, error: str) -> None:
        """Put a row where a person finds it."""
        fields = {
            _plain(name): {"op": cell.op.name.lower(), "value": _plain(cell.value)}
            for name, cell in row.flushed().items()
        }
        payload = json.dumps({"fields": fields, "dropped": row.dropped})
        await self._connection.execute(
            _BURY, row.keyspace, row.key, payload, state, _plain(error.encode())[:ERROR_CHARACTERS],
            self._attempt, self._sidecar,
        )  # fmt: skip
        self.dead.append((row.keyspace, row.key))

    async def _merged_of(self, plan: Plan, row: Row) -> Sequence[Entry]:
        """Return the writes that a row was merged of; none where there may be others."""
        if row.writes == 1:
            return ()
        if self._entries is None:
            self._entries = await self._apart(self._batch)
        entries = self._entries.get((row.keyspace, row.key), ())
        assert plan.writing is not None
        return entries if entries and merged(entries, plan.writing.merge) == row else ()

    async def _split(
        self, plan: Plan, many: Many, row: Row, entries: Sequence[Entry], refused: _Refused
    ) -> None:
        """Write what a refused row was merged of, but for what is refused by itself."""
        if len(entries) < 2:
            await self.bury(row, getattr(refused, "sqlstate", None) or "22021", str(refused))
            return
        assert plan.writing is not None
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            part = merged(half, plan.writing.merge)
            if (other := await self._refused(plan, many, [part])) is not None:
                await self._split(plan, many, part, half, other)

    async def _refused(self, plan: Plan, many: Many, rows: Sequence[Row]) -> _Refused | None:
        """Write rows together; return why PostgreSQL does not take them, and undo it then."""
        try:
            arguments = [arguments_of(plan, row) for row in rows]
        except ValueError as error:
            return error
        await self._connection.execute("SAVEPOINT rows")
        try:
            await run(self._connection, many, arguments)
        except asyncpg.PostgresError as error:
            if not guilty(error):
                raise
            if self._attempt == 1 and (error.sqlstate or "").startswith(_MISFIT):
                assert plan.writing is not None
                raise Misfit(f"{plan.writing.statement.place}: {error}") from error
            await self._connection.execute("ROLLBACK TO rows")
            return error
        await self._connection.execute("RELEASE rows")
        return None


def guilty(error: asyncpg.PostgresError) -> bool:
    """Return whether a row is at fault, and not the moment."""
    return not (error.sqlstate or "XX").startswith(_LATER)


def _plain(text: bytes) -> str:
    """Return text that JSON of PostgreSQL takes: it has no zero byte."""
    return text.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
