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
from collections.abc import Callable, Mapping
from typing import NamedTuple

from proxy import errors, resp, wire
from proxy.errors import OriginDown, OriginError
from proxy.handlers import Session, in_redis
from proxy.handlers.forward import ask
from proxy.handlers.reading import Reads
from proxy.handlers.targets import Target
from proxy.handlers.told import Refused, time_of
from proxy.origin.answers import answer
from proxy.origin.batching import segments_of
from proxy.origin.budget import share_of
from proxy.origin.codecs import text_of

# What changes the copy alone: rows are not deleted because a copy of them is, and have no times.
COPIES = frozenset(
    (b"del", b"unlink", b"expire", b"pexpire", b"expireat", b"pexpireat", b"persist", b"getex")
)

# In milliseconds.
_UNITS = {b"EX": 1000, b"PX": 1, b"EXAT": 1000, b"PXAT": 1}


class Told(NamedTuple):
    """What a command tells PostgreSQL."""

    values: Mapping[str, bytes]  # by the parameters' names
    seconds: float | None = None  # to live


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
    teller = _TELLERS.get(request.name)
    try:
        told = None if teller is None or plan.writing is None else teller(request.arguments)
    except Refused as refused:
        return refused.line
    if told is None:
        return errors.no_statement(plan.name)
    assert plan.writing is not None
    names = {name for name, kind in plan.writing.statement.parameters if kind == "field"}
    if not told.values.keys() <= names:
        return errors.no_column(plan.name)
    try:
        count = await _new(session, request, reads, target, told)
        written = await _executed(reads, target, told)
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


async def _executed(reads: Reads, target: Target, told: Told) -> int:
    """Run the statement and return how many rows it was about. Raises OriginError."""
    plan = target.plan
    assert plan.writing is not None
    values: dict[str, str | None] = {
        "ttl": None if told.seconds is None else f"{told.seconds:.3f}",
        "version": str(time.time_ns() // 1000),
    }
    values |= {name: text_of(value) for name, value in told.values.items()}
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
    session: Session, request: wire.Request, reads: Reads, target: Target, told: Told
) -> int | None:
    """Return how many of the fields HSET makes new, as far as can be told; None: it says OK.

    Redis knows where it has the key; where it has none of the fields, PostgreSQL is asked. Raises
    OriginError, before anything is written.
    """
    if request.name != b"hset":
        return None
    fields = [name.encode() for name in told.values]
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


def _fields(words: list[bytes]) -> Told | None:
    if len(words) % 2:
        raise Refused(errors.wrong_arity(words[0].lower()))
    try:
        names = [word.decode("ascii") for word in words[2::2]]
    except UnicodeDecodeError:
        return None
    return Told(dict(zip(names, words[3::2], strict=True)))


def _value(words: list[bytes]) -> Told | None:
    """Take SET with a time or none: a condition or an old value needs a statement of its own."""
    options = [word.upper() for word in words[3:]]
    if not options or options == [b"KEEPTTL"]:
        return Told({"value": words[2]})
    if len(options) != 2 or options[0] not in _UNITS:
        return None
    unit, date = _UNITS[options[0]], options[0].endswith(b"AT")
    seconds = time_of(options[1], "set", unit, date=date) * unit / 1000
    return Told({"value": words[2]}, seconds - (time.time() if date else 0))


def _timed(unit_ms: int) -> Callable[[list[bytes]], Told | None]:
    def tell(words: list[bytes]) -> Told | None:
        seconds = time_of(words[2], words[0].decode().lower(), unit_ms) * unit_ms / 1000
        return Told({"value": words[3]}, seconds)

    return tell


_TELLERS: Mapping[bytes, Callable[[list[bytes]], Told | None]] = {
    b"hset": _fields,
    b"hmset": _fields,
    b"set": _value,
    b"setex": _timed(1000),
    b"psetex": _timed(1),
}
