"""Real pools before fake nodes, and clients that are nothing but a `wire.Downstream`.

What a session would do for a client is done here in ten lines, so that tests of the upstream room
see node connections, redirects and slot maps, and nothing of the room above.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import hiredis

from proxy import errors, log, wire
from proxy.commands import FAMILIES, ROWS
from proxy.config import Cluster, NodeURL
from proxy.metrics import Metrics
from proxy.secret import Secret
from proxy.upstream.connection import Flusher
from proxy.upstream.pool import Plumbing, Pools
from proxy.wire import rules
from tests.fakenode import FakeCluster, FakeConnection, FakeNode, key_slot
from tests.integration.rig import wait_for
from tests.replies import pack

TIMEOUT = 0.4  # seconds a command has, short so that deadlines can be waited for


def ruleset() -> wire.Ruleset:
    """Return rules that allow everything and know no keyspace."""
    return wire.Ruleset(
        commands=ROWS,
        keyspaces=[],
        roles=[rules.Role("default", b"\1" * len(ROWS), rules.Limits())],
        families=[*FAMILIES],
        errors=errors.DATA_PLANE,
        default_cluster=0,
        reject_unmatched=False,
        max_key_bytes=1024,
    )


class Client:
    """One client, and the replies that it got."""

    def __init__(self, router: wire.Router, batch: wire.Batch, protocol: int = 2) -> None:
        self.downstream = wire.Downstream(router, batch, 0)
        self.downstream.owner = self
        self.downstream.protocol = protocol
        self.downstream.assume("default")
        self.replies: list[Any] = []
        self._reader = hiredis.Reader()

    def send(self, *commands: Sequence[bytes]) -> None:
        """Send a pipeline of commands, all of the fast path."""
        data = b"".join(pack(*words) for words in commands)
        self._take(data)

    def _take(self, data: bytes) -> None:
        assert self.downstream.receive_data(data, asyncio.get_running_loop().time()) is None

    def flush(self) -> None:
        self._reader.feed(self.downstream.data_to_send())
        while (reply := self._reader.gets()) is not False:
            self.replies.append(reply)
        if self.downstream.resumable:
            self._take(b"")

    async def take(self, count: int) -> list[Any]:
        """Return the next replies, waiting for them."""
        await wait_for(lambda: len(self.replies) >= count, f"{count} replies")
        taken, self.replies = self.replies[:count], self.replies[count:]
        return taken

    async def ask(self, *words: bytes) -> Any:
        self.send(words)
        return (await self.take(1))[0]


def cluster_config(
    nodes: Sequence[FakeNode], mode: str = "cluster", timeout: float = TIMEOUT, **fields: Any
) -> Cluster:
    urls = tuple(NodeURL("127.0.0.1", node.port, None, None, False) for node in nodes)
    options = {"primary_name": None, "tls": None, "connections": 1} | fields
    return Cluster(name="cache", mode=mode, nodes=urls, timeout=timeout, **options)


class Stand:
    """One cluster with everything between the router and its nodes."""

    def __init__(self, config: Cluster) -> None:
        loop = asyncio.get_running_loop()
        rules = ruleset()
        latencies = wire.Latencies(1)
        self.flusher = Flusher(loop)
        self.router = wire.Router(rules, wire.SlotMap([], []))
        self.metrics = Metrics("0", ("cache",), latencies, rules)
        self.states = log.StateLog()
        self.pools = Pools(
            [config],
            self.router,
            Plumbing(self.flusher.batch, latencies, self.metrics, self.states),
        )
        self.pools.publish()
        (self.cluster,) = self.pools.clusters
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn the topology and keep it fresh."""
        self._refreshing = asyncio.create_task(self.cluster.refresher.run())
        await wait_for(lambda: self.cluster.nodes, "the topology")

    async def stop(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        self.pools.stop()

    def client(self, protocol: int = 2) -> Client:
        return Client(self.router, self.flusher.batch, protocol)

    def page(self) -> str:
        return b"".join(self.metrics.render()).decode()


@contextlib.asynccontextmanager
async def standing(config: Cluster) -> AsyncIterator[Stand]:
    """A stand that knows its cluster."""
    stand = Stand(config)
    try:
        await stand.start()
        yield stand
    finally:
        await stand.stop()


@contextlib.asynccontextmanager
async def fake_cluster(size: int) -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(size)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


def key_of(cluster: FakeCluster, index: int, number: int = 0) -> bytes:
    """Return a key that a node owns."""
    keys = (b"key:%d" % candidate for candidate in range(10_000))
    owned = [key for key in keys if cluster.owners[key_slot(key)] == index]
    return owned[number]


def data_of(connection: FakeConnection) -> list[list[bytes]]:
    """Return what a connection was asked behind the handshake."""
    names = (b"HELLO", b"AUTH", b"CLIENT", b"CLUSTER", b"PING")
    return [words for words in connection.commands if words[0] not in names]


def secret(text: str | None) -> Secret | None:
    return Secret(text) if text is not None else None
