"""What policies say about PostgreSQL, one `Plan` per keyspace that has to do with it.

`policy.planning` makes them; a `wire.Ruleset` carries them, so that a reload replaces both at once
and no request sees half of two versions. Handlers, origin and control read them. Plain values.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy import wire
from proxy.wire.rules import Segment

# How PostgreSQL is told the type of a segment. Text is what a key is made of; a column of another
# type wants a typed segment, and `sidecache check --database` says which.
SQL_TYPES: Mapping[str, str] = {
    "text": "text", "path": "text", "hex": "text", "ip": "text",
    "int": "bigint", "uuid": "uuid", "date": "date",
}  # fmt: skip


# Fields that one changed row may mean; of one that means more the whole key is read again.
MOST_FIELDS = 16


class Parameter(NamedTuple):
    """One parameter of a statement, in the place of its number."""

    name: str
    # Of the key's segment; "field" for one of what is written, whose type the table says; "version"
    # for the number of the write.
    kind: str


class Statement(NamedTuple):
    """SQL as PostgreSQL gets it. Its text comes from the policies alone, never from a key."""

    name: str  # "event read": the keyspace and what for
    text: str  # with $1, $2 ...; segments are cast to the type of their kind
    parameters: tuple[Parameter, ...]
    place: str = ""  # file:line:column of the policy


class Age(NamedTuple):
    """How old an answer may be, in milliseconds; 0 where nothing is said."""

    stale_ms: int = 0  # served while it is fetched again
    error_ms: int = 0  # served while PostgreSQL cannot answer
    negative_ms: int = 0  # how long it is remembered that there is no row
    lease_ms: int = 3000  # how long one sidecar fetches for all
    early: bool = False

    @property
    def window_ms(self) -> int:
        """Return what a time to live in Redis is longer than the client's own."""
        return max(self.stale_ms, self.error_ms)

    def past_ms(self, left_ms: int) -> int:
        """Return how long clients have taken a key for gone that Redis keeps for so much longer."""
        return self.window_ms - left_ms

    def bears_errors(self, left_ms: int) -> bool:
        """Return whether such a key may be shown where PostgreSQL cannot answer."""
        return left_ms >= 0 and self.past_ms(left_ms) <= self.error_ms


class Writing(NamedTuple):
    """What a write does in PostgreSQL."""

    mode: str  # "through" or "behind"
    statement: Statement
    merge: str  # "replace" "add" "max" "min" "fields"
    every: float  # seconds
    rows: int
    journal_bytes: int


class Present(NamedTuple):
    """A statement about rows as they are now, for many changed rows at once.

    Its parameters are arrays of text, one element for each changed row; each row that it gives
    begins with the number of the changed row that it is of, from 1.
    """

    statement: Statement
    columns: tuple[str, ...]  # of the table, one for each parameter: where its elements are taken


class Patch(NamedTuple):
    """Which fields of a hash a changed row means."""

    present: Present  # number, field, value
    counts: tuple[bytes, bytes] | None  # around a value: the field that counts the fields with it
    greatest: frozenset[bytes]  # fields that keep the greater of two numbers


class Dependency(NamedTuple):
    """A keyspace whose keys become stale when rows of a table change."""

    keyspace: int
    columns: tuple[str, ...]  # of the table, one for each segment of the key in its order
    patch: Patch | None = None  # where a hash can be kept in step instead


class News(NamedTuple):
    """What is published on a channel when rows of a table change."""

    channel: str  # its name in the policies
    pattern: tuple[bytes | Segment, ...]  # of the names of channels
    cluster: int
    columns: tuple[str, ...]  # of the table, one for each segment of the pattern in its order
    present: Present  # number, message


class Watch(NamedTuple):
    """A table whose changes are noted, and the columns that are taken of each changed row."""

    table: str  # as written, schema included
    columns: tuple[tuple[str, str], ...]  # (column, file:line:column of who named it first)
    place: str


class Detour(NamedTuple):
    """What happens while Redis is away."""

    reads: str = "error"  # "origin" "stale" "error"
    writes: str = "error"  # "origin" "journal" "error"
    share: float | None = None  # of the PostgreSQL budget, 0 to 1
    exercise: float = 0.0  # part of reads that go this way every day


class Restoring(NamedTuple):
    """How a keyspace is filled again."""

    statement: Statement
    priority: int
    rate: float | None  # keys per second


class LockCalls(NamedTuple):
    """What PostgreSQL is asked about locks, see `origin.locking`; keys are arrays of columns."""

    take: Statement
    grab: Statement
    release: Statement
    confirm: Statement
    queue: Statement
    sweep: Statement
    held: Statement  # by columns: who holds it, with which token, for how long
    shown: Statement  # by columns: value and seconds left
    mine: Statement  # by scope and owner: keys, tokens and seconds left


class Locking(NamedTuple):
    """How locks of a keyspace are taken, where PostgreSQL decides."""

    calls: LockCalls
    mark: str  # at the end of the names of the functions, see `lock_mark`
    table: str | None  # as written; None: sidecache_locks
    columns: tuple[str, ...]  # of the table, one for each segment of the key in its order
    owner: tuple[str, ...]  # members that lead to it in a value that is JSON; none: all of it
    longest: float  # seconds that a lock is held at most, however often extended; 0: no bound
    scope: int  # index of the segment within which an owner's locks are counted
    most: int  # so many, 0: no limit
    gate: bool  # Redis turns contenders away
    heartbeat: float  # seconds after which a silent waiter is dropped; 0: no queue
    offer: float  # seconds for which a free lock is kept for who is next
    blind: bool  # a bare DEL releases on the connection that took the lock


class Plan(NamedTuple):
    """One keyspace."""

    keyspace: int  # its index in the ruleset
    name: str
    pattern: tuple[bytes | Segment, ...]
    cluster: int
    kind: str  # "cache" "state" "lock" "rate_limit"
    type: str | None
    ttl_ms: int  # 0: lives for ever
    jitter: float  # up to which share of the time is taken off
    read: Statement | None
    columns: tuple[tuple[str, str], ...]  # (field, column); all under their own names when empty
    max_rows: int
    age: Age
    writing: Writing | None
    detour: Detour
    restoring: Restoring | None
    on_loss: str | None  # "restore" "refill" "lost"
    drift: float  # keys per second that are compared; 0: none
    security: bool
    locking: Locking | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(part for part in self.pattern if isinstance(part, Segment))

    @property
    def mode(self) -> str:
        """Return what a write is to PostgreSQL: "none" "through" "behind"."""
        return "none" if self.writing is None else self.writing.mode

    def key_of(self, values: Mapping[str, str]) -> bytes:
        """Return the client's key for the values of its segments. Raises KeyError."""
        return b"".join(
            part if isinstance(part, bytes) else values[part.name].encode() for part in self.pattern
        )


class Plans(NamedTuple):
    """All of them."""

    by_keyspace: Mapping[int, Plan] = {}
    by_table: Mapping[str, tuple[Dependency, ...]] = {}  # by name as written, schema included
    lost: tuple[tuple[int, str], ...] = ()  # cluster and name of what nobody can bring back
    cheap: tuple[tuple[str, str], ...] = ()  # locks of Redis alone: file:line:column and name
    endless: tuple[tuple[str, str], ...] = ()  # the same of what has a longest time, and no other
    news: Mapping[str, tuple[News, ...]] = {}  # by table, as above


NONE = Plans()

# What stands beside a key in its slot: who fetches it at present, that there is no such row, and
# as of when it was last kept in step, the fencing token of a lock.
LEASE = b"sidecache:lease:"
ABSENT = b"sidecache:none:"
PATCHED = b"sidecache:patched:"
TOKEN = b"sidecache:token:"

# Where locks are that no table of the application has.
OWN_LOCKS = "sidecache_locks"


def quoted(name: str) -> str:
    """Return an identifier as SQL has it in quotes."""
    return '"' + name.replace('"', '""') + '"'


def qualified(table: str) -> str:
    """Return the name of a table, of a schema where one is said before a dot, as SQL."""
    return ".".join(map(quoted, table.split(".")))


def lock_mark(
    table: str | None, columns: Sequence[str], kinds: Sequence[str], scope: int | None
) -> str:
    """Return a digest of what the functions about the locks of a keyspace are made from.

    Kinds: of the segments that the columns take; scope: the one within which locks are counted. It
    ends the names of the functions, so a policy never calls what was made for another: where any of
    these is another, there is nothing to call.
    """
    facts = repr((table, tuple(columns), list(kinds), scope))
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def lock_function(verb: str, keyspace: str) -> str:
    """Return how the function in the database is called that does something to a keyspace's locks.

    A mark follows, see `marked_function`.
    """
    # PostgreSQL cuts names at 63 bytes, and two that differ behind that must not become one.
    digest = hashlib.sha256(keyspace.encode()).hexdigest()[:8]
    plain = keyspace if len(keyspace) <= 36 else f"{keyspace[:27]}_{digest}"
    return f"sidecache_{verb}_{plain}"


def marked_function(verb: str, keyspace: str, mark: str) -> str:
    """Return the name of the function that does something to locks where they are by this mark."""
    return f"{lock_function(verb, keyspace)}_{mark}"


def companion(prefix: bytes, name: bytes) -> bytes | None:
    """Return the key that stands beside a key, given as nodes name it; it has the same slot.

    None for a name with braces that make no hash tag: nothing can be put beside it.
    """
    opened = name.find(b"{")
    if opened >= 0 and name.find(b"}", opened) > opened + 1:
        return prefix + name
    beside = prefix + b"{%b}" % name
    plain = opened < 0 and b"}" not in name
    return beside if plain or wire.key_slot(beside) == wire.key_slot(name) else None


def plans_in(ruleset: wire.Ruleset) -> Plans:
    """Return the plans that belong to rules."""
    plans = ruleset.plans
    return plans if isinstance(plans, Plans) else NONE


def beside_which(name: bytes) -> bytes:
    """Return the key that a key stands beside, as nodes name both; any other is its own."""
    for prefix in (LEASE, ABSENT, TOKEN):
        if name.startswith(prefix):
            inner = name[len(prefix) :]
            bare = inner[1:-1]
            return bare if companion(prefix, bare) == name else inner
    return name
