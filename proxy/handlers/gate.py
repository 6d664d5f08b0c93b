"""The gate before PostgreSQL: who asks for a lock that another holds mostly hears so at once.

`grants` asks it before PostgreSQL and tells it what PostgreSQL has said. A crowd before one lock
then costs PostgreSQL two questions a second and Redis some two hundred, however large it is.

Always true:
  * the gate refuses only what PostgreSQL has said within BELIEVED to be held, and only while Redis
    shows somebody else as the holder, or did so less than `mirror.SEEN` ago: a lock that Redis
    shows by mistake costs others that long;
  * a release or a grant of this sidecar ends what was seen before it: who is told of a release
    finds the gate open. Behind another sidecar it may stay shut for SEEN;
  * of a crowd one at a time asks PostgreSQL. Others wait for its answer, no longer than PATIENCE,
    and share its failure.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from proxy.errors import OriginBusy, OriginDown
from proxy.handlers.owners import holder_of
from proxy.plans import Plan
from proxy.upstream.mirror import Mirror, Shown

# How long PostgreSQL's word is taken, after which part of it somebody asks again while others are
# still refused, and how long a crowd waits for one of it; seconds.
BELIEVED = 1.0
RENEWED = 0.5
PATIENCE = 1.0

# Locks that are believed to be held; of too many the oldest is forgotten.
LOCKS = 10_000


class Shut(NamedTuple):
    """A refusal."""

    holder: str
    left: float  # seconds


class Gate:
    """What is known of locks that crowds ask for."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._loop = asyncio.get_running_loop()
        self._said: dict[bytes, float] = {}  # key to when PostgreSQL said that it is held
        self._asking: dict[bytes, asyncio.Future[OriginBusy | OriginDown | None]] = {}

    def known(self, plan: Plan, key: bytes, owner: str) -> Shut | None:
        """Return a refusal where that needs no question."""
        age = self._age(key)
        if age > BELIEVED or (age > RENEWED and key not in self._asking):
            return None
        return _shut(plan, self._mirror.seen(key), owner)

    async def shut(self, plan: Plan, key: bytes, owner: str) -> Shut | None:
        """Return a refusal, or None to who has to ask PostgreSQL.

        Raises OriginBusy and OriginDown: who asked for all of a crowd had no answer.
        """
        until = self._loop.time() + PATIENCE
        while (age := self._age(key)) > BELIEVED and (asking := self._asking.get(key)) is not None:
            await asyncio.wait([asking], timeout=until - self._loop.time())
            if not asking.done():
                return None
            if (error := asking.result()) is not None:
                # A crowd that asked now would keep PostgreSQL from getting better. Of what it
                # wants nothing was sent.
                raise type(error)(str(error))
            # Where nobody holds it after all, the next of the crowd asks.
        if age > RENEWED and key not in self._asking:
            return None
        return _shut(plan, await self._mirror.look(plan, key), owner)

    @contextlib.contextmanager
    def asking(self, key: bytes) -> Iterator[None]:
        """Let others wait while PostgreSQL is asked about a lock."""
        if key in self._asking:
            yield
            return
        asking = self._asking[key] = self._loop.create_future()
        failed: OriginBusy | OriginDown | None = None
        try:
            yield
        except (OriginBusy, OriginDown) as error:
            failed = error
            raise
        finally:
            del self._asking[key]
            asking.set_result(failed)

    def note(self, key: bytes, *, held: bool) -> None:
        """Hear what PostgreSQL says of a lock."""
        self._said.pop(key, None)
        if held:
            if len(self._said) >= LOCKS:
                del self._said[next(iter(self._said))]
            self._said[key] = self._loop.time()

    def _age(self, key: bytes) -> float:
        """Return how many seconds ago PostgreSQL said that a lock is held; long, if it did not."""
        said = self._said.get(key)
        return self._loop.time() - said if said is not None else 2 * BELIEVED


def _shut(plan: Plan, shown: Shown | None, owner: str) -> Shut | None:
    if shown is None or plan.locking is None:
        return None
    holder = holder_of(plan.locking.owner, shown.value)
    return None if holder is None or holder == owner else Shut(holder, shown.left_ms / 1000)
