"""What PostgreSQL says of the statements of policies before anybody runs them.

Used by `sidecache check --database`. Every statement is prepared against the real schema, nothing
is run; what it would give is compared with what the policy makes of it.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import asyncpg

from proxy.origin import lock_tables, locking
from proxy.origin.pool import Connection
from proxy.origin.render import TTL, VALUE
from proxy.plans import (
    SQL_TYPES,
    Locking,
    Plan,
    Present,
    Statement,
    qualified,
    quoted,
)

# A complaint: place of the policy as file:line:column, what is wrong.
Finding = tuple[str, str]

# Which types of a segment to try where PostgreSQL compares text with something else.
_TRIED = ("int", "uuid", "date")

# Kinds of types that arrive as values; of others (composite, range) there is only text.
_SCALAR = ("scalar", "array")
_NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8"})

# Locks are taken by functions, which are not there before this.
_INSTALL = "run `sidecache sql install`"

# What a function says of itself; NULL where there is none.
_SAID = "SELECT obj_description(to_regproc($1), 'pg_proc')"

# For looking at one table, in seconds.
_TIMEOUT = 10.0

_COLUMNS = """
SELECT attname FROM pg_attribute
 WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""


# Indexes that keep two rows from being alike, by their columns; partial ones and those of
# expressions do so for some rows only.
_UNIQUE = """
SELECT array_agg(a.attname::text) AS columns
  FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(number, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
 WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid
   AND i.indpred IS NULL AND i.indexprs IS NULL AND k.place <= i.indnkeyatts
 GROUP BY i.indexrelid
"""


async def findings(connection: Connection, plan: Plan) -> AsyncIterator[Finding]:
    """Yield what is wrong with the statements of a keyspace."""
    if plan.read is not None:
        names = await _names(connection, plan.read)
        for text in [names] if isinstance(names, str) else _about_read(plan, names):
            yield plan.read.place, text
    if plan.writing is not None:
        refused = await _names(connection, plan.writing.statement)
        if isinstance(refused, str):
            yield plan.writing.statement.place, refused
    if plan.restoring is not None:
        statement = plan.restoring.statement
        names = await _names(connection, statement)
        for text in [names] if isinstance(names, str) else _about_restore(plan, names):
            yield statement.place, text
    if plan.locking is not None:
        for text in await _about_locks(connection, plan, plan.locking):
            yield plan.locking.calls.take.place, text


async def about_present(connection: Connection, present: Present) -> AsyncIterator[Finding]:
    """Yield what is wrong with a statement about changed rows."""
    names = await _names(connection, present.statement)
    for text in [names] if isinstance(names, str) else _about_columns(names):
        yield present.statement.place, text


async def about_table(connection: Connection, table: str, columns: Sequence[str]) -> str | None:
    """Return what is wrong with a table whose changes are watched, and its columns."""
    try:
        rows = await connection.fetch(_COLUMNS, table)
    except asyncpg.PostgresError as error:
        return f'no table can be called "{table}": {error.args[0]}'
    there = [row["attname"] for row in rows]
    if not there:
        return f'there is no table "{table}"'
    missing = [column for column in columns if column not in there]
    return None if not missing else (
        f'the table "{table}" has no column "{missing[0]}"; it has: {", ".join(there)}'
    )  # fmt: skip


async def _about_locks(connection: Connection, plan: Plan, own: Locking) -> Sequence[str]:
    """Return what is wrong with the table of locks, or what is made for it, or its statements."""
    found = list(await lock_tables.mistakes(connection, own, _TIMEOUT))
    if not found and own.table is not None:
        doubled = await _doubled(connection, own.table, own.columns)
        found += [] if doubled is None else [doubled]
    said = await connection.fetchval(_SAID, quoted(locking.named("take", plan)))
    if said is None:
        return [*found, f"PostgreSQL has no functions for the locks of {plan.name}, or those of "
                f"other policies, so that none is granted: {_INSTALL}"]  # fmt: skip
    if said != locking.digest(plan):
        return [*found, f"the functions for the locks of {plan.name} are those of another version "
                f"of sidecache: {_INSTALL}"]  # fmt: skip
    refused = [await _names(connection, statement) for statement in own.calls]
    return found + [text for text in refused if isinstance(text, str)][:1]


async def _doubled(connection: Connection, table: str, columns: Sequence[str]) -> str | None:
    """Return why a lock could be two rows of a table; None where it could not."""
    name = qualified(table)
    rows = await connection.fetch(_UNIQUE, name)
    if any(set(row["columns"]) <= set(columns) for row in rows):
        return None
    return (
        f'the table "{table}" may have two rows for one lock, which two could hold, and finding one'
        f" reads all of it: CREATE UNIQUE INDEX ON {name} "
        f"({', '.join(map(quoted, columns))})"
    )


# Names and types of the columns that a statement gives, in their order.
_Columns = Sequence[tuple[str, str, str]]


async def _names(connection: Connection, statement: Statement) -> _Columns | str:
    """Return the columns of a statement: name, type and kind; or why there is no such statement."""
    try:
        prepared = await connection.prepare(statement.text)
    except asyncpg.PostgresError as error:
        hint = await _typed(connection, statement) or error.hint
        return f"PostgreSQL refuses it: {error.args[0]}" + (f"; {hint}" if hint else "")
    return [
        (attribute.name, attribute.type.name, attribute.type.kind)
        for attribute in prepared.get_attributes()
    ]


async def _typed(connection: Connection, statement: Statement) -> str | None:
    """Return which segment wants a type, where it is one that makes the statement right."""
    for number, (name, kind) in enumerate(statement.parameters, 1):
        if SQL_TYPES.get(kind) != "text":
            continue
        for other in _TRIED:
            text = statement.text.replace(f"${number}::text", f"${number}::{SQL_TYPES[other]}")
            try:
                await connection.prepare(text)
            except asyncpg.PostgresError:
                continue
            return f"its column is no text: write {{{name}:{other}}} in the key"
    return None


def _about_read(plan: Plan, columns: _Columns) -> Iterator[str]:
    yield from _about_columns(columns)
    names = [name for name, _, _ in columns]
    wanted = [column for _, column in plan.columns]
    for column in wanted:
        if column not in names:
            yield f'columns names "{column}", which is none of it: {", ".join(names)}'
    taken = wanted or names
    types = {name: type for name, type, _ in columns}
    if plan.type in ("string", "counter", "list", "set") and len(taken) != 1:
        yield f"a {plan.type} is made of one column, not {len(taken)}: {', '.join(taken)}"
    if plan.type == "zset" and (len(taken) != 2 or types.get(taken[1], "int4") not in _NUMBERS):
        yield f"a zset is made of member and score, a number; there is: {_shown(types)}"


def _about_restore(plan: Plan, columns: _Columns) -> Iterator[str]:
    yield from _about_columns(columns)
    types = {name: type for name, type, _ in columns}
    for segment in plan.segments:
        if segment.name not in types:
            yield f'the key needs the column "{segment.name}"; there is: {_shown(types)}'
    if TTL in types and types[TTL] not in _NUMBERS:
        yield f'the column "{TTL}" is a number of seconds, not {types[TTL]}'
    if not {*types} - {TTL} - {segment.name for segment in plan.segments}:
        yield f'nothing is left for the value; call it "{VALUE}"'


def _about_columns(columns: _Columns) -> Iterator[str]:
    seen: set[str] = set()
    for name, type, kind in columns:
        if kind not in _SCALAR:
            yield f'the column "{name}" is of type {type}: cast it to text or json'
        if name in seen:
            yield f'the column "{name}" comes twice; call one of them something else'
        seen.add(name)


def _shown(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {type}" for name, type in types.items())
