"""A double as text, as Redis 7.2 and later and Valkey write it.

Used by `ordered` for scores. They use Grisu2 (F. Loitsch, Printing floating-point numbers quickly
and accurately with integers, PLDI 2010): its text always reads back as the same number, but in one
case of some thousand it is not the shortest or the nearest one, and clients see which.
"""

import math
from collections.abc import Iterator
from functools import cache

# The greatest double that is written as the integer that it is.
_PLAIN = 2**62

_HIDDEN = 1 << 52
_MASK = (1 << 64) - 1

# Powers of ten by which numbers are brought into reach of 64 bits, every eighth of them.
_FIRST_POWER, _POWER_STEP, _POWERS = -348, 8, 87
_LEAST_EXPONENT, _GREATEST_EXPONENT = -60, -32
_LOG_OF_TWO = 0.30102999566398114


def double_text(number: float) -> bytes:
    """Return what a node sends for a double that is a number."""
    if math.isinf(number):
        return b"inf" if number > 0 else b"-inf"
    if number == 0:
        return b"-0" if math.copysign(1, number) < 0 else b"0"
    if number.is_integer() and abs(number) <= _PLAIN:
        return b"%d" % number
    digits, power = _shortened(abs(number))
    return (b"-" if number < 0 else b"") + _spelled(digits, power).encode()


def _spelled(digits: str, power: int) -> str:
    """Return digits times ten to the power, with an exponent where Redis writes one."""
    exponent = power + len(digits) - 1
    if power >= 0 and exponent < len(digits) + 7:
        return digits + "0" * power
    if power < 0 and (power > -7 or abs(exponent) < 4):
        whole = len(digits) + power
        return f"{digits[:whole]}.{digits[whole:]}" if whole > 0 else f"0.{'0' * -whole}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def _shortened(number: float) -> tuple[str, int]:
    """Return decimal digits and the power of ten of the last one."""
    fraction, exponent = math.frexp(number)
    exact, exponent = int(fraction * 2**53), exponent - 53
    if exponent < -1074:  # a subnormal has fewer bits
        exact, exponent = exact >> (-1074 - exponent), -1074
    # Half-way to both neighbours; below a power of two the lower one is nearer.
    upper, upper_exponent = _normal(2 * exact + 1, exponent - 1)
    nearer = 2 if exact == _HIDDEN else 1
    lower = ((exact << nearer) - 1) << (exponent - nearer - upper_exponent)
    value, _ = _normal(exact, exponent)
    power, scale, scale_exponent = _scale(upper_exponent)
    value, upper, lower = (_times(each, scale) for each in (value, upper, lower))
    bits = -(upper_exponent + scale_exponent + 64)
    # One unit on each side for what the products have been rounded by.
    digits, kappa = _digits(value, upper - 1, lower + 1, bits)
    return digits, kappa - power


def _normal(bits: int, exponent: int) -> tuple[int, int]:
    """Return the same number with 64 significant bits."""
    shift = 64 - bits.bit_length()
    return bits << shift, exponent - shift


def _times(one: int, other: int) -> int:
    return (one * other + (1 << 63)) >> 64


def _scale(exponent: int) -> tuple[int, int, int]:
    """Return a power of ten that brings an exponent into reach, its bits and its exponent."""
    index = int((int(-(exponent + _POWERS) * _LOG_OF_TWO) - _FIRST_POWER) / _POWER_STEP)
    while True:
        power = _FIRST_POWER + index * _POWER_STEP
        bits, own = _power_of_ten(power)
        if exponent + own + 64 < _LEAST_EXPONENT:
            index += 1
        elif exponent + own + 64 > _GREATEST_EXPONENT:
            index -= 1
        else:
            return power, bits, own


@cache
def _power_of_ten(power: int) -> tuple[int, int]:
    """Return a power of ten, rounded to 64 bits, and its exponent of two."""
    if power >= 0:
        exact, exponent = 10**power, 0
    else:
        exponent = -((10**-power).bit_length() + 66)
        exact = (1 << -exponent) // 10**-power
    shift = exact.bit_length() - 64
    if shift <= 0:
        return exact << -shift, exponent + shift
    return (exact + (1 << (shift - 1))) >> shift, exponent + shift


def _digits(value: int, upper: int, lower: int, bits: int) -> tuple[str, int]:
    """Return the fewest digits that lie between the bounds, and the power of ten of the last."""
    distance, delta, digits = upper - value, upper - lower, 0
    for digit, kappa, rest, unit, factor in _taken(upper, bits):
        digits = digits * 10 + digit
        reach = delta * factor
        if rest <= reach if kappa >= 0 else rest < reach:
            less = _steps_down(reach, rest, unit, (distance * factor) & _MASK)
            return str(digits - less), kappa
    raise AssertionError("digits never end")


def _taken(upper: int, bits: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each digit, its power of ten, what is left behind it, its unit, and their scale."""
    whole, rest = upper >> bits, upper & ((1 << bits) - 1)
    for kappa in range(9, -1, -1):
        digit, whole = divmod(whole, 10**kappa)
        yield digit, kappa, (whole << bits) + rest, 10**kappa << bits, 1
    for places in range(1, 20):
        rest *= 10
        digit, rest = rest >> bits, rest & ((1 << bits) - 1)
        yield digit, -places, rest, 1 << bits, 10**places


def _steps_down(delta: int, rest: int, unit: int, distance: int) -> int:
    """Return by how much the last digit is lowered to come nearer to the value."""
    steps = 0
    while (
        rest < distance
        and delta - rest >= unit
        and (rest + unit < distance or distance - rest > rest + unit - distance)
    ):
        steps, rest = steps + 1, rest + unit
    return steps
