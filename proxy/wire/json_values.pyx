# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Whether a value is JSON that every reader understands in the same way.

Called for the values of keyspaces that say `value: {json: true}`, with bytes that are whole. The
grammar is RFC 8259. Stricter than it, because readers differ there and attacks live on that:
  * no member name twice in an object, and escapes are looked through: "a" is "\\u0061";
  * no member that changes the object itself in JavaScript: __proto__, constructor, prototype;
  * no lone surrogate: it is no text, and others refuse it or put another character in its place;
  * no byte order mark, nesting of 128 at most, and a limit on the members that are told apart.
Always true: no recursion, nothing allocated but for bytes that are there, one pass over them.
"""

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from os import urandom

from proxy.wire.frames cimport Octets, octets_append, octets_free

cdef enum:
    # A person's document has ten levels; parsers that recurse give up between 500 and 1,000.
    MOST_DEPTH = 128
    # Of all objects that are open at the same time: 4 MiB to tell them apart.
    MOST_MEMBERS = 131072
    FIRST_MEMBERS = 64
    # An array among the levels, where an object has the place of its first member.
    ARRAY = -1
    # What is larger is given back behind a value, so that one large one is not kept for ever.
    KEPT_MEMBERS = 4096

JSON_FAULTS = (
    "", "ends too early", "syntax", "not UTF-8", "byte order mark", "control character in a string",
    "escape", "lone surrogate", "number", "nested too deep", "duplicate member",
    "member __proto__, constructor or prototype", "too many members",
)

cdef struct Cursor:
    const uint8_t* data
    Py_ssize_t at
    Py_ssize_t size
    bint escaped            # the string that was read last has an escape

cdef struct Member:
    # The name of a member of an object that is open: bytes of the value, or decoded ones. Values
    # have 512 MiB at most.
    uint32_t at
    uint32_t size
    uint32_t hash
    uint32_t place          # in TABLE
    bint decoded

# One thread judges one value at a time, so all share these. Members are a stack: those of an
# object stand together, because an object within it has ended before its next one. So what an
# object put into the table of hashes is taken out again as if it had never been there, and open
# addressing needs no tombstones.
cdef Member* MEMBERS = NULL
cdef uint32_t* TABLE = NULL     # index into MEMBERS + 1, or 0
cdef uint32_t COUNT = 0
cdef uint32_t CAPACITY = 0      # of MEMBERS; the table has twice as many places
cdef Octets NAMES               # decoded names
NAMES.data = NULL
NAMES.start = NAMES.end = NAMES.capacity = 0

# Whoever writes values does not know it, so nobody can choose names that collide.
# All four words of SipHash's state are drawn, where the original mixes two with constants.
cdef uint64_t SECRET[4]
cdef bytes _secret = urandom(32)
memcpy(SECRET, <char*> _secret, 32)

cdef enum:
    # What a byte of a string is.
    PLAIN = 0
    QUOTE = 1
    ESCAPED = 2
    CONTROL = 3
    WIDE = 4

cdef uint8_t KIND[256]
cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080


cdef void _fill_kinds() noexcept:
    cdef int byte
    for byte in range(256):
        KIND[byte] = CONTROL if byte < 0x20 else WIDE if byte >= 0x80 else PLAIN
    KIND[c'"'] = QUOTE
    KIND[c"\\"] = ESCAPED


_fill_kinds()


def json_fault(object data):
    """Return what is wrong with a value, as an index into JSON_FAULTS, and at which byte; or None."""
    cdef Py_buffer view
    cdef Py_ssize_t at = 0
    cdef int status
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        status = judge_json(<const char*> view.buf, view.len, &at)
    finally:
        PyBuffer_Release(&view)
    return None if status == JSON_FINE else (status, at)


cdef int judge_json(const char* data, Py_ssize_t size, Py_ssize_t* fault) except -100:
    """Return JSON_FINE, or what is wrong with a value; fault is the byte where that shows."""
    cdef Cursor cursor
    cdef int status
    cursor.data = <const uint8_t*> data
    cursor.at = 0
    cursor.size = size
    cursor.escaped = False
    try:
        if size >= 3 and memcmp(data, b"\xef\xbb\xbf", 3) == 0:
            return JSON_MARK
        status = _document(&cursor)
    finally:
        _forget(0)
        NAMES.start = NAMES.end = 0
        if CAPACITY > KEPT_MEMBERS or NAMES.capacity > KEPT_MEMBERS:
            _give_back()
        fault[0] = cursor.at
    return status


cdef int _document(Cursor* cursor) except -100:
    """Read a value with all that is in it, and the end. Levels are an array: no recursion."""
    cdef int levels[MOST_DEPTH]
    cdef int depth = 0
    cdef int status
    cdef uint8_t mark
    while True:
        mark = _next(cursor)
        if mark == c'"':
            status = _string(cursor)
        elif mark == c"{" or mark == c"[":
            if depth == MOST_DEPTH:
                return JSON_DEEP
            levels[depth] = <int> COUNT if mark == c"{" else ARRAY
            depth += 1
            cursor.at += 1
            # "]" is two above "[", and "}" two above "{".
            if _next(cursor) != mark + 2:
                if mark == c"{":
                    status = _member(cursor, levels[depth - 1])
                    if status != JSON_FINE:
                        return status
                continue
            status = JSON_FINE
        else:
            status = _scalar(cursor, mark)
        if status != JSON_FINE:
            return status
        # A value has ended: so may what it stands in.
        while True:
            mark = _next(cursor)
            if depth == 0:
                return JSON_FINE if cursor.at == cursor.size else JSON_SYNTAX
            if mark == c",":
                cursor.at += 1
                if levels[depth - 1] != ARRAY:
                    status = _member(cursor, levels[depth - 1])
                    if status != JSON_FINE:
                        return status
                break
            if mark != (c"]" if levels[depth - 1] == ARRAY else c"}"):
                return _stopped(cursor)
            cursor.at += 1
            depth -= 1
            if levels[depth] != ARRAY:
                _forget(levels[depth])


cdef inline uint8_t _next(Cursor* cursor) noexcept:
    """Return the byte behind any space, 0 at the end; a 0 of the value is no token either."""
    cdef uint8_t mark
    while cursor.at < cursor.size:
        mark = cursor.data[cursor.at]
        if mark > c" " or not (mark == c" " or mark == c"\n" or mark == c"\r" or mark == c"\t"):
            return mark
        cursor.at += 1
    return 0


cdef int _stopped(Cursor* cursor) noexcept:
    """What it means that the byte here is not one that may stand here."""
    return JSON_CUT if cursor.at >= cursor.size else JSON_SYNTAX


cdef int _member(Cursor* cursor, uint32_t first) except -100:
    """Read a name, look whether it may stand here, and read the colon."""
    cdef Py_ssize_t at
    cdef int status
    if _next(cursor) != c'"':
        return _stopped(cursor)
    at = cursor.at
    status = _string(cursor)
    if status != JSON_FINE:
        return status
    status = _note(cursor, at + 1, cursor.at - at - 2, first)
    if status != JSON_FINE:
        cursor.at = at
        return status
    if _next(cursor) != c":":
        return _stopped(cursor)
    cursor.at += 1
    return JSON_FINE


cdef int _string(Cursor* cursor) noexcept:
    """Read a string from its first quote."""
    cdef const uint8_t* data = cursor.data
    cdef Py_ssize_t at = cursor.at + 1
    cdef Py_ssize_t size = cursor.size
    cdef uint64_t word
    cdef int status
    cdef uint8_t kind
    cursor.escaped = False
    while True:
        # Eight plain bytes in a few steps. Where one of them is below 0x20, above 0x7F, a quote or
        # a backslash, its highest bit is set in one of these; which one it is does not matter.
        while size - at >= 8:
            memcpy(&word, data + at, 8)
            if (word | (word - ONES * 0x20) | ((word ^ (ONES * 0x22)) - ONES)
                    | ((word ^ (ONES * 0x5C)) - ONES)) & HIGHS:
                break
            at += 8
        while at < size:
            kind = KIND[data[at]]
            if kind != PLAIN:
                break
            at += 1
        cursor.at = at
        if at >= size:
            return JSON_CUT
        if kind == QUOTE:
            cursor.at += 1
            return JSON_FINE
        if kind == CONTROL:
            return JSON_CONTROL
        if kind == WIDE:
            status = _wide(cursor)
        else:
            cursor.escaped = True
            status = _escape(cursor)
        if status != JSON_FINE:
            return status
        at = cursor.at


cdef int _wide(Cursor* cursor) noexcept:
    """Read the characters of two bytes or more that stand here (RFC 3629, table in section 4)."""
    cdef const uint8_t* data = cursor.data
    cdef Py_ssize_t at = cursor.at
    cdef Py_ssize_t size = cursor.size
    cdef uint8_t lead, second
    cdef int i, more
    while at < size and data[at] >= 0x80:
        lead = data[at]
        cursor.at = at
        if lead < 0xC2 or lead > 0xF4:
            return JSON_NOT_UTF8
        more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        for i in range(1, more + 1):
            if at + i == size:
                return JSON_CUT
            if data[at + i] & 0xC0 != 0x80:
                return JSON_NOT_UTF8
        second = data[at + 1]
        # Too long a form, a surrogate, beyond U+10FFFF: each shows in the second byte.
        if ((lead == 0xE0 and second < 0xA0) or (lead == 0xED and second > 0x9F)
                or (lead == 0xF0 and second < 0x90) or (lead == 0xF4 and second > 0x8F)):
            return JSON_NOT_UTF8
        at += more + 1
    cursor.at = at
    return JSON_FINE


cdef int _escape(Cursor* cursor) noexcept:
    """Read one escape from its backslash; a pair of surrogates is one."""
    cdef uint8_t mark
    cdef int code
    if cursor.at + 1 >= cursor.size:
        return JSON_CUT
    mark = cursor.data[cursor.at + 1]
    if mark != c"u":
        if _meaning(mark) == 0:
            return JSON_ESCAPE
        cursor.at += 2
        return JSON_FINE
    code = _code(cursor, cursor.at)
    if code < 0:
        return JSON_ESCAPE
    if 0xD800 <= code <= 0xDFFF:
        if code > 0xDBFF or not 0xDC00 <= _code(cursor, cursor.at + 6) <= 0xDFFF:
            return JSON_SURROGATE
        cursor.at += 6
    cursor.at += 6
    return JSON_FINE


cdef uint8_t _meaning(uint8_t mark) noexcept:
    """Return the character of a short escape, 0 where there is none."""
    if mark == c'"' or mark == c"\\" or mark == c"/":
        return mark
    if mark == c"n":
        return c"\n"
    if mark == c"t":
        return c"\t"
    if mark == c"r":
        return c"\r"
    if mark == c"b":
        return c"\b"
    return c"\f" if mark == c"f" else 0


cdef int _code(Cursor* cursor, Py_ssize_t at) noexcept:
    """Return the number of a \\uXXXX, or -1 where none stands."""
    cdef int code = 0
    cdef uint8_t mark
    cdef Py_ssize_t i
    if at + 6 > cursor.size or cursor.data[at] != c"\\" or cursor.data[at + 1] != c"u":
        return -1
    for i in range(at + 2, at + 6):
        mark = cursor.data[i]
        if c"0" <= mark <= c"9":
            code = code * 16 + mark - c"0"
        elif c"a" <= (mark | 32) <= c"f":
            code = code * 16 + (mark | 32) - c"a" + 10
        else:
            return -1
    return code


cdef int _scalar(Cursor* cursor, uint8_t mark) noexcept:
    """Read a number, or one of the three words."""
    if mark == c"-" or c"0" <= mark <= c"9":
        return _number(cursor)
    if mark == c"t":
        return _word(cursor, b"true", 4)
    if mark == c"f":
        return _word(cursor, b"false", 5)
    if mark == c"n":
        return _word(cursor, b"null", 4)
    return _stopped(cursor)


cdef int _word(Cursor* cursor, const char* word, Py_ssize_t size) noexcept:
    if cursor.size - cursor.at < size:
        return JSON_SYNTAX
    if memcmp(cursor.data + cursor.at, word, size):
        return JSON_SYNTAX
    cursor.at += size
    return JSON_FINE


cdef int _number(Cursor* cursor) noexcept:
    cdef Py_ssize_t at
    if cursor.data[cursor.at] == c"-":
        cursor.at += 1
    at = cursor.at
    if not _digits(cursor) or (cursor.data[at] == c"0" and cursor.at - at > 1):
        return JSON_NUMBER
    if cursor.at < cursor.size and cursor.data[cursor.at] == c".":
        cursor.at += 1
        if not _digits(cursor):
            return JSON_NUMBER
    if cursor.at < cursor.size and cursor.data[cursor.at] | 32 == c"e":
        cursor.at += 1
        if cursor.at < cursor.size and (cursor.data[cursor.at] == c"+"
                                        or cursor.data[cursor.at] == c"-"):
            cursor.at += 1
        if not _digits(cursor):
            return JSON_NUMBER
    return JSON_FINE


cdef inline bint _digits(Cursor* cursor) noexcept:
    """Read digits; whether there is one."""
    cdef Py_ssize_t first = cursor.at
    while cursor.at < cursor.size and c"0" <= cursor.data[cursor.at] <= c"9":
        cursor.at += 1
    return cursor.at > first


cdef int _note(Cursor* cursor, Py_ssize_t at, Py_ssize_t size, uint32_t first) except -100:
    """Put a name into the table, unless its object has it already or must not have it."""
    global COUNT
    cdef const uint8_t* name = cursor.data + at
    cdef bint decoded = cursor.escaped
    cdef uint32_t hash, place, index
    cdef Member* member
    if COUNT == MOST_MEMBERS:
        return JSON_CROWDED
    if COUNT == CAPACITY:
        _grow()
    if decoded:
        at = NAMES.end
        _decode(cursor, name, size)
        size = NAMES.end - at
        name = <const uint8_t*> NAMES.data + at
    if _dangerous(name, size):
        return JSON_DANGEROUS
    hash = _hash(name, size)
    place = hash & (2 * CAPACITY - 1)
    while TABLE[place]:
        index = TABLE[place] - 1
        member = &MEMBERS[index]
        if (member.hash == hash and index >= first and member.size == <uint32_t> size
                and memcmp(_name(cursor, member), name, size) == 0):
            return JSON_DUPLICATE
        place = (place + 1) & (2 * CAPACITY - 1)
    member = &MEMBERS[COUNT]
    member.at = at
    member.size = size
    member.hash = hash
    member.place = place
    member.decoded = decoded
    COUNT += 1
    TABLE[place] = COUNT
    return JSON_FINE


cdef inline const uint8_t* _name(Cursor* cursor, Member* member) noexcept:
    return (<const uint8_t*> NAMES.data if member.decoded else cursor.data) + member.at


cdef bint _dangerous(const uint8_t* name, Py_ssize_t size) noexcept:
    if size == 9:
        return memcmp(name, b"__proto__", 9) == 0 or memcmp(name, b"prototype", 9) == 0
    return size == 11 and memcmp(name, b"constructor", 11) == 0


cdef int _decode(Cursor* cursor, const uint8_t* name, Py_ssize_t size) except -1:
    """Append a name that was read before to NAMES, its escapes replaced by what they mean."""
    cdef Cursor part
    cdef Py_ssize_t first
    cdef int code
    cdef uint8_t mark
    part.data = name
    part.size = size
    part.at = 0
    while part.at < size:
        first = part.at
        while part.at < size and name[part.at] != c"\\":
            part.at += 1
        octets_append(&NAMES, <const char*> name + first, part.at - first)
        if part.at == size:
            return 0
        code = _code(&part, part.at)
        if code < 0:
            mark = _meaning(name[part.at + 1])
            octets_append(&NAMES, <const char*> &mark, 1)
            part.at += 2
            continue
        part.at += 6
        if 0xD800 <= code <= 0xDBFF:
            code = 0x10000 + ((code - 0xD800) << 10) + _code(&part, part.at) - 0xDC00
            part.at += 6
        _append_utf8(code)
    return 0


cdef int _append_utf8(int code) except -1:
    cdef uint8_t text[4]
    cdef int size = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
    cdef int i
    for i in range(size - 1, 0, -1):
        text[i] = 0x80 | (code & 0x3F)
        code >>= 6
    text[0] = code if size == 1 else <uint8_t> ((0xF00 >> size) & 0xFF) | code
    octets_append(&NAMES, <const char*> text, size)
    return 0


cdef inline uint64_t _turn(uint64_t value, int bits) noexcept:
    return (value << bits) | (value >> (64 - bits))


cdef inline void _round(uint64_t* v) noexcept:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _turn(v[1], 13) ^ v[0]
    v[3] = _turn(v[3], 16) ^ v[2]
    v[0] = _turn(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _turn(v[1], 17) ^ v[2]
    v[3] = _turn(v[3], 21) ^ v[0]
    v[2] = _turn(v[2], 32)


cdef inline uint64_t _tail(const uint8_t* name, Py_ssize_t left) noexcept:
    """Return up to seven bytes as a number, in reads that may overlap and never reach further."""
    cdef uint32_t low, high
    if left >= 4:
        memcpy(&low, name, 4)
        memcpy(&high, name + left - 4, 4)
        return low | <uint64_t> high << 8 * (left - 4)
    if left == 0:
        return 0
    return (name[0] | <uint64_t> name[left >> 1] << 8 * (left >> 1)
            | <uint64_t> name[left - 1] << 8 * (left - 1))


cdef uint32_t _hash(const uint8_t* name, Py_ssize_t size) noexcept:
    """SipHash-1-3 with the secret: what Python's own dict and Rust's use against chosen names."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef Py_ssize_t left = size
    v[0] = SECRET[0]
    v[1] = SECRET[1]
    v[2] = SECRET[2]
    v[3] = SECRET[3]
    while left >= 8:
        memcpy(&word, name, 8)
        v[3] ^= word
        _round(v)
        v[0] ^= word
        name += 8
        left -= 8
    word = <uint64_t> size << 56 | _tail(name, left)
    v[3] ^= word
    _round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    _round(v)
    _round(v)
    _round(v)
    return <uint32_t> (v[0] ^ v[1] ^ v[2] ^ v[3])


cdef int _grow() except -1:
    """Double the room for members; their places in the larger table are found again, in order."""
    global MEMBERS, TABLE, CAPACITY
    cdef uint32_t capacity = CAPACITY * 2 if CAPACITY else FIRST_MEMBERS
    cdef uint32_t* table = <uint32_t*> calloc(2 * capacity, sizeof(uint32_t))
    cdef Member* moved
    cdef uint32_t i, place
    if table == NULL:
        raise MemoryError()
    moved = <Member*> realloc(MEMBERS, capacity * sizeof(Member))
    if moved == NULL:
        free(table)
        raise MemoryError()
    MEMBERS = moved
    free(TABLE)
    TABLE = table
    CAPACITY = capacity
    for i in range(COUNT):
        place = MEMBERS[i].hash & (2 * capacity - 1)
        while table[place]:
            place = (place + 1) & (2 * capacity - 1)
        table[place] = i + 1
        MEMBERS[i].place = place
    return 0


cdef void _forget(uint32_t first) noexcept:
    """Take the members from this one on out of the table again."""
    global COUNT
    while COUNT > first:
        COUNT -= 1
        TABLE[MEMBERS[COUNT].place] = 0


cdef void _give_back() noexcept:
    global MEMBERS, TABLE, CAPACITY
    free(MEMBERS)
    free(TABLE)
    MEMBERS = NULL
    TABLE = NULL
    CAPACITY = 0
    octets_free(&NAMES)
