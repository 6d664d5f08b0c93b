"""Commands that split over slots: MGET MSET DEL UNLINK EXISTS TOUCH.

A handler gets a Request only when the keys do not share a slot. It makes one sub-command per slot
and queues them all before its client's next command is taken; only the reply waits. Of many keys
it does some hundred in a turn of the loop and holds its client meanwhile: others need not wait.

Always true: a part is answered exactly once, by its node, its deadline or its loss; the reply is
made when the last part is in. It is not atomic: what an error says is how many parts took effect.
One object with a counter serves all parts, because this is the path of every MGET and MSET.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TypeVar, cast

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.gathered import Gathered
from proxy.handlers.targets import followed, written_by

# Keys, or parts, after which others get their turn: about five milliseconds.
IN_A_TURN = 500

_T = TypeVar("_T")
# Work that yields where the loop may do something else, and returns what it comes to.
Turns = Generator[None, None, _T]


class Part:
    """One slot's share: the words of its sub-command and the places of its keys in the whole."""

    __slots__ = ("followers", "location", "places", "words")

    def __init__(self, location: wire.Location, name: bytes) -> None:
        self.location = location
        self.words = [name]
        self.places: list[int] = []
        self.followers: list[bytes] = []  # what rules send behind it

    def packed(self) -> bytes:
        return wire.pack(self.words)


class Merge:
    """Counts parts down; the first error is the reply."""

    __slots__ = ("error", "future", "left", "parts", "succeeded")

    def __init__(self, parts: int) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.parts = self.left = parts
        self.succeeded = 0
        self.error = b""

    def take(self, part: Part, reply: bytes) -> None:
        """Note the reply of one part; with the last one the future ends."""
        if reply[:1] == b"-":
            self.error = self.error or reply
        else:
            try:
                self.add(part, reply)
                self.succeeded += 1
            except (ValueError, IndexError):
                # A node that answers something else than this command can: the client must not
                # wait for ever because of it.
                self.error = self.error or errors.INTERNAL
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.failure() if self.error else self.total())

    def add(self, part: Part, reply: bytes) -> None:
        """Take in a reply that is no error."""

    def total(self) -> bytes:
        return resp.OK

    def failure(self) -> bytes:
        return errors.partial(self.error, self.succeeded, self.parts)


class Sum(Merge):
    """Adds integers."""

    __slots__ = ("count",)

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.count = 0

    def add(self, part: Part, reply: bytes) -> None:
        self.count += int(reply[1:-2])

    def total(self) -> bytes:
        return resp.integer(self.count)


class Positions(Merge):
    """Puts the elements of arrays where their keys stood, as the bytes that the nodes sent.

    A part that failed makes the whole reply that error: client libraries would hand an error among
    the elements to the application as a value. Nothing is kept for it, nor for who has gone.
    """

    __slots__ = ("elements", "gathered")

    def __init__(self, parts: int, keys: int, downstream: wire.Downstream) -> None:
        super().__init__(parts)
        self.elements = [b""] * keys
        self.gathered = Gathered(downstream)

    def add(self, part: Part, reply: bytes) -> None:
        if self.error or not self.gathered.add(len(reply)):
            self.elements.clear()
            self.gathered.clear()
            return
        places = part.places
        start = reply.index(b"\r\n") + 2
        if len(places) == 1:
            self.elements[places[0]] = reply[start:]
            return
        for place in places:
            end = wire.frame_end(reply, start)
            self.elements[place] = reply[start:end]
            start = end

    def total(self) -> bytes:
        return resp.array(self.elements)

    def failure(self) -> bytes:
        return self.error


def divided(session: Session, request: wire.Request) -> tuple[list[Part], Merge] | bytes:
    """Return a command's parts and what makes one reply of theirs, or the error line."""
    turns = _divide(session, request)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return cast("tuple[list[Part], Merge] | bytes", end.value)


def run(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Queue every part; return the reply that waits for the last of them."""
    turns = _send(session, request)
    try:
        next(turns)
    except StopIteration as end:
        return cast("bytes | Awaitable[bytes]", end.value)
    # What the client asks for next must not overtake the parts that are still to come.
    session.downstream.hold()
    return _by_turns(session, turns)


async def _by_turns(session: Session, turns: Turns[bytes | Awaitable[bytes]]) -> bytes:
    try:
        while True:
            await asyncio.sleep(0)
            next(turns)
    except StopIteration as end:
        reply: bytes | Awaitable[bytes] = end.value
    finally:
        session.downstream.release()
    return reply if isinstance(reply, bytes) else await reply


def _send(session: Session, request: wire.Request) -> Turns[bytes | Awaitable[bytes]]:
    found = yield from _divide(session, request)
    if isinstance(found, bytes):
        return found
    parts, merge = found
    downstream, row, now = session.downstream, request.row, time.monotonic()
    for number, part in enumerate(parts, 1):
        take = partial(merge.take, part)
        downstream.submit(part.location, part.packed(), row, now, take)
        if part.followers:
            downstream.follow(part.location, part.followers, now)
        if number % IN_A_TURN == 0:
            yield
            # A node has its time from when it is asked.
            now = time.monotonic()
    return merge.future


def _divide(session: Session, request: wire.Request) -> Turns[tuple[list[Part], Merge] | bytes]:
    step, merge = _KINDS[request.name]
    parts = yield from _split(session, request, step)
    return parts if isinstance(parts, bytes) else (parts, merge(session, parts))


def _split(session: Session, request: wire.Request, step: int) -> Turns[list[Part] | bytes]:
    """Return one part per slot, or the error line of the first key that may not be asked for.

    Places and not keys: the same key may be asked twice, and each place needs its reply.
    """
    words = request.arguments
    locate, followers, row = session.downstream.locate, session.downstream.followers, request.row
    targets = {} if session.server.reads is None else written_by(request)
    parts: dict[int, Part] = {}
    cluster = -1
    for number, position in enumerate(range(1, len(words), step)):
        if number and number % IN_A_TURN == 0:
            yield
        location = locate(words[position], row)
        if isinstance(location, bytes):
            return location
        if location.cluster != cluster:
            if cluster >= 0:
                return errors.CROSS_CLUSTER
            cluster = location.cluster
        part = parts.get(location.slot)
        if part is None:
            part = parts[location.slot] = Part(location, words[0])
        if location.keyspace >= 0:
            behind = followers(location, row, position // step, request.command)
            if (target := targets.get(words[position])) is not None:
                behind = followed(request.ruleset, behind, [target])
            part.followers += behind
        part.places.append(position - 1)
        part.words.append(location.name)
        if step == 2:
            part.words.append(words[position + 1])
    return list(parts.values())


def _positions(session: Session, parts: list[Part]) -> Merge:
    return Positions(len(parts), sum(len(part.places) for part in parts), session.downstream)


def _all(session: Session, parts: list[Part]) -> Merge:
    return Merge(len(parts))


def _sum(session: Session, parts: list[Part]) -> Merge:
    return Sum(len(parts))


# How many words belong to a key, and how the parts' replies become one.
_KINDS: dict[bytes, tuple[int, Callable[[Session, list[Part]], Merge]]] = {
    b"mget": (1, _positions),
    b"mset": (2, _all),
    b"del": (1, _sum),
    b"unlink": (1, _sum),
    b"exists": (1, _sum),
    b"touch": (1, _sum),
}

HANDLERS: dict[bytes, Handler] = dict.fromkeys(_KINDS, run)
