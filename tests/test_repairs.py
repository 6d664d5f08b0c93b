"""What the admin port asks about copies, of a whole proxy with a database, by the command line."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import probe, remote, repairs
from proxy.control.restore import NotHere
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from proxy.errors import ConfigError, StartError
from tests.conftest import StartProxy
from tests.control.bench import ask
from tests.control.restoring import POLICIES, names_on, whole
from tests.integration.rig import wait_for
from tests.origin.bench import connected, database

ROWS = 1200


@pytest.fixture
async def url(postgres_server: Postgres) -> AsyncIterator[str]:
    async with database(postgres_server) as url, connected(url) as writer:
        await writer.execute(
            f"INSERT INTO event SELECT n::text, 't', 100 + n % 50 FROM generate_series(1, {ROWS}) n"
        )
        # As if that had been long ago: what is newer is read again when a shard is lost.
        await writer.execute("DELETE FROM sidecache_outbox")
        yield url


@pytest.fixture
async def sidecar(
    proxy_process: StartProxy, cache_cluster: Cluster, tmp_path: Path, url: str
) -> Sidecar:
    await cache_cluster.flush()
    (tmp_path / "policies.yaml").write_text(POLICIES.replace("rate: 600/s", "rate: 5000/s"))
    blocks = {"policies": str(tmp_path / "policies.yaml"), "database": {"url": url}}
    return await proxy_process({"cache": cache_cluster}, **blocks)


@pytest.mark.integration
async def test_a_shard_is_emptied_behind_a_proxy(sidecar: Sidecar, cache_cluster: Cluster) -> None:
    """It comes back by itself, and by hand; what was made wrong is reported and taken away."""
    await whole(cache_cluster)
    node = cache_cluster.primaries[0]
    before = await names_on(node, "[ehv]*")
    assert len(before) > ROWS // 4
    await node.ask("FLUSHALL")

    async def back() -> bool:
        return await names_on(node, "[ehv]*") == before

    await wait_for(back, "all keys to come back", patience=20)
    await whole(cache_cluster)
    address = probe.address_of(sidecar.admin_url.rpartition("//")[2].strip("/"))
    lines: list[str] = []
    name = next(key for key in before if key.startswith("event:"))
    await node.ask("DEL", name)
    assert await asyncio.to_thread(remote.restore, address, "event", lines.append)
    assert lines[0] == "restoring"
    assert lines[-1] == f"event: done, 1 of {ROWS} written, 0 rows left"
    assert await node.ask("EXISTS", name) == 1
    lines.clear()
    await ask(cache_cluster, name, "HSET", name, "title", "forged")

    def drift(repair: bool) -> bool:
        return remote.drift(address, None, 5000, lines.append, repair=repair)

    assert not await asyncio.to_thread(drift, True)
    assert lines == [f"event: {ROWS} compared, 1 stale; 1 repaired\n  stale  {name}"]
    assert await asyncio.to_thread(drift, False)
    with pytest.raises(StartError, match="nothing there has a block restore"):
        await asyncio.to_thread(remote.restore, address, "cart", lines.append)


async def test_without_a_database_there_is_nothing_to_ask() -> None:
    """It is said why, and the page is empty."""
    assert repairs.page(None) == '{"restore": []}\n'
    with pytest.raises(NotHere, match="no database"):
        repairs.restore(None, "")
    with pytest.raises(NotHere, match="no database"):
        await repairs.drift(None, "")


@pytest.mark.parametrize("query", ["x=1", "keyspace", "keys=many", "keys=9999999999"])
async def test_a_query_says_what_is_asked(query: str) -> None:
    """Other fields and what is no number are refused."""
    with pytest.raises(ConfigError):
        await repairs.drift(None, query)
