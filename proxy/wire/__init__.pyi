"""The contract of the data plane: pure state machines, no socket, no future, no logger, no clock.

Read in the order a byte travels: `Downstream` takes requests apart and judges them by the
`Router`'s tables, `Upstream` is the queue towards one node, `Batch` collects who has something to
say at the end of a loop iteration. Time is always an argument, in seconds of one monotonic clock.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, final

from proxy.wire import rules
from proxy.wire.rules import Channel, Command, Errors, Keyspace, Role

Buffer = bytes | bytearray | memoryview

BEHIND: int
"""Unread replies, in bytes, above which a client counts towards the total of all."""

OUTCOMES: tuple[str, ...]
AMENDMENTS: tuple[str, ...]  # how rules change commands, in the place of families in `amended`
LATENCY_BOUNDS: tuple[float, ...]
LONGEST_NAME: int  # of an owner or a lock, in bytes
LOOKUP_SECONDS: float  # how long a look-up waits for a node where PostgreSQL can answer too

def key_slot(key: bytes) -> int:
    """Return the hash slot (0..16383) of a key as a node sees it, hash tag rule included."""

def pack(arguments: Sequence[bytes]) -> bytes:
    """Return the canonical frame of a command."""

def frame_end(data: Buffer, position: int) -> int:
    """Return where the complete RESP2/RESP3 reply that starts at position ends, or -1.

    Raises ValueError for bytes that are no reply.
    """

JSON_FAULTS: tuple[str, ...]
"""What can be wrong with JSON, in words."""

def json_fault(data: Buffer) -> tuple[int, int] | None:
    """Return what is wrong with a value, an index into JSON_FAULTS, and at which byte; else None.

    Stricter than RFC 8259: no member twice, none of JavaScript's own names, no lone surrogate, no
    byte order mark, at most 128 levels and 131,072 members of objects that are open together.
    """

@final
class Counters:
    """Requests by keyspace, command family and outcome; plain integers, read at scrape."""

    keyspaces: int
    families: int
    def __init__(self, keyspaces: int, families: int) -> None: ...
    def requests(self) -> list[tuple[int, int, int, int]]:
        """Return (keyspace index or -1, family index, outcome index, count) where it is not 0."""
    def add(self, keyspace: int, family: int, outcome: int, count: int) -> None:
        """Count several at once."""
    def follow(self, successor: Counters, keyspaces: Sequence[int]) -> None:
        """Give all counts to those of the rules that replace these, what comes late included.

        keyspaces holds, per keyspace, its index there, or -1 where it is gone with its counts.
        """

@final
class Latencies:
    """Histograms of the parts of a request's time."""

    clusters: int
    rows: int
    def __init__(self, clusters: int, rows: int = 0) -> None: ...
    def commands(self) -> list[tuple[int, int, float, list[int]]]:
        """Return (row, failed, sum of seconds, counts per bucket) of each command with a reply.

        Bucket i counts what took less than 2 ** i microseconds and no less than half of that, from
        the last byte of the request to the last byte of the node's reply.
        """
    def forget_commands(self) -> None:
        """Start the figures by command afresh."""
    def latencies(self) -> list[tuple[int, str, list[int], float]]:
        """Return (cluster, part, counts per bucket, sum of seconds); part: queue, upstream, total.

        Bucket i counts what took less than LATENCY_BOUNDS[i] seconds and no less than the bound
        before it; the last bucket has no upper bound. The counts are not cumulative.
        """

LIMIT_OUTCOMES: tuple[str, ...]

@final
class Table:
    """Cells of a limit: of fixed number, never evicted while they count."""

    buckets: int
    stride: int  # bytes of a bucket
    overflows: int  # times that an id found no cell of its own, or knowledge of one gave way
    def __init__(self, size: int, behind: int) -> None: ...
    def fill(self, now: float) -> float:
        """Return the share of cells in use, of a sample of some hundred buckets."""

@final
class Rate:
    """One limit on how often, with what it has counted."""

    row: rules.Rate
    table: Table  # of a local limit, or of this sidecar's share of a shared one
    stock: Table | None  # of a shared limit: cells that are reserved in Redis
    sidecars: int  # that share the limit, as far as is known
    reserve: Callable[[Rate, int, bytes, Downstream], None] | None
    """Called with the id's mark and the id for a client that waits for a cell; holds it."""
    def __init__(self, row: rules.Rate) -> None:
        """Raises ValueError for a window of more than 1000."""
    @property
    def batch(self) -> int:
        """Return how many cells are reserved at once at most."""
    @property
    def identity(self) -> tuple[object, ...]:
        """Return what makes it the same limit in other rules: its counts go on there."""
    def statistics(self) -> tuple[int, ...]:
        """Return the counts in the order of LIMIT_OUTCOMES."""
    def take_over(self, former: Rate) -> None:
        """Go on with the counts of the same limit of rules that this one's replace."""
    def shared_by(self, sidecars: int) -> None:
        """Hear how many sidecars there are: while Redis is away each has its share."""
    def take(self, name: bytes, now: float) -> float:
        """Charge one cell to an id; return 0.0, or the seconds until there is room.

        Raises LookupError where only Redis knows.
        """
    def wanted(self, mark: int, clients: int, now: float) -> int:
        """Return how many cells to reserve for an id for which so many clients wait."""
    def grant(self, mark: int, cells: int, now: float) -> None:
        """Put reserved cells in stock: they may be spent for a period."""
    def close(self, mark: int, until: float, now: float) -> None:
        """Refuse an id until then: nobody else can make it sooner."""
    def give_up(self, mark: int, until: float, now: float) -> None:
        """Decide about an id without Redis until then."""

@final
class Ruleset:
    """What is allowed and where keys live, compiled; immutable but for its counters."""

    commands: tuple[Command, ...]
    keyspaces: tuple[Keyspace, ...]
    roles: tuple[Role, ...]
    channels: tuple[Channel, ...]  # only kept here: handlers judge by them
    plans: Any  # `proxy.plans.Plans`, only kept here: handlers carry them out
    families: tuple[str, ...]
    errors: Errors
    counters: Counters
    amended: Counters  # commands that rules have changed; errors are those of what follows
    breaches: Counters  # rules in the place of families; ok is what was let through on trial
    default_cluster: int
    reject_unmatched: bool
    max_key_bytes: int
    split_unmatched: bool  # transactions over keys of no keyspace may be one per slot
    flushable: tuple[int, ...]  # clusters that FLUSHALL and FLUSHDB may empty
    rates: tuple[Rate, ...]  # all limits on how often: of keyspaces, then of roles
    def __init__(
        self,
        *,
        commands: Sequence[Command],
        keyspaces: Sequence[Keyspace],
        roles: Sequence[Role],
        families: Sequence[str],
        errors: Errors,
        default_cluster: int,
        reject_unmatched: bool,
        max_key_bytes: int,
        split_unmatched: bool = False,
        flushable: Sequence[int] = (),
        channels: Sequence[Channel] = (),
        plans: object = None,
    ) -> None:
        """Lay the tables out. The last family counts what belongs to no command.

        Raises ValueError for rows that contradict each other, such as two keyspaces of one pattern.
        A cluster that the slot map does not have is one whose slots nobody owns.
        """
    def breach(self, keyspace: int, rule: int) -> bool:
        """Count a breach of a rule that a handler has found; return whether it is refused."""
    def take_over(self, former: Ruleset) -> None:
        """Let every limit that former rules have too go on with what it has counted there."""
    def find_command(self, name: bytes) -> int:
        """Return the index of a command, case ignored, or -1."""
    def find_keyspace(self, key: bytes) -> int:
        """Return the index of the keyspace of a client's key, or -1 for none."""
    def upstream_name(self, key: bytes) -> bytes:
        """Return the key as nodes see it: with the hash tag of its keyspace."""

@final
class SlotMap:
    """Slot to node for every cluster; immutable. A change makes a new one."""

    clusters: int
    nodes: tuple[tuple[tuple[Upstream, ...], ...], ...]
    def __init__(
        self,
        clusters: Sequence[tuple[bool, array[int]]],
        nodes: Sequence[Sequence[Sequence[Upstream]]],
    ) -> None:
        """Take, per cluster, whether it is sharded, and the owners of its slots as an array("h").

        An owner is an index into nodes, or -1 for nobody; a sharded cluster has 16384 of them,
        another has one. A node is given as its connections by protocol: (for RESP2, for RESP3).
        Raises ValueError for a wrong number of owners, and for an owner without connections.
        """
    def owner(self, cluster: int, slot: int) -> int: ...
    def place_of(self, cluster: int, word: bytes) -> Location:
        """Return a location for what has no key: chosen by the hash of a word of it."""
    def slot_count(self, cluster: int) -> int:
        """Return how many slots a cluster has: 16384, or 1 where it is not sharded."""
    def places(self, cluster: int) -> list[Location]:
        """Return one location per node that owns slots of a cluster: the first slot of each."""

@final
class Router:
    """What a batch is judged and routed by. Either table is replaced by plain assignment."""

    ruleset: Ruleset
    slots: SlotMap
    pause: int  # a rules.Pause: what is held back of every client; whoever ends it wakes them
    owed: dict[
        bytes, Any
    ]  # by key: nodes may have what it was before it changed, whatever they say
    @property
    def refusals(self) -> Refusals: ...
    def __init__(self, ruleset: Ruleset, slots: SlotMap) -> None: ...

@final
class Refusals:
    """Locks that others hold, which the data plane refuses by itself."""

    count: int  # so many were refused
    def close(
        self,
        key: bytes,
        outcome: str,
        until: float,
        holder: str | None = None,
        path: tuple[str, ...] = (),
        ends: float = 0.0,
        grace: float = 0.0,
    ) -> None:
        """Refuse a lock until a time of the loop, but not to its holder; without one, to all.

        Then one asks again, and for some seconds of grace others are refused meanwhile. By the
        path of its policy a value is the owner, or JSON with the owner at the end of it. Outcome
        and end, a time of the loop, are told to who asks by name.
        """

    def open(self, key: bytes) -> None:
        """Refuse a lock no longer."""

def find_keys(rules: Ruleset, row: int, command: bytes) -> list[int] | None:
    """Return the positions of the keys of a canonical frame, or None where they are not certain.

    The frame must have passed the arity of its row. Raises ValueError for a row that is not there.
    """

@final
class Location:
    """Where a key lives."""

    cluster: int
    slot: int
    name: bytes  # as nodes see it
    keyspace: int  # -1 for a key of none, or no key
    def __init__(self, cluster: int, slot: int, name: bytes = b"") -> None: ...

@final
class Request:
    """A command that needs Python. Answered exactly once through `Downstream.answer`."""

    command: bytes  # the canonical frame as the client sent it
    name: bytes  # the row's name, lower case; empty for an unknown command
    row: int  # index into Ruleset.commands, -1 for an unknown command
    received: float
    location: Location | None  # of a command that was captured: where it would have gone,
    routed: bytes | None  # and its frame as nodes see it, changed where a rule changes it,
    followers: list[bytes] | None  # and what rules send right behind it
    reason: int  # a rules.Reason
    reply: bytes | None  # what was said of a look-up, where that is not its answer
    left_ms: int  # what the key of a look-up has left to live as PTTL says it; -3: nobody said
    ruleset: Ruleset  # by which it was judged
    refusal: bytes | None  # why it is refused, of an EXEC that ends what it would have run
    @property
    def arguments(self) -> list[bytes]:
        """Return all words, the name first, in the client's spelling.

        Of a script's command those of its run: name, digest, number of keys, keys, arguments.
        """
    @property
    def keys(self) -> list[int]:
        """Return the positions of the keys among the arguments; none where that is not certain."""
    @property
    def keys_error(self) -> bytes:
        """Return the error line for a command whose keys are not certain."""

@final
class Trace:
    """One command that was sampled or slow, when its reply is about to be written, or never is."""

    words: list[bytes]  # the first 32, each cut to 256 bytes
    sizes: list[int]  # of those words, whole
    total: int  # how many words it has
    keys: list[int]  # positions of keys among words
    ruleset: Ruleset
    row: int  # -1 for an unknown command
    keyspace: int  # of the first key, -1 for none
    size: int  # bytes of the request
    reply_size: int
    received: float
    judged: float  # 0 without a clock, and where a slow one was judged within 100 µs
    sent: float  # 0 where no node was asked, or not on this client's own lane
    replied: float  # 0 where it was not answered
    outcome: int  # index into OUTCOMES
    error: bytes | None  # the first word of an error reply
    node: Any  # the owner of its Upstream, where one node answered
    sampled: bool
    handled: bool  # a handler ran it
    renamed: bool  # its keys are named as nodes know them

@final
class Sketches:
    """Which commands are looked at closer, and what was seen of their keys; memory is fixed."""

    plain: bool
    keyspaces: int
    looks: int  # at keys, since the start
    @property
    def memory(self) -> int:
        """Return the bytes of all tables."""
    @property
    def shares(self) -> tuple[float, float]:
        """Return which share of the commands is traced, and of which the keys are counted."""
    def __init__(self, secret: bytes, keyspaces: int = 0, plain: bool = False) -> None:
        """secret has 16 bytes. With plain, names of keys are kept, up to 128 bytes of each."""
    def look(self, sampled: float, counted: float) -> None:
        """Trace a share of the commands, and count the keys of a share. Nothing at first.

        While keys are counted, requests and replies from 16 KiB on are all measured.
        """
    def name_hash(self, key: bytes) -> int:
        """Return the hash by which a key is known in this process: SipHash-2-4 of 64 bits."""
    def add(self, key: bytes, keyspace: int) -> None:
        """Count one look at a key."""
    def see(self, key: bytes, keyspace: int, size: int, replied: bool, now: float) -> None:
        """Hear how large a request or a reply about a key was."""
    def halve(self) -> None:
        """Let what was seen so far count half."""
    def hot_keys(self, most: int) -> list[tuple[int, int, bytes | None, float, float]]:
        """Return (hash, keyspace, name or None, looks, error) of the hottest keys, hottest first.

        The true number of looks is at most that, and less by at most the error.
        """
    def big_keys(self) -> list[tuple[int, int, bytes | None, int, bool, float]]:
        """Return (hash, keyspace, name or None, bytes, of a reply, when), largest first.

        At most sixteen of each keyspace.
        """
    def adopt(self, moves: Sequence[int], keyspaces: int) -> None:
        """Follow rules that are replaced: moves has a keyspace's new number, or -1."""

@final
class Batch:
    """Who has something to say at the end of this loop iteration."""

    slow_after: float  # seconds to an answer from which on a command is traced; infinite at first
    sketches: Sketches
    clock: Callable[[], float] | None
    """Asked once per read of a client and per answer of a handler; without it both took no time."""
    on_seen: Callable[[Any, list[Trace]], None] | None
    """Called with the owner of a Downstream and what is traced of replies about to be written."""
    observer: Callable[[Any, bytes], None] | None
    """Called with every command that is let through, and the owner of its Downstream."""
    on_denied: Callable[[Any, str, bytes], None] | None
    """Called where a right is missing: the owner, what is refused ("command" "key"), its name."""
    on_arriving: Callable[[Upstream, int], None] | None
    """Called with what has come of a large reply, whenever more of it has and not its end."""
    def __init__(self, schedule: Callable[[], None]) -> None:
        """schedule() is called once per iteration, when the first side has something to say."""
    def take_ready(self) -> list[Downstream]:
        """Return the clients with replies to send or a reason to go on, and forget them."""
    def take_touched(self) -> list[Upstream]:
        """Return the nodes with commands to send, forget them, and end this iteration's batch."""

class Sink:
    """Who gets a reply: a Downstream, or the part of a handler."""

@final
class Downstream(Sink):
    """The client's end: takes requests apart, keeps replies in the client's order."""

    owner: Any  # the Session
    ruleset: Ruleset  # by which all that is under way was judged
    protocol: int  # 2 or 3: which of a node's connections carry its commands
    role_name: str | None  # None before AUTH
    role: int  # its index into the ruleset's roles, -1 before AUTH
    paused: bool  # the client does not read what it is sent
    capture: bool  # what would be forwarded becomes a Request that says where to; no barrier waits
    spoiled: bool  # a command was refused by the data plane while capture was on, or rules are new
    default_cluster: int  # of keys that no rule names; -1 is that of the rules
    serial: bool  # a command waits until the one before it is answered
    silence: int  # of CLIENT REPLY: 0 replies are sent, 1 they are dropped, 2 the next one is
    lane: int  # which of a node's shared connections: always the same, so effects keep their order
    last_row: int  # of the last command that was let through, -1 for none
    user: bytes  # who is charged by limits per user,
    address: bytes  # and per address
    pending: int  # commands not answered yet
    sent: int  # commands given to nodes, parts of Requests included
    following: int  # commands of rules behind the client's that are not answered yet
    blocked: bool  # parsing waits: for replies, a slow command, a new topology or room to send
    closing: bool  # no further command is taken: after `finish` or a protocol error
    passing: bool  # the rest of a request that is refused already is passed over as it comes
    waiting_bytes: int  # of replies that cannot be sent yet: one before them or a part is missing
    def __init__(self, router: Router, batch: Batch, lane: int) -> None: ...
    @property
    def held_bytes(self) -> int:
        """Return the bytes received and not parsed yet."""
    @property
    def output_bytes(self) -> int:
        """Return the bytes of replies that wait to be sent, `waiting_bytes` among them."""
    @property
    def resumable(self) -> bool:
        """Return whether parsing was blocked and may go on: call receive_data with no bytes."""
    def has_written(self, cluster: int) -> bool:
        """Return whether a write of this client may have gone to a cluster."""
    def receive_data(self, data: Buffer, now: float) -> Request | None:
        """Take bytes from the client.

        Commands on the fast path are appended to their node's queue. Parsing stops behind the
        first command that needs Python, which is returned and must be answered exactly once; call
        again with no bytes to go on. None means that everything is taken or that parsing is
        blocked; a blocked side appears in the batch when it can go on.
        """
    def adopt(self) -> None:
        """Take the tables in force, unless something is under way that was judged by others.

        Whoever sends a command does so by itself; for who is silent, so that old rules can go.
        """
    def assume(self, role_name: str | None) -> None:
        """Take the rights and limits of a role; None, or one that no rule knows, is a stranger."""
    def answer(self, request: Request, reply: bytes) -> None:
        """Give the reply of a Request; it leaves when its turn comes.

        Raises RuntimeError for a second answer.
        """
    def take_deferred(self) -> Sequence[Request]:
        """Return the Requests that came to be after their commands were taken, and forget them.

        Look-ups that their node could not answer, and what waited for its turn. Each is answered
        as any other, but those that are STALE or BOUND, which are answered already. Of a client
        that has gone only the latter are left; without a reply, it is not known what they did.
        """
    def hold(self) -> None:
        """Parse no further until `release`: the barrier of a slow command."""
    def release(self) -> None: ...
    def gather(self, change: int) -> None:
        """Count what a handler keeps of replies until it can answer; below 0: keeps no longer."""
    def finish(self) -> None:
        """Take no further command; what is pending is still answered."""
    def locate(
        self, key: bytes, row: int, asked: bool = True, place: int = 0, source: int = -1
    ) -> Location | bytes:
        """Return where a client's key lives, or the error line of the rule that refuses it.

        Where the client has asked for the key, `Batch.on_denied` hears of a missing right. place
        counts the command's keys from 0; source is the keyspace of its first.
        """
    def followers(self, location: Location, row: int, place: int, command: bytes) -> list[bytes]:
        """Return the commands that rules send behind a command that a handler sends.

        They are for the key at a place, counted from 0, that the location is of; the command is as
        the client wrote it and says no time by itself.
        """
    def follow(self, location: Location, frames: list[bytes], now: float) -> None:
        """Queue what `followers` returned, right behind the command that it belongs to.

        Their replies are read and dropped, and counted. They go on where nobody waits any more.
        """
    def submit(
        self,
        location: Location,
        command: bytes,
        row: int,
        now: float,
        deliver: Callable[[bytes], None],
        quotes: bool = False,
    ) -> None:
        """Queue a part of a Request behind what this client sent so far.

        deliver gets the reply, at once where no node can be asked. With quotes the command may
        answer error lines of its own, as scripts do: only a node's exact words send it elsewhere.
        """
    def submit_unit(
        self,
        location: Location,
        commands: bytes,
        replies: int,
        now: float,
        deliver: Callable[[bytes], None],
    ) -> None:
        """Queue commands that belong together, of which only the last reply, or error, counts.

        Where a node sends any of them elsewhere, none has run (MULTI ... EXEC), and all go there.
        """
    def push(self, data: bytes) -> None:
        """Send something that answers nothing, behind the replies that are ready."""
    def data_to_send(self) -> bytes:
        """Return the replies that are ready and not behind one that is not."""
    def connection_lost(self) -> None:
        """Forget the client: what is in flight for it is read and dropped."""

@final
class Orphan:
    """A command that its connection will not answer, and why."""

    kind: str  # "moved" "ask" "tryagain" "unavailable" "readonly" "lost" "overdue" "oversized"
    address: str  # "host:port" of moved and ask, else ""
    redirect_slot: int  # the slot that moved and ask name, else -1
    reply: bytes | None  # the node's own words, where it said why
    @property
    def cluster(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def sent(self) -> bool:
        """Return whether the node may have run it."""
    @property
    def repeatable(self) -> bool: ...
    @property
    def deadline(self) -> float: ...
    @property
    def detours(self) -> bool:
        """Return whether it is a look-up that is answered elsewhere where no node can answer."""
    @property
    def hops(self) -> int:
        """Return how often it has been resubmitted."""
    @property
    def wanted(self) -> bool:
        """Return whether anybody still waits for the reply."""
    @property
    def ticket(self) -> int:
        """Return its place among all that were ever refused, by when it first was."""
    @property
    def client(self) -> Any:
        """Return the owner of the client that waits for it, if there is one."""
    def park(self) -> None:
        """Keep its client from sending more until it is answered."""
    def answer(self, reply: bytes, now: float) -> None:
        """Give its client this reply instead of a node's."""
    def resubmit(self, upstream: Upstream, asking: bool, train: Train | None = None) -> None:
        """Queue it at another node; with asking, right behind an ASKING. Parks it."""

@final
class Train:
    """Commands of one client in one slot that were sent on."""

    waiting: bool  # some of them are parked; for the redirector
    upstream: Upstream | None  # where all that are under way are queued
    under_way: int
    newest: int  # the ticket of the last of them

@final
class Upstream:
    """A node's end: a queue of commands sent and not yet answered, in the node's order."""

    owner: Any  # the UpstreamConnection
    available: bool  # False: clients get CLUSTERDOWN at once instead of a place in the queue
    share: int  # percent of the look-ups that can be answered elsewhere and still go to the node
    answered: int  # replies that were no redirect; blocks of commands are not counted
    late: int  # of them: those that took 100 ms
    fault: str | None  # why the stream cannot go on: the connection must be closed
    pending: int
    def __init__(
        self, batch: Batch, latencies: Latencies, cluster: int, timeout: float
    ) -> None: ...
    @property
    def unsent_bytes(self) -> int: ...
    @property
    def begun_bytes(self) -> int:
        """Return how much has come of a reply that is not whole."""
    @property
    def overloaded(self) -> bool: ...
    def submit(
        self,
        command: bytes,
        replies: int,
        now: float,
        deadline: float,
        deliver: Callable[[bytes], None],
    ) -> None:
        """Queue a command on a connection that one client has for itself.

        Of its replies, more than one where commands are sent as one, deliver gets the last: as it
        is, redirects too. A command that will not be answered becomes an Orphan.
        """
    def data_to_send(self, now: float) -> bytes:
        """Return what is queued and not handed out yet, and count it as sent."""
    def receive_data(self, data: Buffer, now: float) -> list[Orphan] | None:
        """Take bytes from the node; return the commands that must go elsewhere, in order."""
    def refuse(self) -> None:
        """Make the command whose reply is arriving an orphan; the connection must be closed."""
    def next_deadline(self) -> float:
        """Return when `expire` may have something to do, or infinity.

        It moves while a reply arrives: look again then.
        """
    def expire(self, now: float) -> tuple[bool, list[Orphan]]:
        """Return (whether to close the connection, overdue commands to be answered)."""
    def connection_lost(self) -> list[Orphan]:
        """Return every command that will never be answered here, in order, and start afresh."""
