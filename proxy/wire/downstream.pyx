# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The client's end: takes requests apart, judges them, keeps replies in the client's order.

`session` feeds it and sends what it gives back. Always true:
  * replies leave in the order of the requests, whatever the nodes do;
  * all commands of one client for one node travel on one connection, so effects keep the order too;
  * a new `SlotMap` or `Ruleset` is adopted only while nothing is pending: until then the client's
    commands follow the old one, and those that moved are sent on in their order. Parsing waits
    meanwhile, so the old one cannot live on under a client that never pauses. A transaction that
    meets a new `Ruleset` between MULTI and EXEC is spoiled;
  * parsing waits as well while the client has too much in flight, owes us room to send, or a slow
    command holds it. What is not parsed is kept: no more than one read beyond what the session
    leaves off reading at, or a request of any size that is not whole.
A command that needs Python becomes a `Request`; everything else is decided here, in `_judge`.

The class is what others see of it. What it does lies in parts by what it is about, included below,
as functions of one module: the compiler sees all of them at once.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr, memcmp
from libc.stdlib cimport realloc

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from posix.strings cimport strncasecmp

cimport cython

from proxy.wire.bounds cimport ArgumentBounds
from proxy.wire.edits cimport Edit, edit_write, put_head, put_length, put_word
from proxy.wire.frames cimport (
    BAD_TYPE, COMPLETE, INCOMPLETE, TOO_LONG_LINE, TOO_LONG_WORD, TOO_MANY_WORDS,
    Bounds, Octets, Progress, Word, Words, fault_line, octets_append, octets_consume, octets_fit,
    octets_free, pack, pass_request, progress_reset, scan_request, split_line,
)
from proxy.wire.growth cimport growth_follows, judge_growth, put_trim
from proxy.wire.json_values cimport JSON_FINE, judge_json
from proxy.wire.limits cimport (
    FULL, PER_CLIENT, PER_IP, PER_KEY, PER_KEYSPACE, PER_SEGMENT, PER_USER, SPARED, UNKNOWN, Rate,
    ask, begin, once, refusal, settle,
)
from proxy.wire.patterns cimport Match
from proxy.wire.refusals cimport Refusal, Refusals, is_name
from proxy.wire.rules import AWAY_WORDS
from proxy.wire.sketches cimport COUNTED, MOST_WORDS, SAMPLED, WORD_BYTES, Sketches, Trace
from proxy.wire.tables cimport (
    ABANDONED, AWAY, BARRIER, BOUND, BOUNDS_DUTY, BOUNDS_RULE, COLLECTION_DUTY, COLLECTION_RULE, COMMANDS_DUTY,
    COMMANDS_RULE, CONTAINER, ENTRY_WORDS, ERROR, EXPIRED, FITTING_VALUES, FOLLOWED, FORWARD,
    KEYS_GEORADIUS,
    KEYS_NONE, KEYS_NUMKEYS, KEYS_RANGE, KEYS_RENDERED, KEYS_SORT, KEYS_STREAMS, KEY_RULE,
    LEAVES_NUMBER, LEAVES_PART, LITERAL_TAG, LOCAL, MAKES_CARRIED, MAKES_FIRST, MAKES_SECOND, MISS, MISSING_REJECT,
    NAME_BYTES, NEXT_WORDS, NO_TAG, OK, ORIGIN, ORIGIN_DUTY, OWED, PATH_REFUSED, PLACED_WORDS, RATE_DUTY,
    RATE_RULE, REFUSED, REWRITTEN, RUNS_BODIES, SCORED_WORDS, SPLIT, STALE, TABLE, TAKES_NAMED, TAKES_SET, TAKES_SETNX, TTL_DUTY, TTL_RULE, TYPE_DUTY,
    TYPE_RULE, VALUE_DUTY, VALUE_RULE,
    CommandRow, KeyspaceRow, Location, Router, Ruleset, SlotMap, WordPlaces,
)
from proxy.wire.times cimport (
    EXPIRY_FOLLOWS, HEAD_GREW, LONGEST_FOLLOWS, REFRESH_FOLLOWS, REFUSED_FOR_TIME, TRIM_FOLLOWS,
    judge_time, may_be_without, put_expiry, time_follows,
)
from proxy.wire.upstream cimport Batch, Delivery, Pending, Sink, Upstream

cdef enum:
    # A client's window. 128 commands fill a node's read buffer many times over; a MiB of replies
    # expected keeps what one client that never reads can cost at a few MiB here and in the node,
    # or at what one reply and one request may have: the session's accounts hold those in bounds.
    MOST_PENDING = 128
    WINDOW_BYTES = 1024 * 1024
    # A new client's replies are taken for this large until some have come: four in flight.
    # Three small replies open the window to 32, so a pipeline of small commands hardly notices.
    FIRST_ESTIMATE = 256 * 1024
    # Above this, what follows one command is one unit: a place in the node's queue for each key of
    # a large MSET would cost more than the command itself.
    MOST_FOLLOWERS = 16
    # Buffers of an idle client: what is larger is given back.
    KEPT_CAPACITY = 1024
    # Empty frames are legal and answer nothing, so they are what a flood would be made of.
    EMPTY_PER_SECOND = 1000
    # Of an error's code in what is told of a command; Redis' longest has 11.
    ERROR_BYTES = 32
    # What of a request is looked at before it is whole: an ordinary one is whole by then.
    AHEAD_BYTES = 64 * 1024
    # Before AUTH (Redis: 10 words of 16 KiB). A kilobyte holds any secret that is typed in.
    STRANGER_WORDS = 10
    STRANGER_WORD_BYTES = 1024
    # Of a key or a name that was refused, as much is told: whoever listens keeps it.
    MOST_TOLD_BYTES = 256

# Unread replies above which a client counts towards the total of all.
# Ten thousand clients that leave a little less cost 160 MiB; most clients are never heard of.
BEHIND = 16 * 1024
cdef Py_ssize_t MOST_BEHIND = BEHIND


cdef enum:
    TAKEN = 0
    ASKED = 1    # a Request stands in `found`
    WAIT = 2     # not taken: earlier commands must be answered first
    HELD = 3     # not taken: a limit is being asked about
    PASSED = 4   # nothing is against it


cdef enum:
    # Downstream.silence: what CLIENT REPLY has left of the replies.
    SPOKEN = 0
    SILENT = 1
    SILENT_ONCE = 2  # the next command's reply is left out


include "words.pxi"
include "requests.pxi"
include "parsing.pxi"
include "judging.pxi"
include "foreseeing.pxi"
include "refusing.pxi"
include "lookups.pxi"
include "charging.pxi"
include "sending.pxi"
include "following.pxi"
include "replies.pxi"
include "tracing.pxi"


cdef class Downstream(Sink):
    """One client's state."""

    def __init__(self, Router router not None, Batch batch not None, int lane):
        self.router = router
        self.ruleset = router.ruleset
        self.slots = router.slots
        self.batch = batch
        self.lane = lane
        self.user = self.address = b""
        self.default_cluster = -1
        self.protocol = 2
        self.last_row = -1
        self.assume(None)
        self.reply_estimate = FIRST_ESTIMATE
        progress_reset(&self.progress)

    def __dealloc__(self):
        octets_free(&self.input)
        octets_free(&self.output)

    @property
    def held_bytes(self):
        return self.input.end - self.input.start

    @property
    def output_bytes(self):
        return self.output.end - self.output.start + self.waiting_bytes

    @property
    def resumable(self):
        """Return whether parsing was blocked and may go on."""
        return self.blocked and self._may_go_on()

    cdef void note_write(self, int cluster) noexcept:
        # Clusters beyond the 64th share bits, so one more than needed may be taken for written.
        self.written |= <uint64_t> 1 << (cluster & 63)

    def has_written(self, int cluster):
        return bool(self.written >> (cluster & 63) & 1)

    cdef bint _may_go_on(self) noexcept:
        if self.held or self.paused or self.closing:
            return False
        if self.must_drain or self.serial:
            return self.pending == 0 and (self.following == 0 or not self.must_drain)
        return self.pending <= self._window() // 2 and self.request_bytes <= WINDOW_BYTES // 2

    cdef int _window(self) noexcept:
        """How many commands may be in flight: as many as a MiB of replies of the usual size."""
        cdef double commands = WINDOW_BYTES / self.reply_estimate
        if commands >= MOST_PENDING:
            return MOST_PENDING
        return <int> commands if commands > 1.0 else 1

    def receive_data(self, object data, double now):
        cdef Py_buffer view
        cdef Py_ssize_t consumed
        cdef Pending before = self.tail
        self.found = None
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.closing:
                return None
            if self.blocked:
                if not self._may_go_on():
                    octets_append(&self.input, <const char*> view.buf, view.len)
                    return None
                self.blocked = False
            if self.input.end == 0:
                consumed = self.parse(<const char*> view.buf, view.len, now)
                if consumed < view.len and not self.closing:
                    octets_append(&self.input, <const char*> view.buf + consumed, view.len - consumed)
            else:
                if view.len:
                    octets_append(&self.input, <const char*> view.buf, view.len)
                consumed = self.parse(self.input.data + self.input.start,
                                      self.input.end - self.input.start, now)
                octets_consume(&self.input, consumed)
                if self.closing or (self.input.end == 0 and self.input.capacity > KEPT_CAPACITY):
                    octets_free(&self.input)
                elif consumed:
                    octets_fit(&self.input)
        finally:
            PyBuffer_Release(&view)
        if self.tail is not before and self.batch.clock is not None:
            _stamp(self, before, now)
        return self.found

    cdef bint _is_stale(self) noexcept:
        return (self.slots is not self.router.slots
                or self.ruleset is not self.router.ruleset)

    def adopt(self):
        """Take the tables in force, unless something is under way that was judged by others.

        Whoever sends a command does so by itself; for who is silent, so that old rules can go.
        """
        if self.pending or self.following:
            return
        self.slots = self.router.slots
        if self.ruleset is not self.router.ruleset:
            self.ruleset = self.router.ruleset
            # What a transaction has queued was judged by rules that are over.
            self.spoiled = True
            self.assume(self.role_name)

    cdef Py_ssize_t parse(self, const char* data, Py_ssize_t size, double now) except -1:
        """Take commands until the bytes end, one needs Python, or it is time to wait."""
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t end
        cdef int verdict
        if self._is_stale():
            if self.pending or self.following:
                self.must_drain = self.blocked = True
                return 0
            self.adopt()
        self.must_drain = False
        while position < size:
            if (self.held or self.paused or self.request_bytes > WINDOW_BYTES
                    or (self.pending and (self.serial or self.pending >= self._window()))):
                self.blocked = True
                break
            if self.passing:
                position += _pass(self, data + position, size - position)
                if self.passing or self.closing:
                    break
                continue
            if data[position] == c"*":
                end = _frame(self, data + position, size - position)
                if end <= 0:
                    if not self.passing:
                        break
                    position += self.progress.position
                    continue
                if not WORDS.count:
                    verdict = _empty(self, now)
                elif self.batch.sketches.passes(end):
                    verdict = _judge(self, data + position, end, now)
                else:
                    verdict = _look(self, data + position, end, now)
            else:
                end = _line(self, data + position, size - position)
                if end <= 0:
                    break
                verdict = _inline(self, data + position, end, now)
            if verdict == WAIT:
                self.must_drain = self.blocked = True
                break
            if verdict == HELD:
                self.blocked = True
                break
            self.rounds = 0
            position += end
            if verdict == ASKED or self.closing:
                break
        return position

    def assume(self, role_name):
        """Take the rights and limits of a role; None, or one that no rule knows, is a stranger."""
        self.role_name = role_name
        self.role = -1
        self.allowed = self.reach = NULL
        self.named = self.matcher = self.limits = None
        self.key_bytes = STRANGER_WORD_BYTES
        self.rates = ()
        self.bounds.words = STRANGER_WORDS
        self.bounds.word_bytes = self.inline_bytes = STRANGER_WORD_BYTES
        for index, role in enumerate(self.ruleset.roles):
            if role.name == role_name:
                self.role = index
                self.bounds.words = role.limits.arguments
                self.bounds.word_bytes = role.limits.argument_bytes
                self.inline_bytes = role.limits.inline_bytes
                self.key_bytes = role.limits.key_bytes
                self.rates = <tuple> self.ruleset.role_rates[index]
                self.rights = role.allowed
                self.allowed = <const uint8_t*> <char*> self.rights
                self.named = role.keyspaces
                if self.named is not None:
                    self.reach = <const uint8_t*> <char*> self.named
                self.matcher = self.ruleset.matchers[index]
                self.limits = self.ruleset.role_bounds[index]

    cdef int notice(self, Pending pending, Upstream upstream, Py_ssize_t size, double now) except -1:
        cdef bint slow = (pending.sink is self and pending.trace is None
                          and now - pending.received >= self.batch.slow_after)
        cdef bytes command
        if slow or (pending.row >= 0 and size >= self.batch.sketches.large):
            command = upstream.command_of(pending)
            if pending.row >= 0 and size >= self.batch.sketches.large:
                _weigh(self, command, pending.row, pending.keyspace, size, now)
            if slow:
                _collect(command)
                pending.trace = _trace(
                    self, <char*> command, len(command), pending.row, pending.received)
                pending.trace.keyspace = pending.keyspace
                pending.trace.renamed = True
        if pending.trace is not None:
            pending.trace.node = upstream.owner
        return 0

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        """Take the reply of one of this client's commands."""
        if pending.leads is not None:
            _told_time(pending, data, size)
        if pending.follows:
            return _followed(self, pending, data[0] == c"-")
        if pending.request is not None and not _looked_up(self, pending, data, size):
            return 0
        self.reply_estimate += (size - self.reply_estimate) / 2
        self.request_bytes -= pending.size
        self.ruleset.counters.count(pending.keyspace, pending.family,
                                    ERROR if data[0] == c"-" else OK)
        if pending.trace is not None:
            _settle(self, pending, data, size, now)
        if pending.silent:
            size = 0
        if pending is not self.head:
            pending.reply = PyBytes_FromStringAndSize(data, size)
            self.waiting_bytes += size
            # The session counts what waits, and hears of it only so.
            return _wake(self) if self.waiting_bytes > MOST_BEHIND else 0
        octets_append(&self.output, data, size)
        _advance(self)
        return _wake(self)

    def answer(self, Request request not None, bytes reply not None):
        """Give the reply of a Request; it leaves when its turn comes."""
        cdef Pending pending = request.pending
        cdef double now = self.batch.now()
        if pending is None:
            raise RuntimeError("a request is answered once")
        request.pending = None
        if request.holds:
            self.hold_back(-1)
        if pending.sink is None:
            return
        pending.sink = None
        if pending.trace is None and now - pending.received >= self.batch.slow_after:
            _collect(request.command)
            pending.trace = _trace(self, 
                <char*> request.command, len(request.command), request.row, pending.received)
        if pending.trace is not None:
            pending.trace.handled = True
        self.deliver(pending, <char*> reply, len(reply), now)

    def take_deferred(self):
        """Return the Requests that came to be since, and forget them."""
        cdef list deferred = self.deferred
        self.deferred = None
        return deferred or ()

    def hold(self):
        """Parse no further until `release`: the barrier of a slow command."""
        self.held += 1

    def release(self):
        self.hold_back(-1)

    cdef void hold_back(self, int change) noexcept:
        self.held += change
        if self.held == 0 and self.blocked and not self.awake:
            self.awake = True
            self.batch.wake(self)

    def gather(self, Py_ssize_t change):
        """Count what a handler keeps of replies until it can answer; below 0: keeps no longer."""
        self.waiting_bytes += change
        if change > 0 and self.waiting_bytes > MOST_BEHIND:
            _wake(self)

    def finish(self):
        """Take no further command; what is pending is still answered."""
        self.closing = True
        octets_free(&self.input)

    def locate(self, bytes key not None, int row, bint asked=True, int place=0, int source=-1):
        """Return where a client's key lives, or the error line of the rule that refuses it.

        A refusal is told of where the client has asked for the key. place counts the command's
        keys from 0; source is the keyspace of its first.
        """
        cdef Location location
        cdef Match found
        cdef int cluster
        # The key stands for a command of one word, so that it is judged as in any other.
        WORDS.items[0].at = 0
        WORDS.items[0].size = len(key)
        WORDS.count = 1
        KEYS.count = 0
        _add_key(0)
        refusal = _judge_key(self, <char*> key, &KEYS.items[0], row, place, source, &found)
        if refusal is None and KEYS.items[0].duties & TTL_DUTY:
            refusal = _without_time(self, &self.ruleset.rows[row], place, found.keyspace,
                                         place > 0 and source != found.keyspace)
        if refusal is not None:
            if asked:
                _tell_of_key(self, refusal, <char*> key, 0, row)
            return refusal
        cluster = _cluster_of(self, found.keyspace)
        if row >= 0 and self.ruleset.rows[row].write:
            self.note_write(cluster)
        location = Location.__new__(Location)
        location.cluster = cluster
        location.keyspace = found.keyspace
        location.slot = 0
        if self.slots.is_sharded(cluster):
            location.slot = self.ruleset.slot_for(<const uint8_t*> <char*> key, len(key), &found)
        location.name = self.ruleset.name_for_node(<const uint8_t*> <char*> key, len(key), &found)
        return location

    def followers(self, Location location not None, int row, int place, bytes command not None):
        """Return the commands that rules send behind a command that a handler sends.

        They are for the key at a place, counted from 0, that the location is of; the command is as
        the client wrote it and says no time by itself.
        """
        cdef Ruleset rules = self.ruleset
        cdef int keyspace = location.keyspace
        cdef int duties = rules.spaces[keyspace].duties[row] if keyspace >= 0 else 0
        cdef CommandRow* own = &rules.rows[row]
        cdef int follows = 0
        cdef Octets out
        cdef int part
        cdef list frames = []
        if duties & TTL_DUTY:
            follows = time_follows(&rules.spaces[keyspace], own, place, False)
            if (follows == REFRESH_FOLLOWS and self.serial and not own.write) or (
                    follows and not rules.applies(keyspace, TTL_RULE)):
                follows = 0
        if duties & COLLECTION_DUTY:
            _collect(command)
            part = growth_follows(<char*> command, &WORDS, own, place)
            if part and rules.applies(keyspace, COLLECTION_RULE):
                follows |= part
        out.data = NULL
        out.start = out.end = out.capacity = 0
        try:
            for part in (EXPIRY_FOLLOWS, REFRESH_FOLLOWS, LONGEST_FOLLOWS, TRIM_FOLLOWS):
                if follows & part:
                    out.end = 0
                    _put_follower(self, &out, <char*> location.name, len(location.name), own,
                                       keyspace, part | (follows & HEAD_GREW))
                    frames.append(PyBytes_FromStringAndSize(out.data, out.end))
        finally:
            octets_free(&out)
        return frames

    def follow(self, Location location not None, list frames not None, double now):
        """Queue what `followers` returned, right behind the command that it belongs to."""
        cdef Upstream upstream = _upstream(self, location.cluster, location.slot)
        cdef bytes frame
        if upstream is None or not upstream.available:
            return
        if len(frames) > MOST_FOLLOWERS:
            _link_unit(self, upstream, frames, location.cluster, location.slot, location.keyspace, now)
            return
        for frame in frames:
            upstream.put(<char*> frame, len(frame))
            _link_follower(self, upstream, len(frame), location.cluster, location.slot,
                                location.keyspace, now)

    def submit(self, Location location not None, bytes command not None, int row, double now,
               object deliver not None, bint quotes=False):
        """Queue a part of a Request behind what this client sent so far.

        deliver gets the reply, at once where no node can be asked. With quotes the command may
        answer error lines of its own, as scripts do: only a node's exact words send it elsewhere.
        """
        _send_part(self, location, command, row, 1, quotes, now, deliver)

    def submit_unit(self, Location location not None, bytes commands not None, int replies,
                    double now, object deliver not None):
        """Queue commands that belong together, of which only the last reply, or error, counts.

        Where a node sends any of them elsewhere, none has run (MULTI ... EXEC), and all go there.
        """
        _send_part(self, location, commands, -1, replies, False, now, deliver)

    def data_to_send(self):
        """Return the replies that are ready and not behind one that is not."""
        cdef bytes data = PyBytes_FromStringAndSize(
            self.output.data + self.output.start, self.output.end - self.output.start)
        self.awake = False
        if self.traces is not None:
            _tell_seen(self)
        self.output.start = self.output.end = 0
        if self.output.capacity > KEPT_CAPACITY:
            octets_free(&self.output)
        return data

    def push(self, bytes data not None):
        """Send something that answers nothing, behind the replies that are ready."""
        octets_append(&self.output, <char*> data, len(data))
        _wake(self)

    cdef object client_of(self):
        return self.owner

    def connection_lost(self):
        """Forget the client: what is in flight for it is read and dropped.

        Left to be taken as deferred are the Requests of writes that go with the connection.
        """
        cdef Pending pending = self.head
        cdef Pending following
        cdef list bound = [each for each in self.deferred or () if (<Request> each).reason == BOUND]
        self.closing = True
        octets_free(&self.input)
        octets_free(&self.output)
        while pending is not None:
            following = pending.next_of_client
            pending.next_of_client = None
            if pending.request is not None and (<Request> pending.request).reason == BOUND:
                bound.append(pending.request)
            pending.sink = pending.request = None
            if pending.reply is None:
                self.ruleset.counters.count(pending.keyspace, pending.family, ABANDONED)
            if pending.trace is not None:
                pending.trace.outcome = ABANDONED if pending.reply is None else pending.trace.outcome
                _leave(self, pending.trace)
                pending.trace = None
            pending = following
        self.head = self.tail = None
        self.deferred = bound or None
        self.pending = 0
        if self.traces is not None:
            _tell_seen(self)
        self.owner = None
