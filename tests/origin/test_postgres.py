"""PostgreSQL as its users see it: rows, counts, transactions, and one of three errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry

from proxy.config import Database
from proxy.errors import OriginBusy, OriginDown, OriginRefused
from proxy.origin.postgres import Postgres, Share
from proxy.plans import Statement
from proxy.secret import Secret
from proxy.tallies import OriginMetrics

pytestmark = pytest.mark.integration

SHARE = Share("x", 0.3)
NOWHERE = Secret("postgresql://x@127.0.0.1:1/x")

StartPostgres = Callable[..., Awaitable[Postgres]]


def read(text: str) -> Statement:
    return Statement("x read", text, ())


def write(text: str) -> Statement:
    return Statement("x write", text, ())


class Counted(OriginMetrics):
    """Metrics that a test looks into."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)

    def statements_of(self, command: str, outcome: str) -> float | None:
        labels = {"command": command, "outcome": outcome}
        return self.registry.get_sample_value("sidecache_origin_statements_total", labels)

    def up_of(self, node: str) -> float | None:
        return self.registry.get_sample_value("sidecache_origin_up", {"node": node})


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def start_postgres(postgres: str, counted: Counted) -> AsyncIterator[StartPostgres]:
    """The origin as a proxy has it, with settings of the test's own."""
    started: list[Postgres] = []

    async def start(**settings: object) -> Postgres:
        given = {"url": Secret(postgres), "direct_url": Secret(postgres)} | settings
        started.append(Postgres(Database(**given), counted))  # type: ignore[arg-type]
        await started[-1].start()
        return started[-1]

    yield start
    for each in started:
        await each.stop()


@pytest.fixture
async def table(start_postgres: StartPostgres) -> AsyncIterator[Postgres]:
    """An origin with an empty table t (id int primary key, v text)."""
    postgres = await start_postgres()
    await postgres.execute(write("CREATE TABLE t (id int PRIMARY KEY, v text)"), [], SHARE)
    yield postgres
    await postgres.execute(write("DROP TABLE t"), [], SHARE)


async def test_rows_and_counts(table: Postgres, counted: Counted) -> None:
    """Arguments are text whatever the column is; what was written is counted."""
    insert = write("INSERT INTO t VALUES ($1, $2)")
    assert await table.execute(insert, ["1", "a"], SHARE) == 1
    assert await table.execute(insert, ["2", None], SHARE) == 1
    assert await table.execute(write("UPDATE t SET v = 'x' WHERE id > 9"), [], SHARE) == 0
    rows = await table.fetch(read("SELECT * FROM t ORDER BY id"), [], SHARE)
    assert [tuple(row.items()) for row in rows] == [
        (("id", "1"), ("v", "a")), (("id", "2"), ("v", None)),
    ]  # fmt: skip
    assert counted.statements_of("read", "answered") == 1


async def test_a_transaction_is_all_or_nothing(table: Postgres) -> None:
    """A statement that is refused takes the others with it, and the connection stays."""
    insert = write("INSERT INTO t VALUES ($1, $2)")
    async with table.transaction(SHARE) as turn:
        assert await turn.execute(insert, ["1", "a"]) == 1
        assert len(await turn.fetch(read("SELECT * FROM t"), [])) == 1
    pid = read("SELECT pg_backend_pid() AS pid")
    before = await table.fetch(pid, [], SHARE)

    async def twice() -> None:
        async with table.transaction(SHARE) as turn:
            await turn.execute(insert, ["2", "b"])
            await turn.execute(insert, ["1", "again"])

    with pytest.raises(OriginRefused) as refused:
        await twice()
    assert refused.value.sqlstate == "23505"
    assert len(await table.fetch(read("SELECT * FROM t"), [], SHARE)) == 1
    assert await table.fetch(pid, [], SHARE) == before


async def test_a_late_transaction_ends_at_its_deadline(table: Postgres) -> None:
    """It does not wait for a rollback; whether it was committed stays open."""

    async def late() -> None:
        async with table.transaction(SHARE, timeout=0.05) as turn:
            await turn.fetch(read("SELECT pg_sleep(1)"), [])

    with pytest.raises(OriginDown) as down:
        await late()
    assert down.value.sent


async def test_a_full_budget_is_busy(start_postgres: StartPostgres, counted: Counted) -> None:
    """Who finds no turn hears TRYAGAIN in time, and PostgreSQL no more than its limit."""
    postgres = await start_postgres(connections=1, queue=1, patience=0.05)
    sleep = asyncio.create_task(postgres.fetch(read("SELECT pg_sleep(0.4)"), [], SHARE))
    while not postgres._budget.used:
        await asyncio.sleep(0)
    with pytest.raises(OriginBusy) as busy:
        await postgres.fetch(read("SELECT 1"), [], SHARE)
    assert busy.value.line.startswith(b"-TRYAGAIN ")
    await sleep
    assert counted.statements_of("read", "busy") == 1


async def test_reads_go_to_a_replica_unless_they_may_not(
    start_postgres: StartPostgres, counted: Counted, postgres: str
) -> None:
    """A replica that is away costs a read nothing; what must be fresh never goes there."""
    away = await start_postgres(replicas=(NOWHERE,))
    assert counted.up_of("replica1") == 0
    assert counted.up_of("primary") == 1
    assert await away.fetch(read("SELECT 1 AS a"), [], SHARE)
    there = await start_postgres(replicas=(Secret(postgres + "?application_name=ignored"),))
    there._primary.up = False
    assert await there.fetch(read("SELECT 1 AS a"), [], SHARE)
    with pytest.raises(OriginDown):
        await there.fetch(read("SELECT 1 AS a"), [], SHARE, primary=True)
    with pytest.raises(OriginDown):
        await there.execute(write("SELECT 1"), [], SHARE)


async def test_without_a_server_clients_are_told_so(
    start_postgres: StartPostgres, counted: Counted
) -> None:
    """The start does not fail; calls do, at once; the state is a metric and a call."""
    postgres = await start_postgres(url=NOWHERE, direct_url=NOWHERE)
    seen: list[bool] = []
    postgres.watch(seen.append)
    assert not postgres.up
    began = asyncio.get_running_loop().time()
    with pytest.raises(OriginDown) as down:
        await postgres.fetch(read("SELECT 1"), [], SHARE)
    assert asyncio.get_running_loop().time() - began < 0.05
    assert down.value.line == b"-PGDOWN PostgreSQL cannot be reached\r\n"
    assert not down.value.sent
    assert counted.statements_of("read", "down") == 1
    with pytest.raises(OriginDown):
        await postgres.connect()


async def test_behind_pgbouncer_nothing_stays_prepared(start_postgres: StartPostgres) -> None:
    """Where each statement may run on another session, none is remembered by name."""
    postgres = await start_postgres(prepared=False)
    for _ in range(3):
        await postgres.fetch(read("SELECT $1::int"), ["1"], SHARE)
    rows = await postgres.fetch(read("SELECT count(*) AS n FROM pg_prepared_statements"), [], SHARE)
    assert rows[0]["n"] == "0"


@pytest.mark.parametrize("prepared", [True, False])
async def test_a_leader_has_a_session_of_its_own(
    start_postgres: StartPostgres, prepared: bool
) -> None:
    """With the types of the driver and the deadlines of the configuration, outside the budget."""
    postgres = await start_postgres(connections=1, prepared=prepared)
    connection = await postgres.connect("sidecache test")
    try:
        assert await connection.fetchval("SELECT pg_try_advisory_lock(7)") is True
        assert await connection.fetchval("SHOW application_name") == "sidecache test"
        assert await connection.fetchval("SHOW statement_timeout") == "800ms"
        assert await connection.fetchval("SHOW lock_timeout") == "250ms"
    finally:
        connection.terminate()


@pytest.mark.parametrize("prepared", [True, False])
async def test_what_is_committed_is_read(start_postgres: StartPostgres, prepared: bool) -> None:
    """Whatever the database says to all who come; but behind PgBouncer it has the last word."""
    postgres = await start_postgres(prepared=prepared)
    here = "SELECT format('ALTER DATABASE %I ', current_database())"
    first = await postgres.connect()
    alter = await first.fetchval(here)
    await first.execute(f"{alter} SET default_transaction_isolation = 'repeatable read'")
    try:
        leader = await postgres.connect()
        assert await leader.fetchval("SHOW transaction_isolation") == "read committed"
        leader.terminate()
        again = await start_postgres(prepared=prepared)
        (row,) = await again.fetch(
            read("SELECT current_setting('transaction_isolation') AS how"), [], SHARE
        )
        assert row["how"] == ("read committed" if prepared else "repeatable read")
    finally:
        await first.execute(f"{alter} RESET default_transaction_isolation")
        first.terminate()
