# cython: language_level=3
from libc.stdint cimport int64_t

from proxy.wire.frames cimport Octets, Words

cdef enum:
    EDIT_BYTES = 128   # three words: an option, its mark and a number of 20 digits


cdef struct Edit:
    # A change of one command: another name, and some words instead of others.
    bint made
    const char* name      # NULL: as the client wrote it
    Py_ssize_t first      # words from here on
    Py_ssize_t dropped    # so many give way
    int added             # to so many
    int size
    char text[EDIT_BYTES]


cdef void edit_at(Edit* edit, Py_ssize_t first, Py_ssize_t dropped) noexcept
cdef void edit_word(Edit* edit, const char* word) noexcept
cdef void edit_number(Edit* edit, int64_t number) noexcept
cdef Py_ssize_t edit_write(Octets* out, const Edit* edit, const char* frame, Py_ssize_t size,
                           const Words* words) except -1
cdef bint word_is(const char* frame, const Words* words, Py_ssize_t index, const char* upper) noexcept
cdef bint word_number(const char* frame, const Words* words, Py_ssize_t index, int64_t* value) noexcept
cdef Py_ssize_t put_head(Octets* out, Py_ssize_t words) except -1
cdef Py_ssize_t put_length(Octets* out, Py_ssize_t size) except -1
cdef Py_ssize_t put_word(Octets* out, const char* word, Py_ssize_t size) except -1
cdef Py_ssize_t put_number(Octets* out, int64_t number) except -1
