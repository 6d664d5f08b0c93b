"""What applications do every day gives the same results through the proxy as on a plain Redis."""

import asyncio
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from proxy.embedded.node import Node, NodeOptions, TLSFiles
from proxy.embedded.process import reserve_port, temporary_directory
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster, Servers, Single
from proxy.embedded.sentinel import Monitored
from proxy.embedded.sidecar import Sidecar

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

RUN_TIMEOUT = 60.0

pytestmark = pytest.mark.integration

StartProxy = Callable[..., Awaitable[Sidecar]]


async def run(*command: str | Path, cwd: Path = ROOT, stdin: Path | None = None) -> str:
    """Return what a command prints; its failure is the test's."""
    source = stdin.open("rb") if stdin else None
    try:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=cwd,
            stdin=source or asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, error = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
    finally:
        if source is not None:
            source.close()
    assert process.returncode == 0, f"{command}: {error.decode()[-2000:]}"
    return out.decode("utf-8", "replace")


async def redis_py(url: str, kind: str, protocol: str) -> list[object]:
    text = await run(sys.executable, "-m", "tests.clients.everyday", url, kind, protocol)
    results: list[object] = json.loads(text)
    return results


async def command_line(port: int, *flags: str) -> list[str]:
    text = await run("redis-cli", "-p", str(port), *flags, stdin=HERE / "everyday.cli")
    return text.splitlines()


async def compare(
    ask: Callable[[Node | Sidecar], Awaitable[Sequence[object]]], plain: Node, proxy: Sidecar
) -> None:
    """Ask both sides, starting from nothing, and want the same answers."""
    await plain.ask("FLUSHALL")
    compare_results(await ask(plain), await ask(proxy))


def compare_results(wanted: Sequence[object], got: Sequence[object]) -> None:
    """Want the same answers of both sides, and as many as the script has operations."""
    assert len(wanted) >= 60
    differences = [
        f"operation {number}: plain {a!r}, proxy {b!r}"
        for number, (a, b) in enumerate(zip(wanted, got, strict=False))
        if a != b
    ]
    assert not differences, "\n".join(differences[:10])
    assert len(wanted) == len(got)


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.usefixtures("empty_clusters")
async def test_redis_py(plain_redis: Node, proxy: Sidecar, kind: str, protocol: str) -> None:
    """redis-py, both ways of waiting and both protocols, over two clusters."""
    await compare(lambda side: redis_py(side.url, kind, protocol), plain_redis, proxy)


@pytest.mark.parametrize("library", ["ioredis", "node-redis"])
@pytest.mark.usefixtures("empty_clusters")
async def test_node(plain_redis: Node, proxy: Sidecar, node_clients: Path, library: str) -> None:
    """The two clients of Node.js, with default settings."""

    async def ask(side: Node | Sidecar) -> list[object]:
        text = await run("node", "everyday.mjs", library, side.url, cwd=node_clients)
        results: list[object] = json.loads(text)
        return results

    await compare(ask, plain_redis, proxy)


@pytest.mark.parametrize("flags", [(), ("-3",)])
@pytest.mark.usefixtures("redis_cli", "empty_clusters")
async def test_redis_cli(plain_redis: Node, proxy: Sidecar, flags: tuple[str, ...]) -> None:
    """redis-cli in both protocols, commands from its standard input."""
    await compare(lambda side: command_line(side.port, *flags), plain_redis, proxy)


async def over(servers: Servers, proxy_process: StartProxy, plain: Node) -> None:
    """Run the script of redis-py through a proxy in front of servers of some kind."""
    proxy = await proxy_process({"locks": servers, "cache": servers})
    await compare(lambda side: redis_py(side.url, "sync", "3"), plain, proxy)
    if shutil.which("redis-cli"):
        await servers.flush()
        await compare(lambda side: command_line(side.port), plain, proxy)


async def test_over_a_single_node(
    redis_binary: Program, plain_redis: Node, proxy_process: StartProxy
) -> None:
    """The same script over one node without cluster mode."""
    with temporary_directory("sidecache-test-") as folder:
        async with Single("one", redis_binary, folder) as servers:
            await over(servers, proxy_process, plain_redis)


async def test_over_sentinel(
    redis_binary: Program, plain_redis: Node, proxy_process: StartProxy
) -> None:
    """The same script over a primary that Sentinels name."""
    with temporary_directory("sidecache-test-") as folder:
        async with Monitored("watched", redis_binary, folder) as servers:
            await over(servers, proxy_process, plain_redis)


@pytest.mark.debian
@pytest.mark.parametrize("user", ["", "app"])
async def test_over_tls_with_a_password(
    debian_redis: Program, certificates: TLSFiles, proxy_process: StartProxy, user: str
) -> None:
    """The same script over a cluster with TLS and a password, or an ACL user, on Debian's Redis."""
    options = NodeOptions(user=user, password="s3cret: with/odd@chars", tls=certificates)
    with temporary_directory("sidecache-test-") as folder:
        async with (
            Cluster("tls", debian_redis, folder / "tls", options) as cluster,
            Single("plain", debian_redis, folder / "plain") as plain,
        ):
            await over(cluster, proxy_process, plain.node)


@pytest.mark.usefixtures("empty_clusters")
async def test_over_the_unix_socket(plain_redis: Node, proxy_process: StartProxy) -> None:
    """The same script through the proxy's unix socket, while it listens on TCP as well."""
    with temporary_directory("sidecache-test-") as folder:
        path = folder / "redis.sock"
        proxy = await proxy_process(
            listen={"tcp": f"127.0.0.1:{reserve_port()}", "unix": str(path), "unix_mode": "0660"}
        )

        def address(side: Node | Sidecar) -> str:
            return f"unix://{path}" if side is proxy else side.url

        await compare(lambda side: redis_py(address(side), "sync", "3"), plain_redis, proxy)
