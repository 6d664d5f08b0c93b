"""A short proof that a running demo does its work: through the port, as a client.

Used by `sidecache demo --check`. Every check is one question with one right answer; nothing is
left behind in Redis. It takes a second, and as long as a write may stay behind (five).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import hiredis

from proxy.embedded.node import packed
from proxy.embedded.process import ServerFailed, wait_until
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar

# A proxy on this machine answers within milliseconds.
ANSWER_TIMEOUT = 5.0  # seconds

# What PostgreSQL and Redis tell each other takes some 0.1 s, a write behind the cache five.
NEWS_TIMEOUT = 10.0  # seconds

# Enough keys that all three primaries hold some: none stays empty but once in 10^17 runs.
KEYS = 100

READ_BYTES = 65536

# A line of a terminal for each side of a difference.
LONGEST_QUOTE = 100  # characters


@dataclass(frozen=True)
class Finding:
    """What a check found: problem is empty where all was right."""

    title: str
    problem: str


@dataclass(frozen=True)
class Target:
    """What is checked."""

    sidecar: Sidecar
    cache: Cluster
    dsn: str


class Client:
    """A connection to the proxy that sends everything at once and reads the replies in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._replies = hiredis.Reader(encoding="utf-8")

    async def send(self, *commands: str) -> list[Any]:
        """Return the replies to commands, each given as words with blanks between them."""
        self._writer.write(b"".join(packed(command.split()) for command in commands))
        answers: list[Any] = []
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while len(answers) < len(commands):
                data = await self._reader.read(READ_BYTES)
                if not data:
                    raise ConnectionResetError("the proxy closed the connection")
                self._replies.feed(data)
                while (answer := self._replies.gets()) is not False:
                    answers.append(answer)
        return answers

    def close(self) -> None:
        self._writer.transport.abort()


async def check(target: Target) -> AsyncIterator[Finding]:
    """Run every check, one after the other, each on a connection of its own."""
    for title, question in _QUESTIONS:
        client = None
        try:
            streams = await asyncio.open_connection(target.sidecar.host, target.sidecar.port)
            client = Client(*streams)
            problem = await question(client, target)
        except (OSError, TimeoutError, asyncpg.PostgresError, hiredis.HiredisError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            if client is not None:
                client.close()
        yield Finding(title, problem)


def _expect(found: object, right: object) -> str:
    """Return what is wrong, short: of lists the first place where they differ."""
    if found == right:
        return ""
    where = ""
    if isinstance(found, list) and isinstance(right, list) and len(found) == len(right):
        place = next(
            i for i, pair in enumerate(zip(found, right, strict=True)) if pair[0] != pair[1]
        )
        found, right, where = found[place], right[place], f"in place {place + 1} "
    return f"{where}expected {str(right)[:LONGEST_QUOTE]}, got {str(found)[:LONGEST_QUOTE]}"


async def _values(client: Client, target: Target) -> str:
    found = await client.send(
        "PING", "SET smoke:a one EX 100", "GET smoke:a", "TTL smoke:a", "DEL smoke:a", "GET smoke:a"
    )
    ttl = found.pop(3)
    return _expect(found, ["PONG", "OK", "one", 1, None]) or _expect(0 < ttl <= 100, True)


async def _types(client: Client, target: Target) -> str:
    found = await client.send(
        *("DEL smoke:h smoke:l smoke:z smoke:n", "HSET smoke:h field 1", "HGETALL smoke:h"),
        *("RPUSH smoke:l a b c", "LRANGE smoke:l 0 -1", "ZADD smoke:z 2 b 1 a"),
        *("ZRANGE smoke:z 0 -1", "INCRBY smoke:n 41", "INCR smoke:n"),
        "DEL smoke:h smoke:l smoke:z smoke:n",
    )
    right = [1, ["field", "1"], 3, ["a", "b", "c"], 2, ["a", "b"], 41, 42, 4]
    return _expect(found[1:], right)


async def _pipeline(client: Client, target: Target) -> str:
    """Three kinds of commands over all nodes in one write: replies come in the client's order."""
    writes = await client.send(*(f"SET smoke:p:{number} {number}" for number in range(KEYS)))
    reads = await client.send(*(f"GET smoke:p:{number}" for number in range(KEYS)))
    await client.send("DEL " + _names("smoke:p"))
    return _expect(writes, ["OK"] * KEYS) or _expect(reads, [str(n) for n in range(KEYS)])


async def _many_keys(client: Client, target: Target) -> str:
    pairs = " ".join(f"smoke:m:{number} {number}" for number in range(KEYS))
    names = _names("smoke:m")
    found = await client.send(f"MSET {pairs}", f"MGET {names}", f"EXISTS {names}", f"DEL {names}")
    return _expect(found, ["OK", [str(n) for n in range(KEYS)], KEYS, KEYS])


async def _on_the_nodes(client: Client, target: Target) -> str:
    """Ask the primaries themselves: all of them hold a part of the keys, together all."""
    await client.send(*(f"SET smoke:c:{number} x" for number in range(KEYS)))
    held = []
    for node in target.cache.primaries:
        cursor, count = "0", 0
        while True:
            cursor, names = await node.ask("SCAN", cursor, "MATCH", "smoke:c:*", "COUNT", 1000)
            count += len(names)
            if cursor == "0":
                break
        held.append(count)
    await client.send("DEL " + _names("smoke:c"))
    return _expect(sum(held), KEYS) or _expect(0 in held, False)


async def _resp3(client: Client, target: Target) -> str:
    hello, *found = await client.send(
        "HELLO 3", "HSET smoke:r f v", "HGETALL smoke:r", "GET smoke:none", "DEL smoke:r"
    )
    if not isinstance(hello, dict) or hello.get("proto") != 3:
        return f"HELLO 3 answered {hello!r}"
    return _expect(found, [1, {"f": "v"}, None, 1])


async def _refusal(client: Client, target: Target) -> str:
    refused, pong = await client.send("NOSUCHCOMMAND x", "PING")
    unknown = isinstance(refused, hiredis.ReplyError) and "unknown command" in str(refused)
    return _expect((unknown, pong), (True, "PONG"))


async def _admin(client: Client, target: Target) -> str:
    pages = {path: await target.sidecar.get(path) for path in ("/livez", "/readyz", "/metrics")}
    codes = {path: status for path, (status, _) in pages.items()}
    return _expect(codes, dict.fromkeys(pages, 200)) or _expect(
        "sidecache_" in pages["/metrics"][1], True
    )


async def _database(client: Client, target: Target) -> str:
    async with connected(target.dsn) as database:
        seats = await database.fetchval("SELECT count(*) FROM seat_booking_state")
        capacity = await database.fetchval("SELECT sum(capacity) FROM events")
    return _expect(seats, capacity)


async def _rows(client: Client, target: Target) -> str:
    """Rows that Redis lacks are read from PostgreSQL, JSON and hashes; a second time as well."""
    async with connected(target.dsn) as database:
        name = await database.fetchval("SELECT name FROM venues WHERE id = 'venue_1'")
        title = await database.fetchval("SELECT title FROM events WHERE id = 'evt_1'")
    for _ in range(2):
        venue, found, none = await client.send(
            "GET venue:venue_1", "HGET event:evt_1 title", "GET venue:nowhere"
        )
        named = json.loads(venue)["name"] if isinstance(venue, str) else venue
        if problem := _expect([named, found, none], [name, title, None]):
            return problem
    await client.send("DEL venue:venue_1 event:evt_1")
    return ""


async def _change(client: Client, target: Target) -> str:
    """What is committed in PostgreSQL is what clients read, there and back."""
    async with connected(target.dsn) as database:
        title = await database.fetchval("SELECT title FROM events WHERE id = 'evt_1'")

        async def read() -> object:
            return (await client.send("HGET event:evt_1 title"))[0]

        problem = _expect(await read(), title)
        for wanted in (f"{title} (moved)", title):
            if not problem:
                await database.execute("UPDATE events SET title = $1 WHERE id = 'evt_1'", wanted)
                problem = await _becomes(read, wanted)
    await client.send("DEL event:evt_1")
    return problem


async def _behind(client: Client, target: Target) -> str:
    """Counts are answered at once, and are one row of PostgreSQL soon."""
    key, row = "user_activity:smoke:daily:2001-02-03", "user_id = 'smoke' AND date = '2001-02-03'"
    async with connected(target.dsn) as database:
        found = await client.send(f"HINCRBY {key} page_views 40", f"HINCRBY {key} page_views 2")

        async def written() -> object:
            return await database.fetchval(
                f"SELECT sum(page_views) FROM user_activity_log WHERE {row}"  # noqa: S608
            )

        problem = _expect(found, [40, 42]) or await _becomes(written, 42)
        await client.send(f"DEL {key}")
        await database.execute(f"DELETE FROM user_activity_log WHERE {row}")  # noqa: S608
    return problem


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Have a connection to a database, every call on which has a deadline."""
    database = await asyncpg.connect(dsn, timeout=ANSWER_TIMEOUT, command_timeout=ANSWER_TIMEOUT)
    try:
        yield database
    finally:
        await database.close(timeout=ANSWER_TIMEOUT)


async def _becomes(read: Callable[[], Awaitable[object]], right: object) -> str:
    """Return what is wrong if something does not become right in time."""

    async def missing() -> str | None:
        return _expect(await read(), right) or None

    try:
        await wait_until(missing, NEWS_TIMEOUT, ())
    except ServerFailed as error:
        return str(error)
    return ""


def _names(prefix: str) -> str:
    return " ".join(f"{prefix}:{number}" for number in range(KEYS))


_QUESTIONS: tuple[tuple[str, Callable[[Client, Target], Awaitable[str]]], ...] = (
    ("a value is written, read, expires and is removed", _values),
    ("hashes, lists, sorted sets and counters work", _types),
    (f"{2 * KEYS} pipelined commands are answered in order", _pipeline),
    (f"MSET, MGET, EXISTS and DEL take {KEYS} keys of all nodes", _many_keys),
    ("every primary of the cache cluster holds its part of the keys", _on_the_nodes),
    ("RESP3 works", _resp3),
    ("an unknown command is refused and the connection stays", _refusal),
    ("the admin port says alive and ready, and has metrics", _admin),
    ("PostgreSQL has a seat for every place of every event", _database),
    ("rows that Redis lacks are read from PostgreSQL", _rows),
    ("a change in PostgreSQL is what clients read", _change),
    ("counts are written to PostgreSQL behind the cache", _behind),
)
