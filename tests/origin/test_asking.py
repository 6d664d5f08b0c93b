"""Arguments as Redis reads them."""

import pytest

from proxy import errors
from proxy.origin.asking import Asked, Refused, double, integer
from proxy.origin.render import Value

BAD = [b"", b"+1", b"01", b"-0", b" 1", b"1 ", b"1.0", b"9223372036854775808", b"x"]


@pytest.mark.parametrize("word", BAD)
def test_what_is_no_integer(word: bytes) -> None:
    """Redis has one spelling for each number of 64 bits."""
    with pytest.raises(Refused) as refused:
        integer(word)
    assert refused.value.line == errors.NOT_AN_INTEGER


def test_integers() -> None:
    """From the least to the greatest of 64 bits."""
    assert [integer(word) for word in (b"0", b"-9223372036854775808", b"9223372036854775807")] == [
        0, -(2**63), 2**63 - 1,
    ]  # fmt: skip


def test_bounds_of_scores() -> None:
    """Nothing is zero, infinities have names, a zero byte ends the text; NaN is refused."""
    read = [double(word, b"") for word in (b"", b"1e3", b".5", b"-Inf", b"+infinity", b"2\0x")]
    assert read == [0.0, 1000.0, 0.5, float("-inf"), float("inf"), 2.0]
    for word in (b"nan", b" 1", b"1x", b"e3", b"0x1"):
        with pytest.raises(Refused):
            double(word, b"-no\r\n")


def test_a_value_of_another_type_is_refused() -> None:
    """Where Redis looks at the key, and not before."""
    asked = Asked(Value("list", [b"a"]), [], 2, 0)
    assert asked.elements() == [b"a"]
    with pytest.raises(Refused, match="WRONGTYPE"):
        asked.pairs()
    assert Asked(None, [], 2, 0).pairs() == []
