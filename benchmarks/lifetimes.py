"""What rules about times and sizes cost: CPU time of the proxy per request, end to end.

    python benchmarks/lifetimes.py
    python benchmarks/lifetimes.py --json benchmarks/results/lifetimes.json

Every command is sent to a keyspace without rules and to one with a rule, by turns, at a depth of
sixteen, through one proxy in front of three nodes. The figure of a pair is the quotient of the
proxy's CPU time per request, the median over all turns: what else the machine does touches both.
Needs redis-benchmark.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proxy.embedded.programs import find_redis  # noqa: E402
from proxy.embedded.redis import Cluster, Shape  # noqa: E402
from proxy.embedded.sidecar import Sidecar, configuration_for  # noqa: E402

DEPTH = 16
CLIENTS = 16
TICK = os.sysconf("SC_CLK_TCK")

RULES = """
keyspaces:
  plain: {key: "plain:{x}"}
  timed: {key: "timed:{x}", ttl: {default: 600s}}
  bounded: {key: "bounded:{x}", ttl: {max: 600s}}
  short: {key: "short:{x}", collection: {max_items: 100}}
"""

# What is measured, and the keyspace whose rule it meets.
PAIRS = {
    "SET, default put in": ("timed", ["SET", "{key}", "abc"]),
    "SET EX, within its bound": ("bounded", ["SET", "{key}", "abc", "EX", "60"]),
    "SET EX, cut to its bound": ("bounded", ["SET", "{key}", "abc", "EX", "6000"]),
    "HSET, default behind it": ("timed", ["HSET", "{key}", "f", "abc"]),
    "RPUSH, trim behind it": ("short", ["RPUSH", "{key}", "abc"]),
    "GET, no rule met": ("timed", ["GET", "{key}"]),
}
GOAL = 1.25  # of the first


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def play(port: int, pid: int, words: Sequence[str], key: str, requests: int) -> float:
    """Return the CPU time of the proxy per request, in microseconds."""
    command = [word.replace("{key}", key) for word in words]
    before = cpu_seconds(pid)
    subprocess.run(
        ["redis-benchmark", "-p", str(port), "-P", str(DEPTH), "-c", str(CLIENTS), "-q",
         "-n", str(requests), "-r", "10000", *command],
        check=True, capture_output=True,
    )  # fmt: skip
    return (cpu_seconds(pid) - before) / requests * 1e6


async def run(requests: int, turns: int) -> dict[str, dict[str, float]]:
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rules.yaml").write_text(RULES)
        async with Cluster("cache", find_redis(), folder / "cache", shape=Shape(3, 0)) as cluster:
            blocks = configuration_for({"cache": cluster}, policies=str(folder / "rules.yaml"))
            async with Sidecar(blocks, folder / "proxy") as sidecar:
                for label, (space, words) in PAIRS.items():
                    pairs = []
                    for turn in range(turns):
                        order = ("plain", space) if turn % 2 else (space, "plain")
                        cost = {}
                        for which in order:
                            key = f"{which}:{len(figures)}__rand_int__"
                            cost[which] = await asyncio.to_thread(
                                play, sidecar.port, sidecar.pid or 0, words, key, requests
                            )
                        pairs.append((cost["plain"], cost[space]))
                    figures[label] = summary(pairs)
                    print(f"{label:<26} {figures[label]}", flush=True)
    return figures


def summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {
        "plain_us": round(statistics.median(plain for plain, _ in pairs), 2),
        "ruled_us": round(statistics.median(ruled for _, ruled in pairs), 2),
        "ratio": round(statistics.median(ruled / plain for plain, ruled in pairs), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what rules about times and sizes cost")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--requests", type=int, default=100_000, help="of one play")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    figures = asyncio.run(run(options.requests, options.turns))
    print(f"goal: {next(iter(figures.values()))['ratio']:.2f} x (<= {GOAL})")
    if options.json is not None:
        report = {
            "python": platform.python_version(), "cores": os.cpu_count(), "depth": DEPTH,
            "requests": options.requests, "turns": options.turns, "figures": figures,
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
