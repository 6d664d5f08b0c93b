"""Write-behind: a write is journalled, then carried out in Redis, then answered.

`backed` gives a Request here whose keyspace has `write: {mode: behind}`. Commands that change no
value (times to live, reads of several keys) go to Redis as they are.

Always true:
  * what is acknowledged is in the journal; what the journal refused did not reach Redis;
  * an increment that Redis then refuses is taken back in the journal too, to the last digit;
  * while Redis is away, or lacks what waits, an answer is exact, or the write is refused before it
    is journalled;
  * what may be in Redis without a write that waits does not outlive the flush of that write.

A value that Redis refuses after it was journalled (out of memory, wrong type) stays journalled: its
client hears the error, and PostgreSQL has what the client wanted.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence

from proxy import errors, wire
from proxy.errors import JournalRefused
from proxy.handlers import Session, in_redis, leases, several, waiting
from proxy.handlers.targets import Target, targets_of, writes
from proxy.handlers.told import Refused, Told, fits, not_here, told
from proxy.handlers.ways import Way, way_of
from proxy.origin.answers import answer
from proxy.origin.behind import WriteBehind, WriteBehindFull
from proxy.origin.merging import Row
from proxy.origin.records import Change, Op
from proxy.plans import Plan, plans_in
from proxy.wire.rules import Reason

# Commands that write and change no value.
_TIMES = frozenset(
    (b"expire", b"pexpire", b"expireat", b"pexpireat", b"persist", b"touch", b"getex")
)


def take(session: Session, request: wire.Request, plan: Plan) -> bytes | Awaitable[bytes] | None:
    """Answer a command to a key of a plan that is written behind.

    None where it is answered as if nothing was written: PostgreSQL knows all that there is.
    """
    if request.reason != Reason.ORIGIN:
        return look_up(session, request, plan) if dirty(session, request) else None
    row = request.ruleset.commands[request.row]
    if session.server.behind is not None and row.write and request.name not in _TIMES:
        return write(session, request, plan)
    own = request.name in several.READS or way_of(request) is Way.TIME
    return None if own or not dirty(session, request) else _beside(session, request)


async def _beside(session: Session, request: wire.Request) -> bytes:
    """Answer a read that is no look-up: of what waits for PostgreSQL Redis has what it lacks.

    Other keys are fetched where Redis has none of them.
    """
    _, clean = _parted(session, _readable(request))
    if clean and (line := await in_redis.filled(session, clean)) is not None:
        return line
    return await in_redis.awaited(in_redis.plain(session, request))


async def write(session: Session, request: wire.Request, plan: Plan) -> bytes:
    """Journal a write and carry it out, or refuse it."""
    readable = [] if session.server.reads is None else _readable(request)
    try:
        parts = _parts(request, plan)
        if in_redis.away(session, request.location):
            if plan.detour.writes != "journal":
                return errors.CLUSTERDOWN
            return await _without_redis(session, request, parts)
        if way_of(request) is Way.FETCH:
            # A part is written to the whole. Alone it would be taken for all there is.
            waits, clean = _parted(session, readable)
            if any([await _is_lacking(session, target) for target in waits]):
                return await _without_redis(session, request, parts)
            if clean and (line := await in_redis.filled(session, clean)) is not None:
                return line
    except Refused as refused:
        return refused.line
    return await _with_redis(session, request, parts, readable)


async def _with_redis(
    session: Session,
    request: wire.Request,
    parts: Sequence[tuple[Plan, Told]],
    readable: Sequence[Target],
) -> bytes:
    """Journal a write and carry it out."""
    behind = session.server.behind
    assert behind is not None
    if (line := await _journalled(behind, parts)) is not None:
        return line
    reply = errors.UNKNOWN_OUTCOME
    try:
        if readable:
            reply = await in_redis.carried_out(session, request, readable)
        else:
            reply = await in_redis.awaited(in_redis.plain(session, request))
    finally:
        if reply == errors.UNKNOWN_OUTCOME:
            # Also where it is given up here.
            _lacking(session, parts, readable)
    if reply[:1] != b"-" or reply == errors.UNKNOWN_OUTCOME:
        return reply
    taken_back = await _taken_back(behind, parts)
    changes = (change for _, part in parts for change in part.changes)
    if not (taken_back and all(change.op is Op.ADD for change in changes)):
        # Redis has what was there before.
        _lacking(session, parts, readable)
    return reply if taken_back else errors.UNKNOWN_WRITE


async def _without_redis(
    session: Session, request: wire.Request, parts: Sequence[tuple[Plan, Told]]
) -> bytes:
    """Journal a write and answer it as Redis would, or refuse it. Raises Refused.

    What Redis has of its keys goes: now, or as soon as it can be reached.
    """
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    named = targets_of(request)
    if set(named) != {part.key for _, part in parts} or len(named) < len(request.keys):
        # Of the others nobody would hear.
        return errors.CLUSTERDOWN
    try:
        # Nobody else counts on the same value until this write is in the overlay.
        async with asyncio.timeout(waiting.STILL_SECONDS), behind.turn(parts[0][1].key):
            reply = await waiting.reply_to(session, request, parts)
            line = await _journalled(behind, parts)
    except TimeoutError:
        return errors.UNKNOWN_WRITE
    if reads is not None:
        for key in named:
            reads.changed(key)
        await asyncio.gather(*(reads.leases.void(target) for target in named.values()))
    for plan, part in parts:
        behind.lacking(plan, part.key)
    return reply if line is None else line


def _lacking(
    session: Session, parts: Sequence[tuple[Plan, Told]], readable: Iterable[Target]
) -> None:
    """Let the copies of keys go that Redis may have without what was journalled."""
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    waits = {part.key for plan, part in parts if behind.lacking(plan, part.key)}
    for target in readable:
        if reads is not None and target.key not in waits:
            # PostgreSQL has been told of it meanwhile.
            reads.leases.owe(target)


def _parted(session: Session, targets: Iterable[Target]) -> tuple[list[Target], list[Target]]:
    """Return those of which something waits for PostgreSQL, and the others."""
    behind = session.server.behind
    assert behind is not None
    parted: tuple[list[Target], list[Target]] = [], []
    for target in targets:
        parted[behind.overlay(target.plan, target.key) is None].append(target)
    return parted


async def _is_lacking(session: Session, target: Target) -> bool:
    """Return whether Redis lacks a key, or what waits of it for PostgreSQL."""
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    assert reads is not None
    if behind.is_lacking(target.plan, target.key):
        return True
    if target.lease is None:
        return False
    age = target.plan.age
    token = reads.leases.token()
    said = await reads.leases.take(target, token, age.window_ms - age.stale_ms)
    return said not in (leases.THERE, leases.AWAY)


def _readable(request: wire.Request) -> list[Target]:
    return [target for target in targets_of(request).values() if target.plan.read is not None]


def dirty(session: Session, request: wire.Request) -> bool:
    """Return whether something of a key of the command waits for PostgreSQL."""
    behind, words = session.server.behind, request.arguments
    if behind is None:
        return False
    plans = ((plan_behind(request.ruleset, words[at]), words[at]) for at in request.keys)
    return any(plan and behind.overlay(plan, key) is not None for plan, key in plans)


async def look_up(session: Session, request: wire.Request, plan: Plan) -> bytes:
    """Answer a look-up of a dirty key that Redis had no answer for.

    It holds what PostgreSQL says, where the policy can read that, and upon it what waits. Else a
    key that Redis does not have is what was written since PostgreSQL was told last; while Redis is
    away nobody knows what was there before. Nothing is filled: PostgreSQL is behind.
    """
    assert request.reply is not None
    behind, words = session.server.behind, request.arguments
    assert behind is not None
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
    if session.server.behind is None or not writes(request) or request.name in _TIMES:
        return None
    plan = next((target.plan for target in targets if target.plan.mode == "behind"), None)
    return None if plan is None else not_here(plan, request.name)


def plan_behind(rules: wire.Ruleset, key: bytes) -> Plan | None:
    """Return the plan of a key that is written behind."""
    plan = plans_in(rules).by_keyspace.get(rules.find_keyspace(key))
    return plan if plan is not None and plan.mode == "behind" else None


def _parts(request: wire.Request, plan: Plan) -> list[tuple[Plan, Told]]:
    """Return what is told of each key that is written behind. Raises Refused."""
    parts = []
    for part in told(plan, request.name, request.arguments):
        own = plan_behind(request.ruleset, part.key)
        if own is not None:
            if not _is_text(part.key, *(each.value for each in part.changes)):
                raise Refused(errors.not_behind(own.name, "PostgreSQL has no text of such bytes"))
            fits(own, part.changes)
            parts.append((own, part))
    return parts


def _is_text(*words: bytes) -> bool:
    """Return whether PostgreSQL has such texts: a journalled row of others never arrives."""
    try:
        return not any("\0" in word.decode() for word in words)
    except UnicodeDecodeError:
        return False


async def _journalled(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]]) -> bytes | None:
    """Journal all parts; return the error line where that did not work."""
    if any(behind.full(plan) for plan, _ in parts):
        return errors.JOURNAL_FULL
    try:
        await asyncio.gather(*(behind.write(plan, key, changes) for plan, (key, changes) in parts))
    except WriteBehindFull:
        # Full by the first of them.
        return errors.JOURNAL_FULL if len(parts) == 1 else errors.UNKNOWN_WRITE
    except JournalRefused as refused:
        # Of several keys some may have been taken.
        sure = refused.certain and len(parts) == 1
        return errors.JOURNAL_REFUSED if sure else errors.UNKNOWN_WRITE
    return None


async def _taken_back(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]]) -> bool:
    """Journal the opposite of increments that Redis did not carry out; return whether it is."""
    opposite = [
        (plan, Told(key, tuple(Change(Op.ADD, each.field, _negated(each.value))
                               for each in changes if each.op is Op.ADD)))
        for plan, (key, changes) in parts
    ]  # fmt: skip
    wanted = [(plan, part) for plan, part in opposite if part.changes]
    return await _journalled(behind, wanted) is None


def _negated(value: bytes) -> bytes:
    return value[1:] if value[:1] == b"-" else b"-" + value.removeprefix(b"+")
