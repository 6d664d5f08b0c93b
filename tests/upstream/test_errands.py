"""Scripts that the proxy runs for itself, before fake nodes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy import errors, wire
from proxy.upstream.errands import Errands, Script
from tests.fakenode import FakeCluster, FakeConnection
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, data_of, fake_cluster, key_of, standing

pytestmark = pytest.mark.integration

SCRIPT = Script("rate")


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(2) as cluster:
        yield cluster


@pytest.fixture
async def stand(cluster: FakeCluster) -> AsyncIterator[Stand]:
    async with standing(cluster_config(cluster.nodes)) as stand:
        yield stand


async def run(stand: Stand, key: bytes) -> bytes:
    heard: list[bytes] = []
    errands = Errands(stand.router, stand.flusher.batch)
    errands.run(SCRIPT, 0, key, [b"1"], heard.append)
    await wait_for(lambda: heard, "a reply")
    return heard[0]


def scripted(known: set[bytes]) -> object:
    """Return a node's answer: it knows a script once it was sent in full."""

    def answer(connection: FakeConnection, words: list[bytes]) -> bytes:
        if words[0] == b"EVAL":
            known.add(SCRIPT.digest)
        elif words[1] not in known:
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
        return b":1\r\n"

    return answer


async def test_a_script_is_sent_in_full_once(cluster: FakeCluster, stand: Stand) -> None:
    """A node that does not know the script gets it; from then on the digest is enough."""
    node, known = cluster.nodes[1], set[bytes]()
    node.answers |= {"EVAL": scripted(known), "EVALSHA": scripted(known)}  # type: ignore[dict-item]
    key = key_of(cluster, 1)
    assert await run(stand, key) == b":1\r\n"
    assert await run(stand, key) == b":1\r\n"
    sent = [words for connection in node.connections for words in data_of(connection)]
    assert [words[0] for words in sent] == [b"EVALSHA", b"EVAL", b"EVALSHA"]
    assert sent[1][1:] == [SCRIPT.body, b"1", key, b"1"]


async def test_it_follows_a_slot(cluster: FakeCluster, stand: Stand) -> None:
    """A node that has lost the slot sends the script on, and nobody hears of it."""
    key = key_of(cluster, 0)
    for node in cluster.nodes:
        node.answers["EVALSHA"] = lambda connection, words: b":7\r\n"
    slot = wire.key_slot(key)
    cluster.owners[slot] = 1
    cluster.nodes[0].answers["EVALSHA"] = b"-MOVED %d 127.0.0.1:%d\r\n" % (
        slot, cluster.nodes[1].port,
    )  # fmt: skip
    assert await run(stand, key) == b":7\r\n"


async def test_without_nodes_the_answer_is_an_error() -> None:
    """Before the topology is known, and where no node can be asked, the answer comes at once."""
    async with fake_cluster(1) as cluster:
        stand = Stand(cluster_config(cluster.nodes))
        assert await run(stand, b"k") == errors.CLUSTERDOWN
        stand.router.slots = wire.SlotMap([], [])
        assert await run(stand, b"k") == errors.CLUSTERDOWN
        await asyncio.sleep(0)
        await stand.stop()


async def test_a_script_may_have_several_keys(cluster: FakeCluster, stand: Stand) -> None:
    """They are counted, and arguments come behind them."""
    node = cluster.nodes[1]
    node.answers["EVALSHA"] = b":3\r\n"
    key = key_of(cluster, 1)
    errands = Errands(stand.router, stand.flusher.batch)
    beside = b"lease:{%b}" % key
    assert await errands.ask(SCRIPT, 0, [key, beside], [b"a"]) == b":3\r\n"
    (sent,) = [words for connection in node.connections for words in data_of(connection)]
    assert sent[1:] == [SCRIPT.digest, b"2", key, beside, b"a"]


async def test_a_command_goes_to_the_node_of_a_place(cluster: FakeCluster, stand: Stand) -> None:
    """What has no key is sent where it is meant to run."""
    errands = Errands(stand.router, stand.flusher.batch)
    for node in cluster.nodes:
        node.answers["DBSIZE"] = b":%d\r\n" % node.port
    places = stand.router.slots.places(0)
    replies = [await errands.tell(place, [b"DBSIZE"]) for place in places]
    assert sorted(replies) == sorted(b":%d\r\n" % node.port for node in cluster.nodes)


async def test_an_answer_that_does_not_come_is_an_error(
    cluster: FakeCluster, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks has a deadline of its own too."""
    monkeypatch.setattr("proxy.upstream.errands.PATIENCE", 0.01)
    cluster.nodes[0].answers["EVALSHA"] = lambda connection, words: b""
    errands = Errands(stand.router, stand.flusher.batch)
    assert await errands.ask(SCRIPT, 0, [key_of(cluster, 0)]) == errors.TIMEOUT
