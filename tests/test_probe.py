"""Questions to an admin port that is there, and to one that is not."""

import asyncio
import contextlib
import socket

import pytest

from proxy import probe
from proxy.admin import Admin
from proxy.errors import ConfigError, StartError
from tests.test_admin import Proxy

pytestmark = pytest.mark.integration


async def test_an_answer_is_a_status_and_a_text() -> None:
    """Whatever the status, the text is what was said."""
    server = Admin("127.0.0.1", 0, Proxy())
    server.start()
    try:
        answers = [
            await asyncio.to_thread(probe.ask, server.address, *question)
            for question in (("/livez",), ("/-/reload", "POST"), ("/nowhere",))
        ]
    finally:
        server.stop()
    assert answers == [
        (200, "ok"), (200, "3 keyspaces changed"), (404, "no such page; / lists them"),
    ]  # fmt: skip


def test_nobody_answers() -> None:
    """It is said who was asked."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = server.getsockname()
    with pytest.raises(StartError, match=f"127.0.0.1:{address[1]} does not answer"):
        probe.ask(address, "/livez")


@pytest.mark.parametrize("text", ["9121", "h:", "h:x", "h:70000"])
def test_what_is_no_address(text: str) -> None:
    """It is told what one looks like; whoever listens everywhere is asked here."""
    with pytest.raises(ConfigError, match="expects HOST:PORT"):
        probe.address_of(text)
    assert probe.address_of("0.0.0.0:1") == ("127.0.0.1", 1)
    assert probe.address_of("[::]:1") == ("::1", 1)
