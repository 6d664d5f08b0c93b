"""Histories of locks, and what can be told of them without search: no two hold one lock at once.

Clients note every operation with the moment before it was sent and the moment after it was told,
by one monotonic clock. The database grants for a time somewhere in between, so what is certain of a
hold begins when its grant was told and ends at the earliest moment at which it can have run out.
Everything here speaks of what is certain: what it finds has happened, whatever the machine did.

`tests.linear` searches the orders in which the operations of one lock may have happened.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NEVER = math.inf

# What an operation may be told. A grant is `acquired`, `extended`, or `granted` where the reply
# does not say which of both (SET NX). `refused` is a plain no: nil, 0 or LOCKOWNER.
GRANTS = frozenset({"acquired", "extended", "granted"})
# No lock of this seat was given, for a reason that may be another lock's or another client's.
REFUSALS = frozenset({"held", "queued", "limit"})


@dataclass(slots=True)
class Operation:
    """One question of one client about one lock, and what it was told."""

    lock: str
    owner: str
    kind: str  # acquire extend release confirm status
    sent: float
    told: float = NEVER  # NEVER: the outcome is unknown, it may happen at any time or not at all
    outcome: str = "unknown"
    token: int | None = None  # asked with, or told by a grant
    seconds: float = 0.0  # how long a grant holds from the moment at which it was decided
    holder: str | None = None  # told by status
    error: str = ""  # told instead of an outcome: nothing was done

    @property
    def grants(self) -> bool:
        return self.outcome in GRANTS

    def __str__(self) -> str:
        token = "" if self.token is None else f" #{self.token}"
        until = "" if self.told == NEVER else f"..{self.told:.4f}"
        what = self.outcome + (f" {self.holder}" if self.kind == "status" else "")
        return f"{self.sent:.4f}{until} {self.owner} {self.kind}{token}: {what} {self.error}"


@dataclass(slots=True)
class Hold:
    """What is certain of one grant: who had the lock, at least from when until when."""

    lock: str
    owner: str
    token: int | None
    sent: float  # the grant was asked for
    begin: float  # the grant was told
    end: float  # it was given back, or can have run out

    def __str__(self) -> str:
        return f"{self.lock} {self.owner} #{self.token} {self.begin:.4f}..{self.end:.4f}"


def by_lock(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return the operations of each lock, in the order in which they were sent."""
    locks: dict[str, list[Operation]] = defaultdict(list)
    for operation in sorted(history, key=lambda each: each.sent):
        locks[operation.lock].append(operation)
    return locks


def holds_of(operations: Sequence[Operation]) -> list[Hold]:
    """Return the certain holds of one lock.

    An owner asks for one lock one question after the other, so its own operations have an order.
    An extension is told of a hold that was there all the time in between. What may have ended a
    hold (giving it back, with whatever outcome) ends it when it was sent. What was given back with
    an unknown outcome may be so at any time later, so later grants are certain only as such.
    """
    holds: list[Hold] = []
    current: dict[str, list[Hold]] = defaultdict(list)
    late: dict[str, list[Operation]] = defaultdict(list)
    for each in operations:
        mine, until = current[each.owner], each.sent + each.seconds
        if each.grants and any(_fits(release, each.token) for release in late[each.owner]):
            until = each.sent
        if each.grants and mine and _is_same(mine[-1], each):
            mine[-1].end = until
        elif each.grants:
            if each.outcome == "acquired":
                # Where an answer was lost, it is a hold of before as if it were new; by its token.
                mine[:] = [hold for hold in mine if hold.token is None]
            begin = each.told
            mine.append(
                Hold(each.lock, each.owner, each.token, each.sent, begin, max(until, begin))
            )
            holds.append(mine[-1])
        elif each.kind == "confirm" and each.outcome == "confirmed" and mine:
            mine[-1].end = NEVER
        elif any(_may_end(each, hold) for hold in mine):
            ends = each.sent if each.kind == "release" else until
            for hold in mine:
                hold.end = max(hold.begin, min(hold.end, ends))
            if each.kind == "release":
                mine.clear()
        if each.kind == "release" and each.outcome == "unknown":
            late[each.owner].append(each)
    return holds


def _is_same(hold: Hold, grant: Operation) -> bool:
    """Return whether a grant is known to be of this hold: it lasts from this grant on."""
    return grant.token is not None and hold.token == grant.token


def _may_end(each: Operation, hold: Hold) -> bool:
    """Return whether something may have ended a hold, or made it shorter."""
    fits = _fits(each, hold.token)
    if each.kind == "release":
        return fits and each.outcome in ("released", "unknown")
    return fits and each.outcome == "unknown" and each.kind in ("acquire", "extend")


def _fits(each: Operation, token: int | None) -> bool:
    """Return whether something may be meant for the grant of a token, as far as both say it."""
    return each.token is None or token is None or each.token == token


def overlaps(holds: Iterable[Hold]) -> list[tuple[Hold, Hold]]:
    """Return the pairs of holds of one lock, by different owners, that were there at once."""
    found: list[tuple[Hold, Hold]] = []
    open_holds: list[tuple[float, int, Hold]] = []
    for number, hold in enumerate(sorted(holds, key=lambda each: each.begin)):
        while open_holds and open_holds[0][0] <= hold.begin:
            heapq.heappop(open_holds)
        if hold.begin < hold.end:
            found += [(other, hold) for *_, other in open_holds if other.owner != hold.owner]
            heapq.heappush(open_holds, (hold.end, number, hold))
    return found


def inversions(holds: Iterable[Hold]) -> list[tuple[Hold, Hold]]:
    """Return grants of one lock that were asked for when another had been told, and whose token
    is not greater; each with the grant told before that has the greatest token."""
    with_token = [hold for hold in holds if hold.token is not None]
    told = sorted(with_token, key=lambda each: each.begin)
    found, position, greatest = [], 0, None
    for hold in sorted(with_token, key=lambda each: each.sent):
        while position < len(told) and told[position].begin <= hold.sent:
            earlier = told[position]
            if greatest is None or (earlier.token or 0) > (greatest.token or 0):
                greatest = earlier
            position += 1
        if greatest is not None and (greatest.token or 0) >= (hold.token or 0):
            found.append((greatest, hold))
    return found


def repeated(history: Iterable[Operation]) -> list[tuple[Operation, Operation]]:
    """Return pairs of new grants, to two owners or of two locks, that were told one token."""
    seen: dict[int, Operation] = {}
    found = []
    for each in history:
        if each.outcome != "acquired" or each.token is None:
            continue
        other = seen.setdefault(each.token, each)
        if (other.lock, other.owner) != (each.lock, each.owner):
            found.append((other, each))
    return found


def false_refusals(
    operations: Sequence[Operation], holds: Sequence[Hold]
) -> list[tuple[Hold, Operation]]:
    """Return what was refused to an owner who held the lock from before it asked until after it
    was told, and asked by the right token where it named one. What is sold is held no more."""
    mine: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        mine[hold.owner].append(hold)
    return [
        (hold, each)
        for each in operations
        if _is_refusal(each)
        for hold in mine[each.owner]
        if hold.begin <= each.sent and each.told < hold.end < NEVER
        and (each.token is None or each.token == hold.token)
    ]  # fmt: skip


def _is_refusal(operation: Operation) -> bool:
    if operation.error:
        return False
    if operation.kind == "acquire":
        return operation.outcome in REFUSALS
    return operation.kind in ("extend", "release", "confirm") and operation.outcome == "refused"


def sold_twice(history: Iterable[Operation]) -> list[tuple[Operation, Operation]]:
    """Return pairs of confirmations of one lock, of two holds, that both were told yes."""
    seen: dict[str, Operation] = {}
    found = []
    for each in history:
        if each.kind == "confirm" and each.outcome == "confirmed":
            other = seen.setdefault(each.lock, each)
            if (other.owner, other.token) != (each.owner, each.token):
                found.append((other, each))
    return found


def hoards(holds: Iterable[Hold], limit: int) -> Iterator[tuple[str, int, float]]:
    """Yield owner, count and moment where the certain holds of one owner at once pass a limit.

    Give the holds of one scope: those that are counted together. A sold seat counts no longer.
    """
    owners: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        if hold.begin < hold.end < NEVER:
            owners[hold.owner].append(hold)
    for owner, own in owners.items():
        ends: list[tuple[float, str]] = []
        for hold in sorted(own, key=lambda each: each.begin):
            while ends and ends[0][0] <= hold.begin:
                heapq.heappop(ends)
            heapq.heappush(ends, (hold.end, hold.lock))
            if (count := len({lock for _, lock in ends})) > limit:
                yield owner, count, hold.begin
