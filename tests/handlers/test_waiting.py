"""What a key holds of which writes wait, by itself; with PostgreSQL and nodes in test_behind."""

from proxy.handlers.waiting import overlaid
from proxy.origin.merging import Row
from proxy.origin.records import Change, Entry, Op


def test_what_waits_lies_upon_what_is_there() -> None:
    """Fields that were set, counted up and erased; a key that was deleted has nothing below."""
    row = Row("activity", b"k")
    changes = [(Op.SET, b"a", b"1"), (Op.ADD, b"b", b"2"), (Op.ADD, b"c", b"3"), (Op.ERASE, b"d")]
    row.merge(Entry(1, 0.0, "activity", b"k", tuple(Change(*each) for each in changes)), "add")
    base = {b"a": b"0", b"b": b"40", b"d": b"x", b"e": b"y"}
    assert overlaid(row, base) == {b"a": b"1", b"b": b"42", b"c": b"3", b"e": b"y"}
    row.dropped = True
    assert overlaid(row, base) == {b"a": b"1", b"b": b"2", b"c": b"3"}
