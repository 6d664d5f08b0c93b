"""A command that is answered from a value, and how Redis reads its arguments.

Used by `answers` and `ordered`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy import errors, resp
from proxy.origin.render import Value

# As Redis reads integers: no sign but minus, no leading zeros, no blanks.
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")

# What a bound of a range may be beside nothing at all, which is zero.
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?")
_INFINITY = re.compile(rb"[+-]?inf(?:inity)?")


class Refused(Exception):
    """Redis would answer an error line."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line


class Asked(NamedTuple):
    """A command, and the value of its key; reading the value as a wrong type is refused."""

    value: Value | None
    words: Sequence[bytes]  # behind the key
    protocol: int
    ttl_ms: int

    def string(self) -> bytes | None:
        data = self._data("string")
        return data if isinstance(data, bytes) else None

    def fields(self) -> Mapping[bytes, bytes]:
        data = self._data("hash")
        return data if isinstance(data, dict) else {}

    def members(self) -> frozenset[bytes]:
        data = self._data("set")
        return data if isinstance(data, frozenset) else frozenset()

    def elements(self) -> list[bytes]:
        data = self._data("list")
        return data if isinstance(data, list) else []

    def pairs(self) -> list[tuple[bytes, float]]:
        """Return the members of a sorted set and their scores, by score and member."""
        data = self._data("zset")
        return data if isinstance(data, list) else []

    def bulk_or_null(self, text: bytes | None) -> bytes:
        return resp.null(self.protocol) if text is None else resp.bulk(text)

    def _data(self, kind: str) -> object:
        if self.value is None:
            return None
        if self.value.type != kind:
            raise Refused(errors.DATA_PLANE.wrong_type)
        return self.value.data


def integer(word: bytes, line: bytes = errors.NOT_AN_INTEGER) -> int:
    """Return an argument as an integer of 64 bits."""
    number = int(word) if _INTEGER.fullmatch(word) else 2**63
    if not -(2**63) <= number < 2**63:
        raise Refused(line)
    return number


def double(word: bytes, line: bytes) -> float:
    """Return a bound of a range; text ends at a zero byte for Redis."""
    text = word.split(b"\0", 1)[0].lower()
    if not text:
        return 0.0
    if _DECIMAL.fullmatch(text) or _INFINITY.fullmatch(text):
        return float(text)
    raise Refused(line)
