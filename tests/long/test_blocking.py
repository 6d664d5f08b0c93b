"""Clients that wait, at acceptance scale."""

from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Shape
from tests.conftest import Clusters, StartCluster
from tests.handlers.test_undelivered import account
from tests.integration.rig import StartProxy
from tests.integration.test_blocking import kill_under_waits
from tests.integration.test_failover import NODE_TIMEOUT

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]

ROUNDS = 1000


@pytest.mark.parametrize("policy", ["drop", "push_back"])
async def test_clients_vanish_while_elements_arrive(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path, policy: str
) -> None:
    """A thousand times: each element is delivered, still there, or counted."""
    await account(empty_clusters, proxy_process, tmp_path, policy, ROUNDS)


async def test_primaries_die_under_many_waits(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Hundreds of clients that wait are told at once, five times in a row."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    for _ in range(5):
        assert await kill_under_waits(cluster, sidecar, 500) < 2.0
