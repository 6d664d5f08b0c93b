"""Redis is killed or freezes under readers whom PostgreSQL can answer, and comes back."""

import asyncio
import time
from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Shape, together
from tests.conftest import StartCluster
from tests.integration.origin import staged
from tests.integration.outage import ROWS, Readers, compare, ids_on, in_states, says
from tests.integration.rig import StartProxy, wait_for

pytestmark = pytest.mark.integration

# From the loss of a node to the first answer of PostgreSQL, and from the cluster's return to the
# normal state, in seconds.
NOTICED = 0.25
NORMAL_AGAIN = 5.0


async def test_all_nodes_are_killed(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Readers see no error, and after the return nothing that is older than PostgreSQL."""
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 0))
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as stage:
        readers = Readers(stage.proxy.port, range(1, ROWS + 1), rate=400, clients=20)
        await readers.more(800)
        killed = time.monotonic()
        for node in cluster.nodes:
            node.kill()
        await wait_for(lambda: says(stage.proxy, "cache=redis_down(3/3)"), "the loss")
        await wait_for(lambda: in_states(stage, REDIS_DOWN=3), "the metric")
        writer = await stage.caller()
        for number in range(1, 11):
            assert await writer.call("SET", f"title:{number}", f"title {number} new") == b"OK"
        await readers.more(800)
        assert await stage.sessions() <= 8 + 1
        await together([node.restart() for node in cluster.nodes])
        await cluster.wait_ready()
        returned = time.monotonic()
        await wait_for(lambda: says(stage.proxy, "cache=up"), "the normal state")
        again = time.monotonic() - returned
        await readers.more(800)
        seen = await readers.stop()
        first = seen.first_after(killed) - killed
        print(f"\nanswered {first:.3f} s after the kill, normal {again:.2f} s after the return")
        assert not seen.errors
        assert not seen.wrong
        assert first <= NOTICED
        assert again <= NORMAL_AGAIN
        await compare(stage)


async def test_one_node_of_three_freezes(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """PostgreSQL answers for its shard within a quarter of a second; the others notice nothing."""
    cluster = await start_cluster(NodeOptions(node_timeout=30.0), Shape(3, 0))
    frozen, *others = cluster.primaries
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as stage:
        port = stage.proxy.port
        stuck = Readers(port, await ids_on(cluster, frozen), rate=100, clients=10)
        fine = Readers(port, await ids_on(cluster, others[0]), rate=100, clients=10)
        await asyncio.gather(stuck.more(200), fine.more(200))
        paused = time.monotonic()
        frozen.pause()
        try:
            await wait_for(lambda: says(stage.proxy, "cache=redis_down(1/3)"), "the loss")
            noticed = time.monotonic()
            await asyncio.gather(stuck.more(300), fine.more(300))
            await wait_for(lambda: in_states(stage, REDIS_DOWN=1, NORMAL=2), "the metric")
        finally:
            frozen.resume()
        resumed = time.monotonic()
        await wait_for(lambda: says(stage.proxy, "cache=up"), "the normal state")
        again = time.monotonic() - resumed
        here, there = await stuck.stop(), await fine.stop()
        slowest = here.slowest(paused, noticed)
        print(
            f"\nslowest answer for the frozen node {slowest:.3f} s, later "
            f"{here.slowest(noticed, resumed):.3f} s, for another "
            f"{there.slowest(paused, resumed):.3f} s; normal {again:.2f} s after the thaw"
        )
        assert not here.errors + there.errors
        assert not here.wrong + there.wrong
        assert slowest <= NOTICED
        assert here.slowest(noticed, resumed) <= NOTICED / 2
        assert there.slowest(paused, resumed) <= NOTICED / 2
        assert again <= NORMAL_AGAIN
