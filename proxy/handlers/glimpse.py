"""The beginning of a command, for people: what the slow log and MONITOR show of it, and that log.

Always true: of a command at most as many words and bytes are taken as Redis' slow log shows,
whatever its size, and what is left out is counted in Redis' own words.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from proxy import wire

# Redis: SLOWLOG_ENTRY_MAX_ARGC and SLOWLOG_ENTRY_MAX_STRING, and slowlog-max-len.
MOST_WORDS = 32
MOST_BYTES = 128
MOST_ENTRIES = 128


def words_of(frame: bytes) -> list[bytes]:
    """Return the shortened words of a canonical frame, of which the end may be missing."""
    end = frame.index(b"\r\n")
    total = int(frame[1:end])
    shown = total if total <= MOST_WORDS else MOST_WORDS - 1
    words: list[bytes] = []
    at = end + 2
    while len(words) < shown and at < len(frame):
        end = frame.find(b"\r\n", at)
        if end < 0:
            break
        size = int(frame[at + 1 : end])
        words.append(shortened(frame[end + 2 : end + 2 + min(size, MOST_BYTES)], size))
        at = end + 2 + size + 2
    if len(words) < total:
        words.append(b"... (%d more arguments)" % (total - len(words)))
    return words


def words_shown(words: Sequence[bytes], sizes: Sequence[int], total: int) -> list[bytes]:
    """Return the same of a command of so many words, of which these are the beginning."""
    shown = len(words) if total <= len(words) else MOST_WORDS - 1
    found = [
        shortened(word[:MOST_BYTES], size)
        for word, size in zip(words[:shown], sizes[:shown], strict=True)
    ]
    if len(found) < total:
        found.append(b"... (%d more arguments)" % (total - len(found)))
    return found


def shortened(start: bytes, size: int) -> bytes:
    """Return the beginning of a word of so many bytes, and how many more there are."""
    return start if size <= MOST_BYTES else start + b"... (%d more bytes)" % (size - MOST_BYTES)


class Client(Protocol):
    """Who sent a command."""

    name: bytes

    @property
    def peer(self) -> str: ...
    @property
    def user(self) -> str: ...


class Parts(NamedTuple):
    """Where the time of a command went, in microseconds.

    `policy` is until it was judged, with what came in the same read (of a slow command less than
    100 µs count as `queue`), `queue` until it was handed to the socket
    of a node, `upstream` until the answer of the node, or of the handler that asked nodes by
    itself, and `write` until that was handed to the client's socket.
    """

    policy: int
    queue: int
    upstream: int
    write: int

    @classmethod
    def of(cls, trace: wire.Trace, written: float) -> "Parts":
        # What did not happen takes no time: a local command waits in no queue.
        times = [trace.received]
        for moment in (trace.judged, trace.sent, trace.replied, written):
            times.append(max(moment, times[-1]))
        return cls(*(round((end - start) * 1e6) for start, end in pairwise(times)))


class Entry(NamedTuple):
    """One slow command."""

    number: int
    when: int  # Unix time
    parts: Parts
    words: Sequence[bytes]
    peer: str
    name: bytes
    user: str
    told: Callable[[], dict[str, object]]  # the same for who may not see data: see `sight`

    @property
    def microseconds(self) -> int:
        return sum(self.parts)


class SlowLog:
    """The latest slow commands of the process; the newest is the first."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self.entries: deque[Entry] = deque(maxlen=most)
        self._number = 0

    def note(
        self,
        client: Client,
        words: Sequence[bytes],
        parts: Parts,
        told: Callable[[], dict[str, object]],
    ) -> None:
        """Take in a command that its client has waited long for; told is asked when it is read."""
        entry = Entry(
            self._number, int(time.time()), parts, words, client.peer, client.name, client.user,
            told,
        )  # fmt: skip
        self.entries.appendleft(entry)
        self._number += 1

    def forget(self, entries: Sequence[Entry]) -> None:
        """Keep all but these."""
        gone = {entry.number for entry in entries}
        kept = [entry for entry in self.entries if entry.number not in gone]
        self.entries = deque(kept, self.entries.maxlen)
