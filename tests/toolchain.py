"""The tools that read the whole source: started when tests are collected, asked last.

They take seconds each, and a core of their own: beside the tests they cost next to nothing.
"""

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 300  # without a cache mypy reads all libraries; a machine with one core does that slowly

# What stubtest sees in the data plane's contract and nothing is wrong with.
EXPECTED_DIFFERENCES = r"""
proxy\.wire\.Buffer  # an alias for readers of the stub
proxy\.wire\.Sink  # a base class that nobody outside makes
proxy\.wire\.(Table|Refusals)  # what an attribute is, and nobody outside makes
proxy\.wire\.\w+\.__init__  # Cython keeps no signature of a constructor
"""

COMMANDS = {
    "lint": ["ruff", "check", "--quiet", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "types": ["mypy"],
    "contract": [
        "mypy.stubtest", "proxy.wire", "--mypy-config-file", "pyproject.toml",
        "--ignore-missing-stub", "--ignore-unused-allowlist", "--allowlist",
    ],
}  # fmt: skip


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for the tools of other workers: two at once lock each other out of mypy's cache."""
    with (ROOT / "pyproject.toml").open() as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        yield


def run(name: str) -> str:
    """Run one tool; return what it has to say against the source."""
    with _alone(), tempfile.NamedTemporaryFile("w", encoding="utf-8") as expected:
        expected.write(EXPECTED_DIFFERENCES)
        expected.flush()
        command = [*COMMANDS[name], *([expected.name] if name == "contract" else [])]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"exit {done.returncode}"


class Toolchain:
    """Runs the tools one after the other, so that they take one core and share mypy's cache."""

    def __init__(self) -> None:
        self._runner = ThreadPoolExecutor(1, "toolchain")
        self._results: dict[str, Future[str]] = {}

    def start(self) -> None:
        for name in COMMANDS:
            self._results[name] = self._runner.submit(run, name)

    def result(self, name: str) -> str:
        if name not in self._results:
            self._results[name] = self._runner.submit(run, name)
        return self._results[name].result(SECONDS * len(COMMANDS))

    def stop(self) -> None:
        """Wait for the one that runs, and start no further one."""
        self._runner.shutdown(cancel_futures=True)
