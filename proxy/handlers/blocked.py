"""Clients that wait: the holding "blocked", and who ends it before its time.

`blocking` and `replicas` make a `Blocked` for as long as a command waits on connections of its own.
It ends by the node's reply, by CLIENT UNBLOCK, when its client goes, or when the process drains.

Always true: whoever ends a wait has the node end it, and takes the node's reply as the truth, so
an element that is taken in the same moment is delivered or accounted for; later commands of the
client are not looked at while it waits.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.upstream.dedicated import Pin, Reply
from proxy.upstream.redirects import PAUSE

# How long a wait lasts whose client has closed its end, in seconds since it began. Redis answers
# what it has at once, and then takes such an end for the client's going; a node needs a moment.
MOMENT = 0.05

TIMEOUT = b"TIMEOUT"
ERROR = b"ERROR"


class Blocked:
    """One client that waits."""

    flag = "b"
    counts: Mapping[str, int] = {}

    def __init__(self, session: Session, connections: int = 1) -> None:
        """Begin to wait on so many connections, which are claimed already."""
        self.session = session
        self.pins = session.server.pools.pins
        self.gone = False  # nobody is there to take the reply
        self.ended = False  # by what called it off, and not by the node in the same moment
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._connections = connections
        self._how: asyncio.Future[bytes] = self._loop.create_future()
        self._outcome: asyncio.Future[bool] = self._loop.create_future()
        session.holdings["blocked"] = self
        session.downstream.hold()
        if session.gone:
            self.leave_soon()

    @property
    def abandoned(self) -> bool:
        """Return whether the client is not there to take the reply."""
        return self.gone or (self.session.gone and self._loop.time() >= self._began + MOMENT)

    @property
    def called_off(self) -> bool:
        return self._how.done()

    @property
    def called_off_reply(self) -> bytes:
        """Return what the client gets where no node was there to end the wait."""
        if self._how.done() and self._how.result() == ERROR:
            return errors.UNBLOCKED
        return resp.null_array(self.session.protocol)

    def release(self) -> None:
        self.gone = True
        self.call_off(TIMEOUT)

    def abandon(self) -> asyncio.Future[bool]:
        """End the wait of a client that is closed; return what is done when it has ended."""
        self.release()
        return self._outcome

    def leave_soon(self) -> None:
        """Hear that the client has closed its end: it gets what comes in a moment, and is gone."""
        self._loop.call_at(self._began + MOMENT, self.leave)

    def leave(self) -> None:
        """End the wait of a client that is gone; what it was answered before may be on its way."""
        if not self._outcome.done():
            self.release()
            self.session.finish("client")

    def call_off(self, how: bytes) -> None:
        """End the wait: as if its time were over, or with an error."""
        if not self._how.done():
            self._how.set_result(how)

    async def unblock(self, how: bytes) -> bool:
        """End the wait; return whether that is what ended it."""
        self.call_off(how)
        return await asyncio.shield(self._outcome)

    def end(self) -> None:
        """Let the client go on."""
        self._outcome.set_result(self.ended)
        self.pins.disclaim("blocked", self._connections)
        if self.session.holdings.get("blocked") is self:
            del self.session.holdings["blocked"]
        self.session.downstream.release()

    async def pause(self, seconds: float) -> None:
        await asyncio.wait({self._how}, timeout=seconds)

    async def wait_on(self, pin: Pin, command: bytes, deadline: float) -> Reply:
        """Send a command that waits and give its connection back; return the node's reply."""
        reply = pin.ask(command, deadline)
        either: set[asyncio.Future[Any]] = {reply, self._how}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # Two words about one connection could cross: what was called off is not used again.
        clean = not self.called_off
        if not reply.done():
            await self._end_at_node(pin, reply)
        self.pins.give_back(pin, clean)
        return await reply

    async def _end_at_node(self, pin: Pin, reply: asyncio.Future[Reply]) -> None:
        """Have the node end the wait; close the connection where it does not."""
        give_up = self._loop.time() + pin.endpoint.timeout
        while pin.ready and not reply.done() and self._loop.time() < give_up:
            # The word may overtake the command that it speaks of, so it is said again.
            self.ended |= await self.pins.unblock(pin, self._how.result())
            await asyncio.wait({reply}, timeout=PAUSE)
        if not reply.done():
            pin.close()


def crowded(session: Session, connections: int = 1) -> bool:
    """Return whether too many clients wait already; if not, so many connections are claimed."""
    most = session.server.config.limits.blocked
    return not session.server.pools.pins.claim("blocked", connections, most)


def blocked_by(session: Session) -> Blocked | None:
    """Return what a client waits for, if it does."""
    held = session.holdings.get("blocked")
    return held if isinstance(held, Blocked) else None


def unblock(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """CLIENT UNBLOCK: as in CLIENT KILL, other users' clients do not exist."""
    words = request.arguments
    if len(words) > 4:
        return errors.SYNTAX
    how = words[3].upper() if len(words) == 4 else TIMEOUT
    if how not in (TIMEOUT, ERROR):
        return errors.UNBLOCK_REASON
    number = integer(words[2])
    if number is None:
        return errors.NOT_AN_INTEGER
    other = session.server.sessions.get(number)
    wait = blocked_by(other) if other is not None and other.user == session.user else None
    if wait is None:
        return resp.integer(0)
    return _unblocked(wait, how)


async def _unblocked(wait: Blocked, how: bytes) -> bytes:
    return resp.integer(await wait.unblock(how))


HANDLERS: dict[bytes, Handler] = {b"client|unblock": unblock}
