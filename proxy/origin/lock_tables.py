"""What a table of the application has to be like for locks to be rows of it.

Asked by `sidecache sql install` before it makes functions, and by `sidecache check --database`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from proxy.plans import Locking, qualified


class _Kind(NamedTuple):
    """Which types a column may have."""

    wanted: str  # in words, the first of them the best
    categories: str  # of pg_type.typcategory: S text, E enum
    types: frozenset[str] = frozenset()  # as SQL has them


_TEXT = _Kind("text or varchar", "S")
_STATUS = _Kind("text, varchar or an enum", "SE")
_TIME = _Kind("timestamptz", "", frozenset({"timestamp with time zone"}))
_NUMBER = _Kind("bigint", "", frozenset({"bigint", "integer", "numeric"}))

# What the functions read and write of a table, beside the columns of the key.
COLUMNS: Mapping[str, _Kind] = {
    "status": _STATUS, "locked_by": _TEXT, "locked_at": _TIME, "locked_until": _TIME,
    "lock_token": _NUMBER, "booking_id": _TEXT, "session_id": _TEXT, "updated_at": _TIME,
}  # fmt: skip

# What a row says that nobody holds, and one that somebody does.
_STATES = ("available", "locked")

# All as text: whoever connects may have codecs of its own. Of a domain the type below.
_TYPES = """
SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS said,
       format_type(below.oid, NULL) AS type, t.typcategory::text AS category,
       (SELECT string_agg(enumlabel, E'\\n') FROM pg_enum WHERE enumtypid = below.oid) AS labels
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  CROSS JOIN LATERAL (SELECT coalesce(nullif(t.typbasetype, 0), t.oid) AS oid) AS below
 WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped"""


async def mistakes(connection: Any, locking: Locking, timeout: float) -> Sequence[str]:
    """Return what is wrong with the columns of a table of locks; nothing where they fit.

    Timeout: seconds.
    """
    if locking.table is None:
        return ()
    rows = await connection.fetch(_TYPES, qualified(locking.table), timeout=timeout)
    if not rows:
        return (f'there is no table "{locking.table}"',)
    there = {row["name"]: row for row in rows}
    missing = [name for name in (*locking.columns, *COLUMNS) if name not in there]
    found = [
        f'the table "{locking.table}" has no column "{name}", which locks need; '
        f"it has: {', '.join(there)}"
        for name in missing
    ]
    for name, kind in COLUMNS.items():
        row = there.get(name)
        if row is None or row["category"] in kind.categories or row["type"] in kind.types:
            continue
        found.append(
            f'the column "{name}" of the table "{locking.table}" is of type {row["said"]}, with '
            f"which no lock can be taken: it has to be {kind.wanted}"
        )
    return found + _unsaid(locking.table, there.get("status"))


def _unsaid(table: str, status: Any) -> list[str]:
    """Return which state of a lock a column cannot say."""
    if status is None or status["labels"] is None:
        return []
    return [
        f'the column "status" of the table "{table}" is of type {status["said"]}, which lacks the '
        f"label '{state}'"
        for state in _STATES
        if state not in status["labels"].split("\n")
    ]
