"""The text of the functions about who waits for a lock, and what becomes of one that is over.

They are `lock_functions` as well, and speak of locks, rows and waiters by the same letters.
"""

# Keep free locks, each for who is next and has room for it, unless it is kept for somebody. What
# another transaction has in hand is left to the next sweep: who has it may be taking it.
# Patient: a place that is in hand is waited for; otherwise there is no offer.
OFFER = """(_names text[][], _offer float8, _most integer, _patient boolean DEFAULT true)
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
        PERFORM 1 FROM (VALUES (_one)) AS q(name) JOIN {table} t ON {queued}
          WHERE {free} FOR UPDATE OF t SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
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
QUEUE = """({keys}, _who text, _place text, _heartbeat float8, _offer float8, _most integer,
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
    SELECT {said} AS status, t.locked_by::text AS holder, greatest(0, {remains}) AS remains,
           {free} AS free INTO _lock
      FROM unnest({arrays}) AS k({columns}) JOIN {table} t ON {found};
    IF _leaving THEN
        DELETE FROM {schema}.sidecache_lock_queue q
         WHERE q.keyspace = '{keyspace}' AND q.name = _id AND q.owner = _who
     RETURNING {offered} AS offered INTO _own;
        IF _own.offered AND coalesce(_lock.free, _lock.status IS NULL) THEN
            PERFORM {offer}(ARRAY[_id], _offer, _most, false);
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
           offered_until = CASE WHEN NOT coalesce(_lock.free, _lock.status IS NULL) THEN NULL
                                WHEN q.offered_until IS NULL AND _first AND {room}
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

# What has expired becomes available, who was silent leaves the queue, what is free is offered. What
# is not free is offered to nobody: whoever it was kept for waits on in its place. What another
# transaction has in hand is left to the next sweep: a sweep waits for nobody.
SWEEP = """(_offer float8, _most integer)
RETURNS TABLE (name text[], token bigint)
{planned}
#variable_conflict use_column
DECLARE
    _moment timestamptz := clock_timestamp();
BEGIN
    UPDATE {schema}.sidecache_lock_queue SET offered_until = NULL WHERE ctid IN (
        SELECT q.ctid FROM {schema}.sidecache_lock_queue q
         WHERE q.keyspace = '{keyspace}' AND q.offered_until IS NOT NULL
           AND EXISTS (SELECT FROM {table} t WHERE {queued} AND {free} IS NOT TRUE)
         LIMIT {most_swept} FOR UPDATE OF q SKIP LOCKED);
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
       -- Rows of other partitions have the same place.
       AND {only}t.status = 'locked' AND t.locked_until <= clock_timestamp()
 RETURNING {row_name}, coalesce(t.lock_token, 0)::bigint;
    IF _offer > 0 THEN
        -- From one queue to the next by their index: thousands may wait in each.
        PERFORM {offer}((
            WITH RECURSIVE q(name) AS (
                (SELECT first.name FROM {schema}.sidecache_lock_queue first
                  WHERE first.keyspace = '{keyspace}' ORDER BY first.name LIMIT 1)
                UNION ALL
                SELECT (SELECT next.name FROM {schema}.sidecache_lock_queue next
                         WHERE next.keyspace = '{keyspace}' AND next.name > q.name
                         ORDER BY next.name LIMIT 1)
                  FROM q WHERE q.name IS NOT NULL)
            SELECT array_agg(q.name) FROM q
             WHERE q.name IS NOT NULL AND NOT EXISTS (
                   SELECT FROM {table} t WHERE {queued}
                      AND t.status IS DISTINCT FROM 'available')), _offer, _most, false);
    END IF;
END $sidecache$;"""
