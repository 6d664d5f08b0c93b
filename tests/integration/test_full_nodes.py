"""Nodes that are full and evict nothing: what they refuse is refused, and what goes still goes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, direct, wait_for
from tests.integration.test_behind_lacking import RULES
from tests.origin.activity import execute, rows_of

pytestmark = pytest.mark.integration

OOM = "OOM command not allowed when used memory > 'maxmemory'."
JOURNALLED = OOM[:-1] + "; PostgreSQL is told of it nevertheless"
PAGES = """\
  page:
    key: page:{id}
    cluster: cache
    type: string
    ttl: {default: 3600s}
    origin: {read: "SELECT value FROM notes WHERE id = :id"}
"""


@pytest.fixture
async def proxy(
    activity: str, proxy_process: StartProxy, empty_clusters: Clusters, tmp_path: Path
) -> AsyncIterator[Sidecar]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(RULES + PAGES)
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
    assert set(said) == {JOURNALLED}
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


async def test_a_client_hears_what_redis_said_and_what_is_true(
    proxy: Sidecar, empty_clusters: Clusters, activity: str
) -> None:
    """Of a transaction that it has not sent it hears nothing; what is journalled is written."""
    caller = await Caller.open(proxy.port)
    counter = "activity:u1:2026-11-29"
    assert await caller.call("SET", "memo:1", "before") == b"OK"
    assert await caller.call("HINCRBY", counter, "views", 1) == 1
    await fill_up(empty_clusters.cache)
    assert str(await caller.call("SET", "page:1", "x")) == OOM
    assert str(await caller.call("HINCRBY", counter, "views", 1)) == OOM
    assert await caller.call("HGET", counter, "views") == b"1"
    assert str(await caller.call("SET", "memo:1", "after")) == JOURNALLED
    assert await caller.call("GET", "memo:1") == b"after"

    async def arrived() -> bool:
        rows = await rows_of(activity, "SELECT value FROM notes WHERE id = '1'")
        return rows == [("after",)]

    await wait_for(arrived, "the note in PostgreSQL")
    assert await caller.call("GET", "memo:1") == b"after"
