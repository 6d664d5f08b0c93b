"""What the functions that decide who holds a lock have in common, as SQL with places to fill.

Who may take a lock, who goes before others, and what becomes of a row are said here once; the
functions are in `lock_functions`, and `locking` puts everything together.
"""

# Every plan is made once per session: with arrays as parameters PostgreSQL would make one for each
# call, which takes longer than the call itself. A plan made while a table was small has to be right
# when it is large. What is off costs so much on paper that PostgreSQL would compile it each time.
PLANNED = """LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off
    AS $sidecache$"""

# Of a row t: whether _who holds it, whether nobody does, and whether _who may take it; _same: also
# what it holds, otherwise only what was granted in this very _session. One rule for all who grant.
# Where a row says NULL these are NULL, and only what is true counts: a locked row without an owner
# is nobody's to take until its deadline, one without a deadline for ever, and one without a status
# too.
MINE = "(t.status = 'locked' AND t.locked_by = _who AND t.locked_until > _moment)"
FREE = "(t.status = 'available' OR (t.status = 'locked' AND t.locked_until <= _moment))"
OPEN = f"({FREE} OR ({MINE} AND (_same OR t.session_id = _session)))"

# Whether `take` grants a row t to _who; _mine: only what is held already, by that _token.
GRANTING = f"""((NOT _mine AND {OPEN})
            OR (_mine AND {MINE} AND (_token IS NULL OR t.lock_token = _token)))"""

# What a row t says of itself; a word of ours would be taken for what became of a wish.
SAID = """CASE WHEN t.status::text IN ('acquired', 'extended', 'held', 'queue', 'limit', 'missing',
                   'lost', 'waiting', 'offered', 'holder', 'left', 'full') THEN 'unknown'
                 ELSE coalesce(t.status::text, 'unknown') END"""

# For how many seconds somebody holds a row t; NULL: nobody does.
REMAINS = """CASE WHEN t.status = 'locked' THEN extract(epoch FROM
                   least(coalesce(t.locked_until, 'infinity'), _moment + interval '100 years')
                   - _moment)::float8 END"""

# The same of one that has just been granted, as of now.
LEFT = """extract(epoch FROM least(t.locked_until, _moment + interval '100 years')
                                   - clock_timestamp())::float8 AS remains"""

# What tells a grant of a row t from the same owner's next, which keeps the token.
STAMP = "extract(epoch FROM t.updated_at)::text"

# Of a waiter q: whether it still waits, and whether a lock is kept for it.
WAITS = "(q.expires_at > _moment AND coalesce(q.offered_until, 'infinity') > _moment)"
OFFERED = "(q.expires_at > _moment AND q.offered_until > _moment)"

# How many locks _who has in _place: what it holds, and what is kept for it.
HAS = """((SELECT count(*) FROM {table} t WHERE {counted} AND {mine})
            + (SELECT count(*) FROM {schema}.sidecache_lock_queue q
                WHERE q.keyspace = '{keyspace}' AND q.owner = _who AND q.scope = _place
                  AND {offered}))"""
ROOM = "(_most = 0 OR _most > {has})"

# Since when a row t is its holder's; what the application has locked without saying so: just now.
SINCE = f"CASE WHEN {MINE} THEN coalesce(t.locked_at, _moment - interval '1 ms') ELSE _moment END"

# How a row t becomes its holder's; fresh: a new token, kept: further columns. Who takes
# again what it holds does not hold it shorter; longer: a further condition for that.
GRANTED = """SET status = 'locked', locked_by = _who,
               booking_id = coalesce(_booking, CASE WHEN {mine} THEN t.booking_id END),
               session_id = coalesce(_session, CASE WHEN {mine} THEN t.session_id END),
               -- The application may have given out tokens of its own, or locks without one.
               lock_token = coalesce(CASE WHEN {mine} THEN t.lock_token END,
                                     greatest({fresh}, t.lock_token + 1)),
               locked_at = {since},
               locked_until = least(
                   greatest(_moment + make_interval(secs => _hold),
                            CASE WHEN {mine}{longer} THEN t.locked_until END),
                   CASE WHEN _longest > 0
                        THEN greatest({since} + make_interval(secs => _longest),
                                      CASE WHEN {mine} THEN t.locked_until END) END),
               updated_at = _moment{kept}"""

# Who counts in an older snapshot counts what was there before its turn.
EXACT = """
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'locks are counted under read committed';
    END IF;"""

# The row of a lock that has none; conflict: what becomes of one that is there.
MADE = """
    INSERT INTO {schema}.sidecache_locks AS l (keyspace, name)
    SELECT '{keyspace}', n FROM unnest(k0) AS n ORDER BY n
        ON CONFLICT (keyspace, name) DO {conflict};"""
LOCKED = "UPDATE SET updated_at = clock_timestamp()"

# A lock that the application's table does not have is waited for by nobody.
ABSENT = """    IF NOT FOUND THEN
        outcome := 'missing';
        RETURN NEXT;
        RETURN;
    END IF;
"""

UNUSED = """
    DELETE FROM {schema}.sidecache_locks WHERE ctid IN (
        SELECT ctid FROM {schema}.sidecache_locks
         WHERE keyspace = '{keyspace}' AND status = 'available'
           AND updated_at < clock_timestamp() - interval '1 minute'
         LIMIT {most} FOR UPDATE SKIP LOCKED);"""
