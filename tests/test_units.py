"""Quantities as operators write them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from proxy import units

PARSERS = [
    units.parse_duration, units.parse_size, units.parse_percentage, units.parse_rate,
    units.parse_switch,
]  # fmt: skip


@pytest.mark.parametrize(
    ("parse", "written", "value"),
    [
        (units.parse_duration, "600s", 600.0),
        (units.parse_duration, "250ms", 0.25),
        (units.parse_duration, "1.5 m", 90.0),
        (units.parse_duration, "2h", 7200.0),
        (units.parse_duration, "1d", 86400.0),
        (units.parse_duration, "0s", 0.0),
        (units.parse_size, 512, 512),
        (units.parse_size, "0B", 0),
        (units.parse_size, "1.5kB", 1500),
        (units.parse_size, "1KB", 1000),
        (units.parse_size, "500MB", 500_000_000),
        (units.parse_size, "1MiB", 1 << 20),
        (units.parse_size, "2GiB", 2 << 30),
        (units.parse_percentage, "10%", 0.1),
        (units.parse_percentage, "0%", 0.0),
        (units.parse_percentage, "100 %", 1.0),
        (units.parse_rate, "1000/min", units.Rate(1000, 60.0)),
        (units.parse_rate, "5 / s", units.Rate(5, 1.0)),
        (units.parse_rate, "9/day", units.Rate(9, 86400.0)),
        (units.parse_switch, "on", True),
        (units.parse_switch, "No", False),
        (units.parse_switch, True, True),
    ],
)
def test_quantities(parse: Callable[[object], object], written: object, value: object) -> None:
    """What is written in a known unit becomes seconds, bytes, a share, a rate or a switch."""
    assert parse(written) == value


@pytest.mark.parametrize(
    ("parse", "written", "message"),
    [
        (units.parse_duration, 600, 'needs a unit (ms, s, m, h, d); did you mean "600s"?'),
        (units.parse_duration, "5min", 'did you mean "5m"?'),
        (units.parse_duration, "10 sec", 'did you mean "10s"?'),
        (units.parse_duration, "7w", "allowed: ms, s, m, h, d"),
        (units.parse_duration, "9999d", "longer than ten years"),
        (units.parse_duration, "-5s", "expects a duration"),
        (units.parse_duration, "1e9s", "expects a duration"),
        (units.parse_duration, True, "expects a duration"),
        (units.parse_duration, None, "expects a duration"),
        (units.parse_size, "5mb", 'did you mean "5MB"?'),
        (units.parse_size, "5k", 'did you mean "5kB"?'),
        (units.parse_size, "1XB", "is no unit of size"),
        (units.parse_size, "0.5B", "whole number of bytes"),
        (units.parse_size, -1, "whole number of bytes"),
        (units.parse_size, "99999GiB", "larger than 16 TiB"),
        (units.parse_size, True, "expects a size"),
        (units.parse_percentage, "101%", "from 0% to 100%"),
        (units.parse_percentage, 0.1, "from 0% to 100%"),
        (units.parse_rate, "0/s", "allows nothing"),
        (units.parse_rate, "10/minit", 'did you mean "min"?'),
        (units.parse_rate, 10, "expects a rate"),
        (units.parse_switch, "maybe", "expects on or off"),
        (units.parse_switch, 1, "expects on or off"),
    ],
)
def test_mistakes(parse: Callable[[object], object], written: object, message: str) -> None:
    """A mistake is told with what is allowed, and with what was probably meant."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(written)
    assert message in str(caught.value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary()))
def test_anything_else_is_a_mistake_and_never_a_crash(written: object) -> None:
    """Whatever is written, a parser returns a value or raises ValueError."""
    for parse in PARSERS:
        try:
            parse(written)
        except ValueError as error:
            assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "hint"), [(0.1, '"10%"'), (0.005, '"0.5%"'), (1, '"1%"'), (12.5, '"12.5%"')]
)
def test_a_share_without_its_sign(value: float, hint: str) -> None:
    """A fraction is meant as a share of 1, any other number as a percentage."""
    with pytest.raises(ValueError, match=f"did you mean {hint}"):
        units.parse_percentage(value)


@pytest.mark.parametrize(("value", "words"), [(0, "more than 0"), ("0.9ms", "1ms or more")])
def test_durations_that_come_to_nothing(value: object, words: str) -> None:
    """What Redis would round to nothing is refused, and nothing wrong is suggested."""
    with pytest.raises(ValidationError, match=words) as caught:
        TypeAdapter(units.PositiveDuration).validate_python(value)
    assert "did you mean" not in str(caught.value)
    assert TypeAdapter(units.PositiveDuration).validate_python("1ms") == 0.001


@pytest.mark.parametrize("kind", [units.PositiveDuration, units.PositiveSize])
def test_what_must_be_positive_is(kind: object) -> None:
    """Nothing is refused where something is needed."""
    with pytest.raises(ValidationError, match="must be more than 0"):
        TypeAdapter(kind).validate_python("0s" if kind is units.PositiveDuration else 0)


@pytest.mark.parametrize(
    ("parse", "show", "written", "shown"),
    [
        (units.parse_duration, units.show_duration, "15m", "900s"),
        (units.parse_duration, units.show_duration, "1.5s", "1500ms"),
        (units.parse_size, units.show_size, 1 << 20, "1MiB"),
        (units.parse_size, units.show_size, "500MB", "500MB"),
        (units.parse_size, units.show_size, 0, "0B"),
        (units.parse_size, units.show_size, 1001, "1001B"),
        (units.parse_percentage, units.show_percentage, "0.1 %", "0.1%"),
        (units.parse_rate, units.show_rate, "1000/minute", "1000/min"),
        (units.parse_rate, units.show_rate, "5 / day", "5/d"),
    ],
)
def test_quantities_written_again(
    parse: Callable[[object], Any], show: Callable[[Any], str], written: object, shown: str
) -> None:
    """A quantity is shown in one spelling, which is read as the same quantity."""
    assert show(parse(written)) == shown
    assert parse(shown) == parse(written)
