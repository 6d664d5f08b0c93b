"""A client's pipeline before nodes between which slots move, and the real redirector."""

import asyncio
import random
from collections import defaultdict
from typing import Any

from proxy import wire
from proxy.upstream.connection import Endpoint, UpstreamConnection
from proxy.upstream.redirects import Redirector
from tests.upstream.stand import TIMEOUT
from tests.wire import model
from tests.wire.test_downstream import NODES, Play


class Moving(Play):
    """Nodes that keep a record of what they did while slots move between them, and a cluster.

    The redirector between them is the real one; its connections have no socket.
    """

    sharded = True

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.now = asyncio.get_running_loop().time()
        self.owners = list(self.stage.owners)
        self.done: dict[int, list[bytes]] = defaultdict(list)
        self.refused: set[tuple[int, int]] = set()
        self.connections = [
            UpstreamConnection(
                Endpoint("n", n, None, None, None, None, None, TIMEOUT), 2, 0, upstream, self
            )
            for n, upstream in enumerate(self.stage.upstreams)
        ]
        self.redirector = Redirector(self)

    def move(self, slot: int) -> None:
        """Give a slot to another node.

        What a node was sent before it was known to refuse, it runs or not as it likes: no proxy
        can help it, so a node takes a slot back only when it owes nothing.
        """
        to = (self.owners[slot] + self.chance.choice([1, 2])) % NODES
        if (to, slot) not in self.refused or not self.stage.upstreams[to].pending:
            self.owners[slot] = to
            self.refused.discard((to, slot))

    def receive(self, n: int) -> None:
        for words in model.requests(self.stage.upstreams[n].data_to_send(self.now))[0]:
            slot = model.key_slot(words[1])
            owner = self.owners[slot]
            if owner != n:
                self.refused.add((n, slot))
                self.owed[n] += b"-MOVED %d n:%d\r\n" % (slot, owner)
                continue
            self.done[slot].append(words[2])
            self.owed[n] += b"+%b\r\n" % words[2]

    def speak(self, n: int) -> None:
        whole = model.replies(self.owed[n])[0]
        said = b"".join(whole[: self.chance.randint(1, len(whole))])
        self.owed[n] = self.owed[n][len(said) :]
        orphans = self.stage.upstreams[n].receive_data(said, self.now)
        self.redirector.place(self.connections[n], orphans or [])

    # The cluster, as the redirector sees it. A node is nothing but its connection.

    nodes: dict[str, Any] = {}  # noqa: RUF012

    @property
    def refresher(self) -> "Moving":
        return self

    def hint(self) -> None: ...
    def connected(self, connection: UpstreamConnection) -> None: ...
    def disconnected(self, connection: UpstreamConnection, loss: Any) -> None: ...
    def orphaned(self, connection: UpstreamConnection, orphans: list[wire.Orphan]) -> None: ...

    def named(self, address: str) -> "Lane":
        return Lane(self.connections[int(address.removeprefix("n:"))])

    def owner_of(self, slot: int) -> "Lane":
        return Lane(self.connections[self.stage.owners[slot]])

    def move_slot(self, slot: int, node: "Lane") -> None:
        n = self.connections.index(node.connection)
        if self.stage.owners[slot] != n:
            self.stage.owners[slot] = n
            # As the pool does: the clients hear of it a moment later.
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        self.stage.router.slots = self.stage.slot_map()


class Lane:
    """A node with one connection."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self.connection = connection

    def connection_like(self, other: UpstreamConnection) -> UpstreamConnection:
        return self.connection


async def play_moving(keys: list[bytes], seed: int) -> None:
    play = Moving(random.Random(seed))
    movable = sorted({model.key_slot(key) for key in keys})
    asked: dict[int, list[bytes]] = defaultdict(list)
    for i, key in enumerate(keys):
        asked[model.key_slot(key)].append(b"%d" % i)
        play.feed(model.frame([b"SET", key, b"%d" % i]))
        for _ in range(play.chance.randrange(4)):
            play.step()
        if play.chance.random() < 0.3:
            await asyncio.sleep(0)
        if play.chance.random() < 0.3:
            play.move(play.chance.choice(movable))
    while play.step() or play.client.pending:
        await asyncio.sleep(0)
    assert play.out == b"".join(b"+%d\r\n" % i for i in range(len(keys)))
    assert play.done == asked
