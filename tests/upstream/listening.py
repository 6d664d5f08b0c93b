"""Fake nodes that take subscriptions, and an audience that writes down what it hears."""

from proxy.upstream.link import BEGIN, END, Key
from tests.fakenode import FakeCluster, FakeConnection, FakeNode, key_slot
from tests.integration.rig import wait_for


def push(*words: bytes | int) -> bytes:
    parts = [
        b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%b\r\n" % (len(word), word)
        for word in words
    ]
    return b">%d\r\n%b" % (len(parts), b"".join(parts))


class PubSub:
    """Teaches the nodes of a fake cluster to subscribe; shard channels are redirected."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.deaf: list[FakeNode] = []  # take subscriptions and say nothing
        self.redirected: set[tuple[FakeConnection, bytes]] = set()
        for node in cluster.nodes:
            for word in (*BEGIN.values(), *END.values()):
                node.answers[word.decode().upper()] = self.answer

    def answer(self, connection: FakeConnection, words: list[bytes]) -> bytes:
        word, name = words[0].lower(), words[1]
        if connection.node in self.deaf:
            return b""
        owner = self.cluster.nodes[self.cluster.owners[key_slot(name)]]
        self.redirected.discard((connection, name))
        if word == b"ssubscribe" and owner is not connection.node:
            self.redirected.add((connection, name))
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (key_slot(name), owner.port)
        if name == b"forbidden":
            return b"-NOPERM no\r\n"
        return push(word, name, 1)

    def subscribed(self, name: bytes) -> list[FakeConnection]:
        """Return the open connections that have asked for a name and not ended it."""
        found = []
        for node in self.cluster.nodes:
            for connection in node.connections:
                asked = [words[0].lower() for words in connection.commands if words[1:] == [name]]
                begun = bool(asked) and asked[-1] in BEGIN.values()
                if connection.open and begun and (connection, name) not in self.redirected:
                    found.append(connection)
        return found

    async def wait_subscribed(self, name: bytes, count: int = 1) -> list[FakeConnection]:
        await wait_for(lambda: len(self.subscribed(name)) == count, f"{count} x {name!r}")
        return self.subscribed(name)


class Audience:
    """Writes down what subscribers say."""

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self.gaps: list[Key] = []

    def message(self, cluster: int, key: Key, frame: bytes) -> None:
        self.heard.append((key.name, frame.split(b"\r\n")[-2]))

    def interrupted(self, cluster: int, keys: list[Key]) -> None:
        self.gaps += keys


class Listener:
    """A client, and what was pushed to it."""

    def __init__(self, protocol: int = 2) -> None:
        self.user = "default"
        self.protocol = protocol
        self.pushed: list[bytes] = []
        self.closed = ""

    def push(self, data: bytes) -> None:
        self.pushed.append(data)

    def close(self, reason: str = "killed") -> None:
        self.closed = reason
