# Requests are taken apart: frames, lines that somebody types, and what is neither.
# A part of downstream.pyx, which includes it.

cdef bytes UNBALANCED = b"-ERR Protocol error: unbalanced quotes in request\r\n"
cdef bytes TOO_BIG_INLINE = b"-ERR Protocol error: too big inline request\r\n"
cdef bytes NOT_MULTIBULK = b"-ERR Protocol error: expected '*' or an inline command\r\n"
cdef bytes TOO_MANY_EMPTY = b"-ERR Protocol error: too many empty requests\r\n"
cdef bytes SPEAKS_HTTP = b"-ERR Protocol error: this port speaks the Redis protocol\r\n"


cdef Py_ssize_t _frame(Downstream client, const char* data, Py_ssize_t size) except -100:
    """Return the size of the multibulk request at data and fill WORDS, 0 while it is not whole.

    One that is refused before it is whole makes the client pass over the rest of it.
    """
    cdef int status
    cdef bint again = client.progress.left >= 0
    cdef Py_ssize_t before = client.progress.need
    WORDS.count = 0
    status = scan_request(data, size, &client.bounds, &client.progress, NULL if again else &WORDS)
    if status == COMPLETE and again:
        # The end is known; its words are collected from the start, once.
        progress_reset(&client.progress)
        status = scan_request(data, size, &client.bounds, &client.progress, &WORDS)
    if status == COMPLETE:
        size = client.progress.position
        progress_reset(&client.progress)
        return size
    if status < 0:
        _fail(client, fault_line(status))
    elif client.progress.need != before and client.progress.need > AHEAD_BYTES:
        _foresee(client, data, size)
    return 0


cdef Py_ssize_t _pass(Downstream client, const char* data, Py_ssize_t size) except -100:
    """Return how many bytes at data belong to the request that is passed over."""
    cdef int status = pass_request(data, size, &client.bounds, &client.progress)
    cdef Py_ssize_t passed = client.progress.position
    if status != INCOMPLETE:
        client.passing = False
        progress_reset(&client.progress)
    if status < 0:
        _fail(client, fault_line(status))
    return passed


cdef Py_ssize_t _line(Downstream client, const char* data, Py_ssize_t size) except -100:
    """Return the size of the inline request at data, its line feed included, 0 for not whole."""
    cdef const char* feed
    cdef uint8_t first = <uint8_t> data[0]
    cdef Py_ssize_t most = client.inline_bytes
    if not (c"a" <= (first | 32) <= c"z" or c"0" <= first <= c"9" or first == c" " or first == c"\t"
            or first == c"\r" or first == c"\n" or first == c'"' or first == c"'"):
        # A TLS hello, or the rest of a stream that has lost its step.
        _fail(client, NOT_MULTIBULK)
        return 0
    feed = <const char*> memchr(data, c"\n", size if size <= most else most)
    if feed == NULL:
        if size >= most:
            _fail(client, TOO_BIG_INLINE)
        return 0
    return feed - data + 1


cdef int _inline(Downstream client, const char* data, Py_ssize_t size, double now) except -1:
    cdef bytes line = data[:size - 1]
    cdef bytes frame
    words = None if b"\0" in line else split_inline(line.removesuffix(b"\r"))
    if words is None:
        _fail(client, UNBALANCED)
        return TAKEN
    if not words:
        return _empty(client, now)
    if words[0] == b"POST" or words[0] == b"Host:":
        # A browser that somebody has sent here: what follows is not from a Redis client.
        _fail(client, SPEAKS_HTTP)
        return TAKEN
    frame = pack(words)
    _collect(frame)
    if client.batch.sketches.passes(len(frame)):
        return _judge(client, <char*> frame, len(frame), now)
    return _look(client, <char*> frame, len(frame), now)


cdef int _empty(Downstream client, double now) except -1:
    if now - client.empty_since >= 1.0:
        client.empty_since = now
        client.empty_frames = 0
    client.empty_frames += 1
    if client.empty_frames > EMPTY_PER_SECOND:
        _fail(client, TOO_MANY_EMPTY)
    return TAKEN


cdef int _fail(Downstream client, bytes line) except -1:
    """Answer a protocol error and take nothing more: the position in the stream is in doubt."""
    client.closing = True
    progress_reset(&client.progress)
    return _reply(client, line, -1, client.ruleset.counters.families - 1)
