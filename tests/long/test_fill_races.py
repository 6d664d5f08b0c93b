"""Fills racing invalidations at acceptance scale."""

from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.races import LAG, races
from tests.integration.rig import StartProxy

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(420)]

WRITES = 100_000
RATE = 700.0  # writes per second
KILLS = 10


async def test_a_hundred_thousand_writes(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path, seed: int,
) -> None:  # fmt: skip
    """Primaries are killed at random: nothing old is told after the lag, which stays short."""
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 3))
    async with races(postgres_server, cluster, proxy_process, tmp_path, seed) as made:
        seen = await made.run(WRITES, KILLS, RATE)
        await made.quiescent()
        wrong = await made.compare()
        print(f"\nseed {seed}: {seen}; {len(wrong)} wrong in the end")
        assert wrong == []
        assert seen.stale() == []
        assert seen.failed() == []
        assert seen.percentile(0.99) <= LAG
