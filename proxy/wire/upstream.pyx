# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The node's end: a queue of commands sent and not yet answered, in the node's order.

`Downstream` and handlers queue commands, `upstream.connection` moves the bytes. Always true:
  * a reply belongs to the head of the queue; a `Pending` is never taken out of its place, a client
    that has gone only leaves its place without a receiver;
  * the bytes of a command stay in the queue until its reply is complete, so a command that a node
    sends elsewhere can be sent again without a second copy kept for all;
  * after `fault` the position in the stream is in doubt: the owner closes the connection.
What to do with a command that will not be answered here (`Orphan`) is decided by the topology.
"""

from libc.string cimport memcmp

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable

cimport cython

from proxy.wire.frames cimport (
    COMPLETE, INCOMPLETE, octets_append, octets_consume, octets_free, progress_reset, scan_reply,
)
from proxy.wire.tables cimport Latencies

cdef enum:
    # Commands and bytes waiting at one node before further ones are refused. Reached only when a
    # node stalls under many clients: each client has its own, much smaller window.
    MOST_PENDING = 100_000
    MOST_UNSENT = 256 * 1024 * 1024
    # A queue that grew larger is given back when it is empty, so one burst is not paid for ever.
    KEPT_CAPACITY = 256 * 1024

cdef enum:
    QUEUE_PART = 0
    UPSTREAM_PART = 1
    TOTAL_PART = 2

cdef bytes ASKING = b"*1\r\n$6\r\nASKING\r\n"
INFINITY = float("inf")

# What a node says about where or when a command can run, instead of running it. All of them prove
# that the command has not run, so it may be sent again whatever it is.
cdef list ELSEWHERE = [
    (b"-MOVED ", "moved"),
    (b"-ASK ", "ask"),
    (b"-TRYAGAIN", "tryagain"),
    (b"-CLUSTERDOWN", "unavailable"),
    (b"-LOADING", "unavailable"),
    (b"-MASTERDOWN", "unavailable"),
    (b"-READONLY", "readonly"),
]


cdef class Sink:
    """Who gets a reply."""

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        return 0

    cdef void hold_back(self, int change) noexcept:
        pass


cdef class Delivery(Sink):
    """The part of a handler's command: its reply goes to a callable."""

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        try:
            self.receive(PyBytes_FromStringAndSize(data, size))
        except Exception as error:
            # A handler's mistake must not stop the scan of a stream that many clients share.
            PyErr_SetObject(type(error), error)
            PyErr_WriteUnraisable(self.receive)
        return 0

    cdef void hold_back(self, int change) noexcept:
        if self.client is not None:
            self.client.hold_back(change)


@cython.freelist(4096)
@cython.no_gc
cdef class Pending:
    """A command sent and unanswered. Untracked by the collector: its queues are always emptied."""


cdef class Batch:
    """Who has something to say at the end of this loop iteration."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.touched = []
        self.ready = []

    cdef int touch(self, Upstream upstream) except -1:
        upstream.touched = True
        self.touched.append(upstream)
        if not self.scheduled:
            self.scheduled = True
            self.schedule()
        return 0

    cdef int wake(self, object downstream) except -1:
        self.ready.append(downstream)
        if not self.scheduled:
            self.scheduled = True
            self.schedule()
        return 0

    def take_ready(self):
        """Return the clients with replies to send or a reason to go on, and forget them."""
        cdef list ready = self.ready
        self.ready = []
        return ready

    def take_touched(self):
        """Return the nodes with commands to send, forget them, and end this iteration's batch."""
        cdef list touched = self.touched
        cdef Upstream upstream
        self.touched = []
        self.scheduled = False
        for upstream in touched:
            upstream.touched = False
        if self.ready:
            self.scheduled = True
            self.schedule()
        return touched


cdef class Orphan:
    """A command that this connection will not answer, and why."""

    @property
    def cluster(self):
        return self.pending.cluster

    @property
    def slot(self):
        return self.pending.slot

    @property
    def sent(self):
        return self.pending.sent > 0

    @property
    def repeatable(self):
        return self.pending.repeatable

    @property
    def deadline(self):
        return self.pending.deadline

    @property
    def hops(self):
        return self.pending.hops

    @property
    def wanted(self):
        """Return whether anybody still waits for the reply."""
        return self.pending.sink is not None

    def park(self):
        """Keep its client from sending more until it is resubmitted or answered."""
        if not self.parked and self.pending.sink is not None:
            self.parked = True
            self.pending.sink.hold_back(1)

    cdef _unpark(self):
        if self.parked:
            self.parked = False
            if self.pending.sink is not None:
                self.pending.sink.hold_back(-1)

    def answer(self, bytes reply, double now):
        """Give its client this reply instead of a node's."""
        cdef Pending pending = self.pending
        self._unpark()
        if pending.sink is not None:
            pending.sink.deliver(pending, <char*> reply, len(reply), now)
            pending.sink = None

    def resubmit(self, Upstream upstream not None, bint asking):
        """Queue it at another node; with asking, right behind an ASKING."""
        cdef Pending pending = self.pending
        cdef Pending permission
        self._unpark()
        pending.hops += 1
        pending.sent = 0
        pending.next_of_node = None
        if asking:
            permission = Pending.__new__(Pending)
            permission.slot = -1
            permission.asking = True
            permission.deadline = pending.deadline
            upstream.enqueue(permission, <char*> ASKING, len(ASKING))
        upstream.enqueue(pending, <char*> self.command, len(self.command))


@cython.no_gc_clear
cdef class Upstream:
    """One connection's queue."""

    def __init__(self, Batch batch not None, Latencies latencies not None, int cluster, double timeout):
        self.batch = batch
        self.latencies = latencies
        self.cluster = cluster
        self.timeout = timeout
        self.available = True
        progress_reset(&self.progress)

    def __dealloc__(self):
        # One by one: a long queue that frees its head frees the rest by recursion, on the stack.
        # The collector leaves that to us as well (no_gc_clear); what refers to us breaks cycles.
        self.unsent = None
        while self.head is not None:
            self.head = self.head.next_of_node
        octets_free(&self.queue)
        octets_free(&self.partial)

    cdef bint crowded(self) noexcept:
        return (self.pending >= MOST_PENDING
                or self.first + (self.queue.end - self.queue.start) - self.sent >= MOST_UNSENT)

    @property
    def unsent_bytes(self):
        return <Py_ssize_t> (self.first + (self.queue.end - self.queue.start) - self.sent)

    @property
    def overloaded(self):
        return self.crowded()

    cdef int put(self, const char* data, Py_ssize_t size) except -1:
        return octets_append(&self.queue, data, size)

    cdef int link(self, Pending pending, Py_ssize_t size) except -1:
        """Make the last size bytes of the queue this command's, and wait for its reply."""
        pending.at = self.first + (self.queue.end - self.queue.start) - size
        pending.size = size
        if self.tail is None:
            self.head = pending
        else:
            self.tail.next_of_node = pending
        self.tail = pending
        if self.unsent is None:
            self.unsent = pending
        self.pending += 1
        if not self.touched:
            self.batch.touch(self)
        return 0

    cdef int enqueue(self, Pending pending, const char* command, Py_ssize_t size) except -1:
        self.put(command, size)
        return self.link(pending, size)

    def data_to_send(self, double now):
        """Return what is queued and not handed out yet, and count it as sent."""
        cdef Pending pending = self.unsent
        cdef Py_ssize_t offset = <Py_ssize_t> (self.sent - self.first)
        cdef Py_ssize_t size = self.queue.end - self.queue.start - offset
        while pending is not None:
            pending.sent = now
            if pending.sink is not None and pending.received > 0:
                self.latencies.observe(self.cluster, QUEUE_PART, now - pending.received)
            pending = pending.next_of_node
        self.unsent = None
        self.sent += size
        return PyBytes_FromStringAndSize(self.queue.data + self.queue.start + offset, size)

    cdef Pending pop(self):
        cdef Pending pending = self.head
        self.head = pending.next_of_node
        pending.next_of_node = None
        if self.head is None:
            self.tail = None
        self.pending -= 1
        return pending

    cdef bytes command_of(self, Pending pending):
        return PyBytes_FromStringAndSize(
            self.queue.data + self.queue.start + <Py_ssize_t> (pending.at - self.first), pending.size)

    def receive_data(self, object data, double now):
        """Take bytes from the node; return the commands that must go elsewhere, in order."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.partial.end == 0:
                return self._replies(<const char*> view.buf, view.len, now, False)
            octets_append(&self.partial, <const char*> view.buf, view.len)
            return self._replies(self.partial.data + self.partial.start,
                                 self.partial.end - self.partial.start, now, True)
        finally:
            PyBuffer_Release(&view)

    cdef list _replies(self, const char* data, Py_ssize_t size, double now, bint kept):
        cdef Py_ssize_t position = 0
        cdef Orphan orphan
        cdef list orphans = None
        cdef int status
        while position < size and self.fault is None:
            status = scan_reply(data + position, size - position, &self.progress)
            if status == INCOMPLETE:
                break
            if status != COMPLETE:
                self.fault = "the bytes are no reply"
                break
            orphan = self.settle(data + position, self.progress.position, now)
            position += self.progress.position
            progress_reset(&self.progress)
            if orphan is not None:
                if orphans is None:
                    orphans = []
                orphans.append(orphan)
        if not kept:
            if position < size:
                octets_append(&self.partial, data + position, size - position)
        else:
            octets_consume(&self.partial, position)
            if self.partial.end == 0 and self.partial.capacity > KEPT_CAPACITY:
                octets_free(&self.partial)
        self._release()
        return orphans

    cdef void _release(self) noexcept:
        """Drop the bytes of commands that are answered."""
        cdef Py_ssize_t done
        if self.head is None:
            done = self.queue.end - self.queue.start
        else:
            done = <Py_ssize_t> (self.head.at - self.first)
        self.first += done
        octets_consume(&self.queue, done)
        if self.queue.end == 0 and self.queue.capacity > KEPT_CAPACITY:
            octets_free(&self.queue)

    cdef Orphan settle(self, const char* data, Py_ssize_t size, double now):
        """Give one whole reply to the command at the head."""
        cdef Pending pending
        cdef Orphan orphan
        if data[0] == c">":
            # Pushes answer nothing. These connections ask for none; a node may still send one.
            return None
        if self.head is None or self.head is self.unsent:
            self.fault = "a reply came that nobody asked for"
            return None
        if data[0] == c"-" and self.head.slot >= 0:
            orphan = self._elsewhere(data, size)
            if orphan is not None:
                return orphan
        pending = self.pop()
        if pending.sink is not None:
            self.latencies.observe(self.cluster, UPSTREAM_PART, now - pending.sent)
            if pending.received > 0:
                self.latencies.observe(self.cluster, TOTAL_PART, now - pending.received)
            pending.sink.deliver(pending, data, size, now)
            pending.sink = None
        return None

    cdef Orphan _elsewhere(self, const char* data, Py_ssize_t size):
        cdef Orphan orphan
        cdef bytes mark
        cdef str kind
        for mark, kind in ELSEWHERE:
            if size > len(mark) and memcmp(data, <char*> mark, len(mark)) == 0:
                orphan = Orphan.__new__(Orphan)
                orphan.kind = kind
                orphan.reply = PyBytes_FromStringAndSize(data, size)
                orphan.command = self.command_of(self.head)
                orphan.address = ""
                orphan.redirect_slot = -1
                orphan.pending = self.pop()
                if kind == "moved" or kind == "ask":
                    _read_redirect(orphan)
                return orphan
        return None

    def next_deadline(self):
        """Return the earliest deadline of what is queued, or infinity."""
        cdef Pending pending = self.head
        cdef double earliest = INFINITY
        while pending is not None:
            if pending.deadline < earliest:
                earliest = pending.deadline
            pending = pending.next_of_node
        return earliest

    def expire(self, double now):
        """Return (whether to close the connection, commands past their deadline, to be answered).

        A command at the head that is overdue means that the node is stuck. One further back keeps
        its place, and once answered nobody there waits; one that was never sent loses its bytes.
        """
        cdef Pending pending = self.head
        cdef list overdue = []
        if pending is not None and pending.sent > 0 and pending.deadline <= now:
            return True, overdue
        while pending is not None and pending is not self.unsent:
            if pending.deadline <= now and pending.sink is not None:
                overdue.append(self._orphan(pending, "overdue"))
            pending = pending.next_of_node
        if pending is not None:
            self._expire_unsent(now, overdue)
        return False, overdue

    cdef object _expire_unsent(self, double now, list overdue):
        """Take the unsent part of the queue apart and put back what is in time."""
        cdef Pending pending = self.unsent
        cdef Pending last = None
        cdef Pending following = self.head
        cdef list kept = []
        cdef Orphan orphan
        while following is not pending:
            last = following
            following = following.next_of_node
        while pending is not None:
            following = pending.next_of_node
            orphan = self._orphan(pending, "overdue")
            if pending.deadline > now:
                kept.append(orphan)
            elif not pending.asking:
                overdue.append(orphan)
            pending.next_of_node = None
            self.pending -= 1
            pending = following
        self.tail = last
        if last is None:
            self.head = None
        else:
            last.next_of_node = None
        self.unsent = None
        self.queue.end = self.queue.start + <Py_ssize_t> (self.sent - self.first)
        for orphan in kept:
            self.enqueue(orphan.pending, <char*> orphan.command, len(orphan.command))

    cdef Orphan _orphan(self, Pending pending, str kind):
        cdef Orphan orphan = Orphan.__new__(Orphan)
        orphan.kind = kind
        orphan.address = ""
        orphan.redirect_slot = -1
        orphan.command = self.command_of(pending)
        orphan.pending = pending
        return orphan

    def connection_lost(self):
        """Return every command that will never be answered here, in order, and start afresh."""
        cdef Pending pending = self.head
        cdef Pending following
        cdef list orphans = []
        while pending is not None:
            following = pending.next_of_node
            pending.next_of_node = None
            if pending.sink is not None:
                orphans.append(self._orphan(pending, "lost"))
            pending = following
        self.clear()
        return orphans

    cdef void clear(self) noexcept:
        self.head = self.tail = self.unsent = None
        self.pending = 0
        self.first = self.sent = 0
        self.fault = None
        octets_free(&self.queue)
        octets_free(&self.partial)
        progress_reset(&self.progress)


cdef _read_redirect(Orphan orphan):
    """Read "-MOVED 3999 host:port"; what does not parse keeps an empty address."""
    words = orphan.reply.rstrip(b"\r\n").split(b" ")
    if len(words) == 3 and words[1].isdigit() and len(words[1]) <= 5 and int(words[1]) < 16384:
        orphan.redirect_slot = int(words[1])
        orphan.address = words[2].decode("ascii", "replace")
