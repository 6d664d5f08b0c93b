"""The proxy's process: its configuration, and what happens when it does not come up."""

import asyncio
from pathlib import Path

import pytest

from proxy import config
from proxy.embedded.node import NodeOptions, TLSFiles
from proxy.embedded.process import ServerFailed
from proxy.embedded.programs import Program
from proxy.embedded.redis import Single
from proxy.embedded.sentinel import Monitored, Sentinel
from proxy.embedded.sidecar import Sidecar, cluster_block, configuration_for, fetch
from tests.conftest import StartProxy
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration

PROGRAM = Program(Path("/nonexistent"), "", "")


def single(options: NodeOptions | None = None) -> Single:
    servers = Single("one", PROGRAM, Path("/tmp"), options)
    servers.nodes = [servers.node]
    servers.node.port = 7000  # nobody's: nothing is started
    return servers


def written(directory: Path, sidecar: Sidecar) -> config.Config:
    sidecar.write_configuration()
    return config.load(sidecar.file, {}, {})


def test_the_written_configuration_is_one_that_the_proxy_understands(tmp_path: Path) -> None:
    """Addresses, secrets and further blocks arrive as they were given."""
    servers = single(NodeOptions(user="app", password="p@ss/word"))
    document = configuration_for({"cache": servers}, limits={"clients": 7})
    sidecar = Sidecar(document, tmp_path)
    loaded = written(tmp_path, sidecar)
    assert loaded.listen.tcp == (sidecar.host, sidecar.port)
    assert (loaded.admin.host, loaded.admin.port) == (sidecar.admin_host, sidecar.admin_port)
    assert loaded.limits.clients == 7
    node = loaded.clusters["cache"].nodes[0]
    assert (node.username, node.port) == ("app", 7000)
    assert node.password is not None
    assert node.password.reveal() == "p@ss/word"


def test_sentinels_are_named_with_the_primarys_secrets(tmp_path: Path) -> None:
    """In sentinel mode the URLs are those of the sentinels, and the nodes' password is apart."""
    servers = Monitored("mon", PROGRAM, tmp_path, NodeOptions(user="app", password="secret"))
    servers.nodes = [single().node]
    servers.sentinels = [Sentinel("s", PROGRAM, tmp_path, servers.nodes[0])]
    servers.sentinels[0].port = 26379
    assert cluster_block(servers) == {
        "mode": "sentinel",
        "nodes": ["redis://127.0.0.1:26379"],
        "primary": "mymaster",
        "username": "app",
        "password": "secret",
    }


def test_tls_names_the_authority(tmp_path: Path) -> None:
    """A cluster with certificates is reached by rediss:// and checked against its CA."""
    files = TLSFiles(*(tmp_path / name for name in ("ca", "cert", "key")))
    block = cluster_block(single(NodeOptions(tls=files)))
    assert block["tls"] == {"ca": str(files.ca)}
    assert block["nodes"] == ["rediss://127.0.0.1:7000"]


async def test_a_proxy_that_refuses_its_configuration_shows_its_words(tmp_path: Path) -> None:
    """The start fails at once with the exit code and the log."""
    document = configuration_for({"cache": single()}, no_such_block=1)
    sidecar = Sidecar(document, tmp_path)
    try:
        with pytest.raises(ServerFailed, match=r"(?s)sidecache ended with \d.*no_such_block"):
            await sidecar.start()
    finally:
        assert await sidecar.stop() != 0


async def test_a_page_is_fetched_whole() -> None:
    """Status and body come back, however the answer is cut."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /page HTTP/1.1\r\n")
        for piece in (b"HTTP/1.1 503 No", b"pe\r\nX: y\r\n\r\nab", b"cd"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await fetch(host, port, "/page") == (503, "abcd")


async def test_what_is_not_http_is_an_error() -> None:
    """Another protocol on the port is not taken for an answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"-ERR what\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(ValueError, match="not HTTP"):
            await fetch(host, port, "/")


async def test_a_started_proxy_has_reached_its_clusters(proxy: Sidecar) -> None:
    """Started means that every cluster is up as the proxy sees it, and that it says so."""
    assert await proxy.get("/readyz") == (200, "locks=up cache=up\n")


async def test_a_proxy_may_be_started_without_its_clusters_and_ends_with_0(
    proxy_process: StartProxy,
) -> None:
    """With degraded it is enough that clients are served; a stop is a drain."""
    sidecar = await proxy_process({"cache": single()}, degraded=True)

    # A node counts as there until a connection to it has failed.
    async def known() -> bool:
        return await sidecar.get("/readyz") == (200, "cache=redis_down(1/1)\n")

    await wait_for(known, "word of a cluster that is away")
    assert await sidecar.stop() == 0
