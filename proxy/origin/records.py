"""What the journal of write-behind holds: entries, and their bytes in a segment.

A record is magic, length and CRC of the rest, then sequence, the sequence up to which everything
was durable when it was written, time, keyspace, key and changes. The CRC is that of zlib: it comes
with Python, runs at a gigabyte a second and finds what CRC-32C finds, torn and rotten blocks.

Always true: bytes that are no whole record are never taken for one.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

# A key, by the name of its keyspace and its own.
Place = tuple[str, bytes]


class Op(IntEnum):
    """What happens to one field of a key."""

    SET = 1  # it is this from now on
    ADD = 2  # it grows by this, a decimal number
    ERASE = 3  # it is gone
    DROP = 4  # the key is gone with all its fields; no field is named


class Change(NamedTuple):
    """One field's part in a write. The one of a string or a counter is called `value`."""

    op: Op
    field: bytes = b""
    value: bytes = b""


class Entry(NamedTuple):
    """One write of a client."""

    sequence: int  # grows with every write of this sidecar, over restarts too
    time: float  # seconds since 1970
    keyspace: str  # its name: numbers of keyspaces change when rules do
    key: bytes  # as clients name it
    changes: tuple[Change, ...]

    @property
    def size(self) -> int:
        """Return the bytes of its record."""
        changes = sum(_CHANGE.size + len(each.field) + len(each.value) for each in self.changes)
        return _HEAD.size + _BODY.size + len(self.keyspace.encode()) + len(self.key) + changes


class Record(NamedTuple):
    """An entry as it was found in a segment."""

    entry: Entry
    durable: int  # every entry up to this one was on disk before it was written
    end: int  # offset behind it


MAGIC = b"\xf5swb"
_HEAD = struct.Struct("<4sII")  # magic, length of what follows, its CRC
_BODY = struct.Struct("<QQdHIH")  # sequence, durable, time, length of keyspace and key, changes
_CHANGE = struct.Struct("<BII")  # op, length of field and value


def encode(entry: Entry, durable: int) -> bytes:
    """Return the record of an entry."""
    keyspace = entry.keyspace.encode()
    parts = [
        _BODY.pack(entry.sequence, durable, entry.time, len(keyspace), len(entry.key),
                   len(entry.changes)),
        keyspace, entry.key,
    ]  # fmt: skip
    for op, field, value in entry.changes:
        parts += (_CHANGE.pack(op, len(field), len(value)), field, value)
    body = b"".join(parts)
    return _HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body


def decode(data: bytes, offset: int) -> Record | None:
    """Return the record that begins at an offset, or None where there is no whole one."""
    start = offset + _HEAD.size
    if start > len(data):
        return None
    magic, length, crc = _HEAD.unpack_from(data, offset)
    end = start + length
    if magic != MAGIC or end > len(data) or length < _BODY.size:
        return None
    body = data[start:end]
    return Record(*_entry(body), end) if zlib.crc32(body) == crc else None


def _entry(body: bytes) -> tuple[Entry, int]:
    """Take a body apart whose CRC is right."""
    sequence, durable, time, keyspace_bytes, key_bytes, count = _BODY.unpack_from(body)
    position = _BODY.size

    def take(length: int) -> bytes:
        nonlocal position
        position += length
        return body[position - length : position]

    keyspace, key, changes = take(keyspace_bytes).decode(), take(key_bytes), []
    for _ in range(count):
        op, field_bytes, value_bytes = _CHANGE.unpack(take(_CHANGE.size))
        changes.append(Change(Op(op), take(field_bytes), take(value_bytes)))
    return Entry(sequence, time, keyspace, key, tuple(changes)), durable
