"""Commands on connections of their own find the node that runs them, or end in clear words."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy import errors, wire
from proxy.upstream.carrier import Brief, carry, in_words, not_run
from proxy.upstream.dedicated import Missing, Pin, Reply
from tests.fakenode import Answer, FakeCluster, FakeConnection, key_slot
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, fake_cluster, key_of, standing

pytestmark = pytest.mark.integration

TIMEOUT = 0.3  # seconds for which attempts are made here


class Errand(Brief):
    """A command that is not tried for long."""

    def __init__(self, stand: Stand, key: bytes, repeatable: bool = False) -> None:
        super().__init__(
            stand.pools.pins, wire.Location(0, key_slot(key)), wire.pack([b"INCR", key])
        )
        self.repeatable = repeatable
        self.attempts = 0

    def until(self, since: float) -> float:
        return since + TIMEOUT

    async def ask(self, pin: Pin) -> Reply:
        self.attempts += 1
        return await super().ask(pin)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(2) as cluster:
        yield cluster


@pytest.fixture
async def stand(cluster: FakeCluster) -> AsyncIterator[Stand]:
    async with standing(cluster_config(cluster.nodes)) as stand:
        await wait_for(lambda: stand.cluster.available, "the nodes")
        yield stand


async def test_moved_is_followed(cluster: FakeCluster, stand: Stand) -> None:
    """The command goes where the node says, and so do those after it."""
    key = key_of(cluster, 0)
    cluster.owners[key_slot(key)] = 1
    errand = Errand(stand, key)
    assert await carry(stand.pools.pins, stand.cluster, errand) == b":1\r\n"
    assert errand.attempts == 2
    again = Errand(stand, key)
    assert await carry(stand.pools.pins, stand.cluster, again) == b":2\r\n"
    assert again.attempts == 1


async def test_ask_is_announced(cluster: FakeCluster, stand: Stand) -> None:
    """The node that a key is on its way to is asked behind an ASKING, and the map stays."""
    key = key_of(cluster, 0)
    cluster.asking[key_slot(key)] = 1
    assert await carry(stand.pools.pins, stand.cluster, Errand(stand, key)) == b":1\r\n"
    assert cluster.nodes[1].values[key] == b"1"
    owner = stand.cluster.owner_of(key_slot(key))
    assert owner is not None
    assert owner.member.port == cluster.nodes[0].port


@pytest.mark.parametrize(
    "line",
    [
        b"-UNBLOCKED force unblocked, instance state changed (master -> replica?)\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-LOADING Redis is loading\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-TRYAGAIN Multiple keys\r\n",
        b"-MOVED 1 nowhere:1\r\n",
    ],
)
async def test_what_proves_that_nothing_ran_is_sent_again(
    cluster: FakeCluster, stand: Stand, line: bytes
) -> None:
    """After a pause, until a node has run it."""
    key = key_of(cluster, 0)
    left = [line, line]
    cluster.nodes[0].answers["INCR"] = lambda connection, words: left.pop() if left else None
    errand = Errand(stand, key)
    assert await carry(stand.pools.pins, stand.cluster, errand) == b":1\r\n"
    assert errand.attempts == 3


async def test_attempts_have_an_end(cluster: FakeCluster, stand: Stand) -> None:
    """What no node takes comes back as the last one has put it."""
    cluster.nodes[0].answers["INCR"] = b"-LOADING still\r\n"
    reply = await carry(stand.pools.pins, stand.cluster, Errand(stand, key_of(cluster, 0)))
    assert reply == b"-LOADING still\r\n"


async def test_nodes_that_send_each_other_on(cluster: FakeCluster, stand: Stand) -> None:
    """A command in a circle pauses, ends, and does not show a redirect to anybody."""
    key = key_of(cluster, 0)
    for node, other in (cluster.nodes, cluster.nodes[::-1]):
        node.answers["INCR"] = b"-MOVED %d 127.0.0.1:%d\r\n" % (key_slot(key), other.port)
    errand = Errand(stand, key)
    reply = await carry(stand.pools.pins, stand.cluster, errand)
    assert in_words(reply) == errors.CLUSTERDOWN
    assert errand.attempts < 40


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_node_that_is_lost(cluster: FakeCluster, stand: Stand, repeatable: bool) -> None:
    """What may have run is sent again only where twice is the same as once."""
    key = key_of(cluster, 0)
    left = [Answer(b"", close="reset")]

    def answer(connection: FakeConnection, words: list[bytes]) -> Answer | None:
        return left.pop() if left else None

    cluster.nodes[0].answers["INCR"] = answer
    reply = await carry(stand.pools.pins, stand.cluster, Errand(stand, key, repeatable))
    assert reply == (b":1\r\n" if repeatable else Missing.UNKNOWN)


async def test_a_slot_without_an_owner_is_waited_for(cluster: FakeCluster, stand: Stand) -> None:
    """A command finds the node that takes the slot over in time."""
    key = key_of(cluster, 0)
    place = stand.cluster.owners[key_slot(key)]
    stand.cluster.owners[key_slot(key)] = -1
    asked = asyncio.create_task(carry(stand.pools.pins, stand.cluster, Errand(stand, key)))
    await asyncio.sleep(0)
    stand.cluster.owners[key_slot(key)] = place
    assert await asked == b":1\r\n"


def test_words() -> None:
    """Clients see no redirect, and learn whether the outcome is known."""
    assert in_words(b"+OK\r\n") == b"+OK\r\n"
    assert in_words(b"-ASK 1 a:1\r\n") == in_words(Missing.UNSENT) == errors.CLUSTERDOWN
    assert in_words(b"-UNBLOCKED force unblocked\r\n") == errors.CLUSTERDOWN
    assert in_words(Missing.UNKNOWN) == errors.UNKNOWN_OUTCOME
    assert not_run(Missing.UNSENT)
    assert not_run(b"-MOVED 1 a:1\r\n")
    assert not not_run(Missing.UNKNOWN)
    assert not not_run(b"-ERR\r\n")
