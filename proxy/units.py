"""Quantities as operators write them: 600s, 500MB, 10%, 1000/min, on.

Used by the models of `config` and of the policies. Each parser takes what YAML gives and returns
plain numbers (seconds, bytes, a share of 1), or raises ValueError with a message that says what is
allowed. The annotated types carry the parser and the JSON Schema for editors.
"""

import re
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WithJsonSchema

from proxy.documents import quote, suggest

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # seconds

SIZES = {
    "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip

PERIODS = {
    "ms": 0.001, "s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "m": 60.0,
    "h": 3600.0, "hour": 3600.0, "d": 86400.0, "day": 86400.0,
}  # fmt: skip

# Ten years: more is a slip of the unit, and Redis refuses times that overflow.
MAX_DURATION = 10 * 365 * 86400.0  # seconds

# Less than this is 0 to Redis.
SHORTEST = 0.001  # seconds

# A sidecar has gigabytes, not terabytes; a larger figure is a slip of the unit.
MAX_SIZE = 1 << 44  # bytes

# No sidecar lets so many commands through in any period; a larger figure is a slip.
MAX_AMOUNT = 1_000_000_000

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,8})\Z")
_RATE = re.compile(r"([0-9]{1,15}) ?/ ?([a-z]{1,8})\Z")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%\Z")


class Rate(NamedTuple):
    """So many in so many seconds."""

    amount: int
    seconds: float


# Words that people write for a unit and that a likeness in letters would not find.
_MEANT = {
    "min": "m", "mins": "m", "minute": "m", "minutes": "m", "sec": "s", "secs": "s",
    "second": "s", "seconds": "s", "hour": "h", "hours": "h", "hr": "h", "day": "d",
    "days": "d", "msec": "ms", "k": "kB", "mb": "MB", "gb": "GB", "m": "MB", "g": "GB",
}  # fmt: skip


def _unit_hint(number: str, unit: str, units: dict[str, Any]) -> str:
    meant = next((u for u in units if u.casefold() == unit.casefold()), None)
    meant = meant or (_MEANT.get(unit.casefold()))
    return f'; did you mean "{number}{meant}"?' if meant in units else suggest(unit, units)


def _number_hint(value: object, unit: str) -> str:
    """Return a hint where only a number is written."""
    text = str(value) if isinstance(value, int | float | str) else ""
    bare = re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text) is not None
    if not bare or isinstance(value, bool) or (unit == "%" and float(text) > 100):
        return ""
    return f'; did you mean "{text}{unit}"?'


def parse_duration(value: object) -> float:
    """Return seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'a duration needs a unit (ms, s, m, h, d); did you mean "{value}s"?')
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        hint = _number_hint(value, "s")
        raise ValueError(f"expects a duration: a number and ms, s, m, h or d, such as 600s{hint}")
    number, unit = match.groups()
    if unit not in DURATIONS:
        hint = _unit_hint(number, unit, DURATIONS)
        raise ValueError(f"{quote(unit)} is no unit of time; allowed: ms, s, m, h, d{hint}")
    seconds = float(number) * DURATIONS[unit]
    if seconds > MAX_DURATION:
        raise ValueError("is longer than ten years")
    return seconds


def parse_positive_duration(value: object) -> float:
    """Return seconds, a millisecond or more: nodes and clocks know no less."""
    nothing = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    if nothing or (seconds := parse_duration(value)) <= 0:
        raise ValueError("must be more than 0")
    if seconds < SHORTEST:
        raise ValueError("must be 1ms or more")
    return seconds


def parse_size(value: object) -> int:
    """Return bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = float(value)
    else:
        match = _QUANTITY.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("expects a size: bytes, or a number and kB, MB, GB, KiB, MiB or GiB")
        number, unit = match.groups()
        if unit not in SIZES:
            hint = _unit_hint(number, unit, SIZES)
            allowed = "B, kB, MB, GB, KiB, MiB, GiB"
            raise ValueError(f"{quote(unit)} is no unit of size; allowed: {allowed}{hint}")
        size = float(number) * SIZES[unit]
    if size < 0 or size != int(size):
        raise ValueError("expects a whole number of bytes")
    if size > MAX_SIZE:
        raise ValueError("is larger than 16 TiB")
    return int(size)


def parse_percentage(value: object) -> float:
    """Return a share of 1."""
    match = _PERCENT.match(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > 100:
        # Who writes a fraction means a share of 1.
        if isinstance(value, float) and 0 < value < 1:
            hint = f'; did you mean "{show_percentage(value)}"?'
        else:
            hint = _number_hint(value, "%")
        raise ValueError(f"expects a percentage from 0% to 100%, such as 10%{hint}")
    return float(match[1]) / 100


def parse_rate(value: object) -> Rate:
    """Return a count and its period."""
    match = _RATE.match(value) if isinstance(value, str) else None
    if match is None:
        hint = _number_hint(value, "/s")
        raise ValueError("expects a rate: a number, a slash and s, min, h or d, such as 1000/min"
                         f"{hint}")  # fmt: skip
    number, unit = match.groups()
    if unit not in PERIODS:
        hint = suggest(unit, PERIODS)
        raise ValueError(f"{quote(unit)} is no period; allowed: ms, s, min, h, d{hint}")
    if int(number) == 0:
        raise ValueError("a rate of 0 allows nothing; deny the commands instead")
    if int(number) > MAX_AMOUNT:
        raise ValueError(f"is more than {MAX_AMOUNT}")
    return Rate(int(number), PERIODS[unit])


def parse_switch(value: object) -> bool:
    """Return whether a switch is on."""
    if isinstance(value, bool):
        return value
    switch = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
    if not isinstance(value, str) or value.casefold() not in switch:
        raise ValueError("expects on or off")
    return switch[value.casefold()]


def show_duration(seconds: float) -> str:
    """Return a duration as it is written: 600s, or 1500ms where seconds are not enough."""
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.10g}ms"


def show_size(size: int) -> str:
    """Return a size with the largest unit that it is a whole number of."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if size and size % SIZES[unit] == 0:
            return f"{size // SIZES[unit]}{unit}"
    return f"{size}B"


def show_percentage(share: float) -> str:
    """Return a share of 1 as a percentage."""
    return f"{share * 100:.10g}%"


def show_rate(rate: Rate) -> str:
    """Return a rate with its usual period, or with its seconds where it has none."""
    period = next((unit for unit, seconds in PERIODS.items() if seconds == rate.seconds), None)
    return f"{rate.amount}/{period or show_duration(rate.seconds)}"


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _schema(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_DURATION_SCHEMA = _schema(r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$", "600s")
_SIZE_SCHEMA = WithJsonSchema({
    "type": ["string", "integer"],
    "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$",
    "minimum": 0,
    "examples": ["1MiB", 512],
})  # fmt: skip

Duration = Annotated[float, BeforeValidator(parse_duration), _DURATION_SCHEMA]
PositiveDuration = Annotated[float, BeforeValidator(parse_positive_duration), _DURATION_SCHEMA]
PositiveSize = Annotated[int, BeforeValidator(parse_size), AfterValidator(_positive), _SIZE_SCHEMA]
Percentage = Annotated[
    float, BeforeValidator(parse_percentage), _schema(r"^[0-9]+(\.[0-9]+)? ?%$", "10%")
]
RateValue = Annotated[
    Rate,
    PlainValidator(parse_rate),
    _schema(
        r"^[0-9]+ ?/ ?(ms|s|sec|second|min|minute|m|h|hour|d|day)$",
        "1000/min",
    ),
]
Switch = Annotated[
    bool,
    BeforeValidator(parse_switch),
    WithJsonSchema({"enum": [True, False, "on", "off", "yes", "no"]}),
]
