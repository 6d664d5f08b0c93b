"""Look-ups of keys that PostgreSQL stands behind, where Redis had no answer.

`backed` gives them here: what was not there, too old, or where no node could be asked or told; and
questions of time, whose answers are those of Redis without the window that clients do not know.

Always true: what cannot be had is an error of PostgreSQL's or of Redis', never nil; what is older
than a policy lets clients see is not shown, but where PostgreSQL cannot answer.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial

from proxy import errors, resp, wire
from proxy.errors import OriginBusy, OriginError
from proxy.handlers import Session, waiting
from proxy.handlers.ageing import told
from proxy.handlers.forward import ask
from proxy.handlers.reading import Found, Reads, There
from proxy.handlers.targets import Target
from proxy.origin.answers import ANSWERED, answer
from proxy.wire.rules import AWAY_WORDS, Reason

# What a command that tells of a time asks a node for, and whether it wants seconds.
_CLOCKS: Mapping[bytes, tuple[bytes, bool]] = {
    b"ttl": (b"PTTL", True),
    b"pttl": (b"PTTL", False),
    b"expiretime": (b"PEXPIRETIME", True),
    b"pexpiretime": (b"PEXPIRETIME", False),
}

# What they say of a key that is not there.
_GONE = b":-2\r\n"

_ANSWERED = ANSWERED | {b"mget"}


def look_up(
    session: Session, request: wire.Request, reads: Reads, target: Target
) -> bytes | Awaitable[bytes]:
    """Answer a look-up by what PostgreSQL has."""
    assert request.reply is not None
    if request.reason == Reason.OWED:
        return _owed(session, request, reads, target)
    if request.reason != Reason.AWAY:
        return _missed(session, request, reads, target)
    # Without Redis everybody comes here: who waits for the same fetch costs no task.
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    reads.tell_away(target, partial(_tell, told, session, request, reads, target))
    return told.result() if told.done() else told


async def _missed(session: Session, request: wire.Request, reads: Reads, target: Target) -> bytes:
    """Answer a look-up of what Redis lacks, or has too old."""
    assert request.reply is not None
    found = await reads.value(target)
    if isinstance(found, OriginError) and _may_be_old(request, target):
        reads.metrics.answer(target.plan.name, "stale")
        return request.reply
    if isinstance(found, Found) and request.name not in _ANSWERED:
        # Redis has been given the value, and knows the command.
        return await again(session, request, reads, target, found)
    if isinstance(found, There):
        return await again(session, request, reads, target, None)
    return _said(session, request, reads, target, found)


async def _owed(session: Session, request: wire.Request, reads: Reads, target: Target) -> bytes:
    """Answer a look-up of a key that its node may have as it was before it changed here."""
    assert request.reply is not None
    if await reads.leases.settled([target]):
        return await _missed(session, request, reads, target)
    return await _away(session, request, reads, target, request.reply)


async def time_left(session: Session, request: wire.Request, reads: Reads, target: Target) -> bytes:
    """Answer how long a key lives, as far as clients know."""
    question, seconds = _CLOCKS[request.name]
    if not await reads.leases.settled([target]):
        return await _away(session, request, reads, target, errors.CLUSTERDOWN)
    reply = await _ask(session, request, [question, target.name], target)
    if reply == _GONE and target.plan.read is not None:
        found = await waiting.found(session, target) or await reads.value(target)
        if not isinstance(found, There):
            return _said(session, request, reads, target, found)
        # Somebody has fetched it meanwhile.
        reply = await _ask(session, request, [question, target.name], target)
        if reply == _GONE:
            return _said(session, request, reads, target, await reads.bypass(target))
    if reply.startswith(AWAY_WORDS):
        return await _away(session, request, reads, target, reply)
    if reply[:1] != b":":
        return reply
    return resp.integer(told(int(reply[1:-2]), target.plan.age.window_ms, seconds))


async def _away(
    session: Session, request: wire.Request, reads: Reads, target: Target, reply: bytes
) -> bytes:
    """Answer without Redis."""
    found = await waiting.found(session, target) or await reads.away(target)
    return _said_away(session, request, reads, target, reply, found)


def _tell(
    told: asyncio.Future[bytes],
    session: Session,
    request: wire.Request,
    reads: Reads,
    target: Target,
    found: Found | OriginError | None,
) -> None:
    """Give a client the answer to a look-up without Redis; a fault is this client's alone."""
    assert request.reply is not None
    if told.done():
        return  # the process ends and has given up on it
    try:
        told.set_result(_said_away(session, request, reads, target, request.reply, found))
    except Exception as error:
        told.set_exception(error)


def _said_away(
    session: Session,
    request: wire.Request,
    reads: Reads,
    target: Target,
    reply: bytes,
    found: Found | OriginError | None,
) -> bytes:
    """Return what is found without Redis, or the node's error where the policy wants one."""
    if found is None:
        reads.metrics.answer(target.plan.name, "error")
        return reply
    return _said(session, request, reads, target, found)


def _said(
    session: Session,
    request: wire.Request,
    reads: Reads,
    target: Target,
    found: Found | OriginError,
) -> bytes:
    reads.count(target.plan, found)
    if isinstance(found, OriginError):
        return found.line
    words = request.arguments
    if request.name == b"mget":
        return resp.array([answer_of_string(found, session.protocol)])
    return answer(found.value, words, session.protocol, target.plan.ttl_ms) or errors.DEGRADED


def answer_of_string(found: Found, protocol: int) -> bytes:
    """Return a value as an element of MGET: what is no string is nil there."""
    data = None if found.value is None else found.value.data
    return resp.bulk(data) if isinstance(data, bytes) else resp.null(protocol)


def _may_be_old(request: wire.Request, target: Target) -> bool:
    """Return whether what Redis has may be shown because PostgreSQL cannot answer."""
    return request.reason == Reason.EXPIRED and target.plan.age.bears_errors(request.left_ms)


async def again(
    session: Session, request: wire.Request, reads: Reads, target: Target, found: Found | None
) -> bytes:
    """Ask Redis once more: the key is there now, or was all the time and a field of it is not.

    `found` is what PostgreSQL has said of it, None where it was not asked.
    """
    words = request.arguments
    words[1] = target.name
    # Asked on both sides: what is there before and after has been there meanwhile.
    question = [b"PTTL", target.name]
    before, reply, after = await asyncio.gather(
        _ask(session, request, question, target),
        _ask(session, request, words, target),
        _ask(session, request, question, target),
    )
    if reply.startswith(AWAY_WORDS):
        return await _away(session, request, reads, target, reply)
    if not (_is_there(before, target) and _is_there(after, target)):
        known = found or await waiting.found(session, target) or await reads.bypass(target)
        if isinstance(known, OriginError) or request.name in _ANSWERED:
            return _said(session, request, reads, target, known)
        if known.value is not None:
            # Another sidecar is about to bring it.
            return _said(session, request, reads, target, OriginBusy("not in Redis yet"))
    reads.metrics.answer(target.plan.name, "redis")
    return reply


def _is_there(left: bytes, target: Target) -> bool:
    """Return whether a key of which PTTL said this is one that clients may see."""
    age = target.plan.age
    return (
        left[:1] != b":" or int(left[1:-2]) == -1 or int(left[1:-2]) > age.window_ms - age.stale_ms
    )


async def _ask(
    session: Session, request: wire.Request, words: list[bytes], target: Target
) -> bytes:
    place = session.downstream.locate(target.key, request.row, asked=False)
    if isinstance(place, bytes):
        return place
    return await ask(session, place, words, request.row, request.received)
