"""One PostgreSQL server: connections while it is there, and a quick no while it is not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from proxy.config import Database
from proxy.embedded.postgres import Postgres as Server
from proxy.embedded.postgres import postgres_for
from proxy.embedded.process import temporary_directory
from proxy.errors import OriginBusy, OriginDown, OriginMisfit, OriginRefused
from proxy.origin.pool import Pool, connect, failure
from proxy.secret import Secret

StartPool = Callable[..., Awaitable[Pool]]


@pytest.fixture
async def start_pool(postgres: str) -> AsyncIterator[StartPool]:
    """Pools of the shared server, or of another; stopped with the test."""
    pools: list[Pool] = []

    async def start(
        url: str = postgres, connections: int = 2, connect_timeout: float = 1.0
    ) -> Pool:
        database = Database(
            Secret(url), Secret(url), connections=connections, timeout=2.0,
            connect_timeout=connect_timeout,
        )  # fmt: skip
        pools.append(Pool("primary", Secret(url), database, lambda pool: None))
        await pools[-1].start()
        return pools[-1]

    yield start
    for pool in pools:
        await pool.stop()


@pytest.fixture
async def own_server() -> AsyncIterator[Server]:
    """A server that the test may kill."""
    with temporary_directory("sidecache-test-") as directory:
        async with postgres_for(Path(directory) / "postgres") as server:
            yield server


def soon(seconds: float = 2.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(pool: Pool, sql: str = "SELECT 1", seconds: float = 2.0) -> object:
    async with pool.connection(soon(seconds)) as connection:
        return await connection.fetchval(sql)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_what_errors_mean() -> None:
    """Later, away, or never: by the SQL state, and by what the driver raises."""
    busy = [asyncpg.DeadlockDetectedError(""), asyncpg.LockNotAvailableError(""),
            asyncpg.QueryCanceledError(""), asyncpg.TooManyConnectionsError("")]  # fmt: skip
    assert all(isinstance(failure(error), OriginBusy) for error in busy)
    away = [asyncpg.AdminShutdownError(""), asyncpg.ReadOnlySQLTransactionError(""),
            asyncpg.ConnectionDoesNotExistError(""), ConnectionResetError()]  # fmt: skip
    assert all(isinstance(failure(error), OriginDown) for error in away)
    refused = failure(asyncpg.UniqueViolationError("Key (email)=(x) exists"))
    assert isinstance(refused, OriginRefused)
    assert refused.line == b"-ERR PostgreSQL refused this (SQLSTATE 23505)\r\n"


@pytest.mark.integration
async def test_a_connection_is_kept_while_it_is_sound(start_pool: StartPool) -> None:
    """The same one serves again, also after an error that says nothing against it."""
    pool = await start_pool()
    first = await ask(pool, "SELECT pg_backend_pid()")
    with pytest.raises(OriginRefused):
        await ask(pool, "SELECT 1 / 0")
    with pytest.raises(OriginMisfit):
        async with pool.connection(soon()):
            raise OriginMisfit("rows")
    assert await ask(pool, "SELECT pg_backend_pid()") == first


@pytest.mark.integration
async def test_sessions_are_told_what_to_be(start_pool: StartPool) -> None:
    """Their limits are below ours, so that PostgreSQL ends a statement before we do."""
    pool = await start_pool()
    told = [
        await ask(pool, f"SHOW {name}")
        for name in ("statement_timeout", "lock_timeout", "TimeZone", "application_name")
    ]
    assert told == ["1600ms", "250ms", "UTC", "sidecache"]


@pytest.mark.integration
async def test_a_late_statement_costs_its_connection(start_pool: StartPool) -> None:
    """What state it is in nobody knows; the statement may have run; others go on."""
    pool = await start_pool()
    first = await ask(pool, "SELECT pg_backend_pid()")
    with pytest.raises(OriginDown) as late:
        await ask(pool, "SELECT pg_sleep(1)", seconds=0.05)
    assert late.value.sent
    assert await ask(pool, "SELECT pg_backend_pid()") != first


@pytest.mark.integration
async def test_a_transaction_that_is_left_open_costs_its_connection(start_pool: StartPool) -> None:
    """Nobody inherits half of what somebody else did."""
    pool = await start_pool()
    async with pool.connection(soon()) as connection:
        await connection.execute("BEGIN")
    assert connection.is_closed()


@pytest.mark.integration
async def test_there_are_never_more_connections_than_allowed(
    start_pool: StartPool, postgres: str
) -> None:
    """Not even while it is looked whether the server is there."""
    pool = await start_pool(connections=2)
    name = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sidecache'"
    before = await ask(pool, name)
    async with pool.connection(soon()) as one, pool.connection(soon()):
        with pytest.raises(OriginDown, match="in use"):
            async with pool.connection(soon()):
                pass
        assert int(await one.fetchval(name)) == int(str(before)) + 1
        assert pool.up


@pytest.mark.integration
async def test_a_server_that_dies_and_comes_back(own_server: Server, start_pool: StartPool) -> None:
    """The statement under way hears at once, the next ones too; back it serves within a second."""
    loop = asyncio.get_running_loop()
    pool = await start_pool(own_server.dsn)
    asked = asyncio.create_task(ask(pool, "SELECT pg_sleep(1)"))
    await until(lambda: pool._open == 1 and not pool._idle)
    own_server.kill()
    began = loop.time()
    with pytest.raises(OriginDown):
        await asked
    await until(lambda: not pool.up)
    with pytest.raises(OriginDown, match="is down"):
        await ask(pool)
    assert loop.time() - began < 1.0
    await own_server.restart()
    began = loop.time()
    await until(lambda: pool.up)
    assert loop.time() - began < 1.0
    assert await ask(pool) == "1"


@pytest.mark.integration
async def test_a_death_is_noticed_without_anybody_asking(
    own_server: Server, start_pool: StartPool
) -> None:
    """Health pages tell the truth on a quiet night."""
    pool = await start_pool(own_server.dsn)
    own_server.kill()
    await until(lambda: not pool.up)


@pytest.mark.integration
async def test_a_server_that_freezes_and_thaws(own_server: Server, start_pool: StartPool) -> None:
    """Every call ends at its own deadline; soon they fail at once; thawed it serves again."""
    pool = await start_pool(own_server.dsn, connect_timeout=0.1)
    own_server.pause()
    try:
        with pytest.raises(OriginDown) as asked:
            await ask(pool, seconds=0.1)
        assert asked.value.sent
        await until(lambda: not pool.up)
        with pytest.raises(OriginDown, match="is down"):
            await ask(pool)
    finally:
        own_server.resume()
    await until(lambda: pool.up)
    assert await ask(pool) == "1"
    assert pool._open <= 2


@pytest.mark.integration
async def test_a_mistake_of_ours_is_none_of_the_server(start_pool: StartPool) -> None:
    """Too few arguments are an exception, and say nothing about connection or server."""
    pool = await start_pool()
    with pytest.raises(asyncpg.InterfaceError):
        await ask(pool, "SELECT $1::int")
    assert pool.up


async def test_no_server_is_no_failure() -> None:
    """A pool starts, and says no at once."""
    database = Database(Secret("postgresql://x@127.0.0.1:1/x"), Secret(""))
    pool = Pool("primary", database.url, database, lambda pool: None)
    await pool.start()
    assert not pool.up
    with pytest.raises(OriginDown):
        await ask(pool)
    await pool.stop()


async def test_a_url_that_is_none() -> None:
    """Is an outage that says why, and not a crash."""
    database = Database(Secret("mysql://x"), Secret(""))
    with pytest.raises(OriginDown, match="cannot be reached"):
        await connect(database.url, database)
