"""The rows that a Ruleset is built from, as plain values.

The policy compiler makes them from policies and the command table; `wire.Ruleset` reads them once
and keeps its own compact form. Nothing here is looked at per command.

Always true: rows are immutable, and an index (of a command, keyspace, role or cluster) is the
position in the sequence given to `Ruleset`.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from proxy.wire.scripts import Script


class Path(IntEnum):
    """What the data plane does with a command."""

    FORWARD = 0  # all keys in one slot: sent to the node that owns it
    SPLIT = 1  # forwarded when its keys share a slot, else a Request for handlers.fanout
    LOCAL = 2  # a Request, answered by a handler
    BARRIER = 3  # a Request too, but only when every earlier command is answered
    CONTAINER = 4  # look at the second word: its row is named "container|word"
    REFUSED = 5  # known, and not offered


class Pause(IntEnum):
    """What CLIENT PAUSE holds back: of the router, which commands wait; of a command, with whom."""

    NEVER = 0
    WRITE = 1
    ALL = 2


class Reason(IntEnum):
    """Why a command is a Request: for its row, or because PostgreSQL stands behind its keyspace."""

    TABLE = 0  # the table of handlers says who answers
    ORIGIN = 1  # more than a look-up; all before it is answered, and its client waits for it
    MISS = 2  # a look-up that found nothing
    EXPIRED = 3  # it found what is older than may be served while PostgreSQL can be asked
    AWAY = 4  # no node could be asked
    STALE = 5  # it is answered; what it found should be fetched again
    BOUND = 6  # it is answered, or its client has gone; what it wrote goes with its connection
    OWED = 7  # its key has changed, of which nobody could tell its node


# How the errors begin behind which nothing was changed and nothing is known of a key: whoever can
# ask PostgreSQL does.
AWAY_WORDS = (b"-CLUSTERDOWN", b"-LOADING", b"-MASTERDOWN", b"-TRYAGAIN")


class Rule(IntEnum):
    """What a keyspace can be broken by; each is counted and enforced by itself."""

    KEY_GRAMMAR = 0
    COMMANDS = 1
    TYPE = 2
    BOUNDS = 3
    VALUE = 4
    TTL = 5
    COLLECTION = 6
    RATE = 7


# As counters and metrics name them, in the order of `Rule`.
RULES = tuple(rule.name.lower() for rule in Rule)


class Duty(IntFlag):
    """What is to be looked at when a command meets a keyspace: one byte for each pair."""

    COMMANDS = 1
    TYPE = 2
    BOUNDS = 4
    VALUE = 8
    TTL = 16
    COLLECTION = 32
    RATE = 64
    ORIGIN = 128  # PostgreSQL stands behind the keyspace, or what is written goes with its client


class Makes(IntEnum):
    """Which keys of a command may come into being by it, or lose their time to live."""

    NOTHING = 0
    FIRST = 1
    SECOND = 2  # or the one behind STORE
    ALL = 3
    CARRIED = 4  # the second, with the time of the first
    DECLARED = 5  # all, as far as anybody can know: what scripts and commands of modules do


class Time(IntEnum):
    """How a command says a time to live."""

    UNSAID = 0
    SET = 1  # options behind the value: EX PX EXAT PXAT KEEPTTL
    GETEX = 2  # options behind the key: EX PX EXAT PXAT PERSIST
    MSETEX = 3  # options behind the pairs
    SECONDS = 4  # word 2, from now
    MILLIS = 5
    UNIX = 6  # word 2, since 1970
    UNIX_MILLIS = 7
    PERSIST = 8
    RESTORE = 9  # word 2, 0 for none; ABSTTL among the options
    FIELDS = 10  # of fields, not of the key: options from word 2 on, around FIELDS and its words


class Grows(IntEnum):
    """Which collection a command adds to, in the key that it makes or in its first."""

    NOTHING = 0
    ZSET = 1
    HEAD = 2  # a list, at its left end
    TAIL = 3
    SIDE = 4  # a list, at the end that word 4 says
    STREAM = 5
    SET = 6
    HASH = 7
    WHOLE = 8  # of any type, by all that it holds


class Found(IntEnum):
    """Where words of a command stand that have no place of their own."""

    NEXT = -1  # behind each key
    SCORED = -2  # ZADD: behind each score, which follow the options
    PLACED = -3  # GEOADD: behind each pair of coordinates
    ENTRY = -4  # XADD: behind each field, which follow the id
    FIELDS = -5  # HSETEX: behind each field, which follow FIELDS and their number


class Leaves(IntEnum):
    """What a command leaves behind, for rules that judge values whole."""

    WHOLE = 0  # a value that is among its words, or none
    NUMBER = 1  # a number that it has counted
    PART = 2  # a value of which it said a part, or said it in a form that is not its own


class Words(NamedTuple):
    """Some words of a command: every `step` from `first` on, or the one at `first` when step is 0.

    None when both are 0; a negative first is one of `Found`.
    """

    first: int = 0
    step: int = 0


class KeyKind(IntEnum):
    """How the keys of a command are found among its arguments (argument 0 is the name)."""

    NONE = 0
    RANGE = 1  # arguments first, first + step, ... last; a negative last counts from the end
    NUMKEYS = 2  # word `first` is a count, keys follow it, `step` apart; so is `last`, if not 0
    STREAMS = 3  # the first half of what follows the word STREAMS; BLOCK makes it a Request
    SORT = 4  # argument 1, and what follows STORE; BY and GET take one argument each
    GEORADIUS = 5  # argument 1, and what follows STORE or STOREDIST
    RENDERED = 6  # made of the arguments; of a run of the script, as NUMKEYS says it


class Keys(NamedTuple):
    kind: KeyKind
    first: int = 0
    last: int = 0
    step: int = 0


class CountErrors(NamedTuple):
    """What a command answers to a number of keys that cannot be: whole error lines."""

    no_integer: bytes
    too_small: bytes
    too_large: bytes  # there are not so many words


class Command(NamedTuple):
    """One row of the command table as the data plane needs it."""

    name: bytes  # lower case; a sub-command is b"container|word"
    arity: int  # Redis' rule: the number of words, negative for "at least"
    path: Path
    keys: Keys
    write: bool  # may change data
    repeatable: bool  # running it twice is the same as once, seen by the client too: plain reads
    unauthenticated: bool  # allowed before AUTH
    free: bool  # costs nothing in limits
    names_in_reply: bool  # the reply carries key names, so a renamed key is a Request
    pause: Pause  # from which kind of CLIENT PAUSE on it waits
    family: int  # index into Ruleset.families, for the counters
    arity_error: bytes  # the whole error line, CR LF included
    refused_error: bytes  # what Path.REFUSED and a container's unknown word answer
    count_errors: CountErrors | None = None  # of KeyKind.NUMKEYS
    denied_error: bytes = b""  # what a role that may not send it is told
    alias: bytes = b""  # the only name that clients know it by, if it is not its own
    types: tuple[int, int] = (63, 63)  # bits of `effects.TYPES` for the first key, for the others
    makes: Makes = Makes.NOTHING
    time: Time = Time.UNSAID
    values: Words = Words()
    members: Words = Words()
    leaves: Leaves = Leaves.WHOLE
    grows: Grows = Grows.NOTHING
    touches: bool = False  # uses the data of its keys, which a sliding time to live asks for
    looks_up: bool = False  # only reads one key, and its reply shows whether the key is there
    script: Script | None = None  # that is run, where policies offer it as a command


class Missing(IntEnum):
    """What becomes of a key that would be without a time to live."""

    ALLOW = 0
    APPLY = 1
    REJECT = 2


class Refresh(IntEnum):
    """What starts the time to live of a key anew."""

    NEVER = 0
    ON_READ = 1  # writes do as well
    ON_WRITE = 2


class Lifetime(NamedTuple):
    """How long the keys of a keyspace live, in milliseconds; 0 where nothing is said."""

    default: int = 0
    shortest: int = 0
    longest: int = 0
    jitter: float = 0.0  # up to which share of the default is taken off at random
    missing: Missing = Missing.ALLOW
    refresh: Refresh = Refresh.NEVER


class Ageing(NamedTuple):
    """How long keys outlive what clients are told of their time, in milliseconds."""

    window: int = 0  # longer than clients know
    stale: int = 0  # of that, as much from its beginning is served while the key is fetched again
    early: int = 0  # so long before the window a key may be fetched again at random


class Growth(NamedTuple):
    """How many members, fields or entries a key may have."""

    most: int = 0  # 0: any number
    keeps_low: bool = False  # of a zset the lowest, of a list the oldest
    exact: bool = True  # streams may be left a little longer otherwise


class BoundKind(IntEnum):
    """What a bound looks at; `Bound.at` says where."""

    COUNT = 0  # the value of COUNT among options
    MATCH_BYTES = 1  # the length of what follows MATCH among options
    MATCH_STARS = 2  # the stars in it
    WORD_BYTES = 3
    WORD_STARS = 4
    SPAN = 5  # from one index to the one behind it
    RANGE = 6  # the same, or LIMIT behind BYSCORE and BYLEX
    LIMITED = 7  # LIMIT, which must be there
    NUMBER = 8
    MAGNITUDE = 9  # a number or its negative
    BITS = 10  # the last bit of each field of BITFIELD
    POSITIONS = 11  # COUNT of LPOS, where 0 is all


class Bound(NamedTuple):
    """A limit on an argument of one command."""

    command: int
    kind: BoundKind
    at: int  # the word, or where options begin
    limit: int  # the most that is allowed
    error: bytes


class Segment(NamedTuple):
    """One named part of a key pattern."""

    name: str
    kind: str  # "text" "int" "uuid" "date" "hex" "ip" "path"


class Keyspace(NamedTuple):
    """One keyspace as the data plane needs it."""

    name: str
    pattern: Sequence[bytes | Segment]  # literals and segments in order
    cluster: int
    hash_tag: int | bytes | None  # index into pattern of the segment, or a literal word
    characters: (
        bytes | None
    )  # 256 bytes, 1 where a character is allowed; None allows all but controls
    max_key_bytes: int
    denied: bytes  # one byte per command, 1 where the keyspace refuses it
    key_error: bytes  # error line for a key that breaks the grammar
    denied_error: bytes  # error line for a denied command
    brace_error: bytes = b""  # error line for a brace in a key that is given a hash tag
    split_transactions: bool = False  # over several slots, one per slot
    push_back: bool = False  # elements that were popped for a client that has gone
    duties: bytes = b""  # `Duty` flags, one byte per command; what is denied needs no flag
    type_bit: int = 63  # of `effects.TYPES`; all of them where the type is not said
    max_value_bytes: int = 0  # of one value, 0 for no limit
    max_member_bytes: int = 0  # of one member, field or element
    json_errors: Sequence[
        bytes
    ] = ()  # per fault of `wire.JSON_FAULTS`, %d for the byte; or no rule
    fit: Callable[[bytes], bytes | None] | None = None  # a value that is JSON to an error line
    part_error: bytes = b""  # error line for a value that is written in parts
    value_error: bytes = b""
    member_error: bytes = b""
    enforced: bytes = bytes([100] * len(RULES))  # per `Rule`: of 100 breaches, so many are refused
    noted: bytes = bytes(len(RULES))  # per `Rule`: 1 where the log tells what was let through
    lifetime: Lifetime = Lifetime()
    growth: Growth = Growth()
    ttl_error: bytes = b""  # for what would be without a time to live
    bounds: Sequence[Bound] = ()  # of commands with `Duty.BOUNDS`
    rates: "tuple[Rate, ...]" = ()
    ageing: Ageing = Ageing()
    detours: bool = False  # reads go elsewhere at once where no node can answer
    written: bool = False  # and nowhere else while one can: it has writes that nobody else has
    decided: bool = False  # PostgreSQL says what is true, so no command goes to a node
    bound: bool = False  # what a connection writes goes when it closes; nothing else is behind it


class Per(IntEnum):
    """Who shares a limit."""

    CLIENT = 0  # a connection
    USER = 1
    IP = 2  # all of a unix socket are one
    KEY = 3
    KEYSPACE = 4  # of a role: each keyspace by itself
    GLOBAL = 5
    SEGMENT = 6  # the value of one of the key


class Algorithm(IntEnum):
    GCRA = 0  # an even pace, and a burst beyond it
    WINDOW = 1  # exact in every window of the period


class Scope(IntEnum):
    LOCAL = 0
    SHARED = 1  # counted in Redis for all sidecars


class Unavailable(IntEnum):
    """What a shared limit does while Redis is away."""

    LOCAL = 0  # counts its share by itself
    ALLOW = 1
    DENY = 2


class Rate(NamedTuple):
    """One limit on how often."""

    owner: str  # "keyspace seat_lock", "role booking"
    label: str  # "5/h per user_id"
    words: str  # the commands that count, as written; empty: all
    per: Per
    segment: int  # which of the named segments of the key; -1 for none
    amount: int
    seconds: float
    burst: int
    algorithm: Algorithm
    scope: Scope
    unavailable: Unavailable
    cluster: int  # where a shared limit is counted
    enforced: int  # of a hundred breaches, so many are refused
    noted: bool  # the log tells how many were let through
    commands: bytes | None  # a flag per command; None: all count
    error: bytes  # the error line, up to the milliseconds until there is room


class Role(NamedTuple):
    name: str
    allowed: bytes  # one byte per command, 1 where the role may send it
    limits: "Limits"
    other_channels: bool = True  # may use pub/sub channels that no row describes
    keyspaces: bytes | None = None  # a flag per keyspace, then one for keys of none; None: all
    keys: Sequence[Sequence[bytes | Segment]] | None = None  # patterns, no two alike; None: all
    bounds: Sequence[Bound] = ()
    rates: "tuple[Rate, ...]" = ()


class Channel(NamedTuple):
    """Pub/sub channels that share one rule. Handlers judge by it, not the data plane."""

    name: str
    pattern: Sequence[bytes | Segment]
    cluster: int
    publishers: bytes  # one byte per role, 1 where it may publish
    subscribers: bytes  # one byte per role, 1 where it may subscribe


class Limits(NamedTuple):
    """What one frame from a client may hold. Redis' own numbers unless a role says less."""

    arguments: int = 1_048_576  # Redis: 1024*1024 words of a multibulk after AUTH
    argument_bytes: int = 536_870_912  # Redis: proto-max-bulk-len 512 MB
    inline_bytes: int = 65_536  # Redis: PROTO_INLINE_MAX_SIZE
    key_bytes: int = 536_870_912  # as an argument


class Errors(NamedTuple):
    """Error lines that the data plane answers by itself, CR LF included."""

    noauth: bytes
    no_key: bytes  # the role may not name this key
    long_key: bytes  # longer than the role's limit
    crossslot: bytes
    cross_cluster: bytes  # keys of one command live in different clusters
    clusterdown: bytes  # no node for the slot, or the node is not available
    syntax: bytes
    unbalanced: bytes  # streams without an id each
    overloaded: bytes  # a node's queue is full
    unmatched: bytes  # key of no keyspace while defaults.unmatched is reject
    wrong_type: bytes  # a command of another type than the keyspace's
    bad_key: bytes  # key of no keyspace with control characters or too long
    reserved: bytes  # a key that is the proxy's own
