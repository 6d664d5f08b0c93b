# cython: language_level=3
from libc.stdint cimport int16_t, int64_t, uint8_t

cdef enum:
    SLOTS = 16384
    NAME_BYTES = 40      # the longest name of the table, "command|getkeysandflags", has 23
    MOST_SEGMENTS = 16   # named segments of one pattern: bounds the matcher's depth
    LATENCY_BUCKETS = 17
    # Outcomes, in the order of OUTCOMES.
    OK = 0
    ERROR = 1
    REFUSED = 2
    ABANDONED = 3
    OUTCOME_COUNT = 4
    # How a key gets its hash tag.
    NO_TAG = -1
    LITERAL_TAG = -2
    # rules.Path
    FORWARD = 0
    SPLIT = 1
    LOCAL = 2
    BARRIER = 3
    CONTAINER = 4
    PATH_REFUSED = 5
    # rules.KeyKind
    KEYS_NONE = 0
    KEYS_RANGE = 1
    KEYS_NUMKEYS = 2
    KEYS_STREAMS = 3
    KEYS_SORT = 4
    KEYS_GEORADIUS = 5


cdef struct CommandRow:
    char name[NAME_BYTES]
    int size
    int arity
    int path
    int kind
    int first
    int last
    int step
    int family
    bint write
    bint repeatable
    bint unauthenticated
    bint names_in_reply


cdef struct KeyspaceRow:
    int cluster
    int tag                        # ordinal of a segment, NO_TAG or LITERAL_TAG
    Py_ssize_t max_key_bytes
    const uint8_t* characters      # 256 flags, or NULL: everything but control characters
    const uint8_t* denied          # a flag per command


cdef struct Match:
    int keyspace                   # -1: no keyspace has this key
    Py_ssize_t at[MOST_SEGMENTS]   # where each named segment lies in the key
    Py_ssize_t end[MOST_SEGMENTS]


cdef struct Node:
    # A radix tree: literal bytes that lead here, then literal children, then segment edges.
    int literal_at
    int literal_size
    int children_at
    int children_count
    int edges_at
    int edges_count
    int keyspace


cdef struct Edge:
    int kind                       # index into SEGMENT_KINDS
    int stop                       # byte that ends the segment besides ":"
    int target


cdef class Counters:
    cdef int64_t* cells
    cdef readonly int keyspaces
    cdef readonly int families
    cdef inline void count(self, int keyspace, int family, int outcome) noexcept:
        self.cells[((keyspace + 1) * self.families + family) * OUTCOME_COUNT + outcome] += 1


cdef class Latencies:
    cdef int64_t* cells
    cdef double* sums
    cdef readonly int clusters
    cdef void observe(self, int cluster, int part, double seconds) noexcept


cdef class Ruleset:
    cdef readonly tuple commands
    cdef readonly tuple keyspaces
    cdef readonly tuple roles
    cdef readonly tuple families
    cdef readonly object errors
    cdef readonly Counters counters
    cdef readonly int default_cluster
    cdef readonly bint reject_unmatched
    cdef readonly Py_ssize_t max_key_bytes
    cdef CommandRow* rows
    cdef int16_t* table
    cdef KeyspaceRow* spaces
    cdef Node* nodes
    cdef Edge* edges
    cdef int* children
    cdef uint8_t* child_bytes
    cdef bytes literals
    cdef list kept
    cdef int find(self, const char* name, Py_ssize_t size) noexcept
    cdef void match(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept
    cdef bint _walk(self, int node, const uint8_t* key, Py_ssize_t at, Py_ssize_t size,
                    int depth, Match* found) noexcept
    cdef bytes name_for_node(self, const uint8_t* key, Py_ssize_t size, Match* found)
    cdef int slot_for(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept


cdef class SlotMap:
    cdef int16_t* owners
    cdef bint* sharded
    cdef readonly int clusters
    cdef readonly tuple nodes
    cdef inline int owner_of(self, int cluster, int slot) noexcept:
        return self.owners[cluster * SLOTS + slot]


cdef class Router:
    cdef public Ruleset ruleset
    cdef public SlotMap slots


cdef class Location:
    cdef readonly int cluster
    cdef readonly int slot
    cdef readonly bytes name


cdef int slot_of(const uint8_t* key, Py_ssize_t size) noexcept nogil
cdef int crc_slot(const uint8_t* data, Py_ssize_t size) noexcept nogil
