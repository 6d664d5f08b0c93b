"""Pub/sub at acceptance scale."""

import pytest

from benchmarks.pubsub import Plan, run
from benchmarks.stage import Target
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.rig import StartProxy

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(300)]


async def test_ten_thousand_subscribers(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """10,000 subscribers of 1,000 channels get 5,000 messages/s for 10 s, in order and complete."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"cache": cluster}, limits={"clients": 10_010})
    plan = Plan(sidecar.port, subscribers=10_000, channels=1000, rate=5000, seconds=10.0)
    figures = run(plan, Target("proxy", sidecar.port, sidecar.pid or 0))
    print(figures)
    assert figures["delivered"] == 500_000
    assert (figures["missing"], figures["wrong"], figures["closed"]) == (0, 0, 0)
