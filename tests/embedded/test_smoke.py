"""The smoke: all right in front of the real proxy, and not blind."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.embedded import sample, smoke
from proxy.embedded.node import Node
from proxy.embedded.postgres import Postgres
from proxy.embedded.process import reserve_port
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def booking_dsn(postgres_server: Postgres) -> AsyncIterator[str]:
    dsn = await postgres_server.create_database("smoke")
    await sample.load(dsn, 1)
    yield dsn
    await postgres_server.drop_database("smoke")


async def findings(target: smoke.Target) -> dict[str, str]:
    return {finding.title: finding.problem async for finding in smoke.check(target)}


async def test_a_working_proxy_passes_and_keeps_no_key(
    proxy: Sidecar, cache_cluster: Cluster, booking_dsn: str
) -> None:
    """Every question gets its right answer, and nothing is left in Redis."""
    found = await findings(smoke.Target(proxy, cache_cluster, booking_dsn))
    assert found == dict.fromkeys(found, "")
    for node in cache_cluster.primaries:
        assert await node.ask("KEYS", "smoke:*") == []


async def test_what_is_no_proxy_is_found_out(
    plain_redis: Node, cache_cluster: Cluster, booking_dsn: str, proxy: Sidecar
) -> None:
    """A plain Redis answers, but its keys are on no cluster and it has no admin port."""
    address = f"{plain_redis.host}:{plain_redis.port}"
    configuration = {"listen": {"tcp": address}, "admin": f"127.0.0.1:{reserve_port()}"}
    impostor = Sidecar(configuration, proxy.directory)
    target = smoke.Target(impostor, cache_cluster, booking_dsn)
    wrong = [title for title, problem in (await findings(target)).items() if problem]
    assert wrong == [
        "every primary of the cache cluster holds its part of the keys",
        "the admin port says alive and ready, and has metrics",
    ]


async def test_a_port_where_nobody_listens_fails_every_question(
    proxy: Sidecar, cache_cluster: Cluster, booking_dsn: str
) -> None:
    """No question passes without a connection."""
    configuration = {"listen": {"tcp": f"127.0.0.1:{reserve_port()}"}, "admin": "127.0.0.1:1"}
    target = smoke.Target(proxy, cache_cluster, booking_dsn)
    found = await findings(replace(target, sidecar=Sidecar(configuration, proxy.directory)))
    assert all("Refused" in problem for problem in found.values())
