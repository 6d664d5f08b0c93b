"""How long `sidecache check` takes for a folder of a thousand keyspaces in fifty files.

    python benchmarks/check.py
    python benchmarks/check.py --json benchmarks/results/check.json

The whole process is measured, from its start to its exit, with compiled modules as pip installs
them; the first run makes those and does not count. CPU time stands beside wall time, because a
neighbour on the machine changes the one and not the other.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FILES = 50
KEYSPACES = 20  # in each
ROUNDS = 7

GOAL_SECONDS = 1.0

KEYSPACE = """\
  k{file}_{number}:
    key: app{file}:thing{number}:{{id}}:{{day:date}}
    cluster: cache
    hash_tag: id
    type: hash
    ttl: {{default: 600s, max: 900s, jitter: 10%}}
    memory: {{budget: 10MB, items: 1000, priority: 10}}
    commands: {{deny: [KEYS, "@dangerous"], bounds: {{SCAN COUNT: 1000}}}}
    rate:
      - {{per: user, limit: 1000/min, burst: 10}}
    origin:
      read: SELECT a, b FROM things WHERE id = :id AND day = :day
    freshness: {{stale_while_revalidate: 5s, negative: 5s}}
    invalidate:
      - {{table: things, key: {{id: id, day: day}}}}
    fallback: {{reads: origin}}
    on_loss: refill
"""


def write(folder: Path) -> None:
    for file in range(FILES):
        spaces = (KEYSPACE.format(file=file, number=number) for number in range(KEYSPACES))
        (folder / f"{file:02}.yaml").write_text("keyspaces:\n" + "".join(spaces))


def measure(folder: Path, compiled: Path) -> tuple[float, float]:
    """Run the check once; return wall and CPU seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "proxy", "check", str(folder)], cwd=ROOT, check=True,
        env=environment | {"PYTHONPYCACHEPREFIX": str(compiled)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as compiled:
        write(Path(folder))
        runs = [measure(Path(folder), Path(compiled)) for _ in range(ROUNDS + 1)][1:]
    figures = {
        "keyspaces": FILES * KEYSPACES,
        "files": FILES,
        "wall_seconds": round(min(wall for wall, _ in runs), 3),
        "wall_seconds_median": round(statistics.median(wall for wall, _ in runs), 3),
        "cpu_seconds": round(statistics.median(cpu for _, cpu in runs), 3),
        "goal_seconds": GOAL_SECONDS,
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0 if figures["wall_seconds"] <= GOAL_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
