# Keys that PostgreSQL stands behind: what Redis says of them is looked at before the client gets it.
# Also keys that are bound to the connections that write them, see handlers.bound.
# A part of downstream.pyx, which includes it.
#
# A look-up is forwarded like any command. Its Request waits beside it, and is handed over only
# where the reply cannot be the answer. Where staleness matters, a PTTL goes ahead of it: both are
# queued together, so the time that it tells is that of the value behind it.

cdef enum:
    # What is known of a key's time before its PTTL is answered, or where that failed. -1 and -2 are
    # Redis' own: it has none, it is not there.
    TIME_UNTOLD = -3

cdef bytes PTTL = b"*2\r\n$4\r\nPTTL\r\n"


cdef int _back(Downstream client, const char* frame, Py_ssize_t size, int index, CommandRow* row,
               int cluster, int slot, bint split, bint renamed, double now) except -1:
    """Take a command on a key that PostgreSQL stands behind, or that is bound to its writer."""
    cdef KeyspaceRow* space = &client.ruleset.spaces[_backed_keyspace(client)]
    cdef Upstream upstream
    cdef Pending ahead = None
    cdef Pending before = client.tail
    cdef Request request
    cdef bytes refusal
    cdef int reason = AWAY
    if space.bound:
        return _bind(client, frame, size, index, cluster, slot, split, renamed, now)
    if space.decided and row.takes and KEYS.count == 1:
        if _refuse_lock(client, frame, row, now) != PASSED:
            return TAKEN
    if split or KEYS.count != 1 or not row.looks_up or space.decided:
        return _leave_to_origin(client, frame, size, index, cluster, slot, split, renamed, now)
    upstream = _upstream(client, cluster, slot)
    refusal = _refusal(client, upstream)
    if refusal is None and space.detours and not upstream.admits(space.written):
        refusal = client.ruleset.errors.clusterdown
    if (refusal is None and client.router.owed
            and _text(frame, KEYS.items[0].word) in client.router.owed):
        # What the node has is from before a change, and would be shown to who made it.
        refusal = client.ruleset.errors.clusterdown
        reason = OWED
    if refusal is not None:
        _ask(client, frame, size, index, now)
        client.found.pending.keyspace = KEYS.items[0].keyspace
        client.found.reason = reason
        client.found.reply = refusal
        return ASKED
    request = _beside(client, frame, size, index, now)
    if space.window_ms or space.early_ms:
        ahead = _ask_time(client, upstream, frame, cluster, slot, now)
    _forward(client, frame, size, index, cluster, slot, renamed, now)
    if client.tail is before or client.tail.row < 0:
        # The question of time took the last place in the node's queue: it is refused by now.
        return TAKEN
    client.tail.request = request
    if space.detours:
        client.tail.detours = True
        client.tail.deadline = now + upstream.patience
    client.tail.left_ms = TIME_UNTOLD
    if ahead is not None:
        # Parked until a node can answer, it would hold the client that its look-up has let go.
        ahead.detours = space.detours
        ahead.leads = client.tail
        ahead.deadline = client.tail.deadline
    return TAKEN


cdef Request _beside(Downstream client, const char* frame, Py_ssize_t size, int index, double now):
    """Make the Request of a command that is forwarded; it waits beside it for the reply."""
    cdef Request request = Request.__new__(Request)
    request.command = PyBytes_FromStringAndSize(frame, size)
    request.name = client.ruleset.commands[index].name
    request.row = index
    request.received = now
    request.ruleset = client.ruleset
    return request


cdef int _bind(Downstream client, const char* frame, Py_ssize_t size, int index, int cluster, int slot,
               bint split, bint renamed, double now) except -1:
    """Forward a write that goes with its connection; its Request is handed over behind the reply."""
    cdef Pending before = client.tail
    cdef Request request
    if split:
        return _ask(client, frame, size, index, now)
    request = _beside(client, frame, size, index, now)
    request.reason = BOUND
    _forward(client, frame, size, index, cluster, slot, renamed, now)
    if client.tail is not before and client.tail.row >= 0:
        client.tail.request = request
    return TAKEN


cdef int _backed_keyspace(Downstream client) noexcept:
    """The keyspace of the first key that PostgreSQL stands behind; where there is none, a bound one."""
    cdef int bound = KEYS.items[0].keyspace
    cdef Py_ssize_t i
    for i in range(KEYS.count):
        if KEYS.items[i].duties & ORIGIN_DUTY:
            bound = KEYS.items[i].keyspace
            if not client.ruleset.spaces[bound].bound:
                return bound
    return bound


cdef int _leave_to_origin(Downstream client, const char* frame, Py_ssize_t size, int index,
                          int cluster, int slot, bint split, bint renamed, double now) except -1:
    """Make a Request that is handed over when everything before it is answered, and holds its client."""
    cdef Request request
    if split:
        _ask(client, frame, size, index, now)
    else:
        _capture(client, frame, size, index, cluster, slot, renamed, now)
    request = client.found
    request.pending.keyspace = _backed_keyspace(client)
    request.reason = ORIGIN
    request.holds = True
    client.held += 1
    if request.pending is client.head:
        return ASKED
    client.found = None
    request.pending.request = request
    return TAKEN


cdef Pending _ask_time(Downstream client, Upstream upstream, const char* frame, int cluster, int slot,
                       double now):
    """Queue the question how long the key of a look-up will live."""
    cdef KeyPlace* mark = &KEYS.items[0]
    cdef Word* word = &WORDS.items[mark.word]
    cdef bytes name = frame[word.at:word.at + word.size]
    cdef bytes question
    if mark.tag != NO_TAG:
        name = _node_name(client, frame + word.at, word.size, mark)
    question = PTTL + b"$%d\r\n%b\r\n" % (len(name), name)
    upstream.put(<char*> question, len(question))
    _link_follower(client, upstream, len(question), cluster, slot, mark.keyspace, now)
    return upstream.tail


cdef int _told_time(Pending ahead, const char* data, Py_ssize_t size) except -1:
    """Note what a PTTL said with the look-up behind it."""
    cdef Pending pending = ahead.leads
    ahead.leads = None
    if data[0] == c":":
        pending.left_ms = int(data[1:size - 2])
    return 0


cdef int _looked_up(Downstream client, Pending pending, const char* data, Py_ssize_t size) except -1:
    """Return whether the reply of a look-up is its answer; if it is not, hand its Request over.

    That of a write which goes with its connection is, and its Request is handed over with it.
    """
    cdef Request request = pending.request
    cdef int reason
    if request.reason == BOUND:
        pending.request = None
        request.reply = PyBytes_FromStringAndSize(data, size)
        _defer(client, request)
        return True
    reason = _reason(&client.ruleset.spaces[pending.keyspace], pending, data, size)
    pending.request = None
    if reason == TABLE:
        return True
    request.reason = reason
    request.left_ms = pending.left_ms
    if reason != STALE:
        request.reply = PyBytes_FromStringAndSize(data, size)
        request.pending = pending
        pending.sink = client
    _defer(client, request)
    return reason == STALE


cdef int _defer(Downstream client, Request request) except -1:
    """Hand a Request over with the next batch."""
    if client.deferred is None:
        client.deferred = []
    client.deferred.append(request)
    return _wake(client)


cdef int _reason(KeyspaceRow* space, Pending pending, const char* data, Py_ssize_t size) except -1:
    cdef int64_t left = pending.left_ms
    cdef bytes words
    if data[0] == c"-":
        for words in AWAY_WORDS:
            if size > len(words) and memcmp(data, <char*> words, len(words)) == 0:
                return AWAY
        return TABLE
    if _says_nothing(data, size):
        return MISS
    if not space.window_ms and not space.early_ms:
        return TABLE
    if left == TIME_UNTOLD:
        return EXPIRED
    if left < 0:
        return TABLE
    if left > space.window_ms:
        return STALE if left - space.window_ms < space.early_ms else TABLE
    return STALE if space.window_ms - left <= space.stale_ms else EXPIRED


cdef bint _says_nothing(const char* data, Py_ssize_t size) noexcept:
    """Whether a reply may mean that the key is not there: nil, none, zero, or only such elements."""
    cdef Py_ssize_t at = 0
    if size > 4 and data[0] == c"+" and memcmp(data, <const char*> "+none", 5) == 0:
        return True
    if size == 6 and memcmp(data, <const char*> "$0\r\n\r\n", 6) == 0:
        return True
    if data[0] == c"*" or data[0] == c"%" or data[0] == c"~":
        while data[at] != c"\n":
            at += 1
        at += 1
    while at < size:
        if size - at >= 5 and memcmp(data + at, <const char*> "$-1\r\n", 5) == 0:
            at += 5
        elif size - at >= 3 and memcmp(data + at, <const char*> "_\r\n", 3) == 0:
            at += 3
        elif size - at >= 4 and memcmp(data + at, <const char*> ":0\r\n", 4) == 0:
            at += 4
        else:
            return False
    return True
