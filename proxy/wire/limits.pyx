# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""How often: the tables that rate limits are counted in, and the check of one command.

`Downstream` calls `begin`, then `Rate.check` for each limit that a command counts in, then
`settle`. Always true:
  * all limits have room, or none of them is charged: what was taken is given back in reverse order;
  * a table has one size for ever and never forgets an id that still counts. An id that finds its
    places taken shares one cell with others like it: stricter for them, no gift to anybody;
  * time is what the caller says it is, and only ever compared with what he said before.
An id is known by a keyed 64-bit hash, so nobody can choose ids that meet in one place.

A shared limit is counted in Redis. Here lies what was reserved there, to be spent without asking,
and what Redis has said: closed until then, or away.
"""

from libc.float cimport DBL_EPSILON
from libc.math cimport ceil
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject

import os

from proxy.wire.rules import Algorithm, Scope, Unavailable

cdef extern from *:
    """
    /* SipHash-1-3 of Aumasson and Bernstein, as CPython hashes str: keyed, and quick on short ids. */
    #include <stdint.h>
    #include <string.h>
    #define SC_ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define SC_ROUND do { \
        v0 += v1; v1 = SC_ROTATE(v1, 13); v1 ^= v0; v0 = SC_ROTATE(v0, 32); \
        v2 += v3; v3 = SC_ROTATE(v3, 16); v3 ^= v2; \
        v0 += v3; v3 = SC_ROTATE(v3, 21); v3 ^= v0; \
        v2 += v1; v1 = SC_ROTATE(v1, 17); v1 ^= v2; v2 = SC_ROTATE(v2, 32); } while (0)
    static inline uint64_t sc_siphash(const uint64_t *key, const uint8_t *text, size_t size) {
        uint64_t v0 = key[0] ^ 0x736f6d6570736575ULL, v1 = key[1] ^ 0x646f72616e646f6dULL;
        uint64_t v2 = key[0] ^ 0x6c7967656e657261ULL, v3 = key[1] ^ 0x7465646279746573ULL;
        uint64_t last = (uint64_t) size << 56, word;
        for (; size >= 8; size -= 8, text += 8) {
            memcpy(&word, text, 8);
            v3 ^= word; SC_ROUND; v0 ^= word;
        }
        /* The rest, without a copy to memory that would be waited for: ends may overlap. */
        if (size >= 4) {
            uint32_t front, back;
            memcpy(&front, text, 4);
            memcpy(&back, text + size - 4, 4);
            last |= (uint64_t) front | (uint64_t) back << 8 * (size - 4);
        } else if (size) {
            last |= (uint64_t) text[0] | (uint64_t) text[size / 2] << 8 * (size / 2)
                | (uint64_t) text[size - 1] << 8 * (size - 1);
        }
        v3 ^= last; SC_ROUND; v0 ^= last;
        v2 ^= 0xff;
        SC_ROUND; SC_ROUND; SC_ROUND;
        return v0 ^ v1 ^ v2 ^ v3;
    }
    """
    uint64_t sc_siphash(const uint64_t* key, const uint8_t* text, size_t size) noexcept

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t size, int protection, int flags, int file, size_t offset)
    int munmap(void* address, size_t size)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void* MAP_FAILED

cdef enum:
    CELLS = 8
    OVERFLOW = 7          # the cell of a bucket that all share who find no other
    HOMELESS = -1

    # A window's clock: ticks per period. An entry counts up to two ticks longer than the period,
    # two millionths of it; 32 bits hold 2048 periods either way, and the oldest entry of a ring of
    # 1000 is less than 1000 periods old, because a period without any empties the ring.
    TICKS = 1 << 20

    # Bytes of one limit's table: a million ids of a gcra limit in four sevenths of its cells.
    # The pages of a table take memory when an id first falls on them.
    TABLE_BYTES = 32 * 1000 * 1000
    # Of a window, which keeps a time per acceptance: 1.4 million ids of 5 in a period, 100,000 of
    # 100, 14,000 of 1000.
    WINDOW_BYTES = 64 * 1000 * 1000
    # Limits that few share: users of the configuration, connections.
    FEW_BYTES = 2 * 1000 * 1000
    # Ids of a shared limit that this sidecar has asked Redis about within a period or so. When the
    # table is full an entry goes, with at most a batch of cells: Redis keeps the count.
    STOCK_BYTES = 8 * 1000 * 1000

    GIVEN_LOCALLY = 0     # Taken.how
    GIVEN_FROM_STOCK = 1
    GIVEN_FREELY = 2      # allowed while Redis is away
    ALONE = 3             # a remark: this sidecar has decided by itself
    WOULD_REFUSE = 4

    ACCEPTED = 0          # Rate.outcomes, in the order of LIMIT_OUTCOMES
    REFUSED = 1
    WOULD = 2
    DECIDED_ALONE = 3

LIMIT_OUTCOMES = ("accepted", "refused", "would_refuse", "alone")

# Part of a limit that is reserved at once at most. With three sidecars that keep one batch each
# over, and the tolerance that a batch needs, accepted and limit differ by less than 2 %.
BATCH_SHARE = 0.004

# Cells that were spent faster than this make the next batch twice as large, in seconds.
BUSY = 1.0

cdef struct Taken:
    PyObject* rate        # borrowed: rules outlive the judging of one command
    Bucket* bucket
    int cell
    int how
    double before         # what the cell's time was
    uint32_t entry        # what the ring's place held, and how many it had
    int count

# What the command that is judged has taken so far. One thread judges one command at a time.
cdef Taken* TAKEN = NULL
cdef Py_ssize_t TAKEN_COUNT = 0
cdef Py_ssize_t TAKEN_CAPACITY = 0
cdef uint64_t COMMAND = 0
cdef PyObject* REFUSING = NULL  # borrowed, as above
cdef double RETRY = 0
cdef list ASKED = []


cdef Taken* _note(Rate rate, int how) except NULL:
    global TAKEN, TAKEN_COUNT, TAKEN_CAPACITY
    cdef Taken* taken
    cdef Py_ssize_t capacity
    if TAKEN_COUNT == TAKEN_CAPACITY:
        capacity = TAKEN_CAPACITY * 2 if TAKEN_CAPACITY else 64
        taken = <Taken*> realloc(TAKEN, capacity * sizeof(Taken))
        if taken == NULL:
            raise MemoryError()
        TAKEN = taken
        TAKEN_CAPACITY = capacity
    taken = &TAKEN[TAKEN_COUNT]
    TAKEN_COUNT += 1
    taken.rate = <PyObject*> rate
    taken.how = how
    return taken


cdef class Table:
    """Cells of fixed number in buckets of eight."""

    def __init__(self, Py_ssize_t size, Py_ssize_t behind):
        """Take so many bytes, and so many in each bucket behind its Bucket."""
        cdef bytes secret = os.urandom(16)
        cdef void* memory
        self.stride = (sizeof(Bucket) + behind + 7) // 8 * 8
        self.buckets = max(1, size // self.stride)
        # Not calloc: it may clear memory that was used before, and so take all of it at once.
        memory = mmap(NULL, self.buckets * self.stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError()
        self.first = <char*> memory
        memcpy(self.secret, <char*> secret, 16)

    def __dealloc__(self):
        if self.first != NULL:
            munmap(self.first, self.buckets * self.stride)

    cdef uint64_t mark(self, const uint8_t* text, Py_ssize_t size) noexcept:
        """The hash of an id, never 0: that is an empty cell."""
        cdef uint64_t mark = sc_siphash(self.secret, text, size)
        return mark if mark else 1

    cdef Bucket* bucket(self, uint64_t place) noexcept:
        """The bucket that 32 bits of a hash lead to."""
        return <Bucket*> (self.first + ((place * self.buckets) >> 32) * self.stride)

    cdef int find(self, uint64_t mark, double now, Bucket** found, Bucket** home) noexcept:
        """The id's cell, taken for it where it has none, or the overflow cell of its home.

        Two buckets to choose from leave next to nobody without a place before three quarters of
        all cells are in use.
        """
        cdef Bucket* first = self.bucket(mark >> 32)
        cdef Bucket* second
        cdef int i
        home[0] = first
        for i in range(OVERFLOW):
            if first.keys[i] == mark:
                found[0] = first
                return i
        second = self.bucket(mark & 0xFFFFFFFF)
        for i in range(OVERFLOW):
            if second.keys[i] == mark:
                found[0] = second
                return i
        for i in range(OVERFLOW):
            if first.times[i] <= now:
                found[0] = first
                break
            if second.times[i] <= now:
                found[0] = second
                break
        else:
            self.overflows += 1
            found[0] = first
            return OVERFLOW
        found[0].keys[i] = mark
        # The cell is empty. Until its time is set, everybody sees it so.
        found[0].times[i] = 0
        return i

    def fill(self, double now):
        """Return the share of cells in use, of a sample of some hundred buckets."""
        cdef uint64_t step = max(1, self.buckets // 100)
        cdef uint64_t place = 0
        cdef Bucket* bucket
        cdef int64_t seen = 0, used = 0
        cdef int i
        while place < self.buckets:
            bucket = <Bucket*> (self.first + place * self.stride)
            for i in range(OVERFLOW):
                used += bucket.times[i] > now
            seen += OVERFLOW
            place += step
        return <double> used / <double> seen


cdef class _Counts:
    """What became of the commands that counted in a limit: outlives the rules that it came with."""

    cdef int64_t cells[4]


cdef class Rate:
    """One limit."""

    def __init__(self, row not None):
        cdef _Counts counts = _Counts()
        self.row = row
        self.per = row.per
        self.segment = row.segment
        self.amount = row.amount
        self.period = row.seconds
        self.interval = row.seconds / row.amount
        self.tolerance = row.burst * self.interval
        self.rounding = (row.burst + 2) * DBL_EPSILON
        self.window = row.algorithm == Algorithm.WINDOW
        self.scale = TICKS / self.period
        self.enforced = row.enforced
        self.unavailable = row.unavailable
        self.sidecars = 1
        if row.commands is not None:
            self.counted = <const uint8_t*> <char*> (<bytes> row.commands)
        self.counts = counts
        self.outcomes = counts.cells
        if self.window and row.amount > 1000:
            raise ValueError("a window is exact up to 1000")
        # Tables take memory as they are used, so what is never asked costs nothing.
        self.table = Table(self._bytes(), self._behind())
        if row.scope == Scope.SHARED:
            self.stock = Table(STOCK_BYTES, sizeof(Stock))

    def _bytes(self):
        if self.per in (PER_GLOBAL, PER_KEYSPACE):
            return FEW_BYTES // 100
        if self.window:
            return WINDOW_BYTES
        return FEW_BYTES if self.per in (PER_CLIENT, PER_USER) else TABLE_BYTES

    def _behind(self):
        return sizeof(Rings) + CELLS * self.amount * sizeof(uint32_t) if self.window else 0

    @property
    def identity(self):
        """Return what makes it the same limit in other rules."""
        row = self.row
        return (row.owner, row.label, row.words, row.burst, row.algorithm, row.scope, row.cluster)

    def take_over(self, Rate former not None):
        """Go on with the counts of the same limit of rules that this one's replace."""
        self.table, self.stock = former.table, former.stock
        self.counts, self.outcomes = former.counts, former.outcomes
        self.sidecars = former.sidecars

    @property
    def batch(self):
        """Return how many cells are reserved at once at most."""
        # A window is exact: nothing is reserved but for clients that wait.
        return 1 if self.window else max(1, <int> (self.amount * BATCH_SHARE))

    def statistics(self):
        """Return the counts in the order of LIMIT_OUTCOMES."""
        return tuple([self.outcomes[i] for i in range(4)])

    def shared_by(self, int sidecars):
        """Hear how many sidecars there are: while Redis is away each has its share."""
        self.sidecars = max(1, sidecars)

    def take(self, bytes name not None, double now):
        """Charge one cell to an id; return 0.0, or the seconds until there is room.

        Raises LookupError where only Redis knows.
        """
        cdef int verdict
        begin()
        verdict = self.check(<const uint8_t*> <char*> name, len(name), now)
        if verdict == UNKNOWN:
            ASKED.clear()
            raise LookupError("no cell is reserved")
        if verdict == FULL:
            self.outcomes[REFUSED] += 1
            return RETRY
        _commit()
        return 0.0

    # --- What Redis has said.

    cdef int check(self, const uint8_t* text, Py_ssize_t size, double now) except -1:
        """Take one cell of an id for the command that is judged."""
        global REFUSING
        cdef int verdict
        if self.stock is not None:
            verdict = self._shared(text, size, now)
        else:
            verdict = self._local(self.table.mark(text, size), now, 1)
        if verdict == FULL:
            # Multiplying spreads consecutive commands evenly over a hundred.
            if self.enforced < 100 and (COMMAND * 2654435761 >> 16) % 100 >= self.enforced:
                _note(self, WOULD_REFUSE)
                return SPARED
            REFUSING = <PyObject*> self
        return verdict

    cdef int _local(self, uint64_t mark, double now, int sidecars) except -1:
        global RETRY
        cdef Bucket* bucket
        cdef Bucket* home
        cdef int cell = self.table.find(mark, now, &bucket, &home)
        cdef double theoretical
        # Of a share one cell at least is tolerated: else who is a little late loses it.
        cdef double tolerance = (self.tolerance if sidecars == 1
                                 else max(self.tolerance, self.interval * sidecars))
        cdef Taken* taken
        if self.window:
            return self._in_window(bucket, home, cell, now,
                                   self.amount if sidecars == 1 else max(1, self.amount // sidecars))
        theoretical = bucket.times[cell]
        if theoretical == 0 and home.times[OVERFLOW] > now:
            # Who comes from the overflow cell brings along what was counted there.
            theoretical = home.times[OVERFLOW]
        if theoretical < now:
            theoretical = now
        # Each addition of an interval has rounded: by that much a burst is not to come out shorter.
        if theoretical - tolerance - now > theoretical * self.rounding:
            RETRY = theoretical - tolerance - now
            bucket.times[cell] = theoretical
            return FULL
        taken = _note(self, GIVEN_LOCALLY)
        taken.bucket = bucket
        taken.cell = cell
        taken.before = bucket.times[cell]
        bucket.times[cell] = theoretical + self.interval * sidecars
        return ROOM

    cdef int _in_window(self, Bucket* bucket, Bucket* home, int cell, double now, int most) except -1:
        global RETRY
        cdef Rings* rings = <Rings*> (<char*> bucket + sizeof(Bucket))
        cdef uint32_t* ring = <uint32_t*> (<char*> rings + sizeof(Rings)) + cell * self.amount
        cdef uint32_t tick = <uint32_t> <uint64_t> (now * self.scale)
        cdef int32_t age
        cdef int place
        cdef Taken* taken
        if bucket.times[cell] <= now:
            rings.counts[cell] = 0
            if bucket.times[cell] == 0 and home.times[OVERFLOW] > now and cell != OVERFLOW:
                self._inherit(bucket, home, cell)
        if rings.counts[cell] >= most:
            place = rings.nexts[cell] - most
            age = <int32_t> (tick - ring[place if place >= 0 else place + self.amount])
            if age < TICKS:
                RETRY = (TICKS - age) / self.scale
                return FULL
        taken = _note(self, GIVEN_LOCALLY)
        taken.bucket = bucket
        taken.cell = cell
        taken.before = bucket.times[cell]
        taken.count = rings.counts[cell]
        place = rings.nexts[cell]
        taken.entry = ring[place]
        # Rounded up, so that an acceptance counts for no less than the period.
        ring[place] = tick + 1
        rings.nexts[cell] = place + 1 if place + 1 < self.amount else 0
        if rings.counts[cell] < self.amount:
            rings.counts[cell] += 1
        bucket.times[cell] = now + self.period + 2 / self.scale
        return ROOM

    cdef void _inherit(self, Bucket* bucket, Bucket* home, int cell) noexcept:
        """Begin with what the overflow cell of an id's home has counted."""
        cdef Rings* rings = <Rings*> (<char*> bucket + sizeof(Bucket))
        cdef Rings* theirs = <Rings*> (<char*> home + sizeof(Bucket))
        memcpy(<uint32_t*> (<char*> rings + sizeof(Rings)) + cell * self.amount,
               <uint32_t*> (<char*> theirs + sizeof(Rings)) + OVERFLOW * self.amount,
               self.amount * sizeof(uint32_t))
        rings.nexts[cell] = theirs.nexts[OVERFLOW]
        rings.counts[cell] = theirs.counts[OVERFLOW]
        bucket.times[cell] = home.times[OVERFLOW]

    cdef int _shared(self, const uint8_t* text, Py_ssize_t size, double now) except -1:
        """Spend a reserved cell, or do as Redis has said last."""
        global RETRY
        cdef uint64_t mark = self.stock.mark(text, size)
        cdef Bucket* bucket
        cdef int cell = self._seek(mark, &bucket)
        cdef Stock* stock
        cdef Taken* taken
        if cell != HOMELESS:
            stock = <Stock*> (<char*> bucket + sizeof(Bucket))
            if stock.left[cell] > 0 and bucket.times[cell] > now:
                stock.left[cell] -= 1
                taken = _note(self, GIVEN_FROM_STOCK)
                taken.bucket = bucket
                taken.cell = cell
                return ROOM
            if stock.closed[cell] > now:
                RETRY = stock.closed[cell] - now
                return FULL
            if stock.away[cell] > now:
                return self._away(text, size, now, stock.away[cell])
        if self.reserve is None:
            return self._away(text, size, now, now + BUSY)
        ASKED.append((self, mark, PyBytes_FromStringAndSize(<const char*> text, size)))
        return UNKNOWN

    cdef int _away(self, const uint8_t* text, Py_ssize_t size, double now, double until) except -1:
        """Decide without Redis."""
        global RETRY
        if self.unavailable == Unavailable.DENY:
            RETRY = until - now
            return FULL
        _note(self, ALONE)
        if self.unavailable == Unavailable.ALLOW:
            _note(self, GIVEN_FREELY)
            return ROOM
        return self._local(self.table.mark(text, size), now, self.sidecars)

    cdef int _seek(self, uint64_t mark, Bucket** found) noexcept:
        cdef Bucket* bucket = self.stock.bucket(mark >> 32)
        cdef int i
        found[0] = bucket
        for i in range(CELLS):
            if bucket.keys[i] == mark:
                return i
        return HOMELESS

    cdef Stock* _place(self, uint64_t mark, double now, Bucket** found, int* cell) noexcept:
        """The id's cell of the stock; the one that is known longest gives way where all are taken."""
        cdef Stock* stock
        cdef int i
        cell[0] = self._seek(mark, found)
        stock = <Stock*> (<char*> found[0] + sizeof(Bucket))
        if cell[0] != HOMELESS:
            return stock
        cell[0] = 0
        for i in range(CELLS):
            if found[0].keys[i] == 0:
                cell[0] = i
                break
            if stock.granted[i] < stock.granted[cell[0]]:
                cell[0] = i
        else:
            if found[0].times[cell[0]] > now or stock.closed[cell[0]] > now:
                self.stock.overflows += 1
        i = cell[0]
        found[0].keys[i] = mark
        found[0].times[i] = stock.closed[i] = stock.away[i] = stock.granted[i] = 0
        stock.left[i] = stock.batch[i] = 0
        return stock

    def wanted(self, uint64_t mark, int clients, double now):
        """Return how many cells to reserve for an id for which so many clients wait."""
        cdef Bucket* bucket
        cdef int cell = self._seek(mark, &bucket)
        cdef Stock* stock = <Stock*> (<char*> bucket + sizeof(Bucket))
        cdef int batch = 1
        if cell != HOMELESS and now - stock.granted[cell] < BUSY:
            batch = min(2 * stock.batch[cell], <int> self.batch)
        return max(1, clients, batch)

    def grant(self, uint64_t mark, int cells, double now):
        """Put reserved cells in stock: they may be spent for a period."""
        cdef Bucket* bucket
        cdef int cell
        cdef Stock* stock = self._place(mark, now, &bucket, &cell)
        if bucket.times[cell] <= now:
            stock.left[cell] = 0
        stock.left[cell] += cells
        stock.batch[cell] = cells
        stock.granted[cell] = now
        stock.away[cell] = 0
        bucket.times[cell] = now + self.period

    def close(self, uint64_t mark, double until, double now):
        """Refuse an id until then: nobody else can make it sooner."""
        cdef Bucket* bucket
        cdef int cell
        cdef Stock* stock = self._place(mark, now, &bucket, &cell)
        stock.closed[cell] = until
        stock.away[cell] = 0
        stock.granted[cell] = max(stock.granted[cell], now - BUSY)

    def give_up(self, uint64_t mark, double until, double now):
        """Decide about an id without Redis until then."""
        cdef Bucket* bucket
        cdef int cell
        cdef Stock* stock = self._place(mark, now, &bucket, &cell)
        stock.away[cell] = until


cdef void begin() noexcept:
    """Start with a new command."""
    global TAKEN_COUNT, COMMAND, REFUSING
    TAKEN_COUNT = 0
    COMMAND += 1
    REFUSING = NULL


cdef int once(Rate rate) noexcept:
    """Whether this is the first time that the command meets a limit."""
    if rate.command == COMMAND:
        return False
    rate.command = COMMAND
    return True


cdef void _commit() noexcept:
    cdef Py_ssize_t i
    cdef Rate rate
    for i in range(TAKEN_COUNT):
        rate = <Rate> TAKEN[i].rate
        if TAKEN[i].how == WOULD_REFUSE:
            rate.outcomes[WOULD] += 1
        elif TAKEN[i].how == ALONE:
            rate.outcomes[DECIDED_ALONE] += 1
        else:
            rate.outcomes[ACCEPTED] += 1


cdef void _give_back() noexcept:
    """Undo everything that the command has taken, the last first."""
    cdef Py_ssize_t i = TAKEN_COUNT - 1
    cdef Taken* taken
    while i >= 0:
        taken = &TAKEN[i]
        if taken.how == GIVEN_FROM_STOCK:
            (<Stock*> (<char*> taken.bucket + sizeof(Bucket))).left[taken.cell] += 1
        elif taken.how == GIVEN_LOCALLY:
            taken.bucket.times[taken.cell] = taken.before
            if (<Rate> taken.rate).window:
                _give_back_entry(<Rate> taken.rate, taken)
        i -= 1


cdef void _give_back_entry(Rate rate, Taken* taken) noexcept:
    cdef Rings* rings = <Rings*> (<char*> taken.bucket + sizeof(Bucket))
    cdef uint32_t* ring = <uint32_t*> (<char*> rings + sizeof(Rings)) + taken.cell * rate.amount
    cdef int place = rings.nexts[taken.cell] - 1
    if place < 0:
        place += rate.amount
    ring[place] = taken.entry
    rings.nexts[taken.cell] = place
    rings.counts[taken.cell] = taken.count


cdef int settle(bint last) noexcept:
    """End the check: ROOM, FULL, or UNKNOWN where Redis has to be asked.

    But for ROOM nothing is charged. A command that has waited often enough is refused instead,
    last: others were quicker each time.
    """
    global REFUSING, RETRY
    if REFUSING == NULL and len(ASKED) == 0:
        _commit()
        return ROOM
    _give_back()
    if REFUSING == NULL:
        if not last:
            return UNKNOWN
        REFUSING = <PyObject*> (<tuple> ASKED[0])[0]
        RETRY = 0
    ASKED.clear()
    (<Rate> REFUSING).outcomes[REFUSED] += 1
    return FULL


cdef bytes refusal():
    """Return the error line of the limit that refuses."""
    return b"%b%d\r\n" % ((<Rate> REFUSING).row.error, max(1, <int64_t> ceil(RETRY * 1000)))


cdef int ask(object client) except -1:
    """Let the cells that are missing be reserved; the client is held meanwhile."""
    cdef list asked = ASKED[:]
    ASKED.clear()
    for rate, mark, name in asked:
        rate.reserve(rate, mark, name, client)
    return 0
