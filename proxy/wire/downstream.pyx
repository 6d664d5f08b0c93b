# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The client's end: takes requests apart, judges them, keeps replies in the client's order.

`session` feeds it and sends what it gives back. Always true:
  * replies leave in the order of the requests, whatever the nodes do;
  * all commands of one client for one node travel on one connection, so effects keep the order too;
  * a new `SlotMap` or `Ruleset` is adopted only while nothing is pending: until then the client's
    commands follow the old one, and those that moved are sent on in their order. Parsing waits
    meanwhile, so the old one cannot live on under a client that never pauses;
  * parsing waits as well while the client has too much in flight, owes us room to send, or a slow
    command holds it. What is not parsed is kept, and no more than one read of it.
A command that needs Python becomes a `Request`; everything else is decided here, in `judge`.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr, memcmp
from libc.stdlib cimport realloc

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize

cimport cython

from proxy.wire.frames cimport (
    COMPLETE, INCOMPLETE, Bounds, Octets, Progress, Word, Words, fault_line, octets_append,
    octets_consume, octets_free, pack, progress_reset, scan_request,
)
from proxy.wire.frames import split_inline
from proxy.wire.tables cimport (
    ABANDONED, BARRIER, CONTAINER, ERROR, KEYS_GEORADIUS, KEYS_NONE, KEYS_NUMKEYS, KEYS_RANGE,
    KEYS_SORT, KEYS_STREAMS, LITERAL_TAG, LOCAL, NAME_BYTES, NO_TAG, OK, PATH_REFUSED, REFUSED,
    SPLIT, CommandRow, KeyspaceRow, Location, Match, Router, Ruleset, SlotMap,
)
from proxy.wire.upstream cimport Batch, Delivery, Pending, Sink, Upstream

cdef enum:
    # A client's window. 128 commands fill a node's read buffer many times over; a MiB of replies
    # expected keeps what one client that never reads can cost at a few MiB here and in the node.
    MOST_PENDING = 128
    WINDOW_BYTES = 1024 * 1024
    # A new client's replies are taken for this large until some have come: four in flight.
    # Three small replies open the window to 32, so a pipeline of small commands hardly notices.
    FIRST_ESTIMATE = 256 * 1024
    # Buffers of an idle client: what is larger is given back.
    KEPT_CAPACITY = 1024
    # Empty frames are legal and answer nothing, so they are what a flood would be made of.
    EMPTY_PER_SECOND = 1000
    # Before AUTH (Redis: 10 words of 16 KiB). A kilobyte holds any secret that is typed in.
    STRANGER_WORDS = 10
    STRANGER_WORD_BYTES = 1024

cdef enum:
    TAKEN = 0
    ASKED = 1    # a Request stands in `found`
    WAIT = 2     # not taken: earlier commands must be answered first

cdef enum:
    KEYS_UNSURE = -1
    KEYS_BLOCKING = -2
    KEYS_BAD_COUNT = -3
    KEYS_UNPAIRED = -4

cdef struct KeyPlaces:
    KeyPlace* items
    Py_ssize_t count
    Py_ssize_t capacity

# Where the words and keys of the command that is being judged lie. One thread judges one command
# at a time, so all clients share them.
cdef Words WORDS
cdef KeyPlaces KEYS
WORDS.items = NULL
WORDS.count = WORDS.capacity = 0
KEYS.items = NULL
KEYS.count = KEYS.capacity = 0

cdef bytes UNBALANCED = b"-ERR Protocol error: unbalanced quotes in request\r\n"
cdef bytes TOO_BIG_INLINE = b"-ERR Protocol error: too big inline request\r\n"
cdef bytes NOT_MULTIBULK = b"-ERR Protocol error: expected '*' or an inline command\r\n"
cdef bytes TOO_MANY_EMPTY = b"-ERR Protocol error: too many empty requests\r\n"
cdef bytes SPEAKS_HTTP = b"-ERR Protocol error: this port speaks the Redis protocol\r\n"


cdef int _add_key(Py_ssize_t word) except -100:
    cdef KeyPlace* moved
    cdef Py_ssize_t capacity
    if KEYS.count == KEYS.capacity:
        capacity = KEYS.capacity * 2 if KEYS.capacity else 64
        moved = <KeyPlace*> realloc(KEYS.items, capacity * sizeof(KeyPlace))
        if moved == NULL:
            raise MemoryError()
        KEYS.items = moved
        KEYS.capacity = capacity
    KEYS.items[KEYS.count].word = word
    KEYS.count += 1
    return 0


cdef bint _word_is(const char* frame, Py_ssize_t index, const char* upper, Py_ssize_t size) noexcept:
    """Whether a word is this one, case ignored; upper holds letters only."""
    cdef Word* word = &WORDS.items[index]
    cdef Py_ssize_t i
    if word.size != size:
        return False
    for i in range(size):
        if (frame[word.at + i] & 0xDF) != upper[i]:
            return False
    return True


cdef int64_t _word_number(const char* frame, Py_ssize_t index) noexcept:
    """The value of a word of digits, -1 for anything else."""
    cdef Word* word = &WORDS.items[index]
    cdef int64_t value = 0
    cdef Py_ssize_t i
    cdef char mark
    if word.size == 0 or word.size > 9 or (frame[word.at] == c"0" and word.size > 1):
        return -1
    for i in range(word.size):
        mark = frame[word.at + i]
        if not c"0" <= mark <= c"9":
            return -1
        value = value * 10 + (mark - c"0")
    return value


cdef int _find_keys(const char* frame, CommandRow* row) except -100:
    """Fill KEYS with the words that are keys; a negative status where that is not certain."""
    cdef Py_ssize_t i, last
    cdef int64_t count
    KEYS.count = 0
    if row.kind == KEYS_RANGE:
        last = row.last if row.last >= 0 else WORDS.count + row.last
        if last >= WORDS.count:
            return KEYS_UNSURE
        if row.step > 1 and (WORDS.count - row.first) % row.step:
            return KEYS_UNPAIRED
        i = row.first
        while i <= last:
            _add_key(i)
            i += row.step
        return 0
    if row.kind == KEYS_NUMKEYS:
        if row.first >= WORDS.count:
            return KEYS_UNSURE
        count = _word_number(frame, row.first)
        if count <= 0 or count > WORDS.count - row.first - 1:
            return KEYS_BAD_COUNT
        if row.last:
            _add_key(row.last)
        for i in range(count):
            _add_key(row.first + 1 + i)
        return 0
    if row.kind == KEYS_STREAMS:
        return _find_streams(frame, row)
    return _find_stores(frame, row)


cdef int _find_streams(const char* frame, CommandRow* row) except -100:
    """XREAD and XREADGROUP: options, then STREAMS, then as many ids as names.

    Where a node's own key finder could take an option's value for the word STREAMS, or looks for it
    only behind `GROUP group consumer`, the keys are not certain.
    """
    cdef Py_ssize_t i = 1
    cdef Py_ssize_t names
    cdef int status = 0
    while i < WORDS.count:
        if _word_is(frame, i, "STREAMS", 7):
            names = WORDS.count - i - 1
            if names == 0 or names % 2 or (row.write and i < 4):
                return KEYS_UNSURE
            names //= 2
            while names > 0:
                i += 1
                names -= 1
                _add_key(i)
            return status
        if _word_is(frame, i, "BLOCK", 5) or _word_is(frame, i, "COUNT", 5):
            if i + 1 < WORDS.count and _word_is(frame, i + 1, "STREAMS", 7):
                return KEYS_UNSURE
            if _word_is(frame, i, "BLOCK", 5):
                status = KEYS_BLOCKING
            i += 2
        elif row.write and _word_is(frame, i, "GROUP", 5):
            i += 3
        elif row.write and _word_is(frame, i, "NOACK", 5):
            i += 1
        else:
            return KEYS_UNSURE
    return KEYS_UNSURE


cdef bint _is_store(const char* frame, Py_ssize_t index) noexcept:
    return _word_is(frame, index, "STORE", 5) or _word_is(frame, index, "STOREDIST", 9)


cdef int _find_stores(const char* frame, CommandRow* row) except -100:
    """SORT and GEORADIUS: the first key, and the one behind STORE, read option by option.

    An option's value may spell another option, and a node's key finder and its command do not
    always agree on which it is; the same with several STOREs. Then the keys are not certain.
    """
    cdef bint sorts = row.kind == KEYS_SORT
    cdef Py_ssize_t i = 2 if sorts else -row.arity
    cdef bint stored = False
    if WORDS.count < 2 or (row.arity == -6 and WORDS.count > 5 and _is_store(frame, 5)):
        return KEYS_UNSURE
    _add_key(1)
    while i < WORDS.count:
        if _word_is(frame, i, "STORE", 5) or (not sorts and _is_store(frame, i)):
            if not row.write or stored or i + 1 >= WORDS.count or _is_option(frame, i + 1, sorts):
                return KEYS_UNSURE
            stored = True
            _add_key(i + 1)
            i += 2
        elif sorts and _word_is(frame, i, "LIMIT", 5):
            i += 3
        elif sorts and (_word_is(frame, i, "BY", 2) or _word_is(frame, i, "GET", 3)):
            i += 2
        elif not sorts and _word_is(frame, i, "COUNT", 5):
            if i + 1 < WORDS.count and _is_store(frame, i + 1):
                return KEYS_UNSURE
            i += 2
        else:
            i += 1
    return 0


cdef bint _is_option(const char* frame, Py_ssize_t index, bint sorts) noexcept:
    """Whether what stands behind STORE could be read as an option instead of a key."""
    if not sorts:
        return _is_store(frame, index)
    return (_word_is(frame, index, "STORE", 5) or _word_is(frame, index, "LIMIT", 5)
            or _word_is(frame, index, "BY", 2) or _word_is(frame, index, "GET", 3))


@cython.freelist(64)
cdef class Request:
    """A command that needs Python. Answered exactly once through `Downstream.answer`."""

    @property
    def arguments(self):
        """Return all words, the name first, in the client's spelling."""
        cdef const char* frame = <char*> self.command
        _collect(self.command)
        return [PyBytes_FromStringAndSize(frame + WORDS.items[i].at, WORDS.items[i].size)
                for i in range(WORDS.count)]

    @property
    def keys(self):
        """Return the positions of the keys among the arguments; none where that is not certain."""
        if self.row < 0:
            return []
        _collect(self.command)
        if self.ruleset.rows[self.row].kind == KEYS_NONE:
            return []
        if _find_keys(<char*> self.command, &self.ruleset.rows[self.row]) not in (0, KEYS_BLOCKING):
            return []
        return [KEYS.items[i].word for i in range(KEYS.count)]


cdef int _collect(bytes command) except -1:
    """Fill WORDS from a frame that has passed before."""
    cdef Progress progress
    cdef Bounds bounds
    bounds.words = bounds.word_bytes = len(command)
    WORDS.count = 0
    progress_reset(&progress)
    scan_request(<char*> command, len(command), &bounds, &progress, &WORDS)
    return 0


_collect(pack((b"ping",)))  # WORDS has room for one word from here on


cdef class Downstream(Sink):
    """One client's state."""

    def __init__(self, Router router not None, Batch batch not None, int lane):
        self.router = router
        self.ruleset = router.ruleset
        self.slots = router.slots
        self.batch = batch
        self.lane = lane
        self.protocol = 2
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

    cdef bint _may_go_on(self) noexcept:
        if self.held or self.paused or self.closing:
            return False
        if self.must_drain:
            return self.pending == 0
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
        finally:
            PyBuffer_Release(&view)
        return self.found

    cdef Py_ssize_t parse(self, const char* data, Py_ssize_t size, double now) except -1:
        """Take commands until the bytes end, one needs Python, or it is time to wait."""
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t end
        cdef int verdict
        if self.ruleset is not self.router.ruleset or self.slots is not self.router.slots:
            if self.pending:
                self.must_drain = self.blocked = True
                return 0
            self.slots = self.router.slots
            if self.ruleset is not self.router.ruleset:
                self.ruleset = self.router.ruleset
                self.assume(self.role_name)
        self.must_drain = False
        while position < size:
            if (self.held or self.paused or self.request_bytes > WINDOW_BYTES
                    or (self.pending and self.pending >= self._window())):
                self.blocked = True
                break
            if data[position] == c"*":
                end = self._frame(data + position, size - position)
                if end <= 0:
                    break
                verdict = self.judge(data + position, end, now) if WORDS.count else self._empty(now)
            else:
                end = self._line(data + position, size - position)
                if end <= 0:
                    break
                verdict = self._inline(data + position, end, now)
            if verdict == WAIT:
                self.must_drain = self.blocked = True
                break
            position += end
            if verdict == ASKED or self.closing:
                break
        return position

    def assume(self, role_name):
        """Take the rights and limits of a role; None, or one that no rule knows, is a stranger."""
        self.role_name = role_name
        self.role = -1
        self.allowed = NULL
        self.bounds.words = STRANGER_WORDS
        self.bounds.word_bytes = self.inline_bytes = STRANGER_WORD_BYTES
        for index, role in enumerate(self.ruleset.roles):
            if role.name == role_name:
                self.role = index
                self.bounds.words = role.limits.arguments
                self.bounds.word_bytes = role.limits.argument_bytes
                self.inline_bytes = role.limits.inline_bytes
                self.rights = role.allowed
                self.allowed = <const uint8_t*> <char*> self.rights

    cdef Py_ssize_t _frame(self, const char* data, Py_ssize_t size) except -100:
        """Return the size of the multibulk request at data and fill WORDS, 0 while it is not whole."""
        cdef int status
        cdef bint again = self.progress.left >= 0
        WORDS.count = 0
        status = scan_request(data, size, &self.bounds, &self.progress, NULL if again else &WORDS)
        if status == COMPLETE and again:
            # The end is known; its words are collected from the start, once.
            progress_reset(&self.progress)
            status = scan_request(data, size, &self.bounds, &self.progress, &WORDS)
        if status == COMPLETE:
            size = self.progress.position
            progress_reset(&self.progress)
            return size
        if status < 0:
            self._fail(fault_line(status))
        return 0

    cdef Py_ssize_t _line(self, const char* data, Py_ssize_t size) except -100:
        """Return the size of the inline request at data, its line feed included, 0 for not whole."""
        cdef const char* feed
        cdef uint8_t first = <uint8_t> data[0]
        cdef Py_ssize_t most = self.inline_bytes
        if not (c"a" <= (first | 32) <= c"z" or c"0" <= first <= c"9" or first == c" " or first == c"\t"
                or first == c"\r" or first == c"\n" or first == c'"' or first == c"'"):
            # A TLS hello, or the rest of a stream that has lost its step.
            self._fail(NOT_MULTIBULK)
            return 0
        feed = <const char*> memchr(data, c"\n", size if size <= most else most)
        if feed == NULL:
            if size >= most:
                self._fail(TOO_BIG_INLINE)
            return 0
        return feed - data + 1

    cdef int _inline(self, const char* data, Py_ssize_t size, double now) except -1:
        cdef bytes line = data[:size - 1]
        cdef bytes frame
        words = None if b"\0" in line else split_inline(line.removesuffix(b"\r"))
        if words is None:
            self._fail(UNBALANCED)
            return TAKEN
        if not words:
            return self._empty(now)
        if words[0] == b"POST" or words[0] == b"Host:":
            # A browser that somebody has sent here: what follows is not from a Redis client.
            self._fail(SPEAKS_HTTP)
            return TAKEN
        frame = pack(words)
        _collect(frame)
        return self.judge(<char*> frame, len(frame), now)

    cdef int _empty(self, double now) except -1:
        if now - self.empty_since >= 1.0:
            self.empty_since = now
            self.empty_frames = 0
        self.empty_frames += 1
        if self.empty_frames > EMPTY_PER_SECOND:
            self._fail(TOO_MANY_EMPTY)
        return TAKEN

    cdef int _fail(self, bytes line) except -1:
        """Answer a protocol error and take nothing more: the position in the stream is in doubt."""
        self.closing = True
        progress_reset(&self.progress)
        return self._reply(line, -1, self.ruleset.counters.families - 1)

    cdef int judge(self, const char* frame, Py_ssize_t size, double now) except -1:
        """Decide on one command: answer it, forward it, make it a Request, or wait."""
        cdef Ruleset rules = self.ruleset
        cdef int index = rules.find(frame + WORDS.items[0].at, WORDS.items[0].size)
        cdef CommandRow* row
        if index >= 0 and rules.rows[index].path == CONTAINER and WORDS.count > 1:
            index = self._subcommand(frame, index)
        if self.role < 0 and (index < 0 or not rules.rows[index].unauthenticated):
            return self._reply(rules.errors.noauth, -1, rules.counters.families - 1)
        if index < 0:
            return self._ask(frame, size, -1, now)
        row = &rules.rows[index]
        if (row.arity > 0 and WORDS.count != row.arity) or WORDS.count < -row.arity:
            return self._reply(rules.commands[index].arity_error, -1, row.family)
        if self.allowed != NULL and not self.allowed[index]:
            return self._reply(rules.errors.noperm, -1, row.family)
        if row.path == PATH_REFUSED:
            return self._reply(rules.commands[index].refused_error, -1, row.family)
        if row.path == BARRIER and self.pending:
            return WAIT
        if row.path == LOCAL or row.path == BARRIER or row.path == CONTAINER:
            return self._ask(frame, size, index, now)
        return self._route(frame, size, index, row, now)

    cdef int _subcommand(self, const char* frame, int index) noexcept:
        """Return the row of "container|word", or -1 where the container has no such word."""
        cdef CommandRow* row = &self.ruleset.rows[index]
        cdef Word* word = &WORDS.items[1]
        cdef char name[NAME_BYTES]
        cdef Py_ssize_t i
        if row.size + 1 + word.size > NAME_BYTES:
            return -1
        for i in range(row.size):
            name[i] = row.name[i]
        name[row.size] = c"|"
        for i in range(word.size):
            name[row.size + 1 + i] = frame[word.at + i]
        return self.ruleset.find(name, row.size + 1 + word.size)

    cdef int _route(self, const char* frame, Py_ssize_t size, int index, CommandRow* row,
                    double now) except -1:
        """Forward a command by its keys, when they share a slot."""
        cdef Ruleset rules = self.ruleset
        cdef int status = _find_keys(frame, row)
        cdef int cluster = -1
        cdef int slot = -1
        cdef int keyspace, key_cluster, key_slot, owner
        cdef bint split = False
        cdef bint renamed = False
        cdef Py_ssize_t i
        cdef Match found
        if status == KEYS_BLOCKING:
            return self._ask(frame, size, index, now)
        if status == KEYS_UNPAIRED:
            return self._reply(rules.commands[index].arity_error, -1, row.family)
        if status < 0 or KEYS.count == 0:
            return self._reply(rules.errors.bad_numkeys if status == KEYS_BAD_COUNT
                               else rules.errors.syntax, -1, row.family)
        for i in range(KEYS.count):
            refusal = self._judge_key(frame, i, index, &found)
            if refusal is not None:
                return self._reply(refusal, found.keyspace, row.family)
            keyspace = found.keyspace
            renamed = renamed or KEYS.items[i].tag != NO_TAG
            key_cluster = rules.spaces[keyspace].cluster if keyspace >= 0 else rules.default_cluster
            key_slot = 0
            if self.slots.sharded[key_cluster]:
                key_slot = rules.slot_for(<const uint8_t*> frame + WORDS.items[KEYS.items[i].word].at,
                                          WORDS.items[KEYS.items[i].word].size, &found)
            if i == 0:
                cluster = key_cluster
                slot = key_slot
            elif key_cluster != cluster or key_slot != slot:
                if row.path != SPLIT:
                    return self._reply(rules.errors.crossslot if key_cluster == cluster
                                       else rules.errors.cross_cluster, keyspace, row.family)
                split = True
        if split or (renamed and row.names_in_reply):
            return self._ask(frame, size, index, now)
        owner = self.slots.owner_of(cluster, slot)
        keyspace = KEYS.items[0].keyspace
        if owner < 0:
            return self._reply(rules.errors.clusterdown, keyspace, row.family)
        return self._forward(frame, size, index, cluster, slot, owner, renamed, now)

    cdef bytes _judge_key(self, const char* frame, Py_ssize_t place, int command, Match* found):
        """Return the error line for a key that a rule refuses, or None; note where its tag goes."""
        cdef Ruleset rules = self.ruleset
        cdef KeyPlace* mark = &KEYS.items[place]
        cdef Word* word = &WORDS.items[mark.word]
        cdef const uint8_t* key = <const uint8_t*> frame + word.at
        cdef KeyspaceRow* space
        rules.match(key, word.size, found)
        mark.keyspace = found.keyspace
        mark.tag = NO_TAG
        if found.keyspace < 0:
            if rules.reject_unmatched:
                return rules.errors.unmatched
            if word.size > rules.max_key_bytes or not _allowed(key, word.size, NULL):
                return rules.errors.bad_key
            return None
        space = &rules.spaces[found.keyspace]
        if space.denied[command]:
            return rules.keyspaces[found.keyspace].denied_error
        if word.size > space.max_key_bytes or not _allowed(key, word.size, space.characters):
            return rules.keyspaces[found.keyspace].key_error
        if space.tag != NO_TAG:
            # A brace of the client's own would move the tag that is put in.
            if memchr(key, c"{", word.size) != NULL or memchr(key, c"}", word.size) != NULL:
                return rules.keyspaces[found.keyspace].key_error
            mark.tag = space.tag
            if space.tag >= 0:
                mark.at = found.at[space.tag]
                mark.end = found.end[space.tag]
        return None

    cdef int _forward(self, const char* frame, Py_ssize_t size, int index, int cluster, int slot,
                      int owner, bint renamed, double now) except -1:
        cdef CommandRow* row = &self.ruleset.rows[index]
        cdef tuple lanes = <tuple> (<tuple> self.slots.nodes[owner])[self.protocol - 2]
        cdef Upstream upstream = <Upstream> lanes[self.lane % len(lanes)]
        cdef Pending pending
        cdef int keyspace = KEYS.items[0].keyspace
        if not upstream.available:
            return self._reply(self.ruleset.errors.clusterdown, keyspace, row.family)
        if upstream.crowded():
            return self._reply(self.ruleset.errors.overloaded, keyspace, row.family)
        if renamed:
            size = self._put_renamed(upstream, frame, size)
        else:
            upstream.put(frame, size)
        pending = self._expect(now, row.family, keyspace)
        pending.cluster = cluster
        pending.slot = slot
        pending.repeatable = row.repeatable
        pending.deadline = now + upstream.timeout
        self.request_bytes += size
        upstream.link(pending, size)
        return TAKEN

    cdef Py_ssize_t _put_renamed(self, Upstream upstream, const char* frame, Py_ssize_t size) except -1:
        """Append the frame with its keys as nodes know them; return its new size."""
        cdef Py_ssize_t total = 0
        cdef Py_ssize_t copied = 0
        cdef Py_ssize_t i
        cdef KeyPlace* mark
        cdef Word* word
        cdef bytes name
        for i in range(KEYS.count):
            mark = &KEYS.items[i]
            if mark.tag == NO_TAG:
                continue
            word = &WORDS.items[mark.word]
            name = self._node_name(frame + word.at, word.size, mark)
            name = b"$%d\r\n%b\r\n" % (len(name), name)
            upstream.put(frame + copied, word.head - copied)
            upstream.put(<char*> name, len(name))
            total += word.head - copied + len(name)
            copied = word.at + word.size + 2
        upstream.put(frame + copied, size - copied)
        return total + size - copied

    cdef bytes _node_name(self, const char* key, Py_ssize_t size, KeyPlace* mark):
        if mark.tag == LITERAL_TAG:
            return b"{%b}%b" % (self.ruleset.keyspaces[mark.keyspace].hash_tag, key[:size])
        return b"%b{%b}%b" % (key[:mark.at], key[mark.at:mark.end], key[mark.end:size])

    cdef Pending _expect(self, double now, int family, int keyspace):
        """Append a place for a reply to the client's queue."""
        cdef Pending pending = Pending.__new__(Pending)
        pending.sink = self
        pending.received = now
        pending.family = family
        pending.keyspace = keyspace
        pending.slot = -1
        if self.tail is None:
            self.head = pending
        else:
            self.tail.next_of_client = pending
        self.tail = pending
        self.pending += 1
        return pending

    cdef int _ask(self, const char* frame, Py_ssize_t size, int index, double now) except -1:
        cdef Ruleset rules = self.ruleset
        cdef Request request = Request.__new__(Request)
        request.command = PyBytes_FromStringAndSize(frame, size)
        request.row = index
        request.name = rules.commands[index].name if index >= 0 else b""
        request.received = now
        request.ruleset = rules
        request.pending = self._expect(
            now, rules.rows[index].family if index >= 0 else rules.counters.families - 1, -1)
        request.pending.size = size
        self.request_bytes += size
        self.found = request
        return ASKED

    cdef int _reply(self, bytes line, int keyspace, int family) except -1:
        """Answer with a line of our own, in its turn."""
        cdef Pending pending
        self.ruleset.counters.count(keyspace, family, REFUSED)
        if self.head is None:
            octets_append(&self.output, <char*> line, len(line))
        else:
            pending = self._expect(0, family, keyspace)
            pending.reply = line
            self.waiting_bytes += len(line)
        self._wake()
        return TAKEN

    cdef int _wake(self) except -1:
        if not self.awake:
            self.awake = True
            self.batch.wake(self)
        return 0

    cdef int deliver(self, Pending pending, const char* data, Py_ssize_t size, double now) except -1:
        """Take the reply of one of this client's commands."""
        self.reply_estimate += (size - self.reply_estimate) / 2
        self.request_bytes -= pending.size
        self.ruleset.counters.count(pending.keyspace, pending.family,
                                    ERROR if data[0] == c"-" else OK)
        if pending is not self.head:
            pending.reply = PyBytes_FromStringAndSize(data, size)
            self.waiting_bytes += size
            return 0
        octets_append(&self.output, data, size)
        self._advance()
        return self._wake()

    cdef int _advance(self) except -1:
        """Move on from a head that is answered, and over those behind it that are."""
        cdef Pending pending = self.head
        while True:
            self.head = pending.next_of_client
            pending.next_of_client = None
            self.pending -= 1
            pending = self.head
            if pending is None:
                self.tail = None
                return 0
            if pending.reply is None:
                return 0
            octets_append(&self.output, <char*> pending.reply, len(pending.reply))
            self.waiting_bytes -= len(pending.reply)
            pending.reply = None

    def answer(self, Request request not None, bytes reply not None):
        """Give the reply of a Request; it leaves when its turn comes."""
        cdef Pending pending = request.pending
        if pending is None:
            raise RuntimeError("a request is answered once")
        request.pending = None
        if pending.sink is None:
            return
        pending.sink = None
        self.deliver(pending, <char*> reply, len(reply), 0)

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

    def finish(self):
        """Take no further command; what is pending is still answered."""
        self.closing = True
        octets_free(&self.input)

    def locate(self, bytes key not None, int row):
        """Return where a client's key lives, or the error line of the rule that refuses it."""
        cdef Location location
        cdef Match found
        cdef int cluster
        # The key stands for a command of one word, so that it is judged as in any other.
        WORDS.items[0].at = 0
        WORDS.items[0].size = len(key)
        WORDS.count = 1
        KEYS.count = 0
        _add_key(0)
        refusal = self._judge_key(<char*> key, 0, row, &found)
        if refusal is not None:
            return refusal
        cluster = (self.ruleset.spaces[found.keyspace].cluster if found.keyspace >= 0
                   else self.ruleset.default_cluster)
        location = Location.__new__(Location)
        location.cluster = cluster
        location.slot = 0
        if self.slots.sharded[cluster]:
            location.slot = self.ruleset.slot_for(<const uint8_t*> <char*> key, len(key), &found)
        location.name = self.ruleset.name_for_node(<const uint8_t*> <char*> key, len(key), &found)
        return location

    def submit(self, Location location not None, bytes command not None, int row, double now,
               object deliver not None):
        """Queue a part of a Request behind what this client sent so far.

        deliver gets the reply, at once where no node can be asked.
        """
        cdef int owner = self.slots.owner_of(location.cluster, location.slot)
        cdef Upstream upstream
        cdef Pending pending
        cdef Delivery delivery
        if owner < 0:
            return deliver(self.ruleset.errors.clusterdown)
        lanes = self.slots.nodes[owner][self.protocol - 2]
        upstream = lanes[self.lane % len(lanes)]
        if not upstream.available:
            return deliver(self.ruleset.errors.clusterdown)
        if upstream.crowded():
            return deliver(self.ruleset.errors.overloaded)
        delivery = Delivery.__new__(Delivery)
        delivery.receive = deliver
        delivery.client = self
        pending = Pending.__new__(Pending)
        pending.sink = delivery
        pending.received = now
        pending.cluster = location.cluster
        pending.slot = location.slot
        pending.repeatable = self.ruleset.rows[row].repeatable
        pending.deadline = now + upstream.timeout
        upstream.enqueue(pending, <char*> command, len(command))

    def data_to_send(self):
        """Return the replies that are ready and not behind one that is not."""
        cdef bytes data = PyBytes_FromStringAndSize(
            self.output.data + self.output.start, self.output.end - self.output.start)
        self.awake = False
        self.output.start = self.output.end = 0
        if self.output.capacity > KEPT_CAPACITY:
            octets_free(&self.output)
        return data

    def connection_lost(self):
        """Forget the client: what is in flight for it is read and dropped."""
        cdef Pending pending = self.head
        cdef Pending following
        self.closing = True
        while pending is not None:
            following = pending.next_of_client
            pending.next_of_client = None
            pending.sink = None
            if pending.reply is None:
                self.ruleset.counters.count(pending.keyspace, pending.family, ABANDONED)
            pending = following
        self.head = self.tail = None
        self.pending = 0
        self.owner = None
        octets_free(&self.input)
        octets_free(&self.output)


cdef bint _allowed(const uint8_t* key, Py_ssize_t size, const uint8_t* characters) noexcept:
    """Whether every byte of a key is one of the allowed ones; without a table, no control byte."""
    cdef Py_ssize_t i
    if characters == NULL:
        for i in range(size):
            if key[i] < 0x20 or key[i] == 0x7F:
                return False
        return True
    for i in range(size):
        if not characters[key[i]]:
            return False
    return True
