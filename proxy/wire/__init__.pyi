"""The contract of the data plane: pure state machines, no socket, no future, no logger, no clock.

Read in the order a byte travels: `Downstream` takes requests apart and judges them by the
`Router`'s tables, `Upstream` is the queue towards one node, `Batch` collects who has something to
say at the end of a loop iteration. Time is always an argument, in seconds of one monotonic clock.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, final

from proxy.wire.rules import Command, Errors, Keyspace, Role

Buffer = bytes | bytearray | memoryview

OUTCOMES: tuple[str, ...]
LATENCY_BOUNDS: tuple[float, ...]

def key_slot(key: bytes) -> int:
    """Return the hash slot (0..16383) of a key as a node sees it, hash tag rule included."""

def pack(arguments: Sequence[bytes]) -> bytes:
    """Return the canonical frame of a command."""

def frame_end(data: Buffer, position: int) -> int:
    """Return where the complete RESP2/RESP3 reply that starts at position ends, or -1.

    Raises ValueError for bytes that are no reply.
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
        """Carry a count over from the ruleset that this one replaces."""

@final
class Latencies:
    """Histograms of the parts of a request's time."""

    clusters: int
    def __init__(self, clusters: int) -> None: ...
    def latencies(self) -> list[tuple[int, str, list[int], float]]:
        """Return (cluster, part, counts per bucket, sum of seconds); part: queue, upstream, total.

        Bucket i counts what took less than LATENCY_BOUNDS[i] seconds and no less than the bound
        before it; the last bucket has no upper bound. The counts are not cumulative.
        """

@final
class Ruleset:
    """What is allowed and where keys live, compiled; immutable but for its counters."""

    commands: tuple[Command, ...]
    keyspaces: tuple[Keyspace, ...]
    roles: tuple[Role, ...]
    families: tuple[str, ...]
    errors: Errors
    counters: Counters
    default_cluster: int
    reject_unmatched: bool
    max_key_bytes: int
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
    ) -> None:
        """Lay the tables out. The last family counts what belongs to no command.

        Raises ValueError for rows that contradict each other, such as two keyspaces of one pattern.
        """
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
        Raises ValueError for a wrong number of owners.
        """
    def owner(self, cluster: int, slot: int) -> int: ...

@final
class Router:
    """What a batch is judged and routed by. Either table is replaced by plain assignment."""

    ruleset: Ruleset
    slots: SlotMap
    def __init__(self, ruleset: Ruleset, slots: SlotMap) -> None: ...

@final
class Location:
    """Where a key lives."""

    cluster: int
    slot: int
    name: bytes  # as nodes see it

@final
class Request:
    """A command that needs Python. Answered exactly once through `Downstream.answer`."""

    command: bytes  # the canonical frame as the client sent it
    name: bytes  # the row's name, lower case; empty for an unknown command
    row: int  # index into Ruleset.commands, -1 for an unknown command
    received: float
    @property
    def arguments(self) -> list[bytes]:
        """Return all words, the name first, in the client's spelling."""
    @property
    def keys(self) -> list[int]:
        """Return the positions of the keys among the arguments; none where that is not certain."""

@final
class Batch:
    """Who has something to say at the end of this loop iteration."""

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
    protocol: int  # 2 or 3: which of a node's connections carry its commands
    role_name: str | None  # None before AUTH
    role: int  # its index into the ruleset's roles, -1 before AUTH
    paused: bool  # the client does not read what it is sent
    lane: int  # which of a node's shared connections: always the same, so effects keep their order
    pending: int  # commands not answered yet
    blocked: bool  # parsing waits: for replies, a slow command, a new topology or room to send
    closing: bool  # no further command is taken: after `finish` or a protocol error
    def __init__(self, router: Router, batch: Batch, lane: int) -> None: ...
    @property
    def held_bytes(self) -> int:
        """Return the bytes received and not parsed yet."""
    @property
    def output_bytes(self) -> int:
        """Return the bytes of replies that wait, those behind a missing one included."""
    @property
    def resumable(self) -> bool:
        """Return whether parsing was blocked and may go on: call receive_data with no bytes."""
    def receive_data(self, data: Buffer, now: float) -> Request | None:
        """Take bytes from the client.

        Commands on the fast path are appended to their node's queue. Parsing stops behind the
        first command that needs Python, which is returned and must be answered exactly once; call
        again with no bytes to go on. None means that everything is taken or that parsing is
        blocked; a blocked side appears in the batch when it can go on.
        """
    def assume(self, role_name: str | None) -> None:
        """Take the rights and limits of a role; None, or one that no rule knows, is a stranger."""
    def answer(self, request: Request, reply: bytes) -> None:
        """Give the reply of a Request; it leaves when its turn comes.

        Raises RuntimeError for a second answer.
        """
    def hold(self) -> None:
        """Parse no further until `release`: the barrier of a slow command."""
    def release(self) -> None: ...
    def finish(self) -> None:
        """Take no further command; what is pending is still answered."""
    def locate(self, key: bytes, row: int) -> Location | bytes:
        """Return where a client's key lives, or the error line of the rule that refuses it."""
    def submit(
        self,
        location: Location,
        command: bytes,
        row: int,
        now: float,
        deliver: Callable[[bytes], None],
    ) -> None:
        """Queue a part of a Request behind what this client sent so far.

        deliver gets the reply, at once where no node can be asked.
        """
    def data_to_send(self) -> bytes:
        """Return the replies that are ready and not behind one that is not."""
    def connection_lost(self) -> None:
        """Forget the client: what is in flight for it is read and dropped."""

@final
class Orphan:
    """A command that its connection will not answer, and why."""

    kind: str  # "moved" "ask" "tryagain" "unavailable" "readonly" "lost" "overdue"
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
    def hops(self) -> int:
        """Return how often it has been resubmitted."""
    @property
    def wanted(self) -> bool:
        """Return whether anybody still waits for the reply."""
    def park(self) -> None:
        """Keep its client from sending more until it is resubmitted or answered."""
    def answer(self, reply: bytes, now: float) -> None:
        """Give its client this reply instead of a node's."""
    def resubmit(self, upstream: Upstream, asking: bool) -> None:
        """Queue it at another node; with asking, right behind an ASKING."""

@final
class Upstream:
    """A node's end: a queue of commands sent and not yet answered, in the node's order."""

    owner: Any  # the UpstreamConnection
    available: bool  # False: clients get CLUSTERDOWN at once instead of a place in the queue
    fault: str | None  # why the stream cannot go on: the connection must be closed
    pending: int
    def __init__(
        self, batch: Batch, latencies: Latencies, cluster: int, timeout: float
    ) -> None: ...
    @property
    def unsent_bytes(self) -> int: ...
    @property
    def overloaded(self) -> bool: ...
    def data_to_send(self, now: float) -> bytes:
        """Return what is queued and not handed out yet, and count it as sent."""
    def receive_data(self, data: Buffer, now: float) -> list[Orphan] | None:
        """Take bytes from the node; return the commands that must go elsewhere, in order."""
    def next_deadline(self) -> float:
        """Return the earliest deadline of what is queued, or infinity."""
    def expire(self, now: float) -> tuple[bool, list[Orphan]]:
        """Return (whether to close the connection, overdue commands to be answered)."""
    def connection_lost(self) -> list[Orphan]:
        """Return every command that will never be answered here, in order, and start afresh."""
