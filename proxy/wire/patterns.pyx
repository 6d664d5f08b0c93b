# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which pattern a key fits: a radix tree of literals and typed segments.

Always true: a tree never changes after its constructor, and what one key walks through lies close
together, so that a thousand keyspaces cost a command hardly more than fifty. Each node is one
record in a single block: a `Node`, its segments from the narrowest type to the widest, its literal
without the byte that led to it, the first bytes of its children, then their places. A place is
where a record begins; below 0 it stands for a keyspace, behind whose pattern nothing follows.
"""

import struct
from collections import defaultdict

from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memcpy
from posix.unistd cimport usleep

# In the order in which a segment of a key is tried: the narrower type is the more specific rule.
SEGMENT_KINDS = ("int", "uuid", "date", "hex", "ip", "text", "path")

cdef enum:
    INT, UUID, DATE, HEX, IP, TEXT, PATH
    CACHE_LINE = 64      # bytes
    RECORD = 32          # what a record is filled up to: most lie in one line
    REST_EVERY = 32      # keyspaces: some 300 microseconds of work, which is what a loop may miss
    REST_MICROSECONDS = 50  # a thread that waits for the interpreter takes so long to wake up


cdef struct Node:
    int keyspace
    int literal
    int children
    int edges


cdef struct Edge:
    int target
    uint8_t kind                   # index into SEGMENT_KINDS
    uint8_t stop                   # byte that ends the segment besides ":"


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** place, size_t alignment, size_t size)


NODE = struct.Struct("@iiii")
EDGE = struct.Struct("@iBB2x")


cdef Py_ssize_t _filled(Py_ssize_t size, Py_ssize_t step) noexcept:
    return (size + step - 1) // step * step


class _Branch:
    """A node of the tree while it is built: nested, before it is laid out as a record."""

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

    def squeeze(self):
        """Take in an only child: what leads nowhere else is one literal."""
        while len(self.children) == 1 and not self.edges and self.keyspace < 0:
            (child,) = self.children.values()
            self.literal += child.literal
            self.children, self.edges, self.keyspace = child.children, child.edges, child.keyspace

    def is_leaf(self):
        return not (self.literal or self.children or self.edges)

    def record(self, places, bint led):
        """Return what the walk reads; led where a child's first byte led here."""
        literal = self.literal[led:]
        edges = sorted(self.edges.items(), key=lambda item: item[0])
        record = b"".join([
            NODE.pack(self.keyspace, len(literal), len(self.children), len(edges)),
            *[EDGE.pack(places[target], kind, stop) for (kind, stop), target in edges],
            literal,
            bytes(self.children),
        ])
        targets = [places[child] for child in self.children.values()]
        record = record.ljust(_filled(len(record), sizeof(int)), b"\0")
        record += struct.pack(f"@{len(targets)}i", *targets)
        return record.ljust(_filled(len(record), RECORD), b"\0")


cdef bytes _laid_out(root):
    """Return the records of a tree, depth first: what one key walks through is close together."""
    cdef dict places = {}
    cdef list branches = []
    cdef list ahead = [(root, False)]
    cdef Py_ssize_t place = 0
    while ahead:
        rest(len(places))
        branch, led = ahead.pop()
        branch.squeeze()
        if branch.is_leaf() and not led and branch is not root:
            places[branch] = ~branch.keyspace
            continue
        if led and branch.edges:
            # What is peculiar to one pattern mostly begins here, and fits in one line.
            place = _filled(place, CACHE_LINE)
        branches.append((branch, led))
        places[branch] = place
        place += len(branch.record(defaultdict(int), led))
        ahead.extend([(child, True) for child in branch.children.values()])
        ahead.extend([(target, False) for target in branch.edges.values()])
    cdef bytearray records = bytearray(place)
    for i, (branch, led) in enumerate(branches):
        rest(i)
        place = places[branch]
        record = branch.record(places, led)
        records[place:place + len(record)] = record
    return bytes(records)


cdef class Patterns:
    """Patterns of keys, no two of which are alike but for the names of their segments."""

    def __init__(self, rows):
        cdef int i
        cdef bytes records
        root = _Branch()
        for i, row in enumerate(rows):
            rest(i)
            if sum(not isinstance(part, bytes) for part in row.pattern) > MOST_SEGMENTS:
                raise ValueError(f"keyspace {row.name}: more than {MOST_SEGMENTS} segments")
            root.plant(tuple(row.pattern), i)
        records = _laid_out(root)
        if posix_memalign(<void**> &self.tree, CACHE_LINE, len(records)):
            raise MemoryError()
        memcpy(self.tree, <char*> records, len(records))

    def __dealloc__(self):
        free(self.tree)

    cdef void match(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept:
        """Note which row a key is of, and where its segments are."""
        if not _walk(self.tree, 0, key, 0, size, 0, found):
            found.keyspace = -1

    cdef bint covers(self, const uint8_t* key, Py_ssize_t size) noexcept:
        """Whether any of the patterns fits a key."""
        cdef Match found
        return _walk(self.tree, 0, key, 0, size, 0, &found)


cdef bint _walk(const uint8_t* tree, int place, const uint8_t* key, Py_ssize_t at, Py_ssize_t size,
                int depth, Match* found) noexcept:
    """Match the rest of a key from a node. The depth is bounded by the patterns, not the key.

    Where nothing else is left to try it calls itself last, which the compiler makes a loop.
    """
    cdef const Node* node
    cdef const Edge* edge
    cdef const uint8_t* literal
    cdef const uint8_t* firsts
    cdef const uint8_t* child
    cdef Py_ssize_t end
    cdef int left
    if place < 0:
        found.keyspace = ~place
        return at == size
    node = <const Node*> (tree + place)
    edge = <const Edge*> (node + 1)
    literal = <const uint8_t*> (edge + node.edges)
    if node.literal:
        if size - at < node.literal or memcmp(key + at, literal, node.literal) != 0:
            return False
        at += node.literal
    if at == size:
        found.keyspace = node.keyspace
        return node.keyspace >= 0
    if node.children:
        firsts = literal + node.literal
        child = <const uint8_t*> memchr(firsts, key[at], node.children)
        if child != NULL:
            place = _targets(firsts + node.children)[child - firsts]
            if not node.edges:
                return _walk(tree, place, key, at + 1, size, depth, found)
            if _walk(tree, place, key, at + 1, size, depth, found):
                return True
    left = node.edges
    while left > 0:
        left -= 1
        end = _end_of_segment(edge, key, at, size)
        if end > at and _is(edge.kind, key + at, end - at):
            found.at[depth] = at
            found.end[depth] = end
            if not left:
                return _walk(tree, edge.target, key, end, size, depth + 1, found)
            if _walk(tree, edge.target, key, end, size, depth + 1, found):
                return True
        edge += 1
    return False


cdef const int* _targets(const uint8_t* end) noexcept:
    """The places of children, aligned behind their first bytes."""
    return <const int*> ((<uintptr_t> end + 3) & ~<uintptr_t> 3)


cdef Py_ssize_t _end_of_segment(const Edge* edge, const uint8_t* key, Py_ssize_t at,
                                Py_ssize_t size) noexcept:
    cdef Py_ssize_t end = at
    if edge.kind == PATH:
        return size
    if edge.kind == IP:
        # An IPv6 address holds colons, so an ip goes on as long as its characters do.
        if edge.stop == c":":
            return _end_of_ip(key, at, size)
        while end < size and key[end] != edge.stop and _is(IP, key + end, 1):
            end += 1
        return end
    while end < size and key[end] != c":" and key[end] != edge.stop:
        end += 1
    return end


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
        elif (kind == HEX or kind == UUID or kind == IP) and c"a" <= (mark | 0x20) <= c"f":
            continue
        elif kind == IP and (mark == c"." or mark == c":"):
            continue
        else:
            return False
    return True


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


cdef int rest(int step) except -1:
    """Let other threads have the interpreter now and then: a loop runs while tables are laid out."""
    if step % REST_EVERY == REST_EVERY - 1:
        with nogil:
            usleep(REST_MICROSECONDS)
    return 0
