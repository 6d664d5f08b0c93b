"""A concert hall: PostgreSQL with seats, a cluster for locks, and three sidecars on wires.

Every sidecar reaches nodes and database through relays of its own, so that one alone can be cut
off. PostgreSQL notes each change of a seat in a table `audit`, in the transaction that makes it.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import yaml

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.process import temporary_directory
from proxy.embedded.programs import find_redis
from proxy.embedded.redis import Cluster, Shape, together
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.origin import installing
from proxy.origin.batching import Connection
from proxy.policy import compiler, planning
from tests.detour import divert
from tests.faults import Relay
from tests.integration.chaos import Wires
from tests.integration.crowd import Plan
from tests.integration.tickets import Seat, booking

SHIPPED = Path(str(files("proxy") / "policies"))

SIDECARS = 3

# Statements of each sidecar at a time, and how long one waits for its turn: forty clients may ask
# at once, and none is to be refused for want of room.
DATABASE = {"connections": 10, "queue": 500, "patience": "2s", "timeout": "2s"}

# Three at once read all policies; on a busy machine that is slow.
STARTED_WITHIN = 60.0  # seconds

AUDIT = """
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL,
    event_id text, seat_id text, status text, owner text, token bigint, until timestamptz,
    was text, was_owner text, was_token bigint, was_until timestamptz);
CREATE FUNCTION audit_seat() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit (at, event_id, seat_id, status, owner, token, until, was, was_owner, was_token,
                     was_until)
  VALUES (clock_timestamp(), new.event_id, new.seat_id, new.status, new.locked_by, new.lock_token,
          new.locked_until, old.status, old.locked_by, old.lock_token, old.locked_until);
  RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON seat_booking_state FOR EACH ROW
    WHEN (old.status IS DISTINCT FROM new.status OR old.lock_token IS DISTINCT FROM new.lock_token)
    EXECUTE FUNCTION audit_seat();
INSERT INTO organizations (id, name, slug) VALUES ('org', 'org', 'org');
INSERT INTO venues (id, organization_id, name, slug, capacity) VALUES ('v', 'org', 'v', 'v', 1);
"""


@dataclass
class Hall:
    """What a run takes place in."""

    cluster: Cluster
    postgres: Postgres
    dsn: str
    sidecars: list[Sidecar]
    wires: list[Wires]

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Connection]:
        connection = await asyncpg.connect(self.dsn, timeout=5)
        try:
            yield connection
        finally:
            connection.terminate()


def rules_in(folder: Path, **changes: Any) -> Path:
    """Write the shipped policies there, with short locks; changes are fields of `lock:`.

    `hold` and `longest` are seconds, `queue=None` takes the queue away.
    """
    path = folder / "policies"
    path.mkdir(parents=True)
    for file in SHIPPED.iterdir():
        if file.suffix in (".yaml", ".sql", ".json"):
            (path / file.name).write_bytes(file.read_bytes())
    document = yaml.safe_load((path / "seats.yaml").read_text())
    space = document["keyspaces"]["seat_lock"]
    hold, longest = changes.pop("hold"), changes.pop("longest")
    space["ttl"] = {"default": f"{hold * 1000:.0f}ms", "max": f"{longest * 1000:.0f}ms"}
    space["lock"] |= changes
    if space["lock"].get("queue") is None:
        space["lock"].pop("queue", None)
    (path / "seats.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return path


async def furnish(dsn: str, seats: Iterable[Seat], owners: Iterable[str], rules: Path) -> None:
    """Fill an empty database with seats, people and what sidecars need there."""
    seats, owners = list(seats), list(owners)
    events = sorted({seat.event for seat in seats})
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute((SHIPPED / "schema.sql").read_text() + AUDIT)
        await connection.execute(
            "INSERT INTO users (id, email, name) SELECT u, u, u FROM unnest($1::text[]) u", owners
        )
        await connection.execute(
            "INSERT INTO events (id, organization_id, venue_id, title, event_date, doors_open,"
            " sales_start, sales_end, capacity, price_min_cents, price_max_cents)"
            " SELECT e, 'org', 'v', e, now() + '1 day', now() + '1 day', now(), now() + '1 hour',"
            " 1, 1, 1 FROM unnest($1::text[]) e", events,
        )  # fmt: skip
        await connection.copy_records_to_table(
            "seat_booking_state", records=list(seats), columns=["event_id", "seat_id"]
        )
        await connection.execute(
            "INSERT INTO bookings (booking_id, user_id, event_id, total_amount_cents, expires_at)"
            " SELECT b, u, e, 1, now() + '1 day'"
            " FROM unnest($1::text[], $2::text[], $3::text[]) AS t(b, u, e)",
            *zip(*((booking(u, e), u, e) for u in owners for e in events), strict=True),
        )
    finally:
        connection.terminate()
    read = compiler.read(rules, None)
    watches, locks = planning.watches_of(read), planning.locks_of(read)
    await installing.run(dsn, watches, apply=True, remove=False, locks=locks)


async def _wired(cluster: Cluster, postgres: Postgres, seed: int) -> tuple[Wires, dict[int, int]]:
    """Return relays for one sidecar, and which port leads to which."""
    relays = [Relay((node.host, node.port), seed=seed) for node in cluster.nodes]
    wires = Wires(relays, Relay((postgres.host, postgres.port), seed=seed))
    ports = {}
    for relay in (*relays, wires.postgres):
        await relay.start()
        ports[relay.target[1]] = relay.port
    return wires, ports


@contextlib.asynccontextmanager
async def hall(plan: Plan, **changes: Any) -> AsyncIterator[Hall]:
    """Open a hall of its own for a plan; changes are fields of `lock:` in the policies."""
    changes = {"per_owner": {"scope": "event_id", "max": plan.limit}, "queue": None} | changes
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_directory("sidecache-hall-"))
        cluster = Cluster("hall", find_redis(), folder, NodeOptions(node_timeout=1.0), Shape(3, 3))
        await stack.enter_async_context(cluster)
        postgres = await stack.enter_async_context(postgres_for(folder / "postgres"))
        rules = rules_in(folder, hold=plan.hold, longest=plan.hold + plan.longer, **changes)
        dsn = await postgres.create_database("hall")
        owners = [f"usr_{number}" for number in range(plan.clients)]
        seats = [seat for group in range(plan.groups) for seat in plan.seats_of(group)]
        await furnish(dsn, seats, owners, rules)
        made = Hall(cluster, postgres, dsn, [], [])
        for number in range(SIDECARS):
            wires, ports = await _wired(cluster, postgres, plan.seed + number)
            for relay in (*wires.nodes, wires.postgres):
                stack.push_async_callback(relay.stop)
            sidecar = Sidecar(_configuration(made, rules, folder), folder / f"sidecar{number}")
            divert(sidecar, ports, folder / f"detour{number}")
            stack.push_async_callback(sidecar.stop)
            made.sidecars.append(sidecar)
            made.wires.append(wires)
        await together(sidecar.start(timeout=STARTED_WITHIN) for sidecar in made.sidecars)
        yield made


def _configuration(made: Hall, rules: Path, folder: Path) -> dict[str, Any]:
    journal = {"directory": str(folder / f"journal{len(made.sidecars)}")}
    return configuration_for(
        {"locks": made.cluster, "cache": made.cluster}, policies=str(rules), journal=journal,
        database={**DATABASE, "url": made.dsn},
    )  # fmt: skip
