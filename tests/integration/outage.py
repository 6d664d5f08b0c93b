"""Readers that go on while servers come and go, and what they saw."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.embedded.node import Node
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.fakenode import key_slot
from tests.integration.origin import Stage
from tests.integration.rig import Caller, is_error, wait_for

ROWS = 100  # of the table of items


@dataclass
class Seen:
    """What readers were told: when they asked, and how long it took, in seconds."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    errors: list[tuple[float, float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def slowest(self, since: float, until: float) -> float:
        """Return the longest time of an answer to what was asked in between."""
        return max((took for asked, took in self.answers if since <= asked < until), default=0.0)

    def first_after(self, moment: float) -> float:
        """Return when the first answer was there to what was asked after a moment."""
        return min(asked + took for asked, took in self.answers if asked >= moment)


class Readers:
    """Clients that read titles at a rate together, until they are stopped."""

    def __init__(self, port: int, ids: Sequence[int], rate: float, clients: int) -> None:
        self.seen = Seen()
        self._port = port
        self._ids = ids
        self._pause = clients / rate
        self._until = asyncio.Event()
        self._tasks = [asyncio.create_task(self._read()) for _ in range(clients)]

    async def _read(self) -> None:
        caller = await Caller.open(self._port)
        due = time.monotonic() + random.uniform(0, self._pause)
        while not self._until.is_set():
            # One that had to wait asks again at its next time: nobody catches up.
            due = max(due + self._pause, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            number = random.choice(self._ids)
            asked = time.monotonic()
            value = await caller.call("GET", f"title:{number}")
            took = time.monotonic() - asked
            if is_error(value):
                self.seen.errors.append((asked, took, str(value)))
                continue
            self.seen.answers.append((asked, took))
            if value is None or not value.startswith(b"title %d" % number):
                self.seen.wrong.append(f"{number}: {value}")
        caller.close()

    async def more(self, count: int) -> None:
        """Wait for so many answers more."""
        wanted = len(self.seen.answers) + count
        await wait_for(lambda: len(self.seen.answers) >= wanted, f"{count} answers", 30.0)

    async def stop(self) -> Seen:
        self._until.set()
        await asyncio.gather(*self._tasks)
        return self.seen


async def ids_on(cluster: Cluster, node: Node) -> list[int]:
    """Return the rows whose titles live on one primary."""
    ranges = (await cluster.members())[node.id].ranges
    slots = {number: key_slot(b"title:%d" % number) for number in range(1, ROWS + 1)}
    return [n for n, slot in slots.items() if any(a <= slot <= b for a, b in ranges)]


async def says(proxy: Sidecar, text: str) -> bool:
    """Return whether the proxy is ready, and in this state."""
    return await proxy.get("/readyz") == (200, f"{text}\n")


async def in_states(stage: Stage, **wanted: int) -> bool:
    """Return whether so many shards are in these states and none in others, by the metrics."""
    start = 'sidecache_shards{cluster="cache",state="'
    _, page = await stage.proxy.get("/metrics")
    lines = (line for line in page.splitlines() if line.startswith(start))
    found = ((line.removeprefix(start).split('"')[0], line.rpartition(" ")[2]) for line in lines)
    return {state: float(count) for state, count in found if float(count)} == wanted


async def compare(stage: Stage) -> None:
    """Every title that the proxy gives is the one that PostgreSQL has."""
    caller = await stage.caller()
    rows = await stage.database.fetch("SELECT id, title FROM items ORDER BY id")
    told = await caller.pipeline([("GET", f"title:{row['id']}") for row in rows])
    assert told == [row["title"].encode() for row in rows]
    caller.close()
