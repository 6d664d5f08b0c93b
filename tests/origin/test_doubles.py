"""Doubles as Redis and Valkey write them."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.embedded.node import Node
from proxy.origin.doubles import double_text
from tests.integration.differential import Wire
from tests.replies import pack


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, b"0"), (-0.0, b"-0"), (3.0, b"3"), (-2.5, b"-2.5"), (0.1, b"0.1"),
        (1e22, b"1e+22"), (1.5e-10, b"1.5e-10"), (0.00001, b"0.00001"), (1e18, b"1" + 18 * b"0"),
        (float("inf"), b"inf"), (float("-inf"), b"-inf"), (123456.789, b"123456.789"),
    ],
)  # fmt: skip
def test_doubles(number: float, text: bytes) -> None:
    """Few digits that read back as the same; whole numbers without a point."""
    assert double_text(number) == text


@given(st.floats(allow_nan=False))
def test_every_double_reads_back(number: float) -> None:
    """No text stands for another number."""
    assert float(double_text(number)) == number


def test_the_text_is_not_always_the_nearest() -> None:
    """A shorter way of finding it misses now and then, and clients see what nodes write."""
    assert repr(-1866892711269105.8) == "-1866892711269105.8"
    assert double_text(-1866892711269105.8) == b"-1866892711269105.7"


def numbers(count: int, seed: int) -> list[float]:
    """Return doubles of all sizes, some with few digits, and the odd ones at the ends."""
    dice = random.Random(seed)
    found = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.0**63, 2.0**64, 1e22, 1e23]
    while len(found) < count:
        bits: float = struct.unpack("d", dice.randbytes(8))[0]
        sized = dice.uniform(-1, 1) * 10.0 ** dice.randint(-20, 20)
        few = dice.randint(-(10**9), 10**9) / dice.choice((100, 1000, 7))
        found += [
            each for each in (bits, sized, few, 2.0 ** dice.randint(-1070, 1020)) if each == each
        ]
    return found


@pytest.mark.integration
async def test_texts_are_those_of_a_node(plain_redis: Node) -> None:
    """Digit by digit, for doubles of all sizes."""
    wire, asked = Wire(plain_redis.port), numbers(3000, 5)
    frames = (pack("ZADD", "doubles", repr(n), "m") + pack("ZSCORE", "doubles", "m") for n in asked)
    wire.send(b"".join(frames))
    replies = [(wire.read(), wire.read())[1].split(b"\r\n")[1] for _ in asked]
    wire.close()
    assert [double_text(number) for number in asked] == replies
