"""A real server with real sockets towards clients, in this process, before one scripted node.

Everything between a client's bytes and the node's is the product's own; only the composition root
is left out, so that a test can set limits, users and handlers one by one.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy.config import OPEN_DEFAULT_USER, Admin, Config, Limits, Listen, User
from proxy.handlers import ClusterStatistics, Handler
from proxy.handlers.table import HANDLERS
from proxy.server import Server
from proxy.session import Session
from tests.fakenode import FakeNode
from tests.faults import reset
from tests.integration.rig import Caller
from tests.upstream.stand import Stand, cluster_config

TIMEOUT = 5.0  # seconds a command has: no test here waits for it


class Front:
    """A server, its clients and its node."""

    def __init__(
        self,
        node: FakeNode,
        users: Sequence[User] = (OPEN_DEFAULT_USER,),
        handlers: Mapping[bytes, Handler] | None = None,
        unix: Path | None = None,
        **limits: float,
    ) -> None:
        self.node = node
        self.stand = Stand(cluster_config([node], "single", TIMEOUT))
        settings: dict[str, Any] = {
            "clients": 100, "idle": 0.0, "unauthenticated": 5.0, "output_bytes": 8 << 20,
            "output_total_bytes": 256 << 20, "output_seconds": 10.0,
            "input_total_bytes": 640 << 20, "input_seconds": 60.0,
            "blocked": 10, "watching": 10, "watch_idle": 60.0,
            "subscriptions": 100, "subscriptions_total": 1000,
        }  # fmt: skip
        config = Config(
            Listen(("127.0.0.1", 0), unix, 0o660), Admin("127.0.0.1", 0), {}, None, None,
            tuple(users), Limits(**(settings | limits)), 1.0,
        )  # fmt: skip
        self.server = Server(
            config, self.stand.router, self.stand.flusher.batch, self.stand.metrics,
            {**HANDLERS, **(handlers or {})},
        )  # fmt: skip
        self.server.pools = self.stand.pools
        self.server.cluster_statistics = lambda: (
            ClusterStatistics("cache", True, "up", 1, "allkeys-lfu"),
        )
        self.server.pools = self.stand.pools
        self._watching: asyncio.Task[None] | None = None
        self._callers: list[Caller] = []
        self.port = 0

    async def start(self) -> None:
        await self.stand.start()
        await self.server.listen()
        self.port = self.server._listeners[0].sockets[0].getsockname()[1]
        self._watching = asyncio.create_task(self.server.watch())

    async def stop(self) -> None:
        for caller in self._callers:
            caller.close()
        await self.server.drain(0.1)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.stand.stop()

    async def connect(self, receive_bytes: int = 0) -> Caller:
        """Return a client; with receive_bytes, one whose socket takes little unread."""
        raw = socket.socket()
        raw.setblocking(False)
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.port))
        except OSError:
            raw.close()
            raise
        caller = Caller(*await asyncio.open_connection(sock=raw, limit=1024))
        self._callers.append(caller)
        return caller

    def abandon(self, caller: Caller) -> None:
        """Let a client die, as opposed to one that has only said all it had to say."""
        reset(caller.writer.transport)

    @property
    def session(self) -> Session:
        """Return the session of the client that connected last."""
        return self.server.sessions[max(self.server.sessions)]

    def closed(self, reason: str) -> int:
        """Return how many connections ended for a reason."""
        head = f'sidecache_connections_closed_total{{reason="{reason}"}} '
        (line,) = [line for line in self.stand.page().splitlines() if line.startswith(head)]
        return int(float(line.removeprefix(head)))


@contextlib.asynccontextmanager
async def front(**fields: Any) -> AsyncIterator[Front]:
    node = FakeNode()
    await node.start()
    made = Front(node, **fields)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        await node.stop()
