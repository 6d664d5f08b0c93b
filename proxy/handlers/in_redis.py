"""Commands about keys that PostgreSQL stands behind, where they happen in Redis alone.

Used by `backed` for keyspaces that only read from PostgreSQL and for reads that are no look-ups,
and by writers for what changes no value there: times, deletions of the copy.

Always true:
  * a write and the end of every fetch of its keys are one step (MULTI, EXEC, or a script): a fetch
    that began before the write finds no lease of its own any more, and puts nothing in its place;
  * a part is carried out upon a key that is there, or not at all, in one step (lua/upon.lua), where
    PostgreSQL has the key: a write of one node, of no more words than a script has room for.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial

from proxy import errors, resp, wire
from proxy.errors import OriginError
from proxy.handlers import Session
from proxy.handlers.ageing import lengthened
from proxy.handlers.forward import ask_packed
from proxy.handlers.reading import PAUSES, Found, There
from proxy.handlers.targets import Target, ending, window_of
from proxy.handlers.ways import Way, way_of
from proxy.upstream.errands import Script

UPON = Script("upon")

# What Redis says where nothing was carried out.
_ABSENT = b"-ABSENT"

# They answer with a whole number, which the script tells as text where it is large.
_SUMS = frozenset((b"incr", b"decr", b"incrby", b"decrby", b"hincrby"))

# Their replies are others in RESP3; of what else is carried out upon a key a script tells the same.
_MARKED = frozenset((b"spop", b"zadd", b"zincrby", b"zpopmax", b"zpopmin"))

# Lua's stack has room for some 8,000.
MOST_WORDS = 4000

# What they leave is what PostgreSQL has, whoever is asked then.
_DELETIONS = frozenset((b"del", b"unlink"))

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
    targets = list(targets)
    if _untold(session, request.location, targets):
        return errors.CLUSTERDOWN
    line = await filled(session, targets)
    return line or await awaited(plain(session, request))


async def filled(session: Session, targets: Iterable[Target]) -> bytes | None:
    """Let Redis have all of these keys; return an error line where that cannot be."""
    there = await _present(session, list(targets))
    return there if isinstance(there, bytes) else None


async def _present(session: Session, targets: Sequence[Target]) -> list[Target] | bytes:
    """Let Redis have all of these keys; return those that there are, or an error line.

    Somebody else may hold the lease of one, or have changed it meanwhile: it is fetched again.
    """
    reads = session.server.reads
    assert reads is not None
    if not await reads.leases.settled(targets):
        return errors.CLUSTERDOWN
    wanted = [target for target in targets if target.plan.read is not None]
    bare = next((target for target in wanted if target.lease is None), None)
    if bare is not None:
        return errors.not_filled(bare.plan.name)
    for pause in (*PAUSES, None):
        there, lacking = list[Target](), False
        found = await asyncio.gather(*map(reads.value, wanted))
        for target, said in zip(wanted, found, strict=True):
            if isinstance(said, OriginError):
                return said.line
            if isinstance(said, There) or said.value is not None:
                there.append(target)
                lacking = lacking or (isinstance(said, Found) and not said.stored)
        if not lacking:
            return there
        if pause is not None:
            await asyncio.sleep(pause)
    return errors.ORIGIN_BUSY


async def write(session: Session, request: wire.Request, targets: Iterable[Target]) -> bytes:
    """Carry a write out in Redis, upon what clients see, and end every fetch of its keys."""
    targets, way = list(targets), way_of(request)
    if way is Way.FETCH:
        # A part is written to the whole. Alone it would be taken for all there is.
        if _untold(session, request.location, targets):
            return errors.CLUSTERDOWN
        return await _write_a_part(session, request, targets)
    if request.name not in _DELETIONS and unseen(session, request.location, targets):
        return errors.CLUSTERDOWN
    return await carried_out(session, request, targets)


async def _write_a_part(
    session: Session, request: wire.Request, targets: Sequence[Target]
) -> bytes:
    """Carry a write out upon keys that are there, or where PostgreSQL has none either."""
    reads, row = session.server.reads, request.ruleset.commands[request.row]
    assert reads is not None
    for pause in (*PAUSES, None):
        there = await _present(session, targets)
        if isinstance(there, bytes):
            return there
        if not there or request.location is None or row.names_in_reply:
            return await carried_out(session, request, targets)
        reply = await upon(session, request, targets, there)
        if reply is not None:
            for target in targets:
                reads.changed(target.key)
            return reply
        if pause is not None:
            await asyncio.sleep(pause)
    return errors.ORIGIN_BUSY


async def upon(
    session: Session,
    request: wire.Request,
    targets: Sequence[Target],
    there: Sequence[Target],
    *,
    aged: bool = False,
) -> bytes | None:
    """Carry a write out where some of its keys are there; None: they are not, nothing was done.

    What clients do not see any more counts as gone, unless it may be `aged`. More words than a
    script has room for are carried out as they are.
    """
    if len(request.arguments) > MOST_WORDS:
        return await carried_out(session, request, targets)
    assert request.location is not None
    beside = [key for each in targets for key in (each.lease, each.marker) if key is not None]
    keys = [*(each.name for each in there), *beside]
    ages = [each.plan.age for each in there]
    least = [-1 if aged else age.window_ms - age.stale_ms for age in ages]
    protocol = session.protocol if request.name in _MARKED else 2
    arguments = [b"%d" % number for number in (protocol, len(there), *least)]
    for frame in frames_of(request, targets):
        words = resp.decode(frame)
        arguments += [b"%d" % len(words), *words]
    reply = errors.UNKNOWN_OUTCOME
    for name, text in ((b"EVALSHA", UPON.digest), (b"EVAL", UPON.body)):
        run = wire.pack([name, text, b"%d" % len(keys), *keys, *arguments])
        reply = await sent(session, request.location, run, 1, request.received)
        if not reply.startswith(b"-NOSCRIPT"):
            break
    if reply[:1] == b"$" and request.name in _SUMS:
        reply = resp.integer(int(resp.decode(reply)))
    return None if reply.startswith(_ABSENT) else reply


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
    return not any(upstream.available for upstream in _lanes(session, location))


def passed_by(session: Session, location: wire.Location) -> bool:
    """Return whether its node is asked for nothing that PostgreSQL has.

    It is silent, or is back and has not heard yet of what changed meanwhile.
    """
    if location.cluster >= session.server.router.slots.clusters:
        return True
    return not any(upstream.share for upstream in _lanes(session, location))


def unseen(session: Session, location: wire.Location | None, targets: Iterable[Target]) -> bool:
    """Return whether look-ups do not find what is written to Redis alone."""
    alone = any(each.plan.mode == "none" and each.plan.detour.reads != "error" for each in targets)
    return alone and location is not None and passed_by(session, location)


def _untold(session: Session, location: wire.Location | None, targets: Iterable[Target]) -> bool:
    """Return whether no node can be asked that has heard of all changes, as far as is known."""
    if location is None:
        return False
    detours = any(each.plan.detour.reads != "error" for each in targets)
    return away(session, location) or (detours and passed_by(session, location))


def _lanes(session: Session, location: wire.Location) -> Sequence[wire.Upstream]:
    slots = session.server.router.slots
    owner = slots.owner(location.cluster, location.slot)
    return slots.nodes[owner][session.protocol - 2] if owner >= 0 else ()


async def awaited(reply: bytes | Awaitable[bytes]) -> bytes:
    return reply if isinstance(reply, bytes) else await reply


def _give(future: asyncio.Future[bytes], reply: bytes) -> None:
    if not future.done():
        future.set_result(reply)
