# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t

from proxy.wire.frames cimport Octets, Progress
from proxy.wire.sketches cimport Sketches, Trace
from proxy.wire.tables cimport Latencies, Location


cdef class Sink:
    # Who gets a reply: a Downstream, or a handler's Delivery.
    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1
    cdef int notice(self, Pending pending, Upstream upstream, Py_ssize_t size, double now) except -1
    cdef void hold_back(self, int change) noexcept
    cdef object client_of(self)


cdef class Delivery(Sink):
    cdef object receive
    cdef Sink client
    cdef Pending whole        # the client's command that this is a part of, where that is known


cdef class Train:
    # Commands of one client in one slot that were sent on, so that one rule keeps their order.
    cdef public bint waiting        # some of them are parked
    cdef readonly Upstream upstream  # where all that are under way are queued
    cdef readonly int under_way
    cdef readonly uint64_t newest    # the ticket of the last of them


cdef class Pending:
    # A command sent and unanswered, in two queues at once: its client's and its node's.
    cdef Pending next_of_client
    cdef Pending next_of_node
    cdef Sink sink            # None: nobody waits, the reply is read and dropped
    cdef bytes reply          # an answer that waits for the ones before it
    cdef uint64_t at          # where its bytes begin, counted from the connection's first byte
    cdef Py_ssize_t size
    cdef double received
    cdef double judged        # 0 where nobody looks at the clock
    cdef double sent          # 0 while it is not handed to the socket
    cdef double replied       # of a command in parts: when the last of them came
    cdef double deadline
    cdef int cluster
    cdef int slot             # -1: of the connection itself or local, never redirected
    cdef int keyspace
    cdef int family
    cdef int row              # of the command table; -1: nothing to measure by
    cdef int unit             # replies before the one that counts, for commands sent as one
    cdef int left             # of those, how many are to come
    cdef int hops
    cdef uint64_t ticket      # its place among all that were ever refused; 0: it was not
    cdef Train train          # while it is queued at another node than its first
    cdef Trace trace          # of one that is written about
    cdef bint parked          # its client is held back
    cdef bint repeatable
    cdef bint silent          # its client wants no reply
    cdef bint asking          # an ASKING whose +OK nobody waits for
    cdef bint follows         # a command of ours behind its client's, which is not answered with it
    cdef object request       # of a look-up, or of what waits for its turn: a downstream.Request
    cdef Pending leads        # of a PTTL: the look-up behind it,
    cdef int64_t left_ms      # which keeps what it said
    cdef bint detours         # a look-up that is answered elsewhere where no node can answer
    cdef bint quotes          # its error lines may be its own: only a node's exact words redirect it


cdef class Batch:
    cdef object schedule
    cdef bint scheduled
    cdef double began              # when it was
    cdef double longest            # seconds from there to the end of an iteration, of those of late
    cdef double noted              # when that was
    cdef list touched
    cdef list ready
    cdef public double slow_after   # seconds
    cdef public object on_seen
    cdef public object clock        # None: times of a command are not taken apart
    cdef public Sketches sketches
    cdef public object observer
    cdef public object on_denied
    cdef public object on_arriving
    cdef int touch(self, Upstream upstream) except -1
    cdef int wake(self, object downstream) except -1
    cdef int begin(self) except -1
    cdef int end(self) except -1
    cdef double now(self) except? -1.0
    cdef int arriving(self, Upstream upstream) except -1
    cdef int tell(self, object owner, list traces) except -1


cdef class Orphan:
    cdef Pending pending
    cdef readonly str kind
    cdef readonly str address
    cdef readonly int redirect_slot
    cdef readonly bytes reply
    cdef bytes command


cdef class Upstream:
    cdef public object owner
    cdef public bint available
    cdef public int share             # of look-ups that can be answered elsewhere, in percent
    cdef int turn                     # of them, counted by hundreds
    cdef double patience              # seconds that such a look-up waits for the node
    cdef readonly uint64_t answered
    cdef readonly uint64_t late       # of those
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
    cdef double grew          # when a part of a reply, and not its end, came last
    cdef bint reading         # receivers are being called
    cdef bint lost            # by one of them
    cdef list refused         # by the node, while it is reading
    cdef Progress progress
    cdef bint crowded(self) noexcept
    cdef bint admits(self, bint written) noexcept
    cdef int link(self, Pending pending, Py_ssize_t size) except -1
    cdef int enqueue(self, Pending pending, const char* command, Py_ssize_t size) except -1
    cdef int put(self, const char* data, Py_ssize_t size) except -1
    cdef Pending pop(self)
    cdef int give(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1
    cdef double _stuck_at(self) noexcept
    cdef double _arrives_until(self) noexcept
    cdef double _due(self, Pending pending) noexcept
    cdef Orphan settle(self, const char* data, Py_ssize_t size, double now)
    cdef int _measure(self, Pending pending, bint failed, Py_ssize_t size, double now) except -1
    cdef Orphan _finish_unit(self, Pending pending, const char* data, Py_ssize_t size, double now)
    cdef bytes command_of(self, Pending pending)
    cdef int _replies(self, const char* data, Py_ssize_t size, double now, bint kept) except -1
    cdef void _release(self) noexcept
    cdef Orphan _elsewhere(self, const char* data, Py_ssize_t size)
    cdef Pending part(self, object deliver, Sink client, Location location, double now)
    cdef Pending _replace(self, Pending before, Pending pending)
    cdef object _expire_unsent(self, double now, list overdue)
    cdef Orphan _orphan(self, Pending pending, str kind)
    cdef void clear(self) noexcept
