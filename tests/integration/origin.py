"""A small database behind a proxy, with a count of what it is asked."""

import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from proxy.origin.batching import Connection
from tests.integration.rig import Caller, StartProxy, Word, direct

_NUMBERS = count()

TABLES = """
CREATE TABLE items (id text PRIMARY KEY, title text, price numeric);
CREATE SEQUENCE looks;
CREATE TABLE pace (seconds float NOT NULL);
INSERT INTO pace VALUES (0);
CREATE FUNCTION item(wanted text) RETURNS SETOF items LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM nextval('looks');
  RETURN QUERY SELECT * FROM items WHERE id = wanted;
  -- What is read is old by the time that it arrives.
  PERFORM pg_sleep(seconds) FROM pace WHERE seconds > 0;
END $$;
INSERT INTO items SELECT n::text, 'title ' || n, n + 0.5 FROM generate_series(1, 100) n;
"""

RULES = """
keyspaces:
  item:
    key: item:{id}
    type: hash
    ttl: {default: 60s}
    origin: {read: "SELECT title, price FROM item(:id)"}
    freshness: {stale_while_revalidate: 30s, stale_if_error: 60s, negative: 5s}
    write:
      mode: through
      sql: >
        UPDATE items SET title = coalesce(:title, title), price = coalesce(:price, price)
        WHERE id = :id
    fallback: {reads: origin, writes: origin}
  title:
    key: title:{id}
    type: string
    ttl: {default: 60s}
    origin: {read: "SELECT title FROM item(:id)"}
    freshness: {negative: 5s}
    write:
      mode: through
      sql: >
        INSERT INTO items (id, title) VALUES (:id, :value)
        ON CONFLICT (id) DO UPDATE SET title = excluded.title
    fallback: {reads: origin, writes: origin}
  note:
    key: note:{id}
    type: string
    ttl: {default: 60s}
    origin: {read: "SELECT title FROM item(:id)"}
    freshness: {stale_while_revalidate: 30s, stale_if_error: 60s}
    transactions: split
"""


class Stage:
    """A proxy between a cluster and a database."""

    def __init__(self, proxy: Sidecar, cluster: Cluster, database: Connection) -> None:
        self.proxy = proxy
        self.cluster = cluster
        self.database = database

    async def caller(self) -> Caller:
        return await Caller.open(self.proxy.port)

    async def another(self, start: StartProxy) -> Sidecar:
        """Start a second proxy of the same cluster, database and policies."""
        blocks = {name: self.proxy.configuration[name] for name in ("policies", "database")}
        return await start({"cache": self.cluster}, **blocks)

    async def looks(self) -> int:
        """Return how often the database was asked for an item."""
        row = await self.database.fetchrow("SELECT last_value, is_called FROM looks")
        return int(row[0]) if row[1] else 0

    async def sessions(self) -> int:
        """Return how many sessions the proxy has at the database."""
        text = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'sidecache%'"
        )
        return int(await self.database.fetchval(text))

    async def direct(self, *words: Word) -> Any:
        """Send a command with a key past the proxy, to whichever node has it."""
        return await direct(self.cluster, *words)

    async def void(self, key: str) -> None:
        """Invalidate a key, as the applier of the outbox does."""
        lease, marker = (f"sidecache:{kind}:{{{key}}}" for kind in ("lease", "none"))
        await self.direct("UNLINK", lease, key, marker)

    async def metric(self, line: str) -> float:
        """Return the value of a line of /metrics by its beginning, 0 where there is none."""
        _, page = await self.proxy.get("/metrics")
        found = [text for text in page.splitlines() if text.startswith(line + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


@contextlib.asynccontextmanager
async def staged(
    server: Postgres,
    cluster: Cluster,
    start: StartProxy,
    folder: Path,
    *,
    other: Cluster | None = None,
    **blocks: Any,
) -> AsyncIterator[Stage]:
    """Start a proxy with `RULES`, in front of a cluster and a database of its own.

    The rules are about the first cluster; the other is there as locks.
    """
    clusters = {"cache": cluster} | ({"locks": other} if other is not None else {})
    name = f"origin{next(_NUMBERS)}"
    dsn = await server.create_database(name)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(TABLES)
        (folder / "rules.yaml").write_text(RULES)
        proxy = await start(
            clusters,
            policies=str(folder),
            database={"url": dsn, **blocks.pop("database", {})},
            **blocks,
        )
        yield Stage(proxy, cluster, connection)
    finally:
        connection.terminate()
        # A test that ends the server need not start it again.
        with contextlib.suppress(OSError):
            await server.drop_database(name)
