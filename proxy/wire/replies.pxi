# Replies leave in the order of the requests.
# A part of downstream.pyx, which includes it.

cdef Pending _expect(Downstream client, double now, int family, int keyspace):
    """Append a place for a reply to the client's queue."""
    cdef Pending pending = Pending.__new__(Pending)
    pending.sink = client
    pending.received = now
    pending.family = family
    pending.keyspace = keyspace
    pending.row = pending.slot = -1
    if client.silence:
        pending.silent = True
        if client.silence == SILENT_ONCE:
            client.silence = SPOKEN
    if client.tail is None:
        client.head = pending
    else:
        client.tail.next_of_client = pending
    client.tail = pending
    client.pending += 1
    return pending


cdef int _ask(Downstream client, const char* frame, Py_ssize_t size, int index,
              double now) except -1:
    cdef Ruleset rules = client.ruleset
    cdef Request request = Request.__new__(Request)
    request.command = PyBytes_FromStringAndSize(frame, size)
    request.row = index
    request.name = rules.commands[index].name if index >= 0 else b""
    request.received = now
    request.ruleset = rules
    request.pending = _expect(client, 
        now, rules.rows[index].family if index >= 0 else rules.counters.families - 1, -1)
    request.pending.size = size
    client.request_bytes += size
    client.found = request
    return ASKED


cdef int _reply(Downstream client, bytes line, int keyspace, int family) except -1:
    """Refuse a command with a line of our own, in its turn."""
    client.spoiled = client.spoiled or client.capture
    return _say(client, line, keyspace, family, REFUSED)


cdef int _say(Downstream client, bytes line, int keyspace, int family, int outcome) except -1:
    """Answer with a line of our own, in its turn."""
    cdef Pending pending
    client.ruleset.counters.count(keyspace, family, outcome)
    if client.head is None and not client.silence:
        octets_append(&client.output, <char*> line, len(line))
    else:
        pending = _expect(client, 0, family, keyspace)
        pending.reply = b"" if pending.silent else line
        client.waiting_bytes += len(pending.reply)
        if client.head is pending:
            # It is in front because it is silent: nothing holds it up.
            client.waiting_bytes -= len(pending.reply)
            pending.reply = None
            _advance(client)
    _wake(client)
    return TAKEN


cdef int _wake(Downstream client) except -1:
    if not client.awake:
        client.awake = True
        client.batch.wake(client)
    return 0


cdef int _advance(Downstream client) except -1:
    """Move on from a head that is answered, and over those behind it that are."""
    cdef Pending pending = client.head
    while True:
        client.head = pending.next_of_client
        pending.next_of_client = None
        client.pending -= 1
        if pending.trace is not None:
            _leave(client, pending.trace)
            pending.trace = None
        pending = client.head
        if pending is None:
            client.tail = None
            return 0
        if pending.reply is None:
            if pending.request is not None and (<Request> pending.request).reason == ORIGIN:
                _defer(client, pending.request)
                pending.request = None
            return 0
        octets_append(&client.output, <char*> pending.reply, len(pending.reply))
        client.waiting_bytes -= len(pending.reply)
        pending.reply = None
