"""Transactions at acceptance scale."""

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.rig import StartProxy
from tests.integration.test_failover import NODE_TIMEOUT
from tests.integration.test_transactions import assert_whole, keep_books

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]


async def test_a_hundred_thousand_transactions_stay_whole(
    start_cluster: StartCluster, proxy_process: StartProxy, seed: int
) -> None:
    """While slots move and primaries are killed in turn: 0 half-applied, 0 repeated, 0 crashes."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    outcome, found = await keep_books(
        cluster, sidecar.port, 100_000, rounds=8, clients=8, seed=seed
    )
    assert_whole(outcome, found)
    assert sidecar.child.running
    assert outcome.operations >= 100_000
