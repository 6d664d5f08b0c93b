"""Keyspaces that PostgreSQL stands behind: where their Requests come in.

The session calls `take` for every Request with a reason, `refresh` for what is answered already.
The data plane has looked at the reply of a look-up; everything else is left to us whole, and its
client is held until it is answered.
"""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Mapping

from proxy import errors, wire
from proxy.config import Config
from proxy.handlers import (
    Session,
    behind,
    in_redis,
    lock_runs,
    locks,
    lookups,
    offered,
    several,
    through,
)
from proxy.handlers.ageing import lengthened
from proxy.handlers.reading import Reads
from proxy.handlers.targets import Target, followed, misspelled, targets_of, window_of, writes
from proxy.handlers.ways import WAYS, Way, way_of
from proxy.plans import Plan
from proxy.wire.rules import Path, Reason

# What a command may take beyond its statements and its nodes' deadlines, in seconds: waits for a
# lease, for room and for the journal, which all have shorter deadlines of their own.
MARGIN = 5.0


def take(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Answer a Request of a keyspace that PostgreSQL stands behind, within a deadline."""
    return _timed(session, request, _taken(session, request))


def _timed(
    session: Session, request: wire.Request, reply: bytes | Awaitable[bytes]
) -> bytes | Awaitable[bytes]:
    # What a future waits for, a node or a fetch, has a deadline of its own.
    return reply if isinstance(reply, bytes | asyncio.Future) else _in_time(session, request, reply)


async def _in_time(session: Session, request: wire.Request, reply: Awaitable[bytes]) -> bytes:
    """Return a reply, or an error when it takes so long that something must have gone wrong.

    Its client is held until it is answered: without this, for ever.
    """
    write = request.ruleset.commands[request.row].write
    try:
        async with asyncio.timeout(longest(session.server.config)):
            return await reply
    except TimeoutError:
        return errors.UNKNOWN_WRITE if write else errors.TIMEOUT


def longest(config: Config) -> float:
    """Return how many seconds a command may take: it asks nodes and PostgreSQL, both twice."""
    nodes = max((cluster.timeout for cluster in config.clusters.values()), default=1.0)
    database = config.database
    origin = 0.0 if database is None else database.patience + database.timeout
    return 2 * (nodes + origin) + MARGIN


def _taken(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    targets = targets_of(request)
    if _about_locks(targets.values()):
        return misspelled(targets.values()) or locks.take(session, request, [*targets.values()])
    if _without_postgres(session):
        return _without(session, request)
    if (line := misspelled(targets.values())) is not None:
        return line
    plan = next((each.plan for each in targets.values() if each.plan.mode == "behind"), None)
    if plan is not None:
        answered = behind.take(session, request, plan)
        if answered is not None:
            return answered
    reads = session.server.reads
    if reads is None or not targets:
        return _without(session, request)
    target = next(iter(targets.values()))
    if request.reason != Reason.ORIGIN:
        if target.plan.read is None:
            return _without(session, request)
        return lookups.look_up(session, request, reads, target)
    if way_of(request) is Way.TIME:
        return lookups.time_left(session, request, reads, target)
    if not writes(request):
        if request.name in several.READS:
            return several.read(session, request, reads)
        return in_redis.read(session, request, targets.values())
    return _write(session, request, reads, targets)


def handled(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Answer a command that has a handler of its own: scripts, waits, COPY, SORT.

    Nodes would carry it out behind PostgreSQL's back where a policy writes there.
    """
    if offered.decided(session, request):
        # No node runs it; what PostgreSQL changes by it the outbox tells Redis.
        return _timed(session, request, offered.answer(session, request))
    targets = targets_of(request)
    alone = offered.script_of(request) is not None
    if _about_locks(targets.values()) and (alone or request.name in WAYS):
        line = misspelled(targets.values())
        if line is not None:
            return line
        return _timed(session, request, lock_runs.answer(session, request, [*targets.values()]))
    if not targets or _without_postgres(session):
        return session.server.handlers[request.name](session, request)
    line = misspelled(targets.values()) or behind.unjournalled(session, request, targets.values())
    if line is not None:
        return line
    reads = session.server.reads
    if reads is not None:
        if writes(request):
            if (told := _told(targets.values())) is not None:
                return errors.no_statement(told.name)
            for key in targets:
                reads.changed(key)
        if way_of(request) is Way.FETCH:
            session.downstream.hold()
            return _fetched(session, request, targets.values())
    return session.server.handlers[request.name](session, request)


async def _fetched(session: Session, request: wire.Request, targets: Iterable[Target]) -> bytes:
    """Answer a command whose client is held, once Redis has what it lacks."""
    try:
        line = await _provided(session, targets)
        waits = request.ruleset.commands[request.row].path is Path.BARRIER
        if waits and session.gone:
            # What would wait for a client that has left would wait for ever.
            return line or errors.UNKNOWN_OUTCOME
        reply = line or session.server.handlers[request.name](session, request)
        return await in_redis.awaited(reply)
    finally:
        session.downstream.release()


async def _provided(session: Session, targets: Iterable[Target]) -> bytes | None:
    if session.server.behind is None:
        return await in_redis.filled(session, targets)
    return await behind.provided(session, [each for each in targets if each.plan.read is not None])


def refresh(session: Session, request: wire.Request) -> None:
    """Fetch again what a look-up found to be old; its client has been answered."""
    reads = session.server.reads
    targets = {} if reads is None else targets_of(request)
    if reads is None or misspelled(targets.values()) is not None:
        return
    for target in targets.values():
        if target.plan.read is not None:
            reads.refresh(target, request.left_ms)


def barred(session: Session, request: wire.Request, targets: Collection[Target]) -> bytes | None:
    """Return the error line for what no transaction can hold, because PostgreSQL is told of it."""
    if _about_locks(targets):
        return errors.not_in_transaction(next(iter(targets)).plan.name)
    if (line := behind.unjournalled(session, request, targets)) is not None:
        return line
    if session.server.reads is None:
        return None
    if (line := misspelled(targets)) is not None:
        return line
    told = _told(targets) if writes(request) and request.name not in through.COPIES else None
    return None if told is None else errors.not_in_transaction(told.name)


def queued(request: wire.Request, targets: Collection[Target]) -> tuple[bytes, list[bytes]]:
    """Return a write of a transaction as nodes get it, and what is sent behind it."""
    routed = lengthened(request.ruleset, request.routed or request.command, window_of(targets))
    return routed, followed(request.ruleset, request.followers or (), targets)


def _told(targets: Iterable[Target]) -> Plan | None:
    """Return the plan of the first key of which PostgreSQL is told what is written to it."""
    return next((target.plan for target in targets if target.plan.mode != "none"), None)


def _about_locks(targets: Iterable[Target]) -> bool:
    return any(target.plan.locking is not None for target in targets)


def _without_postgres(session: Session) -> bool:
    return session.server.reads is None and session.server.behind is None


def _without(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Answer as if there was no PostgreSQL."""
    if request.reason == Reason.ORIGIN:
        return in_redis.plain(session, request)
    assert request.reply is not None
    return request.reply


def _write(
    session: Session, request: wire.Request, reads: Reads, targets: Mapping[bytes, Target]
) -> bytes | Awaitable[bytes]:
    if len(request.keys) > 1:
        told = None if request.name in through.COPIES else _told(targets.values())
        if told is not None:
            return errors.no_statement(told.name)
        if request.location is None and request.name in several.WRITES:
            return several.write(session, request)
        return in_redis.write(session, request, targets.values())
    target = next(iter(targets.values()))
    if target.plan.mode == "through":
        return through.write(session, request, reads, target)
    return in_redis.write(session, request, targets.values())
