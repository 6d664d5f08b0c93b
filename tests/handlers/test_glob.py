"""Redis' glob patterns."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.handlers.glob import LONGEST_PATTERN, expression, literal_prefix, matches


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
    started = time.process_time()
    assert not matches(pattern, b"a" * 500)
    assert time.process_time() - started < 0.25
    assert not matches(b"*" * (LONGEST_PATTERN + 1), b"a")


def test_case_matters_without_fold() -> None:
    """Names of channels are told apart by case."""
    assert matches(b"New*", b"news")
    assert not matches(b"New*", b"news", fold=False)
    assert matches(b"New[s-t]", b"News", fold=False)


marks = st.lists(
    st.sampled_from([b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"a", b"b", b"c", b"\n", b"."]),
    max_size=10,
).map(b"".join)


@given(marks, st.lists(st.sampled_from([b"a", b"b", b"c", b"]", b"\n", b"-"])).map(b"".join))
@settings(max_examples=100, deadline=None)
def test_expression_fits_what_the_pattern_fits(pattern: bytes, text: bytes) -> None:
    """For keys a pattern means the same as for names, but for case."""
    assert bool(expression(pattern).fullmatch(text)) is matches(pattern, text)
    assert not expression(b"A*").fullmatch(b"abc")


def test_stars_over_keys_cost_no_more() -> None:
    """The worst pattern over a long key is judged in milliseconds."""
    worst = expression(b"*a" * 100 + b"*b")
    started = time.process_time()
    assert not worst.fullmatch(b"a" * 5000)
    assert time.process_time() - started < 0.25


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [(b"a:*", b"a:"), (b"*", b""), (b"abc", b"abc"), (b"a[b]", b"a"), (b"a\\*", b"a"), (b"?", b"")],
)
def test_prefixes(pattern: bytes, prefix: bytes) -> None:
    """What every key that fits begins with ends before the first sign that means something."""
    assert literal_prefix(pattern) == prefix
