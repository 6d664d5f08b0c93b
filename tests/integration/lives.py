"""A process that writes behind and is killed, over and over: `python -m tests.integration.lives`.

Each life is forked, so that it costs its start and no imports. It goes on with the journal that the
lives before it left, counts every number of its own once in a row of its own and once in a row of
all, and is ended by SIGKILL at a named point or at any. What it acknowledged is told through a
pipe, which survives it; the last life ends by itself and flushes everything.
"""

import asyncio
import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import asyncpg
from prometheus_client import CollectorRegistry

from proxy.origin.batching import Connection
from proxy.origin.behind import WriteBehind
from proxy.tallies import BehindMetrics
from tests.origin.activity import connecting, key_of, plan_of, plans_of, views, writing

POINTS = ("before fsync", "after fsync", "before COMMIT", "after COMMIT", "anywhere")
WRITERS = 8
SHARED = b"activity:all:2026-11-29"
WRITES = 200  # of one life, if it lives so long
SECONDS = 30.0  # that the last life has for what is left


class Death(NamedTuple):
    """Where and when a life ends."""

    point: str
    occasion: int  # the how manieth time
    seconds: float  # of a death anywhere


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(death: Death) -> None:
    """Let this process be killed at a named point."""
    sync, execute = os.fdatasync, asyncpg.Connection.execute
    reached: Counter[str] = Counter()

    def pass_point(point: str) -> None:
        reached[point] += 1
        if point == death.point and reached[point] == death.occasion:
            die()

    def synced(file: int) -> None:
        pass_point("before fsync")
        sync(file)
        pass_point("after fsync")

    async def executed(self: Connection, query: str, *arguments: object) -> str:
        if query == "COMMIT":
            pass_point("before COMMIT")
        status = await execute(self, query, *arguments)
        if query == "COMMIT":
            pass_point("after COMMIT")
        return status

    os.fdatasync = synced
    asyncpg.Connection.execute = executed


async def live(directory: Path, dsn: str, first: int, acknowledged: int) -> None:
    """Write numbers from first on; with none to write, flush what is left."""
    plan = plan_of(writing(every=0.002, rows=20))
    plans = plans_of(plan)
    metrics = BehindMetrics(CollectorRegistry())
    behind = WriteBehind(directory, connecting(dsn), lambda: plans, metrics)
    await behind.start()
    numbers = iter(range(first, first + WRITES)) if first else iter(())

    async def write() -> None:
        for number in numbers:
            await behind.write(plan, key_of(number), views(1))
            os.write(acknowledged, struct.pack("<i", number))
            await behind.write(plan, SHARED, views(1))
            os.write(acknowledged, struct.pack("<i", -number))

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    if not await behind.stop(SECONDS):
        raise SystemExit("not everything was flushed")


def run(directory: Path, dsn: str, first: int, death: Death | None) -> tuple[list[int], int]:
    """Run one life in a process of its own; return what it acknowledged and how it ended."""
    reading, writing_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        if death is not None:
            arm(death)
        status = 1
        try:
            asyncio.run(live(directory, dsn, first, writing_end))
            status = 0
        finally:
            os._exit(status)
    os.close(writing_end)
    told = b""
    end = time.monotonic() + (death.seconds if death is not None else SECONDS)
    while True:
        left = end - time.monotonic()
        if left <= 0 and death is not None:
            os.kill(pid, signal.SIGKILL)
        if select.select([reading], [], [], max(0.0, left) if left > 0 else 1.0)[0]:
            data = os.read(reading, 65536)
            if not data:
                break
            told += data
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return [number for (number,) in struct.iter_unpack("<i", told)], status


def main(directory: Path, dsn: str, kills: int, seed: int) -> dict[str, object]:
    """Live and die so many times; return what was acknowledged and how the lives ended."""
    chance = random.Random(seed)
    acknowledged: list[int] = []
    points: Counter[str] = Counter()
    first = 1
    while points.total() < kills:
        point = POINTS[points.total() % len(POINTS)]
        seconds = chance.uniform(0.0, 0.25) if point == "anywhere" else SECONDS
        told, status = run(directory, dsn, first, Death(point, chance.randint(1, 12), seconds))
        acknowledged += told
        first += WRITES
        if os.WIFSIGNALED(status):
            points[point] += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a life failed at {point}")
    _, status = run(directory, dsn, 0, None)
    if status:
        raise SystemExit("the last life failed")
    return {"acknowledged": acknowledged, "issued": first - 1, "points": points}


if __name__ == "__main__":
    folder, address, times, chosen = sys.argv[1:]
    print(json.dumps(main(Path(folder), address, int(times), int(chosen))))
