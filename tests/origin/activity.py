"""A keyspace of counters that is written behind, its table, and proxies' own tables."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from proxy.origin.batching import Connection
from proxy.origin.installing import install_sql
from proxy.origin.records import Change, Op
from proxy.plans import Age, Detour, Parameter, Plan, Plans, Statement, Writing
from proxy.wire.rules import Segment

TABLES = f"""
{install_sql(())}
CREATE TABLE activity (
    id text, day date, views integer NOT NULL DEFAULT 0, calls integer NOT NULL DEFAULT 0,
    name text, score numeric CHECK (score < 1000), PRIMARY KEY (id, day)
);
"""

UPSERT = Statement(
    "activity write",
    """INSERT INTO activity AS a (id, day, views, calls, name, score)
       VALUES ($1::text, $2::date, coalesce($3, 0), coalesce($4, 0), $5, $6)
       ON CONFLICT (id, day) DO UPDATE
          SET views = a.views + excluded.views, calls = a.calls + excluded.calls,
              name = coalesce(excluded.name, a.name), score = greatest(a.score, excluded.score)""",
    (
        Parameter("id", "text"),
        Parameter("day", "date"),
        *(Parameter(name, "field") for name in ("views", "calls", "name", "score")),
    ),
    "activity.yaml:3:5",
)


def writing(
    merge: str = "add",
    every: float = 0.02,
    rows: int = 1000,
    journal_bytes: int = 1 << 20,
    statement: Statement = UPSERT,
) -> Writing:
    return Writing("behind", statement, merge, every, rows, journal_bytes)


def plan_of(
    written: Writing | None = None, type: str = "hash", detour: Detour | None = None
) -> Plan:
    return Plan(
        keyspace=0, name="activity",
        pattern=(b"activity:", Segment("id", "text"), b":", Segment("day", "date")),
        cluster=0, kind="state", type=type, ttl_ms=86_400_000, jitter=0.0, read=None, columns=(),
        max_rows=1, age=Age(), writing=written or writing(), detour=detour or Detour(),
        restoring=None, on_loss=None, drift=0.0, security=False,
    )  # fmt: skip


def plans_of(plan: Plan) -> Plans:
    return Plans({plan.keyspace: plan})


def views(amount: int) -> tuple[Change, ...]:
    return (Change(Op.ADD, b"views", b"%d" % amount),)


def key_of(number: int) -> bytes:
    return b"activity:u%d:2026-11-29" % number


def connecting(dsn: str) -> Callable[[], Awaitable[Connection]]:
    async def connect() -> Connection:
        return await asyncpg.connect(dsn, timeout=5)

    return connect


async def rows_of(dsn: str, query: str, *arguments: Any) -> Sequence[Any]:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return [tuple(row) for row in await connection.fetch(query, *arguments, timeout=10)]
    finally:
        connection.terminate()


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        await connection.execute(statement, timeout=10)
    finally:
        connection.terminate()
