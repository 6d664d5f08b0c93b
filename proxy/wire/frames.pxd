# cython: language_level=3
from libc.stdint cimport int64_t


cdef enum:
    INCOMPLETE = 0
    COMPLETE = 1
    # Every negative status is a protocol error; FAULTS in frames.pyx has its words.
    BAD_COUNT = -1
    BAD_LENGTH = -2
    BAD_TYPE = -3
    BAD_TERMINATOR = -4
    TOO_MANY_WORDS = -5
    TOO_LONG_WORD = -6
    TOO_LONG_LINE = -7
    UNBALANCED = -8


cdef struct Octets:
    # A byte queue: append at the end, consume from the start, compact on append.
    char* data
    Py_ssize_t start
    Py_ssize_t end
    Py_ssize_t capacity


cdef struct Progress:
    # How far a frame is scanned, so that a frame of many pieces is scanned once and not once per
    # piece. position counts from the frame's first byte; need is the size that makes more of it.
    Py_ssize_t position
    Py_ssize_t need
    int64_t left


cdef struct Word:
    Py_ssize_t head   # where its "$" stands
    Py_ssize_t at     # where its bytes begin
    Py_ssize_t size


cdef struct Words:
    Word* items
    Py_ssize_t count
    Py_ssize_t capacity


cdef struct Bounds:
    Py_ssize_t words
    Py_ssize_t word_bytes


cdef int octets_append(Octets* octets, const char* data, Py_ssize_t size) except -1
cdef void octets_consume(Octets* octets, Py_ssize_t size) noexcept nogil
cdef void octets_fit(Octets* octets) noexcept nogil
cdef void octets_free(Octets* octets) noexcept nogil

cdef int scan_request(const char* data, Py_ssize_t size, const Bounds* bounds,
                      Progress* progress, Words* words) except? -100
cdef int pass_request(const char* data, Py_ssize_t size, const Bounds* bounds,
                      Progress* progress) noexcept nogil
cdef int split_line(const char* line, Py_ssize_t size, const Bounds* bounds, char* text,
                    Words* words) except? -100
cdef int scan_reply(const char* data, Py_ssize_t size, Progress* progress) noexcept nogil
cdef void progress_reset(Progress* progress) noexcept nogil
cpdef bytes fault_line(int status)
cpdef bytes pack(object arguments)
