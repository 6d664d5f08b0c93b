"""The slow path: what answers a `wire.Request`, one function per command.

The session looks a handler up by `Request.name` in `table.HANDLERS` and calls it once. A handler
returns the reply bytes, or an awaitable of them; what it does before returning, such as queueing
its parts, happens in the client's order.

Always true: a handler raises for nothing that a client or a node can send; errors are reply bytes
from `proxy.errors`. Handlers know the session and the server only through the protocols below.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy import wire
from proxy.config import Config
from proxy.handlers.budget import FailureBudget

# The oldest node that is supported, because clients switch features on by this number: a newer
# one would promise commands that a node may not have.
REDIS_VERSION = "7.0.15"


@dataclass(frozen=True)
class ClusterStatistics:
    """One cluster as INFO shows it."""

    name: str
    available: bool
    nodes: int
    maxmemory_policy: str


@dataclass(frozen=True)
class Statistics:
    """What INFO tells about this process."""

    version: str
    clients: int
    connections_received: int
    connections_rejected: int
    commands_processed: int
    maxmemory_policy: str  # of the default cluster
    clusters: tuple[ClusterStatistics, ...]


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
    def failures(self) -> FailureBudget: ...
    def statistics(self) -> Statistics: ...


class Session(Protocol):
    """One client as a handler sees it."""

    name: bytes
    library: tuple[bytes, bytes]
    closing: bool  # close as soon as the replies that are ready are sent

    @property
    def id(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    @property
    def created(self) -> float:
        """Return when the client connected, in seconds of time.time()."""

    @property
    def peer(self) -> str: ...
    @property
    def local(self) -> str: ...
    @property
    def downstream(self) -> wire.Downstream: ...
    @property
    def server(self) -> Server: ...
    def authenticate(self, user: str) -> None: ...
    def deauthenticate(self) -> None: ...
    def switch_protocol(self, version: int) -> None: ...
    def reset(self) -> None:
        """Return to the state of a new connection; the library's name and version stay."""

    def close(self) -> None:
        """Close now, because another client asked for it."""


Handler = Callable[[Session, wire.Request], bytes | Awaitable[bytes]]
