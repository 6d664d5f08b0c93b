"""Connections that one client has for itself: used again, given up, and never too many."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy import wire
from proxy.upstream.dedicated import Missing, Pin
from tests.fakenode import Answer, FakeConnection, FakeNode
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, standing

pytestmark = pytest.mark.integration

PLACE = wire.Location(0, 0)
PING = wire.pack([b"PING"])
WAIT = wire.pack([b"BLPOP", b"q", b"0"])


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode(answers={"CLIENT ID": b":7\r\n", "BLPOP": Answer(b"")})
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def stand(node: FakeNode) -> AsyncIterator[Stand]:
    async with standing(cluster_config([node], "single")) as stand:
        await wait_for(lambda: stand.cluster.available, "the node")
        yield stand


def soon() -> float:
    return asyncio.get_running_loop().time() + 5.0


def pinned(stand: Stand, protocol: int = 2) -> Pin:
    pin = stand.pools.pins.acquire("blocked", PLACE, protocol)
    assert pin is not None
    return pin


def waiting(node: FakeNode) -> list[FakeConnection]:
    """Return the connections on which somebody waits."""
    return [connection for connection in node.connections if connection.asked(b"BLPOP")]


async def sent(node: FakeNode, count: int = 1) -> FakeConnection:
    await wait_for(lambda: len(waiting(node)) == count, "the command")
    return waiting(node)[-1]


async def test_a_clean_connection_is_used_again(stand: Stand) -> None:
    """The next client of the same node and protocol finds an open connection."""
    pin = pinned(stand)
    assert await pin.ask(PING, soon()) == b"+PONG\r\n"
    stand.pools.pins.give_back(pin, clean=True)
    assert pinned(stand, 3) is not pin
    assert pinned(stand) is pin


async def test_what_is_not_clean_is_closed(stand: Stand, node: FakeNode) -> None:
    """In doubt, and where something is unanswered, nobody gets the connection."""
    for count, clean in enumerate((False, True), 1):
        pin = pinned(stand)
        reply = pin.ask(WAIT, soon())
        connection = await sent(node, count)
        stand.pools.pins.give_back(pin, clean)
        assert pin.lost
        assert await reply is Missing.UNKNOWN
        await wait_for(lambda gone=connection: not gone.open, "the end of the connection")


async def test_unused_connections_do_not_stay(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody wants for a while is closed, and of many some at once."""
    monkeypatch.setattr("proxy.upstream.dedicated.KEPT", 0.01)
    monkeypatch.setattr("proxy.upstream.dedicated.MOST_KEPT", 2)
    pins = [pinned(stand) for _ in range(3)]
    for pin in pins:
        await pin.ask(PING, soon())
        stand.pools.pins.give_back(pin, clean=True)
    assert [pin.lost for pin in pins] == [False, False, True]
    await wait_for(lambda: all(pin.lost for pin in pins), "the end of all")


async def test_a_node_that_cannot_be_reached_has_run_nothing(node: FakeNode, stand: Stand) -> None:
    """What never left says so; what left and was not answered does not."""
    reply = pinned(stand).ask(WAIT, soon())
    await sent(node)
    await node.stop()
    assert await reply is Missing.UNKNOWN
    pin = pinned(stand)
    assert await pin.ask(WAIT, soon()) is Missing.UNSENT
    assert pin.lost
    assert await pin.ask(WAIT, soon()) is Missing.UNSENT
    await node.start()


async def test_an_overdue_answer_ends_the_connection(stand: Stand) -> None:
    """A wait is not without end where it has a deadline."""
    pin = pinned(stand)
    await pin.ask(PING, soon())
    now = asyncio.get_running_loop().time()
    assert await pin.ask(WAIT, now + 0.02) is Missing.UNKNOWN
    assert pin.lost


async def test_a_deadline_before_the_nodes_own_ends_the_connection_too(stand: Stand) -> None:
    """While the node has time left it may still be at it, so nobody else gets the connection."""
    pin = pinned(stand)
    deadline = asyncio.get_running_loop().time() + 0.25 * pin.endpoint.timeout
    assert await pin.ask(WAIT, deadline) is Missing.UNKNOWN
    assert asyncio.get_running_loop().time() < deadline + 0.5 * pin.endpoint.timeout
    assert pin.lost


async def test_waits_are_ended_from_beside(stand: Stand, node: FakeNode) -> None:
    """The node is told the number of the connection, on another one that all of them share."""
    node.answers["CLIENT UNBLOCK"] = b":1\r\n"
    for count in (1, 2):
        pin = pinned(stand)
        reply = pin.ask(WAIT, soon())
        await sent(node, count)
        assert await stand.pools.pins.unblock(pin, b"ERROR")
        pin.close()
        await reply
    sides = [c for c in node.connections if [b"CLIENT", b"UNBLOCK", b"7", b"ERROR"] in c.commands]
    assert len(sides) == 1
    assert not sides[0].asked(b"BLPOP")


async def test_a_connection_without_a_number_is_not_ended(stand: Stand, node: FakeNode) -> None:
    """A node that forbids CLIENT ID is not asked to unblock somebody else."""
    node.answers["CLIENT ID"] = b"-NOPERM no\r\n"
    pin = pinned(stand)
    assert not await stand.pools.pins.unblock(pin, b"TIMEOUT")
    assert not node.received("UNBLOCK")


async def test_claims_have_a_limit(stand: Stand) -> None:
    """One too many is refused and counted, and finds room when another is done."""
    pins = stand.pools.pins
    assert pins.claim("watching", 2, 2)
    assert not pins.claim("watching", 1, 2)
    assert 'sidecache_pins_refused_total{use="watching"} 1.0' in stand.page()
    pins.disclaim("watching", 1)
    assert pins.claim("watching", 1, 2)


async def test_descriptors_are_a_limit(stand: Stand) -> None:
    """All uses together claim no more than the process has room for."""
    pins = stand.pools.pins
    pins.room = 3
    assert pins.claim("watching", 2, 10)
    assert not pins.claim("blocked", 2, 10)
    assert pins.claim("blocked", 1, 10)


async def test_connections_are_shown(stand: Stand) -> None:
    """The page says how many are in use, by use."""
    pin = pinned(stand)
    assert 'sidecache_pins{use="blocked"} 1.0' in stand.page()
    pin.close()
    assert 'sidecache_pins{use="blocked"} 0.0' in stand.page()


async def test_a_wait_on_a_node_that_is_out_ends(
    stand: Stand, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits without end on a node that has lost its slots is told, at the second look."""
    monkeypatch.setattr("proxy.upstream.dedicated.ROUND", 0.01)
    pin = pinned(stand)
    reply = pin.ask(WAIT, float("inf"))
    await sent(node)
    stand.cluster.owners[0] = -1
    stand.pools.pins._look()
    assert not pin.lost
    assert await reply is Missing.UNKNOWN


async def test_nobody_owns_the_slot(stand: Stand) -> None:
    """Without an owner there is no connection."""
    stand.cluster.owners[0] = -1
    assert stand.pools.pins.acquire("blocked", PLACE, 2) is None
