"""How many rows per second write-behind flushes, beside the row loop that it replaces.

    python benchmarks/behind.py
    python benchmarks/behind.py --json benchmarks/results/behind.json

CPU time of the proxy's side stands beside the rates: neighbours on the machine change the rates.

The shipped keyspace user_activity into its own table, in batches of a thousand rows, ways in turn:
each batch as one statement (`unnest`), as a pipeline (`executemany`), and row by row in one
transaction, as the plan of the first user has it. Half of the rows are new, half are there.
`whole` is a flusher with everything that belongs to it, from what has landed to a position that has
moved. `journal` is what comes before: entries on disk, each synced before it counts.
PostgreSQL is the embedded one, whose fsync is off: what is compared is work, not its disk.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import asyncpg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.endtoend import machine  # noqa: E402
from proxy.embedded.postgres import postgres_for  # noqa: E402
from proxy.embedded.process import temporary_directory  # noqa: E402
from proxy.origin.batching import Connection, apart, arguments_of, prepared, run, types_of  # noqa: E402
from proxy.origin.flushing import Flushed, Flusher, Observer, Writer  # noqa: E402
from proxy.origin.installing import install_sql  # noqa: E402
from proxy.origin.journal import Journal  # noqa: E402
from proxy.origin.merging import Batch, Partition, Row  # noqa: E402
from proxy.origin.records import Change, Entry, Op  # noqa: E402
from proxy.origin.segments import PARTITIONS  # noqa: E402
from proxy.plans import Plan, Plans, plans_in  # noqa: E402
from proxy.policy.draft import Order, drafted_here  # noqa: E402

ROWS = 20_000
BATCH = 1000
ROUNDS = 5
GOAL = 50_000  # rows per second
WRITERS = 64
ENTRIES = 20_000
CHANGES = (
    Change(Op.ADD, b"page_views", b"3"),
    Change(Op.ADD, b"api_calls", b"12"),
    Change(Op.SET, b"last_activity", b"1764417600"),
)
_SEQUENCES = itertools.count(1)


def plan() -> Plan:
    _, ruleset = drafted_here(Order(ROOT / "policies", ("locks", "cache"), None))
    plans: Plans = plans_in(ruleset)
    (found,) = [each for each in plans.by_keyspace.values() if each.name == "user_activity"]
    return found


def key(number: int) -> bytes:
    return b"user_activity:usr_%06d:daily:2026-11-29" % number


def entry(number: int) -> Entry:
    return Entry(next(_SEQUENCES), time.time(), "user_activity", key(number), CHANGES)


def rows_of(own: Plan) -> list[list[str | None]]:
    found = []
    for number in range(ROWS):
        row = Row("user_activity", key(number))
        row.merge(entry(number), "add")
        found.append(arguments_of(own, row))
    return found


async def by_row(connection: Connection, own: Plan, rows: Sequence[Sequence[str | None]]) -> None:
    """One statement after another, with the driver's own types."""
    assert own.writing is not None
    for user, day, *numbers in rows:
        values = (int(number) if number is not None else None for number in numbers)
        await connection.execute(
            own.writing.statement.text, user, date.fromisoformat(day or ""), *values
        )


async def flush_whole(dsn: str, own: Plan) -> float:
    """Return the seconds that the flushers of a sidecar take for all entries."""
    parts = [Partition(lambda _: "add") for _ in range(PARTITIONS)]
    begun = asyncio.Semaphore(0)

    async def settled(entries: Sequence[Entry]) -> None:
        begun.release()

    async def flushed(what: Flushed) -> None:
        assert not what.dead

    async def connect() -> Connection:
        return await asyncpg.connect(dsn, timeout=5)

    async def read_again(batch: Batch) -> Mapping[tuple[str, bytes], Sequence[Entry]]:
        return {}

    observer = Observer(
        settled, flushed, lambda partition, why: None, lambda row: False, read_again
    )
    flushers = [
        Flusher(
            Writer("benchmark", number), part, connect, lambda: {"user_activity": own}, observer
        )
        for number, part in enumerate(parts)
    ]
    tasks = [asyncio.create_task(flusher.run()) for flusher in flushers]
    for _ in flushers:
        await begun.acquire()
    for number in range(ROWS):
        # As at any flush: entries are merged when they land.
        made = entry(number)
        parts[zlib.crc32(made.key) % PARTITIONS].add(made)
    begin = time.perf_counter()
    drained = await asyncio.gather(*(flusher.drain(60.0) for flusher in flushers))
    seconds = time.perf_counter() - begin
    assert all(drained)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for flusher in flushers:
        flusher.stop()
    return seconds


class Round(NamedTuple):
    """One way, once."""

    rate: float  # rows per second
    cpu: float  # microseconds of the proxy's processor per row


async def measure(dsn: str) -> dict[str, list[Round]]:
    """Return the rounds of each way."""
    own = plan()
    assert own.writing is not None
    connection: Connection = await asyncpg.connect(dsn, timeout=5)
    together = await prepared(connection, own.writing.statement)
    single = apart(own.writing.statement, await types_of(connection, own.writing.statement))
    rows = rows_of(own)

    async def in_batches(
        write: Callable[[Sequence[Sequence[str | None]]], Awaitable[None]],
    ) -> float:
        begin = time.perf_counter()
        for start in range(0, ROWS, BATCH):
            async with connection.transaction():
                await write(rows[start : start + BATCH])
        return time.perf_counter() - begin

    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "unnest": lambda: in_batches(lambda batch: run(connection, together, batch)),
        "executemany": lambda: in_batches(lambda batch: run(connection, single, batch)),
        "row loop": lambda: in_batches(lambda batch: by_row(connection, own, batch)),
        "whole": lambda: flush_whole(dsn, own),
    }
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            await connection.execute("TRUNCATE user_activity_log")
            await run(connection, together, rows[::2])
            cpu = time.process_time()
            found[name].append(Round(ROWS / await way(), (time.process_time() - cpu) / ROWS * 1e6))
    connection.terminate()
    return found


async def journal(directory: Path) -> dict[str, float]:
    """Return how fast entries become durable, by so many writers at a time."""
    log = Journal(directory, lambda entries: None)
    latencies: list[float] = []
    numbers = iter(range(ENTRIES))

    async def write() -> None:
        for number in numbers:
            begin = time.perf_counter()
            await log.append(log.entry("user_activity", key(number), CHANGES))
            latencies.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    seconds = time.perf_counter() - begin
    await log.close()
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "entries per second": round(ENTRIES / seconds),
        "p50 ms": round(cuts[49] * 1000, 2),
        "p99 ms": round(cuts[98] * 1000, 2),
    }


async def main(target: Path | None) -> None:
    with temporary_directory("sidecache-benchmark-") as directory:
        durable = await journal(directory / "journal")
        async with postgres_for(directory / "postgres") as server:
            dsn = await server.create_database("behind")
            connection: Connection = await asyncpg.connect(dsn, timeout=5)
            await connection.execute((ROOT / "policies" / "schema.sql").read_text())
            await connection.execute(install_sql(()))
            connection.terminate()
            found = await measure(dsn)
    report = {
        "machine": machine(),
        "goal rows per second": GOAL,
        "rows per second": {
            name: {
                "median": round(statistics.median(each.rate for each in rounds)),
                "best": round(max(each.rate for each in rounds)),
                "CPU, us per row": round(statistics.median(each.cpu for each in rounds), 1),
            }
            for name, rounds in found.items()
        },
        "journal": durable | {"writers": WRITERS},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if target is not None:
        target.write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    asyncio.run(main(parser.parse_args().json))
