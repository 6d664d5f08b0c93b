"""Writes that wait for PostgreSQL: merged by key, in batches that end at a sequence.

A partition holds the keys of one hash. Its newest batch takes what lands; the ones before it are
sealed and wait in their order, the first of them being flushed. So what a position in PostgreSQL
says is exact: everything up to it was in batches that are committed.

Always true: within a key the order of writes is kept, increments are never rounded, and what a
client was told is in some batch until a flush says that it is committed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, InvalidOperation

from proxy.origin.records import Change, Entry, Op, Place

BATCH_BYTES = 256 << 10  # of records

# Room for the digits of any double or 64-bit integer and their sums, so that nothing is rounded.
_EXACT = Context(prec=400)


@dataclass(slots=True)
class Cell:
    """What happened to one field since the batch began."""

    op: Op  # SET, ADD or ERASE
    value: bytes = b""

    def merge(self, change: Change, kind: str) -> None:
        """Take in a later change of the same field."""
        op, _, value = change
        if op is Op.ADD:
            if self.op is Op.ERASE:
                self.op, self.value = Op.SET, value
            else:
                self.value = _sum(self.value, value)
        elif op is Op.SET and self.op is Op.SET and kind in ("max", "min"):
            self.value = _extreme(self.value, value, kind)
        else:
            self.op, self.value = op, value


@dataclass(slots=True)
class Row:
    """One key's writes, merged."""

    keyspace: str
    key: bytes
    changed: float = 0.0  # when it was last written, seconds since 1970
    dropped: bool = False  # the key was deleted, and what it has now came after that
    cells: dict[bytes, Cell] = field(default_factory=dict)
    before: dict[bytes, Cell] = field(default_factory=dict)  # increments from before that
    writes: int = 0  # how many were merged

    def merge(self, entry: Entry, kind: str) -> None:
        """Take in a later entry of the same key."""
        self.writes += 1
        self.changed = max(entry.time, self.changed)
        for change in entry.changes:
            if change.op is Op.DROP:
                self._drop(kind)
            elif (cell := self.cells.get(change.field)) is not None:
                cell.merge(change, kind)
            else:
                self.cells[change.field] = Cell(change.op, change.value)

    def _drop(self, kind: str) -> None:
        # Sums are history: deleting the key in Redis does not take back what was counted.
        if kind == "add":
            self.before = self.flushed()
        self.cells = {}
        self.dropped = True

    def flushed(self) -> dict[bytes, Cell]:
        """Return what PostgreSQL is told: increments from before a deletion count as well."""
        if not self.before:
            return self.cells
        told = {
            name: Cell(cell.op, cell.value)
            for name, cell in self.before.items()
            if cell.op is Op.ADD
        }
        for name, cell in self.cells.items():
            if name in told and cell.op is Op.ADD:
                told[name].value = _sum(told[name].value, cell.value)
            else:
                told[name] = cell
        return told


class Batch:
    """Rows that are flushed in one transaction."""

    def __init__(self) -> None:
        self.rows: dict[Place, Row] = {}
        self.last = 0  # highest sequence in it
        self.first = 0
        self.oldest = float("inf")  # seconds since 1970
        self.sizes: dict[str, int] = {}  # bytes of records per keyspace,
        self.size = 0  # and of all

    def add(self, entry: Entry, kind: str) -> None:
        key = entry.keyspace, entry.key
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row(*key)
        row.merge(entry, kind)
        self.first = self.first or entry.sequence
        self.last = max(self.last, entry.sequence)
        self.oldest = min(self.oldest, entry.time)
        size = entry.size
        self.size += size
        self.sizes[entry.keyspace] = self.sizes.get(entry.keyspace, 0) + size


class Partition:
    """What waits, in order. `settle` must be called once PostgreSQL has said how far it is."""

    def __init__(self, kind_of: Callable[[str], str]) -> None:
        """kind_of gives the merge rule of a keyspace."""
        self._kind_of = kind_of
        self._unsettled: list[Entry] = []  # what may be in PostgreSQL already,
        self._of_key: dict[Place, list[Entry]] = {}  # and the same by key
        self.position: int | None = None  # flushed up to here; None: nobody knows yet
        self.sealed: deque[Batch] = deque()
        self.active = Batch()

    @property
    def rows(self) -> int:
        return len(self._unsettled) + sum(len(batch.rows) for batch in self.batches())

    @property
    def lowest(self) -> int | None:
        """Return the lowest sequence that waits, None where nothing does."""
        if self._unsettled:
            return self._unsettled[0].sequence
        return next((batch.first for batch in self.batches() if batch.rows), None)

    @property
    def newest(self) -> int:
        """Return the highest sequence that waits, 0 where nothing does."""
        if self._unsettled:
            return self._unsettled[-1].sequence
        return max(batch.last for batch in self.batches())

    @property
    def oldest(self) -> float:
        """Return when the oldest write that waits was made; infinity where none does."""
        if self._unsettled:
            return self._unsettled[0].time
        return next(self.batches()).oldest

    def batches(self) -> Iterator[Batch]:
        yield from self.sealed
        yield self.active

    def add(self, entry: Entry) -> None:
        if self.position is None:
            self._unsettled.append(entry)
            self._of_key.setdefault((entry.keyspace, entry.key), []).append(entry)
        else:
            self._merge(entry)

    def settle(self, position: int) -> list[Entry]:
        """Hear what is flushed; return the entries that turn out to be in PostgreSQL already."""
        waiting, self._unsettled, self._of_key = self._unsettled, [], {}
        self.position = position
        for entry in waiting:
            if entry.sequence > position:
                self._merge(entry)
        return [entry for entry in waiting if entry.sequence <= position]

    def _merge(self, entry: Entry) -> None:
        self.active.add(entry, self._kind_of(entry.keyspace))
        if self.active.size >= BATCH_BYTES:
            self.seal()

    def seal(self) -> None:
        """Let the newest batch be flushed; what lands from now on goes to another."""
        if self.active.rows:
            self.sealed.append(self.active)
            self.active = Batch()

    def done(self) -> Batch:
        """Drop the first sealed batch, which is committed, and return it."""
        batch = self.sealed.popleft()
        self.position = batch.last
        return batch

    def places(self) -> Iterator[Place]:
        """Yield keyspace and key of what waits; what lands meanwhile may be missing."""
        yield from tuple(self._of_key)
        for batch in tuple(self.batches()):
            yield from tuple(batch.rows)

    def waits(self, keyspace: str, key: bytes) -> bool:
        """Return whether anything waits for a key."""
        place = keyspace, key
        return place in self._of_key or any(place in batch.rows for batch in self.batches())

    def overlay(self, keyspace: str, key: bytes) -> Row | None:
        """Return what waits for a key, merged into a row of the caller's own; None for nothing."""
        kind = self._kind_of(keyspace)
        found: Row | None = None
        for batch in self.batches():
            if (row := batch.rows.get((keyspace, key))) is not None:
                found = _stacked(found or Row(keyspace, key), row, kind)
        for entry in self._of_key.get((keyspace, key), ()):
            found = found or Row(keyspace, key)
            found.merge(entry, kind)
        return found


def _stacked(below: Row, above: Row, kind: str) -> Row:
    """Put a later row upon an earlier one, which is changed."""
    drop = [Change(Op.DROP)] if above.dropped else []
    changes = (Change(cell.op, name, cell.value) for name, cell in above.cells.items())
    entry = Entry(0, above.changed, above.keyspace, above.key, (*drop, *changes))
    below.merge(entry, kind)
    return below


def merged(entries: Sequence[Entry], kind: str) -> Row:
    """Return the row of one key's writes."""
    row = Row(entries[0].keyspace, entries[0].key)
    for entry in entries:
        row.merge(entry, kind)
    return row


def sizes_of(entries: Iterable[Entry]) -> dict[str, int]:
    """Return the bytes of records per keyspace."""
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.keyspace] = sizes.get(entry.keyspace, 0) + entry.size
    return sizes


def number(text: bytes) -> Decimal | None:
    """Return a decimal number, None for what is none or has no end."""
    if b"_" in text or text != text.strip():
        return None  # Python's way of writing numbers, and not Redis'
    try:
        value = Decimal(text.decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError):
        return None
    # An exponent of a thousand is a number that no column holds, and a gigabyte when written out.
    return value if value.is_finite() and abs(value.adjusted()) < 400 else None


def _sum(one: bytes, other: bytes) -> bytes:
    if one.lstrip(b"-").isdigit() and other.lstrip(b"-").isdigit():
        return b"%d" % (int(one) + int(other))
    first, second = number(one), number(other)
    if first is None or second is None:
        # The node refuses to add to what is no number; PostgreSQL is told the increment alone.
        return other
    return plain(_EXACT.add(first, second))


def plain(amount: Decimal) -> bytes:
    """Return a number as Redis writes it: no exponent, no zeros behind the last digit that counts.

    An integer of PostgreSQL takes no other.
    """
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text).encode()


def _extreme(one: bytes, other: bytes, kind: str) -> bytes:
    first, second = number(one), number(other)
    if first is None or second is None:
        return other
    return one if (first >= second) == (kind == "max") else other
