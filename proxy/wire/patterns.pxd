# cython: language_level=3
from libc.stdint cimport uint8_t

cdef enum:
    MOST_SEGMENTS = 16   # named segments of one pattern: bounds the matcher's depth


cdef struct Match:
    int keyspace                   # -1: no keyspace has this key
    Py_ssize_t at[MOST_SEGMENTS]   # where each named segment lies in the key
    Py_ssize_t end[MOST_SEGMENTS]


cdef class Patterns:
    cdef uint8_t* tree
    cdef void match(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept
    cdef bint covers(self, const uint8_t* key, Py_ssize_t size) noexcept


cdef int rest(int step) except -1
