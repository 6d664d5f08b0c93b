"""The search for an order: it accepts what a lock can do, and finds each kind of lie."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests import linear
from tests.histories import NEVER, Operation
from tests.linear import Given, Lock

STRICT, LENIENT = Given(), Given(refusals=False, reads=False)
OWNERS = "abcdefgh"
SECONDS = 1.0  # for which a lock is granted


class TrueLock:
    """A lock that does what it should, at moments that the test chooses."""

    def __init__(self, dice: random.Random, sells: bool) -> None:
        self.dice = dice
        self.weights = (50, 15, 20, 14, int(sells))
        self.owner: str | None = None
        self.token = 0
        self.until = 0.0
        self.booked = False
        self.tokens: dict[str, int] = {}  # that each owner knows

    def held(self, at: float) -> bool:
        return self.owner is not None and at < self.until

    def decide(self, owner: str, at: float) -> Operation:
        """Do something, and return it as its client would note it, with the outcome."""
        (kind,) = self.dice.choices(
            ("acquire", "extend", "release", "status", "confirm"), self.weights
        )
        token = self.tokens.get(owner)
        if kind in ("extend", "release", "confirm") and token is None:
            kind = "acquire"
        each = Operation("seat", owner, kind, at, at, seconds=SECONDS)
        mine = self.held(at) and self.owner == owner and not self.booked
        if kind == "status":
            shown = self.held(at) and not self.booked
            each.outcome, each.holder = "told", self.owner if shown else None
        elif kind == "acquire":
            self.acquire(each, mine)
        else:
            each.token = token
            each.outcome = "refused"
            if mine and token == self.token:
                self.carry_out(each)
        return each

    def acquire(self, each: Operation, mine: bool) -> None:
        if self.booked:
            each.outcome = "booked"
        elif self.held(each.sent) and not mine:
            each.outcome = "held"
        else:
            each.outcome = "extended" if mine else "acquired"
            self.token += not mine
            self.owner, self.until = each.owner, each.sent + SECONDS
            each.token = self.tokens[each.owner] = self.token

    def carry_out(self, each: Operation) -> None:
        match each.kind:
            case "extend":
                each.outcome, self.until = "extended", each.sent + SECONDS
            case "release":
                each.outcome, self.owner = "released", None
            case "confirm":
                each.outcome, self.booked = "confirmed", True


def history(seed: int, count: int, unknown: float, sells: bool = True) -> list[Operation]:
    """Return what clients note of a true lock: late, overlapping, some without an answer."""
    dice = random.Random(seed)
    lock, now = TrueLock(dice, sells), 0.0
    free = dict.fromkeys(OWNERS, 0.0)  # when each has been told its last answer
    done: list[Operation] = []
    while len(done) < count:
        now += dice.expovariate(12.0)
        ready = [owner for owner in OWNERS if free[owner] < now]
        if not ready:
            continue
        owner = dice.choice(ready)
        known = lock.tokens.get(owner)
        each = lock.decide(owner, now)
        each.sent = now - dice.random() * min(0.3, now - free[owner])
        each.told = now + dice.random() * 0.3
        free[owner] = each.told
        if dice.random() < unknown and each.kind != "status":
            each.told, each.outcome = NEVER, "unknown"
            if each.kind == "acquire":
                each.token = None
                lock.tokens.pop(owner, None)
                if known is not None:
                    lock.tokens[owner] = known
        done.append(each)
    return done


@settings(max_examples=20, deadline=None)
@given(seed=some.integers(0, 1 << 32), unknown=some.sampled_from((0.0, 0.02, 0.05)))
def test_what_a_true_lock_did_can_be_ordered(seed: int, unknown: float) -> None:
    """Overlapping operations, expiry and lost answers leave an order, refusals and reads too."""
    done = history(seed, 80, unknown)
    assert linear.check(done, STRICT) is None
    assert linear.check(done, LENIENT) is None


def test_most_histories_of_a_true_lock_have_grants_by_expiry_and_by_release() -> None:
    """The histories that are tried hold what they should: nothing is proven by refusals alone."""
    outcomes = [each.outcome for seed in range(20) for each in history(seed, 100, 0.05)]
    for outcome in ("acquired", "extended", "released", "refused", "held", "unknown", "told"):
        assert outcomes.count(outcome) > 30, outcome


def told(owner: str, kind: str, at: float, outcome: str, token: int | None = None) -> Operation:
    seconds = SECONDS if outcome in ("acquired", "extended") else 0.0
    return Operation("seat", owner, kind, at, at + 0.1, outcome, token, seconds)


FAULTS = {
    "double grant": (
        told("a", "acquire", 0.0, "acquired", 901), told("b", "acquire", 0.5, "acquired", 902),
    ),
    "token inversion": (
        told("a", "acquire", 0.0, "acquired", 902), told("a", "release", 0.2, "released", 902),
        told("b", "acquire", 0.4, "acquired", 901),
    ),
    "token that comes twice": (
        told("a", "acquire", 0.0, "acquired", 901), told("b", "acquire", 1.2, "acquired", 901),
    ),
    "lost release": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "release", 0.2, "released", 901),
        told("b", "acquire", 0.4, "held"),
    ),
    "stale refusal": (told("b", "acquire", 0.0, "held"),),
    "refusal of the owner": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "acquire", 0.3, "held"),
    ),
    "release refused": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "release", 0.3, "refused", 901),
    ),
    "release of another's": (
        told("a", "acquire", 0.0, "acquired", 901), told("b", "release", 0.3, "released", 900),
    ),
    "extension of what has run out": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "extend", 1.2, "extended", 901),
    ),
    "sale of what has run out": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "confirm", 1.2, "confirmed", 901),
    ),
    "grant of what is sold": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "confirm", 0.2, "confirmed", 901),
        told("b", "acquire", 9.0, "acquired", 902),
    ),
    "status of before": (
        told("a", "acquire", 0.0, "acquired", 901), told("a", "release", 0.2, "released", 901),
        replace(told("b", "status", 0.4, "told"), holder="a"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str) -> None:
    """One lie behind a true history leaves no order; up to the lie there is one."""
    for seed in range(5):
        before = history(seed, 60, 0.0, sells=False)
        quiet = max(each.sent for each in before) + 0.5 + SECONDS
        after = [replace(each, sent=quiet + each.sent, told=quiet + each.told)
                 for each in FAULTS[fault]]  # fmt: skip
        assert linear.check([*before, *after[:-1]], STRICT) is None
        finding = linear.check([*before, *after], STRICT)
        assert finding is not None
        assert not finding.undecided
        assert finding.stuck[-1] == after[-1]


def test_refusals_and_reads_may_be_let_pass() -> None:
    """A refusal or a status that is behind the times is a finding only where it is asked for."""
    done = history(1, 40, 0.0)
    end = max(each.told for each in done) + 9.0
    late = Operation("seat", "z", "acquire", end, end + 0.1, "held")
    seen = replace(late, kind="status", outcome="told", holder="a")
    for lie, lenient in ((late, Given(refusals=False)), (seen, Given(reads=False))):
        assert linear.check([*done, lie], lenient) is None
        assert linear.check([*done, lie], STRICT) is not None


def test_an_unknown_grant_explains_a_token_that_is_told_later() -> None:
    """An extension tells the token of a grant whose answer was lost; it may not be an old one."""
    lost = Operation("seat", "a", "acquire", 0.0, seconds=5.0)
    again = Operation("seat", "a", "acquire", 1.0, 1.1, "extended", 7, 5.0)
    other = Operation("seat", "b", "acquire", 8.0, 8.1, "acquired", 8, 5.0)
    assert linear.check([lost, again, other], STRICT) is None
    assert linear.check([again, other], STRICT) is not None
    assert linear.check([lost, replace(again, token=9), other], STRICT) is not None


def test_what_is_asked_again_may_be_told_again() -> None:
    """A grant and a sale whose answers were lost are told as if they were new, to their owner."""
    first = Operation("seat", "a", "acquire", 0.0, 0.1, "acquired", 1, 5.0)
    again = replace(first, sent=1.0, told=1.1)
    sale = Operation("seat", "a", "confirm", 2.0, 2.1, "confirmed", 1)
    assert linear.check([first, again, sale, replace(sale, sent=3.0, told=3.1)], STRICT) is None
    plain = replace(first, outcome="granted", token=None)
    assert linear.check([plain, again], STRICT) is None
    assert linear.check([first, replace(again, owner="b")], STRICT) is not None
    assert linear.check([first, sale, replace(sale, owner="b", sent=3.0, told=3.1)], STRICT)


def test_a_grant_to_a_client_that_has_gone_may_be_given_up() -> None:
    """The lock is free again before its time, once; a grant that was told is not given up."""
    lost = Operation("seat", "a", "acquire", 0.0, seconds=5.0)
    held = Operation("seat", "b", "acquire", 1.0, 1.1, "held")
    taken = Operation("seat", "b", "acquire", 2.0, 2.1, "acquired", 2, 5.0)
    assert linear.check([lost, held, taken], STRICT) is None
    known = replace(lost, told=0.1, outcome="acquired", token=1)
    assert linear.check([known, held, taken], STRICT) is not None


def test_a_lock_runs_out_only_after_its_time() -> None:
    """A second grant right before the first can have run out is one too many."""
    first = Operation("seat", "a", "acquire", 0.0, 0.2, "acquired", 1, 5.0)
    second = Operation("seat", "b", "acquire", 4.5, 4.9, "acquired", 2, 5.0)
    assert linear.check([first, second], LENIENT) is not None
    assert linear.check([first, replace(second, told=5.05)], LENIENT) is None
    # It has run out at 5.2 at the latest, so that its owner cannot extend it then.
    third = Operation("seat", "a", "extend", 5.3, 5.4, "extended", 1, 5.0)
    assert linear.check([first, third], LENIENT) is not None
    assert linear.check([first, replace(third, sent=5.1)], LENIENT) is None


def test_what_runs_out_late_hurries_nobody() -> None:
    """A grant by expiry moves time on: what was told before comes in front of it."""
    first = Operation("seat", "a", "acquire", 0.0, 0.2, "acquired", 1, 5.0)
    taken = Operation("seat", "b", "acquire", 4.0, 9.0, "acquired", 2, 5.0)
    kept = Operation("seat", "a", "extend", 4.5, 4.9, "extended", 1, 5.0)
    assert linear.check([first, taken, kept], LENIENT) is not None
    assert linear.check([first, replace(taken, told=9.7), kept], LENIENT) is None


def test_a_search_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An undecided history is a finding of its own kind, never an approval."""
    monkeypatch.setattr(linear, "MOST_STEPS", 10)
    finding = linear.check(history(3, 60, 0.0), STRICT)
    assert finding is not None
    assert finding.undecided
    assert "not decided" in str(finding)


def test_a_fresh_lock_is_free() -> None:
    """Nothing is needed for an empty history, and status tells nobody."""
    assert linear.check([], STRICT) is None
    seen = Operation("seat", "a", "status", 0.0, 0.1, "told")
    assert linear.check([seen], STRICT) is None
    assert linear.check([replace(seen, holder="b")], STRICT) is not None
    assert Lock().owner is None
