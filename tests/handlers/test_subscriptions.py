"""What one client is subscribed to."""

import pytest

from proxy import errors
from proxy.handlers.subscriptions import HOLDING, Subscriptions, subscriptions_of
from proxy.upstream.broker import Route
from proxy.upstream.link import CHANNEL, PATTERN, SHARD
from tests.fakenode import FakeNode
from tests.handlers.desk import Client, Desk
from tests.upstream.stand import Stand, cluster_config


@pytest.fixture
async def client() -> Client:
    """A client of a desk whose pools know no node."""
    desk = Desk()
    desk.server.pools = Stand(cluster_config([FakeNode(port=1)])).pools
    return desk.connect()


def add(held: Subscriptions, kind: str, name: bytes) -> None:
    broker = held._broker
    held.add(broker.claim(kind, name, Route((0,), name, False)))


async def test_counts(client: Client) -> None:
    """Acknowledgements count channels and patterns together, shard channels apart."""
    held = Subscriptions(client.session)
    for kind, name in ((CHANNEL, b"a"), (CHANNEL, b"b"), (PATTERN, b"p"), (SHARD, b"s")):
        add(held, kind, name)
    assert held.counts == {"sub": 2, "psub": 1, "ssub": 1}
    assert (held.count(CHANNEL), held.count(PATTERN), held.count(SHARD)) == (3, 3, 1)
    held.release()
    assert (held.total, held._broker.subscriptions) == (0, 0)


async def test_the_mode_comes_and_goes(client: Client) -> None:
    """It lasts as long as there is a subscription under RESP2; RESET ends all of it."""
    session, held = client.session, Subscriptions(client.session)
    add(held, CHANNEL, b"a")
    held.settle()
    assert subscriptions_of(session) is held
    assert client.ask(b"GET", b"k").startswith(b"-ERR Can't execute 'get'")
    assert client.ask(b"PING") == b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    assert client.ask(b"PING", b"x", b"y").startswith(b"-ERR wrong number")
    assert client.ask(b"SUBSCRIBE") == errors.wrong_arity(b"subscribe")
    held.remove(CHANNEL, b"a")
    held.settle()
    assert client.ask(b"PING") == b"+PONG\r\n"
    assert HOLDING not in session.holdings
    add(held, PATTERN, b"p")
    held.settle()
    assert client.ask(b"RESET") == b"+RESET\r\n"
    assert (session.mode, session.downstream.capture, held.total) == (None, False, 0)


async def test_protocol_three_has_no_mode(client: Client) -> None:
    """Messages are told apart from replies there, so every command is allowed."""
    held = Subscriptions(client.session)
    client.ask(b"HELLO", b"3")
    add(held, CHANNEL, b"a")
    held.settle()
    assert client.ask(b"PING") == b"+PONG\r\n"
    client.ask(b"HELLO", b"2")
    assert client.ask(b"ECHO", b"x").startswith(b"-ERR Can't execute 'echo'")
