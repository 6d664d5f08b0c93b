# cython: language_level=3
from libc.stdint cimport int64_t

from proxy.wire.frames cimport Words


cdef struct BoundRow:
    int command
    int kind                # rules.BoundKind
    int at                  # the word that is looked at, or where options begin
    int64_t limit


cdef class ArgumentBounds:
    cdef BoundRow* rows
    cdef int count
    cdef list errors
    cdef bytes marks        # 1 for each command that has a bound
    cdef inline bint concern(self, int command) noexcept:
        return (<const char*> self.marks)[command] != 0
    cdef bytes refusal(self, const char* frame, Words* words, int command)


cdef bint over(const char* frame, Words* words, BoundRow* row) noexcept
