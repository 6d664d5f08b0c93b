"""Sorted sets: doubles as Redis writes them, ranges by rank, score and bytes."""

from proxy.origin.answers import answer
from proxy.origin.ordered import span
from proxy.origin.render import Value

MIXED = Value("zset", [(b"a", 1.0), (b"b", 2.5), (b"c", 2.5)])
EVEN = Value("zset", [(b"a", 0.0), (b"b", 0.0), (b"c", 0.0)])


def test_a_span_includes_both_ends() -> None:
    """As in LRANGE: negative places count from the end, what is outside is empty."""
    assert span("abcd", 1, 2) == "bc"
    assert span("abcd", -2, -1) == "cd"
    assert span("abcd", -9, 0) == "a"
    assert span("abcd", 0, -9) == ""
    assert span("abcd", 3, 1) == ""
    assert span("abcd", 2, 2**62) == "cd"


def test_scores_are_nested_in_resp3_only() -> None:
    """Pairs for clients that can tell an array from its elements."""
    words = [b"ZRANGE", b"k", b"0", b"0", b"WITHSCORES"]
    assert answer(MIXED, words, 2) == b"*2\r\n$1\r\na\r\n$1\r\n1\r\n"
    assert answer(MIXED, words, 3) == b"*1\r\n*2\r\n$1\r\na\r\n,1\r\n"


def test_bounds_that_leave_themselves_out() -> None:
    """( takes the bound itself away, and + and - have none."""
    assert answer(MIXED, [b"ZCOUNT", b"k", b"(1", b"inf"], 2) == b":2\r\n"
    assert answer(EVEN, [b"ZLEXCOUNT", b"k", b"(a", b"[c"], 2) == b":2\r\n"
    assert answer(EVEN, [b"ZLEXCOUNT", b"k", b"-", b"(c"], 2) == b":2\r\n"


def test_a_range_by_bytes_needs_equal_scores() -> None:
    """Redis promises nothing where they differ, so nothing is answered."""
    assert answer(MIXED, [b"ZRANGEBYLEX", b"k", b"-", b"+"], 2) is None
    assert answer(MIXED, [b"ZLEXCOUNT", b"k", b"x", b"+"], 2) == (
        b"-ERR min or max not valid string range item\r\n"
    )
