"""The gate before PostgreSQL: who asks for a lock that another holds mostly hears so at once.

`grants` asks it before PostgreSQL and tells it what PostgreSQL has said. A crowd before one lock
then costs PostgreSQL two questions a second and Redis some fifty, however large it is.

Always true:
  * the gate refuses only what PostgreSQL has refused within BELIEVED. Of a seat that is held, only
    while Redis shows the same holder, or did so less than `mirror.SEEN` ago, and GRACE more while
    one asks again; of one that is sold, blocked or kept for who is next in its queue, without
    asking. A sale that is cancelled, an offer that another sidecar ends, or what Redis shows by
    mistake, costs others that long; for whom a lock is held or kept is never turned away;
  * a release or a grant of this sidecar ends what was seen before it: who is told of a release
    finds the gate open. Behind another sidecar it may stay shut for SEEN and GRACE;
  * of a crowd one at a time asks PostgreSQL. Others wait for its answer, no longer than PATIENCE,
    and share its failure.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

from proxy.errors import OriginBusy, OriginDown
from proxy.handlers.owners import holder_of
from proxy.plans import Plan
from proxy.upstream.mirror import GRACE, Mirror, Shown

# How long PostgreSQL's word is taken, after which part of it somebody asks again while others are
# still refused, and how long a crowd waits for one of it; seconds.
BELIEVED = 1.0
RENEWED = 0.5
PATIENCE = 1.0

# Locks that are believed to be held; of too many the oldest is forgotten.
LOCKS = 10_000


class Said(NamedTuple):
    """Why nobody else gets a lock."""

    outcome: str  # held, queue, or the state of its row
    holder: str | None  # or for whom it is kept
    left: float | None = None  # seconds, of what is held or kept, where they are known


class Gate:
    """What is known of locks that crowds ask for."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._loop = asyncio.get_running_loop()
        self._said: dict[bytes, tuple[float, Said]] = {}  # key to when PostgreSQL said so
        self._asking: dict[bytes, asyncio.Future[OriginBusy | OriginDown | None]] = {}

    def known(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Said | None:
        """Return a refusal where that needs no question; same: see `claims.Claim`."""
        age = self._age(key)
        if age > BELIEVED or (age > RENEWED and key not in self._asking):
            return None
        return self._refusal(plan, key, owner, self._mirror.seen(key), same=same)

    async def shut(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Said | None:
        """Return a refusal, or None to who has to ask PostgreSQL; same: as for `known`.

        Raises OriginBusy and OriginDown: who asked for all of a crowd had no answer.
        """
        came = self._loop.time()
        while True:
            age = self._age(key)
            if RENEWED < age <= BELIEVED and key not in self._asking:
                return None
            if age <= BELIEVED:
                shown = None
                if self._said[key][1].outcome == "held":
                    shown = await self._mirror.look(plan, key)
                refusal = self._refusal(plan, key, owner, shown, same=same)
                if refusal is not None:
                    return refusal
            if (asking := self._asking.get(key)) is None:
                return None
            await asyncio.wait([asking], timeout=came + PATIENCE - self._loop.time())
            if not asking.done():
                return None
            if (error := asking.result()) is not None:
                # A crowd that asked now would keep PostgreSQL from getting better. Of what it
                # wants nothing was sent.
                if isinstance(error, OriginBusy):
                    raise OriginBusy(str(error), error.line)
                raise OriginDown(str(error))
            since, said = self._said.get(key, (0.0, None))
            if said is not None and since >= came:
                # PostgreSQL has just said so, whatever Redis shows.
                asks_again = said.holder == owner and (same or said.outcome == "queue")
                return None if asks_again else said
            # Where nobody holds it after all, the next of the crowd asks.

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

    def note(self, key: bytes, said: Said | None) -> None:
        """Hear what PostgreSQL says of a lock to anybody; None: somebody may get it."""
        _, before = self._said.pop(key, (0.0, None))
        if said is None or before is None or said[:2] != before[:2]:
            self._mirror.refusals.open(key)
        if said is not None:
            if len(self._said) >= LOCKS:
                del self._said[next(iter(self._said))]
            self._said[key] = (self._loop.time(), said)

    def _age(self, key: bytes) -> float:
        """Return how many seconds ago PostgreSQL refused a lock; very long, if it did not."""
        found = self._said.get(key)
        return math.inf if found is None else self._loop.time() - found[0]

    def _refusal(
        self, plan: Plan, key: bytes, owner: str, shown: Shown | None, *, same: bool
    ) -> Said | None:
        """Return why somebody does not get a lock, and let the data plane say so to others."""
        found = self._said.get(key)
        if found is None or plan.locking is None:
            # Granted or given up while Redis was asked.
            return None
        since, said = found
        until = since + (BELIEVED if key in self._asking else RENEWED)
        path = plan.locking.owner
        if said.outcome == "queue":
            ends = since + (said.left or 0.0)
            if owner == said.holder or self._loop.time() >= ends:
                return None
            until = min(until, ends)
            self._mirror.refusals.close(key, "queue", until, said.holder, path, ends, GRACE)
            return said._replace(left=ends - self._loop.time())
        if said.outcome != "held":
            self._mirror.refusals.close(key, said.outcome, until, None, path, grace=GRACE)
            return said
        holder = None if shown is None else holder_of(path, shown.value)
        # What Redis shows may be of before.
        if shown is None or holder is None or holder != said.holder or (same and holder == owner):
            return None
        if self._mirror.seen(key) is shown:
            until = min(until, shown.until)
            self._mirror.refusals.close(key, "held", until, holder, path, shown.ends, GRACE)
        return Said("held", holder, shown.ends - self._loop.time())
