"""Slots move from node to node under load, and no client notices."""

import asyncio
import random
import time

import pytest

from proxy.embedded.redis import SLOTS, Cluster, Shape
from tests.conftest import StartCluster
from tests.fakenode import key_slot
from tests.integration.rig import Mover, StartProxy
from tests.integration.workers import Outcome, Worker

pytestmark = pytest.mark.integration


async def reshard(
    cluster: Cluster, port: int, slots: int, workers: int, seed: int
) -> tuple[Outcome, float]:
    """Move slots round the primaries under workers; return what they saw and the seconds."""
    outcome, until = Outcome(), asyncio.Event()
    crew = [Worker(number, port, seed, outcome) for number in range(workers)]
    tasks = [asyncio.create_task(worker.run(until)) for worker in crew]
    mover = Mover(cluster)
    await mover.open()
    owners = await mover.owners()
    # First the slots that hold keys, for they are the hard ones; the rest at random.
    chance = random.Random(seed)
    held = {key_slot(key.encode()) for worker in crew for key in (*worker.keys, worker.list)}
    chosen = chance.sample(sorted(held), min(slots, len(held)))
    chosen += chance.sample(sorted(set(range(SLOTS)) - held), slots - len(chosen))
    chance.shuffle(chosen)
    start, moved, nodes = time.monotonic(), 0, cluster.primaries
    try:
        # One pair of nodes after the other, as redis-cli does it.
        for index, source in enumerate(nodes):
            await mover.settle()
            for slot in (slot for slot in chosen if owners[slot] is source):
                moved += await mover.move(slot, source, nodes[(index + 1) % len(nodes)])
    finally:
        seconds = time.monotonic() - start
        until.set()
        await asyncio.gather(*tasks)
        mover.close()
    print(f"\nseed {seed}: {slots} slots, {moved} keys in {seconds:.1f} s; {outcome}")
    return outcome, seconds


async def test_no_client_notices_that_slots_move(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Single commands, pipelines and splits see no error, no wrong value and their own order."""
    seed = random.SystemRandom().randrange(1_000_000)
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    outcome, _ = await reshard(cluster, sidecar.port, slots=400, workers=8, seed=seed)
    assert not outcome.wrong
    assert not outcome.errors
    assert outcome.operations > 1000
