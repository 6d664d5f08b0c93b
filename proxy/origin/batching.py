"""A policy's statement for one row becomes a statement for many, and rows become its arguments.

`INSERT INTO t (…) VALUES (…) ON CONFLICT …` becomes `INSERT INTO t (…) SELECT … FROM unnest(…) ON
CONFLICT …`: one array per parameter, a thousand rows in one round trip. Every other statement is
run row by row in one pipeline.

Always true: SQL text is made of the policy's own text and of names of types that PostgreSQL gave;
values travel as text and are cast by PostgreSQL, which knows what a column takes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from proxy.origin.merging import Row
from proxy.origin.records import Op
from proxy.plans import Plan, Statement, quoted
from proxy.wire.rules import Segment

# A name for the checker alone: at run time the class has no parameter.
Connection: TypeAlias = "asyncpg.Connection[Any]"

_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/
  | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$
  | \$(?P<number>\d+)
  | (?P<mark>[(),])
    """,
    re.VERBOSE | re.DOTALL,
)
_INTO = re.compile(r'\s*insert\s+into\s+[\w."]+(?:\s+as\s+\w+)?\s*\(', re.IGNORECASE)
_VALUES = re.compile(r"\s*values\s*\(", re.IGNORECASE)

# What a segment may be, as in the matcher of keys.
_SEGMENTS = {
    "int": r"-?\d+", "uuid": r"[0-9a-fA-F-]+", "date": r"[\d-]+", "hex": r"[0-9a-fA-F]+",
    "ip": r"[0-9a-fA-F.:]+", "text": r"[^:]+", "path": r".+",
}  # fmt: skip


# The longest that a bigint is.
_DIGITS = 20


class Shape(NamedTuple):
    """An INSERT of one row, taken apart."""

    head: str  # up to and with the list of columns
    columns: tuple[str, ...]
    values: tuple[str, ...]  # the expression of each column
    rest: str  # ON CONFLICT …


class Many(NamedTuple):
    """A statement as it is run for many rows."""

    text: str
    together: bool  # takes one array per parameter, else one value
    types: tuple[str, ...]  # of the parameters


@cache
def shape_of(text: str) -> Shape | None:
    """Return the parts of a statement with numbered parameters; None where it is of another kind.

    Nothing behind the values may have a parameter: there is no row there to take it from.
    """
    into = _INTO.match(text)
    if into is None or (columns_end := _closing(text, into.end())) is None:
        return None
    values = _VALUES.match(text, columns_end + 1)
    if values is None or (values_end := _closing(text, values.end())) is None:
        return None
    rest = text[values_end + 1 :]
    if rest.lstrip().startswith(",") or any(m["number"] for m in _TOKEN.finditer(rest)):
        return None
    columns = tuple(_split(text[into.end() : columns_end]))
    expressions = tuple(_split(text[values.end() : values_end]))
    if len(columns) != len(expressions):
        return None
    return Shape(text[: columns_end + 1], columns, expressions, rest)


def _closing(text: str, start: int) -> int | None:
    """Return where the parenthesis that was opened right before start is closed."""
    depth = 1
    for match in _TOKEN.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match["mark"] or "", 0)
        if depth == 0:
            return match.start()
    return None


def _split(text: str) -> Iterator[str]:
    """Yield what stands between the commas, those in parentheses passed over."""
    depth = begin = 0
    for match in _TOKEN.finditer(text):
        mark = match["mark"] or ""
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if mark == "," and depth == 0:
            yield text[begin : match.start()].strip()
            begin = match.end()
    yield text[begin:].strip()


@cache
def summed(statement: Statement) -> frozenset[str]:
    """Return the parameters that an upsert adds to what a column holds: c = t.c + excluded.c."""
    shape = shape_of(statement.text)
    if shape is None:
        return frozenset()
    found = set()
    for column, expression in zip(shape.columns, shape.values, strict=True):
        new = rf"excluded\.{re.escape(column)}\b"
        if re.search(rf"\+\s*{new}|\b{new}\s*\+", shape.rest, re.IGNORECASE):
            found |= {statement.parameters[int(m["number"]) - 1].name
                      for m in _TOKEN.finditer(expression) if m["number"]}  # fmt: skip
    return frozenset(found)


async def prepared(connection: Connection, statement: Statement) -> Many:
    """Return a statement for many rows. Raises asyncpg.PostgresError where it does not fit."""
    types = await types_of(connection, statement)
    shape = shape_of(statement.text)
    return together(shape, types) if shape is not None and types else apart(statement, types)


async def types_of(connection: Connection, statement: Statement) -> list[str]:
    """Return the types of a statement's parameters as PostgreSQL sees them, as SQL."""
    parameters = (await connection.prepare(statement.text)).get_parameters()
    return [_written(each) for each in parameters]


def kind_of(written: str) -> str:
    """Return the name of a type without its schema."""
    return written.rpartition(".")[2].strip('"')


def apart(statement: Statement, types: Sequence[str]) -> Many:
    """Return a statement that is run for each row, and takes text."""
    return Many(
        _renumbered(statement.text, lambda n: f"(${n}::text)::{types[n - 1]}"), False, tuple(types)
    )


def together(shape: Shape, types: Sequence[str]) -> Many:
    """Return an upsert that takes all rows at once, one array of text per parameter."""
    values = ", ".join(
        _renumbered(each, lambda n: f"(sidecache_rows.p{n})::{types[n - 1]}")
        for each in shape.values
    )
    arrays = ", ".join(f"${n}::text[]" for n in range(1, len(types) + 1))
    names = ", ".join(f"p{n}" for n in range(1, len(types) + 1))
    rows = f"unnest({arrays}) AS sidecache_rows ({names})"
    text = " ".join((shape.head, "SELECT", values, "FROM", rows, shape.rest))
    return Many(text, True, tuple(types))


def _renumbered(text: str, written: Callable[[int], str]) -> str:
    return _TOKEN.sub(lambda m: written(int(m["number"])) if m["number"] else m[0], text)


def _written(kind: asyncpg.Type) -> str:
    """Return the name of a type as SQL."""
    name, array = kind.name.removesuffix("[]"), "[]" if kind.name.endswith("[]") else ""
    return f"{quoted(kind.schema)}.{quoted(name)}{array}"


@cache
def _matcher(pattern: tuple[bytes | Segment, ...]) -> re.Pattern[bytes]:
    parts = (
        re.escape(part) if isinstance(part, bytes)
        else f"(?P<{part.name}>{_SEGMENTS[part.kind]})".encode()
        for part in pattern
    )  # fmt: skip
    return re.compile(b"".join(parts), re.DOTALL)


def segments_of(plan: Plan, key: bytes) -> Mapping[str, str]:
    """Return the values of a key's segments. Raises ValueError for a key of another pattern."""
    found = _matcher(plan.pattern).fullmatch(key)
    if found is None:
        raise ValueError("the key does not fit the pattern of its keyspace")
    return {name: text.decode() for name, text in found.groupdict().items()}


def spelled(plan: Plan, key: bytes) -> bool:
    """Return whether the typed segments of a key are written as PostgreSQL prints their values.

    An invalidation names a key by what PostgreSQL prints: it would never find another spelling of
    the same row. Numbers and days that PostgreSQL does not have are not spelled either.
    """
    typed = _typed(plan.pattern)
    if not typed:
        return True
    try:
        values = segments_of(plan, key)
        return all(_PRINTED[kind](values[name]) == values[name] for name, kind in typed)
    except ValueError:
        return False


def _integer(text: str) -> str:
    number = int(text) if len(text) <= _DIGITS else 1 << 63
    return str(number) if -(1 << 63) <= number < 1 << 63 else ""


_PRINTED: Mapping[str, Callable[[str], str]] = {
    "int": _integer,
    "uuid": lambda text: str(UUID(text)),
    "date": lambda text: date.fromisoformat(text).isoformat(),
}


@cache
def _typed(pattern: tuple[bytes | Segment, ...]) -> tuple[tuple[str, str], ...]:
    """Return name and kind of each segment whose value has one spelling among several."""
    parts = (part for part in pattern if isinstance(part, Segment))
    return tuple((part.name, part.kind) for part in parts if part.kind in _PRINTED)


@cache
def _sources(statement: Statement) -> tuple[tuple[str, str, bytes], ...]:
    """Return name, kind and field of each parameter."""
    return tuple((name, kind, name.encode()) for name, kind in statement.parameters)


def arguments_of(plan: Plan, row: Row) -> list[str | None]:
    """Return the arguments of a row; a field that was not written, or erased, is None.

    Raises ValueError for bytes that are no text.
    """
    assert plan.writing is not None
    segments, cells = segments_of(plan, row.key), row.flushed()
    arguments: list[str | None] = []
    for name, kind, field in _sources(plan.writing.statement):
        if kind == "version":
            arguments.append(str(round(row.changed * 1_000_000)))
        elif kind != "field":
            arguments.append(segments[name])
        elif (cell := cells.get(field)) is None or cell.op is Op.ERASE:
            arguments.append(None)
        else:
            arguments.append(cell.value.decode())
    return arguments


async def run(connection: Connection, many: Many, rows: Sequence[Sequence[str | None]]) -> None:
    """Write rows. Raises what asyncpg raises."""
    if many.together:
        # What unnest is given too few of is NULL: a field that no row has travels as nothing.
        columns = (
            [] if column.count(None) == len(column) else column
            for column in zip(*rows, strict=True)
        )
        await connection.execute(many.text, *columns)
    else:
        await connection.executemany(many.text, rows)
