# Commands are looked at closer: their keys counted, their times noted.
# A part of downstream.pyx, which includes it.

# What judging a read may take without being noted: a hundredth of what is slow, as Redis has it.
cdef double WHILE = 0.0001  # seconds


cdef int _look(Downstream client, const char* frame, Py_ssize_t size, double now) except -1:
    """Judge a command, and look at it closer: it is due for that, or large."""
    cdef Sketches sketches = client.batch.sketches
    cdef int due = sketches.due()
    cdef Pending before = client.tail
    cdef Py_ssize_t owed = client.output_bytes
    cdef int verdict = _judge(client, frame, size, now)
    cdef Pending pending = client.tail if client.tail is not before else None
    cdef Trace trace
    cdef int index
    if verdict == WAIT:
        return WAIT
    _collect_words(frame, size)  # afresh: who was asked meanwhile may have used WORDS
    index = client.ruleset.find(frame + WORDS.items[0].at, WORDS.items[0].size)
    if index >= 0 and client.ruleset.rows[index].path == CONTAINER and WORDS.count > 1:
        index = _subcommand(client, frame, index)
    if index >= 0 and pending is not None and pending.reply is None:
        _count_keys(client, frame, size, index, due & COUNTED, now)
    if due & SAMPLED:
        trace = _trace(client, frame, size, index, now)
        trace.sampled = True
        trace.judged = client.batch.now()
        if pending is None or pending.reply is not None:
            _refuse(client, trace, pending, owed)
        else:
            pending.trace = trace
    return verdict


cdef int _count_keys(Downstream client, const char* frame, Py_ssize_t size, int index, bint counted,
                     double now) except -1:
    """Tell the sketches of the keys of a command that was let through, and of a large one."""
    cdef Sketches sketches = client.batch.sketches
    cdef bint large = size >= sketches.large
    cdef const uint8_t* key
    cdef Match found
    cdef Word* word
    cdef CommandRow* row = &client.ruleset.rows[index]
    cdef Py_ssize_t i
    if not (counted or large) or row.kind == KEYS_NONE or not _arity_fits(row):
        return 0
    if _find_keys(frame, row) not in (0, KEYS_BLOCKING):
        return 0
    # Which of several keys a large value is for is not looked for.
    large = large and KEYS.count == 1
    for i in range(KEYS.count):
        word = &WORDS.items[KEYS.items[i].word]
        key = <const uint8_t*> frame + word.at
        client.ruleset.match(key, word.size, &found)
        if counted:
            sketches.count(key, word.size, found.keyspace)
        if large:
            sketches.measure(key, word.size, found.keyspace, size, False, now)
    return 0


cdef int _weigh(Downstream client, bytes command, int index, int keyspace, Py_ssize_t size,
                double now) except -1:
    """Tell the sketches of the key of a command, as a node got it, that has a large reply."""
    cdef CommandRow* row = &client.ruleset.rows[index]
    cdef Word* word
    cdef bytes name
    _collect(command)
    if (row.kind == KEYS_NONE or _find_keys(<char*> command, row) not in (0, KEYS_BLOCKING)
            or KEYS.count != 1):
        return 0
    word = &WORDS.items[KEYS.items[0].word]
    name = command[word.at:word.at + word.size]
    if keyspace >= 0 and client.ruleset.spaces[keyspace].tag == LITERAL_TAG:
        name = name[len(client.ruleset.keyspaces[keyspace].hash_tag) + 2:]
    elif keyspace >= 0 and client.ruleset.spaces[keyspace].tag != NO_TAG:
        name = name.replace(b"{", b"", 1).replace(b"}", b"", 1)
    return client.batch.sketches.measure(
        <const uint8_t*> <char*> name, len(name), keyspace, size, True, now)


cdef Trace _trace(Downstream client, const char* frame, Py_ssize_t size, int index,
                  double received):
    """Return what is to be told of the command whose words are collected."""
    cdef Trace trace = Trace.__new__(Trace)
    cdef CommandRow* row = &client.ruleset.rows[index]
    cdef Match found
    cdef Word* word
    cdef Py_ssize_t i
    trace.words = []
    trace.sizes = []
    trace.keys = []
    for i in range(min(WORDS.count, MOST_WORDS)):
        word = &WORDS.items[i]
        trace.words.append(PyBytes_FromStringAndSize(frame + word.at, min(word.size, WORD_BYTES)))
        trace.sizes.append(word.size)
    trace.total = WORDS.count
    trace.ruleset = client.ruleset
    trace.size = size
    trace.received = received
    trace.row = index
    trace.keyspace = -1
    if (index < 0 or row.kind == KEYS_NONE or not _arity_fits(row)
            or _find_keys(frame, row) not in (0, KEYS_BLOCKING)):
        return trace
    for i in range(KEYS.count):
        word = &WORDS.items[KEYS.items[i].word]
        if i == 0:
            client.ruleset.match(<const uint8_t*> frame + word.at, word.size, &found)
            trace.keyspace = found.keyspace
        if KEYS.items[i].word < MOST_WORDS:
            trace.keys.append(KEYS.items[i].word)
    return trace


cdef int _refuse(Downstream client, Trace trace, Pending pending, Py_ssize_t owed) except -1:
    """Note in a trace the line with which its command was refused."""
    cdef bytes line = b""
    trace.outcome = REFUSED
    trace.replied = trace.judged
    if pending is not None:
        line = pending.reply
        pending.trace = trace
    else:
        if client.output_bytes > owed:
            line = client.output.data[client.output.end - (client.output_bytes - owed):client.output.end]
        _leave(client, trace)
    trace.reply_size = len(line)
    trace.error = _error_word(line)
    return 0


cdef int _settle(Downstream client, Pending pending, const char* data, Py_ssize_t size,
                 double now) except -1:
    """Note in a trace how and when its command was answered."""
    cdef Trace trace = pending.trace
    if trace.judged == 0:
        trace.judged = pending.judged
    trace.sent = pending.sent
    trace.replied = pending.replied if pending.replied > 0 else now
    trace.reply_size = size
    if data[0] == c"-":
        trace.outcome = ERROR
        trace.error = _error_word(data[:min(size, WORD_BYTES)])
    return 0


cdef int _leave(Downstream client, Trace trace) except -1:
    if client.traces is None:
        client.traces = []
    client.traces.append(trace)
    return 0


cdef int _stamp(Downstream client, Pending before, double received) except -1:
    """Note on what was taken since when it was judged, if that took a while."""
    cdef double now = client.batch.now()
    cdef Pending pending
    if now - received < WHILE:
        return 0
    pending = before.next_of_client if before is not None else client.head
    while pending is not None:
        pending.judged = now
        pending = pending.next_of_client
    return 0


cdef int _tell_seen(Downstream client) except -1:
    cdef list traces = client.traces
    client.traces = None
    return client.batch.tell(client.owner, traces)


cdef bytes _error_word(bytes line):
    """Return the code of an error line: its first word."""
    return b"".join(line[1:].split(None, 1)[:1])[:ERROR_BYTES]
