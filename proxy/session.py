"""One client connection.

A Session joins a transport to a `wire.Downstream` and remembers who the client is. The server
creates it on accept; handlers get it as their first argument.

Always true:
  * every Request taken from the wire is answered exactly once, or the connection is closed;
  * nothing here looks at a command: judging belongs to wire, meaning to handlers;
  * reading stops while the client has more in flight than its window, or does not read its replies;
  * what was received is answered before a close, unless the client itself is gone or in the way.

Deadlines of nodes are not ours: `upstream.connection` owns them.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Protocol, cast

from proxy import errors, handlers, log, sockets, wire
from proxy.handlers import Holding, Mode, backed, bound
from proxy.handlers.blocked import blocked_by
from proxy.handlers.runs import Runs
from proxy.memory import Begun, Unread
from proxy.metrics import Metrics
from proxy.output import OUTPUT_HIGH, OUTPUT_LOW, STRANGER_BYTES, Output
from proxy.wire.rules import Reason

# One read from a client; shared by all sessions, because each read is taken apart before the next.
# 64 KiB is a deep pipeline of small commands. The event loop makes up to 32 reads of one client
# before it turns to the next, so more would let one client hold up the others.
RECEIVE_BYTES = 64 * 1024
_RECEIVED = memoryview(bytearray(RECEIVE_BYTES))

# Unparsed bytes of a blocked client above which nothing more is read from its socket.
HELD_BYTES = 64 * 1024

# Before AUTH nobody needs to send more at once.
_STRANGE = _RECEIVED[:STRANGER_BYTES]

# How long a client that is to go, and has been sent all, may take to close its end, in seconds.
# What it still sends until then is read and dropped: a close before would take replies back.
LINGER = 1.0


class Server(handlers.Server, Protocol):
    """The process, as a session sees it: what handlers see, and more."""

    unread: Unread
    begun: Begun

    @property
    def sessions(self) -> "Mapping[int, Session]": ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def tasks(self) -> set[asyncio.Future[Any]]:
        """Return what is waited for before the process ends, whoever has gone meanwhile."""

    def admit(self, session: "Session") -> bytes | None:
        """Take a new session in, or return the error line with which it is turned away."""

    def dismiss(self, session: "Session", reason: str) -> None: ...
    def role_of(self, user: str) -> str | None: ...
    def first_user(self) -> str | None:
        """Return whom a client counts as before AUTH, if it may do anything then."""

    def estrange(self, session: "Session") -> None:
        """Hear that a client has to authenticate, soon."""


class Session(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, number: int, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.id = number
        self.server = server
        self.downstream = wire.Downstream(server.router, server.batch, number)
        self.downstream.owner = self
        self.name = b""
        self.library = (b"", b"")
        self.user = ""
        self.created = time.time()
        self.peer = self.local = "?"
        self.clustered = False
        self.closing = self.failed_auth = False
        self.database = 0
        self.holdings: dict[str, Holding] = {}
        self.queued_bytes = 0
        self.mode: Mode | None = None
        self.active = loop.time()  # when the client last sent something
        self.stranger_since = 0.0  # when it began to be nobody
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._delayed = False  # sending waits for the next turn of the loop
        self._output = Output(self, server.unread)
        self._ended = False  # the client has sent all it will
        self._leaving = False  # it is closed as soon as it is owed nothing
        self._deaf = False  # and taken nothing more from when it is owed something
        self._lingering = False  # it has been told so, and nothing is taken any more
        self._runs: Runs | None = None  # made for the first script
        self._reason = "client"

    @property
    def protocol(self) -> int:
        return self.downstream.protocol

    @property
    def default_cluster(self) -> int:
        chosen = self.downstream.default_cluster
        return chosen if chosen >= 0 else self.downstream.ruleset.default_cluster

    @property
    def runs(self) -> Runs:
        if self._runs is None:
            self._runs = Runs(self.downstream)
        return self._runs

    @property
    def gone(self) -> bool:
        """Return whether the client has closed its end; the loop may not have heard of it yet."""
        return self._transport is None or sockets.has_ended(self._transport)

    @property
    def idle(self) -> bool:
        """Return whether nothing that this client sent in full is under way."""
        downstream = self.downstream
        return not (downstream.pending or downstream.blocked or self.unread_bytes)

    @property
    def amid_request(self) -> bool:
        """Return whether the client has sent the beginning of a request."""
        return self.downstream.held_bytes > 0 or self.downstream.passing

    @property
    def begun_bytes(self) -> int:
        """Return the bytes of a request that is not whole, and of those behind an open MULTI."""
        return self.downstream.held_bytes + self.queued_bytes

    @property
    def unread_bytes(self) -> int:
        """Return the bytes of replies that the client has not taken yet."""
        return self._output.unread_bytes

    # Identity, changed by handlers.

    def authenticate(self, user: str) -> None:
        self.user = user
        self.downstream.user = user.encode()
        self.downstream.assume(self.server.role_of(user))
        self._output.set_marks()

    def deauthenticate(self) -> None:
        """Return to the identity of a client that has just connected."""
        user = self.server.first_user()
        if user is not None:
            self.authenticate(user)
            return
        self.user = ""
        self.downstream.assume(None)
        self.stranger_since = self._loop.time()
        self.server.estrange(self)
        self._output.set_marks()

    def switch_protocol(self, version: int) -> None:
        self.downstream.protocol = version

    def reset(self) -> None:
        """Return to the state of a new connection; the library's name and version stay."""
        self._release()
        self.downstream.silence = 0
        self.name = b""
        self.database, self.downstream.default_cluster = 0, -1
        self.switch_protocol(2)
        self.deauthenticate()

    def push(self, data: bytes) -> None:
        """Send something that answers nothing; a client that leaves too much unread is closed."""
        self.downstream.push(data)
        if self.unread_bytes > OUTPUT_HIGH:
            self.count_unread()

    def close(self, reason: str = "killed") -> None:
        """Close now, whatever is under way."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def finish(self, reason: str) -> None:
        """Close once everything that was taken is answered."""
        if self._lingering:
            return
        idle = self.idle
        self._reason = reason
        self.closing = True
        self.downstream.finish()
        if idle and self._transport is not None:
            # Nothing is on its way to who has been silent: there is nothing to wait for.
            self._transport.close()
        else:
            self._close_if_done()

    def leave(self, *, deaf: bool) -> None:
        """Close in the turn that gives the client its last answer: later its next request may come.

        Who never waits is owed one all the time: `deaf` then takes no more than is under way.
        """
        self._leaving = True
        self._deaf = deaf
        self._turn_away()

    def _turn_away(self) -> None:
        """Read no more from a client that is to go and is owed something."""
        owed = self._deaf and not self.closing and not self.idle
        if owed and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._output.attach(self._transport)
        name = transport.get_extra_info("peername")
        self.peer = sockets.address(name)
        self.downstream.address = str(name[0]).encode() if isinstance(name, tuple) else b""
        self.local = sockets.address(transport.get_extra_info("sockname"))
        refusal = self.server.admit(self)
        if refusal is not None:
            self._transport.write(refusal)
            self._transport.close()
            self._part()
            return
        self.deauthenticate()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED if self.downstream.role_name is not None else _STRANGE

    def buffer_updated(self, nbytes: int) -> None:
        self._take(_RECEIVED[:nbytes])

    def eof_received(self) -> bool:
        """Keep the connection while replies are owed: a half-close asks for them, not for less."""
        self._ended = True
        if (wait := blocked_by(self)) is not None:
            wait.leave_soon()
        self._close_if_done()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:
            return
        self._part()
        for request in self.downstream.take_deferred():
            bound.note(self, request)
        self._release()
        self.server.dismiss(self, self._reason)

    def _part(self) -> None:
        """Forget the connection."""
        self._transport = None
        self._output.detach()
        self.downstream.connection_lost()

    def _release(self) -> None:
        """Give up what the client holds beyond its connection."""
        holdings, self.holdings = self.holdings, {}
        self.mode = None
        self.downstream.capture = self.downstream.serial = False
        for holding in holdings.values():
            holding.release()

    def pause_writing(self) -> None:
        self._output.count()

    def resume_writing(self) -> None:
        self._output.resume()
        self._go_on()

    def count_unread(self) -> None:
        """Tell the server what is unread, and take no more from a client that leaves too much."""
        self._output.count()

    # The way of a command.

    def _take(self, data: memoryview | bytes) -> None:
        """Give bytes to the wire and its Requests to their handlers."""
        downstream = self.downstream
        # The loop's own clock stands still within an iteration, and counts milliseconds.
        now = self.active = time.monotonic()
        request = downstream.receive_data(data, now)
        while request is not None:
            self._handle(request)
            if self.closing and not downstream.closing:
                # A handler has said goodbye.
                self._reason = "quit" if self._reason == "client" else self._reason
                downstream.finish()
            if downstream.output_bytes > OUTPUT_LOW:
                # What is answered at once has no window: who does not read it is answered no more.
                self._output.send()
                self.count_unread()
            request = downstream.receive_data(b"", now)
        if downstream.output_bytes > OUTPUT_LOW or downstream.role_name is None:
            self._output.send()
        if (begun := self.begun_bytes) > RECEIVE_BYTES:
            self.server.begun.count(self, begun)
        if downstream.blocked and self._reading and self._holds_much():
            self._reading = False
            if self._transport is not None:
                self._transport.pause_reading()
        self._turn_away()
        if self._ended or downstream.closing:
            self._close_if_done()

    def _handle(self, request: wire.Request) -> None:
        """Answer a Request, now or when its handler is done."""
        try:
            if request.reason == Reason.STALE:
                backed.refresh(self, request)
                return
            if request.reason == Reason.BOUND:
                bound.note(self, request)
                return
            if request.reason != Reason.TABLE:
                reply = backed.take(self, request)
            elif self.mode is None:
                reply = backed.handled(self, request)
            else:
                reply = self.mode.take(self, request)
        except Exception as error:
            reply = _failed(request, error)
        if isinstance(reply, bytes):
            self.downstream.answer(request, reply)
            return
        if isinstance(reply, asyncio.Future):
            # Ten thousand may wait for the same; a task for each would cost more than the answer.
            reply.add_done_callback(partial(self._answer_told, request))
            task: asyncio.Future[Any] = reply
        else:
            task = self._loop.create_task(self._answer_later(request, reply))
        self.server.tasks.add(task)
        task.add_done_callback(self.server.tasks.discard)

    def _answer_told(self, request: wire.Request, reply: asyncio.Future[bytes]) -> None:
        if reply.cancelled():
            return
        error = reply.exception()
        line = reply.result() if error is None else _failed(request, error)
        self.downstream.answer(request, line)

    async def _answer_later(self, request: wire.Request, reply: Awaitable[bytes]) -> None:
        try:
            line = await reply
        except Exception as error:
            line = _failed(request, error)
        self.downstream.answer(request, line)

    def flush(self) -> None:
        """Send the replies that are ready, and take what was held back for want of room."""
        if self.downstream.pending and not self._delayed:
            # The nodes of one pipeline answer within a turn of the loop of each other: waiting for
            # one turn, and no longer, saves every fourth write to a client.
            self._delayed = True
            self._loop.call_soon(self.flush)
            return
        self._delayed = False
        # What is answered at once lets those behind it come to be.
        while deferred := self.downstream.take_deferred():
            for request in deferred:
                self._handle(request)
        self._output.send()
        if self._transport is None:
            return
        if self.downstream.blocked:
            self._go_on()
        if (
            self._leaving
            and self.idle
            and not (self._reading and sockets.has_more(self._transport))
        ):
            self._reason, self.closing = "drain", True
            self.downstream.finish()
        if self.closing or self._ended or self.downstream.closing:
            self._close_if_done()

    def _go_on(self) -> None:
        if self.downstream.resumable:
            self._take(b"")
        # Not blocked and holding much is the beginning of a large request: the rest must come in.
        held = self._deaf or (self.downstream.blocked and self._holds_much())
        if not self._reading and not held:
            self._reading = True
            if self._transport is not None:
                self._transport.resume_reading()

    def _holds_much(self) -> bool:
        stranger = self.downstream.role_name is None
        return self.downstream.held_bytes > (STRANGER_BYTES if stranger else HELD_BYTES)

    def _close_if_done(self) -> None:
        """Close when the client is owed nothing and will be taken nothing from."""
        downstream = self.downstream
        owed = downstream.pending or downstream.output_bytes
        leaving = not downstream.blocked if self._ended else self.closing
        if self._transport is None or owed or not (leaving or downstream.closing):
            return
        if downstream.closing and not self.closing:
            self._reason = "protocol"
        if self._ended or not self._transport.can_write_eof():
            # The transport sends what it still holds before it closes.
            self._transport.close()
        elif not self._lingering:
            self._linger(self._transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Say that nothing more comes, and close when the client has closed its end, or soon."""
        self._lingering = True
        transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        unsent = transport.get_write_buffer_size()
        self._loop.call_later(LINGER, self._hang_up, self._loop.time(), unsent)

    def _hang_up(self, since: float, unsent: int) -> None:
        """Close who has had a moment since it was sent everything, or has long read nothing."""
        if self._transport is None:
            return
        now, left = self._loop.time(), self._transport.get_write_buffer_size()
        if not unsent or now - since > self.server.config.limits.output_seconds:
            self.close(self._reason)
            return
        self._loop.call_later(LINGER, self._hang_up, since if left == unsent else now, left)


def _failed(request: wire.Request, error: BaseException) -> bytes:
    """Log what a handler raised, which it never should, and return the line for its client."""
    log.event(log.ERROR, "handler_failed", error=error, command=request.name.decode())
    return errors.INTERNAL
