"""How fast one source may guess passwords."""

from proxy.handlers.budget import BURST, INTERVAL, LONGEST_WAIT, MOST_SOURCES, FailureBudget


def _exhausted(now: float = 0.0) -> FailureBudget:
    budget = FailureBudget()
    while not budget.wait("a", now):
        budget.fail("a", now)
    return budget


def test_ten_failures_are_free() -> None:
    """A deployment with a wrong password makes nobody wait at first."""
    budget = FailureBudget()
    for _ in range(int(BURST / INTERVAL)):
        assert budget.wait("a", 0.0) == 0
        budget.fail("a", 0.0)


def test_after_that_attempts_take_turns() -> None:
    """A hundred connections of one source get ten turns a second, whoever asks."""
    budget = _exhausted()
    waits = [budget.wait("a", 0.0) for _ in range(20)]
    assert waits == sorted(waits)
    assert waits[-1] - waits[0] >= 19 * INTERVAL - 1e-9


def test_nobody_waits_longer_than_the_longest_wait() -> None:
    """Guessing cannot lock the right password out."""
    budget = _exhausted()
    assert max(budget.wait("a", 0.0) for _ in range(1000)) <= LONGEST_WAIT
    assert budget.wait("a", LONGEST_WAIT + 0.5) <= BURST
    assert budget.wait("a", LONGEST_WAIT + BURST + 3.0) == 0


def test_sources_do_not_pay_for_each_other() -> None:
    """A source that fails leaves the others alone."""
    assert _exhausted().wait("b", 0.0) == 0


def test_success_costs_nothing() -> None:
    """Asking without failing uses nothing up."""
    budget = FailureBudget()
    assert [budget.wait("a", 0.0) for _ in range(100)] == [0.0] * 100


def test_memory_is_bounded() -> None:
    """Of very many sources the ones that have been quiet for longest are forgotten."""
    budget = _exhausted()
    for number in range(MOST_SOURCES):
        budget.fail(str(number), 0.0)
    assert budget.wait("a", 0.0) == 0
    assert len(budget._paid) == MOST_SOURCES
