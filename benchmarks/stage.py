"""The processes that an end-to-end measurement compares, each on ports from the operating system.

`endtoend.py` builds a `Stage`, asks it for targets and stops it. Servers behind the proxies are
plain Redis for twemproxy, HAProxy and the direct line, and a cluster of three primaries for us.

Always true: nothing that was started outlives the `with` block, and a process that ends early
stops the measurement with the last lines that it wrote.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from proxy.embedded.process import Child, Launch, reserve_port, stop_all, wait_until
from proxy.embedded.programs import find_redis
from proxy.embedded.redis import Cluster, Servers, Shape, Single
from proxy.embedded.sidecar import Sidecar, configuration_for

ROOT = Path(__file__).resolve().parent.parent

# A proxy is ready within a second; the rest is for a busy machine.
START_TIMEOUT = 15.0  # seconds

_TICK = os.sysconf("SC_CLK_TCK")


class StageError(Exception):
    """Something needed for a measurement is missing or did not start."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that redis-benchmark is pointed at."""

    name: str
    port: int
    pid: int  # of the process whose CPU time counts

    def cpu_seconds(self) -> float:
        """Return user plus system time of the process and the children it still has."""
        return sum(_cpu_seconds(pid) for pid in _family(self.pid))

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_seconds(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    # The name in parentheses may hold blanks, so fields are counted from behind it.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _family(int(child))
    return found


def ask(port: int, *words: str, timeout: float = 2.0) -> bytes:
    """Return the raw first piece of a node's reply to one command."""
    frame = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with socket.create_connection(("127.0.0.1", port), timeout) as link:
        link.settimeout(timeout)
        link.sendall(frame.encode())
        return link.recv(65536)


class Stage:
    """Starts servers and proxies in a temporary directory and stops all of them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sidecache-bench-"))
        self._runner = asyncio.Runner()
        self._children: list[Child] = []
        self._servers: list[Servers] = []

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.run(stop_all(self._children))
        for servers in self._servers:
            self._runner.run(servers.stop())
        self._runner.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def spawn(self, name: str, command: Sequence[str | Path], ready: Callable[[], bool]) -> int:
        """Start a proxy and return its process id when ready() holds."""
        launch = Launch(
            arguments=tuple(str(word) for word in command),
            directory=ROOT,
            log=self.folder / f"{name}.log",
        )
        child = Child(name, launch)
        child.start()
        self._children.append(child)

        async def missing() -> str | None:
            try:
                return None if ready() else f"{name} answers something else"
            except OSError as error:
                return f"{name} does not answer: {error}"

        self._runner.run(wait_until(missing, START_TIMEOUT, [child]))
        return child.pid or 0

    def plain(self, count: int) -> list[Target]:
        """Start plain servers, without persistence."""
        servers = [Single(f"plain-{n}", find_redis(), self.folder) for n in range(count)]
        for server in servers:
            self._servers.append(server)
            self._runner.run(server.start())
        return [Target("direct", server.node.port, server.node.pid or 0) for server in servers]

    def cluster(self, primaries: int, name: str = "bench") -> Cluster:
        """Start a cluster without replicas."""
        cluster = Cluster(name, find_redis(), self.folder, shape=Shape(primaries, 0))
        self._servers.append(cluster)
        self._runner.run(cluster.start())
        return cluster

    def twemproxy(self, servers: Sequence[Target]) -> Target:
        port, config = reserve_port(), self.folder / "nutcracker.yml"
        lines = "".join(f"    - 127.0.0.1:{server.port}:1\n" for server in servers)
        config.write_text(
            f"main:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n"
            f"  auto_eject_hosts: false\n  redis: true\n  servers:\n{lines}"
        )
        # The statistics port of twemproxy is fixed unless given, and two runs would collide on it.
        pid = self.spawn(
            "twemproxy",
            (program("nutcracker"), "-c", config, "-s", str(reserve_port())),
            lambda: ask(port, "GET", "ready").startswith(b"$"),
        )
        return Target("twemproxy", port, pid)

    def haproxy(self, servers: Sequence[Target]) -> Target:
        port, config = reserve_port(), self.folder / "haproxy.cfg"
        lines = "".join(
            f"  server s{index} 127.0.0.1:{server.port}\n" for index, server in enumerate(servers)
        )
        config.write_text(
            "global\n  nbthread 1\n  maxconn 4000\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n"
            f"  timeout server 60s\nlisten redis\n  bind 127.0.0.1:{port}\n{lines}"
        )
        pid = self.spawn(
            "haproxy",
            (program("haproxy"), "-db", "-f", config),
            lambda: ask(port, "PING").startswith(b"+PONG"),
        )
        return Target("haproxy", port, pid)

    def sidecache(self, clusters: Mapping[str, Servers], **blocks: Any) -> Target:
        """Start our proxy in front of running servers, with no keyspace loaded unless told so."""
        policies = self.folder / "policies"
        policies.mkdir(exist_ok=True)
        (policies / "defaults.yaml").write_text("defaults: {cluster: cache}\n")
        configuration = configuration_for(clusters, **{"policies": str(policies)} | blocks)
        sidecar = Sidecar(configuration, self.folder / "sidecache")
        self._runner.run(sidecar.start())
        self._children.append(sidecar.child)
        return Target("sidecache", sidecar.port, sidecar.pid or 0)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"nutcracker": "nutcracker", "haproxy": "haproxy"}.get(name, "redis-server")
        raise StageError(f"{name} is not installed: apt-get install {package}")
    return found
