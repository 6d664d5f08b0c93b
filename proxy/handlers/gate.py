"""The gate before PostgreSQL: who asks for a lock that another holds mostly hears so at once.

`grants` asks it before PostgreSQL and tells it what PostgreSQL has said. A crowd before one lock
then costs PostgreSQL one question at a time, two a second of a lock that is held, and Redis some
fifty, however large it is.

Always true:
  * the gate refuses only what PostgreSQL has refused within BELIEVED. Of a seat that is held, only
    while Redis shows the same holder, or did so less than `mirror.SEEN` ago, and GRACE more while
    one asks again, or longer where the loop is too busy for that (`wire.refusals`); of one that is
    sold, blocked or kept for who is next in its queue, without asking. A sale that is cancelled, an
    offer that another sidecar ends, or what Redis shows by mistake, costs others that long;
  * for whom a lock is held or kept, as far as is known here, is never turned away. Who was granted
    it through another sidecar a moment ago, or by SQL, counts as another until then;
  * a release or a grant of this sidecar ends what was seen before it: who is told of a release
    finds the gate open. Behind another sidecar it may stay shut for SEEN and GRACE;
  * of a crowd one at a time asks PostgreSQL, however long that takes. Others wait for its answer
    or share its failure, for IN_HAND also who comes behind one that met another transaction. Who
    has waited for PATIENCE hears that the lock is in hand;
  * for whom a lock is held or kept asks whatever others wait for, and nobody waits for that.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

from proxy.errors import ORIGIN_IN_HAND, OriginBusy, OriginDown
from proxy.handlers.owners import holder_of
from proxy.plans import Plan
from proxy.upstream.mirror import GRACE, Mirror, Shown

# How long PostgreSQL's word is taken, after which part of it somebody asks again while others are
# still refused, and how long a crowd waits for one of it; seconds.
BELIEVED = 1.0
RENEWED = 0.5
PATIENCE = 1.0

# How long nobody asks for a lock whose row another transaction had in hand; seconds.
IN_HAND = 0.25

# Locks that are believed to be held; of too many the oldest is forgotten.
LOCKS = 10_000


# A question, and at its end why there was no answer.
_Asking = asyncio.Future[OriginBusy | OriginDown | None]


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
        # Who asks for all; done, and a failure, while that is still the answer.
        self._asking: dict[bytes, _Asking] = {}

    def known(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Said | None:
        """Return a refusal where that needs no question; same: see `claims.Claim`."""
        age = self._age(key)
        if age > BELIEVED or (age > RENEWED and key not in self._asking):
            return None
        return self._refusal(plan, key, owner, self._mirror.seen(key), same=same)

    async def shut(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Said | None:
        """Return a refusal, or None to who has to ask PostgreSQL; same: as for `known`.

        Raises OriginBusy and OriginDown where who asked for a crowd had no answer, or has none yet.
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
            asking = self._asking.get(key)
            shown = self._mirror.seen(key)
            if asking is None or self._theirs(plan, key, owner, shown, same=same):
                return None
            await asyncio.wait([asking], timeout=came + PATIENCE - self._loop.time())
            if (error := _failure(asking)) is not None:
                shown = await self._mirror.look(plan, key)
                if self._theirs(plan, key, owner, shown, same=same):
                    return None
                raise error
            since, said = self._said.get(key, (0.0, None))
            if said is not None and since >= came:
                # PostgreSQL has just said so, whatever Redis shows.
                asks_again = said.holder == owner and (same or said.outcome == "queue")
                return None if asks_again else said
            # Where nobody holds it after all, the next of the crowd asks.

    @contextlib.contextmanager
    def asking(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Iterator[None]:
        """Let others wait while PostgreSQL is asked about a lock; same: as for `known`."""
        own = self._theirs(plan, key, owner, self._mirror.seen(key), same=same)
        if own or key in self._asking:
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
            asking.set_result(failed)
            if failed is not None and failed.line == ORIGIN_IN_HAND:
                self._loop.call_later(IN_HAND, self._end, key, asking)
            else:
                self._end(key, asking)

    def _end(self, key: bytes, asking: _Asking) -> None:
        """Let the next ask."""
        if self._asking.get(key) is asking:
            del self._asking[key]

    def note(self, key: bytes, said: Said | None) -> None:
        """Hear what PostgreSQL says of a lock to anybody; None: somebody may get it."""
        asking = self._asking.get(key)
        if asking is not None and asking.done():
            self._end(key, asking)
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

    def _theirs(
        self, plan: Plan, key: bytes, owner: str, shown: Shown | None, *, same: bool
    ) -> bool:
        """Return whether a lock is kept for somebody, or held as far as is known."""
        assert plan.locking is not None
        _, said = self._said.get(key, (0.0, None))
        if said is not None and said.holder == owner and said.outcome in ("held", "queue"):
            return same or said.outcome == "queue"
        return same and shown is not None and holder_of(plan.locking.owner, shown.value) == owner

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
        if self._mirror.stands(key, shown):
            # The data plane judges how old it is: a busy loop comes to this later than it was told.
            until = min(until, shown.until)
            self._mirror.refusals.close(key, "held", until, holder, path, shown.ends, GRACE)
        return Said("held", holder, shown.ends - self._loop.time())


def _failure(asking: _Asking) -> OriginBusy | OriginDown | None:
    """Return what others hear of a question that had no answer, or has none yet.

    A crowd that asked as well would keep PostgreSQL from getting better. Of what it wants nothing
    was sent.
    """
    if not asking.done():
        return OriginBusy("who asked for the same lock waits still", ORIGIN_IN_HAND)
    error = asking.result()
    if isinstance(error, OriginBusy):
        return OriginBusy(str(error), error.line)
    return None if error is None else OriginDown(str(error))
