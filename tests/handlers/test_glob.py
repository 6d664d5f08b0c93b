"""Redis' glob patterns."""

import time

import pytest

from proxy.handlers.glob import LONGEST_PATTERN, matches


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (b"*", b"", True), (b"", b"", True), (b"", b"a", False), (b"max*", b"maxmemory", True),
        (b"*policy", b"maxmemory-policy", True), (b"m*y", b"maxmemory-policy", True),
        (b"m*x", b"maxmemory", False), (b"a?c", b"abc", True), (b"a?c", b"ac", False),
        (b"[a-c]x", b"bx", True), (b"[c-a]x", b"bx", True), (b"[^a-c]x", b"bx", False),
        (b"[^a]", b"b", True), (b"[abc", b"b", True), (b"\\*", b"*", True), (b"\\*", b"a", False),
        (b"A*", b"abc", True), (b"a**c", b"abc", True), (b"a*b*c", b"axbxbc", True),
        (b"[\\]]", b"]", True), (b"\\", b"\\", True), (b"[]", b"a", False), (b"[^]", b"a", True),
    ],
)  # fmt: skip
def test_patterns(pattern: bytes, text: bytes, fits: bool) -> None:
    """A pattern fits what Redis says that it fits."""
    assert matches(pattern, text) is fits


def test_stars_cost_no_more_than_pattern_times_text() -> None:
    """The worst pattern that is taken is judged in a millisecond, a longer one not at all."""
    pattern = b"*a" * (LONGEST_PATTERN // 2 - 1) + b"*b"
    started = time.perf_counter()
    assert not matches(pattern, b"a" * 500)
    assert time.perf_counter() - started < 0.25
    assert not matches(b"*" * (LONGEST_PATTERN + 1), b"a")
