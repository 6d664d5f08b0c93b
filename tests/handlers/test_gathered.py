"""What handlers gather counts as output of their clients."""

import asyncio

import pytest

from proxy.handlers.gathered import Gathered
from proxy.plans import Age
from tests.handlers.backed_desk import BackedDesk, plan
from tests.handlers.desk import Client, Desk
from tests.handlers.test_transactions import OK, QUEUED, multi, split_rules

MIB = 1 << 20

# Keys a and e live at node 1, b and c at node 0, all in slots of their own.


def element(size: int) -> bytes:
    return b"$%d\r\n%b\r\n" % (size, b"x" * size)


def array(size: int) -> bytes:
    return b"*1\r\n" + element(size)


async def seen(desk: Desk) -> int:
    """Return what is in the account once sessions have looked at what waits."""
    for _ in range(3):
        desk.settle()
        await asyncio.sleep(0)
    return desk.server.unread.total


async def test_an_mget_counts_while_a_part_is_missing() -> None:
    """What its nodes have sent is in the account until the reply has left, and then no more."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b", b"c")
    desk.node(0).answer(array(MIB), array(MIB))
    assert await seen(desk) >= 2 * MIB
    desk.node(1).answer(array(5))
    assert await client.reply() == b"*3\r\n" + element(5) + 2 * element(MIB)
    assert await seen(desk) == 0
    assert client.session.downstream.waiting_bytes == 0


async def test_small_replies_are_not_told_of() -> None:
    """An MGET of small values does not concern the account."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b", b"c")
    desk.node(0).answer(array(4000), array(4000))
    assert await seen(desk) == 0
    assert client.session.downstream.waiting_bytes == 0


async def gathering(desk: Desk, size: int) -> Client:
    """Return a client that has so much of an MGET, and waits for the rest."""
    client = desk.connect()
    client.send(b"MGET", b"a", b"b")
    desk.node(0).answer(array(size))
    await seen(desk)
    return client


async def test_together_they_stay_below_the_total() -> None:
    """Who has gathered most goes when all are above what they may be; the others are answered."""
    desk = Desk()
    limits = desk.server.config.limits
    most = limits.output_total_bytes + limits.input_total_bytes
    clients = []
    for number in range(8):
        clients.append(await gathering(desk, (12 - number) * MIB))
        assert desk.server.unread.total <= most
    left = [client for client in clients if not client.transport.closed]
    assert left == clients[4:]
    desk.node(1).answer(*[array(1)] * 8)
    for client, size in zip(left, range(8, 4, -1), strict=True):
        assert await client.reply() == b"*2\r\n" + element(1) + element(size * MIB)


async def test_one_alone_may_have_what_could_be_stored() -> None:
    """A reply above the total of output is gathered and given, as any other of that size."""
    desk = Desk()
    size = desk.server.config.limits.output_total_bytes + MIB
    client = await gathering(desk, size)
    assert desk.server.unread.total > size
    desk.node(1).answer(array(1))
    assert len(await client.reply()) > size
    assert not client.transport.closed


async def test_who_waits_for_the_rest_need_not_read() -> None:
    """However long the nodes take, a client is not closed for not reading what it is not sent."""
    desk = Desk()
    client = await gathering(desk, 2 * desk.server.config.limits.output_bytes)
    for now in (0.0, 100.0, 200.0):
        desk.server.unread.look(now)
    assert not client.transport.closed


async def test_nothing_is_kept_for_who_has_gone() -> None:
    """With the next part all that a client has gathered is let go, when it has gone meanwhile."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b", b"c")
    desk.node(0).answer(array(MIB))
    await seen(desk)
    client.session.connection_lost(None)
    downstream = client.session.downstream
    assert downstream.waiting_bytes >= MIB
    desk.node(0).answer(array(MIB))
    assert downstream.waiting_bytes == 0


async def test_nothing_is_kept_for_an_error() -> None:
    """Where a part has failed the others are not kept until the last one is in."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b", b"c", b"e")
    desk.node(0).answer(array(MIB), b"-ERR broken\r\n")
    desk.node(1).answer(array(MIB))
    assert client.session.downstream.waiting_bytes == 0
    desk.node(1).answer(array(MIB))
    assert await client.reply() == b"-ERR broken\r\n"


async def test_a_split_transaction_counts() -> None:
    """Replies of slots are in the account while those of others are missing."""
    desk = Desk()
    split_rules(desk)
    client = multi(desk)
    for words in (b"GET a", b"GET b"):
        assert client.ask(*words.split()) == QUEUED
    client.send(b"EXEC")
    desk.node(0).answer(OK, QUEUED, array(MIB))
    assert await seen(desk) >= MIB
    desk.node(1).answer(OK, QUEUED, array(1))
    assert await client.reply() == b"*2\r\n" + element(1) + element(MIB)
    assert await seen(desk) == 0


@pytest.mark.parametrize("gone", [False, True])
async def test_keys_of_postgresql_count(gone: bool) -> None:
    """So are values of keyspaces with an origin, unless their client has gone."""
    desk = BackedDesk(plan(type="string", age=Age()))
    client = desk.connect()
    client.send(b"MGET", b"user:{1}a", b"{user:1}b", b"user:{1}c")
    await desk.asked()
    desk.node(1).answer(array(MIB))
    assert await seen(desk) >= MIB
    if gone:
        client.session.connection_lost(None)
    desk.node(1).answer(array(MIB))
    await seen(desk)
    waiting = client.session.downstream.waiting_bytes
    assert waiting == 0 if gone else waiting >= 2 * MIB
    desk.node(1).answer(array(MIB))
    if not gone:
        assert await client.reply() == b"*3\r\n" + 3 * element(MIB)
    await seen(desk)
    assert client.session.downstream.waiting_bytes == 0


async def test_what_is_dropped_counts_no_longer() -> None:
    """However a handler ends, what it had gathered leaves the account with it."""
    downstream = Desk().connect().session.downstream
    gathered = Gathered(downstream)
    gathered.add(MIB)
    gathered.add(1)
    assert downstream.waiting_bytes == MIB
    del gathered
    assert downstream.waiting_bytes == 0
