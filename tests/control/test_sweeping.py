"""Keyspaces whose keys nobody can name are swept from a real cluster."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.control.sweeping import Sweeper, glob_of
from proxy.embedded.redis import Cluster
from proxy.wire.rules import Segment
from tests.control.bench import Bench, companions, fill, held, without_database
from tests.integration.rig import wait_for
from tests.wire import stage

pytestmark = pytest.mark.integration


@pytest.fixture
async def bench(cache_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Bench]:
    await cache_cluster.flush()
    async with without_database(cache_cluster, tmp_path) as bench:
        yield bench


async def swept(bench: Bench, *keyspaces: int) -> None:
    sweeper = Sweeper(bench.router, bench.pools.plumbing.batch, ("cache",))
    task = asyncio.create_task(sweeper.watch())
    sweeper.ask(0, frozenset(keyspaces))
    assert sweeper.busy(0)
    try:
        await wait_for(lambda: sweeper.passes, "the sweep to end")
        await wait_for(lambda: not sweeper.busy(0), "nothing to be left")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_keys_of_a_keyspace_go(
    bench: Bench, cache_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """With their leases and markers, on every node; keys of others stay, similar ones too."""
    names = [f"event:{n}" for n in range(50)]
    others = ["event:1:x", "seats:{a}:all", "sidecache:probe", "xevent:1"]
    beside = [each for name in names[::10] for each in companions(name)]
    leases = companions("event:only-a-lease")[1:]
    await fill(cache_cluster, *names, *others, *beside, *leases)
    with caplog.at_level(logging.INFO, "sidecache"):
        await swept(bench, 0)
    assert await held(cache_cluster, [*names, *beside, *leases]) == []
    assert await held(cache_cluster, others) == others
    assert [r.msg for r in caplog.records].count("keyspaces_swept") == 1


async def test_keys_with_a_hash_tag_are_found(bench: Bench, cache_cluster: Cluster) -> None:
    """Nodes name them otherwise than clients do."""
    names = [*companions("seats:{a}:all"), "seats:{b}:all"]
    await fill(cache_cluster, *names, "event:1")
    await swept(bench, 2)
    assert await held(cache_cluster, names) == []
    assert await held(cache_cluster, ["event:1"]) == ["event:1"]


async def test_a_node_that_is_away_is_tried_again(
    bench: Bench, cache_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is forgotten: what could not be swept is due until it is."""
    monkeypatch.setattr("proxy.control.sweeping.RETRY", 0.05)
    await fill(cache_cluster, "event:1")
    slots = bench.router.slots
    sweeper = Sweeper(bench.router, bench.pools.plumbing.batch, ("cache",))
    node = cache_cluster.primaries[0]
    node.pause()
    task = asyncio.create_task(sweeper.watch())
    try:
        sweeper.ask(0, frozenset({0}))
        await wait_for(lambda: sweeper.failures, "a failure")
        assert sweeper.busy(0)
    finally:
        node.resume()
    await wait_for(lambda: sweeper.passes, "the sweep to end")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await held(cache_cluster, ["event:1"]) == []
    assert bench.router.slots.clusters == slots.clusters


def test_patterns_are_those_of_nodes() -> None:
    """A segment is a star, a tag is in braces, and what means something to SCAN is taken as is."""
    segment = Segment("id", "text")
    assert glob_of(stage.keyspace("a", [b"event:", segment])) == b"event:*"
    assert glob_of(stage.keyspace("a", [b"s:", segment, b":all"], hash_tag=1)) == b"s:{*}:all"
    odd = stage.keyspace("a", [b"a*[b]?", segment], hash_tag=b"jobs")
    assert glob_of(odd) == rb"{jobs}a\*\[b\]\?*"
