"""Seats of a small database behind a proxy, and locks that no table of it has."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.origin import installing
from proxy.origin.batching import Connection
from proxy.policy import compiler, planning
from proxy.upstream.mirror import GRACE, SEEN
from proxy.wire import key_slot
from tests.integration.rig import Caller

_NUMBERS = count()

TABLES = """
CREATE TABLE seats (
    event text, seat text, status text NOT NULL DEFAULT 'available', locked_by text,
    locked_at timestamptz, locked_until timestamptz, lock_token bigint, booking_id text,
    session_id text, updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (event, seat));
CREATE INDEX ON seats (event, locked_by) WHERE status = 'locked';
CREATE INDEX ON seats (locked_until) WHERE status = 'locked';
INSERT INTO seats (event, seat) SELECT 'e' || e, 's' || n
  FROM generate_series(1, 3) e, generate_series(1, 200) n;
"""

RULES = """
keyspaces:
  seat_lock:
    key: seat_lock:{event}:{seat}
    cluster: locks
    hash_tag: event
    kind: lock
    type: json
    ttl: {default: 60s, max: 90s}
    value: {json: true}
    lock:
      table: seats
      key: {event: event, seat: seat}
      owner: $.user_id
      max_hold: 120s
      per_owner: {scope: event, max: 10}
      queue: {heartbeat: 2s, offer: 1s}
    on_loss: restore
    restore:
      sql: |
        SELECT event, seat,
               json_build_object('user_id', locked_by, 'booking_id', booking_id) AS value,
               extract(epoch FROM least(locked_until, clock_timestamp() + interval '1 year')
                                  - clock_timestamp()) AS ttl
          FROM seats WHERE status = 'locked' AND locked_until > clock_timestamp()
  mutex:
    key: mutex:{rest:path}
    cluster: locks
    kind: lock
    ttl: {default: 60s}
    lock: {owner: value}
  careful:
    key: careful:{name}
    cluster: locks
    kind: lock
    ttl: {default: 60s}
    lock: {owner: value, blind_del: never, gate: off}
"""


def held_by(user: str, **more: str) -> str:
    """Return the value of a seat's lock."""
    return json.dumps({"user_id": user, **more})


class Hall:
    """A proxy between the cluster of the locks and a database."""

    def __init__(self, proxy: Sidecar, cluster: Cluster, database: Connection) -> None:
        self.proxy = proxy
        self.cluster = cluster
        self.database = database

    async def caller(self) -> Caller:
        return await Caller.open(self.proxy.port)

    async def row(self, seat: str, event: str = "e1") -> dict[str, Any]:
        """Return the row of a seat."""
        found = await self.database.fetchrow(
            "SELECT *, locked_until > clock_timestamp() AS live FROM seats"
            " WHERE event = $1 AND seat = $2",
            event, seat,
        )  # fmt: skip
        return dict(found or {})

    async def clear(self) -> None:
        """Let nobody hold anything or wait, and Redis know of nothing."""
        await self.database.execute(
            "TRUNCATE sidecache_locks, sidecache_lock_queue; UPDATE seats SET status = 'available',"
            " locked_by = NULL, locked_at = NULL, locked_until = NULL, lock_token = NULL,"
            " booking_id = NULL, session_id = NULL"
        )
        await self.cluster.flush()
        # What the proxy has seen of a lock it takes for true for so long.
        await asyncio.sleep(SEEN + GRACE)

    async def expire(self, seat: str, event: str = "e1") -> None:
        """Let the lock of a seat be over."""
        await self.database.execute(
            "UPDATE seats SET locked_until = clock_timestamp() - interval '1 ms'"
            " WHERE event = $1 AND seat = $2",
            event, seat,
        )  # fmt: skip

    async def direct(self, *words: str) -> Any:
        """Ask the node that has a key, past the proxy."""
        owner = await self.cluster.owner(key_slot(words[1].encode()))
        return await owner.ask(*words)


@contextlib.asynccontextmanager
async def hall(
    server: Postgres, cluster: Cluster, folder: Path, rules: str = RULES, **settings: Any
) -> AsyncIterator[Hall]:
    """Start a proxy with `RULES`, in front of a cluster and a database with its settings."""
    name = f"hall{next(_NUMBERS)}"
    dsn = await server.create_database(name)
    database = await asyncpg.connect(dsn)
    path = folder / "rules.yaml"
    path.write_text(rules)
    try:
        await database.execute(TABLES)
        policies = compiler.read(path, ("locks",))
        await installing.run(
            dsn, planning.watches_of(policies), apply=True, remove=False,
            locks=planning.locks_of(policies),
        )  # fmt: skip
        blocks = {"policies": str(path), "database": {"url": dsn, **settings}}
        async with Sidecar(configuration_for({"locks": cluster}, **blocks), folder) as proxy:
            yield Hall(proxy, cluster, database)
    finally:
        database.terminate()
        await server.drop_database(name)
