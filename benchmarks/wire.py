"""Nanoseconds per command in the data plane, without a socket.

    python benchmarks/wire.py
    python benchmarks/wire.py --json benchmarks/results/wire.json

A pipeline of sixteen GETs of random keys over three nodes, with 50 and with 1,000 keyspaces loaded,
in alternating rounds. Two figures per command, each the median over all pipelines, so that a
neighbour on the machine who interrupts some of them does not show:

  judge   `Downstream.receive_data`: frames scanned, commands and keys judged, slot and node found,
          bytes and `Pending` queued. This is judge + route + order of the requests.
  reply   `Upstream.receive_data` and `Downstream.data_to_send`: replies scanned, matched to their
          requests and put into the client's order.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proxy import wire  # noqa: E402
from proxy.policy import compiler  # noqa: E402

DEPTH = 16
NODES = 3
PIPELINES = 200  # different ones, so that no branch predictor learns a single one by heart
ROUNDS = 40
SETTLE = 5  # rounds until the client's window is open and the caches are warm
SIZES = (50, 1000)
REPLY = b"$3\r\nabc\r\n"

GOAL_NANOSECONDS = 250
GOAL_RATIO = 1.2


def rules(keyspaces: int) -> wire.Ruleset:
    """Return rules with so many keyspaces of two segments each."""
    lines = [
        f"  space{i}: {{key: 'app{i}:{{id}}:item:{{n}}', cluster: cache}}" for i in range(keyspaces)
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.yaml").write_text("keyspaces:\n" + "\n".join(lines) + "\n")
        return compiler.from_files(Path(folder), ("cache",))[0]


class Bench:
    """One client and three nodes without sockets."""

    def __init__(self, keyspaces: int) -> None:
        chance = random.Random(keyspaces)
        self.batch = wire.Batch(lambda: None)
        latencies = wire.Latencies(1)
        self.upstreams = [wire.Upstream(self.batch, latencies, 0, 1.0) for _ in range(NODES)]
        owners = array("h", [slot * NODES // 16384 for slot in range(16384)])
        slots = wire.SlotMap([(True, owners)], [((u,), (u,)) for u in self.upstreams])
        self.client = wire.Downstream(wire.Router(rules(keyspaces), slots), self.batch, 0)
        self.client.assume("default")
        self.pipelines = [
            b"".join(wire.pack([b"GET", self.key(chance, keyspaces)]) for _ in range(DEPTH))
            for _ in range(PIPELINES)
        ]
        self.judge: list[float] = []
        self.reply: list[float] = []

    @staticmethod
    def key(chance: random.Random, keyspaces: int) -> bytes:
        space, event, item = (
            chance.randrange(keyspaces),
            chance.randrange(10**5),
            chance.randrange(1000),
        )
        return f"app{space}:evt_{event}:item:{item}".encode()

    def round(self, record: bool) -> None:
        """Send every pipeline once and answer it."""
        clock = time.perf_counter_ns
        client, batch = self.client, self.batch
        for pipeline in self.pipelines:
            start = clock()
            client.receive_data(pipeline, 1.0)
            judged = clock() - start
            batch.take_touched()
            sent = [upstream.data_to_send(1.0).count(b"GET") for upstream in self.upstreams]
            replies = [REPLY * count for count in sent]
            start = clock()
            for upstream, data in zip(self.upstreams, replies, strict=True):
                if data:
                    upstream.receive_data(data, 1.0)
            out = client.data_to_send()
            replied = clock() - start
            batch.take_ready()
            if record and len(out) == DEPTH * len(REPLY):
                self.judge.append(judged / DEPTH)
                self.reply.append(replied / DEPTH)
            self.finish()

    def finish(self) -> None:
        """Answer what a young client's window held back."""
        while self.client.pending or self.client.resumable:
            self.client.receive_data(b"", 1.0)
            self.batch.take_touched()
            for upstream in self.upstreams:
                count = upstream.data_to_send(1.0).count(b"GET")
                upstream.receive_data(REPLY * count, 1.0)
            self.client.data_to_send()
            self.batch.take_ready()


def run() -> dict[str, dict[str, float]]:
    benches = {size: Bench(size) for size in SIZES}
    for number in range(ROUNDS):
        for bench in benches.values():
            bench.round(number >= SETTLE)
    return {
        str(size): {
            "judge_ns": round(statistics.median(bench.judge), 1),
            "reply_ns": round(statistics.median(bench.reply), 1),
        }
        for size, bench in benches.items()
    }


def environment() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    return {
        "commit": commit, "python": platform.python_version(), "cpu": model,
        "cores": os.cpu_count(), "cython": version("Cython"),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="nanoseconds per command in the data plane")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    figures = run()
    for size, figure in figures.items():
        print(f"{size:>5} keyspaces  judge {figure['judge_ns']:6.1f} ns  "
              f"reply {figure['reply_ns']:6.1f} ns")  # fmt: skip
    first, last = (figures[str(size)]["judge_ns"] for size in SIZES)
    print(f"goals: judge {first:.0f} ns (<= {GOAL_NANOSECONDS}), "
          f"with {SIZES[1]} keyspaces {last / first:.2f} x (<= {GOAL_RATIO})")  # fmt: skip
    if options.json is not None:
        report = {"environment": environment(), "depth": DEPTH, "figures": figures}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
