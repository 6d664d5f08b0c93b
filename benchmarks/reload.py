"""What a reload costs the traffic: failed requests, latency and gaps of the event loop.

    python -m benchmarks.reload [--reloads 100] [--seconds 20] [--keyspaces 1000] [--json FILE]

The proxy runs in this process, so that its loop can be watched: a timer that is due every
millisecond says how late it was. Requests come from a process of its own, at a fixed rate. First
some reloads without requests, then reloads that follow each other without a pause; then runs with
one reload per ten seconds and runs without any take turns, so that whatever else the machine does
meets both.

A gap is a time on the wall, so neighbours lengthen it: a thread that has the interpreter and waits
for a core holds the loop up as well. What of it is ours is told by processor time between two ticks
of the timer: of the loop's thread (loop), and of all threads (own), which bounds what any of them
has kept the interpreter for. Without requests that is the reload's and nothing else; with them it
is also the work on those that came in during a gap.

The process that reads the rules has its modules compiled, as an installed distribution has; what it
takes is told in seconds of a processor.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any, NamedTuple

import uvloop
import yaml

from benchmarks.openloop import Plan
from proxy import config
from proxy.app import App
from proxy.embedded.programs import find_redis
from proxy.embedded.redis import Single
from proxy.embedded.sidecar import configuration_for

RATE = 2000  # requests per second
INTERVAL = 10.0  # seconds between two reloads of the paired runs
TICK = 0.001  # seconds
STARTED = 0.2  # seconds after which the start of the generator, which holds this loop up, is over
VERSIONS = 3
ALONE = 3 * VERSIONS  # reloads without requests, after which the first version is there again
ROOT = Path(__file__).resolve().parent.parent


class Gap(NamedTuple):
    """One tick of the timer, in milliseconds."""

    late: float  # without what the loop's thread waited for a core
    loop: float  # processor time of the loop's thread since the tick before
    own: float  # processor time of all threads; 0 where the loop's thread waited for a core


class Gaps:
    """How late a timer of the loop is, without waiting for a core.

    Linux counts how long a thread was ready and had none: what others do to this machine.
    """

    def __init__(self) -> None:
        self.seen: list[Gap] = []

    async def watch(self) -> None:
        figures = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

        def waited() -> float:
            return int(os.pread(figures, 100, 0).split()[1]) / 1e9

        last = perf_counter(), waited(), thread_time(), process_time()
        while True:
            await asyncio.sleep(TICK)
            now = perf_counter(), waited(), thread_time(), process_time()
            wall, lost, loop, own = (new - old for new, old in zip(now, last, strict=True))
            # Other threads go on while ours has no core: then their time tells nothing.
            found = wall - lost - TICK, loop, own if lost < TICK else 0.0
            self.seen.append(Gap(*(1000 * seconds for seconds in found)))
            last = now

    def take(self) -> list[Gap]:
        seen, self.seen = self.seen, []
        return seen


@cache
def rules(keyspaces: int, version: int) -> dict[str, str]:
    """Return files of a hundred keyspaces each; a version changes a rule in every file."""
    files = {}
    for first in range(0, keyspaces, 100):
        names = [f"space_{number}" for number in range(first, min(first + 100, keyspaces))]
        spaces = {name: _keyspace(f"{name}:{{user:int}}:{{rest}}", version) for name in names}
        if first == 0:
            spaces["key"] = _keyspace("key:{id}", version)
        files[f"{first:05}"] = yaml.safe_dump({"keyspaces": spaces})
    return files


def write_rules(folder: Path, keyspaces: int, version: int) -> None:
    """Put a version of the rules there, of texts that are made before anything is measured."""
    folder.mkdir(exist_ok=True)
    for name, text in rules(keyspaces, version % VERSIONS).items():
        (folder / f"{name}.new").write_text(text)
        (folder / f"{name}.new").rename(folder / f"{name}.yaml")


def _keyspace(key: str, version: int) -> dict[str, Any]:
    return {
        "key": key, "cluster": "cache", "evict": "lru",
        "ttl": {"default": "60s", "max": "900s", "jitter": "10%"},
        "key_grammar": {"characters": "A-Za-z0-9:_-", "max_bytes": 100 + version},
        "commands": {"deny": ["KEYS", "OBJECT", "SORT"][: 1 + version % 3]},
    }  # fmt: skip


@asynccontextmanager
async def proxy_here(folder: Path) -> AsyncIterator[tuple[App, int]]:
    """Run a server and the proxy before it, in this process; yield it and its port."""
    async with Single("cache", find_redis(), folder) as server:
        document = configuration_for(
            {"cache": server}, policies={"path": str(folder / "policies"), "watch": False}
        )
        file = folder / "sidecache.yaml"
        await asyncio.to_thread(file.write_text, yaml.safe_dump(document))
        app = App(config.load(file))
        task = asyncio.create_task(app.run())
        while not app.readyz()[1].startswith("cache=up"):
            await asyncio.sleep(0.05)
        yield app, int(document["listen"]["tcp"].rpartition(":")[2])
        app.drain()
        await task


async def load(port: int, seconds: float) -> dict[str, Any]:
    """Send requests from another process; return its figures."""
    code = (
        "import json, sys; from dataclasses import asdict; from benchmarks.openloop import *; "
        "print(json.dumps(asdict(run(Plan(**json.loads(sys.argv[1]))))))"
    )
    plan = json.dumps(asdict(Plan(port=port, rate=RATE, seconds=seconds)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, plan, cwd=ROOT, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    figures: dict[str, Any] = json.loads(out)
    return figures


async def measured(
    gaps: Gaps, port: int, seconds: float, work: Callable[[], Awaitable[int]]
) -> dict[str, Any]:
    """Return the figures of a run while some work is done."""
    traffic = asyncio.create_task(load(port, seconds))
    await asyncio.sleep(STARTED)
    gaps.take()
    reloads = await work()
    figures = await traffic
    return {
        "reloads": reloads, "sent": figures["sent"], "errors": figures["errors"],
        "unanswered": figures["sent"] - figures["answered"],
        "p50_ms": figures["p50"], "p99_ms": figures["p99"], "p999_ms": figures["p999"],
        "load": os.getloadavg()[0],
    } | summary(gaps.take())  # fmt: skip


def summary(seen: list[Gap]) -> dict[str, float]:
    late = sorted(gap.late for gap in seen)
    return {
        "gap_p999_ms": round(late[int(len(late) * 0.999)], 1), "gap_most_ms": round(late[-1], 1),
        "gaps_over_20_ms": sum(gap > 20 for gap in late),
        "loop_most_ms": round(max(gap.loop for gap in seen), 1),
        "own_most_ms": round(max(gap.own for gap in seen), 1),
    }  # fmt: skip


async def alone(app: App, rules: Path, keyspaces: int) -> dict[str, float]:
    """Reload without requests: what the loop misses then is the reload's and nothing else."""
    gaps, seen = Gaps(), list[Gap]()
    watch = asyncio.create_task(gaps.watch())
    for version in range(1, ALONE + 1):
        await asyncio.to_thread(write_rules, rules, keyspaces, version)
        await asyncio.sleep(TICK * 2)  # the writing is seen by then, and not counted
        gaps.take()
        assert (await app.reload()).startswith("changed")
        seen += gaps.take()
    watch.cancel()
    return summary(seen)


def children_seconds() -> float:
    """Return the processor time of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def conditions(figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the pairs come to, and where they were measured."""
    pairs = zip(figures["without"], figures["with"], strict=True)
    ratios = [changing["p99_ms"] / calm["p99_ms"] for calm, changing in pairs]
    return {
        "p99_ratio_median": round(statistics.median(ratios), 2) if ratios else None,
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "processors": os.cpu_count(),
    }  # fmt: skip


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = 0
        for each in range(VERSIONS):
            write_rules(folder / "policies", options.keyspaces, each)
        write_rules(folder / "policies", options.keyspaces, version)

        async def one() -> float:
            nonlocal version
            version += 1
            rules = folder / "policies"
            await asyncio.to_thread(write_rules, rules, options.keyspaces, version)
            start = perf_counter()
            assert (await app.reload()).startswith("changed")
            return perf_counter() - start

        async def many() -> int:
            times = [await one() for _ in range(options.reloads)]
            print(
                f"a reload takes {sorted(times)[len(times) // 2]:.2f} s, at most {max(times):.2f}"
            )
            return int(options.reloads)

        async def now_and_then() -> int:
            for _ in range(int(options.seconds / INTERVAL)):
                await asyncio.sleep(INTERVAL / 2)
                taken = await one()
                await asyncio.sleep(max(0.0, INTERVAL / 2 - taken))
            return int(options.seconds / INTERVAL)

        async def nothing() -> int:
            return 0

        async with proxy_here(folder) as (app, port):
            gaps = Gaps()
            watch = asyncio.create_task(gaps.watch())
            figures: dict[str, Any] = {
                "keyspaces": options.keyspaces, "requests_per_second": RATE,
                "seconds_between_reloads": INTERVAL,
                "alone": await alone(app, folder / "policies", options.keyspaces),
            }  # fmt: skip
            print("alone", json.dumps(figures["alone"]))
            before = children_seconds()
            taken = await one()
            figures["reader_cpu_seconds"] = round(children_seconds() - before, 2)
            if options.reloads:
                seconds = options.reloads * (taken + 0.2)
                figures["in a row"] = await measured(gaps, port, seconds, many)
                print("in a row", json.dumps(figures["in a row"]))
            figures |= {"without": [], "with": []}
            for _ in range(options.pairs):
                for name, work in (("without", nothing), ("with", now_and_then)):
                    figures[name].append(await measured(gaps, port, options.seconds, work))
                    print(name, json.dumps(figures[name][-1]))
            watch.cancel()
    return figures | conditions(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--keyspaces", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        figures = uvloop.run(run(options))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
