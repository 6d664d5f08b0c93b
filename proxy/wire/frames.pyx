# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Scanners: where a request or a reply ends, and where a request's words lie.

Called by `Downstream` and `Upstream` with bytes as they arrived, cut anywhere. Always true:
  * nothing is allocated from a length or count in a header, only for bytes that are there;
  * no recursion on data: a reply's nesting is a counter of elements still to come;
  * numbers follow our own rule (digits only, no sign but "-1" where null is legal, no leading
    zero, at most ten digits), stricter than Redis and much stricter than int();
  * a request that passes is canonical, so its bytes may be forwarded as they are.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy, memmove

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

cdef enum:
    NUMBER_DIGITS = 10
    # Errors and numbers of a node are short; a line without an end must not grow for ever.
    LINE_BYTES = 65536
    # A command's words are collected in an array that grows by doubling from here.
    FIRST_WORDS = 64
    FIRST_OCTETS = 512
    # What a queue may keep although it needs little of it: some reads of a client.
    LARGE_OCTETS = 256 * 1024

# More elements than any reply can hold in memory: stops the counter from wrapping.
cdef int64_t MOST_ELEMENTS = 1_000_000_000_000


cdef int octets_append(Octets* octets, const char* data, Py_ssize_t size) except -1:
    cdef Py_ssize_t held = octets.end - octets.start
    cdef Py_ssize_t capacity = octets.capacity
    cdef char* moved
    if octets.end + size > capacity:
        if octets.start > 0:
            memmove(octets.data, octets.data + octets.start, held)
            # Moving pays only where it freed half of the room; else the next append moves again.
            if octets.start < capacity // 2:
                capacity *= 2
            octets.start = 0
            octets.end = held
        if capacity == 0:
            capacity = FIRST_OCTETS
        while capacity < held + size:
            capacity *= 2
        if capacity != octets.capacity:
            moved = <char*> realloc(octets.data, capacity)
            if moved == NULL:
                raise MemoryError()
            octets.data = moved
            octets.capacity = capacity
    memcpy(octets.data + octets.end, data, size)
    octets.end += size
    return 0


cdef void octets_consume(Octets* octets, Py_ssize_t size) noexcept nogil:
    octets.start += size
    if octets.start == octets.end:
        octets.start = octets.end = 0


cdef void octets_fit(Octets* octets) noexcept nogil:
    """Give back most of the room where little of it is needed for what is left."""
    cdef Py_ssize_t held = octets.end - octets.start
    cdef Py_ssize_t capacity = octets.capacity
    cdef char* moved
    while capacity > LARGE_OCTETS and held <= capacity // 8:
        capacity //= 2
    if capacity == octets.capacity:
        return
    memmove(octets.data, octets.data + octets.start, held)
    octets.start = 0
    octets.end = held
    moved = <char*> realloc(octets.data, capacity)
    if moved != NULL:
        octets.data = moved
        octets.capacity = capacity


cdef void octets_free(Octets* octets) noexcept nogil:
    free(octets.data)
    octets.data = NULL
    octets.start = octets.end = octets.capacity = 0


cdef void progress_reset(Progress* progress) noexcept nogil:
    progress.position = 0
    progress.need = 0
    progress.left = -1


cdef int _number(const char* data, Py_ssize_t size, Py_ssize_t* position, int64_t* value,
                 bint may_be_negative) noexcept nogil:
    """Read digits and CR LF at position; BAD_COUNT for whatever is no number of ours."""
    cdef Py_ssize_t at = position[0]
    cdef Py_ssize_t first
    cdef int64_t number = 0
    cdef bint negative = False
    if at < size and data[at] == b"-":
        if not may_be_negative:
            return BAD_COUNT
        negative = True
        at += 1
    first = at
    while at < size and b"0" <= data[at] <= b"9":
        number = number * 10 + (data[at] - c"0")
        at += 1
        if at - first > NUMBER_DIGITS:
            return BAD_COUNT
    if at - first > 1 and data[first] == b"0":
        return BAD_COUNT
    if at >= size:
        return INCOMPLETE
    if at == first or data[at] != b"\r" or (negative and number == 0):
        return BAD_COUNT
    if at + 1 >= size:
        return INCOMPLETE
    if data[at + 1] != b"\n":
        return BAD_COUNT
    position[0] = at + 2
    value[0] = -number if negative else number
    return COMPLETE


cdef int _remember(Words* words, Py_ssize_t head, Py_ssize_t at, Py_ssize_t size) except -1:
    cdef Word* moved
    cdef Py_ssize_t capacity
    if words.count == words.capacity:
        capacity = words.capacity * 2 if words.capacity else FIRST_WORDS
        moved = <Word*> realloc(words.items, capacity * sizeof(Word))
        if moved == NULL:
            raise MemoryError()
        words.items = moved
        words.capacity = capacity
    words.items[words.count].head = head
    words.items[words.count].at = at
    words.items[words.count].size = size
    words.count += 1
    return 0


cdef int scan_request(const char* data, Py_ssize_t size, const Bounds* bounds,
                      Progress* progress, Words* words) except? -100:
    """Scan one multibulk request from data[0] == "*"; progress.position is its end when COMPLETE.

    words collects where each word lies, or is NULL to find the end only.
    """
    cdef Py_ssize_t position
    cdef Py_ssize_t head
    cdef int64_t number = 0
    cdef int status
    if size < progress.need:
        return INCOMPLETE
    if progress.left < 0:
        position = 1
        status = _number(data, size, &position, &number, True)
        if status != COMPLETE:
            return status
        if number > bounds.words:
            return TOO_MANY_WORDS
        progress.left = number if number > 0 else 0
        progress.position = position
    while progress.left > 0:
        head = position = progress.position
        if position >= size:
            progress.need = position + 1
            return INCOMPLETE
        if data[position] != b"$":
            return BAD_TYPE
        position += 1
        status = _number(data, size, &position, &number, False)
        if status != COMPLETE:
            progress.need = size + 1
            return BAD_LENGTH if status == BAD_COUNT else status
        if number > bounds.word_bytes:
            return TOO_LONG_WORD
        if position + number + 2 > size:
            progress.need = position + number + 2
            return INCOMPLETE
        if data[position + number] != b"\r" or data[position + number + 1] != b"\n":
            return BAD_TERMINATOR
        if words != NULL:
            _remember(words, head, position, number)
        progress.position = position + number + 2
        progress.left -= 1
    return COMPLETE


cdef int pass_request(const char* data, Py_ssize_t size, const Bounds* bounds,
                      Progress* progress) noexcept nogil:
    """Pass over a request of which nothing is kept; progress.position is how far data is passed.

    Begins at the head of a word, or where it stopped before; progress.left counts words to come,
    progress.need the bytes of the present one that are, its CR LF included.
    """
    cdef Py_ssize_t position = 0
    cdef Py_ssize_t at
    cdef int64_t number = 0
    cdef int status = INCOMPLETE
    progress.position = 0
    while progress.left > 0:
        if progress.need == 0:
            if position >= size:
                return INCOMPLETE
            if data[position] != b"$":
                return BAD_TYPE
            at = position + 1
            status = _number(data, size, &at, &number, False)
            if status != COMPLETE:
                return BAD_LENGTH if status == BAD_COUNT else status
            if number > bounds.word_bytes:
                return TOO_LONG_WORD
            progress.need = number + 2
            position = at
        if progress.need > 2:
            at = min(progress.need - 2, size - position)
            position += at
            progress.need -= at
        while 0 < progress.need <= 2 and position < size:
            if data[position] != (c"\r" if progress.need == 2 else c"\n"):
                return BAD_TERMINATOR
            position += 1
            progress.need -= 1
        progress.position = position
        if progress.need > 0:
            return INCOMPLETE
        progress.left -= 1
    return COMPLETE


cdef int split_line(const char* line, Py_ssize_t size, const Bounds* bounds, char* text,
                    Words* words) except? -100:
    """Take an inline command apart: its words come to lie one behind the other at text.

    The rule is that of redis-cli: double quotes with escapes (\\xHH, \\n, ...), single quotes with
    \\' only, and a closing quote must be followed by a space or the end. No word is longer than what
    it was written as, so text needs room for size bytes.
    """
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t filled = 0
    cdef Py_ssize_t first
    words.count = 0
    # Redis reads up to a zero byte and takes the rest for words that are not there.
    if memchr(line, 0, size) != NULL:
        return UNBALANCED
    while True:
        while at < size and _is_space(line[at]):
            at += 1
        if at == size:
            return COMPLETE
        first = filled
        # Only these end a word, though vertical tab and form feed may stand before one.
        while at < size and line[at] not in (c" ", c"\t", c"\r", c"\n"):
            if line[at] == c'"' or line[at] == c"'":
                at = _quoted(line, size, at, text, &filled)
                if at < 0 or (at < size and not _is_space(line[at])):
                    return UNBALANCED
                break
            text[filled] = line[at]
            filled += 1
            at += 1
        if words.count == bounds.words or filled - first > bounds.word_bytes:
            return TOO_LONG_LINE
        _remember(words, first, first, filled - first)


cdef Py_ssize_t _quoted(const char* line, Py_ssize_t size, Py_ssize_t at, char* text,
                        Py_ssize_t* filled) noexcept nogil:
    """Read what stands in quotes from the first of them on; return where it ends, or -1."""
    cdef char quote = line[at]
    cdef bint double = quote == c'"'
    cdef Py_ssize_t end = filled[0]
    cdef char mark
    at += 1
    while at < size:
        mark = line[at]
        at += 1
        if mark == quote:
            filled[0] = end
            return at
        if mark == c"\\" and at < size:
            if (double and line[at] == c"x" and at + 2 < size
                    and _hex(line[at + 1]) >= 0 and _hex(line[at + 2]) >= 0):
                mark = <char> (_hex(line[at + 1]) * 16 + _hex(line[at + 2]))
                at += 3
            elif double:
                mark = _escaped(line[at])
                at += 1
            elif line[at] == c"'":
                mark = c"'"
                at += 1
        text[end] = mark
        end += 1
    return -1


cdef char _escaped(char mark) noexcept nogil:
    if mark == c"n":
        return c"\n"
    if mark == c"r":
        return c"\r"
    if mark == c"t":
        return c"\t"
    if mark == c"b":
        return c"\b"
    return c"\a" if mark == c"a" else mark


cdef int _hex(char mark) noexcept nogil:
    if c"0" <= mark <= c"9":
        return mark - c"0"
    if c"a" <= (mark | 32) <= c"f":
        return (mark | 32) - c"a" + 10
    return -1


cdef bint _is_space(char mark) noexcept nogil:
    return mark == c" " or c"\t" <= mark <= c"\r"


cdef int scan_reply(const char* data, Py_ssize_t size, Progress* progress) noexcept nogil:
    """Scan one RESP2 or RESP3 reply from data[0]; progress.position is its end when COMPLETE."""
    cdef Py_ssize_t position
    cdef int64_t number = 0
    cdef int status
    cdef char kind
    cdef const char* end
    if size < progress.need:
        return INCOMPLETE
    if progress.left < 0:
        progress.left = 1
        progress.position = 0
    while progress.left > 0:
        position = progress.position
        if position >= size:
            progress.need = position + 1
            return INCOMPLETE
        kind = data[position]
        position += 1
        if kind == b"$" or kind == b"=" or kind == b"!":
            status = _number(data, size, &position, &number, True)
            if status != COMPLETE:
                progress.need = size + 1
                return BAD_LENGTH if status == BAD_COUNT else status
            if number >= 0:
                if position + number + 2 > size:
                    progress.need = position + number + 2
                    return INCOMPLETE
                position += number
                if data[position] != b"\r" or data[position + 1] != b"\n":
                    return BAD_TERMINATOR
                position += 2
            elif number != -1:
                return BAD_LENGTH
            progress.left -= 1
        elif kind == b"*" or kind == b"~" or kind == b">" or kind == b"%" or kind == b"|":
            status = _number(data, size, &position, &number, True)
            if status != COMPLETE:
                progress.need = size + 1
                return status
            if number < -1:
                return BAD_COUNT
            if number > 0:
                progress.left += 2 * number if kind == b"%" or kind == b"|" else number
                if progress.left > MOST_ELEMENTS:
                    return BAD_COUNT
            # An attribute stands before the reply that it describes, so it answers nothing itself.
            if kind != b"|":
                progress.left -= 1
        elif (kind == b"+" or kind == b"-" or kind == b":" or kind == b"_" or kind == b"#"
              or kind == b"," or kind == b"("):
            end = <const char*> memchr(data + position, b"\r", size - position)
            # Asked of a whole line too, or its fate would depend on how it was cut on its way.
            if (data + size if end == NULL else end) - data - position > LINE_BYTES:
                return TOO_LONG_LINE
            if end == NULL or end + 1 >= data + size:
                progress.need = size + 1
                return INCOMPLETE
            if end[1] != b"\n":
                return BAD_TERMINATOR
            position = end - data + 2
            progress.left -= 1
        else:
            return BAD_TYPE
        progress.position = position
    return COMPLETE


FAULTS = {
    BAD_COUNT: b"-ERR Protocol error: invalid multibulk length\r\n",
    BAD_LENGTH: b"-ERR Protocol error: invalid bulk length\r\n",
    BAD_TYPE: b"-ERR Protocol error: expected '$'\r\n",
    BAD_TERMINATOR: b"-ERR Protocol error: expected CR LF after a bulk\r\n",
    TOO_MANY_WORDS: b"-ERR Protocol error: invalid multibulk length\r\n",
    TOO_LONG_WORD: b"-ERR Protocol error: invalid bulk length\r\n",
    TOO_LONG_LINE: b"-ERR Protocol error: too big inline request\r\n",
    UNBALANCED: b"-ERR Protocol error: unbalanced quotes in request\r\n",
}


cpdef bytes fault_line(int status):
    return FAULTS[status]


cpdef bytes pack(object arguments):
    """Return the canonical frame of a command."""
    cdef list parts = [b"*%d\r\n" % len(arguments)]
    for word in arguments:
        parts.append(b"$%d\r\n" % len(word))
        parts.append(word)
        parts.append(b"\r\n")
    return b"".join(parts)


def frame_end(object data, Py_ssize_t position):
    """Return where the complete reply that starts at position ends, or -1."""
    cdef Py_buffer view
    cdef Progress progress
    cdef int status
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if position >= view.len:
            return -1
        progress_reset(&progress)
        status = scan_reply(<const char*> view.buf + position, view.len - position, &progress)
    finally:
        PyBuffer_Release(&view)
    if status < 0:
        raise ValueError(f"these bytes are no reply: {fault_line(status).decode().strip()}")
    return position + progress.position if status == COMPLETE else -1
