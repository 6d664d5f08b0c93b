"""Commands of one slot that a handler sends on itself."""

from proxy import errors
from tests.handlers.desk import TIMEOUT, Desk


async def test_a_lost_node_ends_the_wait() -> None:
    """A command whose node never answers is answered at its deadline, and only then."""
    desk = Desk()
    client = desk.connect()
    client.send(b"COPY", b"a", b"{a}b")
    node = desk.node(1)
    now = client.session.active + TIMEOUT + 1
    _, orphans = node.upstream.expire(now)
    for orphan in orphans:
        orphan.answer(errors.UNKNOWN_OUTCOME, now)
    assert await client.reply() == errors.UNKNOWN_OUTCOME


async def test_replies_keep_the_clients_order() -> None:
    """What is asked behind a forwarded command is answered behind it."""
    desk = Desk()
    client = desk.connect()
    client.send(b"COPY", b"a", b"{a}b")
    client.send(b"PING")
    assert client.take() == b""
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n+PONG\r\n"
