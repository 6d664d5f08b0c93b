"""Write-behind's journal: a write is on this machine's disk before its client is answered.

Appends that come while the disk is busy are written and synced together, in a thread of their own:
the first waits for nobody, and a group is what came during one sync.

Always true:
  * an entry has its number before anybody sees it, and it is shown (`landed`) in the order of the
    numbers and only when it is durable;
  * a segment whose write or sync failed is never written again: what was in that group is refused,
    and the next goes to a new segment;
  * numbers of one run are higher than all of the runs before, numbers of entries that were never
    journalled included.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from proxy.errors import JournalError, JournalRefused
from proxy.origin import records, segments
from proxy.origin.merging import Batch
from proxy.origin.records import Change, Entry, Place
from proxy.origin.segments import Former, Segment

SEGMENT_BYTES = 64 << 20

# One write to the disk; the next group waits for it.
GROUP_BYTES = 1 << 20

# What is read again of a segment, at most: some ten thousand entries.
AGAIN_BYTES = 8 << 20

# A full disk is tried again as seldom.
RETRY_SECONDS = 1.0

# Numbers of one run: a run starts with a multiple of this, beyond all that were given out before,
# journalled or not, and at the second of its start. So a directory that was put back from a copy
# begins beyond what PostgreSQL has heard of it since the copy was made.
RUN = 1 << 30

CLOSE_SECONDS = 5.0

Landed = Callable[[Sequence[Entry]], None]
_T = TypeVar("_T")
_Waiting = tuple[Entry, asyncio.Future[Entry]]


class Journal:
    """Segments in a directory that is ours alone. Opening reads it all: do it in a thread."""

    def __init__(self, directory: Path, landed: Landed) -> None:
        """Raises JournalError for a directory that is used, damaged or not to be written."""
        self._lock = segments.lock(directory)
        try:
            self.identity = segments.identity(directory)
            found = segments.recover(directory)
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError | ValueError):
                raise JournalError(f"the journal {directory} cannot be used: {error}") from error
            raise
        self.recovered: Sequence[Entry] = found.entries
        self.durable = found.durable  # highest sequence that is on disk
        self.failure: str | None = None  # why the disk does not take writes
        self._directory = directory
        self._landed = landed
        self.run = self._next = max(found.last // RUN + 1, int(time.time())) * RUN
        self._former = deque(found.segments)
        self._segment: Segment | None = None
        self._retry = 0.0
        self._queue: deque[_Waiting] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._checkpoint = 0

    @property
    def available(self) -> bool:
        """Return whether it is worth trying to append."""
        return self.failure is None or time.monotonic() >= self._retry

    @property
    def size(self) -> int:
        """Return the bytes of all segments."""
        written = self._segment.size if self._segment is not None else 0
        return written + sum(former.size for former in list(self._former))

    def entry(self, keyspace: str, key: bytes, changes: tuple[Change, ...]) -> Entry:
        """Return an entry with the next number, which the caller may go on without the journal."""
        self._next += 1
        return Entry(self._next - 1, time.time(), keyspace, key, changes)

    def append(self, entry: Entry) -> asyncio.Future[Entry]:
        """Return a future of the entry, done when it is on disk; it may raise JournalRefused."""
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._queue.append((entry, future))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit())
        return future

    async def of(self, batch: Batch) -> Mapping[Place, Sequence[Entry]]:
        """Return what the rows of a batch were merged of, by keyspace and key.

        Rows may be missing, or may have been merged of others: what was never journalled, and what
        stands too far apart.
        """
        current = () if self._segment is None else (self._segment.former(),)
        segments = [*self._former, *current]
        following = [*(segment.first for segment in segments[1:]), batch.last + 1]
        concerned = [
            segment for segment, end in zip(segments, following, strict=True)
            if segment.first <= batch.last and end > batch.first
        ]  # fmt: skip
        return await asyncio.to_thread(_entries_of, batch, concerned[:2])

    async def checkpoint(self, lowest: int) -> None:
        """Hear the lowest sequence that is not flushed yet: segments below it are deleted."""
        if lowest > self._checkpoint:
            self._checkpoint = lowest
            # Where the disk refuses the note, the next start reads more than it has to.
            with contextlib.suppress(OSError):
                await self._in_thread(self._forget, lowest)

    async def close(self) -> None:
        """Finish what is queued and let the directory go."""
        if self._committing is not None:
            await asyncio.wait([self._committing], timeout=CLOSE_SECONDS)
        self._thread.shutdown(wait=False)
        # A disk that does not answer still has the file, and nobody else may write beside it.
        if self._committing is None or self._committing.done():
            self._leave()
            self._lock.close()

    async def _commit(self) -> None:
        while self._queue:
            group = self._take_group()
            entries = [entry for entry, _ in group]
            try:
                await self._in_thread(self._write, entries)
            except OSError as error:
                await self._abandon(group, error)
                continue
            self.failure = None
            self.durable = entries[-1].sequence
            self._landed(entries)
            for entry, future in group:
                if not future.done():
                    future.set_result(entry)

    def _take_group(self) -> list[_Waiting]:
        group = [self._queue.popleft()]
        size = group[0][0].size
        while self._queue and (size := size + self._queue[0][0].size) <= GROUP_BYTES:
            group.append(self._queue.popleft())
        return group

    async def _abandon(self, group: list[_Waiting], error: OSError) -> None:
        """Leave a segment that failed, and refuse what was meant for it."""
        # What reached no segment, or is cut off it again, is refused for certain; all else once a
        # new segment is on disk, whose header says that it does not count.
        certain = await self._in_thread(self._give_up)
        first = self._queue[0][0].sequence if self._queue else self._next
        try:
            await self._in_thread(self._begin, first)
            certain = True
        except OSError as second:
            error = second
            self.failure = error.strerror or type(error).__name__
            self._retry = time.monotonic() + RETRY_SECONDS
            group = [*group, *self._queue]
            self._queue.clear()
        for _, future in group:
            if not future.done():
                future.set_exception(JournalRefused(str(error.strerror), certain=certain))

    # What follows runs in the thread, one call at a time.

    def _write(self, entries: Sequence[Entry]) -> None:
        if self._segment is None:
            self._begin(entries[0].sequence)
        segment = self._segment
        assert segment is not None
        segment.mark(entries[0].sequence)
        segment.append(b"".join(records.encode(entry, self.durable) for entry in entries))
        if segment.size >= SEGMENT_BYTES:
            self._leave()

    def _give_up(self) -> bool:
        """Leave a segment that failed; return whether nothing of the last write is in it."""
        gone = self._segment is None or self._segment.cut()
        self._leave()
        return gone

    def _begin(self, first: int) -> None:
        self._segment = Segment(self._directory, first, self.durable)

    def _leave(self) -> None:
        if (segment := self._segment) is not None:
            self._former.append(segment.former())
            self._segment = None
            segment.close()

    def _forget(self, lowest: int) -> None:
        """Delete the segments that hold nothing from lowest on."""
        segments.write_checkpoint(self._directory, lowest)
        firsts = [former.first for former in self._former]
        if self._segment is not None:
            firsts.append(self._segment.first)
        # The last one stays: it knows which numbers were given out.
        for following in firsts[1:]:
            if following > lowest:
                return
            self._former.popleft().path.unlink(missing_ok=True)

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _entries_of(batch: Batch, concerned: Sequence[Former]) -> Mapping[Place, Sequence[Entry]]:
    found: dict[Place, list[Entry]] = {}
    with contextlib.suppress(OSError):
        for segment in concerned:
            for entry in segment.between(batch.first, batch.last, AGAIN_BYTES):
                place = entry.keyspace, entry.key
                if batch.first <= entry.sequence <= batch.last and place in batch.rows:
                    found.setdefault(place, []).append(entry)
    return found
