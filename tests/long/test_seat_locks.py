"""No seat is held by two: a million operations, and every trouble many times."""

import pytest

from tests.integration import owners
from tests.integration.chaos import Troubles
from tests.integration.crowd import Plan
from tests.integration.hall import hall
from tests.integration.proof import prove

pytestmark = [pytest.mark.integration, pytest.mark.long]

OPERATIONS = 1_000_000
TROUBLES = Troubles(kills=30, freezes=10, flushes=10, cuts=10, severs=10, restarts=5)


@pytest.mark.timeout(7200)
async def test_a_million_operations(seed: int) -> None:
    """40 clients over 3 sidecars on more than 10,000 seats: no overlap, an order for every seat,
    no orphan, nothing sold twice, and all agree in the end."""
    plan = Plan(operations=OPERATIONS, seed=seed)
    async with hall(plan) as made:
        verdict = await prove(made, plan, TROUBLES)
    assert verdict.locks >= 10_000
    assert not verdict.wrong, f"seed {seed}: {verdict}"


@pytest.mark.timeout(1800)
async def test_who_may_what(seed: int) -> None:
    """A limit of ten grants ten of thirty a thousand times; 10,000 attempts steal nothing."""
    plan = Plan(operations=2_000, seed=seed, limit=10)
    async with hall(plan) as made:
        assert await owners.granted_at_once(made, plan, times=1_000) == {10: 1_000}
        assert await owners.stolen(made, plan, attempts=10_000) == []
