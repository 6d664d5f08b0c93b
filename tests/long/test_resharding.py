"""Live resharding at acceptance scale."""

import pytest

from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.rig import StartProxy
from tests.integration.test_resharding import reshard

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]


async def test_four_thousand_slots_move_unnoticed(
    start_cluster: StartCluster, proxy_process: StartProxy, seed: int
) -> None:
    """4,000 slots round three primaries under 16 workers: no error, no wrong value."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    outcome, _ = await reshard(cluster, sidecar.port, slots=4000, workers=16, seed=seed)
    assert not outcome.wrong
    assert not outcome.errors
