"""One command to one node beside all others."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy import errors, wire
from proxy.upstream.aside import ask_aside
from proxy.upstream.connection import Endpoint
from tests.fakenode import Answer, FakeNode
from tests.upstream.stand import secret

pytestmark = pytest.mark.integration

PING = wire.pack([b"PING"])


def endpoint(port: int, **fields: Any) -> Endpoint:
    settings = {
        "host": "127.0.0.1", "port": port, "username": None, "password": None, "tls": None,
        "server_name": None, "node_id": None, "timeout": 0.3,
    }  # fmt: skip
    return Endpoint(**(settings | fields))


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode(answers={"HELLO": b"%0\r\n", "PING": b"+PONG\r\n"})
    await node.start()
    yield node
    await node.stop()


async def test_the_reply_is_the_second(node: FakeNode) -> None:
    """The greeting chooses the protocol; the reply is that of the command, however it is cut."""
    assert await ask_aside(endpoint(node.port), PING, 3) == b"+PONG\r\n"
    assert node.commands == [[b"HELLO", b"3"], [b"PING"]]


async def test_secrets_are_those_of_the_endpoint(node: FakeNode) -> None:
    """A node that wants a password gets it in the greeting, and a refusal is the reply."""
    node.answers["HELLO"] = b"-WRONGPASS no\r\n"
    where = endpoint(node.port, username="proxy", password=secret("word"))
    assert await ask_aside(where, PING, 2) == b"-WRONGPASS no\r\n"
    assert node.commands[0] == [b"HELLO", b"2", b"AUTH", b"proxy", b"word"]


@pytest.mark.parametrize("answer", [Answer(b"", 60.0), Answer(b"+PO", 0.0, "finish"), b"?\r\n"])
async def test_a_node_that_gives_no_reply_is_away(node: FakeNode, answer: Any) -> None:
    """Silence, half a reply and bytes that are none end within the timeout, in an error line."""
    node.answers["PING"] = answer
    assert await ask_aside(endpoint(node.port), PING, 2) == errors.CLUSTERDOWN


async def test_a_node_that_does_not_listen_is_away(node: FakeNode) -> None:
    """Nobody there is an error line too."""
    await node.stop()
    assert await ask_aside(endpoint(node.port), PING, 2) == errors.CLUSTERDOWN
