"""Rows that carry the number of their last write: of two sidecars' writes the older one loses."""

from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar, fetch
from tests.conftest import Clusters, StartProxy
from tests.integration.rig import Caller, is_error, wait_for
from tests.origin.activity import execute, rows_of

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  note:
    key: note:{id}
    cluster: cache
    type: string
    ttl: {default: 3600s}
    write:
      mode: behind
      version: ver
      flush: {every: EVERY}
      sql: |
        INSERT INTO notes AS t (id, value, ver) VALUES (:id, :value, :version)
            ON CONFLICT (id) DO UPDATE SET value = excluded.value, ver = excluded.ver
         WHERE t.ver < excluded.ver
  card:
    key: card:{id}
    cluster: cache
    type: hash
    ttl: {default: 3600s}
    write:
      mode: MODE
      version: ver
      sql: |
        INSERT INTO notes AS t (id, value, ver) VALUES (:id, :value, :version)
            ON CONFLICT (id) DO UPDATE SET value = excluded.value, ver = excluded.ver
         WHERE t.ver < excluded.ver
"""
ROWS = "SELECT id, value FROM notes"


async def start(
    proxy_process: StartProxy, clusters: Clusters, dsn: str, place: Path, every: str,
    mode: str = "behind",
) -> Sidecar:  # fmt: skip
    """Return a sidecar with a journal of its own."""
    place.mkdir()
    (place / "a.yaml").write_text(RULES.replace("EVERY", every).replace("MODE", mode))
    return await proxy_process(
        {"cache": clusters.cache, "locks": clusters.cache}, database={"url": dsn},
        policies=str(place), journal={"directory": str(place / "journal")},
    )  # fmt: skip


async def test_a_write_that_is_flushed_late_is_still_the_older_one(
    activity: str, proxy_process: StartProxy, empty_clusters: Clusters, tmp_path: Path
) -> None:
    """Whoever tells PostgreSQL last, it keeps what was written last."""
    await execute(activity, "CREATE TABLE notes (id text PRIMARY KEY, value text, ver bigint)")
    slow = await start(proxy_process, empty_clusters, activity, tmp_path / "slow", "1500ms")
    quick = await start(proxy_process, empty_clusters, activity, tmp_path / "quick", "20ms")
    first, second = await Caller.open(slow.port), await Caller.open(quick.port)
    assert await first.call("SET", "note:1", "older") == b"OK"
    assert await second.call("SET", "note:1", "newer") == b"OK"

    async def told() -> bool:
        return await rows_of(activity, ROWS) == [("1", "newer")]

    async def flushed() -> bool:
        _, page = await fetch(slow.admin_host, slow.admin_port, "/metrics")
        return "sidecache_write_behind_rows 0.0" in page

    await wait_for(told, "the newer write")
    assert not await flushed()
    await wait_for(flushed, "the older write's flush")
    assert await told()
    assert await second.call("GET", "note:1") == b"newer"


@pytest.mark.parametrize("mode", ["behind", "through"])
async def test_no_client_numbers_its_writes(
    activity: str, proxy_process: StartProxy, empty_clusters: Clusters, tmp_path: Path, mode: str
) -> None:
    """A field of the parameter's name is refused: with a great one nobody else could write."""
    await execute(activity, "CREATE TABLE notes (id text PRIMARY KEY, value text, ver bigint)")
    proxy = await start(proxy_process, empty_clusters, activity, tmp_path / "own", "20ms", mode)
    caller = await Caller.open(proxy.port)
    for words in (("version", 2**62), ("value", "a", "version", 2**62)):
        refused = await caller.call("HSET", "card:1", *words)
        assert is_error(refused)
        assert str(refused).startswith("POLICY")
    assert await caller.call("HMSET", "card:1", "value", "b") == b"OK"

    async def told() -> bool:
        return await rows_of(activity, ROWS) == [("1", "b")]

    await wait_for(told, "the row")
