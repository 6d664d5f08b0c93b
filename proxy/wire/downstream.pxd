# cython: language_level=3
from libc.stdint cimport uint8_t

from proxy.wire.frames cimport Bounds, Octets, Progress
from proxy.wire.tables cimport CommandRow, Match, Router, Ruleset, SlotMap
from proxy.wire.upstream cimport Batch, Pending, Sink, Upstream


cdef struct KeyPlace:
    # One key of the command being judged: which word, and where its hash tag goes.
    Py_ssize_t word
    int tag                 # NO_TAG, LITERAL_TAG, or: the bytes at..end are the tag
    int keyspace
    Py_ssize_t at
    Py_ssize_t end


cdef class Request:
    cdef readonly bytes command
    cdef readonly bytes name
    cdef readonly int row
    cdef readonly double received
    cdef Pending pending
    cdef Ruleset ruleset


cdef class Downstream(Sink):
    cdef public object owner
    cdef public int protocol
    cdef readonly object role_name
    cdef readonly int role         # index into the ruleset's roles, -1 for a stranger
    cdef public bint paused        # the client does not read what it is sent
    cdef readonly int lane
    cdef readonly int pending
    cdef readonly bint blocked     # parsing waits
    cdef readonly bint closing     # no further command is taken
    cdef Router router
    cdef Ruleset ruleset
    cdef SlotMap slots
    cdef Batch batch
    cdef Request found
    cdef bytes rights
    cdef const uint8_t* allowed
    cdef bint awake                # in the batch's list already
    cdef bint must_drain           # parsing waits until nothing is pending
    cdef int held
    cdef Pending head
    cdef Pending tail
    cdef Octets input
    cdef Octets output
    cdef Progress progress
    cdef Bounds bounds
    cdef Py_ssize_t inline_bytes
    cdef double reply_estimate
    cdef Py_ssize_t request_bytes
    cdef Py_ssize_t waiting_bytes  # of replies behind one that is missing
    cdef int empty_frames
    cdef double empty_since
    cdef bint _may_go_on(self) noexcept
    cdef int _window(self) noexcept
    cdef Py_ssize_t parse(self, const char* data, Py_ssize_t size, double now) except -1
    cdef Py_ssize_t _frame(self, const char* data, Py_ssize_t size) except -100
    cdef Py_ssize_t _line(self, const char* data, Py_ssize_t size) except -100
    cdef int _inline(self, const char* data, Py_ssize_t size, double now) except -1
    cdef int _empty(self, double now) except -1
    cdef int _fail(self, bytes line) except -1
    cdef int judge(self, const char* frame, Py_ssize_t size, double now) except -1
    cdef int _subcommand(self, const char* frame, int index) noexcept
    cdef int _route(self, const char* frame, Py_ssize_t size, int index, CommandRow* row,
                    double now) except -1
    cdef bytes _judge_key(self, const char* frame, Py_ssize_t place, int command, Match* found)
    cdef int _forward(self, const char* frame, Py_ssize_t size, int index, int cluster, int slot,
                      int owner, bint renamed, double now) except -1
    cdef Py_ssize_t _put_renamed(self, Upstream upstream, const char* frame, Py_ssize_t size) except -1
    cdef bytes _node_name(self, const char* key, Py_ssize_t size, KeyPlace* mark)
    cdef Pending _expect(self, double now, int family, int keyspace)
    cdef int _ask(self, const char* frame, Py_ssize_t size, int index, double now) except -1
    cdef int _reply(self, bytes line, int keyspace, int family) except -1
    cdef int _wake(self) except -1
    cdef int _advance(self) except -1
