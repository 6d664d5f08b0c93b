"""A copy of a PostgreSQL server of our own that follows it: a streaming replica, for reads.

Used by the demo and the tests, as `async with standby_for(primary, directory) as standby:`. It has
a server's life (`postgres.Postgres`) and the primary's databases.
"""

from pathlib import Path

from proxy.embedded.postgres import EXISTING_SERVER, USER, ExistingPostgres, Postgres
from proxy.embedded.process import EmbeddedError


class Standby(Postgres):
    """A replica of a running primary."""

    def __init__(self, primary: Postgres, directory: Path) -> None:
        super().__init__(primary.program, directory)
        self._primary = primary

    async def _initialise(self) -> None:
        """Copy the primary while it runs; --write-recovery-conf names it as the one to follow."""
        await self._run(
            "pg_basebackup",
            *("--host", self._primary.host, "--port", str(self._primary.port)),
            *("--username", USER, "--pgdata", str(self.data), "--wal-method", "stream"),
            *("--checkpoint", "fast", "--no-sync", "--write-recovery-conf"),
        )


def standby_for(primary: Postgres, directory: Path) -> Standby:
    """Return a standby, not started. Raises EmbeddedError where the server is somebody else's."""
    if isinstance(primary, ExistingPostgres):
        raise EmbeddedError(f"{EXISTING_SERVER} names a server that is not ours to copy")
    return Standby(primary, directory)
