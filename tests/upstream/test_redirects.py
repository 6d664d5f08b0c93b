"""Where a command goes that its node will not answer: on, back, or to its client as an error."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import errors
from proxy.upstream import redirects
from proxy.upstream.redirects import MOST_HOPS
from tests.fakenode import Answer, FakeCluster, FakeConnection, FakeNode, key_slot
from tests.integration.rig import is_error, wait_for
from tests.quiet import Stopwatch
from tests.upstream.moving import play_moving
from tests.upstream.stand import TIMEOUT, Stand, cluster_config, data_of, key_of
from tests.wire.test_downstream import KEYS, seeds

pytestmark = pytest.mark.integration

SLACK = 0.1  # seconds


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(2)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.fixture
async def stand(cluster: FakeCluster) -> AsyncIterator[Stand]:
    """A pool that knows both nodes and is connected to them."""
    stand = Stand(cluster_config(cluster.nodes))
    await stand.start()
    nodes = stand.cluster.nodes.values()
    await wait_for(lambda: all(node.connections[0][0].ready for node in nodes), "the nodes")
    yield stand
    await stand.stop()


def moved(key: bytes, port: int) -> bytes:
    return b"-MOVED %d 127.0.0.1:%d\r\n" % (key_slot(key), port)


def counted(node: FakeNode, line: bytes, times: int) -> None:
    """Let a node say a line for the next keyed commands, and then behave."""
    left = times

    def script(connection: FakeConnection, words: list[bytes]) -> bytes | None:
        nonlocal left
        if words[0] in (b"CLUSTER", b"CLIENT", b"HELLO", b"PING", b"ASKING") or not left:
            return None
        left -= 1
        return line

    node.script = script


async def test_moved_is_followed_and_believed(cluster: FakeCluster, stand: Stand) -> None:
    """The command runs where the slot went; the next one goes there at once."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.owners[key_slot(key)] = 1
    client.send((b"SET", key, b"1"), (b"INCR", key), (b"GET", key))
    assert await client.take(3) == [b"OK", 2, b"2"]
    # Slots that move are published together, a few milliseconds after the first redirect.
    slots, slot = stand.cluster.owners, key_slot(key)
    await wait_for(lambda: stand.router.slots.owner(0, slot) == slots[slot], "the new slot map")
    sent = len(cluster.nodes[0].received("GET"))
    assert await client.ask(b"GET", key) == b"2"
    assert len(cluster.nodes[0].received("GET")) == sent
    assert cluster.nodes[1].values[key] == b"2"


async def test_a_moved_without_a_host_means_the_node_that_says_it(
    cluster: FakeCluster, stand: Stand
) -> None:
    """A node that does not know its own address is taken by the one it was reached by."""
    key, client = key_of(cluster, 0), stand.client()
    slot = key_slot(key)
    cluster.owners[slot] = 1
    cluster.nodes[0].answers["SET"] = b"-MOVED %d :%d\r\n" % (slot, cluster.nodes[1].port)
    assert await client.ask(b"SET", key, b"v") == b"OK"
    assert cluster.nodes[1].values[key] == b"v"


async def test_asking_directly_precedes_its_command(cluster: FakeCluster, stand: Stand) -> None:
    """An ASK is followed behind an ASKING, among other traffic, and the map stays as it is."""
    key, busy = key_of(cluster, 0), key_of(cluster, 1)
    cluster.asking[key_slot(key)] = 1
    cluster.nodes[1].values[key] = b"there"
    clients = [stand.client() for _ in range(8)]
    for client in clients:
        client.send(*[(b"GET", key), (b"SET", busy, b"x")] * 4)
    for client in clients:
        assert await client.take(8) == [b"there", b"OK"] * 4
    sent = data_of(cluster.nodes[1].connections[-1])
    for before, words in zip([[], *sent], sent, strict=False):
        assert (before == [b"ASKING"]) == (words == [b"GET", key])
    assert len(cluster.nodes[0].received("GET")) == 32


async def test_a_circle_ends(cluster: FakeCluster, stand: Stand) -> None:
    """Two nodes that send a command to each other cost an error at its deadline, and no storm."""
    key, client = key_of(cluster, 0), stand.client()
    for index, node in enumerate(cluster.nodes):
        node.answers["INCR"] = moved(key, cluster.nodes[1 - index].port)
    watch = Stopwatch()
    reply = await client.ask(b"INCR", key)
    spent = watch.spent
    assert str(reply) == errors.CLUSTERDOWN[1:-2].decode()
    assert spent <= TIMEOUT + SLACK
    sent = sum(len(node.received("INCR")) for node in cluster.nodes)
    assert MOST_HOPS <= sent <= MOST_HOPS + 2 + TIMEOUT / 0.02
    assert [node.received("SET") for node in cluster.nodes] == [[], []]


@pytest.mark.parametrize("kind", ["moved", "ask"])
async def test_a_disagreement_ends_when_the_nodes_agree(
    cluster: FakeCluster, stand: Stand, kind: str
) -> None:
    """A command that two nodes send to each other runs soon after one of them takes it."""
    key, client = key_of(cluster, 0), stand.client()
    first, second = cluster.nodes
    line = moved(key, second.port)
    first.answers["INCR"] = line if kind == "moved" else line.replace(b"MOVED", b"ASK")
    second.answers["INCR"] = moved(key, first.port)
    client.send((b"INCR", key))
    await wait_for(lambda: len(second.received("INCR")) > MOST_HOPS, "a circle")
    if kind == "moved":
        cluster.owners[key_slot(key)] = 1
    else:
        cluster.asking[key_slot(key)] = 1
    del second.answers["INCR"]
    watch = Stopwatch()
    assert await client.take(1) == [1]
    assert watch.spent <= SLACK


@pytest.mark.parametrize("kind", [b"MOVED", b"ASK"])
@pytest.mark.parametrize("address", [b"127.0.0.1:%d", b"203.0.113.7:6379", b":%d", b"nonsense"])
async def test_an_unknown_address_is_never_followed(
    cluster: FakeCluster, stand: Stand, kind: bytes, address: bytes
) -> None:
    """The command waits, the topology is asked, and it runs when a known node takes it."""
    stranger = FakeNode()
    await stranger.start()
    key, client = key_of(cluster, 0), stand.client()
    line = b"-%b %d %b\r\n" % (
        kind, key_slot(key), address % stranger.port if b"%" in address else address,
    )  # fmt: skip
    counted(cluster.nodes[0], line, 3)
    stand.cluster.refresher._evidence.clear()
    assert await client.ask(b"INCR", key) == 1
    assert len(cluster.nodes[0].received("INCR")) == 4
    assert stranger.connections == []
    assert stand.cluster.refresher._evidence.is_set()
    await stranger.stop()


REFUSALS = [
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-CLUSTERDOWN Hash slot not served\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-MASTERDOWN Link with MASTER is down\r\n",
]


@pytest.mark.parametrize("line", REFUSALS, ids=lambda line: line.split()[0].decode())
async def test_a_refusal_of_a_moment_is_waited_out(
    cluster: FakeCluster, stand: Stand, line: bytes
) -> None:
    """More refusals than hops are allowed do no harm, and the command runs exactly once."""
    key, client = key_of(cluster, 0), stand.client()
    counted(cluster.nodes[0], line, MOST_HOPS + 3)
    client.send((b"INCR", key), (b"SET", key_of(cluster, 1), b"x"))
    assert await client.take(2) == [1, b"OK"]
    assert cluster.nodes[0].values[key] == b"1"


@pytest.mark.parametrize("line", REFUSALS, ids=lambda line: line.split()[0].decode())
async def test_a_lasting_refusal_is_told_in_the_nodes_words(
    cluster: FakeCluster, stand: Stand, line: bytes
) -> None:
    """At the deadline the client gets what Redis said."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.nodes[0].answers["INCR"] = line
    watch = Stopwatch()
    reply = await client.ask(b"INCR", key)
    assert watch.elapsed >= TIMEOUT - 0.03
    assert watch.spent <= TIMEOUT + SLACK
    assert str(reply) == line[1:-2].decode()


@pytest.mark.parametrize("end", ["MOVED", "ASK"])
async def test_a_long_wait_ends_with_a_redirect(
    cluster: FakeCluster, stand: Stand, end: str
) -> None:
    """A slot that is gone after many refusals is followed: waiting uses up no hops."""
    key, client = key_of(cluster, 0), stand.client()
    counted(cluster.nodes[0], REFUSALS[0], MOST_HOPS + 3)
    if end == "MOVED":
        cluster.owners[key_slot(key)] = 1
    else:
        cluster.asking[key_slot(key)] = 1
    assert await client.ask(b"INCR", key) == 1
    assert cluster.nodes[1].values[key] == b"1"


async def test_tryagain_of_the_target_is_asked_there_again(
    cluster: FakeCluster, stand: Stand
) -> None:
    """Keys that come together one by one at the target are waited for there, behind ASKING."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.asking[key_slot(key)] = 1
    counted(cluster.nodes[1], REFUSALS[0], MOST_HOPS + 3)
    assert await client.ask(b"INCR", key) == 1
    assert len(cluster.nodes[0].received("INCR")) == 1
    assert len(cluster.nodes[1].received("ASKING")) == MOST_HOPS + 4
    cluster.nodes[1].answers["INCR"] = REFUSALS[0]
    cluster.nodes[1].script = None
    assert str(await client.ask(b"INCR", key)) == REFUSALS[0][1:-2].decode()


async def test_a_sent_write_is_never_repeated(cluster: FakeCluster, stand: Stand) -> None:
    """A write whose node dies before answering may have run: its client is told, others go on."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.nodes[0].answers["INCR"] = Answer(b"", close="reset")
    client.send((b"INCR", key), (b"GET", key), (b"INCR", key_of(cluster, 1)))
    first, second, third = await client.take(3)
    assert str(first) == errors.UNKNOWN_OUTCOME[1:-2].decode()
    assert (second, third) == (None, 1)
    assert len(cluster.nodes[0].received("INCR")) == 1
    assert len(cluster.nodes[0].received("GET")) == 2


async def test_reads_are_repeated_until_their_deadline(cluster: FakeCluster, stand: Stand) -> None:
    """A read that keeps losing its node ends in an error in time."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.nodes[0].answers["GET"] = Answer(b"", close="reset")
    watch = Stopwatch()
    assert is_error(await client.ask(b"GET", key))
    assert watch.spent <= TIMEOUT + SLACK


async def test_commands_of_a_dead_node_wait_for_it_in_order(
    cluster: FakeCluster, stand: Stand
) -> None:
    """What was queued and not sent survives a reconnect, in the client's order."""
    key, client = key_of(cluster, 0), stand.client()
    node = cluster.nodes[0]
    (connection,) = stand.cluster.nodes[f"127.0.0.1:{node.port}"].connections[0]
    await node.stop()
    await wait_for(lambda: not connection.ready, "the loss")
    if connection.upstream.available:
        client.send(*((b"SET", key, b"%d" % n) for n in range(5)), (b"GET", key))
        await node.start()
        assert await client.take(6) == [b"OK"] * 5 + [b"4"]


@pytest.mark.parametrize("line", [REFUSALS[0], REFUSALS[1]], ids=["TRYAGAIN", "LOADING"])
async def test_parked_commands_of_one_client_keep_their_order(
    cluster: FakeCluster, stand: Stand, line: bytes
) -> None:
    """Several commands that wait together run in the order in which they were sent."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.nodes[0].answers |= {"SET": line, "GET": line}
    client.send(*((b"SET", key, b"%d" % n) for n in range(4)), (b"GET", key))
    await wait_for(lambda: len(cluster.nodes[0].received("SET")) > 8, "some rounds of refusals")
    client.send((b"SET", key, b"last"))
    cluster.nodes[0].answers.clear()
    assert await client.take(6) == [b"OK"] * 4 + [b"3", b"OK"]
    assert cluster.nodes[0].values[key] == b"last"


async def test_what_nobody_waits_for_is_dropped(cluster: FakeCluster, stand: Stand) -> None:
    """Commands of a client that has gone are not sent again."""
    key, client = key_of(cluster, 0), stand.client()
    cluster.nodes[0].answers["INCR"] = REFUSALS[0]
    client.send((b"INCR", key))
    await wait_for(lambda: cluster.nodes[0].received("INCR"), "the command")
    await wait_for(lambda: "tryagain" in stand.page(), "the refusal")
    client.downstream.connection_lost()
    sent = len(cluster.nodes[0].received("INCR"))
    other = stand.client()
    cluster.nodes[0].answers["SET"] = Answer(b"+OK\r\n", 0.1)
    assert await other.ask(b"SET", key, b"v") == b"OK"
    assert len(cluster.nodes[0].received("INCR")) <= sent + 1


async def test_stopping_answers_what_is_parked(cluster: FakeCluster, stand: Stand) -> None:
    """At the end of the process nobody is left without a reply, whatever he waited for."""
    parked, flying = stand.client(), stand.client()
    cluster.nodes[0].answers["INCR"] = REFUSALS[1]
    cluster.nodes[1].answers["INCR"] = Answer(b"", 60.0)
    parked.send((b"INCR", key_of(cluster, 0)))
    flying.send((b"INCR", key_of(cluster, 1)), (b"GET", key_of(cluster, 1)))
    await wait_for(lambda: cluster.nodes[0].received("INCR"), "the refusal")
    await wait_for(lambda: cluster.nodes[1].received("INCR"), "the command")
    stand.pools.stop()
    assert is_error((await parked.take(1))[0])
    replies = await flying.take(2)
    assert str(replies[0]) == errors.UNKNOWN_OUTCOME[1:-2].decode()
    assert is_error(replies[1])


async def test_redirects_are_counted_by_kind(cluster: FakeCluster, stand: Stand) -> None:
    """Each kind of orphan shows at the node that made it."""
    key, client = key_of(cluster, 0), stand.client()
    counted(cluster.nodes[0], REFUSALS[0], 2)
    await client.ask(b"SET", key, b"v")
    node = f"127.0.0.1:{cluster.nodes[0].port}"
    line = f'sidecache_node_redirects_total{{cluster="cache",node="{node}",reason="tryagain"}} 2.0'
    assert line in stand.page()


@given(st.lists(st.sampled_from(KEYS), min_size=2, max_size=60), seeds)
@settings(max_examples=100, deadline=None)
def test_moving_slots_keep_both_orders(keys: list[bytes], seed: int) -> None:
    """However often slots move amid a pipeline, replies and each slot's effects stay in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redirects, "PAUSE", 0.0)
        asyncio.run(play_moving(keys, seed))


@pytest.mark.long
@given(st.lists(st.sampled_from(KEYS), min_size=2, max_size=200), seeds)
@settings(max_examples=3000, deadline=None)
def test_many_moving_slots(keys: list[bytes], seed: int) -> None:
    """The same for longer pipelines and thousands of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redirects, "PAUSE", 0.0)
        asyncio.run(play_moving(keys, seed))
