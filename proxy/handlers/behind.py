"""Write-behind: a write is journalled, then carried out in Redis, then answered.

`backed` gives a Request here whose keyspace has `write: {mode: behind}`. Commands that change no
value (times to live, reads of several keys) go to Redis as they are.

Always true:
  * what is acknowledged is in the journal; what the journal refused did not reach Redis;
  * an increment that Redis then refuses is taken back in the journal too, to the last digit;
  * while Redis is away an answer to a write is exact, or it is refused before it is journalled;
  * what may be in Redis without a write that waits does not outlive the flush of that write.

A value that Redis refuses after it was journalled (out of memory, wrong type) stays journalled: its
client hears the error and that PostgreSQL has what it wanted, which is what reads find.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import TypeVar

from proxy import errors, wire
from proxy.handlers import Session, in_redis, journalling, lookups, several, waiting, whole
from proxy.handlers.targets import Target, target_of, targets_of, writes
from proxy.handlers.told import Refused, Told, fits, not_here, over, told
from proxy.handlers.ways import Way, way_of
from proxy.origin.answers import answer
from proxy.origin.behind import WriteBehind
from proxy.origin.merging import Row
from proxy.plans import Plan, plans_in
from proxy.wire.rules import Reason

# Commands that write and change no value.
_TIMES = frozenset(
    (b"expire", b"pexpire", b"expireat", b"pexpireat", b"persist", b"touch", b"getex")
)

# They say that nothing was changed, which is not so of what is journalled.
_NOTHING_DONE = (errors.CLUSTERDOWN, errors.TIMEOUT, errors.OVERLOADED)

# Deletions, whose reply is a number of keys.
_COUNTED = frozenset((b"del", b"unlink"))

Reply = TypeVar("Reply", bound=bytes | None)


def take(session: Session, request: wire.Request, plan: Plan) -> bytes | Awaitable[bytes] | None:
    """Answer a command to a key of a plan that is written behind.

    None where it is answered as if nothing was written: PostgreSQL knows all that there is.
    """
    if request.reason != Reason.ORIGIN:
        return look_up(session, request, plan) if dirty(session, request) else None
    row = request.ruleset.commands[request.row]
    if session.server.behind is not None and row.write and request.name not in _TIMES:
        return write(session, request, plan)
    if request.name in _TIMES and row.write and over(request.name, request.arguments):
        return errors.not_behind(plan.name, "a time that is over deletes the key: send DEL")
    own = request.name in several.READS or way_of(request) is Way.TIME
    return None if own or not dirty(session, request) else _beside(session, request)


async def _beside(session: Session, request: wire.Request) -> bytes:
    """Answer a read that is no look-up, or what changes a time: Redis is given first what it lacks.

    Of what waits for PostgreSQL it may lack all, of the other keys it may have none.
    """
    if not in_redis.away(session, request.location):
        line = await provided(session, _readable(request))
        if line is not None:
            return line
    return await in_redis.awaited(in_redis.plain(session, request))


async def provided(session: Session, targets: Iterable[Target]) -> bytes | None:
    """Let Redis have all of these keys, with what waits; return an error line where it cannot."""
    waits, clean = _parted(session, targets)
    if (line := await _put_back(session, waits)) is not None:
        return line
    return await in_redis.filled(session, clean) if clean else None


async def _put_back(session: Session, waits: Iterable[Target]) -> bytes | None:
    """Let Redis have keys of which writes wait; return an error line where it cannot."""
    for target in waits:
        if isinstance(there := await whole.present(session, target, lost=True), bytes):
            return there
    return None


async def write(session: Session, request: wire.Request, plan: Plan) -> bytes:
    """Journal a write and carry it out, or refuse it."""
    readable = [] if session.server.reads is None else _readable(request)
    try:
        parts = _parts(session, request, plan)
        if in_redis.away(session, request.location):
            if plan.detour.writes != "journal":
                return errors.CLUSTERDOWN
            async with _inside(session, parts):
                return await _without_redis(session, request, parts)
        if readable and way_of(request) is Way.FETCH:
            return await _write_a_part(session, request, parts, readable[0])
        # What tells how much was there must find it.
        counted = _parted(session, readable)[0] if request.name in _COUNTED else []
        if (line := await _put_back(session, counted)) is not None:
            return line
        async with _inside(session, parts):
            return await _write_the_whole(session, request, parts, readable)
    except Refused as refused:
        return refused.line


async def _write_the_whole(
    session: Session,
    request: wire.Request,
    parts: Sequence[tuple[Plan, Told]],
    readable: Sequence[Target],
) -> bytes:
    """Journal a write that leaves nothing of what was there, and carry it out."""
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    if (line := await journalling.journalled(behind, parts)) is not None:
        return line
    for target in targets_of(request).values():
        if reads is not None and target.plan.read is None:
            # What goes is what was there before: nobody could bring this back.
            reads.leases.forgive(target)
    if readable:
        carried = in_redis.carried_out(session, request, readable)
    else:
        carried = in_redis.awaited(in_redis.plain(session, request))
    return await _ended(behind, parts, await _sure(behind, parts, carried))


@contextlib.asynccontextmanager
async def _inside(session: Session, parts: Sequence[tuple[Plan, Told]]) -> AsyncIterator[None]:
    """Be one of those who write to keys. Raises Refused where that cannot be in time."""
    behind, sums = session.server.behind, journalling.sums(parts)
    assert behind is not None
    plans, entered = {part.key: plan for plan, part in parts}, list[bytes]()
    try:
        try:
            async with asyncio.timeout(waiting.STILL_SECONDS):
                for key in sorted(plans):
                    if await behind.turns.enter(key, sums):
                        behind.lacks.contended(plans[key], key)
                    entered.append(key)
        except TimeoutError:
            raise Refused(errors.ORIGIN_BUSY) from None
        yield
    finally:
        for key in entered:
            behind.turns.leave(key, sums)
            if not behind.turns.busy(key):
                behind.lacks.left(plans[key], key)


async def _write_a_part(
    session: Session, request: wire.Request, parts: Sequence[tuple[Plan, Told]], target: Target
) -> bytes:
    """Journal what is written to a part of a key, and carry it out upon the whole.

    Alone it would be taken for all there is. Where the key goes between the two, an increment is
    taken back and begins again; what was set is journalled once more, which changes nothing.
    """
    if target.lease is None:
        return errors.not_behind(target.plan.name, errors.ALONE)
    # What SET asks for must be what was there before it was journalled.
    lost, journalled = request.name == b"set", False
    for _ in range(whole.TRIES):
        there = await whole.present(session, target, lost=lost)
        if isinstance(there, bytes):
            return errors.UNKNOWN_WRITE if journalled else there
        try:
            async with _inside(session, parts):
                reply = await _attempted(session, request, parts, target, there)
        except Refused as refused:
            return errors.UNKNOWN_WRITE if journalled else refused.line
        if reply is not None:
            return reply
        if request.name == b"set":
            return errors.UNKNOWN_WRITE
        lost, journalled = True, not journalling.sums(parts)
    return errors.UNKNOWN_WRITE if journalled else errors.TIMEOUT


async def _attempted(
    session: Session,
    request: wire.Request,
    parts: Sequence[tuple[Plan, Told]],
    target: Target,
    there: bool,
) -> bytes | None:
    """Journal a write and carry it out, upon a key that is there or where there is none.

    Return what the client hears; None: the key has gone, and what can be is taken back, before
    anybody counts what is journalled.
    """
    behind = session.server.behind
    assert behind is not None
    if (line := await journalling.journalled(behind, parts)) is not None:
        return line
    if not there:
        carried = in_redis.carried_out(session, request, [target])
        return await _ended(behind, parts, await _sure(behind, parts, carried))
    reply = await _sure(behind, parts, whole.upon(session, request, target))
    if reply is not None:
        return await _ended(behind, parts, reply)
    behind.lacks.note(target.plan, target.key)
    return None if await journalling.taken_back(behind, parts) else errors.UNKNOWN_WRITE


async def _sure(
    behind: WriteBehind, parts: Sequence[tuple[Plan, Told]], reply: Awaitable[Reply]
) -> Reply:
    """Return the reply to what is journalled; given up here, nobody knows what Redis has."""
    try:
        return await reply
    except asyncio.CancelledError:
        journalling.lack(behind, parts)
        raise


async def _ended(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]], reply: bytes) -> bytes:
    """Return what the client hears of a write that is journalled, by what Redis said to it."""
    if reply[:1] != b"-":
        return reply
    if reply == errors.UNKNOWN_OUTCOME:
        journalling.lack(behind, parts)
        return reply
    taken_back = await journalling.taken_back(behind, parts)
    if taken_back and journalling.sums(parts):
        return reply
    # Redis has what was there before.
    journalling.lack(behind, parts)
    if taken_back and reply not in _NOTHING_DONE:
        return errors.journalled(reply)
    return errors.UNKNOWN_WRITE


async def _without_redis(
    session: Session, request: wire.Request, parts: Sequence[tuple[Plan, Told]]
) -> bytes:
    """Journal a write and answer it as Redis would, or refuse it. Raises Refused.

    What Redis has of its keys goes as soon as it can be reached.
    """
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    named = targets_of(request)
    if set(named) != {part.key for _, part in parts} or len(named) < len(request.keys):
        # Of the others nobody would hear.
        return errors.CLUSTERDOWN
    turn = behind.turn(parts[0][1].key)
    try:
        async with asyncio.timeout(waiting.STILL_SECONDS):
            await turn.acquire()
    except TimeoutError:
        return errors.ORIGIN_BUSY
    try:
        # Nobody else counts on the same value until this write is in the overlay.
        reply = await waiting.reply_to(session, request, parts)
        line = await journalling.journalled(behind, parts)
    finally:
        turn.release()
    journalling.lack(behind, parts)
    if reads is not None and way_of(request) is not Way.FETCH:
        # Also where nobody can read it in PostgreSQL: none of what it was is true any more.
        for target in named.values():
            reads.leases.owe(target)
    return reply if line is None else line


def _parted(session: Session, targets: Iterable[Target]) -> tuple[list[Target], list[Target]]:
    """Return those of which something waits for PostgreSQL, and the others."""
    behind = session.server.behind
    assert behind is not None
    parted: tuple[list[Target], list[Target]] = [], []
    for target in targets:
        parted[not behind.holds(target.plan, target.key)].append(target)
    return parted


def _readable(request: wire.Request) -> list[Target]:
    return [target for target in targets_of(request).values() if target.plan.read is not None]


def dirty(session: Session, request: wire.Request) -> bool:
    """Return whether something of a key of the command waits for PostgreSQL."""
    behind, words = session.server.behind, request.arguments
    if behind is None:
        return False
    plans = ((plan_behind(request.ruleset, words[at]), words[at]) for at in request.keys)
    return any(plan and behind.holds(plan, key) for plan, key in plans)


async def look_up(session: Session, request: wire.Request, plan: Plan) -> bytes:
    """Answer a look-up of a dirty key that Redis had no answer for.

    It holds what PostgreSQL says, where the policy can read that, and upon it what waits. Else a
    key that Redis does not have is what was written since PostgreSQL was told last; while Redis is
    away nobody knows what was there before. Redis is given the same, where it can be.
    """
    assert request.reply is not None
    behind, words = session.server.behind, request.arguments
    assert behind is not None
    target = target_of(request.ruleset, words[1])
    assert target is not None
    if session.server.reads is not None and request.reason != Reason.AWAY:
        there = await whole.present(session, target, lost=True) if plan.read else b""
        if not isinstance(there, bytes):
            return await lookups.again(session, request, session.server.reads, target, None)
    row = behind.overlay(plan, words[1]) or Row(plan.name, words[1])
    asked = plan.read is not None or request.reason == Reason.AWAY
    try:
        if asked and not waiting.is_set(row):
            fields = await waiting.fields_of(session, plan, words[1])
        else:
            fields = waiting.overlaid(row, {})
    except Refused as refused:
        # Redis' nil would be a lie: something was written.
        return refused.line if request.reason == Reason.MISS else request.reply
    value = waiting.value_of(plan, fields)
    return answer(value, words, session.protocol, plan.ttl_ms) or request.reply


def unjournalled(
    session: Session, request: wire.Request, targets: Iterable[Target]
) -> bytes | None:
    """Return the error line for a write that would go past the journal, None for all else.

    So does what a transaction holds, and every command that has a handler of its own.
    """
    if session.server.behind is None or not writes(request):
        return None
    if request.name in _TIMES and not over(request.name, request.arguments):
        return None
    plan = next((target.plan for target in targets if target.plan.mode == "behind"), None)
    return None if plan is None else not_here(plan, request.name)


def plan_behind(rules: wire.Ruleset, key: bytes) -> Plan | None:
    """Return the plan of a key that is written behind."""
    plan = plans_in(rules).by_keyspace.get(rules.find_keyspace(key))
    return plan if plan is not None and plan.mode == "behind" else None


def _parts(session: Session, request: wire.Request, plan: Plan) -> list[tuple[Plan, Told]]:
    """Return what is told of each key that is written behind. Raises Refused."""
    behind, parts = session.server.behind, []
    assert behind is not None
    for target in targets_of(request).values():
        if target.plan.mode == "through":
            raise Refused(errors.no_statement(target.plan.name))
    for part in told(plan, request.name, request.arguments):
        own = plan_behind(request.ruleset, part.key)
        if own is not None:
            if not _is_text(part.key, *(each.value for each in part.changes)):
                raise Refused(errors.not_behind(own.name, "PostgreSQL has no text of such bytes"))
            fits(own, part.changes, behind.types(own, part.key))
            parts.append((own, part))
    return parts


def _is_text(*words: bytes) -> bool:
    """Return whether PostgreSQL has such texts: a journalled row of others never arrives."""
    try:
        return not any("\0" in word.decode() for word in words)
    except UnicodeDecodeError:
        return False
