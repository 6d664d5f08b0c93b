"""Nodes that are full and evict nothing: what they refuse is refused, and what goes still goes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, direct
from tests.integration.test_behind_lacking import RULES
from tests.origin.activity import execute

pytestmark = pytest.mark.integration

OOM = "OOM command not allowed when used memory > 'maxmemory'."


@pytest.fixture
async def proxy(
    activity: str, proxy_process: StartProxy, empty_clusters: Clusters, tmp_path: Path
) -> AsyncIterator[Sidecar]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(RULES)
    await execute(activity, "CREATE TABLE notes (id text PRIMARY KEY, value text)")
    cluster = empty_clusters.cache
    yield await proxy_process(
        {"cache": cluster, "locks": cluster}, database={"url": activity},
        policies=str(tmp_path / "rules"), journal={"directory": str(tmp_path / "journal")},
    )  # fmt: skip
    for node in cluster.primaries:
        await node.ask("CONFIG", "SET", "maxmemory", "0")
        await node.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")


async def fill_up(cluster: Cluster) -> None:
    for node in cluster.primaries:
        await node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await node.ask("CONFIG", "SET", "maxmemory", "1mb")


async def used(cluster: Cluster) -> int:
    return sum([int((await node.info("memory"))["used_memory"]) for node in cluster.primaries])


async def test_a_part_of_a_key_is_refused_as_by_redis(
    proxy: Sidecar, empty_clusters: Clusters
) -> None:
    """What is carried out upon a key that is there takes no memory that Redis does not give."""
    caller = await Caller.open(proxy.port)
    keys = [f"activity:g{number}:2026-11-29" for number in range(30)]
    for key in keys:
        assert await caller.call("HSET", key, "name", "x") == 1
    await fill_up(empty_clusters.cache)
    before = await used(empty_clusters.cache)
    assert str(await direct(empty_clusters.cache, "HSET", keys[0], "name", "y")) == OOM
    said = [str(await caller.call("HSET", key, "name", "v" * 200_000)) for key in keys]
    assert set(said) == {OOM}
    assert await used(empty_clusters.cache) - before < 1_000_000


async def test_what_is_fetched_is_not_stored(
    proxy: Sidecar, empty_clusters: Clusters, activity: str
) -> None:
    """A full node gives no lease, so nothing is filled; the client has its answer."""
    await execute(activity, "INSERT INTO notes SELECT n::text, repeat('v', 100000) "
                            "FROM generate_series(1, 30) n")  # fmt: skip
    caller = await Caller.open(proxy.port)
    await fill_up(empty_clusters.cache)
    before = await used(empty_clusters.cache)
    for number in range(1, 31):
        assert await caller.call("GET", f"memo:{number}") == b"v" * 100_000
    assert await direct(empty_clusters.cache, "EXISTS", "memo:1") == 0
    assert await used(empty_clusters.cache) - before < 1_000_000
