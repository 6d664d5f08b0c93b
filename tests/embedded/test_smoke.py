"""The smoke: all right in front of the real proxy, and not blind."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.demo import POLICIES
from proxy.embedded import sample, smoke
from proxy.embedded.node import Node
from proxy.embedded.postgres import Postgres
from proxy.embedded.process import reserve_port
from proxy.embedded.redis import Cluster, Servers
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.origin import installing
from proxy.policy import compiler, planning
from tests.conftest import Clusters

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def booking_dsn(postgres_server: Postgres) -> AsyncIterator[str]:
    dsn = await postgres_server.create_database("smoke")
    await sample.load(dsn, 1)
    yield dsn
    await postgres_server.drop_database("smoke")


@pytest.fixture(scope="module")
async def booking_proxy(
    both_clusters: dict[str, Servers], server_directory: Path, booking_dsn: str
) -> AsyncIterator[Sidecar]:
    """A proxy with the shipped policies in front of the sample, as the demo has it."""
    watches = planning.watches_of(compiler.read(POLICIES, None))
    await installing.run(booking_dsn, watches, apply=True, remove=False)
    home = server_directory / "booking"
    configuration = configuration_for(
        both_clusters, policies=str(POLICIES), database={"url": booking_dsn},
        journal={"directory": str(home / "journal")},
    )  # fmt: skip
    async with Sidecar(configuration, home) as sidecar:
        yield sidecar


async def findings(target: smoke.Target) -> dict[str, str]:
    return {finding.title: finding.problem async for finding in smoke.check(target)}


async def test_a_working_proxy_passes_and_keeps_no_key(
    booking_proxy: Sidecar, clusters: Clusters, booking_dsn: str
) -> None:
    """Every question gets its right answer, and nothing is left in Redis."""
    await clusters.cache.flush()
    await clusters.locks.flush()
    found = await findings(smoke.Target(booking_proxy, clusters.cache, booking_dsn))
    assert found == dict.fromkeys(found, "")
    for node in (*clusters.cache.primaries, *clusters.locks.primaries):
        for pattern in ("smoke:*", "venue:*", "event:*", "user_activity:*"):
            assert await node.ask("KEYS", pattern) == []


async def test_what_is_no_proxy_is_found_out(
    plain_redis: Node,
    cache_cluster: Cluster,
    booking_dsn: str,
    proxy: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain Redis answers, but has no other nodes, no admin port and no PostgreSQL."""
    monkeypatch.setattr(smoke, "NEWS_TIMEOUT", 0.1)
    address = f"{plain_redis.host}:{plain_redis.port}"
    configuration = {"listen": {"tcp": address}, "admin": f"127.0.0.1:{reserve_port()}"}
    impostor = Sidecar(configuration, proxy.directory)
    target = smoke.Target(impostor, cache_cluster, booking_dsn)
    wrong = [title for title, problem in (await findings(target)).items() if problem]
    assert wrong == [
        "every primary of the cache cluster holds its part of the keys",
        "the admin port says alive and ready, and has metrics",
        "rows that Redis lacks are read from PostgreSQL",
        "a change in PostgreSQL is what clients read",
        "counts are written to PostgreSQL behind the cache",
    ]


async def test_a_port_where_nobody_listens_fails_every_question(
    proxy: Sidecar, cache_cluster: Cluster, booking_dsn: str
) -> None:
    """No question passes without a connection."""
    configuration = {"listen": {"tcp": f"127.0.0.1:{reserve_port()}"}, "admin": "127.0.0.1:1"}
    target = smoke.Target(proxy, cache_cluster, booking_dsn)
    found = await findings(replace(target, sidecar=Sidecar(configuration, proxy.directory)))
    assert all("Refused" in problem for problem in found.values())
