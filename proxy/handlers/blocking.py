"""Commands that wait for data: BLPOP and its kin, XREAD and XREADGROUP with BLOCK.

Each waits on a connection of its own to the owner of its slot. Always true:
  * what the same client sent before has taken effect when the node hears the command;
  * a wait that its node could not go on with, because the slot moved or the primary became a
    replica, goes on elsewhere for the time that is left; one whose node was lost goes on only for
    XREAD, which takes nothing;
  * `$` is the end of the stream when the command came, however often it is sent;
  * what was taken for a client that had gone meanwhile is given to `undelivered`.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from proxy import errors, resp, wire
from proxy.commands import INDEX
from proxy.handlers import Handler, Session
from proxy.handlers.blocked import Blocked, crowded
from proxy.handlers.forward import ask, followers, locate_all
from proxy.handlers.renamed import (
    STREAM_VALUES,
    Names,
    error_names,
    popped_names,
    stream_names,
    streams,
)
from proxy.handlers.undelivered import account_for
from proxy.upstream.carrier import OUTAGE, carry, in_words, not_run
from proxy.upstream.dedicated import Missing, Pin, Reply


class Form(NamedTuple):
    """How one command is read."""

    timeout_at: int  # position of the timeout among the words
    units: int  # of the timeout, per second
    translate: Callable[[bytes, Names], bytes]


class Wait(Blocked):
    """One command that waits: an errand to the owner of its slot."""

    use = "blocked"

    def __init__(
        self, session: Session, request: wire.Request, form: Form, places: list[wire.Location]
    ) -> None:
        super().__init__(session)
        self.place = places[0]
        self.protocol = session.protocol
        self.repeatable = request.name == b"xread"
        self.words = words = request.arguments
        self._request = request
        self._form = form
        self._cluster = session.server.pools.clusters[self.place.cluster]
        self._behind = followers(session, request, places)
        self._names: dict[bytes, bytes] = {}
        for position, place in zip(request.keys, places, strict=True):
            self._names[place.name] = words[position]
            words[position] = place.name
        seconds = _number(words[form.timeout_at]) / form.units
        self._deadline = request.received + seconds if seconds else math.inf
        self._sent = False

    async def run(self, ready: Awaitable[bytes | None] | None) -> bytes:
        """Wait, behind what has to be done first; return the reply."""
        try:
            refusal = await ready if ready is not None else None
            return refusal or await self._wait()
        finally:
            self.end()

    async def _wait(self) -> bytes:
        reply: Reply = Missing.UNSENT
        if not self.called_off:
            reply = await carry(self.pins, self._cluster, self)
        if self.abandoned:
            self.leave()
            await account_for(self.session, self._request, reply, self.place, self._names)
        if self.called_off and not_run(reply):
            self.ended = True
            return self.called_off_reply
        line = in_words(reply)
        if self._behind and line[:1] != b"-":
            # On the client's own lane, and before anybody hears that something was moved.
            self.session.downstream.follow(self.place, self._behind, self._loop.time())
        if self.gone:
            # A half of the connection may still be there, and must not get what is counted as lost.
            return self.called_off_reply
        if all(name == known for name, known in self._names.items()):
            return line
        if line[:1] == b"-":
            return error_names(line, self._names)
        return self._form.translate(line, self._names)

    def until(self, since: float) -> float:
        return max(min(self._deadline, since + OUTAGE), since + self._cluster.config.timeout)

    async def ask(self, pin: Pin) -> Reply:
        now = self._loop.time()
        if self._sent and self._deadline < math.inf:
            # Never 0, which would be for ever.
            left = max(self._deadline - now, 0.001)
            exact = b"%d" % (left * self._form.units) if self._form.units > 1 else b"%.3f" % left
            self.words[self._form.timeout_at] = exact
        self._sent = True
        # What is late at first, because a connection had to be opened, is not late for the node.
        deadline = max(self._deadline, now) + 2 * pin.endpoint.timeout
        return await self.wait_on(pin, wire.pack(self.words), deadline)


def _number(text: bytes) -> float:
    """Return a timeout; 0 for one without end, or that the node is going to refuse."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _begin(session: Session, request: wire.Request, form: Form) -> Wait | bytes:
    """Return a wait that has begun, or the error line of why there is none."""
    places = locate_all(session, request, request.arguments)
    if isinstance(places, bytes):
        return places
    if crowded(session):
        return errors.MAX_BLOCKED
    return Wait(session, request, form, places)


def pop(form: Form) -> Handler:
    """Return the handler of a command that takes an element, or moves one."""

    def handle(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
        wait = _begin(session, request, form)
        return wait if isinstance(wait, bytes) else wait.run(None)

    return handle


def read(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """XREAD and XREADGROUP."""
    at = block_at(request.arguments)
    if not at:
        return streams(session, request)
    # The data plane does not hold these back, because only some of them wait.
    behind = session.downstream.pending > 1
    wait = _begin(session, request, Form(at, 1000, stream_names))
    if isinstance(wait, bytes):
        return wait
    return wait.run(_prepare(session, request, wait.words, wait.place, behind))


# Plain reads, as which what is asked before a wait counts.
_XINFO, _EXISTS = INDEX[b"xinfo|stream"], INDEX[b"exists"]


def _prepare(
    session: Session, request: wire.Request, words: list[bytes], place: wire.Location, behind: bool
) -> Awaitable[bytes | None] | None:
    """Ask where `$` is on the client's own lane, where the answer is behind all it sent before."""
    keys = request.keys
    ends = [position for position in keys if words[position + len(keys)] == b"$"]
    if request.name == b"xreadgroup":
        ends = []
    if ends:
        asked = [
            ask(session, place, [b"XINFO", b"STREAM", words[position]], _XINFO, request.received)
            for position in ends
        ]
    elif behind:
        asked = [ask(session, place, [b"EXISTS", words[keys[0]]], _EXISTS, request.received)]
    else:
        return None

    async def prepare() -> bytes | None:
        for position, reply in zip(ends, await asyncio.gather(*asked), strict=False):
            if not reply.startswith((b"-WRONGTYPE", b"-ERR no such key")) and reply[:1] == b"-":
                return reply
            words[position + len(keys)] = _last_id(reply) or words[position + len(keys)]
        return None

    return prepare()


def _last_id(reply: bytes) -> bytes | None:
    """Return the last id that XINFO STREAM tells; None for what is no stream."""
    if reply.startswith(b"-ERR no such key"):
        return b"0-0"
    fields = resp.decode(reply)
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    return fields.get(b"last-generated-id") if isinstance(fields, dict) else None


def block_at(words: list[bytes]) -> int:
    """Return the position of BLOCK's value, of the last one as Redis reads it, or 0."""
    position, found = 1, 0
    while position < len(words):
        option = words[position].upper()
        if option == b"BLOCK":
            found = position + 1
            position += 2
        elif option in STREAM_VALUES:
            position += 1 + STREAM_VALUES[option]
        else:
            break
    return found


def _same(reply: bytes, names: Names) -> bytes:
    return reply


_LAST = Form(-1, 1, popped_names)
_FIRST = Form(1, 1, popped_names)
_MOVE = Form(-1, 1, _same)

HANDLERS: dict[bytes, Handler] = {
    b"blpop": pop(_LAST),
    b"brpop": pop(_LAST),
    b"bzpopmin": pop(_LAST),
    b"bzpopmax": pop(_LAST),
    b"blmpop": pop(_FIRST),
    b"bzmpop": pop(_FIRST),
    b"blmove": pop(_MOVE),
    b"brpoplpush": pop(_MOVE),
    b"xread": read,
    b"xreadgroup": read,
}
