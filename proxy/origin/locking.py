"""What decides who holds a lock: functions in the database, one set per keyspace of kind lock.

`sidecache sql install` puts them there; `handlers.grants` calls them, `control.expiry` sweeps. What
each of them does stands beside its text in `lock_functions`. A call is one round trip, and all that
a function decides happens in one transaction.

The table of the application has one row per lock and, beside the columns of the key, those of
`lock_tables`. Locks that no table has are rows of `sidecache_locks`.

Always true:
  * a lock that is held and has not expired is granted to nobody else, and every new grant of it has
    a greater token than all before: the row is locked before the clock is read;
  * expiry is a predicate by the database's clock, so a sweep that is late delays nobody;
  * no two callers wait for each other: an owner's number is locked before rows, rows before places
    in queues, each in order. Who joins a queue changes its own place, and a sweep waits for nobody;
  * a free lock is kept for the first who waits and has room for it, then for the next;
  * what is refused because somebody holds it is refused without a row lock, however many ask;
  * of a keyspace there is one set of functions. Their names end with the mark of the policies that
    they were made from: who has other policies calls what is not there, and is granted nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from proxy.origin import lock_functions, lock_rules
from proxy.plans import (
    OWN_LOCKS,
    SQL_TYPES,
    Plan,
    lock_function,
    marked_function,
    qualified,
    quoted,
)

# How many expired locks, dead waiters and unused rows one sweep takes at most.
SWEPT = 1000

# Most who wait for one lock. Who comes behind them waits for hours, and is told so at once.
LONGEST_QUEUE = 1000

TABLES = """\
-- Fencing tokens: a later grant of a lock has a greater one.
CREATE SEQUENCE IF NOT EXISTS {schema}.sidecache_lock_token AS bigint;
-- Locks that no table of the application has.
CREATE TABLE IF NOT EXISTS {schema}.sidecache_locks (
    keyspace     text NOT NULL,
    name         text NOT NULL,       -- the client's key
    status       text NOT NULL DEFAULT 'available',
    locked_by    text,
    locked_at    timestamptz,
    locked_until timestamptz,
    lock_token   bigint,
    booking_id   text,
    session_id   text,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    scope        text,                -- within which locks of one owner are counted
    value        text,                -- as the owner has written it
    PRIMARY KEY (keyspace, name)
);
CREATE INDEX IF NOT EXISTS sidecache_locks_held ON {schema}.sidecache_locks
    (keyspace, scope, locked_by) WHERE status = 'locked';
CREATE INDEX IF NOT EXISTS sidecache_locks_ending ON {schema}.sidecache_locks
    (keyspace, status, locked_until);
-- Who waits for a lock, in order. Absolute times for each: no waiter's depends on another's.
CREATE TABLE IF NOT EXISTS {schema}.sidecache_lock_queue (
    keyspace      text NOT NULL,
    name          text[] NOT NULL,    -- the columns of the lock's key
    owner         text NOT NULL,
    scope         text,               -- within which locks of one owner are counted
    pos           bigint GENERATED ALWAYS AS IDENTITY,
    expires_at    timestamptz NOT NULL,
    offered_until timestamptz,
    PRIMARY KEY (keyspace, name, owner)
);
ALTER TABLE {schema}.sidecache_lock_queue ADD COLUMN IF NOT EXISTS scope text;
CREATE INDEX IF NOT EXISTS sidecache_lock_queue_offers ON {schema}.sidecache_lock_queue
    (keyspace, owner, scope) WHERE offered_until IS NOT NULL;
CREATE INDEX IF NOT EXISTS sidecache_lock_queue_order ON {schema}.sidecache_lock_queue
    (keyspace, name, pos);"""

# The mark is left out where an earlier version knew of none.
_DROPPED = """\
DO $sidecache$
DECLARE
    _function regprocedure;
BEGIN
    FOR _function IN
        SELECT oid::regprocedure FROM pg_proc
         WHERE pronamespace = '{schema}'::regnamespace AND proname ~ '^{name}(_[0-9a-f]{{8}})?$'
    LOOP
        EXECUTE 'DROP ROUTINE ' || _function::text;
    END LOOP;
END $sidecache$;"""

NAMES = ("locks", "lock_queue")  # of these tables, without the prefix


class Table(NamedTuple):
    """Where the locks of a keyspace are, quoted."""

    name: str
    columns: tuple[tuple[str, str], ...]  # of the key, each with its SQL type
    scope: tuple[str, str] | None  # the column within which an owner's locks are counted
    only: str  # what picks the keyspace's rows, as a condition on t


def table_of(plan: Plan, schema: str, tables: Mapping[str, str] | None = None) -> Table:
    """Return where the locks of a plan are; tables: qualified and quoted names, where known."""
    locking = plan.locking
    assert locking is not None
    if locking.table is None:
        only = f"t.keyspace = '{plan.name}' AND "
        scope = ("scope", "text") if locking.most else None
        return Table(f"{schema}.{OWN_LOCKS}", (("name", "text"),), scope, only)
    kinds = [SQL_TYPES[segment.kind] for segment in plan.segments]
    columns = tuple(zip(map(quoted, locking.columns), kinds, strict=True))
    known = (tables or {}).get(locking.table)
    name = known or qualified(locking.table)
    return Table(name, columns, columns[locking.scope] if locking.most else None, "")


def functions(plan: Plan, schema: str, tables: Mapping[str, str] | None = None) -> Iterable[str]:
    """Yield the SQL that makes the functions of a keyspace, and takes away all others of it."""
    yield from dropped(plan, schema)
    yield from _made(plan, schema, tables)
    yield f"COMMENT ON FUNCTION {schema}.{quoted(named('take', plan))} IS '{digest(plan)}';"


def named(verb: str, plan: Plan) -> str:
    """Return the name of a function about the locks of a plan."""
    assert plan.locking is not None
    return marked_function(verb, plan.name, plan.locking.mark)


def digest(plan: Plan) -> str:
    """Return what tells the functions of a keyspace, which say so, from those of another text."""
    return hashlib.sha256("\n".join(_made(plan, "sidecache", None)).encode()).hexdigest()[:16]


def _made(plan: Plan, schema: str, tables: Mapping[str, str] | None) -> Iterable[str]:
    table = table_of(plan, schema, tables)
    own = plan.locking is not None and plan.locking.table is None
    words = _about(table) | (_of_ours(schema, plan.name) if own else _OF_OTHERS)
    words |= {"schema": schema, "keyspace": plan.name}
    words |= _ruled(words, f"{schema}.{quoted(named('offer', plan))}")
    for verb, text in lock_functions.FUNCTIONS.items():
        function = f"{schema}.{quoted(named(verb, plan))}"
        yield f"CREATE FUNCTION {function}" + text.format_map(words)


def _ruled(words: Mapping[str, str], offer: str) -> dict[str, str]:
    """Return the rules of a keyspace in the words of its table; offer: the function that offers."""
    rules = lock_rules
    plain = {
        "planned": rules.PLANNED, "most_swept": str(SWEPT), "longest_queue": str(LONGEST_QUEUE),
        "offer": offer, "mine": rules.MINE, "free": rules.FREE, "open": rules.OPEN,
        "granting": rules.GRANTING, "remains": rules.REMAINS, "left": rules.LEFT,
        "stamp": rules.STAMP, "waits": rules.WAITS, "offered": rules.OFFERED, "said": rules.SAID,
        "exact": rules.EXACT,
    }  # fmt: skip
    each = f"nextval('{words['schema']}.sidecache_lock_token')"
    granted = {"mine": rules.MINE, "since": rules.SINCE, "kept": words["kept"]}
    return plain | {
        "room": rules.ROOM.format(has=rules.HAS.format_map({**words, **plain})),
        "granted": rules.GRANTED.format(**granted, fresh="fresh.token", longer=" AND NOT _mine"),
        "granted_each": rules.GRANTED.format(**granted, fresh=each, longer=""),
    }


def _about(table: Table) -> dict[str, str]:
    """Return what the functions say of the columns of a table."""
    columns = [name for name, _ in table.columns]
    numbers = range(len(columns))
    return {
        "table": table.name,
        "only": table.only,
        "keys": ", ".join(f"k{n} {kind}[]" for n, (_, kind) in enumerate(table.columns)),
        "arrays": ", ".join(f"k{n}" for n in numbers),
        "columns": ", ".join(f"c{n}" for n in numbers),
        "found": table.only + " AND ".join(f"t.{name} = k.c{n}" for n, name in enumerate(columns)),
        "order": ", ".join(f"t.{name}" for name in columns),
        "name": f"ARRAY[{', '.join(f'k.c{n}::text' for n in numbers)}]",
        "row_name": f"ARRAY[{', '.join(f't.{name}::text' for name in columns)}]",
        "queued": table.only
        + " AND ".join(
            f"t.{name} = q.name[{n}]::{kind}" for n, (name, kind) in enumerate(table.columns, 1)
        ),
        "counted": table.only
        + (f"t.{table.scope[0]} = _place::{table.scope[1]}" if table.scope else "true"),
    }


def _of_ours(schema: str, keyspace: str) -> dict[str, str]:
    """Return what is done beside the rest where locks are rows of `sidecache_locks`."""
    ours = {"schema": schema, "keyspace": keyspace}
    return {
        "made": lock_rules.MADE.format(**ours, conflict=lock_rules.LOCKED),
        "made_free": lock_rules.MADE.format(**ours, conflict="NOTHING"),
        "kept": ", scope = _place, value = coalesce(_said, "
        f"CASE WHEN {lock_rules.MINE} THEN t.value END)",
        "unused": lock_rules.UNUSED.format(**ours, most=SWEPT),
        "absent": "",
    }


# A table of the application has the rows that it has.
_OF_OTHERS = {
    "made": "", "made_free": "", "kept": "", "unused": "", "absent": lock_rules.ABSENT,
}  # fmt: skip


def dropped(plan: Plan, schema: str) -> Iterable[str]:
    """Yield the SQL that takes the functions of a keyspace away, whatever they were made from."""
    name = lock_function(f"({'|'.join(lock_functions.FUNCTIONS)})", plan.name)
    yield _DROPPED.format(schema=schema.replace("'", "''"), name=name)
