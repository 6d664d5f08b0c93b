"""The tables and triggers that sidecache has in the database, as SQL: `sidecache sql install`.

Always true:
  * the SQL is one transaction, and running it again changes nothing but the functions' bodies;
  * objects of ours begin with `sidecache_`; nothing else is touched, other triggers of a watched
    table least of all;
  * names come from the policies and from the catalogue, quoted, never from a client.

A note is one row of `sidecache_outbox` per statement and distinct key, written by the transaction
that changes the rows: whoever commits has noted it, whoever rolls back has not. The functions
belong to whoever installs them (SECURITY DEFINER), so the application needs no rights on our
tables; their names are qualified and their search_path is fixed, so that nobody can put another
table in the way. What goes past the parent of partitions, straight to one of them, and what is
done under session_replication_role = replica fires no trigger of the parent and is not noted.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from proxy.errors import ConfigError, StartError
from proxy.origin import lock_tables, locking
from proxy.plans import Plan, Watch, qualified, quoted

# For everything that the database is asked here, in seconds. CREATE TRIGGER waits for writers of
# its table, and all who come behind it wait for it: better to give up soon and be run again.
TIMEOUT = 30.0
LOCK_TIMEOUT = "5s"

# One plain table, of which the leader deletes what is old, and not partitions by time. Somebody
# would have to make each partition before its time comes; where all sidecars are away for long
# enough nobody does, and then it is the application's own INSERT that fails in the trigger. Old
# rows leave in the order of the index, so deletes are cheap and vacuum finds whole empty pages.
_TABLES = """\
CREATE TABLE IF NOT EXISTS {schema}.sidecache_outbox (
    xid    xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id     bigint GENERATED ALWAYS AS IDENTITY,
    tbl    text NOT NULL,
    op     text NOT NULL,       -- i, u, d, or t: TRUNCATE, all rows
    key    jsonb NOT NULL,      -- column to text
    origin text,                -- keyspace of which the writer has seen to Redis itself
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (xid, id)
);
CREATE INDEX IF NOT EXISTS sidecache_outbox_at ON {schema}.sidecache_outbox USING brin (at)
    WITH (pages_per_range = 8, autosummarize = on);
-- How far each sidecar's journal of writes is carried out, in the transaction that does it.
CREATE TABLE IF NOT EXISTS {schema}.sidecache_write_positions (
    sidecar   text NOT NULL,
    partition integer NOT NULL,
    sequence  bigint NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sidecar, partition)
);
-- Writes that PostgreSQL refuses for good, for a person to look at.
CREATE TABLE IF NOT EXISTS {schema}.sidecache_dead_letters (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    keyspace text NOT NULL,
    key      bytea NOT NULL,
    payload  jsonb NOT NULL,
    sqlstate text NOT NULL,
    error    text NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    sidecar  text NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS sidecache_dead_letters_at ON {schema}.sidecache_dead_letters (at);
-- Where work that outlives its leader has got to.
CREATE TABLE IF NOT EXISTS {schema}.sidecache_progress (
    name  text PRIMARY KEY,
    value jsonb NOT NULL,
    at    timestamptz NOT NULL DEFAULT clock_timestamp()
);"""

TABLES = ("outbox", "write_positions", "dead_letters", "progress", *locking.NAMES)

# Of an UPDATE old and new rows: a row may move from one key to another.
_FUNCTION = """\
CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $sidecache$
DECLARE
    writer text := nullif(current_setting('sidecache.origin', true), '');
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {schema}.sidecache_outbox (tbl, op, key, origin)
        SELECT DISTINCT {table}, 'i', {key}, writer FROM new_rows r;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO {schema}.sidecache_outbox (tbl, op, key, origin)
        SELECT {table}, 'u', {key}, writer FROM new_rows r
        UNION SELECT {table}, 'u', {key}, writer FROM old_rows r;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO {schema}.sidecache_outbox (tbl, op, key, origin)
        SELECT DISTINCT {table}, 'd', {key}, writer FROM old_rows r;
    ELSE
        INSERT INTO {schema}.sidecache_outbox (tbl, op, key, origin)
        VALUES ({table}, 't', '{{}}', writer);
    END IF;
    RETURN NULL;
END $sidecache$;
REVOKE ALL ON FUNCTION {schema}.{function}() FROM PUBLIC;"""

_EVENTS = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "REFERENCING OLD TABLE AS old_rows",
    "truncate": "",
}

# CREATE OR REPLACE TRIGGER came with version 14.
_TRIGGER = """\
DROP TRIGGER IF EXISTS {trigger} ON {on};
CREATE TRIGGER {trigger} AFTER {event} ON {on} {rows}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}();"""

# Where another set of policies has its triggers or its locks, their tables stay: without them every
# write to a table that it watches would fail, and every lock that it grants.
_DROP_TABLES = """\
DO $sidecache$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_proc
         WHERE (proname LIKE 'sidecache\\_note\\_%' OR proname LIKE 'sidecache\\_take\\_%')
           AND pronamespace = {name}::regnamespace
    ) THEN
        DROP TABLE IF EXISTS {tables};
        DROP SEQUENCE IF EXISTS {schema}.sidecache_lock_token;
    END IF;
END $sidecache$;"""


class Place(NamedTuple):
    """Where things are in one database."""

    schema: str = "public"  # of our tables
    tables: Mapping[str, str] = {}  # of a watched table as written: qualified and quoted


# Where nobody can ask the database.
DEFAULT = Place()


def literal(text: str) -> str:
    """Return a text literal; names of files and tables hold no backslash that would matter."""
    return "'" + text.replace("'", "''") + "'"


def note_of(table: str) -> str:
    """Return the name of what notes the changes of a table, given as the policies write it."""
    plain = re.sub(r"[^a-z0-9]+", "_", table.lower())[:30]
    # Two names that differ in what is left out here must not become one.
    digest = "" if plain == table else "_" + hashlib.sha256(table.encode()).hexdigest()[:8]
    return f"sidecache_note_{plain}{digest}"


def install_sql(
    watches: Sequence[Watch], place: Place = DEFAULT, locks: Sequence[Plan] = ()
) -> str:
    """Return the SQL that makes everything there that is not there yet.

    Of the plans given as locks, what decides who holds them.
    """
    schema = quoted(place.schema)
    parts = [_TABLES.format(schema=schema)]
    parts += [part for watch in watches for part in _noted(watch, schema, place)]
    parts += [locking.TABLES.format(schema=schema)] if locks else []
    parts += [part for plan in locks for part in locking.functions(plan, schema, place.tables)]
    return _transaction(parts)


def remove_sql(watches: Sequence[Watch], place: Place = DEFAULT, locks: Sequence[Plan] = ()) -> str:
    """Return the SQL that takes away what the policies have had installed."""
    schema = quoted(place.schema)
    # CASCADE takes the triggers that call it, and nothing else depends on a function.
    parts = [f"DROP FUNCTION IF EXISTS {schema}.{note_of(w.table)}() CASCADE;" for w in watches]
    parts += [part for plan in locks for part in locking.dropped(plan, schema)]
    tables = ", ".join(f"{schema}.sidecache_{name}" for name in TABLES)
    parts.append(_DROP_TABLES.format(name=literal(schema), schema=schema, tables=tables))
    return _transaction(parts)


def _noted(watch: Watch, schema: str, place: Place) -> Iterable[str]:
    function = quoted(note_of(watch.table))
    # As JSON has it, whatever DateStyle the session of the writer has.
    key = ", ".join(
        f"{literal(column)}, to_jsonb(r.{quoted(column)}) #>> '{{}}'" for column, _ in watch.columns
    )
    yield _FUNCTION.format(
        schema=schema, function=function, table=literal(watch.table),
        key=f"jsonb_build_object({key})",
    )  # fmt: skip
    on = place.tables.get(watch.table) or qualified(watch.table)
    for event, rows in _EVENTS.items():
        yield _TRIGGER.format(
            trigger=quoted(f"{note_of(watch.table)}_{event}"), on=on, event=event.upper(),
            rows=rows, schema=schema, function=function,
        )  # fmt: skip


def _transaction(parts: Iterable[str]) -> str:
    body = "\n\n".join(parts)
    return f"BEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n\n{body}\n\nCOMMIT;\n"


async def look(connection: Any, watches: Sequence[Watch]) -> Place:
    """Return where the tables are. Raises ConfigError naming each that is not, by its policy."""
    mistakes: list[str] = []
    tables: dict[str, str] = {}
    schema = await connection.fetchval("SELECT current_schema()::text", timeout=TIMEOUT)
    if schema is None:
        raise ConfigError("no schema of the search_path of this user exists")
    for watch in watches:
        row = await connection.fetchrow(_FIND, watch.table, timeout=TIMEOUT)
        if row is None or row["kind"] not in ("r", "p"):
            what = "there is no table" if row is None else "no triggers fit: it is no table:"
            mistakes.append(f"{watch.place}: {what} {watch.table}")
            continue
        tables[watch.table] = row["name"]
        known = set((row["columns"] or "").split("\n"))
        mistakes += [
            f"{at}: table {watch.table} has no column {column}; it has: {', '.join(sorted(known))}"
            for column, at in watch.columns
            if column not in known
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Place(str(schema), tables)


def _columns(plan: Plan) -> Watch:
    """Return the table of locks with all columns that are needed of it."""
    assert plan.locking is not None
    place = plan.locking.calls.take.place
    columns = (*plan.locking.columns, *lock_tables.COLUMNS)
    return Watch(plan.locking.table or "", tuple((each, place) for each in columns), place)


async def _fit(connection: Any, locks: Sequence[Plan]) -> None:
    """Raise ConfigError where locks cannot be rows of their tables."""
    mistakes = [
        f"{plan.locking.calls.take.place}: {mistake}"
        for plan in locks
        if plan.locking is not None
        for mistake in await lock_tables.mistakes(connection, plan.locking, TIMEOUT)
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


# All as text: whoever connects may have codecs of its own.
_FIND = """
SELECT c.relkind::text AS kind, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
       (SELECT string_agg(attname::text, E'\\n') FROM pg_attribute
         WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass($1::text)"""


async def run(
    url: str,
    watches: Sequence[Watch],
    *,
    apply: bool,
    remove: bool,
    locks: Sequence[Plan] = (),
) -> str:
    """Return the SQL for this database, carried out where apply says so.

    Raises ConfigError for tables and columns that do not exist, StartError where the database
    cannot be reached or refuses.
    """
    try:
        connection = await asyncpg.connect(url, timeout=TIMEOUT)
    except (OSError, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise StartError(f"the database cannot be reached: {error or 'no answer'}") from error
    try:
        tables = [_columns(plan) for plan in locks if plan.locking and plan.locking.table]
        place = await look(connection, () if remove else (*watches, *tables))
        if not remove:
            await _fit(connection, locks)
        text = (remove_sql if remove else install_sql)(watches, place, locks)
        if apply:
            await connection.execute(text, timeout=TIMEOUT)
        return text
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise StartError(f"the database refuses: {error or 'no answer in time'}; nothing was "
                         "changed") from error  # fmt: skip
    finally:
        connection.terminate()


def applied(
    url: str, watches: Sequence[Watch], *, apply: bool, remove: bool, locks: Sequence[Plan] = ()
) -> str:
    """Do as `run` does, from a program that has no loop."""
    return asyncio.run(run(url, watches, apply=apply, remove=remove, locks=locks))
