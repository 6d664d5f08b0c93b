"""Databases with seats and with locks of no table, and who calls the functions about them."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from proxy.embedded.postgres import Postgres
from proxy.origin import installing
from proxy.origin.batching import Connection
from proxy.plans import Plan, Statement
from proxy.policy import compiler, planning
from tests.integration.holds import RULES, TABLES

EVENT = "e1"

_numbers = itertools.count(1)


class Taken(NamedTuple):
    """What `take` answers."""

    outcome: str
    tokens: Sequence[int] | None
    lefts: Sequence[float] | None
    holder: str | None
    has: int
    fresh: Sequence[int] | None
    stamps: Sequence[str] | None


class Asker:
    """One session, which asks about locks of one keyspace; seats are those of EVENT."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self.connection = connection
        self.plan = plan
        assert plan.locking is not None
        self.locking = plan.locking

    def _arrays(self, names: Sequence[str]) -> list[list[str]]:
        if self.locking.table is None:
            return [list(names)]
        return [[EVENT] * len(names), list(names)]

    async def _rows(self, statement: Statement, names: Sequence[str], *rest: Any) -> list[Any]:
        return await self.connection.fetch(
            statement.text, *self._arrays(names), *rest, timeout=20
        )  # fmt: skip

    async def take(
        self, owner: str, *names: str, hold: float = 60.0, mine: bool = False,
        token: int | None = None, value: str | None = None, booking: str | None = None,
        same: bool = True, session: str | None = None,
    ) -> Taken:  # fmt: skip
        """Take locks as `handlers.grants` does."""
        scope = EVENT if self.locking.most else ""
        (row,) = await self._rows(
            self.locking.calls.take, names, owner, booking, session, value, str(hold),
            str(self.locking.longest), scope, str(self.locking.most),
            str(self.locking.offer), "t" if mine else "f",
            None if token is None else str(token), "t" if same else "f",
        )  # fmt: skip
        return Taken(*row)

    async def grab(self, wishes: Mapping[str, str], same: bool = True) -> list[str]:
        """Take seats for several owners at a time; return who was granted the one it wants."""
        owners, names = list(wishes), list(wishes.values())
        nothing: list[str | None] = [None] * len(names)
        (row,) = await self._rows(
            self.locking.calls.grab, names, owners, nothing, nothing, nothing,
            ["60"] * len(names), ["t" if same else "f"] * len(names), str(self.locking.longest),
            [EVENT if self.locking.most else ""] * len(names), str(self.locking.most),
            str(self.locking.offer),
        )  # fmt: skip
        return [owners[int(number) - 1] for number in row["numbers"] or ()]

    async def release(
        self, owner: str | None, *names: str, token: int | None = None
    ) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        """Give locks up; return the places of those that were held, counted from 1, and tokens."""
        proof = None if token is None else str(token)
        (row,) = await self._rows(
            self.locking.calls.release, names, [owner] * len(names), [proof] * len(names),
            [None] * len(names), str(self.locking.offer), str(self.locking.most), "t",
        )  # fmt: skip
        return row["numbers"], row["tokens"]

    async def confirm(
        self, owner: str, names: Sequence[str], tokens: Sequence[int], booking: str
    ) -> str:
        """Make locks bookings."""
        (row,) = await self._rows(
            self.locking.calls.confirm, names, owner, [str(token) for token in tokens], booking
        )
        return str(row["outcome"])

    async def queue(
        self, owner: str, name: str, *, leaving: bool = False, heartbeat: float | None = None
    ) -> tuple[str, int]:
        """Wait for a lock; return what becomes of that, and the place."""
        beat = self.locking.heartbeat if heartbeat is None else heartbeat
        (row,) = await self._rows(
            self.locking.calls.queue, [name], owner, EVENT if self.locking.most else "", str(beat),
            str(self.locking.offer), str(self.locking.most), "t" if leaving else "f",
        )  # fmt: skip
        return row["outcome"], row["place"]

    async def sweep(self) -> list[tuple[list[str], int]]:
        """Give back what has expired; return names and tokens."""
        rows = await self.connection.fetch(
            self.locking.calls.sweep.text, str(self.locking.offer), str(self.locking.most)
        )
        return [(row["name"], row["token"]) for row in rows]

    async def expire(self, *names: str) -> None:
        """Let locks of seats be over."""
        await self.connection.execute(
            "UPDATE seats SET locked_until = clock_timestamp() - interval '1 ms'"
            " WHERE event = $1 AND seat = ANY($2)", EVENT, list(names),
        )  # fmt: skip

    async def lapse(self, owner: str, column: str = "offered_until") -> None:
        """Let an offer, or what a waiter has been heard of, be over."""
        await self.connection.execute(
            f"UPDATE sidecache_lock_queue SET {column} = clock_timestamp() - interval '1 ms'"
            " WHERE owner = $1", owner,
        )  # fmt: skip

    async def seat(self, name: str) -> dict[str, Any]:
        row = await self.connection.fetchrow(
            "SELECT * FROM seats WHERE event = $1 AND seat = $2", EVENT, name
        )
        return dict(row or {})


class Ticketing:
    """A database with seats, `seat_lock` about them and `mutex` about nothing."""

    def __init__(self, url: str, plans: Sequence[Plan]) -> None:
        self.url = url
        self.plans = {plan.name: plan for plan in plans}
        self._stack = contextlib.AsyncExitStack()

    async def asker(self, name: str = "seat_lock") -> Asker:
        """Return a session of its own."""
        connection = await asyncpg.connect(self.url, timeout=5)
        self._stack.callback(connection.terminate)
        return Asker(connection, self.plans[name])

    async def close(self) -> None:
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def ticketing(
    server: Postgres, folder: Path, rules: str = RULES, tables: str = TABLES
) -> AsyncIterator[Ticketing]:
    """Make a database with tables and the functions of some policies."""
    name = f"ticketing{next(_numbers)}"
    url = await server.create_database(name)
    path = folder / "rules.yaml"
    path.write_text(rules)
    plans = planning.locks_of(compiler.read(path, ("locks",)))
    found = Ticketing(url, plans)
    try:
        connection = await asyncpg.connect(url, timeout=5)
        await connection.execute(tables)
        connection.terminate()
        await installing.run(url, (), apply=True, remove=False, locks=plans)
        yield found
    finally:
        await found.close()
        await server.drop_database(name)
