"""What a rate limit costs a command, and what it takes of memory.

    python benchmarks/limits.py
    python benchmarks/limits.py --json benchmarks/results/limits.json

Pipelines of sixteen GETs, each key of another user, judged by the data plane without a socket:
with no limit, with one of each algorithm per user, in alternating rounds. The figure is what
`Downstream.receive_data` takes longer per command with a limit, of the tenth of all pipelines that
was disturbed least; with sixteen users, whose cells stay in the processor's cache, and with a
million, where a cell has to be fetched from memory: two lines of it for gcra, four for window.

Accuracy is told by commands that keep their pace but for a tenth of it: how many of them a limit
lets through in a period, against what is sent or allowed, on average and at most in any window.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.wire import DEPTH, REPLY, environment  # noqa: E402
from proxy import commands, wire  # noqa: E402
from proxy.policy import compiler  # noqa: E402
from proxy.policy.loader import load  # noqa: E402
from proxy.policy.rights import Vocabulary  # noqa: E402

LIMITS = {
    "none": "",
    # Never refused: what is measured is taking a cell, in every round again.
    "gcra": "rate: [{per: id, limit: 1000/s, burst: 1000}]",
    "window": "rate: [{per: id, limit: 5/ms, algorithm: window}]",
}
USERS = (16, 1_000_000)
ROUNDS = 6
SETTLE = 1  # rounds until tables and caches are warm

GOALS = {"gcra": 30, "window": 60}  # nanoseconds beyond what memory takes


def rules(limit: str, folder: Path) -> wire.Ruleset:
    path = folder / "limits.yaml"
    path.write_text(f"keyspaces:\n  user:\n    key: user:{{id}}\n    {limit}\n")
    vocabulary = Vocabulary(commands.ROWS, commands.CATEGORIES, ("cache",))
    policies = load(path, vocabulary)
    return compiler.compile(
        policies, commands.ROWS, commands.FAMILIES, commands.CATEGORIES, ("cache",)
    )


class Bench:
    """One client, one node, and one limit."""

    def __init__(self, ruling: wire.Ruleset) -> None:
        self.rules = ruling
        self.batch = wire.Batch(lambda: None)
        self.node = wire.Upstream(self.batch, wire.Latencies(1), 0, 1.0)
        slots = wire.SlotMap([(False, array("h", [0]))], [((self.node,), (self.node,))])
        self.client = wire.Downstream(wire.Router(ruling, slots), self.batch, 0)
        self.client.assume("default")
        self.judged: list[float] = []

    def round(self, pipelines: Sequence[bytes], now: float, record: bool) -> None:
        """Send every pipeline once and answer it."""
        clock, client = time.perf_counter_ns, self.client
        for pipeline in pipelines:
            now += 0.01
            start = clock()
            client.receive_data(pipeline, now)
            judged = clock() - start
            whole = client.pending == DEPTH
            while client.pending or client.resumable:
                self.batch.take_touched()
                self.node.receive_data(REPLY * self.node.data_to_send(now).count(b"GET"), now)
                client.data_to_send()
                self.batch.take_ready()
                if client.resumable:
                    client.receive_data(b"", now)
            if record and whole:
                self.judged.append(judged / DEPTH)


def costs(users: int, folder: Path) -> dict[str, float]:
    """Return the nanoseconds per command with each limit."""
    chance = random.Random(users)
    names = [b"user:%d" % number for number in range(users)] * max(1, 100_000 // users)
    chance.shuffle(names)
    frames = [wire.pack([b"GET", name]) for name in names]
    pipelines = [b"".join(frames[at : at + DEPTH]) for at in range(0, len(frames), DEPTH)]
    benches = {name: Bench(rules(limit, folder)) for name, limit in LIMITS.items()}
    for number in range(ROUNDS):
        for bench in benches.values():
            bench.round(pipelines, 1000.0 * (1 + number), number >= SETTLE)
    found = {name: round(statistics.quantiles(b.judged, n=10)[0], 1) for name, b in benches.items()}
    for name, bench in benches.items():
        for rate in bench.rules.rates:
            found[f"{name}_shared_cells"] = rate.table.overflows / ROUNDS
    return found


def gcra_bytes(folder: Path) -> tuple[int, int]:
    """Return what a million ids take of memory that is used, and how often two shared a cell."""
    (rate,) = rules(LIMITS["gcra"], folder).rates
    before = _resident()
    for number in range(1_000_000):
        rate.take(b"user:%d" % number, 1.0)
    return _resident() - before, rate.table.overflows


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def accuracy(limit: str, load: float, folder: Path) -> dict[str, float]:
    """Return the shares that were accepted: of what was due, and at most in any window."""
    (rate,) = rules(limit, folder).rates
    amount, period = rate.row.amount, rate.row.seconds
    chance = random.Random(1)
    now, sent, accepted = 1e6, 0, list[float]()
    end = now + period * max(100.0, 1 / load)
    while now < end:
        sent += 1
        if rate.take(b"user", now) == 0:
            accepted.append(now)
        now = 1e6 + (sent + chance.uniform(-0.1, 0.1)) * period / (amount * load)
    due = min(sent, amount * (end - 1e6) / period)
    most = max(bisect_left(accepted, at + period - 1e-6) - i for i, at in enumerate(accepted))
    return {"of_what_is_due": round(len(accepted) / due, 4), "most_in_a_window": most / amount}


def run(folder: Path) -> dict[str, Any]:
    cost = {str(users): costs(users, folder) for users in USERS}
    taken, overflows = gcra_bytes(folder)
    limits = {
        "gcra": "rate: [{per: id, limit: 300/min}]",
        "window": "rate: [{per: id, limit: 300/min, algorithm: window}]",
    }
    exact = {
        name: {f"{load:.0%}": accuracy(text, load, folder) for load in (0.01, 1.0, 10.0)}
        for name, text in limits.items()
    }
    return {
        "nanoseconds": cost, "million_ids_bytes": taken, "shared_cells": overflows,
        "accuracy": exact,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what a rate limit costs a command")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder))
    for users, cost in figures["nanoseconds"].items():
        for name, goal in GOALS.items():
            print(f"{users:>8} users  {name:6} {cost[name] - cost['none']:6.1f} ns  (<= {goal})")
    print(f"a million ids of gcra take {figures['million_ids_bytes'] / 2**20:.1f} MiB (<= 32)")
    print(json.dumps(figures["accuracy"], indent=1))
    if options.json is not None:
        options.json.write_text(
            json.dumps({"environment": environment(), "figures": figures}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
