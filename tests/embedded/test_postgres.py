"""A real PostgreSQL: both ways round root, databases, signals."""

import os
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded import postgres
from proxy.embedded.postgres import ExistingPostgres, Postgres, Privilege, choose_privilege
from proxy.embedded.process import EmbeddedError, temporary_directory
from proxy.embedded.programs import Program, find_postgres

pytestmark = pytest.mark.integration

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")


async def query(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return await connection.fetchval(sql, timeout=5)
    finally:
        await connection.close(timeout=5)


async def test_a_server_starts_answers_over_both_listeners_and_leaves_nothing() -> None:
    """TCP and the unix socket reach the same server; afterwards process and files are gone."""
    with temporary_directory("sidecache-test-") as directory:
        async with Postgres(find_postgres(), directory / "postgres") as server:
            over_tcp = await query(server.dsn, "SELECT pg_postmaster_start_time()")
            over_unix = await query(
                f"postgresql://{postgres.USER}@/postgres?host={server.socket_directory}&port={server.port}",
                "SELECT pg_postmaster_start_time()",
            )
            assert over_tcp == over_unix
            pid = server.pid
            assert pid is not None
        assert not Path(f"/proc/{pid}").exists()
    assert not directory.exists()


async def test_a_database_can_be_a_copy_of_another(postgres_server: Postgres) -> None:
    """A template gives every test its own filled database for the price of a copy."""
    dsn = await postgres_server.create_database("original")
    await query(dsn, "CREATE TABLE t AS SELECT 42 AS n")
    copy = await postgres_server.create_database('a "copy"', template="original")
    assert await query(copy, "SELECT n FROM t") == 42
    await postgres_server.drop_database('a "copy"')
    await postgres_server.drop_database("original")
    assert (
        await query(
            postgres_server.dsn, "SELECT count(*) FROM pg_database WHERE datname ~ 'copy|orig'"
        )
        == 0
    )


async def test_an_existing_server_gets_back_what_it_had(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    """In somebody else's server, databases of our own are made and removed again."""
    async with ExistingPostgres(postgres_server.dsn, tmp_path) as server:
        dsn = await server.create_database("guest")
        name = await query(dsn, "SELECT current_database()")
        assert name == f"sidecache_{os.getpid()}_guest"
        assert server.pid is None
    names = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"
    assert await query(postgres_server.dsn, names) == 0


async def test_an_existing_server_that_is_away_is_an_error(tmp_path: Path) -> None:
    """The variable that named it stands in the error."""
    with pytest.raises(EmbeddedError, match=postgres.EXISTING_SERVER):
        await ExistingPostgres("postgresql://x@127.0.0.1:1/postgres", tmp_path).start()


async def test_a_server_can_be_frozen_killed_and_started_again() -> None:
    """Frozen it is silent with its sessions; killed it comes back where it was, with its data."""
    with temporary_directory("sidecache-test-") as directory:
        async with Postgres(find_postgres(), directory / "postgres") as server:
            connection = await asyncpg.connect(server.dsn, timeout=5)
            await connection.execute("CREATE TABLE t AS SELECT 42 AS n")
            server.pause()
            with pytest.raises(TimeoutError):
                await connection.fetchval("SELECT 1", timeout=0.1)
            server.resume()
            dsn = server.dsn
            server.kill()
            with pytest.raises((OSError, asyncpg.PostgresError)):
                await query(dsn, "SELECT 1")
            connection.terminate()
            await server.restart()
            assert server.dsn == dsn
            assert await query(dsn, "SELECT n FROM t") == 42


@root
def test_root_becomes_another_user_where_that_user_can_reach_everything() -> None:
    """The first way out needs no namespace."""
    with temporary_directory("sidecache-test-") as directory:
        privilege = choose_privilege(find_postgres(), directory)
        assert privilege.account is not None
        assert directory.stat().st_uid == privilege.account.uid


@root
async def test_root_uses_a_namespace_where_no_other_user_can_reach_the_data() -> None:
    """The second way out runs a whole server in a directory that only root may enter."""
    with temporary_directory("sidecache-test-") as directory:
        directory.chmod(0o700)
        async with Postgres(find_postgres(), directory / "postgres") as server:
            privilege = choose_privilege(find_postgres(), server.directory)
            assert privilege.account is None
            assert privilege.prefix[0] == "unshare"
            assert await query(server.dsn, "SELECT 1") == 1


@root
def test_root_without_a_way_out_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither way works, the error names both and the remedy."""
    monkeypatch.setattr(postgres, "_works", lambda *_: False)
    with pytest.raises(EmbeddedError, match=f"unshare.*{postgres.EXISTING_SERVER}"):
        choose_privilege(Program(Path("/nonexistent"), "", ""), tmp_path)


def test_others_than_root_run_it_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who is not root needs no way out."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose_privilege(Program(Path("/nonexistent"), "", ""), tmp_path) == Privilege()
