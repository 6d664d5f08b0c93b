# cython: language_level=3
from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t

from proxy.wire.patterns cimport Match, Patterns
from proxy.wire.refusals cimport Refusals

cdef enum:
    SLOTS = 16384
    NAME_BYTES = 40      # the longest name of the table, "command|getkeysandflags", has 23
    LATENCY_BUCKETS = 17
    COMMAND_BUCKETS = 32  # powers of two of a microsecond: the last one begins above half an hour
    # Outcomes, in the order of OUTCOMES.
    OK = 0
    ERROR = 1
    REFUSED = 2
    ABANDONED = 3
    OUTCOME_COUNT = 4
    # How a key gets its hash tag.
    NO_TAG = -1
    LITERAL_TAG = -2
    # rules.Rule
    KEY_RULE = 0
    COMMANDS_RULE = 1
    TYPE_RULE = 2
    BOUNDS_RULE = 3
    VALUE_RULE = 4
    TTL_RULE = 5
    COLLECTION_RULE = 6
    RATE_RULE = 7
    RULE_COUNT = 8
    # rules.Duty
    COMMANDS_DUTY = 1
    TYPE_DUTY = 2
    BOUNDS_DUTY = 4
    VALUE_DUTY = 8
    TTL_DUTY = 16
    COLLECTION_DUTY = 32
    RATE_DUTY = 64
    ORIGIN_DUTY = 128
    # rules.Reason
    TABLE = 0
    ORIGIN = 1
    MISS = 2
    EXPIRED = 3
    AWAY = 4
    STALE = 5
    BOUND = 6
    OWED = 7
    # rules.Leaves
    LEAVES_NUMBER = 1
    LEAVES_PART = 2
    # What KeyspaceRow.judged asks of values.
    JSON_VALUES = 1
    FITTING_VALUES = 2   # JSON that fits a schema
    # rules.Found
    NEXT_WORDS = -1
    SCORED_WORDS = -2
    PLACED_WORDS = -3
    ENTRY_WORDS = -4
    FIELDS_WORDS = -5
    # rules.Makes
    MAKES_NOTHING = 0
    MAKES_FIRST = 1
    MAKES_SECOND = 2
    MAKES_ALL = 3
    MAKES_CARRIED = 4
    MAKES_DECLARED = 5
    # rules.Time
    TIME_UNSAID = 0
    TIME_SET = 1
    TIME_GETEX = 2
    TIME_MSETEX = 3
    TIME_SECONDS = 4
    TIME_MILLIS = 5
    TIME_UNIX = 6
    TIME_UNIX_MILLIS = 7
    TIME_PERSIST = 8
    TIME_RESTORE = 9
    TIME_FIELDS = 10
    # rules.Grows
    GROWS_NOTHING = 0
    GROWS_ZSET = 1
    GROWS_HEAD = 2
    GROWS_TAIL = 3
    GROWS_SIDE = 4
    GROWS_STREAM = 5
    GROWS_SET = 6
    GROWS_HASH = 7
    GROWS_WHOLE = 8
    # rules.Missing
    MISSING_ALLOW = 0
    MISSING_APPLY = 1
    MISSING_REJECT = 2
    # rules.Refresh
    REFRESH_NEVER = 0
    REFRESH_ON_READ = 1
    REFRESH_ON_WRITE = 2
    # How a command was changed, in Ruleset.amended.
    REWRITTEN = 0
    FOLLOWED = 1
    # rules.Path
    FORWARD = 0
    SPLIT = 1
    LOCAL = 2
    BARRIER = 3
    CONTAINER = 4
    PATH_REFUSED = 5
    # What CommandRow.runs says.
    RUNS_BODIES = 1
    RUNS_NAMED = 2       # by digest, or by a function's name
    # What CommandRow.takes says: how a lock is taken that PostgreSQL decides.
    TAKES_SET = 1
    TAKES_SETNX = 2
    TAKES_NAMED = 3
    # rules.KeyKind
    KEYS_NONE = 0
    KEYS_RANGE = 1
    KEYS_NUMKEYS = 2
    KEYS_STREAMS = 3
    KEYS_SORT = 4
    KEYS_GEORADIUS = 5
    KEYS_RENDERED = 6


cdef struct WordPlaces:
    # rules.Words
    int first
    int step


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
    bint free                      # of limits
    bint ends                      # EXEC: also where it is refused
    bint nested                    # a sub-command
    bint names_in_reply
    bint alias                     # clients know it by another name than nodes do
    int pause                      # rules.Pause
    int first_types                # bits of types that the first key may have
    int other_types
    int makes                      # rules.Makes
    int time                       # rules.Time
    WordPlaces values
    WordPlaces members
    int leaves                     # rules.Leaves
    int grows                      # rules.Grows
    bint touches
    bint looks_up
    int runs                       # what scripts that are offered as commands are called by it
    int takes                      # how it takes a lock, if it does
    int owner                      # the word of its run that says for whom
    int alone                      # words of its run where it is about one lock


cdef struct KeyspaceRow:
    # What commands without a rule of their own read is one line of the processor's cache, and what
    # is rewritten by rules of time and growth another.
    int cluster
    int tag                        # ordinal of a segment, NO_TAG or LITERAL_TAG
    Py_ssize_t max_key_bytes
    const uint8_t* characters      # 256 flags, or NULL: everything but control characters
    const uint8_t* duties          # flags per command
    uint8_t enforced[RULE_COUNT]   # per rule: of a hundred breaches, so many are refused
    int type_bit
    int judged                     # 0, JSON_VALUES or FITTING_VALUES
    Py_ssize_t max_value_bytes     # 0: any
    Py_ssize_t max_member_bytes
    int64_t default_ms             # rules.Lifetime
    int64_t shortest_ms
    int64_t longest_ms
    double jitter
    int missing
    int refresh
    int64_t most_items             # rules.Growth
    bint keeps_low
    bint exact
    int64_t window_ms              # rules.Ageing
    int64_t stale_ms
    int64_t early_ms
    bint detours
    bint written
    bint decided
    bint bound


cdef class Counters:
    cdef int64_t* cells
    cdef readonly int keyspaces
    cdef readonly int families
    cdef Counters successor        # counts instead, once cells is NULL
    cdef int* places               # by keyspace: its index there, -1 where it is gone
    cdef void pass_on(self, int keyspace, int family, int outcome) noexcept
    cdef inline Py_ssize_t place(self, int keyspace, int family, int outcome) noexcept:
        # By family first: the few that a client uses lie close together for all keyspaces.
        return (family * (self.keyspaces + 1) + keyspace + 1) * OUTCOME_COUNT + outcome
    cdef inline void count(self, int keyspace, int family, int outcome) noexcept:
        if self.cells == NULL:
            self.pass_on(keyspace, family, outcome)
        else:
            self.cells[self.place(keyspace, family, outcome)] += 1


cdef class Latencies:
    cdef int64_t* cells
    cdef double* sums
    cdef readonly int clusters
    cdef readonly int rows
    cdef int64_t* command_cells    # per row: a bucket each, then how many failed
    cdef double* command_sums
    cdef void observe(self, int cluster, int part, double seconds) noexcept
    cdef void observe_command(self, int row, double seconds, bint failed) noexcept


cdef class Ruleset:
    cdef readonly tuple commands
    cdef readonly tuple keyspaces
    cdef readonly tuple roles
    cdef readonly tuple channels
    cdef readonly object plans
    cdef readonly tuple families
    cdef readonly object errors
    cdef readonly Counters counters
    cdef readonly Counters breaches  # by keyspace and rule
    cdef readonly Counters amended   # by keyspace and how
    cdef readonly int default_cluster
    cdef readonly bint reject_unmatched
    cdef bint tagged               # whether nodes know keys of any keyspace by other names
    cdef readonly bint split_unmatched
    cdef readonly Py_ssize_t max_key_bytes
    cdef readonly tuple flushable
    cdef CommandRow* rows
    cdef int16_t* table
    cdef KeyspaceRow* spaces
    cdef Patterns patterns         # of keyspaces
    cdef list kept
    cdef dict offered              # per row that runs scripts: what it calls those of commands
    cdef list matchers             # per role: Patterns of its keys, or None
    cdef list role_bounds          # per role: ArgumentBounds, or None
    cdef list space_bounds         # per keyspace, likewise
    cdef readonly tuple rates      # all limits on how often
    cdef tuple space_rates         # per keyspace, in its order
    cdef tuple role_rates
    cdef int find(self, const char* name, Py_ssize_t size) noexcept
    cdef inline void match(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept:
        self.patterns.match(key, size, found)
    cdef bint refuses(self, int keyspace, int rule) noexcept
    cdef bint applies(self, int keyspace, int rule) noexcept
    cdef bint in_force(self, int keyspace) noexcept
    cdef bytes name_for_node(self, const uint8_t* key, Py_ssize_t size, Match* found)
    cdef int keyspace_of_name(self, const uint8_t* name, Py_ssize_t size) except -2
    cdef int slot_for(self, const uint8_t* key, Py_ssize_t size, Match* found) noexcept


cdef class SlotMap:
    cdef int16_t* owners
    cdef bint* sharded
    cdef readonly int clusters
    cdef readonly tuple nodes
    cdef _check_owners(self, const int16_t[::1] rows)
    cdef inline int owner_of(self, int cluster, int slot) noexcept:
        # Before the topology is known, rules name clusters that no map has.
        return self.owners[cluster * SLOTS + slot] if cluster < self.clusters else -1
    cdef inline bint is_sharded(self, int cluster) noexcept:
        return cluster < self.clusters and self.sharded[cluster]


cdef class Router:
    cdef public Ruleset ruleset
    cdef public SlotMap slots
    cdef public int pause          # rules.Pause: what is held back of every client
    cdef readonly Refusals refusals
    cdef public dict owed           # by key: of what nodes have not been told that it has changed


cdef class Location:
    cdef readonly int cluster
    cdef readonly int slot
    cdef readonly bytes name
    cdef readonly int keyspace     # -1: of no keyspace, or of no key


cdef uint32_t chance() noexcept
cdef int slot_of(const uint8_t* key, Py_ssize_t size) noexcept nogil
cdef int crc_slot(const uint8_t* data, Py_ssize_t size) noexcept nogil
