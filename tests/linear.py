"""Is there an order in which the operations of one lock happened? After Wing, Gong and Lowe.

Each operation happens at one moment between its sending and its telling; one whose outcome is
unknown at any moment after its sending, or never. The lock is as the row of a table: who has it, by
which token, until when. Time only makes it run out: a lock that has run out is still its holder's
until somebody takes it, and may be taken, extended no more.

When it runs out is known to lie between the sending and the telling of the grant plus the time for
which it was given. So each step has a lowest moment, kept with the state, and the search takes the
lowest one that fits: a state that is reached earlier allows all that it allows later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.histories import NEVER, REFUSALS, Operation

# Steps after which a history is given up. One that can be ordered takes some hundred.
MOST_STEPS = 200_000


class Lock(NamedTuple):
    """The state of one lock."""

    owner: str | None = None
    token: int | None = None  # None: granted, and nobody was told the token
    earliest: float = 0.0  # it cannot have run out before
    latest: float = 0.0  # it has run out then at the latest
    booked: bool = False
    last: int = 0  # the greatest token told so far


class Given(NamedTuple):
    """What is demanded of outcomes that a gate or a mirror may tell."""

    refusals: bool = True  # held: somebody had it at a moment in between
    reads: bool = True  # status: as it was at a moment in between


@dataclass(frozen=True, slots=True)
class Finding:
    """A history that cannot be ordered: how far the longest order came, and what was left."""

    lock: str
    undecided: bool  # given up after MOST_STEPS
    ordered: tuple[Operation, ...]
    stuck: tuple[Operation, ...]  # what had to happen next

    def __str__(self) -> str:
        lines = [f"{self.lock}: {'not decided' if self.undecided else 'no order'}; in order"]
        lines += [f"    {each}" for each in self.ordered[-12:]]
        return "\n".join([*lines, "  and then one of", *(f"    {each}" for each in self.stuck)])


Step = tuple[Lock, float]


def _held(lock: Lock, now: float) -> bool:
    return lock.owner is not None and not lock.booked and now <= lock.latest


def _mine(lock: Lock, each: Operation, now: float) -> bool:
    """Return whether the lock may be its owner's and unexpired, by its token if one is named."""
    fits = each.token is None or lock.token is None or each.token == lock.token
    return _held(lock, now) and lock.owner == each.owner and fits


def _granted(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    """Yield the state behind a new grant: of a free lock, or of one that may have run out."""
    if lock.booked or (each.token is not None and each.token <= lock.last):
        return
    at = now if lock.owner is None else max(now, lock.earliest)
    if at > each.told:
        return
    last = lock.last if each.token is None else each.token
    yield _until(lock._replace(owner=each.owner, last=last), each.token, each, at), at


def _until(lock: Lock, token: int | None, each: Operation, at: float) -> Lock:
    known = each.told < NEVER
    earliest = (each.sent if known else at) + each.seconds
    return lock._replace(token=token, earliest=earliest, latest=each.told + each.seconds)


def _extended(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    """Yield the state behind an extension, which may tell a token that nobody knew."""
    if not _mine(lock, each, now):
        return
    token = lock.token if each.token is None else each.token
    if lock.token is None and token is not None and token <= lock.last:
        return
    last = lock.last if token is None else max(lock.last, token)
    yield _until(lock._replace(last=last), token, each, now), now


def _acquire(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    if each.outcome in ("acquired", "granted", "unknown"):
        yield from _granted(lock, each, now)
    # Who asks again for an answer that was lost is told of a grant of before as if it were new.
    again = each.outcome == "acquired" and lock.token in (None, each.token)
    if again or each.outcome in ("extended", "granted", "unknown"):
        yield from _extended(lock, each, now)
    if each.outcome == "booked" and lock.booked:
        yield lock, now
    if each.outcome in ("held", "queued") and _held(lock, now) and lock.owner != each.owner:
        yield lock, now
    if each.outcome == "refused" and (lock.booked or _held(lock, now)):
        yield lock, now
    if each.outcome == "limit":
        yield lock, now


def _refused(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    """Yield the state where an owner is told no: the lock is not its own, or may have run out."""
    sure = lock.owner == each.owner and not lock.booked and each.token in (None, lock.token)
    at = max(now, lock.earliest) if sure else now
    if at <= each.told:
        yield lock, at


def _extend(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    if each.outcome in ("extended", "unknown"):
        yield from _extended(lock, each, now)
    if each.outcome == "refused":
        yield from _refused(lock, each, now)


def _release(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    # Whoever gives back what has run out, and nobody has taken, may be told yes.
    mine = _mine(lock._replace(latest=NEVER), each, now)
    if each.outcome in ("released", "unknown") and mine:
        yield Lock(last=lock.last), now
    if each.outcome == "refused":
        yield from _refused(lock, each, now)


def _confirm(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    if each.outcome in ("confirmed", "unknown") and _mine(lock, each, now):
        yield lock._replace(booked=True, earliest=NEVER, latest=NEVER), now
    same = lock.booked and (lock.owner, lock.token) == (each.owner, each.token)
    if each.outcome == "confirmed" and same:
        yield lock, now  # it was so already, and its answer was lost
    if each.outcome == "refused":
        yield from _refused(lock, each, now)


def _status(lock: Lock, each: Operation, now: float) -> Iterator[Step]:
    if lock.booked:
        if each.holder is None:
            yield lock, now
    elif each.holder is not None:
        if _held(lock, now) and lock.owner == each.holder:
            yield lock, now
    else:
        at = now if lock.owner is None else max(now, lock.earliest)
        if at <= each.told:
            yield lock, at


_MODEL = {
    "acquire": _acquire, "extend": _extend, "release": _release, "confirm": _confirm,
    "status": _status,
}  # fmt: skip


def _tells(operation: Operation, given: Given) -> bool:
    """Return whether an operation says anything about the lock."""
    if operation.error:
        return False
    if operation.kind == "status":
        return given.reads and operation.outcome == "told"
    if operation.kind == "acquire" and operation.outcome in {*REFUSALS, "refused"}:
        return given.refusals and operation.outcome != "limit"
    return True


class _Search:
    """Depth first over the orders of one history."""

    def __init__(self, operations: Sequence[Operation], given: Given) -> None:
        told = [each for each in operations if _tells(each, given)]
        # What is granted to a client that has gone may be given up again by whoever granted it.
        told += [
            Operation(each.lock, each.owner, "release", each.sent)
            for each in told
            if each.kind == "acquire" and each.outcome == "unknown"
        ]
        # Those told first go first: most histories then are in order at the first try.
        self.operations = sorted(told, key=lambda each: (each.told, each.sent))
        self.known = sum(each.told < NEVER for each in self.operations)
        self.seen: dict[tuple[int, Lock], float] = {}
        self.steps = 0
        self.best: list[int] = []
        self.stuck: list[int] = []

    def run(self) -> Finding | None:
        """Return what cannot be ordered; None where an order was found."""
        goal = (1 << self.known) - 1
        path: list[int] = []
        stack: list[Iterator[tuple[int, int, Lock, float]]] = [self._next(0, Lock(), 0.0)]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                if path:
                    path.pop()
                continue
            index, done, lock, now = step
            path.append(index)
            if done & goal == goal:
                return None
            self.steps += 1
            if self.steps > MOST_STEPS:
                break
            if len(path) > len(self.best):
                self.best = path.copy()
                self.stuck = [number for number, _ in self._candidates(done)]
            stack.append(self._next(done, lock, now))
        if not goal:
            return None
        stuck = self.stuck or [number for number, _ in self._candidates(0)]
        every = self.operations
        return Finding(
            every[0].lock, bool(stack),
            tuple(every[index] for index in self.best), tuple(every[index] for index in stuck),
        )  # fmt: skip

    def _candidates(self, done: int) -> Iterator[tuple[int, Operation]]:
        """Yield what may happen next: what was sent before any of the rest was told."""
        limit, alike = NEVER, set()
        for index, each in enumerate(self.operations):
            if done >> index & 1:
                continue
            if each.sent > limit:
                continue
            if each.told < NEVER:
                limit = min(limit, each.told)
            else:
                # Of unknown ones that would do the same the first is as good as any.
                what = (each.owner, each.kind, each.token, each.seconds)
                if what in alike:
                    continue
                alike.add(what)
            yield index, each

    def _next(self, done: int, lock: Lock, now: float) -> Iterator[tuple[int, int, Lock, float]]:
        for index, each in self._candidates(done):
            moment = max(now, each.sent)
            if moment > each.told:
                continue
            for after, at in _MODEL[each.kind](lock, each, moment):
                if each.told == NEVER and after == lock:
                    continue  # it may as well not have happened
                key = (done | 1 << index, after)
                if self.seen.get(key, NEVER) > at:
                    self.seen[key] = at
                    yield index, key[0], after, at


def check(operations: Sequence[Operation], given: Given) -> Finding | None:
    """Return why the operations of one lock have no order, None where they have one."""
    return _Search(operations, given).run()
