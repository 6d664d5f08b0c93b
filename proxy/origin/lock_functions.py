"""The text of the functions that decide who holds a lock; `locking` puts in where the rows are.

What each of them does, and what is always true, stands there.

Locks are called k, with the columns of their keys; rows t, waiters q.
"""

# Every plan is made once per session: with arrays as parameters PostgreSQL would make one for each
# call, which takes longer than the call itself. A plan made while a table was small has to be right
# when it is large.
PLANNED = """LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $sidecache$"""

# Of a row t: whether somebody called who holds it, whether nobody does, and whether who may take it.
# One rule for all who grant. Where a row says NULL these are NULL, and only what is true counts: a
# locked row without an owner is nobody's to take until its deadline, one without a deadline for
# ever, one without a status at all; so they are asked for as they are, or for IS NOT TRUE.
MINE = "(t.status = 'locked' AND t.locked_by = _who AND t.locked_until > _moment)"
FREE = "(t.status = 'available' OR (t.status = 'locked' AND t.locked_until <= _moment))"
OPEN = f"({FREE} OR {MINE})"

# Whether `take` grants a row t to _who; _mine: only what is held already, by that _token.
GRANTING = f"""((NOT _mine AND {OPEN})
            OR ({MINE} AND (_token IS NULL OR t.lock_token = _token)))"""

# For how many seconds somebody holds a row t; NULL: nobody does.
REMAINS = """CASE WHEN t.status = 'locked' THEN extract(epoch FROM
                   least(coalesce(t.locked_until, 'infinity'), _moment + interval '100 years')
                   - _moment)::float8 END"""

# How a row t becomes its holder's; fresh: a new token, kept: further columns.
GRANTED = """SET status = 'locked', locked_by = _who,
               booking_id = coalesce(_booking, CASE WHEN {mine} THEN t.booking_id END),
               session_id = coalesce(_session, CASE WHEN {mine} THEN t.session_id END),
               -- The application may have given out tokens of its own, or locks without one.
               lock_token = coalesce(CASE WHEN {mine} THEN t.lock_token END,
                                     greatest({fresh}, t.lock_token + 1)),
               locked_at = CASE WHEN {mine} THEN t.locked_at ELSE _moment END,
               locked_until = least(
                   _moment + make_interval(secs => _hold),
                   CASE WHEN _longest > 0
                        THEN CASE WHEN {mine} THEN t.locked_at ELSE _moment END
                             + make_interval(secs => _longest) END),
               updated_at = _moment{kept}"""

# The row of a lock that has none; conflict: what becomes of one that is there.
MADE = """
    INSERT INTO {schema}.sidecache_locks AS l (keyspace, name)
    SELECT '{keyspace}', n FROM unnest(k0) AS n ORDER BY n
        ON CONFLICT (keyspace, name) DO {conflict};"""
LOCKED = "UPDATE SET updated_at = clock_timestamp()"

# A lock that the application's table does not have is waited for by nobody.
ABSENT = """    IF NOT FOUND THEN
        RETURN QUERY SELECT 'missing', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
"""

UNUSED = """
    DELETE FROM {schema}.sidecache_locks WHERE ctid IN (
        SELECT ctid FROM {schema}.sidecache_locks
         WHERE keyspace = '{keyspace}' AND status = 'available'
           AND updated_at < clock_timestamp() - interval '1 minute'
         LIMIT {most} FOR UPDATE SKIP LOCKED);"""

# hold, longest: seconds; longest 0: no bound. most 0: no limit. fair: who waits goes first.
# mine: only what who holds already, by that token where there is one. Of what is not said (NULL)
# the row keeps what it has. fresh: which of the locks nobody held, from 1.
_TAKE = """({keys}, _who text, _booking text, _session text, _said text,
    _hold float8, _longest float8, _place text, _most integer, _fair boolean, _mine boolean,
    _token bigint)
RETURNS TABLE (outcome text, tokens bigint[], lefts float8[], holder text, ahead bigint,
               fresh bigint[])
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz;
    _other record;
    _many bigint;
BEGIN
    -- First without locks: most who ask for what others want are turned away here.
    FOR _look IN 1..2 LOOP
        _moment := clock_timestamp();
        SELECT coalesce(t.status::text, 'unknown') AS status, t.locked_by, {remains} AS remains
          INTO _other
          FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found}
         WHERE {granting} IS NOT TRUE
         ORDER BY {order} LIMIT 1;
        IF FOUND THEN
            IF _other.remains > 0 THEN
                RETURN QUERY SELECT 'held', NULL::bigint[], ARRAY[_other.remains],
                                    _other.locked_by::text, 0::bigint, NULL::bigint[];
            ELSE
                RETURN QUERY SELECT CASE WHEN _other.status IN ('locked', 'available') THEN 'lost'
                                         ELSE _other.status END, NULL::bigint[],
                                    NULL::float8[], _other.locked_by::text, 0::bigint,
                                    NULL::bigint[];
            END IF;
            RETURN;
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
                RETURN QUERY SELECT 'missing', NULL::bigint[], NULL::float8[], NULL::text,
                                    0::bigint, NULL::bigint[];
                RETURN;
            END IF;
        END IF;
    END LOOP;
    IF _fair AND NOT _mine THEN
        SELECT count(*) INTO _many
          FROM unnest({arrays}) AS k({columns})
          JOIN {table} t ON {found}
          JOIN {schema}.sidecache_lock_queue q ON q.keyspace = '{keyspace}' AND q.name = {name}
          LEFT JOIN {schema}.sidecache_lock_queue me
            ON me.keyspace = q.keyspace AND me.name = q.name AND me.owner = _who
           AND me.expires_at > _moment AND coalesce(me.offered_until, 'infinity') > _moment
         WHERE q.owner <> _who AND q.expires_at > _moment
           AND coalesce(q.offered_until, 'infinity') > _moment
           AND (me.pos IS NULL OR q.pos < me.pos) AND {mine} IS NOT TRUE;
        IF _many > 0 THEN
            RETURN QUERY SELECT 'queue', NULL::bigint[], NULL::float8[], NULL::text, _many,
                                NULL::bigint[];
            RETURN;
        END IF;
    END IF;
    IF _most > 0 AND NOT _mine THEN
        SELECT count(*) INTO _many FROM {table} t
         WHERE {counted} AND {mine}
           AND NOT EXISTS (SELECT FROM unnest({arrays}) AS k({columns}) WHERE {found});
        IF _many + cardinality(k0) > _most THEN
            RETURN QUERY SELECT 'limit', NULL::bigint[], NULL::float8[], NULL::text, _many,
                                NULL::bigint[];
            RETURN;
        END IF;
    END IF;
    IF _fair THEN
        DELETE FROM {schema}.sidecache_lock_queue q USING unnest({arrays}) AS k({columns})
         WHERE q.keyspace = '{keyspace}' AND q.name = {name} AND q.owner = _who;
    END IF;
    WITH fresh AS (SELECT nextval('{schema}.sidecache_lock_token') AS token),
    changed AS (
        UPDATE {table} t
           {granted}
          FROM fresh, unnest({arrays}) WITH ORDINALITY AS k({columns}, n)
         WHERE {found} AND {granting}
     RETURNING k.n, t.lock_token, t.locked_at < _moment AS longer,
               extract(epoch FROM t.locked_until - clock_timestamp())::float8 AS remains)
    SELECT CASE WHEN bool_and(longer) THEN 'extended' ELSE 'acquired' END,
           array_agg(lock_token::bigint ORDER BY n), array_agg(remains ORDER BY n),
           _who, 0::bigint, array_agg(n) FILTER (WHERE NOT longer)
      INTO outcome, tokens, lefts, holder, ahead, fresh
      FROM changed;
    IF cardinality(tokens) IS DISTINCT FROM cardinality(k0) THEN
        RAISE EXCEPTION 'a lock of {keyspace} is not one row of its table';
    END IF;
    RETURN NEXT;
END $sidecache$;"""

# Of locks that different owners want, each for itself: those that nobody is in the way of, not even
# a waiter. What another transaction has in hand is left out like what is held: of locks this waits
# for nobody, so none of those it was called for waits for what another wants.
_GRAB = """({keys}, _who text[], _booking text[], _session text[], _said text[], _hold float8[],
    _longest float8, _place text[], _most integer, _fair boolean)
RETURNS TABLE (numbers bigint[], outcomes text[], tokens bigint[], lefts float8[])
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
    _free bigint[];
BEGIN{made_free}
    _free := (SELECT array_agg(n) FROM (
        SELECT k.n
          FROM unnest({arrays}, _who, _place) WITH ORDINALITY AS k({columns}, _who, _place, n)
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
          FROM unnest({arrays}, _who, _booking, _session, _said, _hold, _place) WITH ORDINALITY
               AS k({columns}, _who, _booking, _session, _said, _hold, _place, n)
         WHERE {found} AND k.n = ANY (_free) AND {open}
           AND (_most = 0 OR {mine}
                OR _most > (SELECT count(*) FROM {table} t WHERE {counted} AND {mine}))
           AND NOT (_fair AND EXISTS (
               SELECT FROM {schema}.sidecache_lock_queue q
                WHERE q.keyspace = '{keyspace}' AND q.name = {row_name}))
     RETURNING k.n, t.lock_token,
               CASE WHEN t.locked_at < _moment THEN 'extended' ELSE 'acquired' END AS outcome,
               extract(epoch FROM t.locked_until - clock_timestamp())::float8 AS remains)
    SELECT array_agg(n), array_agg(outcome), array_agg(lock_token::bigint), array_agg(remains)
      INTO numbers, outcomes, tokens, lefts FROM changed;
    RETURN NEXT;
END $sidecache$;"""

# Each lock has an owner and a token; NULL: whoever, whichever. Patient: other transactions are
# waited for; otherwise what they have in hand is left out of `looked`, and nothing is said of it.
_RELEASE = """({keys}, _who text[], _held bigint[], _offer float8, _patient boolean)
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
          FROM unnest({arrays}, _who, _held) WITH ORDINALITY AS k({columns}, who, token, n)
         WHERE {found} AND k.n = ANY (looked)
           AND t.status = 'locked' AND t.locked_until > clock_timestamp()
           AND (k.who IS NULL OR t.locked_by = k.who)
           AND (k.token IS NULL OR t.lock_token = k.token)
     RETURNING k.n, t.lock_token, {row_name} AS name)
    SELECT array_agg(n ORDER BY n), array_agg(coalesce(lock_token, 0)::bigint ORDER BY n),
           array_agg(name ORDER BY n)
      INTO numbers, tokens, _names FROM freed;
    IF _offer > 0 AND _names IS NOT NULL THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', _names, _offer);
    END IF;
    RETURN NEXT;
END $sidecache$;"""

# To confirm again what is confirmed succeeds: whoever lost the answer asks again.
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

# One lock. Who was silent for too long, or let an offer pass, begins again at the end.
_QUEUE = """({keys}, _who text, _heartbeat float8, _offer float8, _leaving boolean)
RETURNS TABLE (outcome text, place bigint, waits float8, offered float8)
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
    _id text[];
    _lock record;
    _own record;
BEGIN
    SELECT {name} INTO _id FROM unnest({arrays}) AS k({columns});
    DELETE FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who
       AND (_leaving OR q.expires_at <= _moment OR q.offered_until <= _moment);
    IF _leaving THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', ARRAY[_id], _offer)
           FROM unnest({arrays}) AS k({columns})
          WHERE NOT EXISTS (SELECT FROM {table} t WHERE {found} AND {free} IS NOT TRUE);
        RETURN QUERY SELECT 'left', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    SELECT coalesce(t.status::text, 'unknown') AS status, t.locked_by::text AS holder,
           greatest(0, {remains}) AS remains INTO _lock
      FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found};
{absent}    IF FOUND AND _lock.status NOT IN ('available', 'locked') THEN
        RETURN QUERY SELECT _lock.status, 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    IF _lock.holder = _who AND _lock.remains > 0 THEN
        RETURN QUERY SELECT 'holder', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    INSERT INTO {schema}.sidecache_lock_queue AS q (keyspace, name, owner, expires_at)
    SELECT '{keyspace}', _id, _who, _moment + make_interval(secs => _heartbeat)
     WHERE (SELECT count(*) FROM (SELECT FROM {schema}.sidecache_lock_queue w
             WHERE w.keyspace = '{keyspace}' AND w.name = _id AND w.owner <> _who
             LIMIT {longest_queue}) AS others) < {longest_queue}
        ON CONFLICT (keyspace, name, owner) DO UPDATE SET expires_at = excluded.expires_at;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'full', 0::bigint, 0::float8, 0::float8;
        RETURN;
    END IF;
    IF coalesce(_lock.remains, 0) = 0 THEN
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', ARRAY[_id], _offer);
    END IF;
    SELECT q.pos, q.offered_until INTO _own FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who;
    RETURN QUERY
    SELECT CASE WHEN _own.offered_until > _moment THEN 'offered' ELSE 'waiting' END, 1 + count(*),
           coalesce(_lock.remains, 0) + _offer * count(*),
           coalesce(extract(epoch FROM _own.offered_until - _moment), 0)::float8
      FROM {schema}.sidecache_lock_queue q
     WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.pos < _own.pos
       AND q.expires_at > _moment AND coalesce(q.offered_until, 'infinity') > _moment;
END $sidecache$;"""

_SWEEP = """(_offer float8)
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
        PERFORM {schema}.sidecache_lock_offer('{keyspace}', (
            SELECT array_agg(DISTINCT q.name) FROM {schema}.sidecache_lock_queue q
             WHERE q.keyspace = '{keyspace}' AND NOT EXISTS (
                   SELECT FROM {table} t WHERE {queued}
                      AND t.status IS DISTINCT FROM 'available')), _offer);
    END IF;
END $sidecache$;"""

FUNCTIONS = {
    "take": _TAKE,
    "grab": _GRAB,
    "release": _RELEASE,
    "confirm": _CONFIRM,
    "queue": _QUEUE,
    "sweep": _SWEEP,
}
