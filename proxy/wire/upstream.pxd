# cython: language_level=3
from libc.stdint cimport uint64_t

from proxy.wire.frames cimport Octets, Progress
from proxy.wire.tables cimport Latencies


cdef class Sink:
    # Who gets a reply: a Downstream, or a handler's Delivery.
    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1
    cdef void hold_back(self, int change) noexcept


cdef class Delivery(Sink):
    cdef object receive
    cdef Sink client


cdef class Pending:
    # A command sent and unanswered, in two queues at once: its client's and its node's.
    cdef Pending next_of_client
    cdef Pending next_of_node
    cdef Sink sink            # None: nobody waits, the reply is read and dropped
    cdef bytes reply          # an answer that waits for the ones before it
    cdef uint64_t at          # where its bytes begin, counted from the connection's first byte
    cdef Py_ssize_t size
    cdef double received
    cdef double sent          # 0 while it is not handed to the socket
    cdef double deadline
    cdef int cluster
    cdef int slot             # -1: of the connection itself or local, never redirected
    cdef int keyspace
    cdef int family
    cdef int hops
    cdef bint repeatable
    cdef bint asking          # an ASKING whose +OK nobody waits for


cdef class Batch:
    cdef object schedule
    cdef bint scheduled
    cdef list touched
    cdef list ready
    cdef int touch(self, Upstream upstream) except -1
    cdef int wake(self, object downstream) except -1


cdef class Orphan:
    cdef Pending pending
    cdef readonly str kind
    cdef readonly str address
    cdef readonly int redirect_slot
    cdef readonly bytes reply
    cdef bytes command
    cdef bint parked
    cdef _unpark(self)


cdef class Upstream:
    cdef public object owner
    cdef public bint available
    cdef readonly str fault
    cdef readonly int pending
    cdef Batch batch
    cdef Latencies latencies
    cdef int cluster
    cdef double timeout
    cdef bint touched
    cdef Pending head
    cdef Pending tail
    cdef Pending unsent
    cdef Octets queue
    cdef uint64_t first       # count of the byte at queue.start
    cdef uint64_t sent        # count of the first byte not handed to the socket
    cdef Octets partial       # a reply of which the end is missing
    cdef Progress progress
    cdef bint crowded(self) noexcept
    cdef int link(self, Pending pending, Py_ssize_t size) except -1
    cdef int enqueue(self, Pending pending, const char* command, Py_ssize_t size) except -1
    cdef int put(self, const char* data, Py_ssize_t size) except -1
    cdef Pending pop(self)
    cdef Orphan settle(self, const char* data, Py_ssize_t size, double now)
    cdef bytes command_of(self, Pending pending)
    cdef list _replies(self, const char* data, Py_ssize_t size, double now, bint kept)
    cdef void _release(self) noexcept
    cdef Orphan _elsewhere(self, const char* data, Py_ssize_t size)
    cdef object _expire_unsent(self, double now, list overdue)
    cdef Orphan _orphan(self, Pending pending, str kind)
    cdef void clear(self) noexcept
