"""Long property tests in rounds, so that their memory and time have bounds.

Hypothesis remembers every example of a run, and twenty thousand streams are gigabytes. A round
forgets: each one starts a new run, with a seed of its own that follows from the printed one.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

# Few enough that what a round remembers stays below a hundred megabytes.
ROUND = 500  # examples

# What the process may hold while a long test runs.
MOST_RESIDENT = 1 << 30  # bytes

bounded = settings(
    max_examples=ROUND,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_rounds(
    examples: int, shown: Callable[..., None], *strategies: st.SearchStrategy[Any]
) -> None:
    """Show a property with so many examples; SIDECACHE_SEED repeats a run."""
    first = int(os.environ.get("SIDECACHE_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"seed {first}")
    started = time.monotonic()
    highest = 0
    for number in range(-(-examples // ROUND)):
        seed(first * 1_000_000 + number)(bounded(given(st.tuples(*strategies))(_shown(shown))))()
        highest = max(highest, resident())
        assert highest < MOST_RESIDENT, f"{highest >> 20} MiB after round {number}"
    seconds = time.monotonic() - started
    print(f"{examples} examples in {seconds:.0f} s, at most {highest >> 20} MiB")


def _shown(shown: Callable[..., None]) -> Callable[[tuple[Any, ...]], None]:
    # A seed is noted at the function, so each round has a function of its own.
    def example(values: tuple[Any, ...]) -> None:
        shown(*values)

    return example
