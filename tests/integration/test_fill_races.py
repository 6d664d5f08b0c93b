"""Fills race invalidations while Redis is killed: nothing old stays, nothing is told late."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Shape
from tests.conftest import StartCluster
from tests.integration.races import question, races
from tests.integration.rig import Caller, StartProxy, wait_for

pytestmark = pytest.mark.integration

# A node that starts again has what it had.
DURABLE = NodeOptions(node_timeout=1.0, settings={"appendonly": "yes"})


async def test_fills_never_bring_back_what_is_old(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """5,000 writes over 3 sidecars and a killed node: Redis and all of them tell the last."""
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 0))
    seed = random.randrange(1 << 32)
    async with races(postgres_server, cluster, proxy_process, tmp_path, seed) as made:
        seen = await made.run(5_000, kills=1, rate=1000)
        await made.quiescent()
        wrong = await made.compare()
        print(f"\nseed {seed}: {seen}; {len(wrong)} wrong in the end")
        assert wrong == []
        assert seen.stale() == []
        assert seen.failed() == []


async def test_a_shard_that_comes_back_tells_nothing_of_before(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """What changed while it was away is taken out of it before anybody is told what it has."""
    cluster = await start_cluster(DURABLE, Shape(3, 0))
    async with races(postgres_server, cluster, proxy_process, tmp_path, 1) as made:
        callers = [await Caller.open(sidecar.port) for sidecar in made.sidecars]
        node = cluster.primaries[0]
        numbers = await made.fill(callers[0], node)
        node.kill()
        await made.write(numbers)

        async def told() -> bool:
            """Whether all is new; copies inside a sidecar may be two seconds old."""
            answers = [
                await caller.call(*question("score", number))
                for caller in callers
                for number in numbers
            ]
            return set(answers) == {b"1"}

        await wait_for(told, "all that is new without the node", 10.0)
        await node.restart()
        normal = asyncio.create_task(wait_for(made.normal, "the normal state", 15.0))
        while not normal.done():
            assert await told()
        await normal
        assert await told()
        for caller in callers:
            caller.close()


async def test_a_shard_that_is_back_is_not_asked_before_it_has_heard_of_all(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Nobody is told what it holds while whoever has to tell it of changes is held up."""
    cluster = await start_cluster(DURABLE, Shape(3, 0))
    async with races(postgres_server, cluster, proxy_process, tmp_path, 1) as made:
        leader = await made.leader()
        filling = await Caller.open(leader.port)
        node = cluster.primaries[0]
        numbers = await made.fill(filling, node)
        node.kill()
        await made.write(numbers)
        os.kill(leader.pid or 0, signal.SIGSTOP)
        try:
            await node.restart()
            other = next(each for each in made.sidecars if each is not leader)
            asking = await Caller.open(other.port)

            async def back() -> bool:
                _, page = await other.get("/metrics")
                return 'sidecache_shards{cluster="cache",state="REDIS_DOWN"} 0.0' in page

            await wait_for(back, "the shard's return", 10.0)
            for number in numbers:
                assert await asking.call(*question("score", number)) == b"1"
        finally:
            os.kill(leader.pid or 0, signal.SIGCONT)
        await wait_for(made.normal, "the normal state", 15.0)
        for number in numbers:
            assert await asking.call(*question("score", number)) == b"1"
        for caller in (filling, asking):
            caller.close()
