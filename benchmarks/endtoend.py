"""What a request costs beside the C proxies, paired in one run on one machine.

    python benchmarks/endtoend.py                        all targets, five rounds
    python benchmarks/endtoend.py --rounds 1 --seconds 0.3 --only sidecache,twemproxy
    python benchmarks/endtoend.py --demo demo.json       our side is a running demo

Every round measures every target once per test and pipeline depth, in an order that turns from
round to round, so that a neighbour on the machine hurts all of them alike. CPU per request is user
plus system time of the proxy's process divided by the requests; throughput is what redis-benchmark
says. Ratios are taken within a round and then their median. Behind us are three cluster primaries,
behind twemproxy and HAProxy three plain servers; "direct" is one plain server without a proxy.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import openloop  # noqa: E402
from benchmarks.stage import Stage, StageError, Target, program  # noqa: E402
from proxy.embedded.process import EmbeddedError  # noqa: E402

TARGETS = ("sidecache", "twemproxy", "haproxy", "direct")
CLIENTS = 50
KEYS = 100_000

# Requests per second that redis-benchmark reaches at most here, by pipeline depth: only used to
# turn seconds into a number of requests.
_GUESS = {1: 60_000, 16: 500_000, 64: 900_000}


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One run of redis-benchmark against one target."""

    round: int
    target: str
    test: str
    depth: int
    requests: int
    throughput: float  # requests per second
    cpu: float  # microseconds of the target's process per request
    p50: float  # milliseconds
    p99: float


def measure(target: Target, test: str, depth: int, requests: int, number: int) -> Sample:
    """Run redis-benchmark once and return what it and the kernel counted."""
    command = [program("redis-benchmark"), "-p", str(target.port), "-t", test, "-c", str(CLIENTS)]
    command += ["-n", str(requests), "-r", str(KEYS), "-P", str(depth), "--csv"]
    before = target.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    spent = target.cpu_seconds() - before
    rows = [row for row in csv.reader(io.StringIO(done.stdout)) if row and row[0] == test.upper()]
    if done.returncode or not rows:
        raise StageError(f"redis-benchmark against {target.name}: {done.stderr or done.stdout}")
    _, throughput, _, _, p50, _, p99, _ = rows[0]
    return Sample(
        round=number,
        target=target.name,
        test=test,
        depth=depth,
        requests=requests,
        throughput=float(throughput),
        cpu=spent / requests * 1e6,
        p50=float(p50),
        p99=float(p99),
    )


def play(
    targets: Sequence[Target], depths: Sequence[int], rounds: int, seconds: float
) -> list[Sample]:
    """Run all rounds and return every sample."""
    samples = []
    for number in range(rounds):
        turn = number % len(targets)
        order = [*targets[turn:], *targets[:turn]]
        for depth in depths:
            requests = max(20_000, int(_GUESS[depth] * seconds))
            # SET runs first so that GET finds the keys.
            for test in ("set", "get"):
                for target in order:
                    sample = measure(target, test, depth, requests, number)
                    samples.append(sample)
                    print(
                        f"round {number + 1}/{rounds}  {test} -P {depth:<3} {target.name:10}"
                        f" {sample.throughput:>10,.0f}/s {sample.cpu:7.2f} us",
                        file=sys.stderr,
                    )
    return samples


def open_loop(
    targets: Sequence[Target], rate: int, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the medians of several open-loop runs per target, which alternate as well."""
    if seconds <= 0:
        return {}
    found: dict[str, list[openloop.Outcome]] = {}
    for number in range(rounds):
        for target in targets:
            plan = openloop.Plan(target.port, rate, seconds, seed=number + 1)
            outcome = openloop.run(plan)
            found.setdefault(target.name, []).append(outcome)
            print(
                f"round {number + 1}/{rounds}  open loop {target.name:10} {outcome}",
                file=sys.stderr,
            )
    return {
        name: {
            field.name: statistics.median(getattr(outcome, field.name) for outcome in outcomes)
            for field in dataclasses.fields(openloop.Outcome)
        }
        for name, outcomes in found.items()
    }


def summarise(samples: Sequence[Sample]) -> list[dict[str, float | str | int]]:
    """Return one row per target, test and depth: medians, and median ratios to twemproxy."""
    table: dict[tuple[str, str, int], dict[int, Sample]] = {}
    for sample in samples:
        table.setdefault((sample.target, sample.test, sample.depth), {})[sample.round] = sample
    rows = []
    for (target, test, depth), found in sorted(table.items(), key=lambda item: item[0][1:]):
        row: dict[str, float | str | int] = {"target": target, "test": test, "depth": depth}
        row["throughput"] = round(statistics.median(s.throughput for s in found.values()))
        row["cpu_us"] = round(statistics.median(s.cpu for s in found.values()), 3)
        row["p99_ms"] = statistics.median(s.p99 for s in found.values())
        rival = table.get(("twemproxy", test, depth), {})
        pairs = [(found[n], rival[n]) for n in found if n in rival and rival[n].cpu > 0]
        if pairs:
            row["throughput_ratio"] = round(
                statistics.median(a.throughput / b.throughput for a, b in pairs), 3
            )
            row["cpu_ratio"] = round(statistics.median(a.cpu / b.cpu for a, b in pairs), 3)
        rows.append(row)
    return rows


def verdicts(rows: Sequence[dict[str, float | str | int]]) -> list[str]:
    """Return one line per goal: what was aimed at, what came out."""
    goals = {1: 1.1, 16: 0.5, 64: 0.25}
    lines = []
    for row in rows:
        if row["target"] != "sidecache" or "cpu_ratio" not in row:
            continue
        depth, goal = int(row["depth"]), goals.get(int(row["depth"]))
        if goal is not None:
            lines.append(
                _verdict(row, "cpu_ratio", "CPU", float(row["cpu_ratio"]) <= goal, f"<= {goal}")
            )
        if depth == 16:
            good = float(row["throughput_ratio"]) >= 1.2
            lines.append(_verdict(row, "throughput_ratio", "throughput", good, ">= 1.2"))
    return lines


def _verdict(
    row: dict[str, float | str | int], field: str, what: str, good: bool, goal: str
) -> str:
    word = "met   " if good else "MISSED"
    return f"{word} {what} {row['test']} -P {row['depth']}: {row[field]} x twemproxy (goal {goal})"


def table(rows: Sequence[dict[str, float | str | int]]) -> str:
    """Return the rows for a person."""
    lines = [
        f"{'':22}{'requests/s':>12}{'CPU us':>9}{'p99 ms':>9}{'x twemproxy: rate':>19}{'CPU':>7}"
    ]
    lines += [
        f"{row['test']!s:4}-P {row['depth']!s:4}{row['target']!s:11}{row['throughput']:>12,}"
        f"{row['cpu_us']:>9.2f}{row['p99_ms']:>9.2f}"
        f"{row.get('throughput_ratio', ''):>19}{row.get('cpu_ratio', ''):>7}"
        for row in rows
    ]
    return "\n".join(lines)


def machine() -> dict[str, str | int]:
    """Return where this was measured, and what with."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "redis-benchmark": _first_line("redis-benchmark", "--version"),
        "redis-server": _first_line("redis-server", "--version"),
        "twemproxy": _first_line("nutcracker", "--version"),
        "haproxy": _first_line("haproxy", "-v"),
        "commit": _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return "not installed"
    return ((done.stdout or done.stderr).strip().splitlines() or [""])[0]


def build(stage: Stage, names: Sequence[str], demo: Path | None) -> list[Target]:
    """Start what the named targets need."""
    plain = stage.plain(3) if set(names) & {"twemproxy", "haproxy", "direct"} else []
    makers: dict[str, Callable[[], Target]] = {
        "sidecache": lambda: running_demo(demo) if demo else ours(stage),
        "twemproxy": lambda: stage.twemproxy(plain),
        "haproxy": lambda: stage.haproxy(plain),
        "direct": lambda: plain[0],
    }
    return [makers[name]() for name in names]


def ours(stage: Stage) -> Target:
    """Start our proxy; both of its clusters are the same three nodes."""
    cluster = stage.cluster(3)
    return stage.sidecache({"locks": cluster, "cache": cluster})


def running_demo(path: Path) -> Target:
    """Return the proxy of a running demo from the file that its --json wrote."""
    try:
        proxy = json.loads(path.read_text())["proxy"]
        return Target("sidecache", int(proxy["port"]), int(proxy["pid"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{path} is not what `sidecache demo --json` writes ({error!r})"
        ) from error


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="aim per run of redis-benchmark")
    parser.add_argument("--depths", default="1,16,64", help="pipeline depths")
    parser.add_argument("--only", default=",".join(TARGETS), help="which targets")
    parser.add_argument("--demo", type=Path, help="file written by `sidecache demo --json`")
    parser.add_argument("--rate", type=int, default=10_000, help="open loop, requests per second")
    parser.add_argument(
        "--latency-seconds", type=float, default=5.0, help="per open-loop run, 0: none"
    )
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    names = [name for name in options.only.split(",") if name]
    unknown = set(names) - set(TARGETS)
    if unknown:
        print(
            f"unknown target {', '.join(sorted(unknown))}: choose from {', '.join(TARGETS)}",
            file=sys.stderr,
        )
        return 2
    depths = [int(depth) for depth in options.depths.split(",")]
    try:
        with Stage() as stage:
            targets = build(stage, names, options.demo)
            samples = play(targets, depths, options.rounds, options.seconds)
            latency = open_loop(targets, options.rate, options.latency_seconds, options.rounds)
    except (StageError, EmbeddedError) as error:
        print(error, file=sys.stderr)
        return 1
    rows = summarise(samples)
    report = {
        "machine": machine(),
        "summary": rows,
        "open_loop": {"rate": options.rate, "targets": latency},
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    print(table(rows))
    for name, figures in latency.items():
        print(
            f"open loop {options.rate}/s {name:10} "
            + "  ".join(f"{key} {figures[key]:.2f} ms" for key in ("p50", "p99", "p999", "highest"))
            + f"  errors {figures['errors']}  unanswered {figures['sent'] - figures['answered']}"
        )
    print("\n".join(verdicts(rows)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
