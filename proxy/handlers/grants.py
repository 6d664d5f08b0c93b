"""Taking, keeping and giving up locks about which PostgreSQL decides.

`locks` calls this for whatever command a client sends; one `Grants` per process. Each operation is
one call of a function in the database (`origin.locking`) and what has to be told to Redis after it.

Always true:
  * granted means committed: whoever is told "acquired" holds the lock until it expires;
  * an answer that was lost is asked for again until RESOLVE: every function may be called twice by
    the same owner, and does the same. Who still does not know says so, and so does who is refused
    then: the call that was lost may come later, and be granted;
  * who is refused without PostgreSQL is refused by the `gate`, which has learnt of it here.
"""

import asyncio
import contextlib
import functools
import random
from collections import defaultdict
from collections.abc import Sequence

from proxy.errors import OriginBusy, OriginDown, OriginError, OriginRefused
from proxy.handlers.claims import Claim, Freed, Hold, Mine, Row, Taken, Waiting
from proxy.handlers.doubts import Doubts
from proxy.handlers.gate import Gate, Said
from proxy.handlers.owners import value_for
from proxy.handlers.together import Together, Wish
from proxy.origin.batching import segments_of
from proxy.origin.budget import share_of
from proxy.origin.postgres import Argument, Postgres, Record
from proxy.origin.render import rendered
from proxy.plans import Locking, Plan, Statement
from proxy.tallies import LockMetrics
from proxy.upstream.mirror import Mirror

# How long an answer that was lost is asked for again, in seconds, and how often.
RESOLVE = 2.0
AGAIN = 0.05

# How often it is asked again where there was no room, or PostgreSQL gave up for another
# transaction: a release that is refused keeps others away until the lock expires.
RETRIES = 4

# What concerns one owner and nobody else, or may be otherwise in a moment.
_OWN = frozenset(("limit", "missing", "lost"))


class Grants:
    """All locks of all keyspaces."""

    def __init__(self, postgres: Postgres, mirror: Mirror, metrics: LockMetrics) -> None:
        self._postgres = postgres
        self._mirror = mirror
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.doubts = Doubts()
        self._gate = Gate(mirror)
        metrics.watch(lambda: mirror.refusals.count)
        # By keyspace: one that is slow keeps no other waiting.
        self._grabs = defaultdict[str, Together[Taken]](lambda: Together(self._grab))
        self._drops = defaultdict[str, Together[Freed]](
            lambda: Together(functools.partial(self._free, patient=False))
        )

    def refused(self, plan: Plan, key: bytes, owner: str, *, same: bool = True) -> Taken | None:
        """Return a refusal of a lock where nothing has to be asked for that; same: see `Claim`."""
        said = self._gate.known(plan, key, owner, same=same) if _locking(plan).gate else None
        return None if said is None else self._refusal(said)

    async def take(self, plan: Plan, keys: Sequence[bytes], claim: Claim) -> Taken:
        """Take locks, all or none; all within one scope where they are counted.

        Raises OriginError.
        """
        locking = _locking(plan)
        if claim.value is None and locking.table is None:
            value = value_for(
                locking.owner, claim.owner, claim.booking, claim.session, claim.seconds
            )
            claim = claim._replace(value=value)
        if len(keys) > 1:
            return await self._take(plan, keys, claim)
        if not locking.gate:
            return await self._take_one(plan, keys[0], claim)
        said = await self._gate.shut(plan, keys[0], claim.owner, same=claim.same)
        if said is not None:
            return self._refusal(said)
        with self._gate.asking(plan, keys[0], claim.owner, same=claim.same):
            return await self._take_one(plan, keys[0], claim)

    async def extend(
        self, plan: Plan, keys: Sequence[bytes], claim: Claim, token: int | None = None
    ) -> Taken:
        """Hold longer, or shorter, what the owner holds, by that token where it is known.

        Raises OriginError.
        """
        return await self._take(plan, keys, claim, mine=True, token=token)

    def _refusal(self, said: Said) -> Taken:
        self._metrics.count("gate")
        return Taken(said.outcome, (), () if said.left is None else (said.left,), said.holder)

    async def _take_one(self, plan: Plan, key: bytes, claim: Claim) -> Taken:
        """Take a lock with what others want, or alone where anything is in the way of it."""
        what = (claim.booking, claim.session, claim.value, f"{claim.seconds:.3f}",
                _flag(claim.same))  # fmt: skip
        counted = claim.owner if _locking(plan).most else None
        taken = await self._grabs[plan.name].ask(Wish(plan, key, claim.owner, what, counted))
        if not taken.granted:
            lost = taken.outcome == "lost"
            return await self._take(plan, [key], claim, lost=lost)
        self._granted(plan, [key], taken, claim)
        return taken

    async def _grab(self, wishes: Sequence[Wish]) -> list[Taken]:
        """Take locks for several at a time; who gets nothing hears whether an answer was lost."""
        plan = wishes[0].plan
        locking = _locking(plan)
        columns = [_columns(plan, wish.key) for wish in wishes]
        scopes = [scope_of(plan, wish.key) for wish in wishes]
        try:
            rows, again = await self._call(
                plan, locking.calls.grab, _turned(columns),
                ([wish.owner for wish in wishes], *_turned([wish.what for wish in wishes]),
                 f"{locking.longest:.3f}", scopes, str(locking.most), f"{locking.offer:.3f}"),
            )  # fmt: skip
        except OriginRefused:
            # One of them is refused, for whatever is in it or a trigger of the application.
            return [Taken("open")] * len(wishes)
        (row,) = rows
        found = [Taken("lost" if again else "open")] * len(wishes)
        each = (row[name] or () for name in ("numbers", "outcomes", "tokens", "lefts", "stamps"))
        for number, outcome, token, left, stamp in zip(*each, strict=True):
            # Granted by the call whose answer was lost.
            fresh = (0,) if outcome == "acquired" else ()
            outcome = "acquired" if again else outcome
            found[int(number) - 1] = Taken(
                outcome, [int(token)], [float(left)], fresh=fresh, stamps=[stamp]
            )
        return found

    async def _take(
        self, plan: Plan, keys: Sequence[bytes], claim: Claim, *, mine: bool = False,
        token: int | None = None, lost: bool = False,
    ) -> Taken:  # fmt: skip
        """Take locks in PostgreSQL, and tell mirror and gate of it. Raises OriginError.

        Lost: an answer to the same was lost before.
        """
        locking = _locking(plan)
        columns = [_columns(plan, key) for key in keys]
        rows, again = await self._call(
            plan, locking.calls.take, _turned(columns),
            (claim.owner, claim.booking, claim.session, claim.value, f"{claim.seconds:.3f}",
             f"{locking.longest:.3f}", scope_of(plan, keys[0]), str(locking.most),
             f"{locking.offer:.3f}", _flag(mine), _number(token), _flag(claim.same)),
            lost,
        )  # fmt: skip
        (row,) = rows
        # Numbers arrive as PostgreSQL writes them.
        taken = Taken(
            row["outcome"],
            [int(token) for token in row["tokens"] or ()],
            [float(left) for left in row["lefts"] or ()],
            row["holder"],
            int(row["has"]),
            [int(number) - 1 for number in row["fresh"] or ()],
            row["stamps"] or (),
        )
        if again and taken.outcome == "extended" and not mine:
            # Granted by the call whose answer was lost.
            taken = taken._replace(outcome="acquired")
        if taken.granted:
            self._granted(plan, keys, taken, claim)
            return taken
        self._metrics.count(taken.outcome)
        if locking.gate and len(keys) == 1 and not mine:
            left = taken.lefts[0] if taken.lefts else None
            said = Said(taken.outcome, taken.holder, left)
            self._gate.note(keys[0], None if taken.outcome in _OWN else said)
        if again and not mine:
            # What the lost call asked for may be granted yet, when who holds it has let go.
            raise OriginDown("the answer to an earlier call was lost", sent=True)
        return taken

    def _granted(self, plan: Plan, keys: Sequence[bytes], taken: Taken, claim: Claim) -> None:
        """Tell everybody here of a grant."""
        self._metrics.count(taken.outcome)
        for key, token, left in zip(keys, taken.tokens, taken.lefts, strict=True):
            self._gate.note(key, None)
            text = claim.value or value_for(
                _locking(plan).owner, claim.owner, claim.booking, claim.session, left
            )
            self._mirror.put(plan, key, token, text.encode(), round(left * 1000))

    async def release(self, plan: Plan, holds: Sequence[Hold]) -> list[bool]:
        """Give locks up at once; return of each whether it was held so. Raises OriginError."""
        wishes = [
            Wish(plan, each.key, each.owner, (_number(each.token), each.stamp)) for each in holds
        ]
        first = await self._drop(wishes[0]) if len(wishes) == 1 else None
        if first is not None and first.looked:
            found = [first]
        else:
            lost = first is not None and first.again
            found = await self._free(wishes, patient=True, lost=lost)
        again = found[0].again
        dropped = [
            (hold.key, freed.token)
            for hold, freed in zip(holds, found, strict=True)
            if freed.token is not None
        ]
        for key, _ in dropped:
            self._gate.note(key, None)
        await asyncio.gather(*(self._mirror.drop(plan, *each) for each in dropped))
        told = [freed.token is not None for freed in found]
        if again:
            told = [done or await self._released(plan, hold)
                    for done, hold in zip(told, holds, strict=True)]  # fmt: skip
        self._metrics.count("released", told.count(True))
        self._metrics.count("not_held", told.count(False))
        return told

    async def _drop(self, wish: Wish) -> Freed | None:
        """Give a lock up with what others give up; None where that has to be done alone."""
        try:
            return await self._drops[wish.plan.name].ask(wish)
        except (OriginBusy, OriginRefused):
            # A release that is not made keeps others away until the lock expires.
            return None

    async def _released(self, plan: Plan, hold: Hold) -> bool:
        """Return whether a call whose answer was lost has given a lock up. Raises OriginError."""
        now = await self.row(plan, hold.key)
        if now is None or (hold.token is not None and now.token < hold.token):
            return False
        if hold.token is None or now.token > hold.token:
            # Nobody's, or granted again meanwhile: whether by that call, nobody can tell.
            raise OriginDown("the answer to a release was lost", sent=True)
        return now.status == "available"

    async def _free(
        self, wishes: Sequence[Wish], *, patient: bool, lost: bool = False
    ) -> list[Freed]:
        """Give locks up; without patience those that nobody else has in hand."""
        plan = wishes[0].plan
        locking = _locking(plan)
        rows, again = await self._call(
            plan, locking.calls.release, _arrays(plan, [wish.key for wish in wishes]),
            ([wish.owner for wish in wishes], *_turned([wish.what for wish in wishes]),
             f"{locking.offer:.3f}", str(locking.most), _flag(patient)),
            lost,
        )  # fmt: skip
        (row,) = rows
        looked = {int(number) for number in row["looked"] or ()}
        tokens = dict(zip(row["numbers"] or (), row["tokens"] or (), strict=True))
        freed = {int(number): int(token) for number, token in tokens.items()}
        return [
            Freed(freed.get(number), number in looked, again)
            for number in range(1, len(wishes) + 1)
        ]

    async def vanish(self, plan: Plan, keys: Sequence[bytes], claim: Claim, taken: Taken) -> None:
        """Give up what was granted to a client that has gone meanwhile; not what it had before.

        Nor what was granted to its owner again meanwhile: a client that has lost its connection
        asks once more on another, and is told that it holds the lock, by the same token.
        """
        if not taken.fresh:
            return
        self._metrics.count("vanished")
        holds = [
            Hold(keys[each], claim.owner, taken.tokens[each], taken.stamps[each])
            for each in taken.fresh
        ]
        with contextlib.suppress(OriginError):
            await self.release(plan, holds)

    async def confirm(self, plan: Plan, holds: Sequence[Hold], booking: str) -> str:
        """Make locks of one owner bookings, all or none: "confirmed" or "lost".

        Raises OriginError.
        """
        rows, _ = await self._call(
            plan, _locking(plan).calls.confirm, _arrays(plan, [each.key for each in holds]),
            (holds[0].owner, [_number(each.token) for each in holds], booking),
        )  # fmt: skip
        outcome = str(rows[0]["outcome"])
        self._metrics.count(outcome)
        if outcome == "confirmed":
            await asyncio.gather(
                *(self._mirror.drop(plan, each.key, each.token or 0) for each in holds)
            )
        return outcome

    async def queue(self, plan: Plan, key: bytes, owner: str, *, leaving: bool) -> Waiting:
        """Join the queue of a lock, keep the place in it, or leave it. Raises OriginError."""
        locking = _locking(plan)
        rows, _ = await self._call(
            plan, locking.calls.queue, _arrays(plan, [key]),
            (owner, scope_of(plan, key), f"{locking.heartbeat:.3f}", f"{locking.offer:.3f}",
             str(locking.most), _flag(leaving)),
        )  # fmt: skip
        row = rows[0]
        waiting = Waiting(
            row["outcome"], int(row["place"]), float(row["waits"]), float(row["offered"])
        )
        if locking.gate and waiting.outcome in ("offered", "available", "left"):
            offered = waiting.outcome == "offered"
            self._gate.note(key, Said("queue", owner, waiting.offered) if offered else None)
        return waiting

    async def row(self, plan: Plan, key: bytes) -> Row | None:
        """Return what PostgreSQL has of a lock, held or not. Raises OriginError."""
        found = await self._look(plan, _locking(plan).calls.held, _columns(plan, key))
        if found is None:
            return None
        left = found["remains"]
        return Row(
            found["status"], found["locked_by"], int(found["token"] or 0), found["booking_id"],
            found["session_id"], 0.0 if left is None else float(left),
        )  # fmt: skip

    async def held(self, plan: Plan, key: bytes) -> Row | None:
        """Return who holds a lock; None: nobody. Raises OriginError."""
        row = await self.row(plan, key)
        return row if row is not None and row.status == "locked" and row.left > 0 else None

    async def value(self, plan: Plan, key: bytes) -> bytes | None:
        """Return the value of a lock that is held, None for one that is not. Raises OriginError."""
        row = await self._look(plan, _locking(plan).calls.shown, _columns(plan, key))
        if row is None or row["value"] is None or float(row["ttl"]) <= 0:
            return None
        return rendered(row["value"])

    async def mine(self, plan: Plan, owner: str, scope: str) -> list[Mine]:
        """Return what an owner holds. Raises OriginError."""
        rows = await self._postgres.fetch(
            _locking(plan).calls.mine, [owner, scope], share_of(plan), primary=True
        )
        return [Mine(row["name"], int(row["token"]), float(row["remains"])) for row in rows]

    # PostgreSQL.

    async def _look(
        self, plan: Plan, statement: Statement, columns: Sequence[str]
    ) -> Record | None:
        rows = await self._postgres.fetch(statement, columns, share_of(plan), primary=True)
        return rows[0] if rows else None

    async def _call(
        self, plan: Plan, statement: Statement, arrays: list[Argument], rest: Sequence[Argument],
        lost: bool = False,
    ) -> tuple[list[Record], bool]:  # fmt: skip
        """Call a function; return its rows, and whether an earlier answer was lost.

        Lost: one was before, so that no error means that nothing was done. Raises OriginError.
        """
        until, tries = self._loop.time() + RESOLVE, 0
        while True:
            try:
                rows = await self._postgres.fetch(
                    statement, [*arrays, *rest], share_of(plan), primary=True
                )
            except OriginBusy as error:
                tries += 1
                if tries > RETRIES and not (lost and self._loop.time() < until):
                    if lost:
                        raise OriginDown(str(error), sent=True) from error
                    raise
                await asyncio.sleep(AGAIN * random.random())
            except OriginRefused as error:
                if lost:
                    raise OriginDown(str(error), sent=True) from error
                raise
            except OriginDown as error:
                lost = lost or error.sent
                if not lost:
                    raise
                if self._loop.time() > until:
                    raise OriginDown(str(error), sent=True) from error
                await asyncio.sleep(AGAIN)
            else:
                return rows, lost


def _locking(plan: Plan) -> Locking:
    assert plan.locking is not None
    return plan.locking


def _number(token: int | None) -> str | None:
    return None if token is None else str(token)


def _flag(on: bool) -> str:
    return "t" if on else "f"


def scope_of(plan: Plan, key: bytes) -> str:
    """Return within what the locks of an owner are counted, "" where they are not."""
    locking = _locking(plan)
    return [*segments_of(plan, key).values()][locking.scope] if locking.most else ""


def _columns(plan: Plan, key: bytes) -> list[str]:
    """Return what picks the row of a lock, by the columns of its table."""
    if _locking(plan).table is None:
        return [key.decode()]
    return list(segments_of(plan, key).values())


def _arrays(plan: Plan, keys: Sequence[bytes]) -> list[Argument]:
    return _turned([_columns(plan, key) for key in keys])


def _turned(rows: Sequence[Sequence[str | None]]) -> list[Argument]:
    """Return the columns of rows."""
    return [list(column) for column in zip(*rows, strict=True)]
