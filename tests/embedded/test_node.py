"""One real node: secrets, sockets, signals and ports."""

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from proxy.embedded.node import Node, NodeError, NodeOptions, TLSFiles
from proxy.embedded.process import ServerFailed, reserve_port, stop_all, temporary_directory
from proxy.embedded.programs import Program

pytestmark = pytest.mark.integration

# A password with everything that a configuration file could stumble over.
AWKWARD = "p\"q \\r's # t"

StartNode = Callable[..., Awaitable[Node]]


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary_directory("sidecache-test-") as path:
        yield path


@pytest.fixture
async def start(redis_binary: Program, directory: Path) -> AsyncIterator[StartNode]:
    started: list[Node] = []

    async def starter(options: NodeOptions | None = None, program: Program | None = None) -> Node:
        name = f"node-{len(started)}"
        node = Node(name, program or redis_binary, directory / name, options or NodeOptions())
        started.append(node)
        await node.start()
        return node

    yield starter
    await stop_all([node.child for node in started if node.pid])


@pytest.mark.parametrize("user", ["", "app"])
async def test_a_password_is_asked_for_and_stands_only_in_the_nodes_own_file(
    start: StartNode, user: str
) -> None:
    """With requirepass as with an ACL user, strangers are refused and `ps` shows no secret."""
    node = await start(NodeOptions(user=user, password=AWKWARD))
    assert await node.ask("PING") == "PONG"
    assert await node.ask("ACL", "WHOAMI") == (user or "default")
    stranger = Node("stranger", node.program, node.directory, NodeOptions())
    stranger.port = node.port
    with pytest.raises(NodeError, match="NOAUTH"):
        await stranger.ask("GET", "a")
    assert AWKWARD.encode() not in Path(f"/proc/{node.pid}/cmdline").read_bytes()
    assert stat.S_IMODE((node.directory / "node.conf").stat().st_mode) == 0o600
    assert "%22" in node.url
    assert AWKWARD not in repr(node.options)


async def test_a_unix_socket_is_listened_on_beside_the_port(start: StartNode) -> None:
    """The socket answers for the same server."""
    node = await start(NodeOptions(unix=True))
    assert node.unix is not None
    reader, writer = await asyncio.open_unix_connection(str(node.unix))
    writer.write(b"CONFIG GET port\r\n")
    assert str(node.port).encode() in await reader.readuntil(str(node.port).encode())
    writer.close()
    await writer.wait_closed()


async def test_a_frozen_node_is_silent_until_it_is_resumed(start: StartNode) -> None:
    """A paused process keeps its port and answers nothing; then it goes on."""
    node = await start()
    node.pause()
    with pytest.raises(TimeoutError):
        await node.ask("PING", timeout=0.1)
    assert node.running
    node.resume()
    assert await node.ask("PING") == "PONG"


async def test_a_killed_node_comes_back_at_its_address(start: StartNode) -> None:
    """Restarting keeps host and port and makes a new process."""
    node = await start()
    before, pid = node.address, node.pid
    node.kill()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
        await node.ask("PING")
    await node.restart()
    assert node.address == before
    assert node.pid != pid
    assert await node.ask("PING") == "PONG"


async def test_a_taken_port_is_replaced(start: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another server got first costs an attempt, not the start."""
    first = await start()
    offered = [first.port]
    monkeypatch.setattr(
        "proxy.embedded.node.reserve_port", lambda: offered.pop() if offered else reserve_port()
    )
    second = await start()
    assert not offered
    assert second.port != first.port
    assert int((await second.info("server"))["process_id"]) == second.pid


async def test_settings_reach_the_server(start: StartNode) -> None:
    """Eviction and further lines of redis.conf are those that were asked for."""
    options = NodeOptions(maxmemory_policy="allkeys-lfu", settings={"maxmemory": "64mb"})
    node = await start(options)
    assert await node.ask("CONFIG", "GET", "maxmemory-policy") == [
        "maxmemory-policy",
        "allkeys-lfu",
    ]
    assert await node.ask("CONFIG", "GET", "maxmemory") == ["maxmemory", str(64 << 20)]


async def test_a_bad_setting_fails_with_the_servers_own_words(start: StartNode) -> None:
    """A server that refuses its configuration shows why, at once."""
    with pytest.raises(ServerFailed, match=r"(?s)ended with 1.*no-such-setting"):
        await start(NodeOptions(settings={"no-such-setting": "x"}))


async def test_tls_is_the_only_way_in(
    start: StartNode, debian_redis: Program, certificates: TLSFiles
) -> None:
    """A node with certificates answers over TLS with a password, and not in the clear."""
    node = await start(NodeOptions(tls=certificates, password="secret"), debian_redis)
    assert node.url.startswith("rediss://:secret@")
    assert await node.ask("PING") == "PONG"
    plain = Node("plain", node.program, node.directory, NodeOptions())
    plain.port = node.port
    with pytest.raises((OSError, TimeoutError)):
        await plain.ask("PING", timeout=0.5)
