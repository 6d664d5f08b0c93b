"""Nodes of a desk that hold keys and answer as a cluster does, for the walks over all keys.

A keeper has a table of who owns which slot, which a test may change between two pages.
"""

import asyncio

from proxy import log, resp, wire
from proxy.config import Cluster, NodeURL
from proxy.upstream.pool import Plumbing, Pools
from tests.handlers.desk import Client, Desk, Node


class Keeper:
    """What stands behind one of a desk's nodes."""

    def __init__(self, desk: Desk, number: int, first: int, last: int) -> None:
        self.node: Node = desk.node(number)
        self.id = b"%040d" % number
        self.keys: list[bytes] = []
        self.ranges = [(first, last)]
        self.notes: list[bytes] = []  # [slot->-node] and its like
        self.others: list[Keeper] = []
        self.asked: list[list[bytes]] = []

    def line(self, of: "Keeper") -> bytes:
        flags = b"myself,master" if of is self else b"master"
        ranges = [b"%d-%d" % pair for pair in of.ranges] + (of.notes if of is self else [])
        words = [of.id, b"h:1@2", flags, b"-", b"0", b"0", b"1", b"connected", *ranges]
        return b" ".join(words)

    def nodes(self) -> bytes:
        return b"".join(self.line(of) + b"\n" for of in (self, *self.others))

    def step(self) -> bool:
        """Answer what was asked; return whether there was anything."""
        commands = self.node.commands()
        self.asked += commands
        for words in commands:
            self.node.answer(self.reply(words))
        return bool(commands)

    def reply(self, words: list[bytes]) -> bytes:
        match [words[0], *words[1:2]]:
            case [b"CLUSTER", b"NODES"]:
                return resp.bulk(self.nodes())
            case [b"CLUSTER", b"MYID"]:
                return resp.bulk(self.id)
            case [b"DBSIZE"]:
                return resp.integer(len(self.keys))
            case [b"RANDOMKEY"]:
                return resp.bulk(self.keys[0]) if self.keys else resp.null(2)
            case [b"SCAN", cursor]:
                count = int(words[words.index(b"COUNT") + 1])
                start = int(cursor)
                page = self.keys[start : start + count]
                onward = start + count if start + count < len(self.keys) else 0
                names = resp.array([resp.bulk(name) for name in page])
                return resp.array([resp.bulk(b"%d" % onward), names])
        return b"+OK\r\n"


def keepers(desk: Desk) -> list[Keeper]:
    """Return what stands behind the nodes of both clusters: halves of the slots each."""
    plumbing = Plumbing(desk.batch, desk.latencies, desk.server.metrics, log.StateLog())
    nobody = (NodeURL("127.0.0.1", 1, None, None, False),)
    configs = [Cluster(name, "cluster", nobody, None, None, 1.0, 1) for name in ("cache", "locks")]
    desk.server.pools = Pools(configs, desk.server.router, plumbing)
    found = [Keeper(desk, number, *(_HALVES[number % 2])) for number in range(4)]
    for pair in (found[:2], found[2:]):
        pair[0].others, pair[1].others = [pair[1]], [pair[0]]
    return found


_HALVES = ((0, 8191), (8192, 16383))


def owner(key: bytes) -> int:
    """Return which half of the slots a key is in."""
    return int(wire.key_slot(key) > 8191)


async def answered(client: Client, found: list[Keeper], *words: bytes) -> bytes:
    """Send a command and let the nodes answer until its reply is there."""
    client.send(*words)
    async with asyncio.timeout(5):
        while not client.transport.written:
            await asyncio.sleep(0)
            client.desk.settle()
            if sum(keeper.step() for keeper in found):
                client.desk.settle()
    return client.take()
