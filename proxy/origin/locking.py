"""What decides who holds a lock: functions in the database, one set per keyspace of kind lock.

`sidecache sql install` puts them there; `handlers.grants` calls them, `control.expiry` sweeps. A
call is one round trip, and all that a function decides happens in one transaction:

  take      one or several locks, all or none, for a new or the same owner
  release   what an owner holds, by token where it is known; the next in the queue is offered it
  confirm   locked to booked, by owner and token, all or none
  queue     join, keep or leave a place in the queue of a lock
  sweep     what has expired becomes available, who was silent leaves the queue

The table of the application has one row per lock and, beside the columns of the key, those of
COLUMNS. Locks that no table has are rows of `sidecache_locks`.

Always true:
  * a lock that is held and has not expired is granted to nobody else, and every new grant of it has
    a greater token than all before: the row is locked before the clock is read;
  * expiry is a predicate by the database's clock, so a sweep that is late delays nobody;
  * no two callers wait for each other: an owner's number is locked before rows, rows in order;
  * what is refused because somebody holds it is refused without a row lock, however many ask.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from proxy.plans import OWN_LOCKS, SQL_TYPES, Plan, lock_function

# What the functions read and write of a table, beside the columns of the key.
COLUMNS = ("status", "locked_by", "locked_at", "locked_until", "lock_token", "booking_id",
           "session_id", "updated_at")  # fmt: skip

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
    pos           bigint GENERATED ALWAYS AS IDENTITY,
    expires_at    timestamptz NOT NULL,
    offered_until timestamptz,
    PRIMARY KEY (keyspace, name, owner)
);
CREATE INDEX IF NOT EXISTS sidecache_lock_queue_order ON {schema}.sidecache_lock_queue
    (keyspace, name, pos);
-- Keep free locks for who is next, where nobody is offered them yet.
CREATE OR REPLACE FUNCTION {schema}.sidecache_lock_offer(space text, names text[][], seconds float8)
RETURNS void LANGUAGE plpgsql AS $sidecache$
DECLARE
    one text[];
BEGIN
    IF names IS NULL THEN
        RETURN;
    END IF;
    FOREACH one SLICE 1 IN ARRAY names LOOP
        UPDATE {schema}.sidecache_lock_queue q
           SET offered_until = clock_timestamp() + make_interval(secs => seconds)
         WHERE q.keyspace = space AND q.name = one AND q.offered_until IS NULL AND q.pos = (
               SELECT w.pos FROM {schema}.sidecache_lock_queue w
                WHERE w.keyspace = space AND w.name = one AND w.expires_at > clock_timestamp()
                  AND coalesce(w.offered_until, 'infinity') > clock_timestamp()
                ORDER BY w.pos LIMIT 1);
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
    columns = tuple(zip(map(_quoted, locking.columns), kinds, strict=True))
    known = (tables or {}).get(locking.table)
    name = known or ".".join(map(_quoted, locking.table.split(".")))
    return Table(name, columns, columns[locking.scope] if locking.most else None, "")


def functions(plan: Plan, schema: str, tables: Mapping[str, str] | None = None) -> Iterable[str]:
    """Yield the SQL that makes the functions of a keyspace."""
    table = table_of(plan, schema, tables)
    own = plan.locking is not None and plan.locking.table is None
    columns = [name for name, _ in table.columns]
    words = {
        "schema": schema,
        "table": table.name,
        "keyspace": plan.name,
        "only": table.only,
        "keys": ", ".join(f"k{n} {kind}[]" for n, (_, kind) in enumerate(table.columns)),
        "arrays": ", ".join(f"k{n}" for n in range(len(columns))),
        "columns": ", ".join(f"c{n}" for n in range(len(columns))),
        "found": table.only + " AND ".join(f"t.{name} = k.c{n}" for n, name in enumerate(columns)),
        "order": ", ".join(f"t.{name}" for name in columns),
        "name": f"ARRAY[{', '.join(f'k.c{n}::text' for n in range(len(columns)))}]",
        "row_name": f"ARRAY[{', '.join(f't.{name}::text' for name in columns)}]",
        "queued": table.only
        + " AND ".join(
            f"t.{name} = q.name[{n}]::{kind}" for n, (name, kind) in enumerate(table.columns, 1)
        ),
        "counted": f"{table.only}t.{table.scope[0]} = place::{table.scope[1]}"
        if table.scope
        else f"{table.only}true",
        "made": _MADE.format(schema=schema, keyspace=plan.name) if own else "",
        "kept": ", scope = place, value = coalesce(said, t.value)" if own else "",
        "unused": _UNUSED.format(schema=schema, keyspace=plan.name, most=SWEPT) if own else "",
        "most_swept": SWEPT,
        "longest_queue": LONGEST_QUEUE,
        "mine": _MINE,
        "open": _OPEN,
    }
    # CREATE OR REPLACE cannot change what a function takes and returns.
    yield from dropped(plan, schema)
    for verb, text in _FUNCTIONS.items():
        function = f"{schema}.{_quoted(lock_function(verb, plan.name))}"
        yield f"CREATE FUNCTION {function}" + text.format_map(words)


def dropped(plan: Plan, schema: str) -> Iterable[str]:
    """Yield the SQL that takes the functions of a keyspace away."""
    for verb in _FUNCTIONS:
        # There is one of each name, whatever it takes.
        name = f"{schema}.{_quoted(lock_function(verb, plan.name))}"
        yield f"DROP ROUTINE IF EXISTS {name};"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Of a row t: whether somebody called who holds it, and whether anybody may take it.
_MINE = "(t.status = 'locked' AND t.locked_by = who AND t.locked_until > moment)"
_OPEN = """(t.status = 'available'
            OR (t.status = 'locked' AND (t.locked_until <= moment OR t.locked_by = who)))"""

# The row of a lock that has none: made, or locked where it is there.
_MADE = """
            INSERT INTO {schema}.sidecache_locks AS l (keyspace, name)
            SELECT '{keyspace}', n FROM unnest(k0) AS n ORDER BY n
                ON CONFLICT (keyspace, name) DO UPDATE SET updated_at = clock_timestamp();"""

_UNUSED = """
    DELETE FROM {schema}.sidecache_locks WHERE ctid IN (
        SELECT ctid FROM {schema}.sidecache_locks
         WHERE keyspace = '{keyspace}' AND status = 'available'
           AND updated_at < clock_timestamp() - interval '1 minute'
         LIMIT {most} FOR UPDATE SKIP LOCKED);"""

# hold, longest: seconds; longest 0: no bound. most 0: no limit. fair: who waits goes first.
# mine: only what who holds already. Of what is not said (NULL) the row keeps what it has.
_TAKE = """({keys}, who text, booking text, session text, said text,
    hold float8, longest float8, place text, most integer, fair boolean, mine boolean)
RETURNS TABLE (outcome text, tokens bigint[], lefts float8[], holder text, ahead bigint)
LANGUAGE plpgsql AS $sidecache$
#variable_conflict use_column
DECLARE
    moment timestamptz;
    other record;
    many bigint;
BEGIN
    -- First without locks: most who ask for what others want are turned away here.
    FOR look IN 1..2 LOOP
        moment := clock_timestamp();
        SELECT t.status, t.locked_by, extract(epoch FROM t.locked_until - moment)::float8 AS remains
          INTO other
          FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
         WHERE NOT ({mine} OR (NOT mine AND {open}))
         ORDER BY {order} LIMIT 1;
        IF FOUND THEN
            IF other.status = 'locked' AND other.remains > 0 THEN
                RETURN QUERY SELECT 'held', NULL::bigint[], ARRAY[other.remains],
                                    other.locked_by::text, 0::bigint;
            ELSE
                RETURN QUERY SELECT CASE WHEN other.status IN ('locked', 'available') THEN 'lost'
                                         ELSE other.status::text END, NULL::bigint[],
                                    NULL::float8[], other.locked_by::text, 0::bigint;
            END IF;
            RETURN;
        END IF;
        IF look = 1 THEN
            IF most > 0 THEN
                PERFORM pg_advisory_xact_lock(hashtextextended(
                    '{keyspace}:' || place || ':' || who, 0));
            END IF;{made}
            PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
              ORDER BY {order} FOR UPDATE OF t;
            GET DIAGNOSTICS many = ROW_COUNT;
            IF many < cardinality(k0) THEN
                RETURN QUERY SELECT 'missing', NULL::bigint[], NULL::float8[], NULL::text,
                                    0::bigint;
                RETURN;
            END IF;
        END IF;
    END LOOP;
    IF fair AND NOT mine THEN
        SELECT count(*) INTO many
          FROM unnest({arrays}) AS k({columns})
          JOIN {table} t ON {found}
          JOIN {schema}.sidecache_lock_queue q ON q.keyspace = '{keyspace}' AND q.name = {name}
          LEFT JOIN {schema}.sidecache_lock_queue me
            ON me.keyspace = q.keyspace AND me.name = q.name AND me.owner = who
           AND me.expires_at > moment AND coalesce(me.offered_until, 'infinity') > moment
         WHERE q.owner <> who AND q.expires_at > moment
           AND coalesce(q.offered_until, 'infinity') > moment
           AND (me.pos IS NULL OR q.pos < me.pos) AND NOT {mine};
        IF many > 0 THEN
            RETURN QUERY SELECT 'queue', NULL::bigint[], NULL::float8[], NULL::text, many;
            RETURN;
        END IF;
    END IF;
    IF most > 0 AND NOT mine THEN
        SELECT count(*) INTO many FROM {table} t
         WHERE {counted} AND {mine}
           AND NOT EXISTS (SELECT FROM unnest({arrays}) AS k({columns}) WHERE {found});
        IF many + cardinality(k0) > most THEN
            RETURN QUERY SELECT 'limit', NULL::bigint[], NULL::float8[], NULL::text, many;
            RETURN;
        END IF;
    END IF;
    IF fair THEN
        DELETE FROM {schema}.sidecache_lock_queue q USING unnest({arrays}) AS k({columns})
         WHERE q.keyspace = '{keyspace}' AND q.name = {name} AND q.owner = who;
    END IF;
    RETURN QUERY
    WITH fresh AS (SELECT nextval('{schema}.sidecache_lock_token') AS token),
    changed AS (
        UPDATE {table} t
           SET status = 'locked', locked_by = who,
               booking_id = coalesce(booking, CASE WHEN {mine} THEN t.booking_id END),
               session_id = coalesce(session, CASE WHEN {mine} THEN t.session_id END),
               -- The application may have given out tokens of its own, or locks without one.
               lock_token = coalesce(CASE WHEN {mine} THEN t.lock_token END,
                                     greatest(fresh.token, t.lock_token + 1)),
               locked_at = CASE WHEN {mine} THEN t.locked_at ELSE moment END,
               locked_until = least(
                   moment + make_interval(secs => hold),
                   CASE WHEN longest > 0
                        THEN CASE WHEN {mine} THEN t.locked_at ELSE moment END
                             + make_interval(secs => longest) END),
               updated_at = moment{kept}
          FROM fresh, unnest({arrays}) WITH ORDINALITY AS k({columns}, n)
         WHERE {found}
     RETURNING k.n, t.lock_token, t.locked_at < moment AS longer,
               extract(epoch FROM t.locked_until - clock_timestamp())::float8 AS remains)
    SELECT CASE WHEN bool_and(longer) THEN 'extended' ELSE 'acquired' END,
           array_agg(lock_token::bigint ORDER BY n), array_agg(remains ORDER BY n),
           who, 0::bigint
      FROM changed;
END $sidecache$;"""

# Who NULL or token NULL: whoever, whichever.
_RELEASE = """({keys}, who text, token bigint, offer float8)
RETURNS TABLE (numbers bigint[], tokens bigint[])
LANGUAGE plpgsql AS $sidecache$
#variable_conflict use_column
DECLARE
    names text[][];
BEGIN
    PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
      ORDER BY {order} FOR UPDATE OF t;
    WITH freed AS (
        UPDATE {table} t
           SET status = 'available', locked_by = NULL, locked_at = NULL, locked_until = NULL,
               booking_id = NULL, session_id = NULL, updated_at = clock_timestamp()
          FROM unnest({arrays}) WITH ORDINALITY AS k({columns}, n)
         WHERE {found} AND t.status = 'locked' AND t.locked_until > clock_timestamp()
           AND (who IS NULL OR t.locked_by = who) AND (token IS NULL OR t.lock_token = token)
     RETURNING k.n, t.lock_token, {row_name} AS name)
    SELECT array_agg(n ORDER BY n), array_agg(coalesce(lock_token, 0)::bigint ORDER BY n),
           array_agg(name ORDER BY n)
      INTO numbers, tokens, names FROM freed;
    IF offer > 0 AND names IS NOT NULL THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', names, offer);
    END IF;
    RETURN NEXT;
END $sidecache$;"""

# To confirm again what is confirmed succeeds: whoever lost the answer asks again.
_CONFIRM = """({keys}, who text, held bigint[], booking text)
RETURNS TABLE (outcome text)
LANGUAGE plpgsql AS $sidecache$
#variable_conflict use_column
DECLARE
    many bigint;
    again bigint;
BEGIN
    PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
      ORDER BY {order} FOR UPDATE OF t;
    SELECT count(*) FILTER (WHERE t.status = 'locked' AND t.locked_until > clock_timestamp()),
           count(*) FILTER (WHERE t.status = 'booked' AND t.booking_id IS NOT DISTINCT FROM booking)
      INTO many, again
      FROM unnest({arrays}, held) AS k({columns}, token) JOIN {table} t ON {found}
     WHERE t.locked_by = who AND t.lock_token = k.token;
    IF again = cardinality(k0) THEN
        RETURN QUERY SELECT 'confirmed';
        RETURN;
    END IF;
    IF many < cardinality(k0) THEN
        RETURN QUERY SELECT 'lost';
        RETURN;
    END IF;
    UPDATE {table} t
       SET status = 'booked', booking_id = coalesce(booking, t.booking_id), locked_at = NULL,
           locked_until = NULL, updated_at = clock_timestamp()
      FROM unnest({arrays}) AS k({columns}) WHERE {found};
    RETURN QUERY SELECT 'confirmed';
END $sidecache$;"""

# One lock. Who was silent for too long, or let an offer pass, begins again at the end.
_QUEUE = """({keys}, who text, heartbeat float8, offer float8, leaving boolean)
RETURNS TABLE (outcome text, place bigint, waits float8, offered float8)
LANGUAGE plpgsql AS $sidecache$
#variable_conflict use_column
DECLARE
    moment timestamptz := clock_timestamp();
    id text[];
    lock record;
    own record;
BEGIN
    SELECT {name} INTO id FROM unnest({arrays}) AS k({columns});
    DELETE FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = id AND q.owner = who
       AND (leaving OR q.expires_at <= moment OR q.offered_until <= moment);
    IF leaving THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', ARRAY[id], offer)
           FROM unnest({arrays}) AS k({columns})
          WHERE NOT EXISTS (SELECT FROM {table} t WHERE {found} AND NOT
                            (t.status = 'available'
                             OR (t.status = 'locked' AND t.locked_until <= moment)));
        RETURN QUERY SELECT 'left', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    SELECT t.status::text AS status, t.locked_by::text AS holder,
           greatest(0, extract(epoch FROM t.locked_until - moment))::float8 AS remains INTO lock
      FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found};
    IF FOUND AND lock.status NOT IN ('available', 'locked') THEN
        RETURN QUERY SELECT lock.status, 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    IF lock.holder = who AND lock.remains > 0 THEN
        RETURN QUERY SELECT 'holder', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    INSERT INTO {schema}.sidecache_lock_queue AS q (keyspace, name, owner, expires_at)
    SELECT '{keyspace}', id, who, moment + make_interval(secs => heartbeat)
     WHERE (SELECT count(*) FROM (SELECT FROM {schema}.sidecache_lock_queue w
             WHERE w.keyspace = '{keyspace}' AND w.name = id AND w.owner <> who
             LIMIT {longest_queue}) AS others) < {longest_queue}
        ON CONFLICT (keyspace, name, owner) DO UPDATE SET expires_at = excluded.expires_at;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'full', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    IF coalesce(lock.remains, 0) = 0 THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', ARRAY[id], offer);
    END IF;
    SELECT q.pos, q.offered_until INTO own FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = id AND q.owner = who;
    RETURN QUERY
    SELECT CASE WHEN own.offered_until > moment THEN 'offered' ELSE 'waiting' END, 1 + count(*),
           coalesce(lock.remains, 0) + offer * count(*),
           coalesce(extract(epoch FROM own.offered_until - moment), 0)::float8
      FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = id AND q.pos < own.pos
       AND q.expires_at > moment AND coalesce(q.offered_until, 'infinity') > moment;
END $sidecache$;"""

_SWEEP = """(offer float8)
RETURNS TABLE (name text[], token bigint)
LANGUAGE plpgsql AS $sidecache$
#variable_conflict use_column
BEGIN
    DELETE FROM {schema}.sidecache_lock_queue WHERE ctid IN (
        SELECT ctid FROM {schema}.sidecache_lock_queue
         WHERE keyspace = '{keyspace}'
           AND (expires_at <= clock_timestamp() OR offered_until <= clock_timestamp())
         LIMIT {most_swept} FOR UPDATE SKIP LOCKED);{unused}
    RETURN QUERY
    UPDATE {table} t
       SET status = 'available', locked_by = NULL, locked_at = NULL, locked_until = NULL,
           booking_id = NULL, session_id = NULL, updated_at = clock_timestamp()
     WHERE t.ctid IN (
           SELECT t.ctid FROM {table} t
            WHERE {only}t.status = 'locked' AND t.locked_until <= clock_timestamp()
            ORDER BY t.locked_until LIMIT {most_swept} FOR UPDATE SKIP LOCKED)
 RETURNING {row_name}, coalesce(t.lock_token, 0)::bigint;
    IF offer > 0 THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', (
            SELECT array_agg(DISTINCT q.name) FROM {schema}.sidecache_lock_queue q
             WHERE q.keyspace = '{keyspace}' AND NOT EXISTS (
                   SELECT FROM {table} t WHERE {queued} AND t.status <> 'available')), offer);
    END IF;
END $sidecache$;"""

_FUNCTIONS = {
    "take": _TAKE,
    "release": _RELEASE,
    "confirm": _CONFIRM,
    "queue": _QUEUE,
    "sweep": _SWEEP,
}
