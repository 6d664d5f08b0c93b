"""The booking database behind a proxy with the shipped policies, and seats that change by SQL."""

import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from proxy.embedded import sample
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from proxy.origin import installing
from proxy.origin.batching import Connection
from proxy.policy import compiler, planning
from tests.integration.rig import StartProxy

SHIPPED = Path(__file__).parents[2] / "policies"
STATUSES = ("available", "locked", "booked", "reserved", "blocked")

_NUMBERS = count()


class Seats:
    """All seats of the sample, and a proxy that tells of them."""

    def __init__(self, proxy: Sidecar, database: Connection, seats: list[tuple[str, str]]) -> None:
        self.proxy = proxy
        self.database = database
        self.all = seats

    @property
    def events(self) -> list[str]:
        return sorted({event for event, _ in self.all})

    async def change(self, chance: random.Random, seat: tuple[str, str] | None = None) -> str:
        """Give a seat, any unless it is named, a status by chance; return the status."""
        event, name = seat or chance.choice(self.all)
        status = chance.choice(STATUSES)
        await self.database.execute(
            "UPDATE seat_booking_state SET status = $3, updated_at = clock_timestamp(), "
            "locked_by = CASE $3 WHEN 'locked' THEN 'usr_1' END, "
            "locked_until = CASE $3 WHEN 'locked' THEN clock_timestamp() + interval '1 hour' END "
            "WHERE event_id = $1 AND seat_id = $2",
            event, name, status,
        )  # fmt: skip
        return status

    async def truth(self, event: str) -> Mapping[bytes, bytes]:
        """Return what the availability of an event is, counted here."""
        rows = await self.database.fetch(
            "SELECT seat_id, extract(epoch FROM updated_at)::bigint AS at, CASE WHEN status = "
            "'locked' AND locked_until <= clock_timestamp() THEN 'available' ELSE status END AS s "
            "FROM seat_booking_state WHERE event_id = $1",
            event,
        )
        fields: dict[str, Any] = {row["seat_id"]: row["s"] for row in rows}
        counts = {f"{s}_count": sum(row["s"] == s for row in rows) for s in STATUSES}
        fields |= counts | {
            "total_capacity": len(rows), "last_updated": max(row["at"] for row in rows)
        }  # fmt: skip
        return {name.encode(): str(value).encode() for name, value in fields.items()}

    async def metric(self, beginning: str) -> float:
        """Return the sum of the lines of /metrics that begin so."""
        _, page = await self.proxy.get("/metrics")
        lines = [line for line in page.splitlines() if line.startswith(beginning)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextlib.asynccontextmanager
async def seats(
    server: Postgres, clusters: Mapping[str, Cluster], start: StartProxy, folder: Path
) -> AsyncIterator[Seats]:
    """Start a proxy with the shipped policies, in front of the sample's database."""
    name = f"seats{next(_NUMBERS)}"
    dsn = await server.create_database(name)
    await sample.load(dsn, 1)
    policies = compiler.read(SHIPPED, tuple(clusters))
    await installing.run(
        dsn, planning.watches_of(policies), apply=True, remove=False,
        locks=planning.locks_of(policies),
    )  # fmt: skip
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT event_id, seat_id FROM seat_booking_state")
        proxy = await start(
            clusters, policies=str(SHIPPED), database={"url": dsn},
            journal={"directory": str(folder / "journal")},
        )  # fmt: skip
        yield Seats(proxy, connection, [(row["event_id"], row["seat_id"]) for row in rows])
    finally:
        await connection.close()
        await server.drop_database(name)
