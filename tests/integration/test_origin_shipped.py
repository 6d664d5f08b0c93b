"""The shipped policies with the sample database: what PostgreSQL answers is what Redis holds."""

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded import sample
from proxy.embedded.postgres import Postgres
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, is_error, wait_for

pytestmark = pytest.mark.integration

# Keyspace, a statement for ids, the command that reads all of it.
KEYS = {
    "event": ("SELECT id FROM events", "HGETALL"),
    "venue": ("SELECT id FROM venues", "GET"),
    "org": ("SELECT id FROM organizations", "GET"),
    "user_perms": ("SELECT id FROM users LIMIT 40", "GET"),
    "user_prefs": ("SELECT user_id FROM user_preferences LIMIT 40", "GET"),
    "event_availability": ("SELECT id FROM events", "HGETALL"),
}


@pytest.fixture(scope="module")
async def booking_dsn(postgres_server: Postgres) -> AsyncIterator[str]:
    dsn = await postgres_server.create_database("shipped")
    await sample.load(dsn, 1)
    yield dsn
    await postgres_server.drop_database("shipped")


@pytest.fixture
async def front(
    booking_dsn: str, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> Sidecar:
    proxy: Sidecar = await proxy_process(
        policies=str(files("proxy") / "policies"),
        database={"url": booking_dsn},
        journal={"directory": str(tmp_path / "journal")},
    )
    return proxy


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_first_answer_is_the_second(
    front: Sidecar, booking_dsn: str, protocol: int
) -> None:
    """What is answered from rows and what Redis has been filled with are the same values."""
    caller = await Caller.open(front.port)
    await caller.call("HELLO", protocol)
    database = await asyncpg.connect(booking_dsn)
    compared = 0
    for keyspace, (statement, command) in KEYS.items():
        for (identity,) in await database.fetch(statement):
            key = f"{keyspace}:{identity}"
            first = await caller.call(command, key)
            second = await caller.call(command, key)
            assert not is_error(first), (key, first)
            assert first, key
            assert first == second or dict_of(first) == dict_of(second), key
            assert await caller.call("TTL", key) > 0
            compared += 1
    database.terminate()
    assert compared > 100


def dict_of(value: object) -> dict[bytes, bytes]:
    if isinstance(value, dict):
        return value
    assert isinstance(value, list)
    return dict(zip(value[::2], value[1::2], strict=True))


async def test_an_event_is_written_through(front: Sidecar, booking_dsn: str) -> None:
    """The columns that are named are written, with their types; the next read shows them."""
    caller = await Caller.open(front.port)
    database = await asyncpg.connect(booking_dsn)
    (identity, status) = await database.fetchrow(
        "SELECT id, status FROM events ORDER BY id LIMIT 1"
    )
    key = f"event:{identity}"
    assert await caller.call("HSET", key, "title", "Another", "price_min", "1250") == 0
    row = await database.fetchrow("SELECT * FROM events WHERE id = $1", identity)
    assert (row["title"], row["price_min_cents"], row["status"]) == ("Another", 1250, status)

    async def shown() -> bool:
        return bool(await caller.call("HMGET", key, "title", "price_min") == [b"Another", b"1250"])

    await wait_for(shown, "the write to be seen", 1)
    refused = await caller.call("HSET", key, "price_min", "cheap")
    assert "SQLSTATE 22" in str(refused)
    assert str(await caller.call("HSET", "event:none", "title", "x")).startswith("POLICY")
    assert await caller.call("EXISTS", "event:none", key) == 1
    database.terminate()
