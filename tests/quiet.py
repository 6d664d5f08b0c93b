"""Time something without the test process' own pauses in it."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector away: over what other tests left it takes a tenth of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Stopwatch:
    """Time since it was made, for bounds that hold beside other programs too.

    Linux counts per thread how long it was ready and had no processor. What the main threads of
    this process and of those named have waited so is the machine's, and not `spent`.
    """

    def __init__(self, *pids: int | None) -> None:
        self._counts = [Path(f"/proc/{pid}/schedstat") for pid in ("self", *pids)]
        self._waited = self._waits()
        self._begun = time.monotonic()

    def _waits(self) -> float:
        """Return the seconds that all have waited; none where the kernel does not count."""
        with suppress(FileNotFoundError):
            return sum(int(path.read_text().split()[1]) for path in self._counts) / 1e9
        return 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of the wall clock."""
        return time.monotonic() - self._begun

    @property
    def spent(self) -> float:
        """Seconds that are ours."""
        return self.elapsed - (self._waits() - self._waited)
