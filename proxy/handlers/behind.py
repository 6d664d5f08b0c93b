"""Write-behind: a write is journalled, then carried out in Redis, then answered.

`backed` gives a Request here whose keyspace has `write: {mode: behind}`. Commands that change no
value (times to live, reads of several keys) go to Redis as they are.

Always true:
  * what is acknowledged is in the journal; what the journal refused did not reach Redis;
  * an increment that Redis then refuses is taken back in the journal too, to the last digit;
  * while Redis is away an answer is exact, or the write is refused before it is journalled.

A value that Redis refuses after it was journalled (out of memory, wrong type) stays journalled: its
client hears the error, and PostgreSQL has what the client wanted.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence

from proxy import errors, resp, wire
from proxy.errors import JournalRefused, OriginError
from proxy.handlers import Session, in_redis
from proxy.handlers.targets import Target, targets_of, writes
from proxy.handlers.told import INTEGERS, VALUE, Refused, Told, fits, not_here, told
from proxy.handlers.ways import Way, way_of
from proxy.origin.answers import answer
from proxy.origin.behind import WriteBehind, WriteBehindFull
from proxy.origin.budget import share_of
from proxy.origin.merging import Cell, Row, number
from proxy.origin.records import Change, Op
from proxy.origin.render import Value
from proxy.origin.rows import read_arguments, read_value
from proxy.plans import Plan, plans_in
from proxy.wire.rules import Reason

# Commands that write and change no value.
_TIMES = frozenset(
    (b"expire", b"pexpire", b"expireat", b"pexpireat", b"persist", b"touch", b"getex")
)

# Those that are answered with OK whatever the key held.
_ACKNOWLEDGED = frozenset((b"set", b"setex", b"psetex", b"mset", b"hmset"))

# What PostgreSQL and overlay say of a key must be read between two flushes; they take no longer.
STILL_SECONDS = 2.0


def take(session: Session, request: wire.Request, plan: Plan) -> bytes | Awaitable[bytes] | None:
    """Answer a command to a key of a plan that is written behind.

    None where it is answered as if nothing was written: PostgreSQL knows all that there is.
    """
    if request.reason != Reason.ORIGIN:
        return look_up(session, request, plan) if dirty(session, request) else None
    row = request.ruleset.commands[request.row]
    if session.server.behind is not None and row.write and request.name not in _TIMES:
        return write(session, request, plan)
    return _beside(session, request) if dirty(session, request) else None


async def _beside(session: Session, request: wire.Request) -> bytes:
    """Answer a read of several keys: of those that wait for PostgreSQL Redis has what it lacks.

    The others are fetched where Redis has none of them.
    """
    behind = session.server.behind
    assert behind is not None
    clean = [each for each in _readable(request) if behind.overlay(each.plan, each.key) is None]
    if clean and (line := await in_redis.filled(session, clean)) is not None:
        return line
    return await in_redis.awaited(in_redis.plain(session, request))


async def write(session: Session, request: wire.Request, plan: Plan) -> bytes:
    """Journal a write and carry it out, or refuse it."""
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    try:
        parts = _parts(request, plan)
        if in_redis.away(session, request.location):
            return await _without_redis(session, request, plan, parts)
    except Refused as refused:
        return refused.line
    readable = [] if reads is None else _readable(request)
    if way_of(request) is Way.FETCH:
        clean = [target for target in readable if behind.overlay(target.plan, target.key) is None]
        if clean and (line := await in_redis.filled(session, clean)) is not None:
            return line
    if (line := await _journalled(behind, parts)) is not None:
        return line
    if readable:
        reply = await in_redis.carried_out(session, request, readable)
    else:
        reply = await in_redis.awaited(in_redis.plain(session, request))
    if reply[:1] == b"-" and reply != errors.UNKNOWN_OUTCOME:
        taken_back = await _taken_back(behind, parts)
        return reply if taken_back else errors.UNKNOWN_WRITE
    return reply


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
    waiting = behind.overlay(plan, words[1]) or Row(plan.name, words[1])
    asked = plan.read is not None or request.reason == Reason.AWAY
    try:
        if asked and not _is_set(waiting):
            fields = await _fields(session, plan, words[1])
        else:
            fields = overlaid(waiting, {})
    except Refused as refused:
        # Redis' nil would be a lie: something was written.
        return refused.line if request.reason == Reason.MISS else request.reply
    return answer(_value(plan, fields), words, session.protocol, plan.ttl_ms) or request.reply


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


def overlaid(row: Row, base: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of a key: what PostgreSQL has of it, and upon it what waits."""
    fields = {} if row.dropped else dict(base)
    for name, cell in row.cells.items():
        if cell.op is Op.ERASE:
            fields.pop(name, None)
        elif cell.op is Op.SET:
            fields[name] = cell.value
        else:
            fields[name] = _added(fields.get(name, b"0"), cell.value)
    return fields


def _value(plan: Plan, fields: Mapping[bytes, bytes]) -> Value | None:
    """Return what a key with such fields holds."""
    if plan.type == "hash":
        return Value("hash", dict(fields)) if fields else None
    return Value("string", fields[VALUE]) if VALUE in fields else None


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


def _added(one: bytes, other: bytes) -> bytes:
    if number(one) is None:
        raise Refused(errors.NOT_AN_INTEGER)
    cell = Cell(Op.SET, one)
    cell.merge(Change(Op.ADD, b"", other), "add")
    return cell.value


# --- Without Redis


async def _without_redis(
    session: Session, request: wire.Request, plan: Plan, parts: Sequence[tuple[Plan, Told]]
) -> bytes:
    """Journal a write and answer it as Redis would, or refuse it. Raises Refused."""
    behind = session.server.behind
    assert behind is not None
    if plan.detour.writes != "journal":
        return errors.CLUSTERDOWN
    named = {request.arguments[at] for at in request.keys}
    if named != {part.key for _, part in parts}:
        # Of the others nobody would hear.
        return errors.CLUSTERDOWN
    try:
        # Nobody else counts on the same value until this write is in the overlay.
        async with asyncio.timeout(STILL_SECONDS), behind.turn(parts[0][1].key):
            reply = await _reply(session, request, parts)
            line = await _journalled(behind, parts)
    except TimeoutError:
        return errors.UNKNOWN_WRITE
    return reply if line is None else line


async def _reply(
    session: Session, request: wire.Request, parts: Sequence[tuple[Plan, Told]]
) -> bytes:
    """Return what Redis would answer. Raises Refused where nobody knows."""
    name = request.name
    if name in _ACKNOWLEDGED and b"GET" not in map(bytes.upper, request.arguments[3:]):
        return resp.OK
    if name in (b"del", b"unlink"):
        found = [await _fields(session, plan, part.key) for plan, part in parts]
        return resp.integer(sum(map(bool, found)))
    plan, (key, changes) = parts[0]
    fields = await _fields(session, plan, key)
    if name == b"hset":
        return resp.integer(len({each.field for each in changes} - fields.keys()))
    if name == b"hdel":
        return resp.integer(len({each.field for each in changes} & fields.keys()))
    if changes[0].op is not Op.ADD:
        raise Refused(errors.DEGRADED)
    value = _added(fields.get(changes[0].field, b"0"), changes[0].value)
    if name.endswith(b"float"):
        return resp.bulk(value)
    if not value.lstrip(b"-").isdigit():
        raise Refused(errors.NOT_AN_INTEGER)
    if int(value) not in INTEGERS:
        raise Refused(errors.line("ERR increment or decrement would overflow"))
    return resp.integer(int(value))


async def _fields(session: Session, plan: Plan, key: bytes) -> dict[bytes, bytes]:
    """Return what a key holds by PostgreSQL and what waits for it. Raises Refused."""
    behind = session.server.behind
    assert behind is not None
    try:
        async with asyncio.timeout(STILL_SECONDS), behind.still(key):
            waiting = behind.overlay(plan, key) or Row(plan.name, key)
            base = {} if waiting.dropped else _held(await _read(session, plan, key))
            return overlaid(waiting, base)
    except TimeoutError:
        raise Refused(errors.ORIGIN_BUSY) from None


def _is_set(waiting: Row) -> bool:
    """Return whether what waits is all of a string."""
    cell = waiting.cells.get(VALUE)
    return cell is not None and cell.op is Op.SET


async def _read(session: Session, plan: Plan, key: bytes) -> Value | None:
    """Return what PostgreSQL says of a key. Raises Refused."""
    postgres = session.server.postgres
    if plan.read is None or postgres is None:
        raise Refused(errors.DEGRADED)
    arguments = read_arguments(plan, key)
    try:
        return await read_value(postgres, plan, arguments, share_of(plan), primary=True)
    except OriginError as error:
        raise Refused(error.line) from error


def _held(value: Value | None) -> dict[bytes, bytes]:
    match value:
        case Value(_, dict() as fields):
            return fields
        case Value(_, bytes() as text):
            return {VALUE: text}
        case _:
            return {}
