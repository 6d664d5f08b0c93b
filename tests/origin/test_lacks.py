"""Which keys are void, and when they are forgotten."""

import pytest

from proxy.origin.lacks import Lacks
from proxy.plans import Plan

KEY = b"thing:1"
PLACE = ("thing", KEY)


def plan(*, readable: bool = True) -> Plan:
    fields = dict.fromkeys(Plan._fields)
    return Plan(**(fields | {"name": "thing", "read": object() if readable else None}))


class Kept:
    """What is kept in mind, what waits for PostgreSQL, and what was made void."""

    def __init__(self) -> None:
        self.waiting = {PLACE}
        self.void: list[bytes] = []
        self.lacks = Lacks(lambda name, key: (name, key) in self.waiting)
        self.lacks.watch(self.void.append)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_key_that_lacks_something(kept: Kept) -> None:
    """It is void at once, and once more with each flush until nothing of it waits."""
    kept.lacks.note(plan(), KEY)
    assert kept.void == [KEY]
    assert kept.lacks.has(PLACE)
    kept.lacks.flushed([PLACE])
    assert kept.void == [KEY] * 2
    assert kept.lacks.has(PLACE)
    kept.waiting.clear()
    kept.lacks.flushed([PLACE])
    kept.lacks.flushed([PLACE])
    assert kept.void == [KEY] * 3
    assert not kept.lacks.has(PLACE)


def test_one_that_was_put_back(kept: Kept) -> None:
    """Redis has all that was written, so it stays when that is flushed."""
    kept.lacks.note(plan(), KEY)
    kept.lacks.whole(plan(), KEY)
    assert not kept.lacks.has(PLACE)
    kept.waiting.clear()
    kept.lacks.flushed([PLACE])
    assert kept.void == [KEY]


def test_writers_beside_each_other(kept: Kept) -> None:
    """The order is put right when all of it is flushed; of what was refused nothing is kept."""
    kept.lacks.contended(plan(), KEY)
    kept.lacks.flushed([PLACE])
    assert kept.void == []
    kept.lacks.left(plan(), KEY)
    kept.waiting.clear()
    kept.lacks.flushed([PLACE])
    assert kept.void == [KEY]
    kept.lacks.contended(plan(), KEY)
    kept.lacks.left(plan(), KEY)
    kept.lacks.flushed([PLACE])
    assert kept.void == [KEY]


def test_what_nobody_can_read_stays(kept: Kept) -> None:
    """What Redis has of it is all there is."""
    kept.lacks.note(plan(readable=False), KEY)
    kept.lacks.contended(plan(readable=False), KEY)
    kept.waiting.clear()
    kept.lacks.flushed([PLACE])
    assert kept.void == []
