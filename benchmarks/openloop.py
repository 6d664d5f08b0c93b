"""Latency at a fixed rate: requests leave when they are due, whether or not replies are late.

A closed loop stops asking while the server is slow and so hides exactly the moments that matter
(coordinated omission). Here every request has a moment at which it is due, and its latency runs
from that moment until its reply, the generator's own lateness included.
"""

import asyncio
import gc
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import hiredis
import uvloop
from hdrh.histogram import HdrHistogram

# Latencies are kept in microseconds, from 1 us to a minute, with three digits.
_LOWEST, _HIGHEST, _DIGITS = 1, 60_000_000, 3

# The generator wakes this often. A request is late by half of it on average, which is counted.
_TURN = 0.0005  # seconds


@dataclass(frozen=True, slots=True)
class Plan:
    port: int
    rate: int  # requests per second
    seconds: float
    clients: int = 50
    keys: int = 100_000
    value_bytes: int = 64
    write_share: float = 0.2
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one run; times in milliseconds."""

    sent: int
    answered: int
    errors: int
    p50: float
    p99: float
    p999: float
    highest: float
    late_share: float  # share of requests that the generator itself sent over 1 ms late


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, histogram: HdrHistogram) -> None:
        self.histogram = histogram
        self.due: deque[float] = deque()
        self.answered = 0
        self.errors = 0
        self._replies = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            self.errors += isinstance(reply, hiredis.ReplyError)
            self.answered += 1
            microseconds = int((now - self.due.popleft()) * 1_000_000)
            self.histogram.record_value(min(max(microseconds, _LOWEST), _HIGHEST))


def _requests(plan: Plan, chance: random.Random) -> list[bytes]:
    """Return GETs and SETs, prepared so that the generator only has to send."""
    value = b"x" * plan.value_bytes
    reel = []
    for _ in range(20_000):
        key = b"key:%012d" % chance.randrange(plan.keys)
        if chance.random() < plan.write_share:
            reel.append(b"*3\r\n$3\r\nSET\r\n$16\r\n%b\r\n$%d\r\n%b\r\n" % (key, len(value), value))
        else:
            reel.append(b"*2\r\n$3\r\nGET\r\n$16\r\n%b\r\n" % key)
    return reel


async def drive(plan: Plan, reel: Sequence[bytes] = ()) -> Outcome:
    """Run one measurement with the requests of a reel in turn; without one, with GETs and SETs."""
    loop = asyncio.get_running_loop()
    histogram = HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)
    chance = random.Random(plan.seed)
    reel = reel or _requests(plan, chance)
    clients = [_Client(histogram) for _ in range(plan.clients)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", plan.port)
    total, sent, late = int(plan.rate * plan.seconds), 0, 0
    start = time.perf_counter() + 0.01
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := start + sent / plan.rate) <= now:
            client = clients[sent % plan.clients]
            client.due.append(due)
            client.transport.write(reel[sent % len(reel)])
            late += now - due > 0.001
            sent += 1
        await asyncio.sleep(_TURN)
    deadline = time.perf_counter() + 5.0
    while any(client.due for client in clients) and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    for client in clients:
        client.transport.close()
    return Outcome(
        sent=sent,
        answered=sum(client.answered for client in clients),
        errors=sum(client.errors for client in clients),
        p50=histogram.get_value_at_percentile(50) / 1000,
        p99=histogram.get_value_at_percentile(99) / 1000,
        p999=histogram.get_value_at_percentile(99.9) / 1000,
        highest=histogram.get_max_value() / 1000,
        late_share=late / sent,
    )


def run(plan: Plan) -> Outcome:
    """Run one open-loop measurement on a fresh event loop."""
    # A collection of garbage here would count as latency there.
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(drive(plan))
    finally:
        gc.enable()
