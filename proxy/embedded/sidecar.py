"""The proxy as a process of its own, in front of servers of this machine.

Used by the demo, the tests and the benchmarks: they meet it as an operator does, through a
configuration file, its ports and its signals.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from proxy.embedded.process import Child, Launch, release_port, reserve_port, wait_until
from proxy.embedded.redis import Servers
from proxy.embedded.sentinel import PRIMARY_NAME, Monitored

# Reading the policies and the topology takes a fraction of a second on an idle machine.
READY_TIMEOUT = 15.0  # seconds

# A probe waits as long as Kubernetes does by default, and twice for a busy machine.
PROBE_TIMEOUT = 2.0  # seconds

# Above the drain timeout that a sidecar is given by default, so that draining can be seen.
STOP_TIMEOUT = 15.0  # seconds

# Metrics of a large configuration are a few megabytes.
LONGEST_RESPONSE = 1 << 24  # bytes


class Sidecar:
    """One proxy process. `configuration` is the document of its sidecache.yaml."""

    def __init__(self, configuration: Mapping[str, Any], directory: Path) -> None:
        self.configuration = configuration
        self.directory = directory
        self.host, self.port = _address(configuration["listen"]["tcp"])
        self.admin_host, self.admin_port = _address(configuration["admin"])
        self.child = Child(
            "sidecache",
            Launch(
                arguments=(sys.executable, "-m", "proxy", "serve", "--config", str(self.file)),
                directory=directory,
                log=directory / "sidecache.log",
                environment=_environment(),
            ),
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def file(self) -> Path:
        return self.directory / "sidecache.yaml"

    @property
    def pid(self) -> int | None:
        return self.child.pid

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{self.admin_host}:{self.admin_port}"

    @property
    def unix(self) -> Path | None:
        path = self.configuration["listen"].get("unix")
        return Path(path) if path else None

    @property
    def cluster_port(self) -> int | None:
        """Return the port for clients of Redis Cluster, if there is one."""
        address = self.configuration["listen"].get("cluster")
        return _address(address)[1] if address else None

    async def start(self, *, degraded: bool = False, timeout: float = READY_TIMEOUT) -> None:
        """Write the configuration, start the process and return when it is ready to serve.

        The proxy is ready while its clusters are away; here it is waited for until it has them,
        unless degraded says that they may be away.
        """
        self.write_configuration()
        self.child.start()
        missing = self._unready if degraded else self._clusters_away
        try:
            await wait_until(missing, timeout, [self.child])
        except BaseException:
            self.child.kill()
            raise

    def write_configuration(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file.touch(mode=0o600)  # node URLs carry passwords
        self.file.write_text(yaml.safe_dump(dict(self.configuration), sort_keys=False))

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Let the proxy drain and end; return its exit code."""
        try:
            await self.child.stop(number, STOP_TIMEOUT)
        finally:
            release_port(self.port)
            release_port(self.admin_port)
            if self.cluster_port is not None:
                release_port(self.cluster_port)
        return self.child.exit_code

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body of an admin page."""
        return await fetch(self.admin_host, self.admin_port, path)

    async def _unready(self) -> str | None:
        try:
            status, body = await self.get("/readyz")
        except (OSError, TimeoutError, ValueError) as error:
            return f"the proxy's admin port does not answer: {error}"
        return None if status == 200 else f"the proxy is not ready: {status} {body.strip()}"

    async def _clusters_away(self) -> str | None:
        if reason := await self._unready():
            return reason
        _, body = await self.get("/readyz")
        wanted = {f"{name}=up" for name in self.configuration["clusters"]}
        return None if wanted <= set(body.split()) else f"the proxy says {body.strip()}"


def configuration_for(clusters: Mapping[str, Servers], **blocks: Any) -> dict[str, Any]:
    """Return a configuration in front of running servers, listening on free ports.

    Blocks of sidecache.yaml (`limits=…`, `users=…`, `listen=…`) are taken as they are.
    """
    return {
        "listen": {"tcp": free_address()},
        "admin": free_address(),
        "clusters": {name: cluster_block(servers) for name, servers in clusters.items()},
    } | blocks


def free_address(port: int = 0) -> str:
    """Return an address of this machine, at a port of ours unless one is given."""
    return f"127.0.0.1:{port or reserve_port()}"


def cluster_block(servers: Servers) -> dict[str, Any]:
    """Return how sidecache.yaml names running servers."""
    if isinstance(servers, Monitored):
        nodes = [sentinel.url for sentinel in servers.sentinels]
        block: dict[str, Any] = {"mode": "sentinel", "nodes": nodes, "primary": PRIMARY_NAME}
        options = servers.options
        if options.password:
            block["password"] = options.password
        if options.user:
            block["username"] = options.user
    else:
        clustered = any(node.bus_port for node in servers.nodes) or len(servers.nodes) > 1
        block = {"mode": "cluster" if clustered else "single", "nodes": servers.urls}
        options = servers.nodes[0].options
    if options.tls:
        block["tls"] = {"ca": str(options.tls.ca)}
    return block


async def fetch(host: str, port: int, path: str) -> tuple[int, str]:
    """Return status and body of an HTTP page on this machine."""
    async with asyncio.timeout(PROBE_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            response = await reader.read(LONGEST_RESPONSE)
            while not reader.at_eof() and len(response) < LONGEST_RESPONSE:
                response += await reader.read(LONGEST_RESPONSE)
        finally:
            writer.transport.abort()
    head, _, body = response.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ValueError("the answer is not HTTP")
    return int(words[1]), body


def _environment() -> dict[str, str]:
    """Return ours without what would override the configuration, and with our own package."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SIDECACHE_") and name != "DATABASE_URL"
    }
    paths = [str(Path(str(files("proxy"))).parent), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
