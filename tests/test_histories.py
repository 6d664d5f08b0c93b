"""What is certain of holds: each kind of fault is found, and none where there is none."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests import histories
from tests.histories import NEVER, Operation


def grant(
    owner: str, sent: float, token: int | None, *, told: float = 0.0, outcome: str = "acquired"
) -> Operation:
    """A grant for ten seconds, told a tenth of a second after it was asked for."""
    kind = "extend" if outcome == "extended" else "acquire"
    told = told or sent + 0.1
    return Operation("seat", owner, kind, sent, told, outcome, token, seconds=10.0)


def release(owner: str, sent: float, token: int | None, outcome: str = "released") -> Operation:
    told = NEVER if outcome == "unknown" else sent + 0.1
    return Operation("seat", owner, "release", sent, told, outcome, token)


def refusal(owner: str, kind: str, sent: float, token: int | None = None) -> Operation:
    outcome = "held" if kind == "acquire" else "refused"
    return Operation("seat", owner, kind, sent, sent + 0.1, outcome, token)


RIGHT = (
    grant("a", 0.0, 1),
    grant("a", 5.0, 1, outcome="extended"),
    refusal("b", "acquire", 6.0),
    release("a", 8.0, 1),
    grant("b", 8.05, 2),  # asked for before the release was told
    grant("a", 18.1, 3),  # what b had may have run out at 18.05
    release("a", 19.0, 3),
    grant("b", 20.0, 4),
)


def found(history: list[Operation]) -> dict[str, int]:
    """Count the findings of each kind."""
    certain = histories.holds_of(histories.by_lock(history)["seat"])
    kinds: dict[str, Sequence[object]] = {
        "overlaps": histories.overlaps(certain),
        "inversions": histories.inversions(certain),
        "repeated": histories.repeated(history),
        "false": histories.false_refusals(history, certain),
        "sold": histories.sold_twice(history),
        "hoards": list(histories.hoards(certain, 1)),
    }
    return {kind: len(each) for kind, each in kinds.items() if each}


def test_a_hold_without_a_token_may_be_the_one_that_is_given_back() -> None:
    """Who was granted a seat without a token, and again by one, gives back both."""
    history = [
        grant("a", 0.0, None, outcome="granted"),
        grant("a", 1.0, 1),
        release("a", 2.0, 1),
        grant("b", 3.0, 2),
    ]
    assert found(history) == {}
    assert found(history[:2] + history[3:]) == {"overlaps": 2}


def test_nothing_is_found_in_what_is_right() -> None:
    """Extensions, releases, expiry and contention are no fault."""
    assert found(list(RIGHT)) == {}


def test_a_hold_is_what_is_certain() -> None:
    """It begins when it was told, and ends when it was given back or may have run out."""
    first, second, *_ = histories.holds_of(list(RIGHT))
    assert (first.begin, first.end, first.token) == (0.1, 8.0, 1)
    assert second.begin == pytest.approx(8.15)
    assert second.end == pytest.approx(18.05)


def test_an_extension_told_late_goes_on_with_its_hold() -> None:
    """By its token an extension belongs to its hold, also where that may have run out meanwhile."""
    (hold,) = histories.holds_of([grant("a", 0.0, 1), grant("a", 10.05, 1, outcome="extended")])
    assert (hold.begin, hold.end) == (0.1, 20.05)
    assert found([grant("a", 0.0, 1), grant("a", 10.05, 1, outcome="extended")]) == {}


def test_a_release_of_unknown_outcome_ends_what_is_certain() -> None:
    """Whoever takes the lock behind it is no second holder; one before it is."""
    given_back = [grant("a", 0.0, 1), release("a", 4.0, 1, "unknown")]
    assert found([*given_back, grant("b", 5.0, 2)]) == {}
    assert found([*given_back, grant("b", 3.0, 2)]) == {"overlaps": 1}


def test_a_release_of_unknown_outcome_may_come_late() -> None:
    """It may end what its owner is granted afterwards, unless that has another token."""
    late = [grant("a", 0.0, 1), release("a", 1.0, None, "unknown")]
    assert found([*late, grant("a", 2.0, None, outcome="granted"), grant("b", 4.0, 2)]) == {}
    late = [grant("a", 0.0, 1), release("a", 1.0, 1, "unknown")]
    again = grant("a", 2.0, 2)
    assert found([*late, again, grant("b", 4.0, 3)]) == {"overlaps": 1}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("overlaps", lambda: [grant("a", 0.0, 1), grant("b", 9.0, 2)]),
        ("overlaps", lambda: [grant("a", 0.0, None), grant("b", 9.0, None)]),
        ("inversions", lambda: [grant("a", 0.0, 2), release("a", 1.0, 2), grant("b", 2.0, 1)]),
        ("repeated", lambda: [grant("a", 0.0, 2), release("a", 1.0, 2), grant("b", 2.0, 2)]),
        ("false", lambda: [grant("a", 0.0, 1), refusal("a", "acquire", 5.0)]),
        ("false", lambda: [grant("a", 0.0, 1), refusal("a", "extend", 5.0, 1)]),
        ("false", lambda: [grant("a", 0.0, 1), refusal("a", "release", 5.0, 1)]),
        ("hoards", lambda: [grant("a", 0.0, 1), replace(grant("a", 1.0, 2), lock="other")]),
    ],
)
def test_a_fault_is_found(kind: str, fault: Callable[[], list[Operation]]) -> None:
    """Two at once, a token that goes back or comes twice, a no to an owner, a hoard."""
    history = fault()
    if kind == "hoards":
        certain = [
            hold
            for each in histories.by_lock(history).values()
            for hold in histories.holds_of(each)
        ]
        assert list(histories.hoards(certain, 1)) == [("a", 2, 1.1)]
        assert list(histories.hoards(certain, 2)) == []
    else:
        assert kind in found(history)


def test_a_shorter_time_makes_a_hold_shorter() -> None:
    """An extension may bring the end forward, and so may one of unknown outcome."""
    shorter = replace(grant("a", 1.0, 1, outcome="extended"), seconds=2.0)
    lost = replace(shorter, told=NEVER, outcome="unknown")
    for each in (shorter, lost):
        assert found([grant("a", 0.0, 1), each, grant("b", 3.0, 2)]) == {}
        assert found([grant("a", 0.0, 1), each, grant("b", 2.5, 2)]) == {"overlaps": 1}


def test_an_error_is_no_refusal() -> None:
    """Who is told that a server is away was refused nothing."""
    error = replace(refusal("a", "release", 5.0, 1), error="PGDOWN")
    assert found([grant("a", 0.0, 1), error]) == {}


def test_a_refusal_by_a_wrong_token_is_right() -> None:
    """An owner who names another token than that of its hold is refused rightly."""
    assert found([grant("a", 0.0, 2), refusal("a", "release", 5.0, 1)]) == {}


def test_a_seat_that_is_sold_twice_is_found() -> None:
    """Two confirmations of one lock are a finding, and what was sold is held for ever."""
    sale = Operation("seat", "a", "confirm", 1.0, 1.1, "confirmed", 1)
    refused = refusal("a", "extend", 3.0, 1)
    assert found([grant("a", 0.0, 1), sale, replace(sale, sent=2.0, told=2.1), refused]) == {}
    again = replace(sale, owner="b", sent=90.0, told=90.1)
    assert found([grant("a", 0.0, 1), sale, grant("b", 80.0, 2), again]) == {
        "overlaps": 1, "sold": 1,
    }  # fmt: skip


def test_two_at_once_are_found_among_many() -> None:
    """One overlap in thirty thousand holds is found, in less than quadratic time."""
    history = [
        each
        for number in range(30_000)
        for each in (grant("a", 2.0 * number, number), release("a", 2.0 * number + 1, number))
    ]
    certain = histories.holds_of(history)
    assert histories.overlaps(certain) == []
    intruder = histories.holds_of([grant("b", 30_000.3, 30_001)])
    assert len(histories.overlaps([*certain, *intruder])) == 6
