"""One subscription for many clients, before fake nodes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from proxy.upstream.broker import TOPICS_PER_TURN, Broker, Route
from proxy.upstream.link import CHANNEL, PATTERN
from tests.fakenode import FakeCluster
from tests.integration.rig import wait_for
from tests.upstream.listening import Listener, PubSub, push
from tests.upstream.stand import Stand, cluster_config, fake_cluster, standing

pytestmark = pytest.mark.integration

HERE = Route((0,), b"a", False)


@dataclass
class Room:
    cluster: FakeCluster
    nodes: PubSub
    stand: Stand

    @property
    def broker(self) -> Broker:
        return self.stand.pools.broker

    async def say(self, name: bytes, frame: bytes) -> None:
        (link,) = await self.nodes.wait_subscribed(name)
        link.put(frame)


@pytest.fixture(params=["silent"])
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    async with fake_cluster(3) as cluster:
        nodes = PubSub(cluster)
        async with standing(cluster_config(cluster.nodes, gap=request.param)) as stand:
            yield Room(cluster, nodes, stand)


async def test_many_clients_are_one_subscription(room: Room) -> None:
    """The node hears of the first and of the last; each client gets its protocol's frame."""
    topics = [room.broker.claim(CHANNEL, b"a", HERE) for _ in range(3)]
    assert topics[0] is topics[2]
    assert await room.broker.wait(topics) == (True, None)
    clients = [Listener(2), Listener(3), Listener(2)]
    for client in clients:
        topics[0].listeners[client] = None
    frame = push(b"message", b"a", b"hello")
    await room.say(b"a", frame)
    await wait_for(lambda: clients[2].pushed, "a message")
    assert [client.pushed for client in clients] == [
        [b"*" + frame[1:]],
        [frame],
        [b"*" + frame[1:]],
    ]
    assert room.broker.subscriptions == 3
    assert 'sidecache_subscriptions{command="subscribe"} 3.0' in room.stand.page()
    for topic in topics[:2]:
        room.broker.give_up(topic)
    assert len(room.nodes.subscribed(b"a")) == 1
    room.broker.give_up(topics[2])
    await room.nodes.wait_subscribed(b"a", 0)
    assert (room.broker.topics[CHANNEL], room.broker.subscriptions) == ({}, 0)


async def test_topics_that_nodes_cannot_tell_apart(room: Room) -> None:
    """Two patterns of clients may be one at the nodes; each shows what is its own."""

    def only(word: bytes) -> Route:
        return Route((0,), b"all*", False, lambda _, frame: frame if word in frame else None)

    one, two = (
        room.broker.claim(PATTERN, b"1", only(b"x")),
        room.broker.claim(PATTERN, b"2", only(b"y")),
    )
    await room.broker.wait([one, two])
    first, second = Listener(3), Listener(3)
    one.listeners[first] = two.listeners[second] = None
    frames = [push(b"pmessage", b"all*", b"all", word) for word in (b"x", b"y")]
    await room.say(b"all*", b"".join(frames))
    await wait_for(lambda: second.pushed, "a message")
    assert (first.pushed, second.pushed) == ([frames[0]], [frames[1]])
    room.broker.give_up(one)
    assert len(room.nodes.subscribed(b"all*")) == 1


async def test_no_answer_ends_with_the_deadline(room: Room) -> None:
    """A refusal is passed on; a topic that nobody acknowledges is not heard in time."""
    forbidden = room.broker.claim(CHANNEL, b"forbidden", HERE._replace(name=b"forbidden"))
    assert await room.broker.wait([forbidden]) == (False, b"-NOPERM no\r\n")
    room.nodes.deaf = list(room.cluster.nodes)
    topic = room.broker.claim(CHANNEL, b"a", HERE)
    assert await room.broker.wait([topic]) == (False, None)
    assert not topic.wants[0].waiters


async def test_new_rules_move_a_topic(room: Room) -> None:
    """What belongs elsewhere is subscribed to there, and its clients stay."""
    topic = room.broker.claim(CHANNEL, b"a", HERE)
    await room.broker.wait([topic])
    client = Listener(3)
    topic.listeners[client] = None
    list(room.broker.reroute(lambda kind, name: HERE))
    list(room.broker.reroute(lambda kind, name: HERE._replace(name=b"other")))
    await room.nodes.wait_subscribed(b"a", 0)
    await room.say(b"other", push(b"message", b"other", b"x"))
    await wait_for(lambda: client.pushed, "a message")


async def test_new_rules_move_many_topics_in_steps(room: Room) -> None:
    """The loop works between a few topics and the next; what ends meanwhile is left alone."""
    topics = [room.broker.claim(CHANNEL, b"%d" % n, HERE) for n in range(2 * TOPICS_PER_TURN)]
    steps = room.broker.reroute(lambda kind, name: HERE._replace(name=b"new" + name))
    next(steps)
    moved = [topic.route.name.startswith(b"new") for topic in topics]
    assert moved == [True] * TOPICS_PER_TURN + [False] * TOPICS_PER_TURN
    room.broker.give_up(topics[-1])
    list(steps)
    assert [topic.route.name[:3] for topic in topics[-2:]] == [b"new", HERE.name]


@pytest.mark.parametrize("room", ["silent", "disconnect"], indirect=True)
async def test_what_a_gap_is_to_clients(room: Room) -> None:
    """Nothing, or a disconnect of those who may have missed something, and of nobody else."""
    topic = room.broker.claim(CHANNEL, b"a", HERE)
    await room.broker.wait([topic])
    client = Listener()
    topic.listeners[client] = None
    (home,) = room.nodes.subscribed(b"a")
    await home.node.stop()
    await wait_for(lambda: not home.open, "the loss")
    await room.nodes.wait_subscribed(b"a")
    assert client.closed == ("gap" if room.stand.cluster.config.gap == "disconnect" else "")
