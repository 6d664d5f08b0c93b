"""No seat is held by two, whatever happens to servers and links; and the proof of it can fail."""

import random
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from tests.histories import Operation
from tests.integration import owners, truth
from tests.integration.chaos import Chaos, Troubles
from tests.integration.crowd import Crowd, Plan
from tests.integration.hall import Hall, hall
from tests.integration.proof import prove, through_sidecars, working
from tests.integration.redis_first import RedisFirst
from tests.integration.rig import Caller
from tests.integration.tickets import Seat
from tests.integration.verdicts import judge

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def seed() -> int:
    return random.SystemRandom().randrange(1_000_000)


async def test_no_seat_is_held_by_two(seed: int) -> None:
    """20,000 operations amid one trouble of each kind: every history has an order, and
    PostgreSQL, nodes and sidecars agree in the end."""
    plan = Plan(operations=20_000, seed=seed)
    async with hall(plan) as made:
        verdict = await prove(made, plan, Troubles())
    assert not verdict.wrong, f"seed {seed}: {verdict}"


@pytest.mark.long
async def test_the_proof_finds_double_grants(seed: int) -> None:
    """Where Redis decides and PostgreSQL does while it is away, two hold one seat: it is seen."""
    plan = Plan(operations=8_000, seed=seed)
    async with hall(plan) as made:
        connect, database = through_sidecars(made), await asyncpg.create_pool(made.dsn, max_size=20)

        async def decide(number: int) -> RedisFirst:
            line = await connect(number)
            assert isinstance(line, Caller)
            return RedisFirst(line, database, round(plan.hold * 1000))

        crowd = Crowd(plan, decide)
        chaos = Chaos(made.cluster, made.postgres, made.wires, seed)
        troubles = Troubles(kills=2, freezes=1, flushes=3, cuts=5, severs=0, restarts=0)
        async with working(crowd):
            await chaos.run(troubles, lambda: crowd.progress)
        database.terminate()
        await compared(made)
    verdict = judge(crowd.history, plan.limit)
    print("\n".join(["", f"seed {seed}", *chaos.log, str(verdict)]))
    assert len(verdict.wrong["overlapping holds"]) > 5
    assert verdict.wrong["histories without an order"]


async def compared(made: Hall) -> None:
    """Write into PostgreSQL what no sidecar would, and see that each comparison finds it."""
    seat = Seat(Plan(operations=8_000, seed=0).seats_of(0)[0].event, "seat_of_nobody")
    name = repr(seat.name)
    taken = """
        UPDATE seat_booking_state SET status = 'locked', locked_by = $3, lock_token = $4,
               locked_until = clock_timestamp() + interval '1 minute'
         WHERE event_id = $1 AND seat_id = $2"""
    async with made.database() as database:
        await database.execute("INSERT INTO seat_booking_state VALUES ($1, $2)", *seat)
        await database.execute(taken, *seat, "usr_1", 2)
        assert not any(name in each for each in await truth.granted_wrongly(made))
        await database.execute(taken, *seat, "usr_2", 1)
    assert sum(name in each for each in await truth.granted_wrongly(made)) == 2
    assert any(f"{seat} of usr_2 #1" in each for each in await truth.orphans(made, []))
    assert await truth.hoarded(made, 0)
    assert any(seat.name in each for each in await truth.mirrored(made))
    grant = Operation(str(seat), "usr_2", "acquire", 0.0, 0.1, "acquired", 1)
    assert not any(f"{seat} " in each for each in await truth.orphans(made, [grant]))
    assert await truth.unknown_to_postgres(made, [grant]) == []
    assert await truth.unknown_to_postgres(made, [replace(grant, token=3)])
    assert await truth.sold(made, [replace(grant, kind="confirm", outcome="confirmed")])


@pytest.mark.long
async def test_who_may_what(seed: int, tmp_path: Path) -> None:
    """Of thirty requests at once a limit of ten grants ten; nobody but the owner keeps or gives
    back a seat; who goes away before the answer leaves what it had, and nothing new; and a wall
    clock that jumps by an hour frees none early, and none late."""
    plan = Plan(operations=2_000, seed=seed, limit=10, hold=4.0)
    async with hall(plan, queue=owners.QUEUE) as made:
        assert await owners.granted_at_once(made, plan, times=15) == {10: 15}
        assert await owners.stolen(made, plan, attempts=300) == []
        assert await owners.left_by_who_has_gone(made, plan) == ("usr_0", None)
        for seconds in (3600, -3600):
            early, late = await owners.freed_after_a_jump(made, plan, seconds, tmp_path)
            print(f"jump of {seconds} s: free {early:.3f} s at least, {late:.3f} s at most late")
            assert early >= 0
            assert late <= 2.0
        chaos = Chaos(made.cluster, made.postgres, made.wires, seed)
        waiters = [f"usr_{number}" for number in range(1, 6)]
        queues = await owners.queued(made, plan, chaos)
        assert queues == [waiters, waiters, waiters[1:], []]
