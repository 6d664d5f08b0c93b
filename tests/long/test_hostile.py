"""Hostile and odd clients at acceptance scale."""

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import StartProxy
from tests.integration.test_hostile import MIB, allow_descriptors, idle, in_flight, unread

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]


async def test_ten_thousand_idle_connections(proxy_process: StartProxy) -> None:
    """10,000 clients that sent one PING each: at most 6 kB each, and all still answer."""
    allow_descriptors(10_500)
    assert await idle(await proxy_process(), 10_000) <= 6000


@pytest.mark.parametrize("clients", [1, 50, 200])
async def test_many_clients_that_never_read(
    empty_clusters: Clusters, proxy_process: StartProxy, clients: int
) -> None:
    """At most 8 MiB each and 256 MiB in all here, 32 MiB in Redis."""
    sidecar = await proxy_process()
    nodes = [*empty_clusters.locks.nodes, *empty_clusters.cache.nodes]
    ours, redis = await unread(sidecar, nodes, clients)
    assert ours <= min(8 * clients, 256) * MIB
    assert redis <= 32 * MIB * max(1, clients // 10)


async def test_twenty_times_sigterm(proxy_process: StartProxy) -> None:
    """200 connections with 50 requests in flight, twenty times: all complete."""
    for cycle in range(20):
        sidecar: Sidecar = await proxy_process()
        complete, seconds = await in_flight(sidecar, 200, 50)
        print(f"cycle {cycle}: {complete} of 200 complete, exit after {seconds:.2f} s")
        assert complete == 200
        assert seconds <= 10.0
