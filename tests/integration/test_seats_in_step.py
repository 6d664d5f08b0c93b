"""The availability of events is kept in step with their seats, also while Redis is restarted."""

import asyncio
import random
from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster, Shape
from tests.conftest import StartCluster
from tests.integration.rig import Caller, StartProxy, wait_for
from tests.integration.seats import Seats, seats

pytestmark = pytest.mark.integration

CHANGES = 3000


async def differing(stage: Seats, caller: Caller) -> list[str]:
    """Return the events whose hash is not what PostgreSQL has."""
    wrong = []
    for event in stage.events:
        told = await caller.call("HGETALL", f"event_availability:{event}")
        pairs = told if isinstance(told, list) else []
        if dict(zip(pairs[::2], pairs[1::2], strict=True)) != await stage.truth(event):
            wrong.append(event)
    return wrong


async def test_availability_follows_the_seats(
    postgres_server: Postgres, start_cluster: StartCluster, cache_cluster: Cluster,
    proxy_process: StartProxy, tmp_path: Path,
) -> None:  # fmt: skip
    """3,000 changes by SQL while a primary is restarted: in the end all hashes are as the rows."""
    locks = await start_cluster(
        NodeOptions(node_timeout=1.0, settings={"appendonly": "yes"}), Shape(3, 0)
    )
    restarted = locks.primaries[0]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    clusters = {"locks": locks, "cache": cache_cluster}
    async with seats(postgres_server, clusters, proxy_process, tmp_path) as stage:
        reader, caller = await Caller.open(stage.proxy.port), await Caller.open(stage.proxy.port)
        busy = asyncio.create_task(_read(stage, reader))
        for number in range(CHANGES):
            if number == CHANGES // 3:
                restarted.kill()
            if number == 2 * CHANGES // 3:
                await restarted.restart()
            await stage.change(chance)
        busy.cancel()

        async def equal() -> bool:
            return not await differing(stage, caller)

        took = await wait_for(equal, "all hashes to be as the rows", 15.0)
        patched = await stage.metric('sidecache_invalidation_patched_total{cluster="locks"}')
        print(f"\nseed {seed}: {patched:.0f} hashes patched, equal {took:.2f} s after the end")
        # How many looks the changes fell into is the machine's business; each would do.
        assert patched > 0
        # Nobody else has put right what was patched wrongly.
        assert await stage.metric("sidecache_drift_repairs_total") == 0
        reader.close()
        caller.close()


async def _read(stage: Seats, caller: Caller) -> None:
    """Ask for all events again and again, so that the hashes are there to be patched."""
    while True:
        for event in stage.events:
            await caller.call("HGETALL", f"event_availability:{event}")
