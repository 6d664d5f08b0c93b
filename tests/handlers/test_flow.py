"""CLIENT REPLY, PAUSE and UNPAUSE."""

import asyncio

import pytest

from proxy import errors
from proxy.wire.rules import Pause
from tests.handlers.desk import Desk


async def test_replies_are_switched_off_and_on() -> None:
    """OFF is not answered and silences all that follows, errors too; ON is answered."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"REPLY", b"OFF") == b""
    assert client.ask(b"PING") == b""
    assert client.ask(b"NOSUCH") == b""
    assert client.ask(b"CLIENT", b"REPLY", b"SKIP") == b""
    assert client.ask(b"PING") == b""
    assert client.ask(b"PING") == b""
    assert client.ask(b"CLIENT", b"REPLY", b"ON") == b"+OK\r\n"
    assert client.ask(b"PING") == b"+PONG\r\n"


async def test_one_reply_is_skipped() -> None:
    """SKIP silences itself and the next command only; ON is answered even then."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"REPLY", b"SKIP") == b""
    assert client.ask(b"PING") == b""
    assert client.ask(b"PING") == b"+PONG\r\n"
    client.ask(b"CLIENT", b"REPLY", b"SKIP")
    assert client.ask(b"CLIENT", b"REPLY", b"ON") == b"+OK\r\n"


async def test_reset_brings_replies_back() -> None:
    """RESET ends the silence and is answered itself, unless it is the command to skip."""
    client = Desk().connect()
    client.ask(b"CLIENT", b"REPLY", b"OFF")
    assert client.ask(b"RESET") == b"+RESET\r\n"
    assert client.ask(b"PING") == b"+PONG\r\n"
    client.ask(b"CLIENT", b"REPLY", b"SKIP")
    assert client.ask(b"RESET") == b""
    assert client.ask(b"PING") == b"+PONG\r\n"


async def test_a_pause_ends_when_it_is_told_to() -> None:
    """What a pause holds goes on at UNPAUSE, in its order."""
    desk = Desk()
    admin, client = desk.connect(), desk.connect()
    assert admin.ask(b"CLIENT", b"PAUSE", b"60000", b"WRITE") == b"+OK\r\n"
    client.send(b"SET", b"a", b"1")
    client.send(b"GET", b"a")
    nodes = [desk.node(number) for number in range(4)]
    assert not any(node.sent for node in nodes)
    assert admin.ask(b"CLIENT", b"UNPAUSE") == b"+OK\r\n"
    sent = [command for node in nodes for command in node.commands()]
    assert sent == [[b"SET", b"a", b"1"], [b"GET", b"a"]]


async def test_a_pause_ends_by_itself() -> None:
    """A pause is over after its time, and a shorter one asked for meanwhile does not end it."""
    desk = Desk()
    pauses = desk.server.pauses
    pauses.begin(Pause.ALL, 30.0, ())
    pauses.begin(Pause.WRITE, 0.0, ())
    for _ in range(5):
        await asyncio.sleep(0)
    assert desk.server.router.pause == Pause.ALL
    pauses.end()
    client = desk.connect()
    pauses.begin(Pause.WRITE, 0.0, desk.server.sessions.values())
    client.send(b"SET", b"a", b"1")
    while desk.server.router.pause:
        await asyncio.sleep(0)
    desk.settle()
    assert any(desk.node(number).commands() for number in range(4))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((b"x",), errors.PAUSE_NOT_AN_INTEGER),
        ((b"-1",), errors.PAUSE_NEGATIVE),
        ((b"1", b"SOME"), errors.PAUSE_MODE),
        ((b"1", b"ALL", b"x"), errors.SYNTAX),
    ],
)
async def test_bad_pauses(words: tuple[bytes, ...], line: bytes) -> None:
    """Arguments that mean nothing are refused in Redis' words, and nothing is held."""
    desk = Desk()
    assert desk.connect().ask(b"CLIENT", b"PAUSE", *words) == line
    assert desk.server.router.pause == Pause.NEVER
