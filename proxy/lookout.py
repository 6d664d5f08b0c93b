"""Notices that the files of the rules have changed, and says so once they rest.

The application starts one where the configuration asks for it. It looks once a second from a thread
of its own, so that a file system that hangs holds up nobody. Looking is how this works on every
file system, over NFS and in a mounted ConfigMap too, and needs no library; a look costs some 2 µs
per file.

Always true: two equal looks in a row come before any word, so what is half written is given time;
a look that was tried is not tried again, unless whoever tried has failed for other reasons.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from proxy.policy.files import Look, look

# An operator who saves a file waits for it; nothing else wakes an idle process more often.
LOOK_SECONDS = 1.0

# How long until a change that nobody has taken in is told again.
PATIENCE = 120.0  # seconds

# For a thread that may hang in a look at a file system that does.
JOIN_SECONDS = 1.0


class Lookout:
    """Watches a folder or a file."""

    def __init__(
        self,
        path: Path,
        known: Callable[[], Look],
        tell: Callable[[], None],
        every: float = LOOK_SECONDS,
    ) -> None:
        """known returns the look that was tried last; tell is called in this thread."""
        self._path = path
        self._known = known
        self._tell = tell
        self._every = every
        self._last: Look | None = None
        self._told: tuple[Look, float] = ((), 0.0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def _watch(self) -> None:
        while not self._stopping.wait(self._every):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look, and tell of a change that has come to rest."""
        seen = look(self._path)
        rests, self._last = seen == self._last, seen
        if not rests or seen == self._known():
            return
        told, when = self._told
        if told != seen or now - when >= PATIENCE:
            self._told = (seen, now)
            self._tell()
