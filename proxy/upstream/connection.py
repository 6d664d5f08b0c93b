"""One socket to one node: what the event loop says, brought to a `wire.Upstream`.

The pool makes one per node, protocol version and lane; `Flusher` calls `flush` when its queue has
something to say, which opens the socket when it is closed. Always true:
  * commands leave only behind a handshake that the node has answered rightly: who we are, which
    protocol, and that it is the node that its cluster says lives at this address;
  * one write per loop iteration;
  * a connection whose position in the stream is in doubt, or whose oldest reply does not come, is
    closed and never used again. What it leaves unanswered goes to `Owner.orphaned`.
Where orphans go, and which node owns what, is left to the topology.
"""

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

from proxy import log, wire
from proxy.secret import Secret

# One read of a node's replies; shared by all connections of the process, because each read is
# taken apart before the next. 256 KiB is a full pipeline of replies and fits the CPU's cache.
RECEIVE_BYTES = 256 * 1024
_RECEIVED = memoryview(bytearray(RECEIVE_BYTES))

# A handshake is at most four short replies; more bytes than this is no Redis node.
HANDSHAKE_BYTES = 64 * 1024

# What a node says to anybody while it cannot serve.
NOT_READY = ("LOADING", "MASTERDOWN", "BUSY", "ERR max number of clients")

# First and longest pause between attempts to reach a node that is down, in seconds. The first is
# short because a restarted process is back within it; the longest is what a node that comes back
# after minutes waits, and costs nothing while it is down.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5

# A connection that the node closes sooner than this after the handshake was no good: the next
# attempt is paced as if this one had failed, or both sides would open and close all day.
STEADY = LONGEST_PAUSE  # seconds

# Deadlines are looked at no more often than this, in seconds: a tenth of what a late answer may
# be late. So much later than due, the loop was held up, and they wait for another turn: timers come
# before sockets, and answers may lie there unread.
GRAIN = 0.01
HELD_UP = 0.05


@dataclass(frozen=True)
class Endpoint:
    """How one node of a cluster is reached and recognised."""

    host: str
    port: int
    username: str | None
    password: Secret | None
    tls: ssl.SSLContext | None
    server_name: str | None
    node_id: str | None  # what CLUSTER MYID must say; None outside cluster mode
    timeout: float

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Loss(NamedTuple):
    """Why a connection ended or could not be opened."""

    kind: str  # "name" "refused" "timeout" "reset" "protocol" "authentication" "tls"
    text: str


_KINDS = {socket.gaierror: "name", ssl.SSLError: "tls", ConnectionRefusedError: "refused"}
CLOSED_BY_NODE = Loss("reset", "closed by the node")


class Owner(Protocol):
    """The topology, as a connection sees it."""

    def connected(self, connection: "UpstreamConnection") -> None: ...
    def disconnected(self, connection: "UpstreamConnection", loss: "Loss") -> None:
        """Hear that an open connection was lost or that an attempt to open one has failed."""

    def orphaned(self, connection: "UpstreamConnection", orphans: list[wire.Orphan]) -> None: ...


class _Line(asyncio.BufferedProtocol):
    """One socket. The loop calls it back later than we close it, and then it reaches nobody."""

    def __init__(self, connection: "UpstreamConnection") -> None:
        self.connection: UpstreamConnection | None = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.connection is None:
            cast(asyncio.Transport, transport).abort()
        else:
            self.connection.opened(cast(asyncio.Transport, transport))

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if self.connection is not None:
            self.connection.receive(_RECEIVED[:nbytes])

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self.connection is not None:
            loss = _loss_of(error) if isinstance(error, OSError) else CLOSED_BY_NODE
            self.connection.lost(loss)


class UpstreamConnection:
    """One socket to one node, opened when it is first needed and again whenever it is lost."""

    def __init__(
        self, endpoint: Endpoint, protocol: int, lane: int, upstream: wire.Upstream, owner: Owner
    ) -> None:
        self.endpoint = endpoint
        self.protocol = protocol
        self.lane = lane
        self.upstream = upstream
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._line: _Line | None = None
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._greeting: Greeting | None = None
        self._greeted = 0.0  # when the last handshake was answered rightly
        self.heard = 0.0  # when the node last said something
        self._greet_by: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pause = FIRST_PAUSE
        self._retired = False
        upstream.owner = self

    @property
    def ready(self) -> bool:
        return self._transport is not None and self._greeting is None

    # What the pool, the redirector and the flusher call.

    def flush(self, now: float) -> None:
        """Send what is queued, or open the socket for it when no attempt is waited for."""
        if self._transport is None:
            if self._retry is None:
                self.open()
        elif self._greeting is None and not self._transport.is_closing():
            # What would be written to a socket that the node has closed stays unsent instead.
            data = self.upstream.data_to_send(now)
            if data:
                self._transport.write(data)
        if self._deadline is None and self.upstream.pending:
            self._watch(self.upstream.next_deadline())

    def resubmit(self, orphan: wire.Orphan, asking: bool, train: wire.Train | None = None) -> None:
        """Queue a command of another connection; its deadline stays what it was."""
        orphan.resubmit(self.upstream, asking, train)
        self._watch(orphan.deadline)

    def open(self) -> None:
        """Start to connect, unless that is done or under way."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._line is None and not self._retired:
            self._line = _Line(self)
            self._opening = self._loop.create_task(self._open(self._line))

    def retire(self) -> None:
        """Close when what is queued is answered: the node has left its cluster.

        It may have run what it was sent, and what moved elsewhere it says itself, in order.
        """
        self._retired = True
        self.upstream.available = False
        if self.ready and self.upstream.pending:
            self.flush(time.monotonic())
        else:
            self.stop()

    def stop(self) -> None:
        """Close now and for good; what is unanswered goes to the owner."""
        self._retired = True
        self.upstream.available = False
        for waiting in (self._opening, self._deadline, self._retry):
            if waiting is not None:
                waiting.cancel()
        self._opening = self._deadline = self._retry = None
        self._let_go()
        self._orphan()

    def abort(self, loss: Loss) -> None:
        """Close at once: the position in the stream is in doubt."""
        if self._transport is not None:
            self.lost(loss)

    # What the socket calls.

    def opened(self, transport: asyncio.Transport) -> None:
        """Introduce ourselves on a new socket."""
        self._opening = None
        self._transport = transport
        self._greeting = Greeting(self.endpoint, self.protocol)
        self._greet_by = self._loop.call_later(self.endpoint.timeout, self._greet_too_late)
        transport.write(self._greeting.commands())

    def receive(self, data: memoryview) -> None:
        """Take bytes from the node."""
        if self._greeting is not None:
            self._greet(bytes(data))
            return
        self.heard = time.monotonic()
        orphans = self.upstream.receive_data(data, self.heard)
        if orphans is not None:
            self._owner.orphaned(self, orphans)
        if self.upstream.fault is not None:
            self.abort(Loss("protocol", self.upstream.fault))
        elif self._retired and not self.upstream.pending:
            self.stop()

    def lost(self, loss: Loss) -> None:
        """Tell the owner, then try to be there again before anybody has to wait for it."""
        if self._greeting is not None or self._transport is None:
            self._failed(loss)
            return
        self._let_go()
        if not self._retired:
            self._owner.disconnected(self, loss)
        self._orphan()
        if self._loop.time() - self._greeted < STEADY:
            self._open_later()
        else:
            self._pause = FIRST_PAUSE
            self.open()

    async def _open(self, line: _Line) -> None:
        endpoint = self.endpoint
        try:
            async with asyncio.timeout(endpoint.timeout):
                await self._loop.create_connection(
                    lambda: line,
                    endpoint.host,
                    endpoint.port,
                    ssl=endpoint.tls,
                    server_hostname=endpoint.server_name if endpoint.tls else None,
                )
            return
        except TimeoutError:
            loss = Loss("timeout", f"no connection within {endpoint.timeout:g} s")
        except OSError as error:
            loss = _loss_of(error)
        except ValueError as error:
            loss = Loss("name", str(error))
        # The socket may have been made and lost in the same turn of the loop: that was told.
        if self._line is line:
            self._failed(loss)

    def _failed(self, loss: Loss) -> None:
        """Give up what waits, tell the owner, and try again later."""
        self._let_go()
        self.upstream.available = False
        if not self._retired:
            self._owner.disconnected(self, loss)
        self._orphan()
        self._open_later()

    def _open_later(self) -> None:
        if not self._retired:
            self._retry = self._loop.call_later(self._pause, self.open)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _let_go(self) -> None:
        """Have no socket."""
        if self._line is not None:
            self._line.connection = None
        if self._transport is not None:
            self._transport.abort()
        if self._greet_by is not None:
            self._greet_by.cancel()
        self._line = self._transport = self._opening = self._greeting = self._greet_by = None

    def _orphan(self) -> None:
        if orphans := self.upstream.connection_lost():
            self._owner.orphaned(self, orphans)

    def _watch(self, deadline: float) -> None:
        """Look at the deadlines then, if that is not done earlier."""
        if deadline == math.inf:
            return
        # What is overdue and keeps its place would otherwise be looked at in every turn; what is
        # queued meanwhile may have an earlier deadline.
        now = self._loop.time()
        when = min(max(deadline, now + GRAIN), now + wire.LOOKUP_SECONDS)
        if self._deadline is not None:
            if self._deadline.when() <= when:
                return
            self._deadline.cancel()
        self._deadline = self._loop.call_at(when, self._expire, when)

    def _expire(self, due: float = math.inf) -> None:
        """Answer what is overdue; close when the node owes the oldest answer for too long."""
        now = self._loop.time()
        if now - due > HELD_UP:
            self._deadline = self._loop.call_later(GRAIN, self._expire)
            return
        self._deadline = None
        stuck, overdue = self.upstream.expire(now)
        if overdue:
            self._owner.orphaned(self, overdue)
        if stuck:
            self.abort(Loss("timeout", f"no whole reply in time ({self.endpoint.timeout:g} s)"))
        elif self.upstream.pending:
            self._watch(self.upstream.next_deadline())

    def _greet_too_late(self) -> None:
        self.abort(Loss("timeout", f"no handshake within {self.endpoint.timeout:g} s"))

    def _greet(self, data: bytes) -> None:
        assert self._greeting is not None
        try:
            if not self._greeting.receive(data):
                return
        except Refusal as error:
            self.abort(Loss(error.kind, str(error)))
            return
        except ValueError as error:
            self.abort(Loss("protocol", str(error)))
            return
        assert self._greet_by is not None
        self._greet_by.cancel()
        self._greeting = self._greet_by = None
        self._greeted = self._loop.time()
        self.upstream.available = True
        self._owner.connected(self)
        self.flush(time.monotonic())


def _loss_of(error: OSError) -> Loss:
    kind = next((kind for cause, kind in _KINDS.items() if isinstance(error, cause)), "reset")
    return Loss(kind, str(error) or type(error).__name__)


class Refusal(ValueError):
    """The node does not want us, or is not the one that was meant."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Greeting:
    """What is said first on a new connection, and what the node must answer."""

    def __init__(self, endpoint: Endpoint, protocol: int) -> None:
        self._endpoint = endpoint
        self._received = b""
        self._steps: list[tuple[bytes, Callable[[bytes], None]]] = []
        secret = endpoint.password.reveal().encode() if endpoint.password else None
        login = [(endpoint.username or "default").encode(), secret] if secret is not None else []
        if protocol == 3:
            words = [b"HELLO", b"3", *([b"AUTH", *login] if login else [])]
            self._steps.append((wire.pack(words), _expect_no_error))
        elif secret is not None:
            words = login if endpoint.username else [secret]
            self._steps.append((wire.pack([b"AUTH", *words]), _expect_no_error))
        self._steps.append((wire.pack([b"CLIENT", b"SETNAME", b"sidecache"]), _ignore))
        if endpoint.node_id is not None:
            self._steps.append((wire.pack([b"CLUSTER", b"MYID"]), self._expect_id))
        else:
            self._steps.append((wire.pack([b"PING"]), _expect_no_error))

    def commands(self) -> bytes:
        return b"".join(command for command, _ in self._steps)

    def receive(self, data: bytes) -> bool:
        """Return whether all is answered rightly. Raises ValueError, Refusal among them, if not."""
        self._received += data
        while self._steps:
            end = wire.frame_end(self._received, 0)
            if end < 0:
                if len(self._received) > HANDSHAKE_BYTES:
                    raise ValueError("the answer to the handshake does not end")
                return False
            reply, self._received = self._received[:end], self._received[end:]
            self._steps.pop(0)[1](reply)
        if self._received:
            raise ValueError("the node said more than it was asked")
        return True

    def _expect_id(self, reply: bytes) -> None:
        _expect_no_error(reply)
        # A pod's address may have passed to a node of another cluster: writes would go into
        # somebody else's data, and clusters that meet merge.
        told = reply.split(b"\r\n")[1].decode("ascii", "replace") if reply[:1] in b"$=" else ""
        if told.removeprefix("txt:") != self._endpoint.node_id:
            raise Refusal("protocol", "another node lives at this address")


def _expect_no_error(reply: bytes) -> None:
    if reply[:1] in b"-!":
        words = reply[1:129].decode("ascii", "backslashreplace").strip()
        # A node that is not ready yet says so here too, and nobody has to look at a password.
        kind = "refused" if words.startswith(NOT_READY) else "authentication"
        raise Refusal(kind, f"the node refuses the handshake: {words}")


def _ignore(reply: bytes) -> None:
    """An ACL may forbid CLIENT SETNAME; the name is only for people."""


class Flusher:
    """Writes once per loop iteration whatever nodes and clients have waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.batch = wire.Batch(self._schedule)

    def _schedule(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        # Clients first: sending replies makes room, and what they had to hold back goes to the
        # nodes in the same iteration.
        for downstream in self.batch.take_ready():
            session = downstream.owner
            try:
                if session is not None:
                    session.flush()
            except Exception as error:
                # What fails for one client must not stop the others, nor the next iteration.
                log.event(log.ERROR, "flush_failed", error=error)
                session.close("failed")
        now = time.monotonic()
        for upstream in self.batch.take_touched():
            connection = upstream.owner
            try:
                if connection is not None:
                    connection.flush(now)
            except Exception as error:
                log.event(log.ERROR, "flush_failed", error=error)
                connection.abort(Loss("protocol", "sending failed"))
