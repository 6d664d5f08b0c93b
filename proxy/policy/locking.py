"""Policies of kind lock to what PostgreSQL is asked: a keyspace's `plans.Locking`.

The functions that are called are those of `origin.locking`, which installs them. Keys are arrays,
one for each column, because one call may be about several locks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.plans import (
    OWN_LOCKS,
    SQL_TYPES,
    LockCalls,
    Locking,
    Statement,
    lock_mark,
    marked_function,
    qualified,
    quoted,
)
from proxy.policy.model import Keyspace

# What each function takes behind the keys; see `origin.locking`.
_ARGUMENTS = {
    "take": ("text", "text", "text", "text", "float8", "float8", "text", "integer", "float8",
             "boolean", "bigint", "boolean"),
    "grab": ("text[]", "text[]", "text[]", "text[]", "float8[]", "boolean[]", "float8", "text[]",
             "integer", "float8"),
    "release": ("text[]", "bigint[]", "text[]", "float8", "integer", "boolean"),
    "confirm": ("text", "bigint[]", "text"),
    "queue": ("text", "text", "float8", "float8", "integer", "boolean"),
}  # fmt: skip

# Left in seconds, by the database's clock: without a deadline, or with 'infinity', a century.
_LEFT = (
    "extract(epoch FROM least(coalesce(locked_until, 'infinity'), clock_timestamp() + interval"
    " '100 years') - clock_timestamp())::float8"
)
_LOCKED = "status = 'locked' AND coalesce(locked_until, 'infinity') > clock_timestamp()"
_OWNED = "status = 'locked' AND locked_until > clock_timestamp()"

# Most locks of one owner that are listed.
_LISTED = 1000


class _Table(NamedTuple):
    """Where the locks of a keyspace are, as SQL."""

    name: str
    only: str  # what picks the keyspace's rows
    columns: tuple[str, ...]  # of the key
    kinds: tuple[str, ...]  # their types


def locking_of(name: str, own: Keyspace, place: str) -> Locking | None:
    """Return how locks of a keyspace are taken; None where PostgreSQL has nothing to do with it."""
    if not own.decided:
        return None
    lock, limit, queue = own.locks, own.locks.per_owner, own.locks.queue
    columns = tuple(lock.key[each] for each in own.key.names) if lock.table else ()
    scope = own.key.names.index(limit.scope) if limit else None
    kinds = [segment.kind for segment in own.key.segments] if columns else ()
    mark = lock_mark(lock.table, columns, kinds, scope)
    return Locking(
        calls=_calls(name, own, place, mark),
        mark=mark,
        table=lock.table,
        columns=columns,
        owner=tuple(lock.owner.removeprefix("$.").split(".")) if lock.owner != "value" else (),
        longest=lock.max_hold or 0.0,
        scope=scope or 0,
        most=limit.max if limit else 0,
        gate=lock.gate,
        heartbeat=queue.heartbeat if queue else 0.0,
        offer=queue.offer if queue else 0.0,
        blind=lock.blind_del == "connection",
    )


def _calls(name: str, own: Keyspace, place: str, mark: str) -> LockCalls:
    table = _table(name, own)

    def stated(verb: str, text: str) -> Statement:
        return Statement(f"{name} {verb}", text, (), place)

    def called(verb: str, kinds: Sequence[str]) -> Statement:
        return stated(verb, _call(marked_function(verb, name, mark), kinds))

    keys = [f"{kind}[]" for kind in table.kinds]
    return LockCalls(
        **{verb: called(verb, [*keys, *rest]) for verb, rest in _ARGUMENTS.items()},
        sweep=called("sweep", ["float8", "integer"]),
        held=stated("held", _held(table)),
        shown=stated("shown", _shown(own, table)),
        mine=stated("mine", _mine(own, table)),
    )


def _table(name: str, own: Keyspace) -> _Table:
    lock = own.locks
    if lock.table is None:
        return _Table(OWN_LOCKS, f"keyspace = '{name}' AND ", ("name",), ("text",))
    columns = tuple(quoted(lock.key[each]) for each in own.key.names)
    kinds = tuple(SQL_TYPES[segment.kind] for segment in own.key.segments)
    return _Table(qualified(lock.table), "", columns, kinds)


def _call(function: str, kinds: Sequence[str]) -> str:
    arguments = ", ".join(
        f"${n}::{'text[]' if kind.endswith('[]') else 'text'}::{kind}"
        for n, kind in enumerate(kinds, 1)
    )
    return f'SELECT * FROM "{function}"({arguments})'  # noqa: S608


def _found(names: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    pairs = enumerate(zip(names, kinds, strict=True), 1)
    return " AND ".join(f"{name} = ${n}::text::{kind}" for n, (name, kind) in pairs)


def _held(table: _Table) -> str:
    return (
        "SELECT coalesce(status::text, 'unknown') AS status, locked_by::text,"  # noqa: S608
        " lock_token::bigint AS token, booking_id::text, session_id::text,"
        f" {_LEFT} AS remains"
        f" FROM {table.name} WHERE {table.only}{_found(table.columns, table.kinds)}"
    )


def _shown(own: Keyspace, table: _Table) -> str:
    """Return what shows a lock as clients write it: the statement that restores it knows how."""
    if own.restore is None:
        found = _found(table.columns, table.kinds)
        return (
            f"SELECT value, {_LEFT} AS ttl FROM {table.name}"  # noqa: S608
            f" WHERE {table.only}{found} AND {_LOCKED}"
        )
    segments = own.key.segments
    found = _found(
        tuple(quoted(each.name) for each in segments),
        tuple(SQL_TYPES[each.kind] for each in segments),
    )
    inner = own.restore.sql.strip().removesuffix(";")
    return f"SELECT value, ttl::float8 AS ttl FROM (\n{inner}\n) AS held WHERE {found}"  # noqa: S608


def _mine(own: Keyspace, table: _Table) -> str:
    limit, scope = own.locks.per_owner, "$2::text IS NOT NULL"  # of any
    if limit is not None and own.locks.table is None:
        scope = "scope = $2::text"
    elif limit is not None:
        number = own.key.names.index(limit.scope)
        scope = f"{table.columns[number]} = $2::text::{table.kinds[number]}"
    names = ", ".join(f"{column}::text" for column in table.columns)
    return (
        f"SELECT ARRAY[{names}] AS name, coalesce(lock_token, 0)::bigint AS token,"  # noqa: S608
        f" {_LEFT} AS remains"
        f" FROM {table.name} WHERE {table.only}locked_by = $1::text AND {scope} AND {_OWNED}"
        f" ORDER BY {names} LIMIT {_LISTED}"
    )
