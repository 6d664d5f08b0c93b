"""No seat is held by two, whatever happens to servers and links; and the proof of it can fail."""

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.process import temporary_directory
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.chaos import Chaos, Troubles
from tests.integration.crowd import Crowd, Plan
from tests.integration.hall import hall
from tests.integration.proof import through_sidecars, working
from tests.integration.redis_first import RedisFirst
from tests.integration.rig import Caller
from tests.integration.verdicts import judge

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_directory("sidecache-hall-") as directory:
        yield directory


@pytest.fixture
async def mortal_server(folder: Path) -> AsyncIterator[Postgres]:
    """A PostgreSQL that a test may restart."""
    async with postgres_for(folder / "postgres") as server:
        yield server


async def test_the_proof_finds_double_grants(
    mortal_server: Postgres, start_cluster: StartCluster, folder: Path
) -> None:
    """Where Redis decides and PostgreSQL does while it is away, two hold one seat: it is seen."""
    plan = Plan(operations=8_000, seed=random.randrange(1_000_000))
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 3))
    async with hall(cluster, mortal_server, folder / "hall", plan) as made:
        connect, database = through_sidecars(made), await asyncpg.create_pool(made.dsn, max_size=20)

        async def decide(number: int) -> RedisFirst:
            line = await connect(number)
            assert isinstance(line, Caller)
            return RedisFirst(line, database, round(plan.hold * 1000))

        crowd = Crowd(plan, decide)
        chaos = Chaos(cluster, mortal_server, made.wires, plan.seed)
        troubles = Troubles(kills=2, freezes=1, flushes=3, cuts=5, severs=0, restarts=0)
        async with working(crowd):
            await chaos.run(troubles, lambda: crowd.progress)
        database.terminate()
    verdict = judge(crowd.history, plan.limit)
    print("\n".join(["", *chaos.log]), dict(crowd.outcomes), verdict, sep="\n")
    assert len(verdict.wrong["overlapping holds"]) > 5
    assert verdict.wrong["histories without an order"]
