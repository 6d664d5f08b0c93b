"""The rows that a Ruleset is built from, as plain values.

The policy compiler makes them from policies and the command table; `wire.Ruleset` reads them once
and keeps its own compact form. Nothing here is looked at per command.

Always true: rows are immutable, and an index (of a command, keyspace, role or cluster) is the
position in the sequence given to `Ruleset`.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Path(IntEnum):
    """What the data plane does with a command."""

    FORWARD = 0  # all keys in one slot: sent to the node that owns it
    SPLIT = 1  # forwarded when its keys share a slot, else a Request for handlers.fanout
    LOCAL = 2  # a Request, answered by a handler
    BARRIER = 3  # a Request too, but only when every earlier command is answered
    CONTAINER = 4  # look at the second word: its row is named "container|word"
    REFUSED = 5  # known, and not offered


class KeyKind(IntEnum):
    """How the keys of a command are found among its arguments (argument 0 is the name)."""

    NONE = 0
    RANGE = 1  # arguments first, first + step, ... last; a negative last counts from the end
    NUMKEYS = (
        2  # argument `first` is a count, keys follow it; argument `last`, if not 0, is a key too
    )
    STREAMS = 3  # the first half of what follows the word STREAMS; BLOCK makes it a Request
    SORT = 4  # argument 1, and what follows STORE; BY and GET take one argument each
    GEORADIUS = 5  # argument 1, and what follows STORE or STOREDIST


class Keys(NamedTuple):
    kind: KeyKind
    first: int = 0
    last: int = 0
    step: int = 0


class Command(NamedTuple):
    """One row of the command table as the data plane needs it."""

    name: bytes  # lower case; a sub-command is b"container|word"
    arity: int  # Redis' rule: the number of words, negative for "at least"
    path: Path
    keys: Keys
    write: bool  # may change data
    repeatable: bool  # running it twice is the same as once, seen by the client too: plain reads
    unauthenticated: bool  # allowed before AUTH
    names_in_reply: bool  # the reply carries key names, so a renamed key is a Request
    family: int  # index into Ruleset.families, for the counters
    arity_error: bytes  # the whole error line, CR LF included
    refused_error: bytes  # what Path.REFUSED and a container's unknown word answer


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


class Role(NamedTuple):
    name: str
    allowed: bytes  # one byte per command, 1 where the role may send it
    limits: "Limits"


class Limits(NamedTuple):
    """What one frame from a client may hold. Redis' own numbers unless a role says less."""

    arguments: int = 1_048_576  # Redis: 1024*1024 words of a multibulk after AUTH
    argument_bytes: int = 536_870_912  # Redis: proto-max-bulk-len 512 MB
    inline_bytes: int = 65_536  # Redis: PROTO_INLINE_MAX_SIZE


class Errors(NamedTuple):
    """Error lines that the data plane answers by itself, CR LF included."""

    noauth: bytes
    noperm: bytes
    crossslot: bytes
    cross_cluster: bytes  # keys of one command live in different clusters
    clusterdown: bytes  # no node for the slot, or the node is not available
    bad_numkeys: bytes
    syntax: bytes
    overloaded: bytes  # a node's queue is full
    unmatched: bytes  # key of no keyspace while defaults.unmatched is reject
    bad_key: bytes  # key of no keyspace with control characters or too long
