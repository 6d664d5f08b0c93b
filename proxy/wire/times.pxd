# cython: language_level=3
from proxy.wire.edits cimport Edit
from proxy.wire.frames cimport Octets, Words
from proxy.wire.tables cimport CommandRow, KeyspaceRow, Ruleset

cdef enum:
    # What goes behind a command, for one of its keys.
    NOTHING_FOLLOWS = 0
    EXPIRY_FOLLOWS = 1     # the default time, where the key has none
    REFRESH_FOLLOWS = 2    # the default time, whatever the key has
    TRIM_FOLLOWS = 4
    HEAD_GREW = 8          # of a list, for the trim
    LONGEST_FOLLOWS = 16   # the longest time, where the key has a longer one
    REFUSED_FOR_TIME = -1

cdef int judge_time(Ruleset rules, const char* frame, const Words* words, CommandRow* row,
                    int place, int keyspace, int source, Edit* edit) noexcept
cdef bint makes(CommandRow* row, int place) noexcept
cdef bint may_be_without(CommandRow* row, int place, bint apart) noexcept
cdef int time_follows(KeyspaceRow* space, CommandRow* row, int place, bint said) noexcept
cdef Py_ssize_t put_expiry(Octets* out, const char* key, Py_ssize_t size, KeyspaceRow* space,
                           int follows) except -1
