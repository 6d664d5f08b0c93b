"""Nanoseconds per command in the data plane, without a socket.

    python benchmarks/wire.py
    python benchmarks/wire.py --json benchmarks/results/wire.json

A pipeline of sixteen GETs of random keys over three nodes, with 50 and with 1,000 keyspaces loaded,
and with 50 while traffic is seen (keys of every 64th command counted, every 1,000th traced), in
alternating rounds. Two figures per command, each the median over all pipelines, so that a
neighbour on the machine who interrupts some of them does not show:

  judge   `Downstream.receive_data`: frames scanned, commands and keys judged, slot and node found,
          bytes and `Pending` queued. This is judge + route + order of the requests.
  reply   `Upstream.receive_data` and `Downstream.data_to_send`: replies scanned, matched to their
          requests and put into the client's order.

Then what each kind of rule costs: nanoseconds per command, judge and reply together, beyond those
of the same commands without it, in alternating rounds, of the tenth of all pipelines that was
disturbed least; every command is let through. And nanoseconds per byte of `json_fault`, the
judgement of `value: {json: true}`, for values of different kinds.
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
from typing import NamedTuple

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
SEEN = "50, seen"
REPLY = b"$3\r\nabc\r\n"

GOAL_NANOSECONDS = 250
GOAL_RATIO = 1.2
GOAL_JSON = 2.0  # nanoseconds per byte

SEAT = {"seat_id": "seat_abc123", "section": "stalls", "row": "A", "number": 15,
        "price_cents": 5000, "category": "premium", "added_at": 1640995200}  # fmt: skip
VALUES = {
    "lock": {"user_id": "usr_abc123", "booking_id": "bkg_def456", "locked_at": 1640995200,
             "expires_at": 1640995800, "session_id": "sess_ghi789", "lock_type": "booking"},
    "cart of 10": {"seats": [SEAT] * 10, "total_price_cents": 5000, "currency": "USD"},
    "100 members": {f"member_{i}": i for i in range(100)},
    "text": {"text": "Last minute tickets for tonight. " * 100},
    "text, not ASCII": {"text": "Überraschung: 日本語 😀 " * 100},
}  # fmt: skip


class Kind(NamedTuple):
    """One kind of rule, and a command that meets it, but for its key, which is the second word."""

    command: str
    rule: str = ""  # of the keyspace
    role: str = ""
    key: str = "app:{id}:item:{n}"


LOCK = json.dumps(VALUES["lock"], separators=(",", ":"))
KINDS = {
    "typed segments": Kind("GET", key="app:{id:int}:item:{n:int}"),
    "characters of keys": Kind("GET", "key_grammar: {characters: 'A-Za-z0-9:_-'}"),
    "hash tag put in": Kind("GET", "hash_tag: id"),
    "default time in SET": Kind("SET abc", "ttl: {default: 600s}"),
    "default time behind HSET": Kind("HSET f abc", "ttl: {default: 600s}"),
    "time within its bound": Kind("SET abc EX 60", "ttl: {max: 600s}"),
    "time cut to its bound": Kind("SET abc EX 6000", "ttl: {max: 600s}"),
    "size of a value": Kind("SET abc", "value: {max_bytes: 1KiB}"),
    f"JSON of {len(LOCK)} bytes": Kind(f"SET {LOCK}", "value: {json: true}"),
    "trim behind RPUSH": Kind("RPUSH abc", "collection: {max_items: 100}"),
    "commands of a role": Kind("GET", role="commands: {deny: ['@admin', SET]}"),
    "commands of a keyspace": Kind("GET", "commands: {deny: ['@admin', SET]}"),
    "bounds of arguments": Kind("LRANGE 0 10", "commands: {bounds: {LRANGE span: 1000}}"),
    "keys of a role": Kind("GET", role="keys: ['app:{id}:item:{n}']"),
    "rate, gcra": Kind("GET", "rate: [{per: id, limit: 1000/s, burst: 1000}]"),
    "rate, window": Kind("GET", "rate: [{per: id, limit: 1000/s, algorithm: window}]"),
    "breach that is observed": Kind("SET abc", "mode: observe, value: {max_bytes: 2B}"),
}


def compiled(policies: str) -> wire.Ruleset:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.yaml").write_text(policies)
        return compiler.from_files(Path(folder), ("cache",))[0]


def rules(keyspaces: int) -> wire.Ruleset:
    """Return rules with so many keyspaces of two segments each."""
    lines = [
        f"  space{i}: {{key: 'app{i}:{{id}}:item:{{n}}', cluster: cache}}" for i in range(keyspaces)
    ]
    return compiled("keyspaces:\n" + "\n".join(lines) + "\n")


def rules_of(kind: Kind) -> wire.Ruleset:
    """Return rules with one keyspace and one role."""
    return compiled(
        f"keyspaces:\n  app: {{key: '{kind.key}', {kind.rule}}}\n"
        f"roles:\n  default: {{{kind.role}}}\n"
    )


def pipelines(words: Sequence[str], spaces: Sequence[str], events: int) -> list[bytes]:
    """Return pipelines of one command, for random keys of keyspaces that are named app and this."""
    chance = random.Random(len(spaces))

    def command() -> bytes:
        event, item = chance.randrange(events), chance.randrange(1000)
        key = f"app{chance.choice(spaces)}:{event}:item:{item}"
        return wire.pack([word.encode() for word in (words[0], key, *words[1:])])

    return [b"".join(command() for _ in range(DEPTH)) for _ in range(PIPELINES)]


class Bench:
    """One client and three nodes without sockets."""

    def __init__(
        self, ruling: wire.Ruleset, pipelines: Sequence[bytes], seen: bool = False
    ) -> None:
        self.pipelines = pipelines
        self.now = 0.0
        self.batch = wire.Batch(lambda: None)
        self.batch.on_seen = lambda owner, traces: None
        if seen:
            self.batch.sketches = wire.Sketches(bytes(16), len(ruling.keyspaces))
            self.batch.sketches.look(0.001, 1 / 64)
            self.batch.clock = time.monotonic
        latencies = wire.Latencies(1)
        self.upstreams = [wire.Upstream(self.batch, latencies, 0, 1.0) for _ in range(NODES)]
        owners = array("h", [slot * NODES // 16384 for slot in range(16384)])
        slots = wire.SlotMap([(True, owners)], [((u,), (u,)) for u in self.upstreams])
        self.client = wire.Downstream(wire.Router(ruling, slots), self.batch, 0)
        self.client.assume("default")
        self.judge: list[float] = []
        self.reply: list[float] = []

    def round(self, record: bool) -> None:
        """Send every pipeline once and answer it."""
        clock = time.perf_counter_ns
        client, batch = self.client, self.batch
        self.now = now = self.now + 1.0  # what limits had charged is room again
        for pipeline in self.pipelines:
            start = clock()
            client.receive_data(pipeline, now)
            judged = clock() - start
            batch.take_touched()
            replies = self.replies()
            start = clock()
            for upstream, data in replies:
                upstream.receive_data(data, now)
            out = client.data_to_send()
            replied = clock() - start
            batch.take_ready()
            if record and len(out) == DEPTH * len(REPLY):
                self.judge.append(judged / DEPTH)
                self.reply.append(replied / DEPTH)
            self.finish()

    def replies(self) -> list[tuple[wire.Upstream, bytes]]:
        """Take what nodes are sent, and return what they answer."""
        for upstream in self.upstreams:
            upstream.data_to_send(self.now)
        return [(node, REPLY * node.pending) for node in self.upstreams if node.pending]

    def finish(self) -> None:
        """Answer what a young client's window held back."""
        while self.client.pending or self.client.resumable:
            self.client.receive_data(b"", self.now)
            self.batch.take_touched()
            for upstream, data in self.replies():
                upstream.receive_data(data, self.now)
            self.client.data_to_send()
            self.batch.take_ready()


def trimmed(values: list[float]) -> list[float]:
    """Return the values without the slowest twentieth: neighbours on the machine, not our work."""
    return sorted(values)[: len(values) * 19 // 20]


def run() -> dict[str, dict[str, float]]:
    sent = {size: pipelines(["GET"], [str(i) for i in range(size)], 10**5) for size in SIZES}
    benches = {str(size): Bench(rules(size), sent[size]) for size in SIZES}
    benches[SEEN] = Bench(rules(SIZES[0]), sent[SIZES[0]], seen=True)
    for number in range(ROUNDS):
        for bench in benches.values():
            bench.round(number >= SETTLE)
    return {
        name: {
            "judge_ns": round(statistics.median(bench.judge), 1),
            "reply_ns": round(statistics.median(bench.reply), 1),
            "mean_ns": round(statistics.fmean(trimmed(bench.judge) + trimmed(bench.reply)) * 2, 1),
        }
        for name, bench in benches.items()
    }


def kinds() -> dict[str, dict[str, float]]:
    """Return what the commands of each kind cost without the rule, and how much more with it."""
    found = {}
    for name, kind in KINDS.items():
        sent = pipelines(kind.command.split(), [""], 16)
        ruled, plain = (Bench(rules_of(rule), sent) for rule in (kind, Kind(kind.command)))
        for number in range(ROUNDS):
            for bench in (plain, ruled):
                bench.round(number >= SETTLE)
        least, most = (
            statistics.quantiles(map(sum, zip(bench.judge, bench.reply, strict=True)), n=10)[0]
            for bench in (plain, ruled)
        )
        found[name] = {"plain_ns": round(least, 1), "more_ns": round(most - least, 1)}
    return found


def values() -> dict[str, float]:
    """Return nanoseconds per byte for values of different kinds, in alternating rounds."""
    clock = time.perf_counter_ns
    texts = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in VALUES.items()}
    taken: dict[str, list[float]] = {name: [] for name in texts}
    for _ in range(ROUNDS):
        for name, text in texts.items():
            for _ in range(PIPELINES):
                start = clock()
                wire.json_fault(text)
                taken[name].append((clock() - start) / len(text))
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


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
    for name, figure in figures.items():
        parts = "  ".join(f"{part.removesuffix('_ns')} {ns:6.1f} ns" for part, ns in figure.items())
        print(f"{name:>8} keyspaces  {parts}")
    first, last = (figures[str(size)]["judge_ns"] for size in SIZES)
    print(f"goals: judge {first:.0f} ns (<= {GOAL_NANOSECONDS}), "
          f"with {SIZES[1]} keyspaces {last / first:.2f} x (<= {GOAL_RATIO})")  # fmt: skip
    per_kind = kinds()
    for name, figure in per_kind.items():
        print(f"{name:>24}  {figure['more_ns']:+6.1f} ns beyond {figure['plain_ns']:.1f} ns")
    per_byte = values()
    for name, nanoseconds in per_byte.items():
        print(f"{name:>16}  json {nanoseconds:5.2f} ns per byte (<= {GOAL_JSON})")
    if options.json is not None:
        report = {"environment": environment(), "depth": DEPTH, "figures": figures,
                  "rules": per_kind, "json_ns_per_byte": per_byte}  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
