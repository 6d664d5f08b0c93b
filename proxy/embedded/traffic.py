"""A few clients that ask a running proxy for rows at an even pace, and hear how it answers.

Used by the demo's outage. A latency runs from the moment at which a request is due, so a proxy
that lets clients wait does not look faster for it.

Always true: what is asked for exists, so nothing but its value is an answer: an error line, "there
is none" and a connection that ends are errors.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import asyncpg
import hiredis

from proxy.embedded.node import packed

CLIENTS = 8
RATE = 400  # requests per second of all clients together

# Far above every deadline of the proxy: who hears nothing for so long was forgotten.
ANSWER_TIMEOUT = 5.0  # seconds

# After a connection that could not be made or was lost.
RECONNECT_PAUSE = 0.05  # seconds

READ_BYTES = 65536

# What went wrong is told by its first words, and of so many kinds.
KINDS, WORDS = 5, 60

# What an application of bookings asks for, and how often one beside the other.
_ROWS = {
    ("HGETALL", "event"): ("SELECT id FROM events", 8),
    ("GET", "venue"): ("SELECT id FROM venues", 4),
    ("GET", "org"): ("SELECT id FROM organizations", 2),
    ("GET", "user_prefs"): ("SELECT user_id FROM user_preferences", 3),
    ("GET", "user_perms"): ("SELECT id FROM users", 2),
    ("HGET", "event_availability"): ("SELECT id FROM events", 1),
}

Question = tuple[str, ...]


async def questions(dsn: str, count: int = 10_000) -> list[Question]:
    """Return commands about rows of the sample database, in a random order that repeats."""
    chance, kinds, ids = random.Random(1), list(_ROWS), {}
    connection = await asyncpg.connect(dsn, timeout=ANSWER_TIMEOUT)
    try:
        for kind, (statement, _) in _ROWS.items():
            rows = await connection.fetch(statement, timeout=ANSWER_TIMEOUT)
            ids[kind] = sorted(row[0] for row in rows)
    finally:
        await connection.close(timeout=ANSWER_TIMEOUT)
    reel = []
    for kind in chance.choices(kinds, [weight for _, weight in _ROWS.values()], k=count):
        name, keyspace = kind
        field = ("available_count",) if name == "HGET" else ()
        reel.append((name, f"{keyspace}:{chance.choice(ids[kind])}", *field))
    return reel


@dataclass
class Tally:
    """What clients have heard in some time; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0

    def add(self, other: "Tally") -> None:
        self.latencies += other.latencies
        self.errors += other.errors

    def percentile(self, part: float) -> float:
        """Return the latency in milliseconds below which a part (0 to 1) of the answers came."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[int(part * (len(ordered) - 1))] if ordered else 0.0


class Traffic:
    """All clients together."""

    def __init__(self, address: tuple[str, int], reel: Sequence[Question]) -> None:
        self._address = address
        self._reel = reel
        self._heard = Tally()
        self.kinds: Counter[str] = Counter()  # of errors

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the clients ask while the block runs."""
        tasks = [asyncio.create_task(self._ask(number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def take(self) -> Tally:
        """Return what was heard since the last call."""
        heard, self._heard = self._heard, Tally()
        return heard

    async def _ask(self, number: int) -> None:
        """Be one client, for ever."""
        due = time.monotonic() + number / RATE
        turn = number
        while True:
            try:
                streams = await asyncio.open_connection(*self._address)
            except OSError as error:
                self._failed(f"no connection: {error}")
                await asyncio.sleep(RECONNECT_PAUSE)
                continue
            try:
                while True:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    # What fell due while nobody was connected has failed already.
                    now = time.monotonic()
                    due = max(due, now - ANSWER_TIMEOUT)
                    # The loop counts in milliseconds, and may wake before its time.
                    asked = min(due, now)
                    due, turn = due + CLIENTS / RATE, turn + CLIENTS
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        answer = await _answer(*streams, self._reel[turn % len(self._reel)])
                    self._take(answer, time.monotonic() - asked)
            except (OSError, TimeoutError) as error:
                self._failed(f"connection lost: {error or 'no answer'}")
                await asyncio.sleep(RECONNECT_PAUSE)
            finally:
                streams[1].transport.abort()

    def _take(self, answer: object, latency: float) -> None:
        self._heard.latencies.append(latency)
        if isinstance(answer, hiredis.ReplyError):
            self._failed(str(answer))
        elif not answer:
            self._failed("a row that exists was said to be missing")

    def _failed(self, kind: str) -> None:
        self._heard.errors += 1
        kind = kind[:WORDS]
        self.kinds[kind if kind in self.kinds or len(self.kinds) < KINDS else "others"] += 1


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Question
) -> object:
    replies = hiredis.Reader()
    writer.write(packed(question))
    while (answer := replies.gets()) is False:
        data = await reader.read(READ_BYTES)
        if not data:
            raise ConnectionResetError("closed by the proxy")
        replies.feed(data)
    return answer
