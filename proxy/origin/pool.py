"""Connections to one PostgreSQL server, and whether it is there.

`Postgres` has one for the primary and one for each replica. A connection is made when one is
needed, kept while it is sound, and thrown away (terminated, never closed: closing may wait for a
dead network for ever) as soon as nobody can say what state it is in.

Always true: at most `connections` exist; a call ends at its deadline; while the server is down,
calls fail at once and one task alone looks whether it is back, twice a second or more often.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import asyncpg

from proxy import errors, log
from proxy.config import Database
from proxy.errors import OriginBusy, OriginDown, OriginError, OriginMisfit, OriginRefused
from proxy.origin.codecs import set_codecs
from proxy.origin.deadlines import until
from proxy.secret import Secret

# Only for who checks types: the class itself takes no parameter.
Connection: TypeAlias = "asyncpg.Connection[Any]"

# Between two looks at a server that is in doubt or down: the first after 50 ms, then twice as long
# up to half a second. One lost packet is no outage; two failures are.
FIRST_LOOK = 0.05  # seconds
LAST_LOOK = 0.5
FAILURES = 2

# PostgreSQL gives a statement up before we give up its connection.
SERVER_PART = 0.8

# What SQL states mean. Longest first; what is in neither list is refused for good.
_LATER = ("55P03", "57014", "40", "53")  # a lock, a timeout, a conflict, no resources: nothing done
_AWAY = ("25006", "57P", "08", "58")  # a standby now, a shutdown, a connection, the disk

# What drivers and sockets raise when a server cannot be reached or is lost. The driver takes a
# farewell of the server that comes between two questions for a mistake of its own: an
# InternalClientError.
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


def failure(error: Exception) -> OriginError:
    """Return what an error of the driver or the server means to us."""
    if isinstance(error, asyncpg.UnsupportedClientFeatureError):
        return OriginRefused(f"PostgreSQL's answer cannot be read: {error}", "0A000")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        if state == "55P03":
            return OriginBusy(f"PostgreSQL gave up: {error}", errors.ORIGIN_IN_HAND)
        if state.startswith(_LATER):
            return OriginBusy(f"PostgreSQL gave up: {error}")
        if state.startswith(_AWAY):
            return OriginDown(f"PostgreSQL is leaving: {error}", sent=True)
        # Its message may quote the row: only the kind of error is told.
        return OriginRefused(f"PostgreSQL refuses: {type(error).__name__}", state)
    return OriginDown(f"the connection to PostgreSQL was lost: {error}", sent=True)


def _ours(error: Exception) -> bool:
    """Return whether the driver refuses what we do with it, if its connection is open."""
    unreadable = asyncpg.UnsupportedClientFeatureError
    return isinstance(error, asyncpg.InterfaceError) and not isinstance(error, unreadable)


def session_settings(database: Database) -> dict[str, str]:
    """Return what a session needs: when PostgreSQL gives up by itself, in ms, and how it reads."""
    return {
        # Some databases say otherwise to all who come; a lock is decided by what is committed.
        "default_transaction_isolation": "read committed",
        "statement_timeout": str(round(database.timeout * SERVER_PART * 1000)),
        "lock_timeout": str(round(database.lock_timeout * 1000)),
    }


async def connect(url: Secret, database: Database, name: str = "sidecache") -> Connection:
    """Return a connection of its own. Raises OriginDown where there is none in time."""
    settings = {
        "application_name": name, "TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "iso_8601"
    }  # fmt: skip
    if database.prepared:
        # PgBouncer refuses what it does not know of these.
        settings |= session_settings(database)
    try:
        async with until(asyncio.get_running_loop().time() + database.connect_timeout):
            return await asyncpg.connect(
                url.reveal(),
                statement_cache_size=100 if database.prepared else 0,
                server_settings=settings,
            )
    except (*LOST, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise OriginDown(f"PostgreSQL cannot be reached: {error or 'no answer'}") from error


class Pool:
    """One server."""

    def __init__(
        self, name: str, url: Secret, database: Database, changed: Callable[["Pool"], None]
    ) -> None:
        self.name = name  # "primary" "replica1" ...
        self.up = False
        self._url = url
        self._database = database
        self._changed = changed
        self._idle: list[Connection] = []
        self._open = 0  # connections that exist or are being made
        self._looking: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[Connection] | None = None  # of whoever looks
        self._reason = ""  # why it was not found last
        self._states = log.StateLog()

    async def start(self) -> None:
        """Begin to look for the server; return when it is found, or not at once."""
        self._doubt()
        if self._looking is not None:
            await asyncio.wait((self._looking,), timeout=self._database.connect_timeout)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        while self._idle:
            self._drop(self._idle.pop())

    @contextlib.asynccontextmanager
    async def connection(self, deadline: float) -> AsyncIterator[Connection]:
        """Have a connection until the deadline, a time of the loop.

        Raises OriginDown, OriginBusy or OriginRefused, for what goes wrong inside too.
        """
        connection, sound = None, False
        try:
            async with until(deadline):
                connection = await self._take()
                yield connection
            sound = True
        except TimeoutError as error:
            self._doubt(failures=1)
            sent = connection is not None
            raise OriginDown("PostgreSQL did not answer in time", sent=sent) from error
        except OriginMisfit:
            sound = True
            raise
        except (*LOST, asyncpg.PostgresError) as error:
            if _ours(error) and connection is not None and not connection.is_closed():
                raise
            meaning = failure(error)
            sound = isinstance(meaning, OriginBusy | OriginRefused)
            if not sound:
                self._doubt()
            raise meaning from error
        finally:
            if connection is not None:
                self._give_back(connection, sound)

    def _give_back(self, connection: Connection, sound: bool) -> None:
        if sound and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append(connection)
        else:
            self._drop(connection)

    async def _take(self) -> Connection:
        if not self.up:
            self._doubt()
            raise OriginDown(f"PostgreSQL ({self.name}) is down")
        if self._full() and self._attempt is not None:
            # Whoever looks is making the connection that is left, and leaves it here.
            await asyncio.wait((self._attempt,))
        while self._idle:
            # The one that was used last, whose server process is warm.
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._drop(connection)
        try:
            return await self._connect()
        except OriginDown:
            self._doubt()
            raise

    def _full(self) -> bool:
        return not self._idle and self._open >= self._database.connections

    async def _connect(self) -> Connection:
        if self._open >= self._database.connections:
            raise OriginDown(f"all connections to {self.name} are in use")
        self._open += 1
        try:
            connection = await connect(self._url, self._database)
        except BaseException:
            self._open -= 1
            raise
        connection.add_termination_listener(self._lost)
        await set_codecs(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        self._open -= 1
        connection.remove_termination_listener(self._lost)
        connection.terminate()

    def _lost(self, connection: object) -> None:
        # Nobody may want PostgreSQL for hours, and its state is shown all the same.
        self._doubt()

    def _doubt(self, failures: int = 0) -> None:
        """Look whether the server is there, unless somebody does."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(failures))
            self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None

    async def _look(self, failures: int) -> None:
        pause = FIRST_LOOK
        while not await self._found():
            failures += 1
            if failures >= FAILURES:
                self._turn(False)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, LAST_LOOK)
        self._turn(True)

    async def _found(self) -> bool:
        """Return whether the server takes a connection, which is kept."""
        while self._idle and self._idle[-1].is_closed():
            self._drop(self._idle.pop())
        if self._full():
            # Whatever these are doing ends at its deadline.
            return self.up
        if self._open >= self._database.connections:
            self._drop(self._idle.pop())
        self._attempt = asyncio.get_running_loop().create_task(self._connect())
        try:
            self._idle.append(await self._attempt)
        except OriginDown as error:
            self._reason = str(error)
            return False
        finally:
            self._attempt = None
        return True

    def _turn(self, up: bool) -> None:
        if up:
            self._states.change(log.INFO, self.name, "up", "origin_up", node=self.name)
        else:
            self._states.change(
                log.WARNING, self.name, "down", "origin_down", node=self.name, reason=self._reason
            )
        if self.up != up:
            self.up = up
            self._changed(self)
