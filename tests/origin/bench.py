"""Databases with two small tables that are watched, for tests of what changes in them."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg

from proxy.embedded.postgres import Postgres
from proxy.origin import installing
from proxy.plans import Watch

Connection: TypeAlias = "asyncpg.Connection[Any]"

TABLES = """
CREATE TABLE event (id text PRIMARY KEY, title text, venue int, day date);
CREATE TABLE "Odd.ly" (id text);
CREATE SCHEMA sales;
CREATE TABLE sales.seat (event text, seat text, status text, PRIMARY KEY (event, seat))"""

COLUMNS = (("id", "p.yaml:1:2"), ("venue", "p.yaml:3:4"), ("day", "p.yaml:5:6"))
WATCHES = (
    Watch("event", COLUMNS, "p.yaml:1:1"),
    Watch("sales.seat", (("event", "p.yaml:7:8"),), "p.yaml:7:1"),
)

_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def database(server: Postgres, *, installed: bool = True) -> AsyncIterator[str]:
    """The address of a database with the tables, dropped behind the test."""
    name = f"outbox{next(_numbers)}"
    url = await server.create_database(name)
    try:
        async with connected(url) as connection:
            await connection.execute(TABLES)
        if installed:
            await installing.run(url, WATCHES, apply=True, remove=False)
        yield url
    finally:
        await server.drop_database(name)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        yield connection
    finally:
        connection.terminate()
