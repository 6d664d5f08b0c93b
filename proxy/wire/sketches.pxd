# cython: language_level=3
from libc.stdint cimport int16_t, int64_t, uint8_t, uint64_t

cdef enum:
    # What a command is due for.
    SAMPLED = 1
    COUNTED = 2
    # Of a command that is written about, and of each word.
    MOST_WORDS = 32
    WORD_BYTES = 256


cdef struct HotKey:
    uint64_t hash
    double count          # looks at it, older ones for less
    double error          # of which so many may have been at keys that it has replaced
    int keyspace
    int place             # in the heap
    Py_ssize_t size       # of what is kept of its name


cdef struct BigKey:
    uint64_t hash
    int64_t bytes         # 0 for none
    double seen           # when it was that large
    bint replied          # it was the reply that was
    Py_ssize_t size


cdef class Trace:
    # One command that is written about, from its request to the write of its reply.
    cdef readonly list words       # the first MOST_WORDS, each cut to WORD_BYTES
    cdef readonly list sizes       # of those words, whole
    cdef readonly Py_ssize_t total  # how many words it has
    cdef readonly list keys        # which of those words are keys
    cdef readonly object ruleset
    cdef readonly int row
    cdef readonly int keyspace
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t reply_size
    cdef readonly double received
    cdef readonly double judged
    cdef readonly double sent
    cdef readonly double replied
    cdef readonly int outcome
    cdef readonly bytes error
    cdef readonly object node
    cdef readonly bint sampled
    cdef readonly bint handled     # a handler ran it
    cdef readonly bint renamed     # its keys are named as nodes know them


cdef class Sketches:
    cdef int64_t left              # commands until one is due for something
    cdef int64_t drawn             # the same when it was drawn
    cdef int64_t to_sample
    cdef int64_t to_count
    cdef Py_ssize_t large          # bytes of a request or a reply from which on it is looked at
    cdef double sampled_share
    cdef double counted_share
    cdef uint64_t state
    cdef uint64_t secret[2]
    cdef readonly bint plain       # names of keys are kept
    cdef readonly int keyspaces
    cdef readonly int64_t looks    # at keys, since the start
    cdef HotKey* hot
    cdef int16_t* heap             # of hot, the smallest count first
    cdef int16_t* index            # from hashes to hot, -1 for nothing
    cdef int used
    cdef BigKey* big               # BIG_KEYS of each keyspace, those of none first
    cdef uint8_t* hot_names
    cdef uint8_t* big_names
    cdef inline bint passes(self, Py_ssize_t size) noexcept:
        self.left -= 1
        return self.left > 0 and size < self.large
    cdef int due(self) noexcept
    cdef int64_t _skip(self, double share) noexcept
    cdef int count(self, const uint8_t* key, Py_ssize_t size, int keyspace) except -1
    cdef int measure(self, const uint8_t* key, Py_ssize_t size, int keyspace, int64_t bytes,
                     bint replied, double now) except -1
    cdef int _find(self, uint64_t hash) noexcept
    cdef void _enter(self, int entry) noexcept
    cdef void _leave(self, uint64_t hash) noexcept
    cdef void _sink(self, int place) noexcept
    cdef void _rise(self, int place) noexcept
    cdef void _put(self, int place, int entry) noexcept


cdef uint64_t siphash(const uint64_t* secret, const uint8_t* data, Py_ssize_t size) noexcept nogil
