"""Commands about several keys, some of which PostgreSQL stands behind."""

import pytest

from proxy import errors
from proxy.plans import Age
from tests.handlers.backed_desk import BackedDesk, plan


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan(type="string", age=Age()))


async def test_each_key_is_asked_for_once(table: BackedDesk) -> None:
    """Order and duplicates are the client's, whatever nodes say first."""
    client = table.connect()
    client.send(b"MGET", b"user:{1}a", b"{user:1}b", b"user:{1}a")
    assert await table.asked() == [[b"MGET", b"user:{1}a"], [b"MGET", b"{user:1}b"]]
    table.node(1).answer(b"*1\r\n$1\r\n1\r\n", b"*1\r\n$1\r\n2\r\n")
    table.settle()
    reply = await client.reply()
    assert reply.startswith(b"*3\r\n")
    assert reply[4:11] == reply[-7:]


async def test_one_error_is_the_whole_reply(table: BackedDesk) -> None:
    """A nil among values would be taken for a row that is not there."""
    client = table.connect()
    table.away()
    client.send(b"MGET", b"user:1", b"user:2", b"plain")
    assert await client.reply() in (errors.ORIGIN_DOWN, errors.CLUSTERDOWN)
    client.send(b"EXISTS", b"user:3", b"user:3")
    assert await client.reply() == errors.ORIGIN_DOWN


async def test_nodes_that_have_not_heard_of_changes_are_not_asked(table: BackedDesk) -> None:
    """A look-up of several keys goes where one of a single key does; what is written is refused."""
    client = table.connect()
    table.admit(0)
    for words in ((b"MGET", b"user:1", b"user:2"), (b"EXISTS", b"user:1")):
        client.send(*words)
        assert await client.reply() == errors.ORIGIN_DOWN
    client.send(b"MSET", b"user:1", b"v", b"user:2", b"v")
    assert await client.reply() == errors.CLUSTERDOWN
    assert not any(node.sent for pair in table.nodes for node in pair)


async def test_a_deletion_ends_what_is_fetched(table: BackedDesk) -> None:
    """Each key goes together with its lease, in one step on its node."""
    client = table.connect()
    client.send(b"DEL", b"user:1", b"plain", b"user:1")
    sent = await table.asked() + table.node(0).commands()
    assert sorted(words[0] for words in sent) == sorted(
        [b"MULTI", b"UNLINK", b"DEL", b"EXEC", b"MULTI", b"DEL", b"EXEC"]
    )
    assert [b"UNLINK", b"sidecache:lease:{user:1}", b"sidecache:none:{user:1}"] in sent
    for node, replies in ((table.node(0), 3), (table.node(1), 4)):
        queued = b"+OK\r\n" + b"+QUEUED\r\n" * (replies - 2)
        unlinked = b":0\r\n" * (replies - 3)
        node.answer(queued + b"*%d\r\n%b:1\r\n" % (replies - 2, unlinked))
    table.settle()
    assert await client.reply() == b":2\r\n"
