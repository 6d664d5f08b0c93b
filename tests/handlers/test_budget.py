"""How fast one source may guess passwords."""

import asyncio
import hashlib
import time

import pytest

from proxy.config import OPEN_DEFAULT_USER, User
from proxy.handlers.budget import (
    BURST,
    INTERVAL,
    LONGEST_WAIT,
    MOST_ACCOUNTS,
    Account,
    FailureBudget,
)
from tests.front import front
from tests.integration.rig import Caller, is_error, wait_for

FRESH, FAILED = Account("a", failed=False), Account("a", failed=True)


def _exhausted(account: Account = FRESH) -> FailureBudget:
    budget = FailureBudget()
    while not budget.wait(account, 0.0):
        budget.fail(account, 0.0)
    return budget


def test_the_first_failures_are_free() -> None:
    """A deployment with a wrong password makes nobody wait at first."""
    budget = FailureBudget()
    for _ in range(int(BURST / INTERVAL)):
        assert budget.wait(FRESH, 0.0) == 0
        budget.fail(FRESH, 0.0)


def test_after_that_attempts_take_turns() -> None:
    """A hundred connections on one account get five turns a second, whoever asks."""
    budget = _exhausted()
    waits = [budget.wait(FRESH, 0.0) for _ in range(20)]
    assert waits == sorted(waits)
    assert waits[-1] - waits[0] >= 19 * INTERVAL - 1e-9


def test_nobody_waits_longer_than_the_longest_wait() -> None:
    """Guessing cannot lock the right password out."""
    budget = _exhausted()
    assert max(budget.wait(FRESH, 0.0) for _ in range(1000)) <= LONGEST_WAIT
    assert budget.wait(FRESH, LONGEST_WAIT + 0.5) <= BURST
    assert budget.wait(FRESH, LONGEST_WAIT + BURST + 3.0) == 0


def test_sources_do_not_pay_for_each_other() -> None:
    """A source that fails leaves the others alone."""
    assert _exhausted().wait(Account("b", failed=False), 0.0) == 0


def test_connections_that_have_failed_pay_for_themselves() -> None:
    """Of one source, who guesses on delays nobody who has not failed, nor the other way round."""
    assert _exhausted(FAILED).wait(FRESH, 0.0) == 0
    assert _exhausted(FRESH).wait(FAILED, 0.0) == 0


def test_success_costs_nothing() -> None:
    """Asking without failing uses nothing up."""
    budget = FailureBudget()
    assert [budget.wait(FRESH, 0.0) for _ in range(100)] == [0.0] * 100


def test_memory_is_bounded() -> None:
    """Of very many accounts the ones that have been quiet for longest are forgotten."""
    budget = _exhausted()
    for number in range(MOST_ACCOUNTS):
        budget.fail(Account(str(number), failed=False), 0.0)
    assert budget.wait(FRESH, 0.0) == 0
    assert len(budget._paid) == MOST_ACCOUNTS


async def _guess(caller: Caller, failures: list[float]) -> None:
    """Send a wrong password again and again; note when each was answered."""
    while is_error(await caller.call("AUTH", "app", "wrong")):
        failures.append(time.monotonic())


@pytest.mark.integration
async def test_guessers_who_stay_delay_nobody_who_connects() -> None:
    """While twenty connections guess all the time, ten checks a second, others get in at once."""
    users = [
        User("app", (hashlib.sha256(b"right").digest(),), "default", True, False),
        OPEN_DEFAULT_USER,
    ]
    async with front(users=users) as house:
        begun, failures = time.monotonic(), list[float]()
        guessers = [asyncio.create_task(_guess(await house.connect(), failures)) for _ in range(20)]
        paid = house.server.failures._paid
        fresh, failed = (Account("127.0.0.1", failed) for failed in (False, True))
        await wait_for(
            lambda: (
                all(session.failed_auth for session in house.server.sessions.values())
                and paid[fresh] <= time.monotonic() + BURST < paid[failed]
            ),
            "twenty first failures",
        )
        waits = []
        for _ in range(20):
            caller = await house.connect()
            asked = time.monotonic()
            assert await caller.call("AUTH", "app", "right") == b"OK"
            waits.append(time.monotonic() - asked)
        print(f"longest wait of 20: {max(waits) * 1e3:.1f} ms")
        assert max(waits) <= 0.25
        assert len(failures) <= 2 * (BURST + time.monotonic() - begun) / INTERVAL + 2
        for guesser in guessers:
            guesser.cancel()
        await asyncio.gather(*guessers, return_exceptions=True)
