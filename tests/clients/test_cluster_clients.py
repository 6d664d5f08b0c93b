"""Clients that speak only to Redis Cluster find one in the proxy's cluster listener."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.node import Node
from proxy.embedded.redis import Cluster, Servers
from proxy.embedded.sidecar import Sidecar, configuration_for, free_address
from tests.clients.test_everyday import compare_results, run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def face(both_clusters: dict[str, Servers], server_directory: Path) -> AsyncIterator[Sidecar]:
    """A proxy in front of the shared clusters that shows a cluster on a port of its own."""
    listen = {"tcp": free_address(), "cluster": free_address()}
    configuration = configuration_for(both_clusters, listen=listen)
    async with Sidecar(configuration, server_directory / "face") as sidecar:
        yield sidecar


def cluster_url(sidecar: Sidecar) -> str:
    return f"redis://127.0.0.1:{sidecar.cluster_port}"


async def redis_py(url: str, kind: str, protocol: str) -> list[object]:
    module = "tests.clients.everyday"
    text = await run(sys.executable, "-m", module, url, kind, protocol, "--cluster")
    results: list[object] = json.loads(text)
    return results


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.usefixtures("empty_clusters")
async def test_redis_py(cache_cluster: Cluster, face: Sidecar, kind: str, protocol: str) -> None:
    """RedisCluster, both ways of waiting and both protocols, sees what a real cluster gives it."""
    wanted = await redis_py(cache_cluster.urls[0], kind, protocol)
    await cache_cluster.flush()
    compare_results(wanted, await redis_py(cluster_url(face), kind, protocol))


async def coredis(port: int) -> list[object]:
    text = await run(sys.executable, "-m", "tests.clients.coredis_cluster", "127.0.0.1", str(port))
    results: list[object] = json.loads(text)
    return results


@pytest.mark.usefixtures("empty_clusters")
async def test_coredis(cache_cluster: Cluster, face: Sidecar) -> None:
    """coredis, which splits and pipelines per node by itself, sees what a real cluster gives it."""
    wanted = await coredis(cache_cluster.nodes[0].port)
    await cache_cluster.flush()
    compare_results(wanted, await coredis(face.cluster_port))


@pytest.mark.parametrize("library", ["ioredis", "node-redis"])
@pytest.mark.usefixtures("empty_clusters")
async def test_node(plain_redis: Node, face: Sidecar, node_clients: Path, library: str) -> None:
    """The cluster clients of Node.js see what the plain ones see on a plain Redis.

    A real cluster refuses keys of different slots; the proxy splits them, so nothing is refused.
    """
    await plain_redis.ask("FLUSHALL")
    wanted = await run("node", "everyday.mjs", library, plain_redis.url, cwd=node_clients)
    name = f"{library}-cluster"
    got = await run("node", "everyday.mjs", name, cluster_url(face), cwd=node_clients)
    compare_results(json.loads(wanted), json.loads(got))


@pytest.mark.usefixtures("empty_clusters")
async def test_redis_cli_follows_no_redirect(face: Sidecar) -> None:
    """redis-cli -c reaches every key without being sent anywhere."""
    port = str(face.cluster_port)
    for key in ("a", "b", "c", "foo"):
        assert await run("redis-cli", "-c", "-p", port, "set", key, "v") == "OK\n"
        assert await run("redis-cli", "-c", "-p", port, "get", key) == "v\n"
