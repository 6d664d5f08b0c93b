"""The slow path: what answers a `wire.Request`, one function per command.

The session looks a handler up by `Request.name` in `table.HANDLERS` and calls it once. A handler
returns the reply bytes, or an awaitable of them; what it does before returning, such as queueing
its parts, happens in the client's order.

Always true: a handler raises for nothing that a client or a node can send; errors are reply bytes
from `proxy.errors`. Handlers know the session and the server only through the protocols below.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy import wire
from proxy.config import Config
from proxy.handlers.bonds import Bonds
from proxy.handlers.budget import FailureBudget
from proxy.handlers.cursors import Scans
from proxy.handlers.glimpse import SlowLog
from proxy.handlers.grants import Grants
from proxy.handlers.reading import Reads
from proxy.handlers.runs import Runs
from proxy.handlers.shelf import Shelf
from proxy.origin.behind import WriteBehind
from proxy.origin.postgres import Postgres
from proxy.upstream.pool import Pools
from proxy.wire.rules import Pause

# The oldest node that is supported, because clients switch features on by this number: a newer
# one would promise commands that a node may not have.
REDIS_VERSION = "7.0.15"


class Applied(Protocol):
    """How far what changes in PostgreSQL has come to one cluster."""

    @property
    def leading(self) -> bool:
        """Return whether this sidecar invalidates for all; of another's work nothing is known."""

    @property
    def lag(self) -> float:
        """Return for how many seconds something has been left to do."""

    @property
    def owed(self) -> int:
        """Return how many keys wait for their shards."""

    @property
    def position(self) -> int: ...
    @property
    def changes(self) -> int: ...
    @property
    def replays(self) -> int: ...


@dataclass(frozen=True)
class ClusterStatistics:
    """One cluster as INFO shows it."""

    name: str
    available: bool
    state: str  # "up", or what it is and how many of its shards are
    nodes: int
    maxmemory_policy: str  # what its primaries say, or "unknown"
    invalidation: Applied | None = None  # None where no database is configured


@dataclass(frozen=True)
class RuleStatistics:
    """Which rules are in force."""

    mark: str = ""  # a short hash of their files; none where there are none
    since: float = 0.0  # when they were taken, in seconds of time.time()
    mistakes: tuple[str, ...] = ()  # why the files of the last reload are not in force


@dataclass(frozen=True)
class Statistics:
    """What INFO tells about this process; counts since it started, or since CONFIG RESETSTAT."""

    version: str
    clients: int
    connections_received: int
    connections_rejected: int
    commands_processed: int
    errors: int  # replies of nodes that were errors,
    refusals: int  # and commands that were answered with an error here
    maxmemory_policy: str  # of the default cluster
    clusters: tuple[ClusterStatistics, ...]
    rules: RuleStatistics = RuleStatistics()
    postgres: str = ""  # "up" or "down"; nothing where no database is configured
    behind: str = ""  # what is written behind: see `origin.behind`; nothing without a journal


class Monitors(Protocol):
    """The clients that watch what others send."""

    def join(self, session: "Session") -> None: ...
    def leave(self, session: "Session") -> None: ...


class Pauses(Protocol):
    """What CLIENT PAUSE holds back."""

    def begin(self, kind: Pause, seconds: float, clients: Iterable["Session"]) -> None: ...
    def end(self) -> None: ...


class Refusals(Protocol):
    """What clients were refused for want of a right."""

    def note(self, session: "Session", reason: str, name: bytes, user: str | None = None) -> None:
        """Note a refusal and its name; reason: "command" "key" "channel", "auth" for a user."""

    def entries(self, session: "Session", most: int) -> list[dict[str, object]]:
        """Return the newest ones that a client may hear of, as ACL LOG shows them."""

    def forget(self, session: "Session") -> None:
        """Drop those."""


class Server(Protocol):
    """The process as a handler sees it."""

    @property
    def config(self) -> Config: ...
    @property
    def started(self) -> float:
        """Return when the process started, in seconds of time.time()."""

    @property
    def run_id(self) -> str:
        """Return 40 hexadecimal digits that no other run has."""

    @property
    def router(self) -> wire.Router: ...
    @property
    def sessions(self) -> Mapping[int, "Session"]: ...
    @property
    def latencies(self) -> wire.Latencies: ...
    @property
    def slowlog(self) -> SlowLog: ...
    @property
    def monitors(self) -> Monitors: ...
    @property
    def pauses(self) -> Pauses: ...
    @property
    def failures(self) -> FailureBudget: ...
    @property
    def refusals(self) -> Refusals: ...
    @property
    def scripts(self) -> Shelf:
        """Return the bodies of scripts by their SHA1 in hexadecimal, lower case."""

    @property
    def libraries(self) -> Shelf:
        """Return the code of libraries of functions by their names."""

    @property
    def scans(self) -> Scans: ...
    @property
    def bonds(self) -> Bonds:
        """Return what clients have written that goes when they do."""

    @property
    def batch(self) -> wire.Batch: ...
    @property
    def behind(self) -> WriteBehind | None:
        """Return what is written to PostgreSQL later, where a journal is configured."""

    @property
    def postgres(self) -> Postgres | None: ...
    @property
    def reads(self) -> Reads | None:
        """Return what is read from PostgreSQL for clients, where a database is configured."""

    @property
    def grants(self) -> Grants | None:
        """Return what takes locks about which PostgreSQL decides, where there is a database."""

    @property
    def pools(self) -> Pools:
        """Return the nodes of all clusters, for what needs a connection of its own."""

    @property
    def handlers(self) -> Mapping[bytes, "Handler"]:
        """Return every handler by the name of its command's row."""

    def statistics(self) -> Statistics: ...
    def reset_statistics(self) -> None: ...


class Holding(Protocol):
    """What a client holds beyond its connection: a transaction, a pin, subscriptions, a wait."""

    flag: str  # the letter of CLIENT LIST: "x" "b" "P" "O"; empty for none

    @property
    def counts(self) -> Mapping[str, int]:
        """Return what CLIENT LIST counts: "multi" "watch" "sub" "psub" "ssub"."""

    def release(self) -> None:
        """Give it up at once: its client resets or has gone."""


class Mode(Protocol):
    """Another meaning of commands, for one client and a while: what MULTI or SUBSCRIBE begins."""

    def take(self, session: "Session", request: wire.Request) -> bytes | Awaitable[bytes]: ...


class Session(Protocol):
    """One client as a handler sees it."""

    holdings: dict[str, Holding]  # by kind: one of each; released at RESET and when it goes
    queued_bytes: int  # of what has been queued since MULTI
    mode: Mode | None  # None: commands mean what the table of handlers says
    database: int  # chosen with SELECT
    name: bytes
    library: tuple[bytes, bytes]
    clustered: bool  # came in by the listener that shows a cluster
    closing: bool  # close as soon as the replies that are ready are sent
    failed_auth: bool  # has given a wrong password, whatever it did since

    @property
    def id(self) -> int: ...
    @property
    def gone(self) -> bool:
        """Return whether the client has closed its end, as far as the system knows by now."""

    @property
    def user(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    @property
    def created(self) -> float:
        """Return when the client connected, in seconds of time.time()."""

    @property
    def active(self) -> float:
        """Return when the client last sent something, on the clock of `Request.received`."""

    @property
    def peer(self) -> str: ...
    @property
    def local(self) -> str: ...
    @property
    def downstream(self) -> wire.Downstream: ...
    @property
    def default_cluster(self) -> int:
        """Return the index of the cluster of keys that match no keyspace, in this database."""

    @property
    def runs(self) -> Runs:
        """Return the scripts and functions of this client that are on their way."""

    @property
    def server(self) -> Server: ...
    def authenticate(self, user: str) -> None: ...
    def deauthenticate(self) -> None: ...
    def switch_protocol(self, version: int) -> None: ...
    def push(self, data: bytes) -> None:
        """Send something that answers nothing; a client that leaves too much unread is closed."""

    def flush(self) -> None:
        """Send the replies that are ready, and take what was held back."""

    def reset(self) -> None:
        """Return to the state of a new connection; the library's name and version stay."""

    def close(self, reason: str = "killed") -> None:
        """Close now, whatever is under way."""

    def finish(self, reason: str) -> None:
        """Close once everything that was taken is answered."""


Handler = Callable[[Session, wire.Request], bytes | Awaitable[bytes]]
