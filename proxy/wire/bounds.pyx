# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Arguments that ask for much in few bytes: counts, spans, offsets and patterns, held to limits.

`Downstream` asks for commands that have a bound, of its role or of a key's keyspace. Always true:
numbers are read as strictly as nodes read them; what is no number, or no known option, is left to
the node, which refuses it; a number that does not fit in 64 bits is over every limit. Options are
read one by one, so the value of one is not taken for another.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from proxy.wire.frames cimport Word, Words

cdef enum:
    # rules.BoundKind
    COUNT = 0
    MATCH_BYTES = 1
    MATCH_STARS = 2
    WORD_BYTES = 3
    WORD_STARS = 4
    SPAN = 5
    RANGE = 6
    LIMITED = 7
    NUMBER = 8
    MAGNITUDE = 9
    BITS = 10
    POSITIONS = 11
    # What a word of digits is.
    NO_NUMBER = 0
    A_NUMBER = 1
    TOO_LARGE = 2

cdef int64_t MOST = 0x7FFFFFFFFFFFFFFF


cdef class ArgumentBounds:
    """The bounds of one role or keyspace."""

    def __init__(self, bounds, int commands):
        cdef int i
        marks = bytearray(commands)
        self.rows = <BoundRow*> calloc(len(bounds) + 1, sizeof(BoundRow))
        if self.rows == NULL:
            raise MemoryError()
        self.count = len(bounds)
        self.errors = [bound.error for bound in bounds]
        for i, bound in enumerate(bounds):
            if not 0 <= bound.command < commands:
                raise ValueError("a bound names a command that is not there")
            self.rows[i].command, self.rows[i].kind = bound.command, bound.kind
            self.rows[i].at, self.rows[i].limit = bound.at, bound.limit
            marks[<Py_ssize_t> bound.command] = 1
        self.marks = bytes(marks)

    def __dealloc__(self):
        free(self.rows)

    cdef bytes refusal(self, const char* frame, Words* words, int command):
        """Return the error line of the first bound that a command exceeds, or None."""
        cdef int i
        for i in range(self.count):
            if self.rows[i].command == command and over(frame, words, &self.rows[i]):
                return self.errors[i]
        return None


cdef bint over(const char* frame, Words* words, BoundRow* row) noexcept:
    """Whether a command, whose arity is right, asks for more than a bound allows."""
    cdef int kind = row.kind
    cdef Py_ssize_t at = row.at
    if kind == COUNT or kind == MATCH_BYTES or kind == MATCH_STARS:
        return _over_options(frame, words, row)
    if kind == WORD_BYTES:
        return at < words.count and words.items[at].size > row.limit
    if kind == WORD_STARS:
        return at < words.count and _stars(frame, &words.items[at]) > row.limit
    if kind == SPAN:
        return _over_span(frame, words, at, row.limit)
    if kind == RANGE or kind == LIMITED:
        return _over_range(frame, words, row)
    if kind == NUMBER or kind == MAGNITUDE:
        return at < words.count and _above(frame, &words.items[at], row.limit, kind == MAGNITUDE)
    if kind == BITS:
        return _over_bits(frame, words, at, row.limit)
    return _over_positions(frame, words, at, row.limit)


cdef bint _spells(const char* frame, Words* words, Py_ssize_t index, const char* upper,
                  Py_ssize_t size) noexcept:
    """Whether a word is this one, case ignored; upper holds letters only."""
    cdef Word* word = &words.items[index]
    cdef Py_ssize_t i
    if word.size != size:
        return False
    for i in range(size):
        if (frame[word.at + i] & 0xDF) != upper[i]:
            return False
    return True


cdef int _number(const char* text, Py_ssize_t size, int64_t* value) noexcept:
    """Read a number as Redis does: no plus, no space, no leading zero, no minus before a zero."""
    cdef bint negative = size > 0 and text[0] == c"-"
    cdef uint64_t total = 0
    cdef Py_ssize_t i = 1 if negative else 0
    cdef bint large
    value[0] = 0
    if size == 1 and text[0] == c"0":
        return A_NUMBER
    if i >= size or not c"1" <= text[i] <= c"9":
        return NO_NUMBER
    large = size - i > 19
    while i < size:
        if not c"0" <= text[i] <= c"9":
            return NO_NUMBER
        # 19 digits always fit in 64 bits without a sign.
        if not large:
            total = total * 10 + <uint64_t> (text[i] - c"0")
        i += 1
    if large or total > <uint64_t> MOST:
        return TOO_LARGE
    value[0] = -<int64_t> total if negative else <int64_t> total
    return A_NUMBER


cdef bint _above(const char* frame, Word* word, int64_t limit, bint either) noexcept:
    """Whether a number is above a limit; with either, below its negative too."""
    cdef int64_t value
    cdef int found = _number(frame + word.at, word.size, &value)
    if found == A_NUMBER:
        return value > limit or (either and value < -limit)
    return found == TOO_LARGE


cdef Py_ssize_t _stars(const char* frame, Word* word) noexcept:
    cdef Py_ssize_t i
    cdef Py_ssize_t stars = 0
    for i in range(word.size):
        stars += frame[word.at + i] == c"*"
    return stars


cdef bint _over_options(const char* frame, Words* words, BoundRow* row) noexcept:
    """SCAN and its kin: COUNT, and the pattern behind MATCH."""
    cdef Py_ssize_t i = row.at
    cdef Word* value
    while i + 1 < words.count:
        value = &words.items[i + 1]
        if _spells(frame, words, i, "COUNT", 5):
            if row.kind == COUNT and _above(frame, value, row.limit, False):
                return True
            i += 2
        elif _spells(frame, words, i, "MATCH", 5):
            if row.kind == MATCH_BYTES and value.size > row.limit:
                return True
            if row.kind == MATCH_STARS and _stars(frame, value) > row.limit:
                return True
            i += 2
        elif _spells(frame, words, i, "TYPE", 4):
            i += 2
        else:
            i += 1
    return False


cdef bint _over_span(const char* frame, Words* words, Py_ssize_t at, int64_t limit) noexcept:
    """Whether more elements may lie between two indexes. How many there are is not known here."""
    cdef int64_t start, stop
    cdef int first, last
    if at + 1 >= words.count:
        return False
    first = _number(frame + words.items[at].at, words.items[at].size, &start)
    last = _number(frame + words.items[at + 1].at, words.items[at + 1].size, &stop)
    if first == NO_NUMBER or last == NO_NUMBER:
        return False
    if first == TOO_LARGE or last == TOO_LARGE:
        return True
    if start >= 0 and stop < 0:
        # From the front to somewhere before the end: as many as there are.
        return True
    if start >= 0 or stop < 0:
        # No overflow: both have one sign.
        return stop >= start and stop - start >= limit
    # From before the end to an index from the front: no more than either leaves.
    return stop >= limit and start < -limit


cdef bint _over_range(const char* frame, Words* words, BoundRow* row) noexcept:
    """ZRANGE: by index a span; by score or name what LIMIT says, which must be there then."""
    cdef Py_ssize_t i = row.at + 2
    cdef bint by_index = row.kind == RANGE
    cdef bint limited = False
    cdef int64_t count
    cdef int found
    while i < words.count:
        if _spells(frame, words, i, "LIMIT", 5) and i + 2 < words.count:
            found = _number(frame + words.items[i + 2].at, words.items[i + 2].size, &count)
            # A negative count is all of them.
            if found == TOO_LARGE or (found == A_NUMBER and (count < 0 or count > row.limit)):
                return True
            limited = True
            i += 3
        else:
            if _spells(frame, words, i, "BYSCORE", 7) or _spells(frame, words, i, "BYLEX", 5):
                by_index = False
            i += 1
    return _over_span(frame, words, row.at, row.limit) if by_index else not limited


cdef bint _over_bits(const char* frame, Words* words, Py_ssize_t at, int64_t limit) noexcept:
    """BITFIELD: the last bit of each field, whose offset may be counted in fields (#)."""
    cdef Py_ssize_t i = at
    cdef Word* word
    cdef const char* text
    cdef int64_t width, offset
    cdef int found
    while i + 2 < words.count:
        if not (_spells(frame, words, i, "GET", 3) or _spells(frame, words, i, "SET", 3)
                or _spells(frame, words, i, "INCRBY", 6)):
            i += 1
            continue
        word = &words.items[i + 1]
        width = 0
        if word.size > 1 and _number(frame + word.at + 1, word.size - 1, &width) != A_NUMBER:
            width = 0
        word = &words.items[i + 2]
        text = frame + word.at
        if word.size and text[0] == c"#":
            found = _number(text + 1, word.size - 1, &offset)
            # A width that no node takes is the node's to refuse.
            if found == A_NUMBER and 0 < width <= 64:
                if offset > MOST / width - 1:
                    return True
                offset *= width
        else:
            found = _number(text, word.size, &offset)
        if found == TOO_LARGE:
            return True
        if found == A_NUMBER and 0 < width <= 64 and offset > limit - width + 1:
            return True
        i += 3
    return False


cdef bint _over_positions(const char* frame, Words* words, Py_ssize_t at, int64_t limit) noexcept:
    """LPOS: COUNT 0 is all positions."""
    cdef Py_ssize_t i = at
    cdef int64_t value
    cdef int found
    while i + 1 < words.count:
        if _spells(frame, words, i, "COUNT", 5):
            found = _number(frame + words.items[i + 1].at, words.items[i + 1].size, &value)
            if found == TOO_LARGE or (found == A_NUMBER and (value == 0 or value > limit)):
                return True
        i += 2
    return False
