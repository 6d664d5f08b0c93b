"""Merging: the order of a key's writes is kept, and sums are exact."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.origin import merging
from proxy.origin.merging import Batch, Partition, number, sizes_of
from proxy.origin.records import Change, Entry, Op


def entry(sequence: int, *changes: Change, key: bytes = b"k", keyspace: str = "a") -> Entry:
    return Entry(sequence, float(sequence), keyspace, key, changes)


def put(value: bytes, field: bytes = b"f") -> Change:
    return Change(Op.SET, field, value)


def add(value: bytes, field: bytes = b"f") -> Change:
    return Change(Op.ADD, field, value)


ERASE = Change(Op.ERASE, b"f")
DROP = Change(Op.DROP)


def merged(kind: str, *changes: Change) -> dict[bytes, tuple[Op, bytes]]:
    """Return what PostgreSQL is told after one entry per change."""
    batch = Batch()
    for sequence, change in enumerate(changes, 1):
        batch.add(entry(sequence, change), kind)
    (row,) = batch.rows.values()
    return {name: (cell.op, cell.value) for name, cell in row.flushed().items()}


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("replace", [put(b"1"), put(b"2")], (Op.SET, b"2")),
        ("fields", [put(b"1"), ERASE], (Op.ERASE, b"")),
        ("fields", [ERASE, put(b"1")], (Op.SET, b"1")),
        ("add", [add(b"1"), add(b"41")], (Op.ADD, b"42")),
        ("add", [add(b"0.1"), add(b"0.2")], (Op.ADD, b"0.3")),
        ("add", [add(b"5"), add(b"-7")], (Op.ADD, b"-2")),
        ("add", [put(b"10"), add(b"5")], (Op.SET, b"15")),
        ("add", [ERASE, add(b"5")], (Op.SET, b"5")),
        ("add", [put(b"word"), add(b"5")], (Op.SET, b"5")),
        ("max", [put(b"9"), put(b"10"), put(b"2")], (Op.SET, b"10")),
        ("min", [put(b"9"), put(b"10"), put(b"-2.5")], (Op.SET, b"-2.5")),
        ("max", [put(b"word"), put(b"1")], (Op.SET, b"1")),
        ("max", [put(b"9"), ERASE], (Op.ERASE, b"")),
    ],
)
def test_changes_of_a_field_become_one(
    kind: str, changes: list[Change], told: tuple[Op, bytes]
) -> None:
    """Each kind of merging has its own rule for two values that were set."""
    assert merged(kind, *changes) == {b"f": told}


def test_a_deleted_key_begins_anew() -> None:
    """What comes after a deletion replaces all that was; increments before it were counted."""
    assert merged("fields", put(b"1"), DROP) == {}
    assert merged("fields", put(b"1"), DROP, put(b"2", b"g")) == {b"g": (Op.SET, b"2")}
    assert merged("add", add(b"1"), put(b"x", b"g"), DROP, add(b"2")) == {b"f": (Op.ADD, b"3")}
    assert merged("add", add(b"1"), DROP, put(b"2")) == {b"f": (Op.SET, b"2")}


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=8), min_size=1))
def test_sums_are_exact(deltas: list[Decimal]) -> None:
    """However many increments of whatever size, nothing is rounded."""
    told = merged("add", *(add(format(delta, "f").encode()) for delta in deltas))
    assert Fraction(number(told[b"f"][1]) or 0) == sum(map(Fraction, deltas))


def test_what_waits_is_known_without_being_merged() -> None:
    """Before PostgreSQL has said how far it is, in a sealed batch, and in the newest one."""
    partition = Partition(lambda _: "add")
    entries = [Entry(n, 0.0, "activity", b"k%d" % n, (Change(Op.ADD, b"f", b"1"),))
               for n in (1, 2, 3)]  # fmt: skip
    for entry in entries[:2]:
        partition.add(entry)
    assert [partition.waits("activity", entry.key) for entry in entries] == [True, True, False]
    partition.settle(1)
    partition.seal()
    partition.add(entries[2])
    assert [partition.waits("activity", entry.key) for entry in entries] == [False, True, True]
    assert not partition.waits("note", entries[2].key)
    assert all(
        partition.waits("activity", entry.key)
        == (partition.overlay("activity", entry.key) is not None)
        for entry in entries
    )


def test_what_is_no_number() -> None:
    """Words, infinities and exponents that would fill the memory are none."""
    assert number(b"1e3") == 1000
    for text in (b"1_0", b" 1", b"", b"word", b"nan", b"inf", b"1e999999", b"\xff"):
        assert number(text) is None


def settled() -> Partition:
    partition = Partition(lambda _: "add")
    partition.settle(0)
    return partition


def test_a_position_is_exact() -> None:
    """Batches are sealed in order: what is done is all up to a sequence and nothing beyond."""
    partition = settled()
    partition.add(entry(1, add(b"1")))
    partition.add(entry(2, add(b"1"), key=b"other"))
    partition.seal()
    partition.add(entry(3, add(b"1")))
    partition.seal()
    assert (partition.lowest, partition.newest, partition.rows) == (1, 3, 3)
    assert partition.done().last == 2
    assert (partition.position, partition.lowest) == (2, 3)
    assert partition.oldest == 3.0
    partition.done()
    assert (partition.lowest, partition.newest, partition.rows) == (None, 0, 0)
    assert partition.oldest == float("inf")


def test_a_large_batch_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction has a limit in bytes, however many rows may be in it."""
    monkeypatch.setattr(merging, "BATCH_BYTES", 200)
    partition = settled()
    for sequence in range(1, 20):
        partition.add(entry(sequence, add(b"1")))
    assert len(partition.sealed) > 3


def test_replayed_entries_wait_for_the_position() -> None:
    """What PostgreSQL has already is passed over, and new writes stay behind what is replayed."""
    partition = Partition(lambda _: "add")
    for sequence in (1, 2, 3):
        partition.add(entry(sequence, add(b"1")))
    partition.seal()
    assert (partition.lowest, partition.newest, partition.rows, partition.oldest) == (1, 3, 3, 1.0)
    overlay = partition.overlay("a", b"k")
    assert overlay is not None
    assert overlay.cells[b"f"].value == b"3"
    assert [each.sequence for each in partition.settle(2)] == [1, 2]
    overlay = partition.overlay("a", b"k")
    assert overlay is not None
    assert overlay.cells[b"f"].value == b"1"
    assert partition.lowest == 3


def test_the_overlay_is_all_that_waits() -> None:
    """Over sealed batches and the newest, in their order; whoever asks may change it."""
    partition = settled()
    partition.add(entry(1, add(b"1"), put(b"x", b"g")))
    partition.seal()
    partition.add(entry(2, add(b"2")))
    row = partition.overlay("a", b"k")
    assert row is not None
    assert {name: cell.value for name, cell in row.cells.items()} == {b"f": b"3", b"g": b"x"}
    row.cells.clear()
    partition.add(entry(3, DROP))
    partition.add(entry(4, add(b"5")))
    row = partition.overlay("a", b"k")
    assert row is not None
    assert row.dropped
    assert {name: cell.value for name, cell in row.cells.items()} == {b"f": b"5"}
    assert partition.overlay("a", b"other") is None
    assert partition.overlay("b", b"k") is None


def test_bytes_are_counted_by_keyspace() -> None:
    """A batch and the entries in it have the same sizes."""
    entries = [entry(1, add(b"1")), entry(2, add(b"1"), keyspace="b"), entry(3, put(b"22"))]
    batch = Batch()
    for each in entries:
        batch.add(each, "add")
    assert batch.sizes == sizes_of(entries)
    assert batch.size == sum(each.size for each in entries)
