# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Locks that others hold: who asks for one is refused here, while that is as good as a question.

`handlers.gate` says which, for how long, and takes back what is no longer so; the data plane looks
here before it makes a Request of a command that takes a lock. Of a crowd before one lock Python
sees those who come when nobody knows.

Always true: nobody is refused whom a value may name as the holder, whatever else it says.
"""

from libc.string cimport memchr, memcmp

from cpython.bytes cimport PyBytes_FromStringAndSize

from proxy.wire.json_values cimport JSON_FINE, judge_json

# Locks that are known; of too many all are forgotten, and asked about again.
MOST = 10_000

# The longest name of an owner or a lock, in bytes: an index of PostgreSQL's takes two of them.
LONGEST_NAME = 1024
cdef Py_ssize_t LONGEST = LONGEST_NAME

# How much longer a busy loop makes an answer last at most, seconds.
cdef double BUSY = 0.2

cdef extern from "<string.h>" nogil:
    void* memmem(const void* text, size_t size, const void* part, size_t length)


cdef const char* _find(const char* text, Py_ssize_t size, bytes part) noexcept:
    return <const char*> memmem(text, size, <char*> part, len(part))


cdef bint _is_plain(const char* text, Py_ssize_t size) noexcept:
    """Whether a text is of letters that are ASCII."""
    cdef Py_ssize_t i
    for i in range(size):
        if not 0x20 <= <unsigned char> text[i] < 0x7F:
            return False
    return True


cdef bint is_name(const char* text, Py_ssize_t size) noexcept:
    """Whether a text is plain, and no longer than names may be."""
    return size <= LONGEST and _is_plain(text, size)


cdef bint _tells(const char* rest, Py_ssize_t size) noexcept:
    """Whether behind the name of a member comes a name, as a text or a whole number."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t first
    cdef const char* end
    while i < size and (rest[i] == c" " or rest[i] == c":"):
        i += 1
    if i + 1 >= size or i == 0:
        return False
    if rest[i] == c'"':
        i += 1
        end = <const char*> memchr(rest + i, c'"', size - i)
        return end != NULL and 0 < end - (rest + i) <= LONGEST
    first = i
    if not c"0" <= rest[i] <= c"9":
        return False
    while i < size and c"0" <= rest[i] <= c"9":
        i += 1
    return i < size and i - first <= LONGEST and rest[i] in (c",", c"}", c" ")


cdef class Refusal:
    """What is known of one lock."""

    cdef bint holds(self, const char* owner, Py_ssize_t size) noexcept:
        """Whether somebody is the holder."""
        return (self.holder is not None and size == len(self.holder)
                and memcmp(owner, <char*> self.holder, size) == 0)

    cdef bint names(self, const char* value, Py_ssize_t size) noexcept:
        """Whether a value may name the holder, or no owner at all.

        No is said of plain ones alone: of letters that are ASCII, and of JSON that is one object of
        texts and numbers without an escape, with the owner in it once.
        """
        cdef Py_ssize_t i, at = 0
        cdef const char* found
        if not _is_plain(value, size) or memchr(value, c"\\", size) != NULL:
            return True
        if self.member is None:
            return not 0 < size <= LONGEST or self.holds(value, size)
        if not size or value[0] != c"{" or memchr(value + 1, c"{", size - 1) != NULL:
            return True
        if memchr(value, c"[", size) != NULL or judge_json(value, size, &at) != JSON_FINE:
            return True
        if self.holder is not None and _find(value, size, self.holder) != NULL:
            return True
        found = _find(value, size, self.member)
        if found == NULL:
            return True
        i = found - value + len(self.member)
        return _find(value + i, size - i, self.member) != NULL or not _tells(value + i, size - i)

    cdef bytes line(self, int protocol, double now):
        """Return the reply of a named operation: its outcome, and when the lock ends."""
        cdef long long left = <long long> ((self.ends - now) * 1000)
        mark = b"%" if protocol == 3 else b"*"
        pairs = b"$7\r\noutcome\r\n$%d\r\n%b\r\n" % (len(self.outcome), self.outcome)
        if not self.ends:
            return b"%b%d\r\n%b" % (mark, 1 if protocol == 3 else 2, pairs)
        return b"%b%d\r\n%b$13\r\nexpires_in_ms\r\n:%d\r\n" % (
            mark, 2 if protocol == 3 else 4, pairs, max(left, 0))


cdef class Refusals:
    """All of them."""

    def __init__(self):
        self.held = {}

    def close(self, bytes key not None, str outcome not None, double until, str holder=None,
              tuple path=(), double ends=0.0, double grace=0.0):
        """Refuse a lock until a time of the loop; but not to its holder.

        Then one asks again, and for some seconds of grace others are refused meanwhile. By the path
        of its policy a value is the owner, or JSON with the owner at the end of it.
        """
        cdef Refusal refusal = Refusal.__new__(Refusal)
        refusal.outcome = outcome.encode()
        refusal.until = until
        refusal.late = until + grace
        refusal.asked = False
        refusal.ends = ends
        refusal.holder = None if holder is None else holder.encode()
        # Of an owner deeper inside Python is asked.
        refusal.member = b'"%b"' % path[0].encode() if path else None
        if len(path) > 1:
            refusal.member = b"{"
        if len(self.held) >= MOST:
            self.held.clear()
        self.held[key] = refusal

    def open(self, bytes key not None):
        """Refuse a lock no longer."""
        self.held.pop(key, None)

    cdef Refusal find(self, const char* key, Py_ssize_t size, double now, double turn):
        """Return what is known of a lock; None where it has to be asked.

        A turn of the loop takes so many seconds. What is heard in one is told in the next and used
        in the one after that: of a crowd that makes them longer than grace nobody would be refused
        here, and so they would stay as long.
        """
        cdef Refusal refusal
        if not self.held:
            return None
        refusal = self.held.get(PyBytes_FromStringAndSize(key, size))
        if refusal is None or now < refusal.until:
            return refusal
        if now >= refusal.late + min(2 * turn, BUSY) or (refusal.ends and now >= refusal.ends):
            return None
        if not refusal.asked:
            refusal.asked = True
            return None
        return refusal
