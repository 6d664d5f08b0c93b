"""Scripts about locks: what one would do in Redis is done where it is decided.

`backed` gives every script on such a key here; `lock_scripts` knows which there are. What else has
a handler of its own means nothing to a lock and is refused.

Always true: no script runs; one of a single key is about the first, however many are named; of
several, which are of one keyspace then, all are taken or extended, or none.
"""

from collections.abc import Awaitable, Mapping, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Session
from proxy.handlers.claims import Claim, Hold
from proxy.handlers.connection import integer
from proxy.handlers.grants import Grants, scope_of
from proxy.handlers.lock_scripts import Does, Form, form_of
from proxy.handlers.locks import answered, grant, only_locks, unnamed
from proxy.handlers.owners import owner_of
from proxy.handlers.scripts import NOSCRIPT, body_of
from proxy.handlers.targets import Target
from proxy.handlers.terms import LONGEST, MOST, bounded, oversized
from proxy.plans import Plan

_SCRIPTS = (b"eval", b"evalsha")

# How many arguments each has at least.
_ARGUMENTS: Mapping[Does, int] = {Does.ACQUIRE: 2, Does.EXTEND: 2, Does.LENGTHEN: 3}


def answer(
    session: Session, request: wire.Request, targets: Sequence[Target]
) -> bytes | Awaitable[bytes]:
    """Answer a script about locks."""
    grants, words = session.server.grants, request.arguments
    if grants is None:
        return errors.ORIGIN_DOWN
    refused = errors.lock_refused(targets[0].plan.name, "command")
    if request.name not in _SCRIPTS:
        return refused
    body = words[1] if request.name == b"eval" else body_of(session, words[1])
    if body is None:
        return NOSCRIPT + b"\r\n"
    form = form_of(body)
    rest = words[3 + len(request.keys) :]
    if form is None or len(rest) < _ARGUMENTS.get(form.does, 1):
        return refused
    if not only_locks(request, targets):
        return refused
    if (line := unnamed(targets)) is not None:
        return line
    if not form.each:
        return answered(_one(request, grants, form, targets[0], rest))
    if any(target.plan is not targets[0].plan for target in targets):
        return refused
    if form.does is Does.RELEASE:
        return answered(_release(grants, targets, rest[0]))
    return answered(_all(session, request, grants, form, targets, rest))


async def _release(grants: Grants, targets: Sequence[Target], value: bytes) -> bytes:
    """Release locks that their owner names; answer how many it held."""
    plan = targets[0].plan
    owner = _owner(plan, value)
    if owner is None:
        return resp.integer(0)
    released = await grants.release(plan, [Hold(each.key, owner, None) for each in targets])
    return resp.integer(sum(released))


async def _all(
    session: Session, request: wire.Request, grants: Grants, form: Form,
    targets: Sequence[Target], rest: Sequence[bytes],
) -> bytes:  # fmt: skip
    """Take or extend locks, all or none; answer the number of keys, or 0."""
    plan, keys = targets[0].plan, [target.key for target in targets]
    number = integer(rest[1])
    if number is None:
        return errors.NOT_AN_INTEGER
    if not 0 < number * form.unit <= LONGEST:
        return errors.invalid_expire("set")
    seconds = bounded(request.ruleset, plan, number * form.unit)
    if form.does is Does.EXTEND:
        owner = _owner(plan, rest[0])
        done = owner is not None and (
            await grants.extend(plan, keys, Claim(owner, seconds))
        ).granted  # fmt: skip
        return resp.integer(len(request.keys) if done else 0)
    if (line := _too_much(request, plan, keys, rest[0])) is not None:
        return line
    reply = await grant(session, grants, targets, rest[0], seconds)
    if isinstance(reply, bytes):
        return reply
    return resp.integer(len(request.keys) if reply else 0)


def _too_much(
    request: wire.Request, plan: Plan, keys: Sequence[bytes], value: bytes
) -> bytes | None:
    """Return the error line for a value or keys that no lock, or no single call, is about."""
    if len(keys) > MOST:
        return errors.TOO_MANY_LOCKS
    if len({scope_of(plan, key) for key in keys}) > 1:
        return errors.lock_refused(plan.name, "scopes")
    return oversized(request.ruleset, plan, len(value))


async def _one(
    request: wire.Request, grants: Grants, form: Form, target: Target, rest: Sequence[bytes]
) -> bytes:
    """Release a lock, keep it for longer, or tell how long it lasts, for who names its owner."""
    if form.does is Does.RELEASE:
        return await _release(grants, [target], rest[0])
    plan, key = target.plan, target.key
    owner = _owner(plan, rest[0])
    held = None if owner is None else await grants.held(plan, key)
    if owner is None or held is None or held.owner != owner:
        return resp.integer(0)
    if form.does is Does.LEFT:
        return resp.integer(max(0, round(held.left * 1000)))
    number = integer(rest[1])
    if number is None:
        return resp.integer(0)
    seconds = number * form.unit
    if form.does is Does.LENGTHEN and rest[2] == b"0":
        seconds += held.left
    if seconds <= 0:
        return await _release(grants, [target], rest[0])
    claim = Claim(owner, bounded(request.ruleset, plan, seconds))
    return resp.integer((await grants.extend(plan, [key], claim)).granted)


def _owner(plan: Plan, value: bytes) -> str | None:
    assert plan.locking is not None
    return owner_of(plan.locking.owner, value)
