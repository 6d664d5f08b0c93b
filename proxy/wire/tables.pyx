# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The tables a command is judged and routed by, and the counters it leaves behind.

Built by the policy compiler (`Ruleset`) and the topology (`SlotMap`), looked up by `Downstream`.
Always true: a `Ruleset` and a `SlotMap` never change after their constructor; a reload or a
failover makes a new one and assigns it to the `Router`. Only `Counters` and `Latencies` are
written, by plain addition. What a rule means is said in policies; here it is only compact.
"""

from collections.abc import Sequence
from typing import NamedTuple

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

from cpython.bytes cimport PyBytes_FromStringAndSize

from proxy.wire.bounds cimport ArgumentBounds
from proxy.wire.limits import Rate
from proxy.wire.patterns cimport Match, Patterns, rest
from proxy.wire.refusals cimport Refusals

OUTCOMES = ("ok", "error", "refused", "abandoned")

# 32 µs is about the fastest answer that a node on loopback gives; 2**15 times that is a second.
LATENCY_BOUNDS = tuple(32e-6 * 2**i for i in range(LATENCY_BUCKETS - 1))

# How rules change what clients send: within the command, or by one of ours behind it.
AMENDMENTS = ("rewritten", "followed")

# Commands that take a lock where PostgreSQL decides who holds it; what has arguments that may be
# wrong is no matter of the data plane.
NUMBERS = {"seconds", "token"}
TAKES = {b"set": TAKES_SET, b"setnx": TAKES_SETNX}

PARTS = ("queue", "upstream", "total")

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** place, size_t alignment, size_t size)

cdef enum:
    CACHE_LINE = 64      # bytes
    TABLE_SIZE = 4096    # a power of two, ten times the number of commands: few collisions

# CRC[k][byte] is what a byte becomes when k more bytes follow it: four bytes take one step.
cdef uint16_t CRC[4][256]
cdef uint8_t LOWER[256]


cdef void _fill_tables() noexcept:
    """CRC-16/XMODEM, polynomial 0x1021, as the cluster specification asks; and ASCII lower case."""
    cdef int i, k, bit
    cdef int value
    for i in range(256):
        value = i << 8
        for k in range(4):
            for bit in range(8):
                value = ((value << 1) ^ 0x1021) if value & 0x8000 else value << 1
            CRC[k][i] = <uint16_t> (value & 0xFFFF)
        LOWER[i] = i + 32 if 65 <= i <= 90 else i


_fill_tables()


cdef int crc_slot(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    cdef uint16_t crc = 0
    while size >= 4:
        crc = (CRC[3][(crc >> 8) ^ data[0]] ^ CRC[2][(crc & 0xFF) ^ data[1]]
               ^ CRC[1][data[2]] ^ CRC[0][data[3]])
        data += 4
        size -= 4
    while size > 0:
        crc = <uint16_t> ((crc << 8) ^ CRC[0][(crc >> 8) ^ data[0]])
        data += 1
        size -= 1
    return crc & (SLOTS - 1)


cdef int slot_of(const uint8_t* key, Py_ssize_t size) noexcept nogil:
    """The slot of a key: of what stands between the first { and the next }, unless that is empty."""
    cdef const uint8_t* opened = <const uint8_t*> memchr(key, c"{", size)
    cdef const uint8_t* closed
    if opened != NULL:
        closed = <const uint8_t*> memchr(opened + 1, c"}", size - (opened + 1 - key))
        if closed != NULL and closed > opened + 1:
            return crc_slot(opened + 1, closed - opened - 1)
    return crc_slot(key, size)


def key_slot(bytes key):
    """Return the hash slot of a key as a node sees it."""
    return slot_of(<const uint8_t*> <char*> key, len(key))


cdef class Counters:
    """Requests by keyspace, command family and outcome."""

    def __cinit__(self, int keyspaces, int families):
        self.keyspaces = keyspaces
        self.families = families
        self.cells = <int64_t*> calloc((keyspaces + 1) * families * OUTCOME_COUNT, sizeof(int64_t))
        if self.cells == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.cells)
        free(self.places)

    def requests(self):
        """Return (keyspace or -1, family, outcome, count) for every cell that is not 0."""
        cdef int keyspace, family, outcome
        cdef int64_t count
        cdef list rows = []
        if self.cells == NULL:
            return rows
        for keyspace in range(-1, self.keyspaces):
            for family in range(self.families):
                for outcome in range(OUTCOME_COUNT):
                    count = self.cells[self.place(keyspace, family, outcome)]
                    if count:
                        rows.append((keyspace, family, outcome, count))
        return rows

    def add(self, int keyspace, int family, int outcome, int64_t count):
        """Count several at once."""
        if not (self.cells != NULL and -1 <= keyspace < self.keyspaces
                and 0 <= family < self.families and 0 <= outcome < OUTCOME_COUNT):
            raise IndexError("no such cell")
        self.cells[self.place(keyspace, family, outcome)] += count

    def follow(self, Counters successor not None, keyspaces):
        """Give all counts to those of the rules that replace these, what comes late included."""
        cdef int keyspace, place, family, outcome
        if (self.cells == NULL or successor.cells == NULL or successor is self or len(keyspaces) != self.keyspaces
                or successor.families != self.families
                or any(not -1 <= place < successor.keyspaces for place in keyspaces)):
            raise ValueError("these counts cannot go on there")
        self.places = <int*> calloc(self.keyspaces + 1, sizeof(int))
        if self.places == NULL:
            raise MemoryError()
        for keyspace in range(-1, self.keyspaces):
            place = -1 if keyspace < 0 else keyspaces[keyspace]
            if keyspace >= 0:
                self.places[keyspace] = place
                if place < 0:
                    continue
            for family in range(self.families):
                for outcome in range(OUTCOME_COUNT):
                    successor.cells[successor.place(place, family, outcome)] += (
                        self.cells[self.place(keyspace, family, outcome)])
        self.successor = successor
        free(self.cells)
        self.cells = NULL

    cdef void pass_on(self, int keyspace, int family, int outcome) noexcept:
        cdef Counters at = self
        while at.cells == NULL:
            if keyspace >= 0:
                keyspace = at.places[keyspace]
                if keyspace < 0:
                    return
            at = at.successor
        at.count(keyspace, family, outcome)


cdef class Latencies:
    """Histograms of three parts of a request's time, by cluster."""

    def __cinit__(self, int clusters, int rows=0):
        self.clusters = clusters
        self.rows = rows
        self.cells = <int64_t*> calloc(clusters * 3 * LATENCY_BUCKETS, sizeof(int64_t))
        self.sums = <double*> calloc(clusters * 3, sizeof(double))
        self.command_cells = <int64_t*> calloc(rows * (COMMAND_BUCKETS + 1), sizeof(int64_t))
        self.command_sums = <double*> calloc(rows, sizeof(double))
        if (self.cells == NULL or self.sums == NULL or self.command_cells == NULL
                or self.command_sums == NULL):
            raise MemoryError()

    def __dealloc__(self):
        free(self.cells)
        free(self.sums)
        free(self.command_cells)
        free(self.command_sums)

    cdef void observe(self, int cluster, int part, double seconds) noexcept:
        cdef int64_t units = <int64_t> (seconds * 31250.0)  # of 32 µs
        cdef int bucket = 0
        while units > 0 and bucket < LATENCY_BUCKETS - 1:
            units >>= 1
            bucket += 1
        self.cells[(cluster * 3 + part) * LATENCY_BUCKETS + bucket] += 1
        self.sums[cluster * 3 + part] += seconds

    def latencies(self):
        """Return (cluster, part, counts per bucket, sum of seconds)."""
        cdef int cluster, part, i
        rows = []
        for cluster in range(self.clusters):
            for part in range(3):
                counts = [self.cells[(cluster * 3 + part) * LATENCY_BUCKETS + i]
                          for i in range(LATENCY_BUCKETS)]
                rows.append((cluster, PARTS[part], counts, self.sums[cluster * 3 + part]))
        return rows

    cdef void observe_command(self, int row, double seconds, bint failed) noexcept:
        cdef int64_t* cells
        cdef int64_t left = <int64_t> (seconds * 1e6)
        cdef int bucket = 0
        if not 0 <= row < self.rows:
            return
        while left > 0 and bucket < COMMAND_BUCKETS - 1:
            left >>= 1
            bucket += 1
        cells = self.command_cells + row * (COMMAND_BUCKETS + 1)
        cells[bucket] += 1
        cells[COMMAND_BUCKETS] += failed
        self.command_sums[row] += seconds

    def commands(self):
        """Return (row, failed, sum of seconds, counts per bucket) of each command with a reply."""
        cdef int row, i
        cdef int64_t* cells
        found = []
        for row in range(self.rows):
            cells = self.command_cells + row * (COMMAND_BUCKETS + 1)
            counts = [cells[i] for i in range(COMMAND_BUCKETS)]
            if any(counts):
                found.append((row, cells[COMMAND_BUCKETS], self.command_sums[row], counts))
        return found

    def forget_commands(self):
        """Start the figures by command afresh."""
        memset(self.command_cells, 0, self.rows * (COMMAND_BUCKETS + 1) * sizeof(int64_t))
        memset(self.command_sums, 0, self.rows * sizeof(double))


class _KeyPattern(NamedTuple):
    """A pattern of a role, named as what is wrong with it is told."""

    name: str
    pattern: Sequence


cdef bytes _duties(space):
    """Return the flags of a keyspace, with what is denied among them."""
    denied = [COMMANDS_DUTY * flag for flag in space.denied]
    return bytes(map(int.__or__, denied, space.duties)) if space.duties else bytes(denied)


cdef uint32_t SEED = 2463534242


cdef uint32_t chance() noexcept:
    """A number at random: xorshift, for choices that nobody gains from foreseeing."""
    global SEED
    SEED ^= SEED << 13
    SEED ^= SEED >> 17
    SEED ^= SEED << 5
    return SEED


cdef class Ruleset:
    """What is allowed and where keys live, compiled; immutable."""

    def __init__(self, *, commands, keyspaces, roles, families, errors, int default_cluster,
                 bint reject_unmatched, Py_ssize_t max_key_bytes, bint split_unmatched=False,
                 flushable=(), channels=(), plans=None):
        self.commands = tuple(commands)
        self.keyspaces = tuple(keyspaces)
        self.roles = tuple(roles)
        self.channels = tuple(channels)
        self.plans = plans
        self.families = tuple(families)
        self.errors = errors
        if default_cluster < 0 or any(space.cluster < 0 for space in self.keyspaces):
            raise ValueError("clusters are counted from 0")
        self.default_cluster = default_cluster
        self.reject_unmatched = reject_unmatched
        self.max_key_bytes = max_key_bytes
        self.split_unmatched = split_unmatched
        self.flushable = tuple(flushable)
        self.counters = Counters(len(self.keyspaces), len(self.families))
        self.breaches = Counters(len(self.keyspaces), RULE_COUNT)
        self.space_rates = tuple([tuple(map(Rate, space.rates)) for space in self.keyspaces])
        self.role_rates = tuple([tuple(map(Rate, role.rates)) for role in self.roles])
        self.rates = sum(self.space_rates + self.role_rates, ())
        self.amended = Counters(len(self.keyspaces), len(AMENDMENTS))
        self._lay_out_commands()
        self._lay_out_scripts()
        self._lay_out_keyspaces()
        self.tagged = any([space.hash_tag is not None for space in self.keyspaces])
        self.patterns = Patterns(self.keyspaces)
        self._lay_out_roles()

    def take_over(self, Ruleset former not None):
        """Let every limit that former rules have too go on with what it has counted there."""
        counted = {}
        for rate in former.rates:
            counted.setdefault(rate.identity, []).append(rate)
        for rate in self.rates:
            if counted.get(rate.identity):
                rate.take_over(counted[rate.identity].pop(0))

    def __dealloc__(self):
        free(self.rows)
        free(self.table)
        free(self.spaces)

    def _lay_out_commands(self):
        cdef int i, place
        cdef CommandRow* row
        cdef bytes name
        self.rows = <CommandRow*> calloc(len(self.commands) + 1, sizeof(CommandRow))
        self.table = <int16_t*> calloc(TABLE_SIZE, sizeof(int16_t))
        if self.rows == NULL or self.table == NULL:
            raise MemoryError()
        for i in range(TABLE_SIZE):
            self.table[i] = -1
        for i, command in enumerate(self.commands):
            name = command.alias or command.name
            if len(name) > NAME_BYTES or self.find(name, len(name)) >= 0:
                raise ValueError(f"command name {name!r} is too long or given twice")
            row = &self.rows[i]
            memcpy(row.name, <char*> name, len(name))
            row.size = len(name)
            row.arity = command.arity
            row.path = command.path
            row.kind, row.first, row.last, row.step = command.keys
            row.family = command.family
            row.write = command.write
            row.repeatable = command.repeatable
            row.unauthenticated = command.unauthenticated
            row.free = command.free
            row.ends = command.name == b"exec"
            row.nested = b"|" in command.name
            row.names_in_reply = command.names_in_reply
            row.alias = bool(command.alias)
            row.pause = command.pause
            row.first_types, row.other_types = command.types
            row.makes = command.makes
            row.time = command.time
            row.values.first, row.values.step = command.values
            row.members.first, row.members.step = command.members
            row.leaves = command.leaves
            row.grows = command.grows
            row.touches = command.touches
            row.looks_up = command.looks_up
            row.takes = TAKES.get(name, 0)
            place = _hash(name, len(name))
            while self.table[place] >= 0:
                place = (place + 1) & (TABLE_SIZE - 1)
            self.table[place] = i

    def _lay_out_scripts(self):
        cdef int i, own
        self.offered = {}
        runners = [(i, command.name) for i, command in enumerate(self.commands)]
        for i, command in enumerate(self.commands):
            if command.script is None:
                continue
            called = {
                b"eval": (command.script.body,),
                b"evalsha": (command.script.digest,),
                b"fcall": (command.name, command.name.replace(b".", b"_")),
            }
            for own, name in runners:
                # What may not write runs no body that writes as its command: nodes refuse that.
                if name.endswith(b"_ro") and not command.script.reads:
                    continue
                name = name.removesuffix(b"_ro")
                if name in called:
                    self.offered.setdefault(own, {}).update(dict.fromkeys(called[name], i))
                    self.rows[own].runs = RUNS_BODIES if name == b"eval" else RUNS_NAMED
            if command.script.lock == "acquire" and not NUMBERS & {*command.script.arguments}:
                # Name, digest, number of keys, keys, arguments.
                own = 3 + len(command.script.keys)
                self.rows[i].takes = TAKES_NAMED
                self.rows[i].owner = own + command.script.arguments.index("owner")
                self.rows[i].alone = own + len(command.script.arguments)

    def _lay_out_keyspaces(self):
        cdef int i
        cdef KeyspaceRow* row
        cdef bytes flags
        # Most keyspaces have the same flags. Sharing them keeps what is looked up per command in
        # the processor's cache, however many keyspaces there are.
        cdef dict shared = {}
        if posix_memalign(<void**> &self.spaces, CACHE_LINE, (len(self.keyspaces) + 1) * sizeof(KeyspaceRow)):
            raise MemoryError()
        memset(self.spaces, 0, (len(self.keyspaces) + 1) * sizeof(KeyspaceRow))
        for i, space in enumerate(self.keyspaces):
            rest(i)
            row = &self.spaces[i]
            row.cluster = space.cluster
            row.max_key_bytes = space.max_key_bytes
            row.type_bit = space.type_bit
            row.max_value_bytes = space.max_value_bytes
            row.max_member_bytes = space.max_member_bytes
            if space.json_errors:
                row.judged = JSON_VALUES if space.fit is None else FITTING_VALUES
            (row.default_ms, row.shortest_ms, row.longest_ms, row.jitter, row.missing,
             row.refresh) = space.lifetime
            row.most_items, row.keeps_low, row.exact = space.growth
            row.window_ms, row.stale_ms, row.early_ms = space.ageing
            row.detours = space.detours
            row.written = space.written
            row.decided = space.decided
            row.bound = space.bound
            if len(space.denied) != len(self.commands) or len(space.enforced) != RULE_COUNT:
                raise ValueError(f"keyspace {space.name}: one flag per command and rule is needed")
            pair = (space.denied, space.duties)
            flags = shared.get(pair) or shared.setdefault(pair, _duties(space))
            row.duties = <const uint8_t*> <char*> flags
            flags = space.enforced
            memcpy(row.enforced, <char*> flags, RULE_COUNT)
            if space.characters is not None:
                if len(space.characters) != 256:
                    raise ValueError(f"keyspace {space.name}: 256 flags of characters are needed")
                flags = shared.setdefault(space.characters, space.characters)
                row.characters = <const uint8_t*> <char*> flags
            if isinstance(space.hash_tag, bytes):
                row.tag = LITERAL_TAG
            elif space.hash_tag is None:
                row.tag = NO_TAG
            else:
                row.tag = sum(not isinstance(part, bytes) for part in space.pattern[:space.hash_tag])
        self.kept = list(shared.values())

    def _lay_out_roles(self):
        for role in self.roles:
            if role.keyspaces is not None and len(role.keyspaces) != len(self.keyspaces) + 1:
                raise ValueError(f"role {role.name}: one flag per keyspace and one more are needed")
        self.matchers = [
            None if role.keys is None else Patterns([_KeyPattern(role.name, keys) for keys in role.keys])
            for role in self.roles
        ]
        most = len(self.commands)
        self.role_bounds, self.space_bounds = (
            [ArgumentBounds(row.bounds, most) if row.bounds else None for row in rows]
            for rows in (self.roles, self.keyspaces)
        )

    def breach(self, int keyspace, int rule):
        """Count a breach of a rule that a handler has found; return whether it is refused."""
        if not 0 <= keyspace < len(self.keyspaces) or not 0 <= rule < RULE_COUNT:
            raise ValueError("no such keyspace or rule")
        return self.refuses(keyspace, rule)

    cdef bint refuses(self, int keyspace, int rule) noexcept:
        """Count a breach of a rule; return whether it is refused, which trials of a rule are not."""
        cdef int share = self.spaces[keyspace].enforced[rule]
        cdef bint refused = share >= 100 or (share > 0 and chance() % 100 < share)
        self.breaches.count(keyspace, rule, REFUSED if refused else OK)
        return refused

    cdef bint applies(self, int keyspace, int rule) noexcept:
        """Whether a rule changes a command. A rule in full force breaks nothing by being met."""
        return self.spaces[keyspace].enforced[rule] >= 100 or self.refuses(keyspace, rule)

    cdef bint in_force(self, int keyspace) noexcept:
        """Whether none of a keyspace's rules is on trial: what breaks one is refused."""
        cdef int rule
        for rule in range(RULE_COUNT):
            if self.spaces[keyspace].enforced[rule] < 100:
                return False
        return True

    cdef int find(self, const char* name, Py_ssize_t size) noexcept:
        cdef int place, row
        cdef Py_ssize_t i
        if size > NAME_BYTES:
            return -1
        place = _hash(name, size)
        while True:
            row = self.table[place]
            if row < 0:
                return -1
            if self.rows[row].size == size:
                i = 0
                while i < size and <uint8_t> self.rows[row].name[i] == LOWER[<uint8_t> name[i]]:
                    i += 1
                if i == size:
                    return row
            place = (place + 1) & (TABLE_SIZE - 1)

    cdef int slot_for(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept:
        cdef int tag
        cdef bytes word
        if found.keyspace >= 0:
            tag = self.spaces[found.keyspace].tag
            if tag >= 0:
                return crc_slot(key + found.at[tag], found.end[tag] - found.at[tag])
            if tag == LITERAL_TAG:
                word = self.keyspaces[found.keyspace].hash_tag
                return crc_slot(<const uint8_t*> <char*> word, len(word))
        return slot_of(key, size)

    cdef bytes name_for_node(self, const uint8_t* key, Py_ssize_t size, Match* found):
        cdef bytes text = key[:size]
        cdef int tag
        if found.keyspace < 0 or self.spaces[found.keyspace].tag == NO_TAG:
            return text
        tag = self.spaces[found.keyspace].tag
        if tag == LITERAL_TAG:
            return b"{" + self.keyspaces[found.keyspace].hash_tag + b"}" + text
        return (text[:found.at[tag]] + b"{" + text[found.at[tag]:found.end[tag]] + b"}"
                + text[found.end[tag]:])

    cdef int keyspace_of_name(self, const uint8_t* name, Py_ssize_t size) except -2:
        """Return the keyspace that gives a key this name at nodes by its hash tag, or -1."""
        cdef const uint8_t* opened = <const uint8_t*> memchr(name, c"{", size)
        cdef const uint8_t* closed = NULL
        cdef const uint8_t* end = name + size
        cdef Match found
        cdef bytes text
        cdef char* plain
        cdef int tag
        if opened != NULL:
            closed = <const uint8_t*> memchr(opened, c"}", end - opened)
        if closed == NULL:
            return -1
        if opened == name:
            # A word is put in front of the whole.
            self.match(closed + 1, end - closed - 1, &found)
            if found.keyspace >= 0 and self.spaces[found.keyspace].tag == LITERAL_TAG:
                text = self.keyspaces[found.keyspace].hash_tag
                if (len(text) == closed - opened - 1
                        and memcmp(<char*> text, opened + 1, len(text)) == 0):
                    return found.keyspace
        # Braces are put around a segment.
        text = PyBytes_FromStringAndSize(NULL, size - 2)
        plain = <char*> text
        memcpy(plain, name, opened - name)
        memcpy(plain + (opened - name), opened + 1, closed - opened - 1)
        memcpy(plain + (closed - name - 1), closed + 1, end - closed - 1)
        self.match(<const uint8_t*> plain, size - 2, &found)
        tag = self.spaces[found.keyspace].tag if found.keyspace >= 0 else NO_TAG
        if tag >= 0 and found.at[tag] == opened - name and found.end[tag] == closed - name - 1:
            return found.keyspace
        return -1

    def find_command(self, bytes name):
        return self.find(name, len(name))

    def find_keyspace(self, bytes key):
        cdef Match found
        self.match(<const uint8_t*> <char*> key, len(key), &found)
        return found.keyspace

    def upstream_name(self, bytes key):
        cdef Match found
        self.match(<const uint8_t*> <char*> key, len(key), &found)
        return self.name_for_node(<const uint8_t*> <char*> key, len(key), &found)


cdef int _hash(const char* name, Py_ssize_t size) noexcept:
    """FNV-1a over the lower-case name."""
    cdef unsigned int value = 2166136261u
    cdef Py_ssize_t i
    for i in range(size):
        value = (value ^ LOWER[<uint8_t> name[i]]) * 16777619u
    return <int> ((value ^ (value >> 15)) & (TABLE_SIZE - 1))


cdef class SlotMap:
    """Slot to node for every cluster; immutable."""

    def __init__(self, clusters, nodes):
        cdef int cluster
        cdef const int16_t[::1] rows
        self.clusters = len(clusters)
        self.nodes = tuple(tuple(tuple(lanes) for lanes in node) for node in nodes)
        self.owners = <int16_t*> calloc(self.clusters * SLOTS, sizeof(int16_t))
        self.sharded = <bint*> calloc(self.clusters + 1, sizeof(bint))
        if self.owners == NULL or self.sharded == NULL:
            raise MemoryError()
        for cluster, (sharded, owners) in enumerate(clusters):
            self.sharded[cluster] = sharded
            rows = owners
            if rows.shape[0] != (SLOTS if sharded else 1):
                raise ValueError("a sharded cluster has an owner for every slot, another has one")
            memcpy(self.owners + cluster * SLOTS, &rows[0], rows.shape[0] * sizeof(int16_t))
            self._check_owners(rows)

    cdef _check_owners(self, const int16_t[::1] rows):
        """Raise ValueError for an owner that is not among the nodes, or lacks a connection."""
        # A table first: sixteen thousand slots as Python numbers would hold up the loop.
        cdef bytes connected = bytes([len(lanes) == 2 and all(lanes) for lanes in self.nodes])
        cdef const unsigned char* table = connected
        cdef Py_ssize_t count = len(connected)
        cdef Py_ssize_t slot
        cdef int owner
        for slot in range(rows.shape[0]):
            owner = rows[slot]
            if owner != -1 and not (0 <= owner < count and table[owner]):
                raise ValueError(f"owner {owner} is no node with connections of both protocols")

    def __dealloc__(self):
        free(self.owners)
        free(self.sharded)

    def owner(self, int cluster, int slot):
        if not (0 <= cluster < self.clusters and 0 <= slot < SLOTS):
            raise IndexError("no such slot")
        return self.owners[cluster * SLOTS + slot]

    def place_of(self, int cluster, bytes word not None):
        """Return a location for what has no key: chosen by the hash of a word of it."""
        return Location(cluster, key_slot(word) % self.slot_count(cluster))

    def slot_count(self, int cluster):
        if not 0 <= cluster < self.clusters:
            raise IndexError("no such cluster")
        return SLOTS if self.sharded[cluster] else 1

    def places(self, int cluster):
        """Return one location per node that owns slots of a cluster: the first slot of each."""
        cdef int slot, owner
        found = {}
        for slot in range(self.slot_count(cluster)):
            owner = self.owner_of(cluster, slot)
            if owner >= 0 and owner not in found:
                found[owner] = Location(cluster, slot)
        return list(found.values())


cdef class Router:
    """What a batch is judged and routed by."""

    def __init__(self, Ruleset ruleset not None, SlotMap slots not None):
        self.ruleset = ruleset
        self.slots = slots
        self.refusals = Refusals()
        self.owed = {}


cdef class Location:
    """Where a key lives."""

    def __init__(self, int cluster, int slot, bytes name not None=b""):
        self.cluster = cluster
        self.slot = slot
        self.name = name
        self.keyspace = -1
