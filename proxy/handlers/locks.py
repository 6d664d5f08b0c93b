"""Keyspaces of kind lock: what clients send to them, made safe.

`backed` gives every command on such a key here. PostgreSQL decides, by `grants`; replies are those
that Redis would give. A lock is taken by SET NX or SETNX with an owner in its value, read like a
string, extended by EXPIRE and released by DEL; scripts of lock libraries are done by `lock_runs`.
Whatever else could be done to a string means nothing to a lock and is refused.

Always true:
  * a value or a nil tells what PostgreSQL has: Redis' nil is no proof that nobody holds a lock;
  * EXPIRE and DEL name no owner, so they are taken only from the connection that was granted the
    lock, and for that grant alone;
  * a lock that is granted to a client which has gone meanwhile is given up at once.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from proxy import errors, resp, wire
from proxy.errors import OriginDown, OriginError
from proxy.handlers import Session
from proxy.handlers.claims import Claim, Hold, Taken
from proxy.handlers.grants import Grants
from proxy.handlers.held import forget, known, remember
from proxy.handlers.owners import member, owner_of, said_by, text_of
from proxy.handlers.targets import Target
from proxy.handlers.terms import kept_for, time_of
from proxy.plans import Plan

# Of so many locks at a time one command asks PostgreSQL, which leaves room for others.
SLICE = 4

# Most locks that one command looks at or gives up: each is a question to PostgreSQL.
LOOKED_AT = 1000

_Found = TypeVar("_Found")


def take(
    session: Session, request: wire.Request, targets: Sequence[Target]
) -> bytes | Awaitable[bytes]:
    """Answer a command about locks."""
    grants, plan = session.server.grants, targets[0].plan
    if grants is None:
        return errors.ORIGIN_DOWN
    handler = _HANDLERS.get(request.name)
    if handler is None or not only_locks(request, targets):
        # Of several keys all are locks: who asks for others in the same command asks twice.
        plan = next((t.plan for t in targets if t.plan.locking is not None), plan)
        return errors.lock_refused(plan.name, "command")
    if len(targets) > LOOKED_AT:
        return errors.TOO_MANY_LOCKS
    if (line := unnamed(targets)) is not None:
        return line
    if handler in _TAKING and _refused(request, grants, targets[0]):
        return resp.null(session.protocol) if handler is _set else resp.integer(0)
    return answered(handler(session, request, grants, targets))


def only_locks(request: wire.Request, targets: Sequence[Target]) -> bool:
    """Return whether all keys of a command are locks."""
    words = request.arguments
    named = {words[at] for at in request.keys}
    known = {target.key for target in targets}
    return named == known and all(target.plan.locking is not None for target in targets)


def unnamed(targets: Sequence[Target]) -> bytes | None:
    """Return the error line for a lock with a name that PostgreSQL cannot hold."""
    for target in targets:
        if text_of(target.key.decode(errors="surrogateescape")) is None:
            reason = "the name of a lock is text, and not too long"
            return errors.key_refused(target.plan.name, reason)
    return None


def _refused(request: wire.Request, grants: Grants, target: Target) -> bool:
    """Return whether a lock is refused without a question to anybody: most of a crowd's wishes."""
    plan, words = target.plan, request.arguments
    assert plan.locking is not None
    if request.name == b"set" and isinstance(time_of(words[3:], plan), bytes):
        return False
    owner = owner_of(plan.locking.owner, words[2])
    if owner is None:
        return False
    return grants.refused(plan, target.key, owner, same=bool(plan.locking.owner)) is not None


async def answered(reply: Awaitable[bytes]) -> bytes:
    """Return a reply, or the error line of what PostgreSQL could not do."""
    try:
        return await reply
    except OriginError as error:
        unknown = isinstance(error, OriginDown) and error.sent
        return errors.ORIGIN_UNKNOWN if unknown else error.line


# Taking.


async def _set(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    """SET key value NX, with a time or with that of the policy."""
    words = resp.decode(request.routed or request.command)
    value, seconds = request.arguments[2], time_of(words[3:], targets[0].plan)
    if isinstance(seconds, bytes):
        return seconds
    reply = await grant(session, grants, targets, value, seconds)
    return reply if isinstance(reply, bytes) else resp.OK if reply else resp.null(session.protocol)


async def _setnx(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    plan = targets[0].plan
    reply = await grant(session, grants, targets, request.arguments[2], plan.ttl_ms / 1000)
    return reply if isinstance(reply, bytes) else resp.integer(reply)


async def grant(
    session: Session, grants: Grants, targets: Sequence[Target], value: bytes, seconds: float
) -> bytes | bool:
    """Return whether all locks were granted, which are of one keyspace, or an error line.

    Raises OriginError.
    """
    plan, keys = targets[0].plan, [target.key for target in targets]
    claim = claim_of(plan, value, seconds)
    if claim is None:
        return errors.lock_refused(plan.name, "value")
    taken = await _taken(grants, plan, keys, claim)
    if taken.outcome == "missing":
        return errors.no_row(plan.name)
    if taken.outcome == "limit":
        return errors.lock_refused(plan.name, "limit")
    await note(session, grants, plan, keys, claim, taken)
    return taken.granted


async def note(
    session: Session, grants: Grants, plan: Plan, keys: Sequence[bytes], claim: Claim, taken: Taken
) -> None:
    """Remember whose connection was granted locks; of one that has gone they are given back."""
    if taken.granted and session.gone:
        # A half of the connection may still be there, and must not hear of what is not so.
        session.close()
        await grants.vanish(plan, keys, claim, taken)
    elif taken.granted:
        for key, token in zip(keys, taken.tokens, strict=True):
            remember(session, key, claim.owner, token)


async def _taken(grants: Grants, plan: Plan, keys: Sequence[bytes], claim: Claim) -> Taken:
    """Return what became of a claim; whether it was granted may be in doubt, for the next who asks.

    What is said of the first key goes for all. Raises OriginError.
    """
    doubted = None if claim.same else grants.doubts.taken(keys[0], claim.owner)
    unknown = doubted is not None
    if doubted is not None:
        claim = claim._replace(session=doubted)
    try:
        taken = await grants.take(plan, keys, claim)
        unknown = unknown and not taken.granted
        return taken
    except OriginDown as error:
        unknown = unknown or (error.sent and not claim.same)
        raise
    finally:
        if unknown:
            grants.doubts.note(keys[0], claim)


def claim_of(plan: Plan, value: bytes, seconds: float) -> Claim | None:
    """Return what a value claims; None where it names no owner.

    A member of JSON says who that is. A whole value may be one word for everybody, of whom one
    holds the lock: a session of its own tells this claim from theirs.
    """
    assert plan.locking is not None
    path = plan.locking.owner
    said = said_by(value) if path else None
    owner = member(said, path) if path else owner_of(path, value)
    if not owner:
        return None
    if not path:
        return Claim(owner, seconds, session=secrets.token_hex(8), value=owner, same=False)
    booking, session = (member(said, [name]) for name in ("booking_id", "session_id"))
    try:
        return Claim(owner, seconds, booking, session, value.decode())
    except UnicodeDecodeError:
        return None


# Reading.


async def _get(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    values = await _each(grants.value, targets)
    nothing = resp.null(session.protocol)
    found = {key: nothing if value is None else resp.bulk(value) for key, value in values.items()}
    if request.name == b"mget":
        return resp.array([found[key] for key in request.arguments[1:]])
    return found[targets[0].key]


async def _exists(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    held = await _each(grants.held, targets)
    return resp.integer(sum(held[key] is not None for key in request.arguments[1:]))


async def _ttl(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    left = await _left(grants, targets[0])
    if left is None:
        return resp.integer(-2)
    if request.name.endswith(b"expiretime"):
        # A date by the client's own clock, see `terms`.
        left += time.time()
    return resp.integer(round(left * 1000) if request.name.startswith(b"p") else round(left))


async def _type(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    return b"+none\r\n" if await _left(grants, targets[0]) is None else b"+string\r\n"


async def _each(
    look: Callable[[Plan, bytes], Awaitable[_Found]], targets: Sequence[Target]
) -> dict[bytes, _Found]:
    """Return what is found of each lock, by key. Raises OriginError."""
    found: dict[bytes, _Found] = {}
    for first in range(0, len(targets), SLICE):
        some = targets[first : first + SLICE]
        answers = await asyncio.gather(*(look(target.plan, target.key) for target in some))
        found |= zip([target.key for target in some], answers, strict=True)
    return found


async def _left(grants: Grants, target: Target) -> float | None:
    """Return how many seconds a lock lasts; None where nobody holds it."""
    held = await grants.held(target.plan, target.key)
    return None if held is None else held.left


# Keeping and giving up.


async def _expire(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    """EXPIRE and its kin without conditions, from the connection that holds the lock."""
    target, words = targets[0], resp.decode(request.routed or request.command)
    seconds = kept_for(words, target.plan)
    if isinstance(seconds, bytes):
        return seconds
    ours, locking = known(session, target.key), target.plan.locking
    assert locking is not None
    if ours is None or (seconds <= 0 and not locking.blind):
        return await _not_ours(grants, target)
    if seconds <= 0:
        return await _release(session, grants, target.plan, [Hold(target.key, *ours)])
    owner, token = ours
    taken = await grants.extend(target.plan, [target.key], Claim(owner, seconds), token)
    return resp.integer(taken.granted)


async def _del(
    session: Session, request: wire.Request, grants: Grants, targets: Sequence[Target]
) -> bytes:
    """DEL and UNLINK, of what this connection was granted."""
    ours: list[tuple[Plan, Hold]] = []
    others: list[Target] = []
    for target in targets:
        locking = target.plan.locking
        assert locking is not None
        granted = known(session, target.key) if locking.blind else None
        if granted is None:
            others.append(target)
        else:
            ours.append((target.plan, Hold(target.key, *granted)))
    held = await _each(grants.held, others)
    if any(row is not None for row in held.values()):
        # Before anything is given up: an error says that nothing was done.
        return errors.NOT_THE_OWNER
    if not ours:
        return resp.integer(0)
    plan, holds = ours[0][0], [hold for _, hold in ours]
    if any(other is not plan for other, _ in ours):
        # They would be given up one keyspace after the other.
        return errors.lock_refused(targets[0].plan.name, "command")
    return await _release(session, grants, plan, holds)


async def _release(session: Session, grants: Grants, plan: Plan, holds: Sequence[Hold]) -> bytes:
    """Answer how many of the locks that this connection was granted it has held until now.

    One that was over before stays known, so that it is 0 again, and no error, when asked again.
    """
    released = await grants.release(plan, holds)
    for hold, done in zip(holds, released, strict=True):
        if done:
            forget(session, hold.key)
    return resp.integer(sum(released))


async def _not_ours(grants: Grants, target: Target) -> bytes:
    """Answer what concerns a lock that this connection was not granted."""
    free = await _left(grants, target) is None
    return resp.integer(0) if free else errors.NOT_THE_OWNER


_Handler = Callable[[Session, wire.Request, Grants, Sequence[Target]], Awaitable[bytes]]

_HANDLERS: Mapping[bytes, _Handler] = {
    b"set": _set,
    b"setnx": _setnx,
    b"get": _get,
    b"mget": _get,
    b"exists": _exists,
    b"ttl": _ttl,
    b"pttl": _ttl,
    b"expiretime": _ttl,
    b"pexpiretime": _ttl,
    b"type": _type,
    b"expire": _expire,
    b"pexpire": _expire,
    b"expireat": _expire,
    b"pexpireat": _expire,
    b"del": _del,
    b"unlink": _del,
}

_TAKING = frozenset((_set, _setnx))
