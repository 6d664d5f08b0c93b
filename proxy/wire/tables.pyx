# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The tables a command is judged and routed by, and the counters it leaves behind.

Built by the policy compiler (`Ruleset`) and the topology (`SlotMap`), looked up by `Downstream`.
Always true: a `Ruleset` and a `SlotMap` never change after their constructor; a reload or a
failover makes a new one and assigns it to the `Router`. Only `Counters` and `Latencies` are
written, by plain addition. What a rule means is said in policies; here it is only compact.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy

OUTCOMES = ("ok", "error", "refused", "abandoned")

# 32 µs is about the fastest answer that a node on loopback gives; 2**15 times that is a second.
LATENCY_BOUNDS = tuple(32e-6 * 2**i for i in range(LATENCY_BUCKETS - 1))

PARTS = ("queue", "upstream", "total")

# In the order in which a segment of a key is tried: the narrower type is the more specific rule.
SEGMENT_KINDS = ("int", "uuid", "date", "hex", "ip", "text", "path")

cdef enum:
    INT, UUID, DATE, HEX, IP, TEXT, PATH
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

    def requests(self):
        """Return (keyspace or -1, family, outcome, count) for every cell that is not 0."""
        cdef int keyspace, family, outcome
        cdef int64_t count
        cdef list rows = []
        for keyspace in range(-1, self.keyspaces):
            for family in range(self.families):
                for outcome in range(OUTCOME_COUNT):
                    count = self.cells[((keyspace + 1) * self.families + family) * OUTCOME_COUNT + outcome]
                    if count:
                        rows.append((keyspace, family, outcome, count))
        return rows

    def add(self, int keyspace, int family, int outcome, int64_t count):
        """Carry counts over from the ruleset that this one replaces."""
        if not (-1 <= keyspace < self.keyspaces and 0 <= family < self.families
                and 0 <= outcome < OUTCOME_COUNT):
            raise IndexError("no such cell")
        self.cells[((keyspace + 1) * self.families + family) * OUTCOME_COUNT + outcome] += count


cdef class Latencies:
    """Histograms of three parts of a request's time, by cluster."""

    def __cinit__(self, int clusters):
        self.clusters = clusters
        self.cells = <int64_t*> calloc(clusters * 3 * LATENCY_BUCKETS, sizeof(int64_t))
        self.sums = <double*> calloc(clusters * 3, sizeof(double))
        if self.cells == NULL or self.sums == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.cells)
        free(self.sums)

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


cdef bint _is(int kind, const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether the text is of a segment's kind; it is never empty and holds no colon but in ip."""
    cdef Py_ssize_t i
    cdef uint8_t mark
    if kind == TEXT or kind == PATH:
        return True
    if kind == UUID and size != 36 or kind == DATE and size != 10:
        return False
    for i in range(size):
        mark = text[i]
        if kind == DATE and (i == 4 or i == 7) or kind == UUID and (i == 8 or i == 13 or i == 18 or i == 23):
            if mark != c"-":
                return False
        elif c"0" <= mark <= c"9":
            continue
        elif kind == INT and i == 0 and mark == c"-" and size > 1:
            continue
        elif (kind == HEX or kind == UUID or kind == IP) and c"a" <= LOWER[mark] <= c"f":
            continue
        elif kind == IP and (mark == c"." or mark == c":"):
            continue
        else:
            return False
    return True


class _Branch:
    """A node of the tree while it is built: nested, before it is laid out in arrays."""

    __slots__ = ("literal", "children", "edges", "keyspace")

    def __init__(self, literal=b""):
        self.literal = literal
        self.children = {}
        self.edges = {}
        self.keyspace = -1

    def down(self, bytes text):
        """Return the branch behind these literal bytes, splitting one that shares a part."""
        if not text:
            return self
        child = self.children.get(text[0])
        if child is None:
            child = self.children[text[0]] = _Branch(text)
            return child
        shared = 0
        while (shared < len(text) and shared < len(child.literal)
               and text[shared] == child.literal[shared]):
            shared += 1
        if shared < len(child.literal):
            parent = self.children[text[0]] = _Branch(child.literal[:shared])
            child.literal = child.literal[shared:]
            parent.children[child.literal[0]] = child
            child = parent
        return child.down(text[shared:])

    def plant(self, pattern, int keyspace):
        branch = self
        for i, part in enumerate(pattern):
            if isinstance(part, bytes):
                branch = branch.down(part)
                continue
            after = pattern[i + 1] if i + 1 < len(pattern) else b":"
            key = (SEGMENT_KINDS.index(part.kind), after[0])
            branch = branch.edges.setdefault(key, _Branch())
        if branch.keyspace >= 0:
            raise ValueError(f"two keyspaces have one pattern: {pattern!r}")
        branch.keyspace = keyspace


cdef class Ruleset:
    """What is allowed and where keys live, compiled; immutable."""

    def __init__(self, *, commands, keyspaces, roles, families, errors, int default_cluster,
                 bint reject_unmatched, Py_ssize_t max_key_bytes):
        self.commands = tuple(commands)
        self.keyspaces = tuple(keyspaces)
        self.roles = tuple(roles)
        self.families = tuple(families)
        self.errors = errors
        self.default_cluster = default_cluster
        self.reject_unmatched = reject_unmatched
        self.max_key_bytes = max_key_bytes
        self.counters = Counters(len(self.keyspaces), len(self.families))
        self._lay_out_commands()
        self._lay_out_keyspaces()
        self._lay_out_patterns()

    def __dealloc__(self):
        free(self.rows)
        free(self.table)
        free(self.spaces)
        free(self.nodes)
        free(self.edges)
        free(self.children)
        free(self.child_bytes)

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
            name = command.name
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
            row.names_in_reply = command.names_in_reply
            place = _hash(name, len(name))
            while self.table[place] >= 0:
                place = (place + 1) & (TABLE_SIZE - 1)
            self.table[place] = i

    def _lay_out_keyspaces(self):
        cdef int i
        cdef KeyspaceRow* row
        cdef bytes flags
        # Most keyspaces have the same flags. Sharing them keeps what is looked up per command in
        # the processor's cache, however many keyspaces there are.
        cdef dict shared = {}
        self.spaces = <KeyspaceRow*> calloc(len(self.keyspaces) + 1, sizeof(KeyspaceRow))
        if self.spaces == NULL:
            raise MemoryError()
        for i, space in enumerate(self.keyspaces):
            row = &self.spaces[i]
            row.cluster = space.cluster
            row.max_key_bytes = space.max_key_bytes
            if len(space.denied) != len(self.commands):
                raise ValueError(f"keyspace {space.name}: one flag per command is needed")
            flags = shared.setdefault(space.denied, space.denied)
            row.denied = <const uint8_t*> <char*> flags
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
        self.kept = list(shared)

    def _lay_out_patterns(self):
        root = _Branch()
        for i, space in enumerate(self.keyspaces):
            named = sum(not isinstance(part, bytes) for part in space.pattern)
            if named > MOST_SEGMENTS:
                raise ValueError(f"keyspace {space.name}: more than {MOST_SEGMENTS} segments")
            root.plant(tuple(space.pattern), i)
        # Depth first, so that what one key walks through lies close together in memory.
        branches = []
        ahead = [root]
        while ahead:
            branch = ahead.pop()
            branches.append(branch)
            ahead.extend(branch.children.values())
            ahead.extend(branch.edges.values())
        places = {id(branch): i for i, branch in enumerate(branches)}
        self.literals = b"".join(branch.literal for branch in branches)
        self._fill_nodes(branches, places)

    def _fill_nodes(self, branches, places):
        cdef Node* node
        cdef int literal_at = 0, child = 0, edge = 0
        self.nodes = <Node*> calloc(len(branches), sizeof(Node))
        self.children = <int*> calloc(len(branches) + 1, sizeof(int))
        self.child_bytes = <uint8_t*> calloc(len(branches) + 1, 1)
        self.edges = <Edge*> calloc(len(branches) + 1, sizeof(Edge))
        if self.nodes == NULL or self.children == NULL or self.child_bytes == NULL or self.edges == NULL:
            raise MemoryError()
        for i, branch in enumerate(branches):
            node = &self.nodes[<int> i]
            node.literal_at = literal_at
            node.literal_size = len(branch.literal)
            literal_at += node.literal_size
            node.keyspace = branch.keyspace
            node.children_at = child
            node.children_count = len(branch.children)
            for first, target in branch.children.items():
                self.child_bytes[child] = first
                self.children[child] = places[id(target)]
                child += 1
            node.edges_at = edge
            node.edges_count = len(branch.edges)
            for (kind, stop), target in sorted(branch.edges.items(), key=lambda item: item[0]):
                self.edges[edge].kind = kind
                self.edges[edge].stop = stop
                self.edges[edge].target = places[id(target)]
                edge += 1

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

    cdef void match(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept:
        if not self._walk(0, key, 0, size, 0, found):
            found.keyspace = -1

    cdef bint _walk(self, int index, const uint8_t* key, Py_ssize_t at, Py_ssize_t size,
                    int depth, Match* found) noexcept:
        """Match the rest of a key from a node. The depth is bounded by the patterns, not the key."""
        cdef Node* node = &self.nodes[index]
        cdef Edge* edge
        cdef const uint8_t* child
        cdef Py_ssize_t end
        cdef int i
        if node.literal_size:
            if (size - at < node.literal_size
                    or memcmp(key + at, <const char*> self.literals + node.literal_at, node.literal_size) != 0):
                return False
            at += node.literal_size
        if at == size:
            found.keyspace = node.keyspace
            return node.keyspace >= 0
        if node.children_count:
            child = <const uint8_t*> memchr(self.child_bytes + node.children_at, key[at], node.children_count)
            if child != NULL and self._walk(self.children[child - self.child_bytes], key, at, size, depth, found):
                return True
        for i in range(node.edges_count):
            edge = &self.edges[node.edges_at + i]
            end = at
            if edge.kind == PATH:
                end = size
            elif edge.kind == IP:
                # An IPv6 address holds colons, so an ip goes on as long as its characters do.
                while end < size and key[end] != edge.stop and _is(IP, key + end, 1):
                    end += 1
                if edge.stop == c":":
                    end = _end_of_ip(key, at, size)
            else:
                while end < size and key[end] != c":" and key[end] != edge.stop:
                    end += 1
            if end > at and _is(edge.kind, key + at, end - at):
                found.at[depth] = at
                found.end[depth] = end
                if self._walk(edge.target, key, end, size, depth + 1, found):
                    return True
        return False

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


cdef Py_ssize_t _end_of_ip(const uint8_t* key, Py_ssize_t at, Py_ssize_t size) noexcept:
    """Where an address that a colon follows ends: the last colon behind which it cannot go on.

    "10.0.0.1:api" ends at its only colon; "2001:db8::1:api" at the last one before "api". A part
    that is itself hexadecimal ("…:1:face") is taken for the address, so such patterns are refused
    by the policy loader.
    """
    cdef Py_ssize_t end = at
    cdef Py_ssize_t last = at
    cdef bint dotted = False
    while end < size and _is(IP, key + end, 1):
        if key[end] == c".":
            dotted = True
        if key[end] == c":":
            if dotted:
                return end
            last = end
        end += 1
    return size if end == size else last


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

    def __dealloc__(self):
        free(self.owners)
        free(self.sharded)

    def owner(self, int cluster, int slot):
        if not (0 <= cluster < self.clusters and 0 <= slot < SLOTS):
            raise IndexError("no such slot")
        return self.owners[cluster * SLOTS + slot]


cdef class Router:
    """What a batch is judged and routed by."""

    def __init__(self, Ruleset ruleset not None, SlotMap slots not None):
        self.ruleset = ruleset
        self.slots = slots


cdef class Location:
    """Where a key lives."""
