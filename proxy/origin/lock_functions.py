"""The text of the functions that decide who holds a lock; `locking` puts in where the rows are.

What each of them does, and what is always true, stands there; `lock_rules` has what they share, and
`lock_queues` those about who waits and what is over.

Locks are called k, with the columns of their keys; rows t, waiters q.
"""

from proxy.origin import lock_queues

# One or several locks, all or none, for a new or the same owner.
# hold, longest: seconds; longest 0: no bound. most 0: no limit. offer: seconds for which a free
# lock is kept for who waits; 0: no queue. mine: only what who holds already, by that token where
# there is one. same: who holds a lock may take it. Of what is not said (NULL) the row keeps what it
# has. lefts: of what another holds or is offered, that one's. has: how many locks who has. fresh:
# which of the locks nobody held, from 1. stamps: of the grants, for `release`.
_TAKE = """({keys}, _who text, _booking text, _session text, _said text,
    _hold float8, _longest float8, _place text, _most integer, _offer float8, _mine boolean,
    _token bigint, _same boolean)
RETURNS TABLE (outcome text, tokens bigint[], lefts float8[], holder text, has bigint,
               fresh bigint[], stamps text[])
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz;
    _other record;
    _many bigint;
BEGIN{exact}
    has := 0;
    -- First without locks: most who ask for what others want are turned away here.
    FOR _look IN 1..2 LOOP
        _moment := clock_timestamp();
        SELECT {said} AS status, t.locked_by, {remains} AS remains INTO _other
          FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
         WHERE {granting} IS NOT TRUE
         ORDER BY {order} LIMIT 1;
        IF FOUND THEN
            holder := _other.locked_by::text;
            IF _other.remains > 0 THEN
                outcome := 'held';
                lefts := ARRAY[_other.remains];
            ELSE
                outcome := CASE WHEN _other.status IN ('locked', 'available') THEN 'lost'
                                ELSE _other.status END;
            END IF;
            RETURN NEXT;
            RETURN;
        END IF;
        IF _offer > 0 AND NOT _mine THEN
            IF _look = 2 THEN
                -- Before anybody is granted what is free, it is kept for who waits.
                PERFORM {offer}((
                    SELECT array_agg({name} ORDER BY {name})
                      FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
                     WHERE {free} AND EXISTS (SELECT FROM {schema}.sidecache_lock_queue q
                           WHERE q.keyspace = '{keyspace}' AND q.name = {name})), _offer, _most);
            END IF;
            SELECT q.owner, extract(epoch FROM q.offered_until - _moment)::float8 AS remains
              INTO _other
              FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
              JOIN {schema}.sidecache_lock_queue q ON q.keyspace = '{keyspace}' AND q.name = {name}
             WHERE q.owner <> _who AND {offered} AND {free}
               AND NOT EXISTS (SELECT FROM {schema}.sidecache_lock_queue me
                   WHERE me.keyspace = '{keyspace}' AND me.name = q.name AND me.owner = _who
                     AND me.expires_at > _moment AND me.offered_until > _moment
                     AND me.pos < q.pos)
             ORDER BY {order}, q.pos LIMIT 1;
            IF FOUND THEN
                outcome := 'queue';
                holder := _other.owner;
                lefts := ARRAY[_other.remains];
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        IF _look = 1 THEN
            IF _most > 0 THEN
                PERFORM pg_advisory_xact_lock(hashtextextended(
                    '{keyspace}:' || _place || ':' || _who, 0));
            END IF;{made}
            PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
              ORDER BY {order} FOR UPDATE OF t;
            GET DIAGNOSTICS _many = ROW_COUNT;
            IF _many < cardinality(k0) THEN
                outcome := 'missing';
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
    END LOOP;
    IF _most > 0 AND NOT _mine THEN
        -- What is asked for is not counted twice: neither what is held nor what is offered. Two
        -- releases at once may offer more than there is room for: who has an offer comes first.
        has := (SELECT count(*) FROM {table} t
                 WHERE {counted} AND {mine}
                   AND NOT EXISTS (SELECT FROM unnest({arrays}) AS k({columns}) WHERE {found}))
             + (SELECT CASE WHEN count(*) FILTER (WHERE asked) = cardinality(k0) THEN 0
                            ELSE count(*) FILTER (WHERE NOT asked) END
                  FROM (SELECT q.name = ANY (SELECT {name} FROM unnest({arrays}) AS k({columns}))
                               AS asked
                          FROM {schema}.sidecache_lock_queue q
                         WHERE q.keyspace = '{keyspace}' AND q.owner = _who AND q.scope = _place
                           AND {offered}) AS kept);
        IF has + cardinality(k0) > _most THEN
            -- What is kept for who has no room for it is kept for the next.
            DELETE FROM {schema}.sidecache_lock_queue q USING unnest({arrays}) AS k({columns})
             WHERE q.keyspace = '{keyspace}' AND q.name = {name} AND q.owner = _who AND {offered};
            IF FOUND THEN
                PERFORM {offer}((SELECT array_agg({name} ORDER BY {name})
                                   FROM unnest({arrays}) AS k({columns})), _offer, _most);
            END IF;
            outcome := 'limit';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    IF _offer > 0 THEN
        DELETE FROM {schema}.sidecache_lock_queue q USING unnest({arrays}) AS k({columns})
         WHERE q.keyspace = '{keyspace}' AND q.name = {name} AND q.owner = _who;
    END IF;
    WITH fresh AS (SELECT nextval('{schema}.sidecache_lock_token') AS token),
    changed AS (
        UPDATE {table} t
           {granted}
          FROM fresh, unnest({arrays}) WITH ORDINALITY AS k({columns}, n)
         WHERE {found} AND {granting}
     RETURNING k.n, t.lock_token, t.locked_at < _moment AS longer, {stamp} AS stamp, {left})
    SELECT CASE WHEN bool_and(longer) THEN 'extended' ELSE 'acquired' END,
           array_agg(lock_token::bigint ORDER BY n), array_agg(remains ORDER BY n),
           _who, 0::bigint, array_agg(n) FILTER (WHERE NOT longer), array_agg(stamp ORDER BY n)
      INTO outcome, tokens, lefts, holder, has, fresh, stamps
      FROM changed;
    IF cardinality(tokens) IS DISTINCT FROM cardinality(k0) THEN
        RAISE EXCEPTION 'a lock of {keyspace} is not one row of its table';
    END IF;
    RETURN NEXT;
END $sidecache$;"""

# Of locks that different owners want, each for itself: those that nobody is in the way of, not even
# a waiter. What another transaction has in hand is left out like what is held, so of rows this
# waits for nobody; but where a lock that no table has is asked for by two in the same moment, for
# the one who makes its row.
_GRAB = """({keys}, _who text[], _booking text[], _session text[], _said text[], _hold float8[],
    _same boolean[], _longest float8, _place text[], _most integer, _offer float8)
RETURNS TABLE (numbers bigint[], outcomes text[], tokens bigint[], lefts float8[], stamps text[])
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
    _free bigint[];
BEGIN{exact}{made_free}
    _free := (SELECT array_agg(n) FROM (
        SELECT k.n
          FROM unnest({arrays}, _who, _session, _same, _place) WITH ORDINALITY
               AS k({columns}, _who, _session, _same, _place, n)
          JOIN {table} t ON {found}
         WHERE CASE WHEN {open} IS NOT TRUE THEN false
                    WHEN _most = 0 THEN true
                    ELSE pg_try_advisory_xact_lock(hashtextextended(
                        '{keyspace}:' || k._place || ':' || k._who, 0)) END
           FOR UPDATE OF t SKIP LOCKED) AS free);
    _moment := clock_timestamp();
    WITH changed AS (
        UPDATE {table} t
           {granted_each}
          FROM unnest({arrays}, _who, _booking, _session, _said, _hold, _same, _place)
               WITH ORDINALITY
               AS k({columns}, _who, _booking, _session, _said, _hold, _same, _place, n)
         WHERE {found} AND k.n = ANY (_free) AND {open}
           AND ({room} OR {mine})
           AND NOT (_offer > 0 AND EXISTS (
               SELECT FROM {schema}.sidecache_lock_queue q
                WHERE q.keyspace = '{keyspace}' AND q.name = {row_name}))
     RETURNING k.n, t.lock_token,
               CASE WHEN t.locked_at < _moment THEN 'extended' ELSE 'acquired' END AS outcome,
               {stamp} AS stamp, {left})
    SELECT array_agg(n), array_agg(outcome), array_agg(lock_token::bigint), array_agg(remains),
           array_agg(stamp)
      INTO numbers, outcomes, tokens, lefts, stamps FROM changed;
    RETURN NEXT;
END $sidecache$;"""

# What is given up is offered to the next in its queue. Each lock has an owner, a token and a stamp;
# NULL: whoever, whichever. Patient: other transactions are waited for; otherwise what they have in
# hand is left out of `looked`, and nothing is said of it.
_RELEASE = """({keys}, _who text[], _held bigint[], _stamp text[], _offer float8, _most integer,
    _patient boolean)
RETURNS TABLE (numbers bigint[], tokens bigint[], looked bigint[])
{planned}
#variable_conflict use_column
DECLARE
    _names text[][];
BEGIN
    IF _patient THEN
        PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
          ORDER BY {order} FOR UPDATE OF t;
        looked := (SELECT array_agg(n) FROM generate_series(1, cardinality(k0)) AS n);
    ELSE
        looked := (SELECT array_agg(n) FROM (
            SELECT k.n FROM unnest({arrays}) WITH ORDINALITY AS k({columns}, n)
              JOIN {table} t ON {found} FOR UPDATE OF t SKIP LOCKED) AS free);
    END IF;
    WITH freed AS (
        UPDATE {table} t
           SET status = 'available', locked_by = NULL, locked_at = NULL, locked_until = NULL,
               booking_id = NULL, session_id = NULL, updated_at = clock_timestamp()
          FROM unnest({arrays}, _who, _held, _stamp) WITH ORDINALITY
               AS k({columns}, who, token, stamp, n)
         WHERE {found} AND k.n = ANY (looked)
           AND t.status = 'locked' AND t.locked_until > clock_timestamp()
           AND (k.who IS NULL OR t.locked_by = k.who)
           AND (k.token IS NULL OR t.lock_token = k.token)
           AND (k.stamp IS NULL OR {stamp} = k.stamp)
     RETURNING k.n, t.lock_token, {row_name} AS name)
    SELECT array_agg(n ORDER BY n), array_agg(coalesce(lock_token, 0)::bigint ORDER BY n),
           array_agg(name ORDER BY name) FILTER (WHERE _offer > 0 AND EXISTS (
               SELECT FROM {schema}.sidecache_lock_queue q
                WHERE q.keyspace = '{keyspace}' AND q.name = freed.name))
      INTO numbers, tokens, _names FROM freed;
    IF _names IS NOT NULL THEN
        PERFORM {offer}(_names, _offer, _most);
    END IF;
    RETURN NEXT;
END $sidecache$;"""

# Locked to booked, by owner and token, all or none. To confirm again what is confirmed succeeds:
# whoever lost the answer asks again.
_CONFIRM = """({keys}, _who text, _held bigint[], _booking text)
RETURNS TABLE (outcome text)
{planned}
#variable_conflict use_column
DECLARE
    _many bigint;
    _again bigint;
BEGIN
    PERFORM 1 FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
      ORDER BY {order} FOR UPDATE OF t;
    SELECT count(*) FILTER (WHERE t.status = 'locked' AND t.locked_until > clock_timestamp()),
           -- Who sells by SQL may leave what the lock has said; but its deadline only with it.
           count(*) FILTER (
               WHERE t.status = 'booked' AND t.booking_id IS NOT DISTINCT FROM _booking
                 AND t.locked_until IS NULL)
      INTO _many, _again
      FROM unnest({arrays}, _held) AS k({columns}, token) JOIN {table} t ON {found}
     WHERE t.locked_by = _who AND t.lock_token = k.token;
    IF _again = cardinality(k0) THEN
        RETURN QUERY SELECT 'confirmed';
        RETURN;
    END IF;
    IF _many < cardinality(k0) THEN
        RETURN QUERY SELECT 'lost';
        RETURN;
    END IF;
    UPDATE {table} t
       SET status = 'booked', booking_id = coalesce(_booking, t.booking_id), locked_at = NULL,
           locked_until = NULL, updated_at = clock_timestamp()
      FROM unnest({arrays}) AS k({columns}) WHERE {found};
    RETURN QUERY SELECT 'confirmed';
END $sidecache$;"""

FUNCTIONS = {
    "take": _TAKE,
    "grab": _GRAB,
    "release": _RELEASE,
    "confirm": _CONFIRM,
    "offer": lock_queues.OFFER,
    "queue": lock_queues.QUEUE,
    "sweep": lock_queues.SWEEP,
}
