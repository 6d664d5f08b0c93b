"""Write-through: PostgreSQL first, then the copy in Redis goes, then the client hears.

`backed` gives a Request here whose keyspace has `write: {mode: through}`. One statement per write:
the fields of HSET or the value of SET are its parameters by name, what is not given is NULL.

Always true:
  * OK means committed. A lost connection means that nobody knows, and the client is told so;
  * after a commit, or where nobody knows, what Redis has is void, now or as soon as its node is
    back: the next read finds what PostgreSQL has;
  * a write that the statement cannot carry out is refused, not carried out in part.
"""

import asyncio
import time
from collections.abc import Mapping

from proxy import errors, resp, wire
from proxy.errors import OriginDown, OriginError
from proxy.handlers import Session, in_redis
from proxy.handlers.forward import ask
from proxy.handlers.reading import Reads
from proxy.handlers.targets import Target
from proxy.handlers.told import Refused, fields_of, told
from proxy.origin.answers import answer
from proxy.origin.batching import segments_of
from proxy.origin.budget import share_of
from proxy.origin.codecs import text_of
from proxy.origin.records import Change, Op

# What changes the copy alone: rows are not deleted because a copy of them is, and have no times.
COPIES = frozenset(
    (b"del", b"unlink", b"expire", b"pexpire", b"expireat", b"pexpireat", b"persist", b"getex")
)


async def write(session: Session, request: wire.Request, reads: Reads, target: Target) -> bytes:
    """Answer a write of a key."""
    plan = target.plan
    away = in_redis.away(session, request.location)
    if away and plan.detour.writes != "origin":
        return errors.CLUSTERDOWN
    if request.name in COPIES:
        if away:
            return await _without_copy(session, request, reads, target)
        return await in_redis.write(session, request, [target])
    if plan.writing is None:
        return errors.no_statement(plan.name)
    try:
        (part,) = told(plan, request.name, request.arguments)
    except Refused as refused:
        return refused.line
    changes = {change.field: change for change in part.changes}
    if not changes.keys() <= fields_of(plan.writing.statement):
        return errors.no_column(plan.name)
    try:
        count = await _new(session, request, reads, target, changes)
        written = await _executed(reads, target, changes)
    except OriginError as error:
        if not (isinstance(error, OriginDown) and error.sent):
            return error.line
        await _void(reads, target)
        return errors.ORIGIN_UNKNOWN
    except asyncio.CancelledError:
        # Given up after its deadline: nobody knows.
        reads.changed(target.key)
        reads.leases.owe(target)
        raise
    await _void(reads, target)
    if not written:
        return errors.no_row(plan.name)
    return resp.OK if count is None else resp.integer(count)


async def _without_copy(
    session: Session, request: wire.Request, reads: Reads, target: Target
) -> bytes:
    """Answer what is about the copy, while nobody has it: it is void when its node is back."""
    await _void(reads, target)
    found = await reads.bypass(target)
    if isinstance(found, OriginError):
        return found.line
    if request.name == b"getex":
        return answer(found.value, [b"get", target.key], session.protocol) or errors.DEGRADED
    return resp.integer(int(found.value is not None))


async def _executed(reads: Reads, target: Target, changes: Mapping[bytes, Change]) -> int:
    """Run the statement and return how many rows it was about. Raises OriginError."""
    plan = target.plan
    assert plan.writing is not None
    values = {
        field.decode(): text_of(change.value)
        for field, change in changes.items()
        if change.op is Op.SET
    }
    values["version"] = str(time.time_ns() // 1000)
    try:
        values |= segments_of(plan, target.key)
    except ValueError:
        return 0  # no text of PostgreSQL has such bytes
    arguments = [values.get(name) for name, _ in plan.writing.statement.parameters]
    return await reads.postgres.execute(plan.writing.statement, arguments, share_of(plan))


async def _void(reads: Reads, target: Target) -> None:
    reads.changed(target.key)
    await reads.leases.void(target)


async def _new(
    session: Session, request: wire.Request, reads: Reads, target: Target,
    changes: Mapping[bytes, Change],
) -> int | None:  # fmt: skip
    """Return how many of the fields HSET makes new, as far as can be told; None: it says OK.

    Redis knows where it has the key; where it has none of the fields, PostgreSQL is asked. Raises
    OriginError, before anything is written.
    """
    if request.name != b"hset":
        return None
    fields = [*changes]
    place = session.downstream.locate(target.key, request.row, asked=False)
    if isinstance(place, bytes) or target.plan.read is None:
        return len(fields)
    row = request.ruleset.find_command(b"hmget")
    reply = await ask(session, place, [b"HMGET", target.name, *fields], row, request.received)
    if reply[:1] == b"*":
        there = [part for part in resp.elements(reply) if part not in (b"$-1\r\n", b"_\r\n")]
        if there:
            return len(fields) - len(there)
    found = await reads.bypass(target)
    if isinstance(found, OriginError):
        raise found
    known = found.value.data if found.value is not None else {}
    return len([field for field in fields if not isinstance(known, dict) or field not in known])
