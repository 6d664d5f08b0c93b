"""Random commands through the proxy and on a plain Redis of the same version: the same bytes."""

import asyncio
import os
import random

import pytest

from proxy.embedded.node import Node
from proxy.embedded.process import temporary_directory
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster, Shape, Single
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.differential import Differential, Report
from tests.integration.rig import StartProxy

pytestmark = pytest.mark.integration

SEED = int(os.environ.get("SIDECACHE_SEED", random.SystemRandom().randrange(1_000_000)))


async def compare(
    sidecar: Sidecar, plain: Node, nodes: list[Node], commands: int, seed: int = SEED
) -> Report:
    """Run beside the loop: the comparison waits on plain sockets."""
    await plain.ask("FLUSHALL")
    run = Differential(sidecar.port, plain.port, [node.port for node in nodes], seed)
    try:
        report = await asyncio.to_thread(run.run, commands)
    finally:
        run.close()
    print(f"\n{report}")
    return report


async def test_ten_thousand_commands_give_the_same_bytes(
    empty_clusters: Clusters, plain_redis: Node, proxy: Sidecar
) -> None:
    """All data types in random pipelines and pieces, RESP2 and RESP3."""
    nodes = [*empty_clusters.locks.primaries, *empty_clusters.cache.primaries]
    report = await compare(proxy, plain_redis, nodes, 10_000)
    assert not report.differences, report
    assert report.errors > 500  # mistakes are part of the run


@pytest.mark.debian
async def test_the_oldest_redis_gives_the_same_bytes(
    debian_redis: Program, proxy_process: StartProxy
) -> None:
    """The same over a cluster of Debian's Redis, beside one plain node of it."""
    with temporary_directory("sidecache-test-") as folder:
        async with (
            Cluster("old", debian_redis, folder / "old", shape=Shape(3, 0)) as cluster,
            Single("plain", debian_redis, folder / "plain") as plain,
        ):
            sidecar = await proxy_process({"locks": cluster, "cache": cluster})
            report = await compare(sidecar, plain.node, cluster.primaries, 10_000)
    assert not report.differences, report


async def answers(port: int, said: bytes) -> bytes:
    """Return all that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize(
    "said",
    [
        b"CLIENT REPLY OFF\r\nRESET\r\nPING\r\n",
        b"CLIENT REPLY OFF\r\nCLIENT REPLY SKIP\r\nRESET\r\nPING\r\n",
        b"CLIENT REPLY OFF\r\nMULTI\r\nPING\r\nRESET\r\nPING\r\n",
        b"CLIENT REPLY OFF\r\nRESET more\r\nPING\r\nCLIENT REPLY ON\r\n",
        b"CLIENT REPLY SKIP\r\nRESET\r\nPING\r\n",
        b"_x\r\n;x 1\r\n\vPING\r\n+PING\r\n",
        b"ECHO \"a\\x41\\n\\q\"\r\nECHO 'it\\'s\\n'\r\nECHO k\"k\"\r\nECHO ''\r\nECHO a\vb\n",
    ],
)
async def test_lines_get_the_same_bytes(proxy: Sidecar, plain_redis: Node, said: bytes) -> None:
    """What is typed, and what silence and its end leave of replies, is answered alike."""
    said += b"QUIT\r\n"
    assert await answers(proxy.port, said) == await answers(plain_redis.port, said)
