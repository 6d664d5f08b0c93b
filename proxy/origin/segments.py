"""The directory of the journal: its segments, who owns it, and how far it has been worked off.

A segment begins with a header: the sequence it starts at, and the last one that was durable before
it. Records behind that of the segment before were refused to their clients and are passed over.

Always true:
  * two processes never share a directory, and a directory names one sidecar for ever;
  * what is missing or damaged of what was durable is an error with file and offset; only what was
    written and never acknowledged, at the very end, is cut off;
  * a header is on disk before a record follows it.
"""

import contextlib
import fcntl
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from proxy.errors import JournalError
from proxy.origin.records import MAGIC, Entry, decode

# Partitions of a sidecar's writes, each with a flusher and a connection of its own. A directory
# keeps the number that it began with: positions in PostgreSQL are counted per partition.
PARTITIONS = 2

_HEADER = struct.Struct("<8sQQI")  # what it is, first sequence, durable before it, CRC of those
_KIND = b"sidewb\x00\x01"
_CHECKPOINT = struct.Struct("<QI")

# So often it is remembered where in a segment an entry stands, in bytes.
_MARKED = 1 << 20


class Identity(NamedTuple):
    """Who wrote a journal: the same after a restart on the same volume."""

    sidecar: str
    partitions: int


class Segment:
    """The file that records are added to. Used by one thread at a time."""

    def __init__(self, directory: Path, first: int, durable: int) -> None:
        """Make the file. Raises OSError, and leaves none then."""
        self.path = directory / f"{first:016x}.segment"
        self.first = first
        self.size = _HEADER.size  # of what is durable
        self.marks: list[tuple[int, int]] = []  # sequence and offset, now and then
        self._sound = True
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            head = _HEADER.pack(_KIND, first, durable, 0)[:-4]
            _write(self._file, head + struct.pack("<I", zlib.crc32(head)))
            os.fsync(self._file)
            sync_directory(directory)
        except OSError:
            self.close()
            self.path.unlink(missing_ok=True)
            raise

    def mark(self, sequence: int) -> None:
        """Remember where the entry of this number is about to stand."""
        if not self.marks or self.size - self.marks[-1][1] >= _MARKED:
            self.marks.append((sequence, self.size))

    def append(self, data: bytes) -> None:
        """Write records and return when they are on disk. Raises OSError."""
        _write(self._file, data)
        try:
            os.fdatasync(self._file)
        except OSError:
            self._sound = False
            raise
        self.size += len(data)

    def cut(self) -> bool:
        """Take off what is not durable; return whether it is gone for certain.

        After a sync has failed, no later one tells the truth: pages count as clean then.
        """
        try:
            os.ftruncate(self._file, self.size)
            os.fdatasync(self._file)
        except OSError:
            return False
        return self._sound

    def former(self) -> "Former":
        """Return what is durable of it by now."""
        return Former(self.first, self.path, self.size, tuple(self.marks))

    def close(self) -> None:
        os.close(self._file)


class Former(NamedTuple):
    """A segment that is full, or that was written by an earlier run."""

    first: int  # sequence
    path: Path
    size: int  # bytes
    marks: tuple[tuple[int, int], ...] = ()  # sequence and offset of some entries

    def between(self, first: int, last: int, most: int) -> Iterator[Entry]:
        """Yield entries of these numbers, and of others; so many bytes are read. Raises OSError."""
        starts = [offset for sequence, offset in self.marks if sequence <= first]
        start = max(starts, default=_HEADER.size)
        ends = [offset for sequence, offset in self.marks if sequence > last]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(min(min(ends, default=self.size) - start, most))
        offset = 0
        while (record := decode(data, offset)) is not None:
            yield record.entry
            offset = record.end


class Recovered(NamedTuple):
    """What a directory holds when it is opened."""

    entries: list[Entry]  # in their order, those below the checkpoint left out
    durable: int  # sequence of the last record
    last: int  # highest sequence that any segment speaks of
    segments: list[Former]


def lock(directory: Path) -> BinaryIO:
    """Return the file that keeps others out as long as it is open. Raises JournalError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("ab")
    except OSError as error:
        raise JournalError(f"the journal {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise JournalError(f"another process uses the journal {directory}") from error
    return file


def identity(directory: Path) -> Identity:
    """Return whose journal it is; a new one gets a name that nobody else has."""
    path = directory / "identity"
    with contextlib.suppress(FileNotFoundError):
        name, number = path.read_text("ascii").split()
        return Identity(name, int(number))
    made = Identity(secrets.token_hex(8), PARTITIONS)
    draft = path.with_suffix(".new")
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{made.sidecar} {made.partitions}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(directory)
    return made


def read_checkpoint(directory: Path) -> int:
    """Return the lowest sequence that may still have to be flushed, 0 where nobody knows."""
    with contextlib.suppress(FileNotFoundError, struct.error):
        sequence, crc = _CHECKPOINT.unpack((directory / "checkpoint").read_bytes())
        return int(sequence) if crc == zlib.crc32(struct.pack("<Q", sequence)) else 0
    return 0


def write_checkpoint(directory: Path, sequence: int) -> None:
    """Note the lowest sequence to be flushed. Not synced: an older note costs time, no write."""
    draft = directory / "checkpoint.new"
    draft.write_bytes(_CHECKPOINT.pack(sequence, zlib.crc32(struct.pack("<Q", sequence))))
    draft.rename(directory / "checkpoint")


def recover(directory: Path) -> Recovered:
    """Read all segments, and cut a torn end off the last. Raises JournalError for damage."""
    checkpoint = read_checkpoint(directory)
    found = list(_headers(directory))
    entries: list[Entry] = []
    last = newest = 0
    for index, (path, first, durable) in enumerate(found):
        data = path.read_bytes()
        needed = found[index + 1][2] if index + 1 < len(found) else None
        read, end = _read(data)
        newest = read[-1].sequence if read else durable
        if needed is None and end < len(data):
            _cut(path, data, end, newest)
        elif needed is not None and newest < needed:
            raise _damaged(path, end)
        entries += (e for e in read if e.sequence >= checkpoint
                    and (needed is None or e.sequence <= needed))  # fmt: skip
        last = max(last, first, newest)
    former = [Former(first, path, path.stat().st_size) for path, first, _ in found]
    return Recovered(entries, newest, last, former)


def _headers(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield path, first sequence and durable one of the segments, in their order."""
    paths = sorted(directory.glob("*.segment"))
    for path in paths:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        if len(head) == _HEADER.size:
            kind, first, durable, crc = _HEADER.unpack(head)
            if kind == _KIND and crc == zlib.crc32(head[:-4]):
                yield path, first, durable
                continue
        # A crash while it was made: no record was ever written behind it.
        if path != paths[-1] or path.stat().st_size > _HEADER.size:
            raise _damaged(path, 0)
        path.unlink()


def _read(data: bytes) -> tuple[list[Entry], int]:
    """Return the records from the beginning on, and where they end."""
    entries: list[Entry] = []
    offset = _HEADER.size
    while (record := decode(data, offset)) is not None:
        if entries and record.entry.sequence <= entries[-1].sequence:
            break
        entries.append(record.entry)
        offset = record.end
    return entries, offset


def _cut(path: Path, data: bytes, end: int, newest: int) -> None:
    """Cut a torn end off, unless what follows shows that it was durable once."""
    offset = end
    while (offset := data.find(MAGIC, offset + 1)) >= 0:
        record = decode(data, offset)
        # Blocks of one write reach the disk in any order; a later write only after this one.
        if record is not None and record.durable > newest:
            raise _damaged(path, end)
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def _damaged(path: Path, offset: int) -> JournalError:
    return JournalError(
        f"the journal is damaged: {path} at offset {offset}; acknowledged writes stand there. "
        "Restore the file, or move the directory away to go on without them"
    )


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync_directory(directory: Path) -> None:
    """Make names in a directory as durable as what they name."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
