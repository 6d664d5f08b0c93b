"""The text of the functions that decide who holds a lock; `locking` puts in where the rows are.

What each of them does, and what is always true, stands there; `lock_rules` has what they share.

Locks are called k, with the columns of their keys; rows t, waiters q.
"""

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
BEGIN
    has := 0;
    -- First without locks: most who ask for what others want are turned away here.
    FOR _look IN 1..2 LOOP
        _moment := clock_timestamp();
        SELECT coalesce(t.status::text, 'unknown') AS status, t.locked_by, {remains} AS remains
          INTO _other
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
BEGIN{made_free}
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
           count(*) FILTER (
               WHERE t.status = 'booked' AND t.booking_id IS NOT DISTINCT FROM _booking)
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

# Keep free locks, each for who is next and has room for it, unless it is kept for somebody.
# Patient: a place that another transaction has in hand is waited for; otherwise there is no offer.
_OFFER = """(_names text[][], _offer float8, _most integer, _patient boolean DEFAULT true)
RETURNS void
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
    _one text[];
    _next record;
BEGIN
    IF _names IS NULL THEN
        RETURN;
    END IF;
    FOREACH _one SLICE 1 IN ARRAY _names LOOP
        SELECT q.owner, q.offered_until INTO _next
          FROM {schema}.sidecache_lock_queue q,
               LATERAL (SELECT q.owner, q.scope) AS w(_who, _place)
         WHERE q.keyspace = '{keyspace}' AND q.name = _one AND {waits}
           AND (q.offered_until > _moment OR {room})
         ORDER BY q.offered_until NULLS LAST, q.pos LIMIT 1;
        CONTINUE WHEN NOT FOUND OR _next.offered_until IS NOT NULL;
        IF NOT _patient THEN
            PERFORM 1 FROM {schema}.sidecache_lock_queue q
              WHERE q.keyspace = '{keyspace}' AND q.name = _one AND q.owner = _next.owner
                FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
        END IF;
        UPDATE {schema}.sidecache_lock_queue q
           SET offered_until = _moment + make_interval(secs => _offer)
         WHERE q.keyspace = '{keyspace}' AND q.name = _one AND q.owner = _next.owner
           AND q.offered_until IS NULL;
    END LOOP;
END $sidecache$;"""

# One lock. Who was silent for too long, or let an offer pass, begins again at the end; of a lock
# that is free and kept for nobody that is no place at all, as it can be taken. No other's place is
# changed here but by who leaves, and hands on what was kept for it.
_QUEUE = """({keys}, _who text, _place text, _heartbeat float8, _offer float8, _most integer,
    _leaving boolean)
RETURNS TABLE (outcome text, place bigint, waits float8, offered float8)
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
    _id text[];
    _lock record;
    _own record;
    _self text := _who;
    _first boolean;
BEGIN
    place := 0;
    waits := 0;
    offered := 0;
    SELECT {name} INTO _id FROM unnest({arrays}) AS k({columns});
    SELECT coalesce(t.status::text, 'unknown') AS status, t.locked_by::text AS holder,
           greatest(0, {remains}) AS remains, {free} AS free INTO _lock
      FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found};
    IF _leaving THEN
        DELETE FROM {schema}.sidecache_lock_queue q
         WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who
     RETURNING {offered} AS offered INTO _own;
        IF _own.offered AND coalesce(_lock.free, _lock.status IS NULL) THEN
            PERFORM {offer}(ARRAY[_id], _offer, _most);
        END IF;
        outcome := 'left';
        RETURN NEXT;
        RETURN;
    END IF;
{absent}    IF _lock.status NOT IN ('available', 'locked')
       OR (_lock.holder = _who AND _lock.remains > 0) THEN
        outcome := CASE WHEN _lock.status = 'locked' THEN 'holder' ELSE _lock.status END;
        RETURN NEXT;
        RETURN;
    END IF;
    DELETE FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who AND NOT {waits};
    SELECT q.pos INTO _own FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who;
    -- Nobody has it, it is kept for nobody, and nobody who waits for longer has room for it.
    _first := coalesce(_lock.free, _lock.status IS NULL) AND NOT EXISTS (
        SELECT FROM {schema}.sidecache_lock_queue q,
               LATERAL (SELECT q.owner, q.scope) AS w(_who, _place)
         WHERE q.keyspace = '{keyspace}' AND q.name = _id AND {waits}
           AND q.owner <> _self AND (q.offered_until > _moment
               OR (coalesce(q.pos < _own.pos, true) AND {room})));
    IF _first AND _own.pos IS NULL THEN
        outcome := 'available';
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO {schema}.sidecache_lock_queue AS q (keyspace, name, owner, scope, expires_at)
    SELECT '{keyspace}', _id, _who, _place, _moment + make_interval(secs => _heartbeat)
     WHERE (SELECT count(*) FROM (SELECT FROM {schema}.sidecache_lock_queue w
             WHERE w.keyspace = '{keyspace}' AND w.name = _id AND w.owner <> _who
             LIMIT {longest_queue}) AS others) < {longest_queue}
        ON CONFLICT (keyspace, name, owner) DO UPDATE
       SET expires_at = excluded.expires_at,
           offered_until = CASE WHEN q.offered_until IS NULL AND _first AND {room}
                                THEN _moment + make_interval(secs => _offer)
                                ELSE q.offered_until END
 RETURNING q.pos, q.offered_until INTO _own;
    IF NOT FOUND THEN
        outcome := 'full';
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT CASE WHEN _own.offered_until > _moment THEN 'offered' ELSE 'waiting' END, 1 + count(*),
           coalesce(_lock.remains, 0) + _offer * count(*),
           coalesce(extract(epoch FROM _own.offered_until - _moment), 0)::float8
      FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.pos < _own.pos AND {waits};
END $sidecache$;"""

# What has expired becomes available, who was silent leaves the queue, what is free is offered.
# What another transaction has in hand is left to the next sweep: a sweep waits for nobody.
_SWEEP = """(_offer float8, _most integer)
RETURNS TABLE (name text[], token bigint)
{planned}
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
    IF _offer > 0 THEN
        PERFORM {offer}((
            SELECT array_agg(DISTINCT q.name) FROM {schema}.sidecache_lock_queue q
             WHERE q.keyspace = '{keyspace}' AND NOT EXISTS (
                   SELECT FROM {table} t WHERE {queued}
                      AND t.status IS DISTINCT FROM 'available')), _offer, _most, false);
    END IF;
END $sidecache$;"""

FUNCTIONS = {
    "take": _TAKE,
    "grab": _GRAB,
    "release": _RELEASE,
    "confirm": _CONFIRM,
    "offer": _OFFER,
    "queue": _QUEUE,
    "sweep": _SWEEP,
}
