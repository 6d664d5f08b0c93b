"""Failovers at acceptance scale."""

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.rig import StartProxy
from tests.integration.test_failover import NODE_TIMEOUT, fail_over

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]

ROUNDS = 2


async def test_every_primary_is_killed_in_turn(
    start_cluster: StartCluster, proxy_process: StartProxy, seed: int
) -> None:
    """kill -9 of each primary, and then of each that took over."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    for _ in range(ROUNDS):
        for primary in list(cluster.primaries):
            await fail_over(cluster, sidecar.port, primary, seed)
            seed += 1
