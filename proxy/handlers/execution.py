"""EXEC: what a transaction sends, and how its replies become one array.

The commands that go to a node travel as one unit, MULTI to EXEC, on the client's own lane: behind
what the client sent before, redirected as one. What handlers answer here is run once the node has
carried out the rest, and its replies are put where its commands stood. Transactions of several
slots, which only a policy allows, are one unit per slot.

Messages ride in a unit that goes to their cluster - any node of it takes a PUBLISH, that of the
slot a SPUBLISH - so they are sent if the keys are written, and never before. Where no unit goes
there, they are published like what handlers answer, after the rest.

Always true: a unit is sent once, or again where it is proven not to have run; nothing is run here
for a transaction that no node has carried out; later commands of the client see all effects.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from typing import Protocol

from proxy import errors, resp, wire
from proxy.handlers import Holding, Session
from proxy.handlers.fanout import Merge, Part
from proxy.handlers.gathered import Gathered
from proxy.handlers.offered import as_map, maps
from proxy.handlers.renamed import Names, names_keys, restored

MULTI = b"*1\r\n$5\r\nMULTI\r\n"
EXEC = b"*1\r\n$4\r\nEXEC\r\n"

# A unit above this size keeps its client from sending more: units count as one command each in a
# client's window, and 128 of them must not fill a node's queue.
HELD_BYTES = 64 * 1024

# Bytes of replies that no node gives, beyond which the rest of them are refused: all of a
# transaction are made at once, whether their client reads or not.
MOST_HERE = 8 * 1024 * 1024


class Watch(Holding, Protocol):
    """What WATCH holds: a connection on which a transaction runs only if no watched key changed."""

    @property
    def location(self) -> wire.Location:
        """Return the cluster and the slot of the watched keys."""

    def execute(self, unit: bytes, replies: int) -> Awaitable[bytes]:
        """Send MULTI to EXEC, which have so many replies; return EXEC's, as it came.

        A null where a key changed or the connection was lost before; with a deadline of its own.
        """


class Unit:
    """The commands of one slot, and their places in the transaction."""

    __slots__ = ("behind", "location", "mapped", "names", "parts", "places", "shares")

    def __init__(self, location: wire.Location) -> None:
        self.location = location
        self.parts = [MULTI]
        self.places: list[int] = []
        self.names: dict[int, tuple[bytes, Names]] = {}  # by place, of renamed commands
        self.shares: dict[int, tuple[Merge, Part]] = {}  # by place, of divided commands
        self.mapped: set[int] = set()  # places of scripts whose reply is a map
        self.behind: dict[int, int] = {}  # by place, how many commands of rules follow it

    @property
    def replies(self) -> int:
        return len(self.places) + 2 + sum(self.behind.values())

    def follow(self, frames: Sequence[bytes]) -> None:
        """Append what rules send behind the command that came last; its part takes it along."""
        self.parts[-1] = b"".join((self.parts[-1], *frames))
        self.behind[self.places[-1]] = len(frames)

    def board(self, riders: Sequence[tuple[int, bytes]]) -> None:
        """Take in commands that belong between others, with their places."""
        rows = sorted([*zip(self.places, self.parts[1:], strict=True), *riders], key=_PLACE)
        self.places = [place for place, _ in rows]
        self.parts = [MULTI, *(frame for _, frame in rows)]

    def packed(self) -> bytes:
        self.parts.append(EXEC)
        frames, self.parts = b"".join(self.parts), []
        return frames

    def restore(self, reply: bytes) -> bytes:
        """Return EXEC's reply to the client's own commands, with the names that it knows."""
        if not (self.names or self.behind or self.mapped) or not ran(reply):
            return reply
        elements = resp.elements(reply)
        if self.behind:
            elements = self._own(elements)
        for index, place in enumerate(self.places):
            if place in self.names:
                command, names = self.names[place]
                elements[index] = restored(command, elements[index], names)
            elif place in self.mapped:
                elements[index] = as_map(elements[index])
        return resp.array(elements)

    def _own(self, elements: list[bytes]) -> list[bytes]:
        """Return the elements without those of what rules sent along."""
        own, at = [], 0
        for place in self.places:
            own.append(elements[at])
            at += 1 + self.behind.get(place, 0)
        return own


class Plan:
    """What a transaction will do: the units that go to nodes, and what handlers answer.

    Units are put together command by command, so that EXEC of a long transaction has only to send.
    """

    __slots__ = ("_messages", "_unit", "count", "divided", "here", "units", "written")

    def __init__(self) -> None:
        self.units: dict[tuple[int, int], Unit] = {}  # by cluster and slot
        self.here: list[tuple[int, wire.Request]] = []  # with their places
        self.divided: list[tuple[int, Merge]] = []  # commands over several slots, likewise
        self.count = 0
        self.written: set[bytes] = set()  # keys that PostgreSQL stands behind
        self._messages: dict[int, wire.Location] = {}  # of those among `here`, by place
        self._unit: Unit | None = None  # the last one, mostly the next one too

    def add(
        self, session: Session, request: wire.Request, location: wire.Location, routed: bytes
    ) -> None:
        """Append a command for the node of a slot, in its frame with the names that nodes know."""
        unit = self._unit_of(location)
        if routed is not request.command and names_keys(request.name):
            unit.names[self.count] = (request.name, _names(session, request))
        if maps(session, request):
            unit.mapped.add(self.count)
        unit.places.append(self.count)
        unit.parts.append(routed)
        self.count += 1

    def follow(self, location: wire.Location, frames: Sequence[bytes]) -> None:
        """Append what rules send behind the command that came last, in the slot that it is for."""
        self._unit_of(location).follow(frames)

    def add_divided(self, parts: list[Part], merge: Merge) -> None:
        """Append a command of which every slot gets its part."""
        for part in parts:
            unit = self._unit_of(part.location)
            unit.shares[self.count] = (merge, part)
            unit.places.append(self.count)
            unit.parts.append(part.packed())
            if part.followers:
                unit.follow(part.followers)
        self.divided.append((self.count, merge))
        self.count += 1

    def _unit_of(self, location: wire.Location) -> Unit:
        unit, cluster, slot = self._unit, location.cluster, location.slot
        if unit is None or unit.location.slot != slot or unit.location.cluster != cluster:
            unit = self.units.get((cluster, slot))
            if unit is None:
                unit = self.units[cluster, slot] = Unit(location)
            self._unit = unit
        return unit

    def add_here(self, request: wire.Request) -> None:
        """Append a command that a handler answers."""
        self.here.append((self.count, request))
        self.count += 1

    def add_message(self, request: wire.Request, location: wire.Location) -> None:
        """Append a PUBLISH or SPUBLISH, which goes to this place unless a unit takes it along."""
        self._messages[self.count] = location
        self.add_here(request)

    def board(self) -> None:
        """Let the messages ride in the units, as far as these go to where they must."""
        riders: dict[Unit, list[tuple[int, bytes]]] = {}
        staying = []
        for place, request in self.here:
            unit = self._unit_for(place, request.name)
            if unit is None:
                staying.append((place, request))
            else:
                riders.setdefault(unit, []).append((place, request.command))
        self.here = staying
        for unit, rows in riders.items():
            unit.board(rows)

    def _unit_for(self, place: int, name: bytes) -> Unit | None:
        location = self._messages.get(place)
        if location is None:
            return None
        if name == b"spublish":
            return self.units.get((location.cluster, location.slot))
        units = self.units.values()
        return next((unit for unit in units if unit.location.cluster == location.cluster), None)


_PLACE: Callable[[tuple[int, bytes]], int] = itemgetter(0)


def _names(session: Session, request: wire.Request) -> Names:
    """Return a node's names of a command's keys to the client's."""
    words, locate = request.arguments, session.downstream.locate
    places = ((locate(words[at], request.row, False), words[at]) for at in request.keys)
    return {place.name: word for place, word in places if isinstance(place, wire.Location)}


def ran(reply: bytes) -> bool:
    """Return whether EXEC's reply is an array: neither an error nor the null of a WATCH."""
    return reply[:1] == b"*" and reply[1:2] != b"-"


def execute(
    session: Session, plan: Plan, watch: Watch | None, received: float
) -> bytes | Awaitable[bytes]:
    """Carry a transaction out and return EXEC's reply."""
    if plan.units:
        plan.board()
    if watch is not None:
        return _under_watch(session, plan, watch)
    if not plan.units:
        return _here_alone(session, plan)
    units = list(plan.units.values())
    gathered = Gathered(session.downstream)
    replies = [_send(session, unit, received, gathered) for unit in units]
    if len(units) == 1 and not plan.here:
        return replies[0]
    if plan.here:
        session.downstream.hold()
    done = session.downstream.release if plan.here else None
    return _merged(session, plan, units, replies, done)


def _send(
    session: Session, unit: Unit, received: float, gathered: Gathered
) -> asyncio.Future[bytes]:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    downstream, replies = session.downstream, unit.replies
    frames = unit.packed()
    large = len(frames) > HELD_BYTES

    def deliver(reply: bytes) -> None:
        if large:
            downstream.release()
        if future.done():
            return
        if not gathered.add(len(reply)):
            reply = errors.TIMEOUT  # nobody is there to read it
        try:
            future.set_result(unit.restore(reply))
        except (ValueError, IndexError):
            # A node that answers something else than these commands can.
            future.set_result(errors.INTERNAL)

    if large:
        downstream.hold()
    downstream.submit_unit(unit.location, frames, replies, received, deliver)
    return future


def _under_watch(session: Session, plan: Plan, watch: Watch) -> bytes | Awaitable[bytes]:
    """Run a transaction on the connection that watches; without commands, to hear of changes."""
    watched = watch.location
    units = list(plan.units.values())
    unit = units[0] if units else Unit(watched)
    location = unit.location
    if len(units) > 1 or location.slot != watched.slot or location.cluster != watched.cluster:
        watch.release()
        same = location.cluster == watched.cluster
        return errors.CROSSSLOT if same else errors.CROSS_CLUSTER
    session.downstream.hold()

    async def reply() -> bytes:
        replies = unit.replies
        return unit.restore(await watch.execute(unit.packed(), replies))

    def done() -> None:
        watch.release()
        session.downstream.release()

    return _merged(session, plan, [unit], [reply()], done)


async def _merged(
    session: Session,
    plan: Plan,
    units: Sequence[Unit],
    replies: Sequence[Awaitable[bytes]],
    done: Callable[[], None] | None,
) -> bytes:
    """Return one array of what nodes and handlers answered, in the places of the commands.

    The units of a split transaction stand alone: one that failed has its error in its places.
    """
    try:
        came = [await reply for reply in replies]
        if not any(map(ran, came)):
            return came[0]
        elements = [b""] * plan.count
        for unit, reply in zip(units, came, strict=True):
            parts = resp.elements(reply) if ran(reply) else [reply] * len(unit.places)
            for place, part in zip(unit.places, parts, strict=True):
                if place in unit.shares:
                    merge, share = unit.shares[place]
                    merge.take(share, part)
                else:
                    elements[place] = part
        for place, merge in plan.divided:
            elements[place] = await merge.future
        await _run_here(session, plan, elements)
        return resp.array(elements)
    except (ValueError, IndexError):
        return errors.INTERNAL
    finally:
        if done is not None:
            done()


def _here_alone(session: Session, plan: Plan) -> bytes | Awaitable[bytes]:
    replies = [reply for _, reply in _begun(session, plan)]
    ready = [reply for reply in replies if isinstance(reply, bytes)]
    return resp.array(ready) if len(ready) == len(replies) else _all(replies)


async def _all(replies: Sequence[bytes | Awaitable[bytes]]) -> bytes:
    return resp.array([await _one(reply) for reply in replies])


async def _run_here(session: Session, plan: Plan, elements: list[bytes]) -> None:
    """Let handlers answer their commands, in order, unless the client has gone meanwhile."""
    if session.downstream.owner is None:
        return
    for place, reply in _begun(session, plan):
        elements[place] = await _one(reply)


def _begun(session: Session, plan: Plan) -> list[tuple[int, bytes | Awaitable[bytes]]]:
    """Let handlers begin to answer, in order, as long as there is room for replies."""
    room, begun = MOST_HERE, list[tuple[int, bytes | Awaitable[bytes]]]()
    for place, request in plan.here:
        reply = _started(session, request) if room > 0 else errors.TOO_MUCH_HERE
        room -= len(reply) if isinstance(reply, bytes) else 0
        begun.append((place, reply))
    return begun


def _started(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    return session.server.handlers[request.name](session, request)


async def _one(reply: bytes | Awaitable[bytes]) -> bytes:
    """Return one reply; what answers nothing, or several times, has no place in an array."""
    line = reply if isinstance(reply, bytes) else await reply
    return line if line and wire.frame_end(line, 0) == len(line) else errors.INTERNAL
