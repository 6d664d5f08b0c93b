# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Changing a command that passes, and writing commands of our own, without a Python object.

Always true: an edit leaves the words that are keys where they are, so places that were found in
the client's frame hold in the edited one; numbers are read as strictly as a node reads them.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy, strlen

from proxy.wire.frames cimport Octets, Word, Words, octets_append

cdef enum:
    NUMBER_BYTES = 24   # 20 of a 64-bit number with its sign, a mark and CR LF


cdef void edit_at(Edit* edit, Py_ssize_t first, Py_ssize_t dropped) noexcept:
    """Begin an edit: so many words from this one on give way."""
    edit.made = True
    edit.name = NULL
    edit.first = first
    edit.dropped = dropped
    edit.added = edit.size = 0


cdef void edit_word(Edit* edit, const char* word) noexcept:
    _add_text(edit, word, strlen(word))


cdef void edit_number(Edit* edit, int64_t number) noexcept:
    cdef char text[NUMBER_BYTES]
    _add_text(edit, text, _digits(text, number))


cdef void _add_text(Edit* edit, const char* word, Py_ssize_t size) noexcept:
    """Add a word; three of at most 20 bytes fit, and nothing makes an edit of more."""
    cdef char* text = edit.text + edit.size
    cdef Py_ssize_t head
    if edit.size + size + NUMBER_BYTES > EDIT_BYTES:
        return
    text[0] = c"$"
    head = 1 + _digits(text + 1, size)
    memcpy(text + head, "\r\n", 2)
    memcpy(text + head + 2, word, size)
    memcpy(text + head + 2 + size, "\r\n", 2)
    edit.size += head + size + 4
    edit.added += 1


cdef Py_ssize_t _digits(char* text, int64_t number) noexcept:
    """Write a number in decimal, at most 20 bytes; return how many. printf costs ten times this."""
    cdef char reversed_digits[NUMBER_BYTES]
    cdef uint64_t rest = -<uint64_t> number if number < 0 else <uint64_t> number
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t i = 0
    if number < 0:
        text[0] = c"-"
        i = 1
    while True:
        reversed_digits[size] = <char> (c"0" + <int> (rest % 10))
        size += 1
        rest //= 10
        if rest == 0:
            break
    while size > 0:
        size -= 1
        text[i] = reversed_digits[size]
        i += 1
    return i


cdef Py_ssize_t edit_write(Octets* out, const Edit* edit, const char* frame, Py_ssize_t size,
                           const Words* words) except -1:
    """Append a command as it is edited; return how many bytes that are."""
    cdef Py_ssize_t behind = edit.first + edit.dropped
    cdef Py_ssize_t begin = words.items[0].head
    cdef Py_ssize_t head = size if edit.first >= words.count else words.items[edit.first].head
    cdef Py_ssize_t tail = size if behind >= words.count else words.items[behind].head
    cdef Py_ssize_t written = put_head(out, words.count - edit.dropped + edit.added)
    if edit.name != NULL:
        written += put_word(out, edit.name, strlen(edit.name))
        begin = words.items[1].head
    octets_append(out, frame + begin, head - begin)
    octets_append(out, edit.text, edit.size)
    octets_append(out, frame + tail, size - tail)
    return written + (head - begin) + edit.size + (size - tail)


cdef bint word_is(const char* frame, const Words* words, Py_ssize_t index, const char* upper) noexcept:
    """Whether a word is this one, case ignored; upper holds letters only."""
    cdef const Word* word = &words.items[index]
    cdef Py_ssize_t i
    if upper[0] != (frame[word.at] & 0xDF) or word.size != <Py_ssize_t> strlen(upper):
        return False
    for i in range(1, word.size):
        if (frame[word.at + i] & 0xDF) != upper[i]:
            return False
    return True


cdef bint word_number(const char* frame, const Words* words, Py_ssize_t index, int64_t* value) noexcept:
    """Read a whole number in the one spelling that a node takes; whether it is one."""
    cdef const Word* word = &words.items[index]
    cdef const char* text = frame + word.at
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = word.size
    cdef bint negative = size > 1 and text[0] == c"-"
    cdef int64_t number = 0
    cdef int digit
    if negative:
        i = 1
    if size == i or size > 20 or (text[i] == c"0" and (size > 1)):
        return False
    while i < size:
        digit = text[i] - c"0"
        if not 0 <= digit <= 9 or number > (INT64_MAX - digit) // 10:
            return False
        number = number * 10 + digit
        i += 1
    value[0] = -number if negative else number
    return True


cdef Py_ssize_t put_head(Octets* out, Py_ssize_t words) except -1:
    """Append the beginning of a command of so many words; return the bytes."""
    cdef char text[NUMBER_BYTES]
    cdef Py_ssize_t size = _line(text, c"*", words)
    octets_append(out, text, size)
    return size


cdef Py_ssize_t _line(char* text, char mark, int64_t number) noexcept:
    cdef Py_ssize_t size
    text[0] = mark
    size = 1 + _digits(text + 1, number)
    memcpy(text + size, "\r\n", 2)
    return size + 2


cdef Py_ssize_t put_length(Octets* out, Py_ssize_t size) except -1:
    """Append what stands before a word of that size; return the bytes."""
    cdef char text[NUMBER_BYTES]
    cdef Py_ssize_t head = _line(text, c"$", size)
    octets_append(out, text, head)
    return head


cdef Py_ssize_t put_word(Octets* out, const char* word, Py_ssize_t size) except -1:
    cdef Py_ssize_t head = put_length(out, size)
    octets_append(out, word, size)
    octets_append(out, "\r\n", 2)
    return head + size + 2


cdef Py_ssize_t put_number(Octets* out, int64_t number) except -1:
    cdef char text[NUMBER_BYTES]
    return put_word(out, text, _digits(text, number))
