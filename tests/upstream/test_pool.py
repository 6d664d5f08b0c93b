"""Nodes that come, go and change, the slot map that is made of them, and who is told."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy import errors
from proxy.upstream.topology import PACE, PERIOD, SLOTS, URGENT_PACE, Member, View
from tests.fakenode import Answer, FakeNode, key_slot
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, data_of

pytestmark = pytest.mark.integration

HALF = SLOTS // 2


def view(members: Sequence[Member], owners: Sequence[int] | None = None) -> View:
    """Return a view in which the first two members own a half each, unless told otherwise."""
    return View(True, tuple(members), owners or [0] * HALF + [min(1, len(members) - 1)] * HALF)


@pytest.fixture
async def nodes() -> AsyncIterator[list[FakeNode]]:
    nodes = [FakeNode(identity=letter * 40) for letter in "abc"]
    for node in nodes:
        node.answers["CLUSTER"] = b"$40\r\n%b\r\n" % node.identity.encode()
        await node.start()
    yield nodes
    for node in nodes:
        await node.stop()


@pytest.fixture
async def stand(nodes: list[FakeNode]) -> AsyncIterator[Stand]:
    stand = Stand(cluster_config(nodes))
    yield stand
    await stand.stop()


def member(node: FakeNode, hostname: str | None = None) -> Member:
    return Member("127.0.0.1", node.port, node.identity, hostname)


def labels(stand: Stand) -> set[str]:
    """Return the nodes that the metrics page names."""
    lines = stand.page().splitlines()
    return {
        line.split('node="')[1].split('"')[0]
        for line in lines
        if line.startswith("sidecache_node_connections{")
    }


def owners(stand: Stand) -> list[str | None]:
    """Return the addresses that own the first and the last slot, by the router's own map."""
    found = (stand.router.slots.owner(0, slot) for slot in (0, SLOTS - 1))
    nodes = [stand.pools.node(index) for index in found]
    return [node.member.address if node is not None else None for node in nodes]


async def test_members_come_and_go(stand: Stand, nodes: list[FakeNode]) -> None:
    """The slot map and the series of metrics are always those of the current members."""
    a, b, c = map(member, nodes)
    adopt = stand.cluster._adopt
    assert adopt(view([a, b]))
    assert not adopt(view([a, b]))
    assert owners(stand) == [a.address, b.address]
    assert labels(stand) == {a.address, b.address}
    assert adopt(view([a, b, c]))
    assert adopt(view([a, c]))
    assert owners(stand) == [a.address, c.address]
    assert labels(stand) == {a.address, c.address}
    assert adopt(view([b], [-1] * SLOTS))
    assert owners(stand) == [None, None]
    assert labels(stand) == {b.address}
    assert not stand.cluster.available


async def test_places_in_the_slot_map_are_used_again(stand: Stand, nodes: list[FakeNode]) -> None:
    """Pods that come and go for years do not make the map grow."""
    a, b, c = map(member, nodes)
    for _ in range(10):
        stand.cluster._adopt(view([a, b]))
        stand.cluster._adopt(view([a, c]))
    assert len(stand.router.slots.nodes) <= 4


async def test_owners_are_connected_before_anybody_asks(
    stand: Stand, nodes: list[FakeNode]
) -> None:
    """Who owns slots is connected to at once, by RESP2; others when they are needed."""
    stand.cluster._adopt(view([member(node) for node in nodes]))
    await wait_for(lambda: all(len(node.connections) == 1 for node in nodes[:2]), "connections")
    assert nodes[2].connections == []
    assert await stand.client(3).ask(b"SET", b"k", b"v") == b"OK"
    assert {c.commands[0][0] for n in nodes for c in n.connections} == {b"CLIENT", b"HELLO"}


async def test_a_new_node_at_an_old_address(stand: Stand, nodes: list[FakeNode]) -> None:
    """A node that came back with another id is another node: connected to anew, and up."""
    a, b, _ = map(member, nodes)
    stand.cluster._adopt(view([a, b]))
    await wait_for(lambda: nodes[0].connections, "a connection")
    first = stand.cluster.nodes[a.address]
    await wait_for(lambda: first.connections[0][0].ready, "the handshake")
    nodes[0].identity = "d" * 40
    nodes[0].answers["CLUSTER"] = b"$40\r\n%b\r\n" % nodes[0].identity.encode()
    assert stand.cluster._adopt(view([member(nodes[0]), b]))
    second = stand.cluster.nodes[a.address]
    assert second is not first
    await wait_for(lambda: second.connections[0][0].ready, "the handshake")
    await wait_for(lambda: not nodes[0].connections[0].open, "the old connection's end")
    assert second.metrics.state == "up"
    assert len(nodes[0].connections) == 2


async def test_a_host_name_that_becomes_known(stand: Stand, nodes: list[FakeNode]) -> None:
    """A node's name is adopted when it spreads, goes by it, and is not lost to a view without."""
    a, b, _ = map(member, nodes)
    stand.cluster._adopt(view([a, b]))
    assert stand.cluster.named(f"redis-0.internal:{a.port}") is None
    assert stand.cluster._adopt(view([member(nodes[0], "redis-0.internal"), b]))
    node = stand.cluster.named(f"redis-0.internal:{a.port}")
    assert node is not None
    assert node is stand.cluster.named(a.address)
    assert not stand.cluster._adopt(view([a, b]))
    assert stand.cluster.named(f"redis-0.internal:{a.port}") is node


async def test_commands_of_a_leaving_node_are_answered(stand: Stand, nodes: list[FakeNode]) -> None:
    """What a node was sent before it left its cluster comes back from it, writes included."""
    a, b, c = map(member, nodes)
    stand.cluster._adopt(view([a, b]))
    client = stand.client()
    slow = Answer(b":7\r\n", 0.1)
    for node in nodes[:2]:
        node.answers["INCR"] = slow
    client.send((b"INCR", b"x"))
    await wait_for(lambda: any(node.received("INCR") for node in nodes), "the command")
    stand.cluster._adopt(view([c]))
    client.send((b"SET", b"x", b"new"))
    assert await client.take(2) == [7, b"OK"]
    assert nodes[2].values == {b"x": b"new"}
    await wait_for(lambda: not any(c.open for n in nodes[:2] for c in n.connections), "the end")


async def test_commands_that_wait_for_a_leaving_node_go_elsewhere(
    stand: Stand, nodes: list[FakeNode]
) -> None:
    """What was queued for a node that could not be reached runs at the slot's new owner."""
    a, b, c = map(member, nodes)
    for node in nodes[:2]:
        node.answers["CLUSTER"] = Answer(b"", 60.0)
    stand.cluster._adopt(view([a, b]))
    client = stand.client()
    client.send((b"SET", b"x", b"1"), (b"INCR", b"x"), (b"SET", b"y", b"2"))
    await wait_for(lambda: all(node.connections for node in nodes[:2]), "connections")
    stand.cluster._adopt(view([c]))
    assert await client.take(3) == [b"OK", 2, b"OK"]
    assert not any(data_of(connection) for n in nodes[:2] for connection in n.connections)


async def test_slots_that_move_one_by_one_are_published_together(
    stand: Stand, nodes: list[FakeNode]
) -> None:
    """A hundred redirects make one new slot map, and believing one again makes none."""
    a, b, _ = map(member, nodes)
    stand.cluster._adopt(view([a, b]))
    heard: list[tuple[int, list[int]]] = []
    stand.pools.moved = lambda cluster, slots: heard.append((cluster, list(slots)))
    before = stand.router.slots
    target = stand.cluster.nodes[b.address]
    for slot in range(100):
        stand.cluster.move_slot(slot, target)
    assert stand.router.slots is before
    await wait_for(lambda: stand.router.slots is not before, "the new map")
    moved = stand.router.slots
    assert [moved.owner(0, slot) for slot in (0, 99)] == [target.index] * 2
    assert moved.owner(0, 100) != target.index
    stand.cluster.move_slot(5, target)
    assert stand.pools._publishing is None
    assert before.owner(0, 0) != target.index
    assert heard == [(0, [slot]) for slot in range(100)]


async def test_it_is_told_which_slots_have_another_owner(
    stand: Stand, nodes: list[FakeNode]
) -> None:
    """Nobody is told of the first view, in which nobody has taken over from anybody."""
    a, b, c = map(member, nodes)
    heard: list[list[int]] = []
    stand.pools.moved = lambda cluster, slots: heard.append(list(slots))
    stand.cluster._adopt(view([a, b]))
    stand.cluster._adopt(view([a, b]))
    assert heard == []
    stand.cluster._adopt(view([a, c]))
    assert heard == [list(range(HALF, SLOTS))]


async def test_availability(stand: Stand, nodes: list[FakeNode]) -> None:
    """A cluster is available while each owner of a slot is not down; others do not count."""
    a, b, c = map(member, nodes)
    cluster = stand.cluster
    assert not cluster.available
    cluster._adopt(view([a, b, c]))
    assert cluster.available
    cluster.nodes[c.address].metrics.state = "down"
    assert cluster.available
    cluster.nodes[b.address].metrics.state = "down"
    assert not cluster.available
    for slot in range(HALF, SLOTS):
        cluster.move_slot(slot, cluster.nodes[a.address])
    assert cluster.available
    stand.pools.publish()


async def test_patience(stand: Stand, nodes: list[FakeNode]) -> None:
    """The next view is wanted soon after a loss, at the usual pace later, and else not at all."""
    a, b, _ = map(member, nodes)
    assert stand.cluster._patience() == PACE
    stand.cluster._adopt(view([a, b]))
    assert stand.cluster._patience() == PERIOD
    await nodes[0].stop()
    await wait_for(lambda: not stand.cluster.available, "the loss")
    assert stand.cluster._patience() == URGENT_PACE
    watched = stand.cluster._watched_until
    errors_before = sum(stand.cluster.nodes[a.address].metrics.errors.values())
    await wait_for(
        lambda: sum(stand.cluster.nodes[a.address].metrics.errors.values()) > errors_before,
        "another attempt",
    )
    assert stand.cluster._watched_until == watched
    stand.cluster._watched_until = 0.0
    assert stand.cluster._patience() == PACE


async def test_one_line_per_change_of_state(
    stand: Stand, nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """However often a node is tried and asked for, its fall and its return are a line each."""
    caplog.set_level(logging.INFO)
    a, b, _ = map(member, nodes)
    stand.cluster._adopt(view([a, b]))
    node = stand.cluster.nodes[a.address]
    await wait_for(lambda: node.metrics.state == "up", "the node")
    await nodes[0].stop()
    await wait_for(lambda: sum(node.metrics.errors.values()) >= 4, "four losses")
    assert str(await stand.client().ask(b"GET", _key(a, stand))).startswith("CLUSTERDOWN")
    await nodes[0].start()
    await wait_for(lambda: node.metrics.state == "up", "the node")
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if line in ("node_up", "node_down")].count("node_down") == 1
    assert f'node="{a.address}",reason="refused"}}' in stand.page()
    assert errors.CLUSTERDOWN.startswith(b"-CLUSTERDOWN")


def _key(owner: Member, stand: Stand) -> bytes:
    """Return a key in the half that a member owns."""
    index = stand.cluster.nodes[owner.address].index
    keys = (b"k%d" % number for number in range(1000))
    return next(key for key in keys if stand.router.slots.owner(0, key_slot(key)) == index)


async def test_a_wrong_password_is_one_line_and_clusterdown(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes that accept and refuse the login are down, said once, and not hammered."""
    caplog.set_level(logging.INFO)
    for node in nodes:
        node.answers["CLIENT"] = node.answers["CLUSTER"] = b"-NOAUTH Authentication required.\r\n"
    stand = Stand(cluster_config(nodes))
    stand.cluster._adopt(view([member(node) for node in nodes]))
    await wait_for(lambda: len(nodes[0].connections) >= 4, "four attempts")
    reply = await stand.client().ask(b"GET", b"k")
    assert str(reply).startswith("CLUSTERDOWN")
    said = [record for record in caplog.records if record.getMessage() == "node_down"]
    assert len(said) == 2
    assert len(nodes[0].connections) <= 5
    await stand.stop()
    left = [t for t in asyncio.all_tasks() if "_open" in repr(t.get_coro()) and not t.cancelling()]
    assert left == []


async def test_a_single_node(nodes: list[FakeNode]) -> None:
    """Without a cluster one node owns everything, and a redirect of its is not believed."""
    stand = Stand(cluster_config(nodes[:1], "single"))
    await stand.start()
    client = stand.client()
    assert await client.ask(b"SET", b"k", b"v") == b"OK"
    assert nodes[0].connections[0].commands[1] == [b"PING"]
    nodes[0].answers["GET"] = b"-MOVED 1 127.0.0.1:%d\r\n" % nodes[1].port
    assert str(await client.ask(b"GET", b"k")).startswith("CLUSTERDOWN")
    assert nodes[1].connections == []
    await stand.stop()
