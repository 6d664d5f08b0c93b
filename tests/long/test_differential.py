"""The differential run at acceptance scale."""

import itertools
import os

import pytest

from proxy.embedded.node import Node
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.test_differential import compare

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

COMMANDS = int(os.environ.get("SIDECACHE_LONG_COMMANDS", "1000000"))
BATCH = 50_000  # commands, from a seed of their own


async def test_a_million_commands_give_the_same_bytes(
    empty_clusters: Clusters, plain_redis: Node, proxy: Sidecar, seed: int
) -> None:
    """No unexplained difference among 1,000,000 commands in RESP2 and RESP3."""
    nodes = [*empty_clusters.locks.primaries, *empty_clusters.cache.primaries]
    done, found = 0, list[str]()
    for batch in itertools.count():
        report = await compare(proxy, plain_redis, nodes, min(BATCH, COMMANDS - done), seed + batch)
        done += report.commands
        found += report.differences
        if done >= COMMANDS:
            break
    assert not found, "\n".join(found)
