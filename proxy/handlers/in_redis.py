"""Commands about keys that PostgreSQL stands behind, where they happen in Redis alone.

Used by `backed` for keyspaces that only read from PostgreSQL and for reads that are no look-ups,
and by writers for what changes no value there: times, deletions of the copy.

Always true: a write and the end of every fetch of its keys are one step (MULTI, EXEC): a fetch that
began before the write finds no lease of its own any more, and puts nothing in its place.
"""

import asyncio
from collections.abc import Awaitable, Iterable
from functools import partial

from proxy import errors, resp, wire
from proxy.errors import OriginError
from proxy.handlers import Session
from proxy.handlers.ageing import lengthened
from proxy.handlers.forward import ask_packed
from proxy.handlers.targets import Target, ending, window_of
from proxy.handlers.ways import Way, way_of

MULTI, EXEC = wire.pack([b"MULTI"]), wire.pack([b"EXEC"])

# What a node says of all where it refuses one; who has sent one command knows of no transaction.
_DISCARDED = b"-EXECABORT Transaction discarded because of: "


def plain(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Carry a command out in Redis, as rules have changed it."""
    handler = session.server.handlers.get(request.name)
    if handler is not None:
        return handler(session, request)
    assert request.location is not None
    assert request.routed is not None
    reply = ask_packed(session, request.location, request.routed, request.row, request.received)
    if request.followers:
        session.downstream.follow(request.location, request.followers, request.received)
    return reply


async def read(session: Session, request: wire.Request, targets: Iterable[Target]) -> bytes:
    """Answer in Redis what no look-up is: it is given first what it lacks."""
    line = None if away(session, request.location) else await filled(session, targets)
    return line or await awaited(plain(session, request))


async def filled(session: Session, targets: Iterable[Target]) -> bytes | None:
    """Let Redis have all of these keys; return an error line where that cannot be."""
    reads = session.server.reads
    assert reads is not None
    targets = list(targets)
    if not await reads.leases.settled(targets):
        return errors.CLUSTERDOWN
    wanted = [reads.value(target) for target in targets if target.plan.read is not None]
    found = await asyncio.gather(*wanted)
    return next((each.line for each in found if isinstance(each, OriginError)), None)


async def write(session: Session, request: wire.Request, targets: Iterable[Target]) -> bytes:
    """Carry a write out in Redis, upon what clients see, and end every fetch of its keys."""
    if way_of(request) is Way.FETCH:
        # A part is written to the whole. Alone it would be taken for all there is.
        if away(session, request.location):
            return errors.CLUSTERDOWN
        if (line := await filled(session, targets)) is not None:
            return line
    return await carried_out(session, request, targets)


async def carried_out(session: Session, request: wire.Request, targets: Iterable[Target]) -> bytes:
    """Carry a write out in Redis as it is, and end every fetch of its keys."""
    reads, targets = session.server.reads, list(targets)
    assert reads is not None
    for target in targets:
        reads.changed(target.key)
    row = request.ruleset.commands[request.row]
    if request.location is None or row.names_in_reply:
        # Its handler knows where its parts go; what it ends is ended behind it.
        reply = await awaited(plain(session, request))
        await asyncio.gather(*(reads.leases.release(target) for target in targets))
        return reply
    frames = frames_of(request, targets)
    return await as_one(session, request.location, frames, targets, request.received)


def frames_of(request: wire.Request, targets: Iterable[Target]) -> list[bytes]:
    """Return a command and what rules send behind it, as long in Redis as copies live."""
    window = window_of(targets)
    assert request.routed is not None
    return [
        lengthened(request.ruleset, frame, window)
        for frame in (request.routed, *(request.followers or ()))
    ]


async def as_one(
    session: Session,
    location: wire.Location,
    frames: list[bytes],
    targets: Iterable[Target],
    received: float,
) -> bytes:
    """Send commands of one slot and end every fetch of their keys; return the first reply."""
    ended = ending(targets)
    unit = b"".join((MULTI, *ended, *frames, EXEC))
    reply = await sent(session, location, unit, len(ended) + len(frames) + 2, received)
    if reply[:1] == b"-":
        return reply.replace(_DISCARDED, b"-", 1)
    try:
        return resp.elements(reply)[len(ended)]
    except (ValueError, IndexError):
        return errors.INTERNAL


async def sent(
    session: Session, location: wire.Location, unit: bytes, replies: int, received: float
) -> bytes:
    """Send commands of one slot that belong together; return the last of so many replies."""
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    session.downstream.submit_unit(location, unit, replies, received, partial(_give, done))
    return await done


def away(session: Session, location: wire.Location | None) -> bool:
    """Return whether no node can be asked for what lives there."""
    slots = session.server.router.slots
    if location is None or location.cluster >= slots.clusters:
        return location is not None
    owner = slots.owner(location.cluster, location.slot)
    lanes = slots.nodes[owner][session.protocol - 2] if owner >= 0 else ()
    return not any(upstream.available for upstream in lanes)


async def awaited(reply: bytes | Awaitable[bytes]) -> bytes:
    return reply if isinstance(reply, bytes) else await reply


def _give(future: asyncio.Future[bytes], reply: bytes) -> None:
    if not future.done():
        future.set_result(reply)
