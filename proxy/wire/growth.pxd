# cython: language_level=3
from proxy.wire.edits cimport Edit
from proxy.wire.frames cimport Octets, Words
from proxy.wire.tables cimport CommandRow, KeyspaceRow, Ruleset

cdef int judge_growth(Ruleset rules, const char* frame, const Words* words, CommandRow* row,
                      int place, int keyspace, Edit* edit) noexcept
cdef int growth_follows(const char* frame, const Words* words, CommandRow* row, int place) noexcept
cdef Py_ssize_t put_trim(Octets* out, const char* key, Py_ssize_t size, CommandRow* row,
                         KeyspaceRow* space, bint head) except -1
