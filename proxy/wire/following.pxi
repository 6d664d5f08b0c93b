# Commands of ours go right behind a client's: times to live, and trims.
# A part of downstream.pyx, which includes it.

cdef bytes MULTI = b"*1\r\n$5\r\nMULTI\r\n"
cdef bytes EXEC = b"*1\r\n$4\r\nEXEC\r\n"


cdef int _follow(Downstream client, const char* frame, CommandRow* row, Upstream upstream,
                 Pending pending, double now) except -1:
    """Queue what rules send behind the command that is being judged, one for each key."""
    cdef Py_ssize_t i
    cdef Py_ssize_t size
    cdef KeyPlace* mark
    cdef Word* word
    cdef const char* key
    cdef bytes name
    cdef int part
    if FOLLOWERS > MOST_FOLLOWERS:
        return _link_unit(client, upstream, _follower_frames(client, frame, row), pending.cluster,
                               pending.slot, pending.keyspace, now)
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        if not mark.duties & (TTL_DUTY | COLLECTION_DUTY) or not mark.follows:
            continue
        word = &WORDS.items[mark.word]
        key = frame + word.at
        size = word.size
        if mark.tag != NO_TAG:
            name = _node_name(client, key, size, mark)
            key = <char*> name
            size = len(name)
        for part in (EXPIRY_FOLLOWS, REFRESH_FOLLOWS, LONGEST_FOLLOWS, TRIM_FOLLOWS):
            if mark.follows & part:
                _link_follower(client, 
                    upstream,
                    _put_follower(client, &upstream.queue, key, size, row, mark.keyspace,
                                       part | (mark.follows & HEAD_GREW)),
                    pending.cluster, pending.slot, mark.keyspace, now)
    return 0


cdef list _follower_frames(Downstream client, const char* frame, CommandRow* row):
    """Return what rules send behind the command that is being judged."""
    cdef Octets out
    cdef KeyPlace* mark
    cdef Word* word
    cdef bytes name
    cdef list frames = []
    cdef Py_ssize_t i
    cdef int part
    out.data = NULL
    out.start = out.end = out.capacity = 0
    try:
        for i in range(KEYS.count):
            mark = &KEYS.items[i]
            if not mark.duties & (TTL_DUTY | COLLECTION_DUTY) or not mark.follows:
                continue
            word = &WORDS.items[mark.word]
            name = frame[word.at:word.at + word.size]
            if mark.tag != NO_TAG:
                name = _node_name(client, frame + word.at, word.size, mark)
            for part in (EXPIRY_FOLLOWS, REFRESH_FOLLOWS, LONGEST_FOLLOWS, TRIM_FOLLOWS):
                if mark.follows & part:
                    out.end = 0
                    _put_follower(client, &out, <char*> name, len(name), row, mark.keyspace,
                                       part | (mark.follows & HEAD_GREW))
                    frames.append(PyBytes_FromStringAndSize(out.data, out.end))
    finally:
        octets_free(&out)
    return frames


cdef Py_ssize_t _put_follower(Downstream client, Octets* out, const char* key, Py_ssize_t size,
                              CommandRow* row, int keyspace, int follows) except -1:
    cdef KeyspaceRow* space = &client.ruleset.spaces[keyspace]
    if follows & TRIM_FOLLOWS:
        return put_trim(out, key, size, row, space, follows & HEAD_GREW != 0)
    return put_expiry(out, key, size, space, follows)


cdef int _link_follower(Downstream client, Upstream upstream, Py_ssize_t size, int cluster,
                        int slot, int keyspace, double now) except -1:
    """Give the last bytes of a node's queue a place of their own.

    It goes where the command before it goes, is sent again where that is sent on, and runs
    twice without harm. Nobody gets its reply.
    """
    cdef Pending pending = Pending.__new__(Pending)
    pending.sink = client
    pending.follows = pending.repeatable = pending.quotes = True
    pending.row = -1
    pending.cluster = cluster
    pending.slot = slot
    pending.keyspace = keyspace
    pending.deadline = now + upstream.timeout
    client.following += 1
    return upstream.link(pending, size)


cdef int _link_unit(Downstream client, Upstream upstream, list frames, int cluster, int slot,
                    int keyspace, double now) except -1:
    """Queue what follows one command as one unit, MULTI to EXEC, with one place."""
    cdef bytes unit = MULTI + b"".join(frames) + EXEC
    cdef Pending pending
    upstream.put(<char*> unit, len(unit))
    _link_follower(client, upstream, len(unit), cluster, slot, keyspace, now)
    pending = upstream.tail
    pending.unit = pending.left = len(frames) + 1
    pending.quotes = False
    return 0


cdef int _followed(Downstream client, Pending pending, bint failed) except -1:
    """Drop the reply of a command of ours."""
    client.following -= 1
    client.ruleset.amended.count(pending.keyspace, FOLLOWED, ERROR if failed else OK)
    if client.following == 0 and client.blocked and not client.closing:
        return _wake(client)
    return 0
