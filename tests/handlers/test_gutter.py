"""Copies for while Redis is away."""

from proxy.handlers.gutter import BYTES, SECONDS, Gutter
from proxy.origin.render import Value


def text(size: int) -> Value:
    return Value("string", b"x" * size)


def test_a_copy_is_fresh_for_seconds() -> None:
    """A copy is given for a moment, and later to those only who take what is old."""
    gutter = Gutter()
    gutter.put(b"k", text(1), 100.0)
    gutter.put(b"none", None, 100.0)
    fresh = gutter.get(b"k", 100.0 + SECONDS)
    assert fresh is not None
    assert fresh.value == text(1)
    assert gutter.get(b"none", 101.0) is not None
    assert gutter.get(b"k", 100.1 + SECONDS) is None
    assert gutter.get(b"k", 150.0, 60.0) is not None
    gutter.drop(b"k")
    assert gutter.get(b"k", 100.0) is None


def test_what_was_looked_at_last_stays() -> None:
    """Its bytes are bounded; what nobody asks for gives way, and nothing takes all of it."""
    gutter = Gutter(20_000)
    for number in range(100):
        gutter.put(b"%d" % number, text(500), 1.0)
        gutter.get(b"0", 1.0)
        assert gutter.size <= 20_000
    assert gutter.get(b"0", 1.0) is not None
    assert gutter.get(b"1", 1.0) is None
    assert gutter.get(b"99", 1.0) is not None
    gutter.put(b"huge", text(10_000), 1.0)
    assert gutter.get(b"huge", 1.0) is None
    for number in range(100):
        gutter.drop(b"%d" % number)
    assert gutter.size == 0
    assert BYTES == 32 << 20
