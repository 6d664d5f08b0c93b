"""A streaming replica of a real server."""

from pathlib import Path

import asyncpg
import pytest

from proxy.embedded.postgres import EXISTING_SERVER, ExistingPostgres, Postgres
from proxy.embedded.process import EmbeddedError, temporary_directory
from proxy.embedded.programs import find_postgres
from proxy.embedded.standby import standby_for
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration


async def test_a_standby_follows_its_primary_and_takes_reads_only() -> None:
    """What is committed before and after the copy shows up; a write is refused."""
    with temporary_directory("sidecache-test-") as directory:
        async with Postgres(find_postgres(), directory / "primary") as primary:
            dsn = await primary.create_database("shop")
            writer = await asyncpg.connect(dsn, timeout=5)
            await writer.execute("CREATE TABLE t AS SELECT 1 AS n")
            async with standby_for(primary, directory / "standby") as standby:
                reader = await asyncpg.connect(standby.dsn_of("shop"), timeout=5)
                await writer.execute("INSERT INTO t VALUES (2)")

                async def followed() -> bool:
                    return await reader.fetchval("SELECT sum(n) FROM t", timeout=5) == 3

                await wait_for(followed, "the standby to follow")
                with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                    await reader.execute("INSERT INTO t VALUES (3)", timeout=5)
                await reader.close(timeout=5)
                pid = standby.pid
            assert not Path(f"/proc/{pid}").exists()
            await writer.close(timeout=5)


def test_the_server_of_somebody_else_is_not_copied(tmp_path: Path) -> None:
    """The error names the variable that names the server."""
    existing = ExistingPostgres("postgresql://x@127.0.0.1:1/postgres", tmp_path)
    with pytest.raises(EmbeddedError, match=EXISTING_SERVER):
        standby_for(existing, tmp_path / "standby")
