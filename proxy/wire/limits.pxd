# cython: language_level=3
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    # rules.Per
    PER_CLIENT = 0
    PER_USER = 1
    PER_IP = 2
    PER_KEY = 3
    PER_KEYSPACE = 4
    PER_GLOBAL = 5
    PER_SEGMENT = 6
    # What became of one limit's check.
    ROOM = 0
    FULL = 1     # refused
    SPARED = 3   # would be refused, and is on trial
    UNKNOWN = 2  # shared, and no reserved cell is at hand: ask Redis, then judge again


cdef struct Bucket:
    # A cell is an id's hash, and until when something is known of it: a free one may be anybody's.
    # What a table counts by lies behind these.
    uint64_t keys[8]
    double times[8]


cdef struct Rings:
    # Behind the bucket of a window: where the next acceptance goes, and how many there are.
    uint16_t nexts[8]
    uint16_t counts[8]


cdef struct Stock:
    # Behind the bucket of a shared limit; `times` says until when reserved cells may be spent.
    double closed[8]    # until when there is no room, as Redis has said
    double away[8]      # until when Redis is not asked, because it could not be
    double granted[8]   # when cells were reserved last
    int left[8]
    int batch[8]


@cython.final
cdef class Table:
    cdef char* first
    cdef readonly Py_ssize_t stride
    cdef readonly uint64_t buckets
    cdef readonly int64_t overflows
    cdef uint64_t secret[2]
    cdef uint64_t mark(self, const uint8_t* text, Py_ssize_t size) noexcept
    cdef Bucket* bucket(self, uint64_t place) noexcept
    cdef int find(self, uint64_t mark, double now, Bucket** found, Bucket** home) noexcept


@cython.final
cdef class Rate:
    cdef readonly object row
    cdef readonly Table table      # of a local limit, or of this sidecar's share
    cdef readonly Table stock      # of a shared limit: cells reserved in Redis
    cdef public object reserve     # callable: who asks Redis for cells
    cdef readonly int sidecars     # that share the limit, as far as is known
    cdef int per
    cdef int segment
    cdef int amount
    cdef int enforced              # of a hundred breaches, so many are refused
    cdef int unavailable           # rules.Unavailable
    cdef bint window
    cdef double interval
    cdef double tolerance
    cdef double rounding           # of a time of gcra, as a share of it
    cdef double period
    cdef double scale              # ticks per second of a window's clock
    cdef const uint8_t* counted    # a flag per command; NULL: all count
    cdef uint64_t command          # the last one that it was asked about
    cdef int64_t* outcomes
    cdef object counts             # who owns outcomes
    cdef int check(self, const uint8_t* text, Py_ssize_t size, double now) except -1
    cdef int _local(self, uint64_t mark, double now, int sidecars) except -1
    cdef int _shared(self, const uint8_t* text, Py_ssize_t size, double now) except -1
    cdef int _in_window(self, Bucket* bucket, Bucket* home, int cell, double now, int most) except -1
    cdef void _inherit(self, Bucket* bucket, Bucket* home, int cell) noexcept
    cdef int _seek(self, uint64_t mark, Bucket** found) noexcept
    cdef Stock* _place(self, uint64_t mark, double now, Bucket** found, int* cell) noexcept
    cdef int _away(self, const uint8_t* text, Py_ssize_t size, double now, double until) except -1


cdef void begin() noexcept
cdef int once(Rate rate) noexcept
cdef int settle(bint last) noexcept
cdef bytes refusal()
cdef int ask(object client) except -1
