"""A whole proxy between PostgreSQL and Redis: what is committed there is not served here."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.conftest import StartProxy
from tests.control.bench import POLICIES
from tests.integration.rig import Caller, wait_for
from tests.origin.bench import connected

# Few keys and a fetch that takes long, so that most changes and their invalidations meet one.
RACERS, CHANGES = 10, 300
RACED = {
    "key: event:{event_id}": "key: event:{event_id}\n    type: string",
    "FROM event WHERE": "FROM event, pg_sleep(0.15) WHERE",
}

pytestmark = pytest.mark.integration


async def started(
    start: StartProxy, cluster: Cluster, folder: Path, url: str, **database: Any
) -> Sidecar:
    file = folder / "policies.yaml"
    # What is asked of the origin is not what is shown here.
    file.write_text(POLICIES.replace("origin:", "# origin:"), "utf-8")
    blocks = {"policies": str(file), "database": {"url": url, **database}}
    return await start({"cache": cluster}, **blocks)


async def test_committed_changes_are_not_served(
    proxy_process: StartProxy, cache_cluster: Cluster, tmp_path: Path, url: str
) -> None:
    """Row by row, and after a TRUNCATE all keys of the table's keyspaces."""
    await cache_cluster.flush()
    sidecar = await started(proxy_process, cache_cluster, tmp_path, url)
    caller = await Caller.open(sidecar.port)
    async with connected(url) as writer:
        await caller.pipeline([("SET", f"event:{n}", "old") for n in range(20)])
        await caller.call("SET", "seats:a:all", "old")
        await writer.execute("INSERT INTO event (id) VALUES ('3')")

        async def third() -> bool:
            return await caller.call("GET", "event:3") is None

        await wait_for(third, "the changed row's key to go")
        assert await caller.call("GET", "event:4") == b"old"
        await writer.execute("TRUNCATE event")

        async def none() -> bool:
            return await caller.call("EXISTS", *(f"event:{n}" for n in range(20))) == 0

        await wait_for(none, "all keys of the keyspace to go")
        assert await caller.call("GET", "seats:a:all") == b"old"
    caller.close()
    _, page = await sidecar.get("/metrics")
    assert 'sidecache_invalidation_leader{cluster="cache"} 1.0' in page
    assert 'sidecache_invalidation_changes_total{cluster="cache"} 2.0' in page


async def test_fills_that_race_with_changes_leave_nothing_stale(
    proxy_process: StartProxy, cache_cluster: Cluster, tmp_path: Path, url: str
) -> None:
    """Two proxies fetch what PostgreSQL changes all the time; afterwards both serve what it has."""
    await cache_cluster.flush()
    file = tmp_path / "racing.yaml"
    text = POLICIES
    for plain, raced in RACED.items():
        text = text.replace(plain, raced)
    file.write_text(text, "utf-8")
    blocks = {"policies": str(file), "database": {"url": url}}
    sidecars = [await proxy_process({"cache": cache_cluster}, **blocks) for _ in range(2)]
    names = [f"event:{n}" for n in range(RACERS)]
    reads, stop = 0, asyncio.Event()

    async def read(port: int, seed: int) -> None:
        nonlocal reads
        caller, chance = await Caller.open(port), random.Random(seed)
        while not stop.is_set():
            await caller.call("GET", chance.choice(names))
            reads += 1
        caller.close()

    async with connected(url) as writer:
        await writer.executemany(
            "INSERT INTO event (id, title) VALUES ($1, '0')", [(str(n),) for n in range(RACERS)]
        )
        readers = [
            asyncio.create_task(read(sidecar.port, seed))
            for seed in range(4)
            for sidecar in sidecars
        ]
        chance = random.Random(1)
        for number in range(CHANGES):
            who = str(chance.randrange(RACERS))
            await writer.execute("UPDATE event SET title = $2 WHERE id = $1", who, str(number))
            await writer.execute("SELECT pg_sleep(0.01)")
        stop.set()
        await asyncio.gather(*readers)
        rows = await writer.fetch("SELECT id, title FROM event")
    truth = {f"event:{row['id']}": row["title"].encode() for row in rows}
    for sidecar in sidecars:
        caller = await Caller.open(sidecar.port)

        async def fresh(caller: Caller = caller) -> bool:
            served = await caller.pipeline([("GET", name) for name in truth])
            return served == list(truth.values())

        assert await wait_for(fresh, "what PostgreSQL has") < 3.0
        caller.close()
    assert reads > RACERS


async def test_a_database_that_is_away_stops_nobody(
    proxy_process: StartProxy, cache_cluster: Cluster, tmp_path: Path, unused_tcp_port: int
) -> None:
    """Clients are served, and the proxy ends as it should."""
    nowhere = f"postgresql://x@127.0.0.1:{unused_tcp_port}/x"
    sidecar = await started(proxy_process, cache_cluster, tmp_path, nowhere)
    caller = await Caller.open(sidecar.port)
    assert await caller.call("SET", "event:1", "a") == b"OK"
    caller.close()
    assert await sidecar.stop() == 0
