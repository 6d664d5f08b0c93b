"""What a key holds while writes of it wait: by PostgreSQL, and upon that what it is not told yet.

`behind` and `several` ask where Redis has no answer, or lacks some of those writes.

Always true: who asks is told what the next reader of PostgreSQL will see, or an error; what is read
there and what waits belong to one moment: no flush ends in between, and nobody reads while it is
not known whether one has.
"""

import asyncio
from collections.abc import Mapping, Sequence

from proxy import errors, resp, wire
from proxy.errors import OriginError
from proxy.handlers import Session
from proxy.handlers.reading import Found
from proxy.handlers.targets import Target
from proxy.handlers.told import INTEGERS, VALUE, Refused, Told
from proxy.origin.budget import share_of
from proxy.origin.merging import Cell, Row, number
from proxy.origin.records import Change, Op
from proxy.origin.render import Value
from proxy.origin.rows import read_arguments, read_value
from proxy.plans import Plan

# Those that are answered with OK whatever the key held.
_ACKNOWLEDGED = frozenset((b"set", b"setex", b"psetex", b"mset", b"hmset"))

# What PostgreSQL and overlay say of a key must be read between two flushes; they take no longer.
STILL_SECONDS = 2.0


async def found(session: Session, target: Target) -> Found | OriginError | None:
    """Return what a key holds of which writes wait; None: none do."""
    behind, plan = session.server.behind, target.plan
    if plan.mode != "behind" or behind is None or not behind.holds(plan, target.key):
        return None
    try:
        fields = await fields_of(session, plan, target.key)
        return Found(value_of(plan, fields))
    except Refused as refused:
        return OriginError("what a key holds cannot be told", refused.line)


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


def value_of(plan: Plan, fields: Mapping[bytes, bytes]) -> Value | None:
    """Return what a key with such fields holds."""
    if plan.type == "hash":
        return Value("hash", dict(fields)) if fields else None
    return Value("string", fields[VALUE]) if VALUE in fields else None


async def reply_to(
    session: Session, request: wire.Request, parts: Sequence[tuple[Plan, Told]]
) -> bytes:
    """Return what Redis would answer. Raises Refused where nobody knows."""
    name, protocol = request.name, session.protocol
    asks = b"GET" in map(bytes.upper, request.arguments[3:]) and name == b"set"
    if name in _ACKNOWLEDGED and not asks:
        return resp.OK
    if name in (b"del", b"unlink"):
        found = [await fields_of(session, plan, part.key) for plan, part in parts]
        return resp.integer(sum(map(bool, found)))
    plan, (key, changes) = parts[0]
    fields = await fields_of(session, plan, key)
    if asks:
        return resp.bulk(fields[VALUE]) if VALUE in fields else resp.null(protocol)
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


async def fields_of(session: Session, plan: Plan, key: bytes) -> dict[bytes, bytes]:
    """Return what a key holds by PostgreSQL and what waits for it. Raises Refused."""
    behind = session.server.behind
    assert behind is not None
    waiting = behind.overlay(plan, key)
    if waiting is not None and waiting.dropped:
        # Nothing of what PostgreSQL has shows.
        return overlaid(waiting, {})
    try:
        async with asyncio.timeout(STILL_SECONDS), behind.still(key):
            base = _held(await _read(session, plan, key))
            return overlaid(behind.overlay(plan, key) or Row(plan.name, key), base)
    except TimeoutError:
        raise Refused(errors.ORIGIN_BUSY) from None


def is_set(waiting: Row) -> bool:
    """Return whether what waits is all of a string."""
    cell = waiting.cells.get(VALUE)
    return cell is not None and cell.op is Op.SET


def _added(one: bytes, other: bytes) -> bytes:
    if number(one) is None:
        raise Refused(errors.NOT_AN_INTEGER)
    cell = Cell(Op.SET, one)
    cell.merge(Change(Op.ADD, b"", other), "add")
    return cell.value


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
