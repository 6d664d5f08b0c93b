"""A scripted Redis node: it answers what a test tells it to, and writes down what it was told.

A `FakeNode` listens on a free port and behaves like a small, obedient Redis (GET, SET, PING, HELLO
and so on over one dictionary). A test lays answers over that: by command name, as bytes or as a
function. `FakeCluster` joins several into a cluster with a slot table of its own, so that MOVED,
ASK and every topology reply can be true or a lie.

Always true: replies leave in the order of their requests, however long one is delayed; every byte
received is kept per connection, in `FakeConnection.received`.

How bytes travel belongs to `tests.faults`.
"""

import asyncio
import binascii
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import hiredis

from tests.faults import End, reset
from tests.replies import pack

SLOTS = 16384


# The commands with a key that a fake node knows by itself.
_KEYED = ("GET", "SET", "INCR", "DEL", "UNLINK", "EXISTS", "TOUCH")


def _row(name: str) -> bytes:
    """Return the row of COMMAND that cluster clients find a command's key with."""
    word = name.lower().encode()
    flag = b"+readonly" if name in ("GET", "EXISTS", "TOUCH") else b"+write"
    return b"*6\r\n$%d\r\n%b\r\n:-2\r\n*1\r\n%b\r\n:1\r\n:1\r\n:1\r\n" % (len(word), word, flag)


def key_slot(key: bytes) -> int:
    """Return the slot of a key, hash tag rule included."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for one command. No data is a dropped reply, data twice a duplicate."""

    data: bytes
    delay: float = 0.0  # seconds; replies behind it wait as well
    close: End | None = None  # what happens to the connection behind the data


Script = Callable[["FakeConnection", list[bytes]], "Answer | bytes | None"]


class FakeConnection(asyncio.Protocol):
    """One connection to a fake node."""

    def __init__(self, node: "FakeNode") -> None:
        self.node = node
        self.received = bytearray()
        self.commands: list[list[bytes]] = []
        self.protocol = 2
        self.asking = False
        self.open = False
        self._reader = hiredis.Reader()
        self._answers: deque[Answer] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)
        self.open = True
        self.node.connections.append(self)
        if self.node.greeting is not None:
            self.put(self.node.greeting)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._reader.feed(data)
        while True:
            words = self._reader.gets()
            if words is False:
                return
            self.commands.append(words)
            self.put(self.node.reply(self, words))

    def put(self, answer: Answer | bytes) -> None:
        """Queue an answer; a push or a reply that nobody asked for is queued the same way."""
        self._answers.append(answer if isinstance(answer, Answer) else Answer(answer))
        if self._timer is None:
            self._next()

    def asked(self, name: bytes) -> bool:
        """Return whether a command of this name came over this connection."""
        return any(words[0] == name for words in self.commands)

    def _next(self) -> None:
        while self._answers:
            answer = self._answers[0]
            if answer.delay:
                self._answers[0] = Answer(answer.data, 0.0, answer.close)
                self._timer = asyncio.get_running_loop().call_later(answer.delay, self._wake)
                return
            self._answers.popleft()
            if self.transport is None or self.transport.is_closing():
                return
            if answer.data:
                self.transport.write(answer.data)
            if answer.close is not None:
                self.close(answer.close)

    def _wake(self) -> None:
        self._timer = None
        self._next()

    def close(self, how: End = "finish") -> None:
        if self.transport is None:
            return
        if how == "reset":
            reset(self.transport)
        elif how == "half":
            self.transport.write_eof()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self.transport = None
        if self._timer is not None:
            self._timer.cancel()


@dataclass(slots=True)
class FakeNode:
    """One scripted node."""

    answers: dict[str, bytes | Answer | Script] = field(default_factory=dict)
    script: Script | None = None  # asked first, for every command; None means "the usual answer"
    greeting: Answer | bytes | None = None  # sent before anything is asked
    values: dict[bytes, bytes] = field(default_factory=dict)
    connections: list[FakeConnection] = field(default_factory=list)
    cluster: "FakeCluster | None" = None
    identity: str = "f" * 40
    port: int = 0
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: FakeConnection(self), "127.0.0.1", self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, how: End = "reset") -> None:
        """Close every connection and refuse new ones; `start` takes the same port again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections:
            connection.close(how)

    @property
    def commands(self) -> list[list[bytes]]:
        """Return every command received so far, connection by connection."""
        return [words for connection in self.connections for words in connection.commands]

    def received(self, name: str) -> list[list[bytes]]:
        """Return the commands of one name, case ignored."""
        return [words for words in self.commands if words[0].upper() == name.upper().encode()]

    def reply(self, connection: FakeConnection, words: list[bytes]) -> Answer | bytes:
        """Return the answer to one command: the script's, the table's, or the usual one."""
        if self.script is not None:
            scripted = self.script(connection, words)
            if scripted is not None:
                return scripted
        name = words[0].decode("latin-1").upper()
        for key in (f"{name} {words[1].decode('latin-1').upper()}" if len(words) > 1 else "", name):
            answer = self.answers.get(key)
            if callable(answer):
                answer = answer(connection, words)
            if answer is not None:
                return answer
        if self.cluster is not None:
            directed = self.cluster.direct(self, connection, name, words)
            if directed is not None:
                return directed
        return self._usual(connection, name, words)

    def _usual(self, connection: FakeConnection, name: str, words: list[bytes]) -> bytes:
        match name:
            case "GET":
                value = self.values.get(words[1])
                if value is not None:
                    return b"$%d\r\n%b\r\n" % (len(value), value)
                return b"_\r\n" if connection.protocol == 3 else b"$-1\r\n"
            case "SET":
                self.values[words[1]] = words[2]
            case "DEL" | "UNLINK" | "EXISTS" | "TOUCH":
                found = [key for key in words[1:] if key in self.values]
                if name in ("DEL", "UNLINK"):
                    for key in set(found):
                        del self.values[key]
                return b":%d\r\n" % len(found)
            case "INCR":
                number = int(self.values.get(words[1], b"0")) + 1
                self.values[words[1]] = b"%d" % number
                return b":%d\r\n" % number
            case "PING":
                return b"+PONG\r\n"
            case "HELLO":
                connection.protocol = int(words[1]) if len(words) > 1 else connection.protocol
                return self._greeting(connection.protocol)
            case "INFO":
                body = b"# Server\r\nredis_version:7.0.15\r\nrole:master\r\nloading:0\r\n"
                return b"$%d\r\n%b\r\n" % (len(body), body)
            case "COMMAND":
                return b"*%d\r\n%b" % (len(_KEYED), b"".join(map(_row, _KEYED)))
            case "ASKING":
                connection.asking = True
        return b"+OK\r\n"

    def _greeting(self, protocol: int) -> bytes:
        mode = b"cluster" if self.cluster is not None else b"standalone"
        pairs = (b"server", b"redis", b"version", b"7.0.15", b"mode", mode, b"role", b"master")
        header = (
            b"%%%d\r\n" % (len(pairs) // 2 + 1) if protocol == 3 else b"*%d\r\n" % (len(pairs) + 2)
        )
        return header + pack(*pairs).split(b"\r\n", 1)[1] + b"$5\r\nproto\r\n:%d\r\n" % protocol


class FakeCluster:
    """Several fake nodes that agree on who owns which slot, until a test makes them lie."""

    def __init__(self, size: int) -> None:
        self.nodes = [FakeNode(identity=f"{index:040x}", cluster=self) for index in range(size)]
        self.owners = [slot * size // SLOTS for slot in range(SLOTS)]
        self.asking: dict[int, int] = {}  # slot being moved: the node that ASK points at

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    def ranges(self, index: int) -> list[tuple[int, int]]:
        """Return the slot ranges of one node."""
        found, first = [], 0
        for owner, slots in itertools.groupby(self.owners):
            end = first + len(list(slots))
            if owner == index:
                found.append((first, end - 1))
            first = end
        return found

    def direct(
        self, node: FakeNode, connection: FakeConnection, name: str, words: Sequence[bytes]
    ) -> bytes | None:
        """Return a topology reply, or the redirect that this node gives for a key, or None."""
        if name == "CLUSTER":
            return self._topology(node, words[1].decode().upper())
        asking, connection.asking = connection.asking, False
        if name not in _KEYED:
            connection.asking = asking
            return None
        slot = key_slot(words[1])
        index = self.nodes.index(node)
        if self.owners[slot] == index:
            target = self.asking.get(slot)
            if target is None or words[1] in node.values:
                return None
            return b"-ASK %d 127.0.0.1:%d\r\n" % (slot, self.nodes[target].port)
        if asking and self.asking.get(slot) == index:
            return None
        return b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, self.nodes[self.owners[slot]].port)

    def _topology(self, node: FakeNode, word: str) -> bytes | None:
        match word:
            case "NODES":
                return self._bulk(self.describe(node).encode())
            case "MYID":
                return self._bulk(node.identity.encode())
            case "INFO":
                text = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\n"
                return self._bulk(text.encode())
            case "SLOTS":
                rows = [
                    b"*3\r\n:%d\r\n:%d\r\n" % span + self._endpoint(other)
                    for index, other in enumerate(self.nodes)
                    for span in self.ranges(index)
                ]
                return b"*%d\r\n%b" % (len(rows), b"".join(rows))
            case "SHARDS":
                return self._shards()
        return None

    def describe(self, me: FakeNode) -> str:
        """Return what CLUSTER NODES of one node says."""
        lines = []
        for index, node in enumerate(self.nodes):
            spans = [f"{a}-{b}" if a != b else str(a) for a, b in self.ranges(index)]
            flags = "myself,master" if node is me else "master"
            bus = node.port + 10000
            lines.append(
                f"{node.identity} 127.0.0.1:{node.port}@{bus} {flags} - 0 0 {index + 1} connected "
                + " ".join(spans)
            )
        return "\n".join(lines) + "\n"

    def _endpoint(self, node: FakeNode) -> bytes:
        return b"*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n%b" % (
            node.port,
            self._bulk(node.identity.encode()),
        )

    def _shards(self) -> bytes:
        shards = []
        for index, node in enumerate(self.nodes):
            slots = [b":%d\r\n" % edge for span in self.ranges(index) for edge in span]
            shards.append(
                b"*4\r\n$5\r\nslots\r\n*%d\r\n%b$5\r\nnodes\r\n*1\r\n*14\r\n"
                % (len(slots), b"".join(slots))
                + b"$2\r\nid\r\n%b$4\r\nport\r\n:%d\r\n"
                % (self._bulk(node.identity.encode()), node.port)
                + b"$2\r\nip\r\n$9\r\n127.0.0.1\r\n$8\r\nendpoint\r\n$9\r\n127.0.0.1\r\n"
                + b"$4\r\nrole\r\n$6\r\nmaster\r\n$18\r\nreplication-offset\r\n:0\r\n"
                + b"$6\r\nhealth\r\n$6\r\nonline\r\n"
            )
        return b"*%d\r\n%b" % (len(shards), b"".join(shards))

    @staticmethod
    def _bulk(data: bytes) -> bytes:
        return b"$%d\r\n%b\r\n" % (len(data), data)
