"""Clients that know what their data must look like, for runs in which the cluster changes.

A `Worker` owns its keys, so it knows every value: what it wrote last and saw acknowledged is what
it must read. `Counters` only add, and compare at the end: final <= acknowledged + unknown.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.integration.rig import Caller, is_error


@dataclass(slots=True)
class Outcome:
    """What all workers of a run saw."""

    operations: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    error_times: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    closed: int = 0

    def fail(self, error: Any) -> None:
        self.errors[" ".join(str(error).split()[:8])] += 1
        self.error_times.append(time.monotonic())

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds, 0 where nothing was measured."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else 0.0

    def __str__(self) -> str:
        return (
            f"{self.operations} operations, {len(self.wrong)} wrong, {dict(self.errors)} errors, "
            f"{self.closed} closed; p50 {self.percentile(0.5):.2f} p99 {self.percentile(0.99):.2f} "
            f"p99.9 {self.percentile(0.999):.2f} max {self.percentile(1):.2f} ms; {self.wrong[:5]}"
        )


class Worker:
    """Writes and reads its own keys over one connection, singly and in pipelines."""

    def __init__(self, number: int, port: int, seed: int, outcome: Outcome) -> None:
        self.port = port
        self.chance = random.Random(f"{seed}:{number}")
        self.outcome = outcome
        self.keys = [f"worker:{number}:{key}" for key in range(60)]
        self.values = dict.fromkeys(self.keys, 0)  # 0: not written yet
        self.list = f"list:{number}"
        self.items: list[bytes] = []

    async def run(self, until: asyncio.Event) -> None:
        caller = await Caller.open(self.port)
        await caller.call("DEL", self.list, *self.keys)
        try:
            while not until.is_set():
                dice = self.chance.random()
                if dice < 0.4:
                    await self.single(caller)
                elif dice < 0.7:
                    await self.chain(caller)
                elif dice < 0.85:
                    await self.several(caller)
                else:
                    await self.append(caller)
        finally:
            caller.close()

    async def ask(self, caller: Caller, commands: list[tuple[Any, ...]]) -> list[Any]:
        start = time.monotonic()
        replies = await caller.pipeline(commands)
        self.outcome.latencies.append(time.monotonic() - start)
        self.outcome.operations += len(commands)
        for reply in replies:
            if is_error(reply):
                self.outcome.fail(reply)
        return replies

    def expect(self, what: object, got: Any, wanted: Any) -> None:
        if got != wanted and not is_error(got):
            self.outcome.wrong.append(f"{what}: got {got!r}, wanted {wanted!r}")

    def known(self, key: str) -> bytes | None:
        return b"%d" % self.values[key] if self.values[key] else None

    async def single(self, caller: Caller) -> None:
        """Read a key, or write the next value."""
        key = self.chance.choice(self.keys)
        if self.chance.random() < 0.5:
            (got,) = await self.ask(caller, [("GET", key)])
            self.expect(key, got, self.known(key))
            return
        (got,) = await self.ask(caller, [("SET", key, self.values[key] + 1)])
        self.expect(key, got, b"OK")
        if got == b"OK":
            self.values[key] += 1

    async def chain(self, caller: Caller) -> None:
        """Write and read the same keys in one pipeline: each read sees the write before it."""
        commands: list[tuple[Any, ...]] = []
        wanted: list[Any] = []
        for key in self.chance.sample(self.keys, 5):
            for _ in range(self.chance.randint(1, 3)):
                self.values[key] += 1
                commands += [("SET", key, self.values[key]), ("GET", key)]
                wanted += [b"OK", self.known(key)]
        for command, got, right in zip(
            commands, await self.ask(caller, commands), wanted, strict=True
        ):
            self.expect(command, got, right)

    async def several(self, caller: Caller) -> None:
        """Write and read keys of many slots with one command each."""
        keys = self.chance.sample(self.keys, 8)
        words: list[Any] = ["MSET"]
        for key in keys:
            self.values[key] += 1
            words += [key, self.values[key]]
        written, read = await self.ask(caller, [tuple(words), ("MGET", *keys)])
        self.expect("MSET", written, b"OK")
        self.expect("MGET", read, [self.known(key) for key in keys])

    async def append(self, caller: Caller) -> None:
        """Push numbers in a pipeline: the list holds them in the order they were sent."""
        new = [b"%d" % (len(self.items) + index) for index in range(5)]
        commands: list[tuple[Any, ...]] = [("RPUSH", self.list, item) for item in new]
        replies = await self.ask(caller, [*commands, ("LRANGE", self.list, -5, -1)])
        self.items += new
        self.expect(self.list, replies[:5], list(range(len(self.items) - 4, len(self.items) + 1)))
        self.expect(self.list, replies[5], new)
        if len(self.items) > 500:
            await self.ask(caller, [("DEL", self.list)])
            self.items = []


async def connected(port: int, outcome: Outcome) -> Caller | None:
    """Return a connection; where there is none to be had, note that and give it a moment."""
    try:
        return await Caller.open(port)
    except OSError:
        outcome.closed += 1
        await asyncio.sleep(0.01)
        return None


class Counters:
    """Adds one to counters and keeps books: acknowledged, refused, unknown."""

    def __init__(self, port: int, keys: list[str], outcome: Outcome) -> None:
        self.port = port
        self.keys = keys
        self.outcome = outcome
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    async def run(self, number: int, until: asyncio.Event, pause: float = 0.0) -> None:
        """Be one client; a closed connection is opened again."""
        chance = random.Random(number)
        while not until.is_set():
            caller = await connected(self.port, self.outcome)
            if caller is None:
                continue
            try:
                while not until.is_set():
                    await self.add(caller, chance.choice(self.keys))
                    await asyncio.sleep(pause)
            finally:
                caller.close()

    async def add(self, caller: Caller, key: str) -> None:
        start = time.monotonic()
        try:
            reply = await caller.call("INCR", key)
        except (OSError, TimeoutError) as error:
            self.unknown[key] += 1
            self.outcome.fail(f"{type(error).__name__} {error}")
            return
        self.outcome.latencies.append(time.monotonic() - start)
        self.outcome.operations += 1
        if is_error(reply):
            self.outcome.fail(reply)
            # Any other error says that the addition was not made, and is held to that.
            if "unknown" in str(reply):
                self.unknown[key] += 1
        else:
            self.acknowledged[key] += 1

    async def books(self, port: int) -> tuple[int, int, list[str]]:
        """Return how many acknowledged additions were lost, how many unknown, and what is wrong."""
        caller = await Caller.open(port)
        lost, wrong = 0, []
        for key in self.keys:
            final = int(await caller.call("GET", key) or 0)
            most = self.acknowledged[key] + self.unknown[key]
            lost += max(0, self.acknowledged[key] - final)
            if final > most:
                wrong.append(f"{key}: {final} > {self.acknowledged[key]} + {self.unknown[key]}")
        caller.close()
        return lost, sum(self.unknown.values()), wrong
