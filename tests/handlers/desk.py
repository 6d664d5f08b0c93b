"""Real sessions, tables and node queues without sockets: bytes in, bytes out, nothing in between.

The desk plays the loop's part: it flushes what is ready after every step. Nodes answer when a test
says so. Two clusters of two nodes each, the first the default one; of each, node 0 owns the lower
half of the slots. A keyspace of `KEYSPACES` lives in the second cluster and is renamed.
"""

import asyncio
from array import array
from collections.abc import Sequence
from typing import Any

import hiredis

from proxy import errors, log, wire
from proxy.commands import FAMILIES, ROWS
from proxy.config import OPEN_DEFAULT_USER, Admin, Config, Limits, Listen, User
from proxy.handlers import ClusterStatistics
from proxy.handlers.table import HANDLERS
from proxy.metrics import Metrics
from proxy.plans import Plans
from proxy.server import Server
from proxy.session import Session
from proxy.upstream.pool import Plumbing, Pools
from proxy.wire import rules
from tests.replies import frame_end, pack

TIMEOUT = 1.0  # seconds a node has, by the desk's own clock

KEYSPACES = [
    rules.Keyspace(
        name="seat_lock",
        pattern=[
            b"seat_lock:",
            rules.Segment("event", "text"),
            b":",
            rules.Segment("seat", "text"),
        ],
        cluster=1,
        hash_tag=1,
        characters=None,
        max_key_bytes=512,
        denied=bytes(row.name == b"touch" for row in ROWS),
        key_error=b"-POLICY key\r\n",
        denied_error=b"-NOPERM denied\r\n",
    )
]

# What those rules say about PostgreSQL.
PLANS: Plans | None = None


def parsed(reply: bytes) -> Any:
    """Return a reply as a Python value."""
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


class Wire(asyncio.Transport):
    """The client's end of a connection."""

    def __init__(self, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 6379)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    abort = close


class Client:
    """One session, and what it was sent."""

    def __init__(self, desk: "Desk", peer: tuple[str, int]) -> None:
        self.desk = desk
        self.transport = Wire(peer)
        self.session = desk.server._connect()
        self.session.connection_made(self.transport)

    def send(self, *words: bytes) -> None:
        """Send one command."""
        self.send_all([words])

    def send_all(self, commands: Sequence[Sequence[bytes]]) -> None:
        """Send commands at once."""
        frame = b"".join(pack(*words) for words in commands)
        self.session.get_buffer(-1)[: len(frame)] = frame
        self.session.buffer_updated(len(frame))
        self.desk.settle()

    def take(self) -> bytes:
        """Return what was received since."""
        data, self.transport.written = self.transport.written, b""
        return data

    def ask(self, *words: bytes) -> bytes:
        """Send one command and return the bytes of its reply."""
        self.send(*words)
        reply = self.take()
        assert not reply or frame_end(reply) == len(reply)
        return reply

    def value(self, *words: bytes) -> Any:
        return parsed(self.ask(*words))

    async def reply(self) -> bytes:
        """Return what is received once the handlers of this client are done."""
        async with asyncio.timeout(5):
            while not self.transport.written:
                await asyncio.sleep(0)
                self.desk.settle()
        return self.take()


class Node:
    """A node that answers when it is told to."""

    def __init__(self, upstream: wire.Upstream) -> None:
        self.upstream = upstream
        self.sent = b""

    def commands(self) -> list[list[bytes]]:
        """Return what was asked since."""
        found, position = [], 0
        while position < len(self.sent):
            end = frame_end(self.sent, position)
            found.append(parsed(self.sent[position:end]))
            position = end
        self.sent = b""
        return found

    def answer(self, *replies: bytes) -> None:
        self.upstream.receive_data(b"".join(replies), 0.0)


def ruleset(denied: Sequence[bytes] = ()) -> wire.Ruleset:
    """Return the rules of a desk: the whole table, one keyspace, the roles default and admin."""
    return wire.Ruleset(
        commands=ROWS,
        keyspaces=KEYSPACES,
        roles=[
            rules.Role("default", bytes(row.name not in denied for row in ROWS), rules.Limits()),
            rules.Role("admin", bytes([1] * len(ROWS)), rules.Limits()),
        ],
        families=[*FAMILIES],
        errors=errors.DATA_PLANE,
        default_cluster=0,
        reject_unmatched=False,
        max_key_bytes=1024,
        plans=PLANS,
    )


class Desk:
    """A server with its tables."""

    def __init__(
        self, users: Sequence[User] = (OPEN_DEFAULT_USER,), denied: Sequence[bytes] = ()
    ) -> None:
        self.batch = wire.Batch(lambda: None)
        self.latencies = wire.Latencies(2, len(ROWS))
        own = ruleset(denied)
        pairs = [
            tuple(wire.Upstream(self.batch, self.latencies, number // 2, TIMEOUT) for _ in (2, 3))
            for number in range(4)
        ]
        self.nodes = [[Node(upstream) for upstream in pair] for pair in pairs]
        for pair in pairs:
            for upstream in pair:
                upstream.available = True
        slots = wire.SlotMap(
            [
                (True, array("h", [first]) * 8192 + array("h", [first + 1]) * 8192)
                for first in (0, 2)
            ],
            [[(upstream,) for upstream in pair] for pair in pairs],
        )
        limits = Limits(
            100, 0.0, 5.0, 1 << 20, 1 << 24, 10.0, 1 << 24, 60.0, 10, 10, 60.0, 100, 1000
        )
        config = Config(
            Listen(("127.0.0.1", 6379), None, 0), Admin("", 0), {}, None, None, tuple(users),
            limits, 1.0,
        )  # fmt: skip
        metrics = Metrics("0", ["cache", "locks"], self.latencies, own)
        self.server = Server(config, wire.Router(own, slots), self.batch, metrics, HANDLERS)
        plumbing = Plumbing(self.batch, self.latencies, metrics, log.StateLog())
        self.server.pools = Pools([], self.server.router, plumbing)
        self.server.cluster_statistics = lambda: (
            ClusterStatistics("cache", True, "up", 2, "allkeys-lfu"),
            ClusterStatistics("locks", False, "redis_down(1/3)", 2, "noeviction"),
        )
        self.clients = 0

    def connect(self, peer: str = "10.0.0.1") -> Client:
        self.clients += 1
        return Client(self, (peer, 40_000 + self.clients))

    def node(self, number: int, protocol: int = 2) -> Node:
        return self.nodes[number][protocol - 2]

    def lose_everybody(self) -> None:
        """Let no node own a slot."""
        nobody = [(True, array("h", [-1] * 16384)) for _ in range(2)]
        self.server.router.slots = wire.SlotMap(nobody, [])

    def settle(self) -> None:
        """Flush both sides until nobody has anything to say."""
        while ready := self.batch.take_ready():
            for downstream in ready:
                session = downstream.owner
                assert isinstance(session, Session)
                session.flush()
        touched = self.batch.take_touched()
        for pair in self.nodes:
            for node in pair:
                if node.upstream in touched:
                    node.sent += node.upstream.data_to_send(0.0)
