"""Records: what was encoded comes back, and nothing else does."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.origin.records import Change, Entry, Op, decode, encode

CHANGES = st.builds(Change, st.sampled_from(Op), st.binary(max_size=20), st.binary(max_size=50))
ENTRIES = st.builds(
    Entry, st.integers(1, 2**63 - 1), st.floats(0, 1e11), st.text("abc_", max_size=9),
    st.binary(max_size=40), st.lists(CHANGES, max_size=4).map(tuple),
)  # fmt: skip


@given(ENTRIES, st.integers(0, 2**63 - 1), st.binary(max_size=10))
def test_an_entry_comes_back(entry: Entry, durable: int, before: bytes) -> None:
    """Whatever the bytes of key and values, and wherever the record begins."""
    data = encode(entry, durable)
    assert len(data) == entry.size
    record = decode(before + data + b"more", len(before))
    assert record is not None
    assert (record.entry, record.durable) == (entry, durable)
    assert record.end == len(before) + len(data)


def test_bytes_that_are_no_whole_record_are_none() -> None:
    """A record that is cut, or of which one bit is another, is not taken for one."""
    data = encode(Entry(7, 1.5, "activity", b"key", (Change(Op.ADD, b"views", b"1"),)), 6)
    assert all(decode(data[:length], 0) is None for length in range(len(data)))
    for place in range(len(data)):
        for bit in range(8):
            wrong = bytearray(data)
            wrong[place] ^= 1 << bit
            assert decode(bytes(wrong), 0) is None
