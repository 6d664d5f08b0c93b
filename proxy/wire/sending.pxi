# Commands go to nodes, as nodes know their keys, or are captured for whoever queues them.
# A part of downstream.pyx, which includes it.

cdef int _forward(Downstream client, const char* frame, Py_ssize_t size, int index, int cluster,
                  int slot, bint renamed, double now) except -1:
    cdef CommandRow* row = &client.ruleset.rows[index]
    cdef Upstream upstream = _upstream(client, cluster, slot)
    cdef bytes refusal = _refusal(client, upstream)
    cdef Pending pending
    cdef bytes name
    cdef int keyspace = KEYS.items[0].keyspace
    if refusal is not None:
        return _reply(client, refusal, keyspace, row.family)
    if EDIT.made and not renamed:
        size = edit_write(&upstream.queue, &EDIT, frame, size, &WORDS)
    elif EDIT.made:
        name = _rewritten(client, frame, size, renamed)
        size = len(name)
        upstream.put(<char*> name, size)
    elif renamed:
        size = _put_renamed(client, &upstream.queue, frame, size)
    else:
        upstream.put(frame, size)
    pending = _expect(client, now, row.family, keyspace)
    pending.row = index
    pending.cluster = cluster
    pending.slot = slot
    pending.repeatable = row.repeatable
    pending.deadline = now + upstream.timeout
    client.request_bytes += size
    client.sent += 1
    upstream.link(pending, size)
    if EDIT.made:
        client.ruleset.amended.count(keyspace, REWRITTEN, OK)
    if FOLLOWERS:
        _follow(client, frame, row, upstream, pending, now)
    return TAKEN


cdef int _capture(Downstream client, const char* frame, Py_ssize_t size, int index, int cluster,
                  int slot, bint renamed, double now) except -1:
    """Make a Request of a command that could be forwarded, with all that is known of it."""
    cdef Request request
    _ask(client, frame, size, index, now)
    request = client.found
    request.location = Location(cluster, slot)
    request.routed = request.command
    if renamed or EDIT.made:
        request.routed = _rewritten(client, frame, size, renamed)
    if EDIT.made:
        client.ruleset.amended.count(KEYS.items[0].keyspace, REWRITTEN, OK)
    if FOLLOWERS:
        request.followers = _follower_frames(client, frame, &client.ruleset.rows[index])
    return ASKED


cdef bytes _rewritten(Downstream client, const char* frame, Py_ssize_t size, bint renamed):
    """Return the command that is being judged as nodes get it."""
    cdef Octets whole
    cdef bytes edited
    whole.data = NULL
    whole.start = whole.end = whole.capacity = 0
    try:
        if not EDIT.made:
            _put_renamed(client, &whole, frame, size)
            return PyBytes_FromStringAndSize(whole.data, whole.end)
        edit_write(&whole, &EDIT, frame, size, &WORDS)
        edited = PyBytes_FromStringAndSize(whole.data, whole.end)
        if not renamed:
            return edited
        # Keys are the same words in both frames, and what follows is made of the client's.
        _collect(edited)
        whole.end = 0
        _put_renamed(client, &whole, <char*> edited, len(edited))
        _collect_words(frame, size)
        return PyBytes_FromStringAndSize(whole.data, whole.end)
    finally:
        octets_free(&whole)


cdef Py_ssize_t _put_renamed(Downstream client, Octets* out, const char* frame,
                             Py_ssize_t size) except -1:
    """Append a command with its keys as nodes know them; return how many bytes that are."""
    cdef Py_ssize_t copied = 0
    cdef Py_ssize_t written = 0
    cdef Py_ssize_t i
    cdef KeyPlace* mark
    cdef Word* word
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        if mark.tag == NO_TAG:
            continue
        word = &WORDS.items[mark.word]
        octets_append(out, frame + copied, word.head - copied)
        written += word.head - copied + _put_node_name(client, out, frame + word.at, word.size, mark)
        copied = word.at + word.size
    octets_append(out, frame + copied, size - copied)
    return written + size - copied


cdef Py_ssize_t _put_node_name(Downstream client, Octets* out, const char* key, Py_ssize_t size,
                               KeyPlace* mark) except -1:
    """Append the name of a key at its node, with its length and without the end of its line."""
    cdef Py_ssize_t begin = mark.at if mark.tag != LITERAL_TAG else 0
    cdef const char* tag = key + mark.at
    cdef Py_ssize_t tagged = mark.end - mark.at
    cdef Py_ssize_t rest = mark.end if mark.tag != LITERAL_TAG else 0
    cdef Py_ssize_t whole, head
    cdef bytes word
    if mark.tag == LITERAL_TAG:
        word = client.ruleset.keyspaces[mark.keyspace].hash_tag
        tag = <char*> word
        tagged = len(word)
    whole = begin + tagged + size - rest + 2
    head = put_length(out, whole)
    octets_append(out, key, begin)
    octets_append(out, "{", 1)
    octets_append(out, tag, tagged)
    octets_append(out, "}", 1)
    octets_append(out, key + rest, size - rest)
    return head + whole


cdef bytes _node_name(Downstream client, const char* key, Py_ssize_t size, KeyPlace* mark):
    if mark.tag == LITERAL_TAG:
        return b"{%b}%b" % (client.ruleset.keyspaces[mark.keyspace].hash_tag, key[:size])
    return b"%b{%b}%b" % (key[:mark.at], key[mark.at:mark.end], key[mark.end:size])


cdef int _send_part(Downstream client, Location location, bytes command, int row, int replies,
                    bint quotes, double now, object deliver) except -1:
    cdef Upstream upstream = _upstream(client, location.cluster, location.slot)
    cdef bytes refusal = _refusal(client, upstream)
    cdef Pending pending
    if refusal is not None:
        deliver(refusal)
        return 0
    pending = upstream.part(deliver, client, location, now)
    if client.found is not None:
        # Its handler queues the parts of a command before the next one is taken.
        (<Delivery> pending.sink).whole = client.found.pending
    # What has no row is what a handler makes of a write.
    if row < 0 or client.ruleset.rows[row].write:
        client.note_write(location.cluster)
    pending.row = row
    pending.keyspace = location.keyspace
    pending.repeatable = row >= 0 and client.ruleset.rows[row].repeatable
    pending.unit = pending.left = replies - 1
    pending.quotes = quotes
    client.sent += 1
    return upstream.enqueue(pending, <char*> command, len(command))


cdef bytes _refusal(Downstream client, Upstream upstream):
    """Return the error line where a node cannot be asked now, or None."""
    if upstream is None or not upstream.available:
        return client.ruleset.errors.clusterdown
    return client.ruleset.errors.overloaded if upstream.crowded() else None


cdef Upstream _upstream(Downstream client, int cluster, int slot):
    """Return the connection that carries this client's commands for a slot, if it has an owner."""
    cdef int owner = client.slots.owner_of(cluster, slot)
    cdef tuple lanes
    if owner < 0:
        return None
    lanes = <tuple> (<tuple> client.slots.nodes[owner])[client.protocol - 2]
    return <Upstream> lanes[client.lane % len(lanes)]
