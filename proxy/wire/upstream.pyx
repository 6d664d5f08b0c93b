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
from proxy.wire.tables cimport Latencies, Location

cdef enum:
    # Commands and bytes waiting at one node before further ones are refused. Reached only when a
    # node stalls under many clients: each client has its own, much smaller window.
    MOST_PENDING = 100_000
    MOST_UNSENT = 256 * 1024 * 1024
    # A queue that grew larger is given back when it is empty, so one burst is not paid for ever.
    KEPT_CAPACITY = 256 * 1024
    # A reply of which more has come, and not its end, is told of: one read of a node.
    LARGE_PART = 256 * 1024

cdef enum:
    QUEUE_PART = 0
    UPSTREAM_PART = 1
    TOTAL_PART = 2

cdef bytes DISCARDED = b"-EXECABORT Transaction discarded because of: "
cdef bytes ASKING = b"*1\r\n$6\r\nASKING\r\n"
INFINITY = float("inf")

# How long a look-up waits for a node where PostgreSQL can answer too, in seconds: ten times what a
# healthy node takes for its slowest command, and short enough that nobody notices who answered.
LOOKUP_SECONDS = 0.2

# A reply that took longer than this came late: half of what such a look-up waits, in seconds.
cdef double LATE = LOOKUP_SECONDS / 2

# A reply of which more and more arrives is waited for beyond its deadline, but no longer than this
# from when its command was sent: 512 MiB, the largest value that Redis keeps, take as long over a
# link that gives it 150 Mbit/s. A node that trickles holds its connection no longer.
cdef double LONGEST_REPLY = 30.0  # seconds

include "redirects.pxi"


cdef class Sink:
    """Who gets a reply."""

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        return 0

    cdef int notice(self, Pending pending, Upstream upstream, Py_ssize_t size, double now) except -1:
        """Hear, before the reply, of a command that took long or has a large reply, or a trace."""
        return 0

    cdef void hold_back(self, int change) noexcept:
        pass

    cdef object client_of(self):
        """Return the owner of the client that this is for, or None."""
        return None


cdef class Delivery(Sink):
    """The part of a handler's command: its reply goes to a callable."""

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        if self.whole is not None and pending.sent > 0:
            if self.whole.sent == 0 or pending.sent < self.whole.sent:
                self.whole.sent = pending.sent
            self.whole.replied = now
        try:
            self.receive(PyBytes_FromStringAndSize(data, size))
        except Exception as error:
            # A handler's mistake must not stop the scan of a stream that many clients share.
            PyErr_SetObject(type(error), error)
            PyErr_WriteUnraisable(self.receive)
        return 0

    cdef int notice(self, Pending pending, Upstream upstream, Py_ssize_t size, double now) except -1:
        if self.client is not None:
            self.client.notice(pending, upstream, size, now)
        return 0

    cdef void hold_back(self, int change) noexcept:
        if self.client is not None:
            self.client.hold_back(change)

    cdef object client_of(self):
        return self.client.client_of() if self.client is not None else None


@cython.freelist(4096)
@cython.no_gc
cdef class Pending:
    """A command sent and unanswered. Untracked by the collector: its queues are always emptied."""


# For how long the loop is said to be as busy as in its longest iteration, seconds.
cdef double LATELY = 0.25


cdef class Batch:
    """Who has something to say at the end of this loop iteration."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.touched = []
        self.ready = []
        self.slow_after = INFINITY
        self.sketches = Sketches(bytes(16))

    cdef int touch(self, Upstream upstream) except -1:
        upstream.touched = True
        self.touched.append(upstream)
        return 0 if self.scheduled else self.begin()

    cdef int wake(self, object downstream) except -1:
        self.ready.append(downstream)
        return 0 if self.scheduled else self.begin()

    cdef int begin(self) except -1:
        self.scheduled = True
        self.began = self.now()
        self.schedule()
        return 0

    cdef int end(self) except -1:
        """Note how long this iteration took, if it is the longest of late."""
        cdef double now = self.now()
        if now - self.began >= self.longest or now - self.noted > LATELY:
            self.longest = now - self.began
            self.noted = now
        return 0

    cdef double now(self) except? -1.0:
        return self.clock() if self.clock is not None else 0.0

    cdef int arriving(self, Upstream upstream) except -1:
        if self.on_arriving is not None:
            self.on_arriving(upstream, upstream.begun_bytes)
        return 0

    cdef int tell(self, object owner, list traces) except -1:
        """Tell of commands whose replies are about to be written to their client."""
        if self.on_seen is None:
            return 0
        try:
            self.on_seen(owner, traces)
        except Exception as error:
            # A mistake of who writes about them must not stop the replies.
            PyErr_SetObject(type(error), error)
            PyErr_WriteUnraisable(self.on_seen)
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
        self.end()
        for upstream in touched:
            upstream.touched = False
        if self.ready:
            self.begin()
        return touched


cdef class Train:
    """Commands of one client in one slot that were sent on."""


cdef uint64_t TICKETS = 0


cdef uint64_t _ticket(Pending pending) noexcept:
    """Remember when it was first refused: commands of one slot are, in their client's order."""
    global TICKETS
    if pending.ticket == 0:
        TICKETS += 1
        pending.ticket = TICKETS
    return pending.ticket


cdef void _leave(Pending pending) noexcept:
    """Note that it is in no node's queue."""
    if pending.train is not None:
        pending.train.under_way -= 1
        pending.train = None


cdef void _let_go(Pending pending) noexcept:
    """Let its client send again, as far as this command is concerned."""
    if pending.parked:
        pending.parked = False
        if pending.sink is not None:
            pending.sink.hold_back(-1)


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
    def detours(self):
        return self.pending.detours

    @property
    def hops(self):
        return self.pending.hops

    @property
    def ticket(self):
        return _ticket(self.pending)

    @property
    def client(self):
        return self.pending.sink.client_of() if self.pending.sink is not None else None

    @property
    def wanted(self):
        """Return whether anybody still waits for the reply."""
        return self.pending.sink is not None

    def park(self):
        """Keep its client from sending more until it is answered."""
        if not self.pending.parked and self.pending.sink is not None:
            self.pending.parked = True
            self.pending.sink.hold_back(1)

    def answer(self, bytes reply, double now):
        """Give its client this reply instead of a node's."""
        cdef Pending pending = self.pending
        cdef Sink sink = pending.sink
        _let_go(pending)
        pending.sink = None
        if sink is not None:
            sink.deliver(pending, <char*> reply, len(reply), now)

    def resubmit(self, Upstream upstream not None, bint asking, Train train=None):
        """Queue it at another node; with asking, right behind an ASKING."""
        cdef Pending pending = self.pending
        cdef Pending permission
        # What its client would send now could reach a node that gets the slot back before this.
        self.park()
        if train is not None:
            train.upstream = upstream
            train.under_way += 1
            train.newest = _ticket(pending)
            pending.train = train
        pending.hops += 1
        pending.sent = 0
        pending.left = pending.unit
        pending.reply = None
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
        self.share = 100
        self.patience = min(LOOKUP_SECONDS, timeout)
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

    cdef bint admits(self, bint written) noexcept:
        """Whether the node is asked what can be answered elsewhere. Counts the question.

        Where it alone has what is `written`, all is asked here as soon as anything is.
        """
        if written:
            return self.share > 0
        self.turn = (self.turn + 1) % 100
        return self.turn < self.share

    @property
    def unsent_bytes(self):
        return <Py_ssize_t> (self.first + (self.queue.end - self.queue.start) - self.sent)

    @property
    def begun_bytes(self):
        return self.partial.end - self.partial.start

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

    cdef Pending part(self, object deliver, Sink client, Location location, double now):
        """Return a place in the queue for a command whose reply goes to a callable."""
        cdef Pending pending = Pending.__new__(Pending)
        cdef Delivery delivery = Delivery.__new__(Delivery)
        delivery.receive = deliver
        delivery.client = client
        pending.sink = delivery
        pending.received = now
        pending.row = -1
        pending.cluster = location.cluster
        pending.slot = location.slot
        pending.deadline = now + self.timeout
        return pending

    def submit(self, bytes command not None, int replies, double now, double deadline, deliver):
        """Queue a command on a connection that one client has for itself.

        Of its replies, more than one where commands are sent as one, deliver gets the last.
        """
        cdef Pending pending = self.part(deliver, None, Location(self.cluster, -1), now)
        pending.unit = pending.left = replies - 1
        pending.deadline = deadline
        self.enqueue(pending, <char*> command, len(command))

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
        _leave(pending)
        return pending

    cdef int give(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        """Hand a reply to whoever waits for it."""
        cdef Sink sink = pending.sink
        _let_go(pending)
        # First, because a look-up that is not answered yet gets its receiver back.
        pending.sink = None
        sink.deliver(pending, data, size, now)
        return 0

    cdef bytes command_of(self, Pending pending):
        return PyBytes_FromStringAndSize(
            self.queue.data + self.queue.start + <Py_ssize_t> (pending.at - self.first), pending.size)

    def receive_data(self, object data, double now):
        """Take bytes from the node; return the commands that must go elsewhere, in order."""
        cdef Py_buffer view
        cdef list refused
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self.reading = True
        try:
            if self.partial.end == 0:
                self._replies(<const char*> view.buf, view.len, now, False)
            else:
                octets_append(&self.partial, <const char*> view.buf, view.len)
                self._replies(self.partial.data + self.partial.start,
                              self.partial.end - self.partial.start, now, True)
        finally:
            PyBuffer_Release(&view)
            self.reading = False
            if self.lost:
                # A receiver gave the connection up: what is left of the bytes answers nothing.
                self.lost = False
                octets_free(&self.partial)
                progress_reset(&self.progress)
        refused = self.refused
        self.refused = None
        return refused

    cdef int _replies(self, const char* data, Py_ssize_t size, double now, bint kept) except -1:
        cdef Py_ssize_t position = 0
        cdef Orphan orphan
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
            if self.lost:
                return 0
            if orphan is not None:
                if self.refused is None:
                    self.refused = []
                self.refused.append(orphan)
        if not kept:
            if position < size:
                octets_append(&self.partial, data + position, size - position)
                self.grew = now
        else:
            octets_consume(&self.partial, position)
            if self.partial.end:
                self.grew = now
            elif self.partial.capacity > KEPT_CAPACITY:
                octets_free(&self.partial)
        self._release()
        if kept and self.partial.end - self.partial.start > LARGE_PART:
            self.batch.arriving(self)
        return 0

    def refuse(self):
        """Make the command whose reply is arriving an orphan; the owner closes the connection."""
        cdef Orphan orphan
        # A push answers nobody, nor does what nobody has asked for.
        if not self.partial.end or self.partial.data[self.partial.start] == c">":
            return
        if self.head is not None and self.head is not self.unsent:
            orphan = self._orphan(self.head, "oversized")
            self.pop()
            self.refused = [*(self.refused or ()), orphan]

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
        if self.head.unit:
            if self.head.left:
                self.head.left -= 1
                if data[0] == c"-" and self.head.reply is None:
                    self.head.reply = PyBytes_FromStringAndSize(data, size)
                return None
            return self._finish_unit(self.head, data, size, now)
        if data[0] == c"-" and self.head.slot >= 0:
            orphan = self._elsewhere(data, size)
            if orphan is not None:
                return orphan
        pending = self.pop()
        self.answered += 1
        self.late += now - pending.sent > LATE
        if pending.sink is not None:
            self._measure(pending, data[0] == c"-", size, now)
            self.give(pending, data, size, now)
        return None

    cdef Orphan _finish_unit(self, Pending pending, const char* data, Py_ssize_t size, double now):
        """Take the reply of an EXEC. What a part of the unit was refused for, nothing of it ran."""
        cdef bytes reply = pending.reply
        cdef bytes cause
        cdef Orphan orphan
        if reply is None or data[0] != c"-":
            reply = PyBytes_FromStringAndSize(data, size)
        if reply[0] == c"-" and pending.slot >= 0:
            # What EXEC itself is refused for stands behind its own words.
            cause = b"-" + reply[len(DISCARDED):] if reply.startswith(DISCARDED) else reply
            orphan = self._elsewhere(<char*> cause, len(cause))
            if orphan is not None:
                return orphan
        if pending.reply is not None and data[0] == c"-":
            reply = DISCARDED + pending.reply[1:]
        self.pop()
        if pending.sink is not None:
            self._measure(pending, reply[0] == c"-", len(reply), now)
            self.give(pending, <char*> reply, len(reply), now)
        return None

    cdef int _measure(self, Pending pending, bint failed, Py_ssize_t size, double now) except -1:
        self.latencies.observe(self.cluster, UPSTREAM_PART, now - pending.sent)
        if pending.received > 0:
            self.latencies.observe(self.cluster, TOTAL_PART, now - pending.received)
            self.latencies.observe_command(pending.row, now - pending.received, failed)
            if (now - pending.received >= self.batch.slow_after or pending.trace is not None
                    or size >= self.batch.sketches.large):
                pending.sink.notice(pending, self, size, now)
        return 0

    cdef Orphan _elsewhere(self, const char* data, Py_ssize_t size):
        cdef Orphan orphan
        cdef bytes mark
        cdef str kind
        for mark, kind in ELSEWHERE:
            if size > len(mark) and memcmp(data, <char*> mark, len(mark)) == 0:
                orphan = Orphan.__new__(Orphan)
                orphan.kind = kind
                orphan.reply = PyBytes_FromStringAndSize(data, size)
                orphan.address = ""
                orphan.redirect_slot = -1
                if kind == "moved" or kind == "ask":
                    _read_redirect(orphan)
                if self.head.quotes and not _is_nodes_own(orphan, self.head.slot):
                    return None
                orphan.command = self.command_of(self.head)
                orphan.pending = self.pop()
                _ticket(orphan.pending)
                return orphan
        return None

    def next_deadline(self):
        """Return when `expire` has something to do, or infinity."""
        cdef Pending pending = self.head
        cdef double earliest = self._stuck_at()
        while pending is not None:
            if pending.sink is not None and self._due(pending) < earliest:
                earliest = self._due(pending)
            pending = pending.next_of_node
        return earliest

    cdef double _stuck_at(self) noexcept:
        """Return until when the node may owe the oldest reply: what came late has its time too.

        A tenth of it may be gone before a command is sent, or every deadline would have two steps.
        Behind a reply that took long the next one has its time as well.
        """
        if self.head is None or self.head.sent == 0:
            return INFINITY
        return max(self.head.deadline, self.head.sent + 0.9 * self.timeout, self._arrives_until())

    cdef double _arrives_until(self) noexcept:
        """Return until when more must come of what the node is sending."""
        return min(self.grew + self.timeout, self.head.sent + LONGEST_REPLY)

    cdef double _due(self, Pending pending) noexcept:
        """Return when a command is overdue: the oldest not while its reply is arriving.

        Where PostgreSQL can answer as well, a look-up does not wait for that.
        """
        if pending is self.head and self.partial.end and not pending.detours:
            return max(pending.deadline, self._arrives_until())
        return pending.deadline

    def expire(self, double now):
        """Return (whether to close the connection, commands past their deadline, to be answered).

        A node that owes the oldest reply for the whole timeout, and sends no more of it, is stuck.
        What is overdue otherwise keeps its place, and once answered nobody there waits; what was
        never sent loses its bytes.
        """
        cdef Pending before = None
        cdef Pending pending = self.head
        cdef list overdue = []
        if self._stuck_at() <= now:
            return True, overdue
        while pending is not None and pending is not self.unsent:
            if pending.sink is not None and self._due(pending) <= now:
                overdue.append(self._orphan(pending, "overdue"))
                if pending.request is not None:
                    pending = self._replace(before, pending)
            before = pending
            pending = pending.next_of_node
        if pending is not None:
            self._expire_unsent(now, overdue)
        return False, overdue

    cdef Pending _replace(self, Pending before, Pending pending):
        """Let somebody without a receiver wait in the place of a look-up.

        The look-up is handed over and gets its receiver back: what the node says late is not for it.
        """
        cdef Pending place = Pending.__new__(Pending)
        place.at, place.size = pending.at, pending.size
        place.sent, place.deadline = pending.sent, pending.deadline
        place.row = place.slot = -1
        place.train, pending.train = pending.train, None
        place.next_of_node, pending.next_of_node = pending.next_of_node, None
        if before is None:
            self.head = place
        else:
            before.next_of_node = place
        if self.tail is pending:
            self.tail = place
        return place

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
            else:
                _leave(pending)
                if pending.sink is not None:
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
        cdef list orphans = self.refused or []
        self.refused = None
        while pending is not None:
            following = pending.next_of_node
            pending.next_of_node = None
            _leave(pending)
            if pending.sink is not None:
                orphans.append(self._orphan(pending, "lost"))
                _ticket(pending)
            pending = following
        self.clear()
        return orphans

    cdef void clear(self) noexcept:
        self.head = self.tail = self.unsent = None
        self.pending = 0
        self.first = self.sent = 0
        self.grew = 0
        self.fault = None
        octets_free(&self.queue)
        if self.reading:
            # Their bytes are being read: who reads them frees them.
            self.lost = True
            return
        octets_free(&self.partial)
        progress_reset(&self.progress)
