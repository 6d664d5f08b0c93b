"""Which node is listened to for what, before fake nodes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from proxy.upstream import subscriber as module
from proxy.upstream.link import CHANNEL, PATTERN, SHARD, Key
from proxy.upstream.subscriber import Subscriber, Want
from tests.fakenode import FakeCluster, FakeConnection, key_slot
from tests.integration.rig import wait_for
from tests.upstream.listening import Audience, PubSub, push
from tests.upstream.stand import Stand, cluster_config, fake_cluster, standing

pytestmark = pytest.mark.integration

A, B = Key(CHANNEL, b"a"), Key(CHANNEL, b"b")
EVENTS = Key(PATTERN, b"__keyevent@*")
ANY = Key(PATTERN, b"*")
S = Key(SHARD, b"s")


@dataclass
class Room:
    cluster: FakeCluster
    nodes: PubSub
    stand: Stand
    audience: Audience
    subscriber: Subscriber

    async def want(self, key: Key, everywhere: bool = False) -> Want:
        want = self.subscriber.want(key, everywhere)
        await wait_for(lambda: want.ready, f"{key}")
        return want

    async def hears(self, *expected: tuple[bytes, bytes]) -> None:
        await wait_for(lambda: len(self.audience.heard) >= len(expected), "messages")
        assert self.audience.heard == list(expected)
        self.audience.heard.clear()


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with fake_cluster(3) as cluster, standing(cluster_config(cluster.nodes)) as stand:
        audience = Audience()
        subscriber = Subscriber(stand.cluster, stand.pools.plumbing, audience)
        room = Room(cluster, PubSub(cluster), stand, audience, subscriber)
        yield room
        subscriber.stop()


def number(room: Room, connection: FakeConnection) -> int:
    return room.cluster.nodes.index(connection.node)


async def test_one_node_is_listened_to_for_what_is_broadcast(room: Room) -> None:
    """All channels and patterns share a link, and what it says is heard."""
    for key in (A, B, Key(PATTERN, b"p*")):
        await room.want(key)
    connections = {id(c) for name in (b"a", b"b", b"p*") for c in room.nodes.subscribed(name)}
    assert len(connections) == 1
    (home,) = room.nodes.subscribed(b"a")
    home.put(push(b"message", b"a", b"1") + push(b"pmessage", b"p*", b"pq", b"2"))
    await room.hears((b"a", b"1"), (b"p*", b"2"))


async def test_every_primary_is_listened_to_for_notifications(room: Room) -> None:
    """Each tells of its own keys; what is broadcast is heard from one of them only."""
    await room.want(A)
    await room.want(ANY, everywhere=True)
    (home,) = room.nodes.subscribed(b"a")
    links = await room.nodes.wait_subscribed(b"*", 3)
    for link in links:
        link.put(push(b"pmessage", b"*", b"x", b"from home" if link is home else b"no"))
        link.put(push(b"pmessage", b"*", b"__keyevent@0__:set", b"%d" % number(room, link)))
    await wait_for(lambda: len(room.audience.heard) == 4, "messages")
    assert sorted(text for _, text in room.audience.heard) == [b"0", b"1", b"2", b"from home"]


async def test_a_dropped_subscription_ends_at_the_node(room: Room) -> None:
    """The last client has left: the node is told."""
    want = await room.want(A)
    await room.want(B)
    room.subscriber.drop(want)
    await room.nodes.wait_subscribed(b"a", 0)
    assert len(room.nodes.subscribed(b"b")) == 1


async def test_a_lost_home_is_replaced_at_once(room: Room) -> None:
    """Another node is subscribed at, everything again, and the gap is told and counted once."""
    for key in (A, B):
        await room.want(key)
    (home,) = room.nodes.subscribed(b"a")
    await home.node.stop()
    await wait_for(lambda: not home.open, "the loss")
    (other,) = await room.nodes.wait_subscribed(b"a")
    await room.nodes.wait_subscribed(b"b")
    assert other.node is not home.node
    assert sorted(room.audience.gaps) == [A, B]
    assert 'sidecache_subscription_gaps_total{cluster="cache"} 2.0' in room.stand.page()
    other.put(push(b"message", b"a", b"again"))
    await room.hears((b"a", b"again"))


async def test_a_closed_link_comes_back(room: Room) -> None:
    """A node that only closes the connection is no reason to wait either."""
    await room.want(A)
    (home,) = room.nodes.subscribed(b"a")
    home.close()
    await wait_for(lambda: not home.open, "the loss")
    (back,) = await room.nodes.wait_subscribed(b"a")
    assert back is not home


async def test_a_demoted_home_is_left_without_a_gap(room: Room) -> None:
    """It is listened to until the next one has taken everything."""
    await room.want(A)
    (home,) = room.nodes.subscribed(b"a")
    old = number(room, home)
    new = (old + 1) % 3
    room.nodes.deaf = [node for node in room.cluster.nodes if node is not home.node]
    room.cluster.owners = [new if owner == old else owner for owner in room.cluster.owners]
    await room.stand.cluster.refresher.refresh()
    room.subscriber.refresh()
    (connection, _) = sorted(
        await room.nodes.wait_subscribed(b"a", 2), key=lambda c: c.node is home.node
    )
    home.put(push(b"message", b"a", b"old"))
    connection.put(push(b"message", b"a", b"doubled"))
    await room.hears((b"a", b"old"))
    connection.put(push(b"subscribe", b"a", 1) + push(b"message", b"a", b"new"))
    await room.nodes.wait_subscribed(b"a", 1)
    await room.hears((b"a", b"new"))
    assert room.audience.gaps == []


async def test_a_shard_channel_is_found_and_followed(room: Room) -> None:
    """MOVED leads to the owner of its slot, and a node's sunsubscribe to the next one."""
    slot = key_slot(b"s")
    owner = room.cluster.owners[slot]
    room.cluster.owners[slot] = (owner + 1) % 3  # nobody has told us
    await room.want(S)
    (first,) = room.nodes.subscribed(b"s")
    assert number(room, first) == (owner + 1) % 3
    room.cluster.owners[slot] = owner
    first.put(push(b"sunsubscribe", b"s", 0))

    def moved() -> bool:
        return any(number(room, c) == owner for c in room.nodes.subscribed(b"s"))

    await wait_for(moved, "the shard channel at its new owner")
    (second,) = [c for c in room.nodes.subscribed(b"s") if number(room, c) == owner]
    second.put(push(b"smessage", b"s", b"x"))
    await room.hears((b"s", b"x"))
    assert room.audience.gaps == [S]


async def test_a_node_refuses(room: Room) -> None:
    """Whoever waits is told in the node's own words."""
    want = room.subscriber.want(Key(CHANNEL, b"forbidden"), False)
    await want.wait()
    assert (want.ready, want.refusal) == (False, b"-NOPERM no\r\n")


async def test_a_silent_node_is_noticed(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that answers no probe in time is left for another."""
    monkeypatch.setattr(module, "TICK", 0.01)
    await room.want(A)
    (home,) = room.nodes.subscribed(b"a")
    home.node.answers["PING"] = b""
    others = [node for node in room.cluster.nodes if node is not home.node]

    def moved() -> bool:
        return any(c.node in others for c in room.nodes.subscribed(b"a"))

    await wait_for(moved, "another home")
    assert room.audience.gaps == [A]


async def test_links_without_subscriptions_are_closed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept open for nobody."""
    monkeypatch.setattr(module, "TICK", 0.01)
    want = await room.want(EVENTS, everywhere=True)
    links = room.nodes.subscribed(EVENTS.name)
    assert len(links) == 3
    room.subscriber.drop(want)
    await wait_for(lambda: not any(link.open for link in links), "closed links")
    await room.want(A)


async def test_wanted_before_the_topology_is_known() -> None:
    """What is wanted while no node is known is subscribed to when there is one."""
    async with fake_cluster(2) as cluster:
        nodes = PubSub(cluster)
        stand = Stand(cluster_config(cluster.nodes))
        try:
            topic = stand.pools.broker  # the pools tell their own broker of changes
            want = topic._subscribers[0].want(A, False)
            assert not want.ready
            await stand.start()
            await nodes.wait_subscribed(b"a")
        finally:
            await stand.stop()
