# cython: language_level=3

cdef bint is_name(const char* text, Py_ssize_t size) noexcept


cdef class Refusal:
    cdef bytes holder          # who must not be refused; none: everybody is
    cdef bytes member          # what a value that names an owner has in it; none: it is the owner
    cdef bytes outcome
    cdef double until          # a time of the loop: no longer as good as a question
    cdef double late           # until then one asks again and others are refused meanwhile
    cdef bint asked            # somebody was left to Python since
    cdef double ends           # when the lock ends, a time of the loop; 0: it does not
    cdef bint holds(self, const char* owner, Py_ssize_t size) noexcept
    cdef bint names(self, const char* value, Py_ssize_t size) noexcept
    cdef bytes line(self, int protocol, double now)


cdef class Refusals:
    cdef dict held             # by the keys of locks, as clients name them
    cdef public long long count   # so many were refused
    cdef Refusal find(self, const char* key, Py_ssize_t size, double now, double turn)
