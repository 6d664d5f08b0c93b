"""Keys of which writes wait for PostgreSQL, whole in Redis: what is carried out upon them there.

`behind` asks. Redis may lack such a key, or have it without some of those writes: it has lost the
key, was away, refused a write, or somebody else has fetched what PostgreSQL had.

Always true:
  * what is put into Redis is what PostgreSQL has and all that waits, each write once: meanwhile no
    write of the key is between journal and Redis;
  * a part is carried out upon a key that is there, or not at all, in one step (lua/upon.lua).
"""

import asyncio

from proxy import errors, wire
from proxy.errors import OriginError
from proxy.handlers import Session, in_redis, leases
from proxy.handlers.reading import Reads, There
from proxy.handlers.targets import Target
from proxy.handlers.told import Refused
from proxy.handlers.waiting import STILL_SECONDS, fields_of, value_of
from proxy.origin.behind import WriteBehind
from proxy.origin.render import fill_arguments

# How often to begin again where somebody else fetches, writes or removes the key meanwhile.
TRIES = 3


async def present(session: Session, target: Target, *, lost: bool = False) -> bool | bytes:
    """Let Redis have all of a key; return whether there is any, an error line where that fails.

    A key of which writes wait is believed to be there, unless it is known or said to be `lost`.
    """
    behind, reads = _both(session)
    if target.lease is None:
        return False
    lacks = _is_lacking(behind, reads, target)
    if not behind.waits(target.plan, target.key) and not lacks:
        found = await reads.value(target)
        if isinstance(found, OriginError):
            return found.line
        return isinstance(found, There) or found.value is not None
    if not lacks and not lost:
        return True
    try:
        async with asyncio.timeout(STILL_SECONDS), behind.turns.alone(target.key):
            return await _put(session, target)
    except TimeoutError:
        return errors.ORIGIN_BUSY
    except Refused as refused:
        return refused.line


async def upon(session: Session, request: wire.Request, target: Target) -> bytes | None:
    """Carry a write out upon a key that is there; None: it is not, and nothing was done."""
    _, reads = _both(session)
    reads.changed(target.key)
    return await in_redis.upon(session, request, [target], [target], aged=True)


async def _put(session: Session, target: Target) -> bool | bytes:
    """Put a key into Redis, unless it is there and has what waits. Raises Refused."""
    behind, reads = _both(session)
    plan, token = target.plan, reads.leases.token()
    replaces = _is_lacking(behind, reads, target)
    for _ in range(TRIES):
        if replaces and not await reads.leases.void(target):
            return errors.TIMEOUT
        said = await reads.leases.take(target, token, plan.age.window_ms - plan.age.stale_ms)
        if said == leases.AWAY:
            return errors.TIMEOUT
        if said == leases.THERE and not replaces:
            return True
        if said == leases.WON:
            value = value_of(plan, await fields_of(session, plan, target.key))
            arguments = [b"none", b"0"]
            if value is not None:
                arguments = fill_arguments(value, reads.life_ms(plan))
            if await reads.leases.fill(target, token, arguments):
                behind.lacks.whole(plan, target.key)
                return value is not None
        # Somebody fetches, or has found that there is no row, who knows nothing of what waits.
        replaces = True
    return errors.ORIGIN_BUSY


def _is_lacking(behind: WriteBehind, reads: Reads, target: Target) -> bool:
    return behind.lacks.has((target.plan.name, target.key)) or reads.leases.owes(target)


def _both(session: Session) -> tuple[WriteBehind, Reads]:
    behind, reads = session.server.behind, session.server.reads
    assert behind is not None
    assert reads is not None
    return behind, reads
