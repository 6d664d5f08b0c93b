"""One of all sidecars does this: whoever holds an advisory lock of PostgreSQL.

Always true:
  * the lock belongs to a session, so the connection that holds it is the one that its holder works
    on: where it is lost the lock is lost, and whoever waits for it fails at once;
  * whoever does not hold it asks again every ROUND and keeps its connection: a blocked
    `pg_advisory_lock` would hold back vacuum by its snapshot for as long as somebody leads;
  * no wait is longer than DEADLINE.

Two may hold "the" lock for a moment, where the server that gave it out is lost and its successor
gives it out again. What is done under a lease has to be right all the same, only done twice.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg

from proxy.errors import SidecacheError
from proxy.origin.pool import LOST

# A direct connection: behind a pooler that gives sessions to others, locks of sessions leak.
Connect = Callable[[], Awaitable["asyncpg.Connection[Any]"]]

# How often the lock is asked for, in seconds: half a second without a leader is what a change of
# leaders costs, and the question is a microsecond of the server.
ROUND = 0.5

# What connecting and one question may take, in seconds.
DEADLINE = 3.0

# So that a server notices within ten seconds that a holder's machine is gone with the network.
KEEPALIVE = {"idle": 4, "interval": 2, "count": 3}

# What a connection that is lost, late or refused raises.
FAILURES = (*LOST, asyncpg.PostgresError, TimeoutError, SidecacheError)


def number_of(name: str) -> int:
    """Return the number of the lock of this name: 64 bits, as PostgreSQL knows them."""
    digest = hashlib.blake2b(b"sidecache:" + name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@contextlib.asynccontextmanager
async def leading(
    name: Callable[[], str], connect: Connect
) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """Wait until this sidecar leads, and give the connection that makes it so.

    The name is asked for each time: what is to be led may change while somebody waits. Raises one
    of FAILURES where it is lost while waiting.
    """
    async with asyncio.timeout(DEADLINE):
        connection = await connect()
    try:
        for setting, value in KEEPALIVE.items():
            await connection.execute(f"SET tcp_keepalives_{setting} = {value}", timeout=DEADLINE)
        held = await _holds(connection, name())
        while not held:
            await asyncio.sleep(ROUND)
            held = await _holds(connection, name())
        yield connection
    finally:
        # Not close(): a dead network would hold it up, and the server ends the session either way.
        connection.terminate()


async def _holds(connection: "asyncpg.Connection[Any]", name: str) -> bool:
    async with asyncio.timeout(DEADLINE):
        held = await connection.fetchval(
            "SELECT pg_try_advisory_lock($1::text::bigint)::text", str(number_of(name))
        )
    return bool(held == "true")
