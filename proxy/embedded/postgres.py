"""A PostgreSQL server of our own, or databases of our own in one that exists.

Used by the demo, the tests and the benchmarks, as `async with postgres_for(directory) as server:`.
What is committed survives the death of its processes, not that of the machine: fsync is off, but in
a `durable` server.

PostgreSQL refuses to run as root. Two ways out, in this order, neither of which makes a user or
opens a directory that others cannot enter today:

1. run it as `postgres`, or as `nobody` where there is no such user; the data directory is theirs.
   It needs programs and data that this user can reach;
2. else in a user namespace in which we are not root (`unshare`), where files stay ours.
"""

import contextlib
import os
import pwd
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from proxy.embedded.container import child_for
from proxy.embedded.process import (
    Account,
    Child,
    EmbeddedError,
    Launch,
    ServerFailed,
    release_port,
    reserve_port,
    wait_until,
)
from proxy.embedded.programs import Program, find_postgres

# Where tests find a server in which they may create databases.
EXISTING_SERVER = "SIDECACHE_TEST_DATABASE_URL"

USER = "sidecache"

# initdb takes 0.4 s and a start 0.02 s on an idle machine.
PROGRAM_TIMEOUT = 30.0  # seconds
START_TIMEOUT = 15.0  # seconds
CONNECT_TIMEOUT = 2.0  # seconds

PORT_ATTEMPTS = 5

# A path of a unix socket has 107 bytes; PostgreSQL adds a name like /.s.PGSQL.12345.
LONGEST_SOCKET_DIRECTORY = 85

# The user that Debian gives to programs that need no files; every Linux has it.
UNPRIVILEGED = 65534

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
DURABLE = {"fsync": "on", "full_page_writes": "on"}


class Postgres:
    """A running server and where to reach it."""

    host = "127.0.0.1"

    def __init__(self, program: Program, directory: Path, *, durable: bool = False) -> None:
        self.program = program
        self.directory = directory
        self.port = 0
        self._durable = durable
        self._privilege = Privilege()
        self._child: Child | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def dsn(self) -> str:
        """The maintenance database; applications get one of their own by `create_database`."""
        return f"postgresql://{USER}@{self.host}:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path | None:
        """Where the unix socket is; None where its path would be too long."""
        return self.directory if len(str(self.directory)) <= LONGEST_SOCKET_DIRECTORY else None

    async def start(self) -> None:
        """Make a data directory, start the server and return when it takes connections."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._privilege = choose_privilege(self.program, self.directory)
        try:
            await self._initialise()
            await self._start_on_free_port()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT closes its sessions, SIGQUIT is a crash."""
        if self._child is not None:
            self.resume()
            await self._child.stop(number)
            release_port(self.port)

    async def restart(self) -> None:
        """Start the ended server again, at the same port."""
        await self._spawn()

    def kill(self) -> None:
        """End the server and its sessions as kill -9 does."""
        for pid in reversed(self._process_ids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._child is not None:
            self._child.kill()

    def pause(self) -> None:
        """Freeze the server and all its sessions: connections stay open and silent."""
        for pid in self._process_ids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._process_ids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def create_database(self, name: str, template: str | None = None) -> str:
        """Return the address of a new database; with a template it is a copy of that one."""
        source = f" TEMPLATE {_quoted(self.name_of(template))}" if template else ""
        await self._execute(f"CREATE DATABASE {_quoted(self.name_of(name))}{source}")
        return self.dsn_of(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        await self._execute(f"DROP DATABASE IF EXISTS {_quoted(self.name_of(name))} WITH (FORCE)")

    def name_of(self, database: str) -> str:
        """Return how a database of ours is called in the server."""
        return database

    def dsn_of(self, database: str) -> str:
        """Return the address of a database of ours."""
        path = f"/{quote(self.name_of(database), safe='')}"
        return urlunsplit(urlsplit(self.dsn)._replace(path=path))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn, timeout=CONNECT_TIMEOUT)
        try:
            await connection.execute(statement)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)

    async def _initialise(self) -> None:
        """Make the data directory."""
        await self._run(
            "initdb",
            *("--no-sync", "--no-instructions", "-A", "trust", "--locale=C", "-E", "UTF8"),
            *("-U", USER, "-D", str(self.data)),
        )

    async def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs to its end."""
        child = self._child_of(program, *arguments)
        child.start()
        try:
            ended = await child.wait_exit(PROGRAM_TIMEOUT)
        finally:
            code = child.exit_code
            child.kill()
        if not ended or code != 0:
            log = child.launch.log
            raise ServerFailed(f"{program} failed\n--- end of {log}\n{child.log_tail()}")

    async def _start_on_free_port(self) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = reserve_port()
            try:
                await self._spawn()
            except ServerFailed:
                release_port(self.port)
                log = self._child.log_tail() if self._child else ""
                if attempt == PORT_ATTEMPTS or "already in use" not in log:
                    raise
            else:
                return

    async def _spawn(self) -> None:
        sockets = str(self.socket_directory or "")
        settings = SETTINGS | {"port": str(self.port), "unix_socket_directories": sockets}
        if self._durable:
            settings |= DURABLE
        words = [word for item in settings.items() for word in ("-c", "=".join(item))]
        self._child = self._child_of("postgres", "-D", str(self.data), *words)
        self._child.start()
        await wait_until(self._silent, START_TIMEOUT, [self._child])

    def _child_of(self, program: str, *arguments: str) -> Child:
        launch = Launch(
            arguments=(*self._privilege.prefix, str(self.program.path / program), *arguments),
            directory=self.directory,
            log=self.directory / "server.log",
            account=self._privilege.account,
            # PostgreSQL's own children outlive a killed parent for a while; this one they hear.
            death_signal=signal.SIGQUIT,
            image=self.program.image,
        )
        return child_for("PostgreSQL", launch)

    async def _silent(self) -> str | None:
        try:
            connection = await asyncpg.connect(self.dsn, timeout=CONNECT_TIMEOUT)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            return f"PostgreSQL at {self.host}:{self.port} does not answer: {error}"
        await connection.close(timeout=CONNECT_TIMEOUT)
        return None

    def _process_ids(self) -> list[int]:
        """Return the server's processes. A process per session, each in a session of its own."""
        if self._child is None or not self._child.running or (pid := self._child.pid) is None:
            return []
        with contextlib.suppress(OSError):
            listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            return [pid, *map(int, listed.split())]
        return [pid]


class ExistingPostgres(Postgres):
    """A server that somebody else runs: only databases of our own are made in it."""

    def __init__(self, dsn: str, directory: Path) -> None:
        super().__init__(Program(Path(), "", f"named by {EXISTING_SERVER}"), directory)
        self._dsn = dsn
        self._created: list[str] = []

    @property
    def dsn(self) -> str:
        return self._dsn

    async def start(self) -> None:
        if reason := await self._silent():
            raise EmbeddedError(f"{EXISTING_SERVER}: {reason}")

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        while self._created:
            await self.drop_database(self._created.pop())

    def name_of(self, database: str) -> str:
        # Never the name of a database that is there already, and different for two of us.
        return f"sidecache_{os.getpid()}_{database}"

    async def create_database(self, name: str, template: str | None = None) -> str:
        dsn = await super().create_database(name, template)
        self._created.append(name)
        return dsn


def postgres_for(directory: Path, *, durable: bool = False) -> Postgres:
    """Return the server to use here, not started: the existing one, or one of our own."""
    if dsn := os.environ.get(EXISTING_SERVER):
        return ExistingPostgres(dsn, directory)
    return Postgres(find_postgres(), directory, durable=durable)


@dataclass(frozen=True)
class Privilege:
    """How a server that refuses root is started: as another user, or behind other words."""

    account: Account | None = None
    prefix: tuple[str, ...] = ()


def choose_privilege(program: Program, directory: Path) -> Privilege:
    """Return how to start PostgreSQL here; of the two ways the first that works."""
    if os.geteuid() != 0 or program.image:
        return Privilege()
    namespace = (
        "unshare",
        "--user",
        f"--map-user={UNPRIVILEGED}",
        f"--map-group={UNPRIVILEGED}",
    )
    choices = [Privilege(account=_unprivileged_account()), Privilege(prefix=namespace)]
    for choice in choices:
        if choice.account is not None:
            os.chown(directory, choice.account.uid, choice.account.gid)
        else:
            os.chown(directory, 0, 0)
        if _works(choice, program, directory):
            return choice
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and neither the user {choices[0].account} can reach "
        f"{program.path} and {directory}, nor can unshare make a user namespace. Start this as a "
        f"user that is not root, or name a running server in {EXISTING_SERVER}."
    )


def _unprivileged_account() -> Account:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    return Account(str(UNPRIVILEGED), UNPRIVILEGED, UNPRIVILEGED)


def _works(privilege: Privilege, program: Program, directory: Path) -> bool:
    """Return whether PostgreSQL's programs start in this way, in their directory."""
    account = privilege.account
    initdb = program.path / "initdb"
    try:
        # The shell enters the directory as the other user; cwd= would enter it as root.
        tried = subprocess.run(
            [*privilege.prefix, "sh", "-c", 'cd "$0" && exec "$1" --version', directory, initdb],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            capture_output=True,
            timeout=CONNECT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return tried.returncode == 0


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
