"""What PostgreSQL's values become on their way to Redis, and how text becomes PostgreSQL's.

Used by `pool` for every connection that runs statements of policies, and by `render`. Values travel
as text, in PostgreSQL's own words, so that a parameter whose type only the table knows takes what a
client wrote, and a number keeps every digit.

Always true: a value is None, a bool, bytes (bytea), a `Number`, a `Document` (json, canonical), a
list of such (an array), or other text.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import asyncpg

# A numeric has at most so many digits in front of the point (and fewer behind it). Only the type
# json can hold a greater exponent: such a number stays as it was written, or ten bytes would
# become gigabytes.
MOST_DIGITS = 131_072


class Number(str):
    """A number as text without an exponent."""

    __slots__ = ()


class Document(str):
    """JSON, canonical: members sorted, no blanks, numbers without an exponent."""

    __slots__ = ()


def number(text: str) -> Number:
    """Return PostgreSQL's text of a number without its exponent; NaN and Infinity stay."""
    if "e" not in text and "E" not in text:
        return Number(text)
    exact = Decimal(text)
    return Number(format(exact, "f") if abs(exact.adjusted()) <= MOST_DIGITS else text)


def document(text: str) -> Document:
    """Return JSON as the same bytes for all texts that mean the same."""
    return Document(canonical(_read(text)))


# `Number` also for integers: Python refuses to read those of more than 4,300 digits.
_read = json.JSONDecoder(parse_int=Number, parse_float=number).decode
_written = json.encoder.encode_basestring


def canonical(value: Any) -> str:
    """Return a value as JSON: of this module, or of objects and arrays of such."""
    # Most of what there is, before all that may be.
    if type(value) is str:
        return _written(value)
    if type(value) is dict:
        members = [f"{_written(name)}:{canonical(value[name])}" for name in sorted(value)]
        return f"{{{','.join(members)}}}"
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Document():
            return value
        case Number():
            # JSON has no words for these.
            return value if value.lstrip("-")[0].isdigit() else f'"{value}"'
        case str():
            return _written(value)
        case bytes():
            return f'"\\\\x{value.hex()}"'
        case _:
            return "[" + ",".join(map(canonical, value)) + "]"


def _time(text: str) -> str:
    """Return PostgreSQL's ISO text of a moment in the form of RFC 3339; infinity stays."""
    return text.replace(" ", "T", 1).replace("+00", "Z", 1)


def _truth(text: str) -> bool:
    return text == "t"


# Every built-in type that asyncpg would make a Python object of: its text is what is wanted.
_DECODERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid", "numeric", "float4", "float8"), number),
    **dict.fromkeys(("timestamptz", "timestamp"), _time),
    **dict.fromkeys(("json", "jsonb"), document),
    **dict.fromkeys(
        (
            "date", "time", "timetz", "interval", "uuid", "inet", "cidr", "macaddr", "macaddr8",
            "bit", "varbit", "point", "line", "lseg", "box", "path", "polygon", "circle",
            "xid", "xid8", "cid", "tid", "pg_lsn", "money",
        ),
        str,
    ),
    "bool": _truth,
}  # fmt: skip


def _bytes(text: str) -> bytes:
    # What a client wrote came as text of any bytes: see `text_of`.
    return text.encode("utf-8", "surrogateescape")


def text_of(value: bytes) -> str:
    """Return what a client wrote as an argument of a statement.

    Bytes that are no UTF-8 reach a bytea as they are; everywhere else PostgreSQL refuses them.
    """
    return value.decode("utf-8", "surrogateescape")


async def set_codecs(connection: "asyncpg.Connection[Any]") -> None:
    """Let a connection take and give text. Asks the server nothing: the types are built in."""
    for name, decoder in _DECODERS.items():
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=decoder, format="text"
        )
    await connection.set_type_codec(
        "bytea", schema="pg_catalog", encoder=_bytes, decoder=bytes, format="binary"
    )
