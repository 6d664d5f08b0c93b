"""The differential run at acceptance scale."""

import os

import pytest

from proxy.embedded.node import Node
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.test_differential import compare

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

COMMANDS = int(os.environ.get("SIDECACHE_LONG_COMMANDS", "500000"))


async def test_half_a_million_commands_give_the_same_bytes(
    empty_clusters: Clusters, plain_redis: Node, proxy: Sidecar
) -> None:
    """No unexplained difference among 500,000 commands in RESP2 and RESP3."""
    nodes = [*empty_clusters.locks.primaries, *empty_clusters.cache.primaries]
    report = await compare(proxy, plain_redis, nodes, COMMANDS)
    assert not report.differences, report
    assert report.commands >= COMMANDS
