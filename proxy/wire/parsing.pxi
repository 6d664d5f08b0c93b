# Requests are taken apart: frames, lines that somebody types, and what is neither.
# A part of downstream.pyx, which includes it.

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
        _fail(client, _fault(client, status, data))
    elif client.progress.need != before and client.progress.need > AHEAD_BYTES:
        _foresee(client, data, size)
    return 0


cdef bytes _fault(Downstream client, int status, const char* data):
    """Return what Redis says of bytes at data that are no request."""
    cdef char found
    if status == TOO_MANY_WORDS and client.role_name is None:
        return b"-ERR Protocol error: unauthenticated multibulk length\r\n"
    if status == TOO_LONG_WORD and client.role_name is None:
        return b"-ERR Protocol error: unauthenticated bulk length\r\n"
    if status == BAD_TYPE:
        found = data[client.progress.position]
        # An error is one line, whatever it speaks of.
        return b"-ERR Protocol error: expected '$', got '%c'\r\n" % (
            c" " if found == c"\r" or found == c"\n" else <uint8_t> found)
    return fault_line(status)


cdef Py_ssize_t _pass(Downstream client, const char* data, Py_ssize_t size) except -100:
    """Return how many bytes at data belong to the request that is passed over."""
    cdef int status = pass_request(data, size, &client.bounds, &client.progress)
    cdef Py_ssize_t passed = client.progress.position
    if status != INCOMPLETE:
        client.passing = False
        progress_reset(&client.progress)
    if status < 0:
        _fail(client, _fault(client, status, data))
    return passed


cdef Py_ssize_t _line(Downstream client, const char* data, Py_ssize_t size) except -100:
    """Return the size of the inline request at data, its line feed included, 0 for not whole."""
    cdef const char* feed
    cdef uint8_t first = <uint8_t> data[0]
    cdef Py_ssize_t most = client.inline_bytes
    if not (c"\t" <= first <= c"\r" or c" " <= first <= c"~") or first == c"$":
        # A TLS hello, or a word without its command: what follows is no line either.
        _fail(client, NOT_MULTIBULK)
        return 0
    feed = <const char*> memchr(data, c"\n", size if size <= most else most)
    if feed == NULL:
        if size >= most:
            _fail(client, fault_line(TOO_LONG_LINE))
        return 0
    return feed - data + 1


cdef int _inline(Downstream client, const char* data, Py_ssize_t size, double now) except -1:
    """Judge the inline request at data, its line feed included, as the frame that it stands for."""
    cdef bytes text = PyBytes_FromStringAndSize(NULL, size)
    cdef Py_ssize_t end = size - 1
    cdef Octets frame
    cdef int status
    if end > 0 and data[end - 1] == c"\r":
        end -= 1
    status = split_line(data, end, &client.bounds, <char*> text, &WORDS)
    if status < 0:
        _fail(client, fault_line(status))
        return TAKEN
    if not WORDS.count:
        return _empty(client, now)
    frame.data = NULL
    frame.start = frame.end = frame.capacity = 0
    try:
        _put_words(&frame, <char*> text)
        if client.batch.sketches.passes(frame.end):
            return _judge(client, frame.data, frame.end, now)
        return _look(client, frame.data, frame.end, now)
    finally:
        octets_free(&frame)


cdef int _put_words(Octets* frame, const char* text) except -1:
    """Write WORDS, which lie in text, as a frame, in which they lie from then on."""
    cdef Word* word
    cdef Py_ssize_t i
    put_head(frame, WORDS.count)
    for i in range(WORDS.count):
        word = &WORDS.items[i]
        word.head = frame.end
        put_word(frame, text + word.at, word.size)
        word.at = frame.end - 2 - word.size
    return 0


cdef bint _speaks_http(const char* frame) noexcept:
    """Whether the command is a line of a browser that somebody has sent here: not Redis' to run."""
    cdef Word* word = &WORDS.items[0]
    cdef const char* name = frame + word.at
    return ((word.size == 4 and strncasecmp(name, "post", 4) == 0)
            or (word.size == 5 and strncasecmp(name, "host:", 5) == 0))


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
