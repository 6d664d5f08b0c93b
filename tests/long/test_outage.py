"""The outages of acceptance: both clusters, then PostgreSQL too, under 2,000 reads per second."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.node import Node, NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.redis import Cluster, Shape, together
from tests.conftest import StartCluster
from tests.integration.origin import Stage, staged
from tests.integration.outage import ROWS, Readers, compare, says
from tests.integration.rig import StartProxy, is_error, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600)]

RATE = 2000
CLIENTS = 50
AWAY = 30.0  # seconds that everything is down
POOL = 8  # connections of the proxy's budget
LEADING = 1  # beside it: the session of who leads the invalidations of the cluster, or would


@pytest.fixture
async def mortal_server(tmp_path: Path) -> AsyncIterator[Postgres]:
    async with postgres_for(tmp_path / "postgres") as server:
        yield server


class Outage:
    """Two clusters of six before a proxy, and the readers in front."""

    def __init__(self, stage: Stage, clusters: list[Cluster]) -> None:
        self.stage = stage
        self.nodes: list[Node] = [node for cluster in clusters for node in cluster.nodes]
        self.clusters = clusters
        self.readers = Readers(stage.proxy.port, range(1, ROWS + 1), RATE, CLIENTS)
        self.most_sessions = 0

    async def kill(self) -> float:
        await self.readers.more(2 * RATE)
        killed = time.monotonic()
        for node in self.nodes:
            node.kill()
        return killed

    async def watch(self, seconds: float) -> None:
        """Let time pass, and note how many sessions PostgreSQL has."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.most_sessions = max(self.most_sessions, await self.stage.sessions())
            await asyncio.sleep(0.25)

    async def give_back(self) -> float:
        """Start the nodes, empty; return how long until all is normal, in seconds."""
        await together([node.restart() for node in self.nodes])
        await together([cluster.wait_ready() for cluster in self.clusters])
        returned = time.monotonic()
        await wait_for(lambda: says(self.stage.proxy, "cache=up locks=up"), "the normal state")
        return time.monotonic() - returned


async def test_both_clusters_are_killed(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """No reader sees an error, PostgreSQL no more sessions than its pool, nobody anything stale."""
    options = NodeOptions(node_timeout=2.0)
    clusters = [await start_cluster(options, Shape(3, 3)) for _ in range(2)]
    async with staged(
        postgres_server, clusters[0], proxy_process, tmp_path, other=clusters[1]
    ) as stage:
        outage = Outage(stage, clusters)
        killed = await outage.kill()
        writer = await stage.caller()
        for number in range(1, ROWS + 1, 7):
            reply = await writer.call("SET", f"title:{number}", f"title {number} new")
            assert not is_error(reply)
        await outage.watch(AWAY)
        again = await outage.give_back()
        await outage.readers.more(2 * RATE)
        seen = await outage.readers.stop()
        first = seen.first_after(killed) - killed
        tooks = sorted(took for asked, took in seen.answers if killed <= asked < killed + AWAY)
        print(
            f"\n{len(seen.answers)} answers, {len(seen.errors)} errors; first {first:.3f} s after "
            f"the kill; while away p50 {tooks[len(tooks) // 2]:.4f} s, "
            f"p99.9 {tooks[len(tooks) * 999 // 1000]:.4f} s, longest {tooks[-1]:.3f} s; normal "
            f"{again:.2f} s after the return; {outage.most_sessions} sessions at most"
        )
        assert not seen.errors
        assert not seen.wrong
        assert first <= 0.25
        assert again <= 5.0
        assert outage.most_sessions <= POOL + LEADING
        await compare(stage)


async def test_postgresql_is_killed_as_well(
    mortal_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """What nobody has is an error within 50 ms, and a second after its return all is answered."""
    cluster = await start_cluster(NodeOptions(node_timeout=2.0), Shape(3, 0))
    async with staged(mortal_server, cluster, proxy_process, tmp_path) as stage:
        outage = Outage(stage, [cluster])
        await outage.kill()
        await wait_for(lambda: says(stage.proxy, "cache=redis_down(3/3)"), "the loss")
        mortal_server.kill()
        await wait_for(lambda: says(stage.proxy, "cache=both_down(3/3)"), "the loss of both")
        noticed = time.monotonic()
        refused = outage.readers.seen.errors
        await wait_for(lambda: len(refused) > 5 * RATE, "errors", 30.0)
        before = time.monotonic()
        await mortal_server.restart()
        returned = time.monotonic()
        await wait_for(lambda: says(stage.proxy, "cache=redis_down(3/3)"), "PostgreSQL")
        again = time.monotonic() - returned
        await outage.readers.more(2 * RATE)
        seen = await outage.readers.stop()
        tooks = sorted(took for asked, took, _ in seen.errors if noticed <= asked < before)
        last = max(asked for asked, _, _ in seen.errors)
        words = {text.split()[0] for _, _, text in seen.errors}
        print(
            f"\n{len(tooks)} errors {words}, p99 {tooks[len(tooks) * 99 // 100]:.4f} s, longest "
            f"{tooks[-1]:.4f} s; told {again:.2f} s, last error {last - returned:.2f} s after the "
            "return"
        )
        assert words <= {"PGDOWN", "TRYAGAIN"}
        assert tooks[len(tooks) * 99 // 100] <= 0.05
        assert again <= 1.0
        assert last - returned <= 1.0
        assert not seen.wrong
