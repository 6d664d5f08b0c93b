"""Pub/sub through a real proxy over real clusters: topology, notifications, slow readers."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest

from benchmarks.pubsub import Plan, run
from benchmarks.stage import Target
from proxy.embedded.node import Node, NodeOptions
from proxy.embedded.redis import Shape
from proxy.embedded.sidecar import Sidecar, cluster_block
from tests.conftest import Clusters, StartCluster
from tests.fakenode import key_slot
from tests.integration.rig import Caller, Mover, StartProxy, front_of, is_error, wait_for
from tests.quiet import Stopwatch
from tests.replies import pack

pytestmark = pytest.mark.integration

# How long a message takes between two nodes at most, in seconds.
UNDER_WAY = 0.1

KEYSPACES = """
defaults: {cluster: cache}
keyspaces:
  seat_lock: {key: "seat_lock:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
  job: {key: "job:{id}", hash_tag: {literal: jobs}}
"""

POLICIES = """
defaults: {cluster: cache}
channels:
  orders: {channel: "orders:{id}", cluster: locks, subscribe: [reader], publish: [default]}
  news: {channel: "news:{topic}"}
roles:
  reader: {channels: [orders, news]}
"""

USERS = {
    "default": {"nopass": True, "role": "default"},
    "reader": {"password": "secret", "role": "reader"},
}


async def metric(sidecar: Sidecar, name: str) -> float:
    """Return the sum of a metric's samples."""
    _, page = await sidecar.get("/metrics")
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def messages(caller: Caller, count: int) -> list[list[bytes]]:
    return [await caller.next() for _ in range(count)]


async def silent(caller: Caller, publisher: Caller) -> bool:
    """Return whether nothing has reached a subscriber: what it asks for last comes first."""
    return await caller.call("PING", "done") == [b"pong", b"done"]


async def test_messages_keep_their_order(proxy: Sidecar) -> None:
    """2,000 messages to 60 subscribers of 20 channels arrive once each and in order."""
    plan = Plan(proxy.port, subscribers=60, channels=20, rate=4000, seconds=0.5)
    figures = await asyncio.to_thread(run, plan, Target("proxy", proxy.port, proxy.pid or 0))
    assert figures["deliveries"] == 6000
    assert (figures["missing"], figures["wrong"], figures["closed"]) == (0, 0, 0)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_many_clients_are_one_subscriber(
    proxy: Sidecar, clusters: Clusters, protocol: int
) -> None:
    """A node has one subscriber, and the last client that leaves ends it there."""
    callers = [await Caller.open(proxy.port) for _ in range(5)]
    for caller in callers:
        await caller.call("HELLO", protocol)
        assert await caller.call("SUBSCRIBE", "shared") == [b"subscribe", b"shared", 1]

    async def subscribers() -> list[int]:
        nodes = [*clusters.cache.nodes, *clusters.locks.nodes]
        return [(await node.ask("PUBSUB", "NUMSUB", "shared"))[1] for node in nodes]

    assert sorted(await subscribers()) == [0] * 11 + [1]
    publisher = await Caller.open(proxy.port)
    await publisher.call("PUBLISH", "shared", "hello")
    for caller in callers:
        assert await caller.next() == [b"message", b"shared", b"hello"]
    for caller in callers[1:]:
        caller.close()
    assert await callers[0].call("UNSUBSCRIBE", "shared") == [b"unsubscribe", b"shared", 0]

    async def gone() -> bool:
        return await subscribers() == [0] * 12

    await wait_for(gone, "the end of the subscription")
    assert await publisher.call("PUBSUB", "CHANNELS") == []


async def test_published_elsewhere(proxy: Sidecar, clusters: Clusters) -> None:
    """What any node of the cluster is told reaches clients of the proxy; other clusters do not."""
    caller = await Caller.open(proxy.port)
    await caller.pipeline([("SUBSCRIBE", "from:nodes"), ("PSUBSCRIBE", "from:*")])
    for number, node in enumerate(clusters.cache.nodes):
        await clusters.locks.nodes[number].ask("PUBLISH", "from:nodes", "wrong cluster")
        await node.ask("PUBLISH", "from:nodes", number)
        expected = b"%d" % number
        assert await messages(caller, 2) == [
            [b"message", b"from:nodes", expected],
            [b"pmessage", b"from:*", b"from:nodes", expected],
        ]


@contextlib.asynccontextmanager
async def notifying(clusters: Clusters) -> AsyncIterator[None]:
    """Let all nodes tell of all that happens to keys."""
    nodes = [*clusters.cache.nodes, *clusters.locks.nodes]
    for node in nodes:
        await node.ask("CONFIG", "SET", "notify-keyspace-events", "KEA")
    try:
        yield
    finally:
        for node in nodes:
            await node.ask("CONFIG", "SET", "notify-keyspace-events", "")


async def test_notifications_have_the_names_of_clients(
    proxy_process: StartProxy, empty_clusters: Clusters, tmp_path: Path
) -> None:
    """Events of every primary arrive once, with keys as clients name them, and never ours."""
    policies = tmp_path / "policies.yaml"
    policies.write_text(KEYSPACES)
    sidecar = await proxy_process(policies=str(policies))
    async with notifying(empty_clusters):
        events, exact, keys = [await Caller.open(sidecar.port) for _ in range(3)]
        await events.call("PSUBSCRIBE", "__keyevent@0__:set")
        await exact.call("SUBSCRIBE", "__keyspace@0__:seat_lock:e1:s1")
        await keys.pipeline([("PSUBSCRIBE", "__keyspace@0__:seat_lock:e1:*"), ("PSUBSCRIBE", "*")])
        writer = await Caller.open(sidecar.port)
        names = [b"seat_lock:e1:s1", b"job:7", b"plain:1", b"plain:2", b"plain:3", b"plain:4"]
        for node in empty_clusters.cache.primaries:
            with contextlib.suppress(Exception):
                await node.ask("SET", "sidecache:own", "x")
        for name in names:
            assert await writer.call("SET", name, "x") == b"OK"
        told = await messages(events, len(names))
        head = [b"pmessage", b"__keyevent@0__:set", b"__keyevent@0__:set"]
        assert sorted(told) == sorted([*head, name] for name in names)
        assert await exact.next() == [b"message", b"__keyspace@0__:seat_lock:e1:s1", b"set"]
        first = await messages(keys, 1 + 2 * len(names))
        pattern, channel = b"__keyspace@0__:seat_lock:e1:*", b"__keyspace@0__:seat_lock:e1:s1"
        assert [m for m in first if m[1] == pattern] == [[b"pmessage", pattern, channel, b"set"]]
        spaces = sorted(m[2] for m in first if m[1] == b"*" and m[2].startswith(b"__keyspace"))
        assert spaces == sorted(b"__keyspace@0__:" + name for name in names)
        for caller in (events, exact, keys):
            assert await silent(caller, writer)


async def test_rules_of_channels(
    proxy_process: StartProxy, tmp_path: Path, clusters: Clusters
) -> None:
    """A channel lives on the cluster of its rule, and is used by those who may."""
    policies = tmp_path / "policies.yaml"
    policies.write_text(POLICIES)
    sidecar = await proxy_process(policies=str(policies), users=USERS)
    anybody, reader = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    await reader.call("AUTH", "reader", "secret")
    assert await reader.call("SUBSCRIBE", "orders:1") == [b"subscribe", b"orders:1", 1]
    counts = [(await node.ask("PUBSUB", "NUMSUB", "orders:1"))[1] for node in clusters.locks.nodes]
    assert sum(counts) == 1
    for command in (
        ("SUBSCRIBE", "other"), ("SUBSCRIBE", "news:x", "other"), ("PSUBSCRIBE", "*"),
        ("PSUBSCRIBE", "orders:1*"), ("SSUBSCRIBE", "other"),
    ):  # fmt: skip
        assert "NOPERM" in str(await reader.call(*command)), command
    assert await reader.call("PSUBSCRIBE", "orders:*") == [b"psubscribe", b"orders:*", 2]
    for command in (
        ("SUBSCRIBE", "orders:1"), ("PSUBSCRIBE", "o*"), ("SSUBSCRIBE", "orders:1"),
    ):  # fmt: skip
        assert "NOPERM" in str(await anybody.call(*command)), command
    assert await anybody.call("PUBLISH", "orders:1", "x") in (0, 2)
    assert await messages(reader, 2) == [
        [b"message", b"orders:1", b"x"], [b"pmessage", b"orders:*", b"orders:1", b"x"],
    ]  # fmt: skip
    # Nobody sees what others listen to.
    assert await anybody.call("PUBSUB", "NUMSUB", "orders:1") == [b"orders:1", 0]
    policies.write_text(POLICIES.replace("cluster: locks, subscribe", "cluster: cache, subscribe"))
    assert sidecar.pid is not None
    os.kill(sidecar.pid, signal.SIGHUP)

    async def moved() -> bool:
        nodes = clusters.cache.nodes
        return sum([(await n.ask("PUBSUB", "NUMSUB", "orders:1"))[1] for n in nodes]) == 1

    await wait_for(moved, "the subscription in the other cluster")
    await anybody.call("PUBLISH", "orders:1", "y")
    assert await reader.next() == [b"message", b"orders:1", b"y"]


async def test_shard_channels_follow_their_slot(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A slot moves with its subscribers: clients see no sunsubscribe, and messages go on."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"cache": cluster})
    subscriber, publisher = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    assert await subscriber.call("SSUBSCRIBE", "{s}1", "{s}2") == [b"ssubscribe", b"{s}1", 1]
    assert await subscriber.next() == [b"ssubscribe", b"{s}2", 2]
    assert "CROSSSLOT" in str(await publisher.call("SSUBSCRIBE", "a", "b"))
    assert await publisher.call("SPUBLISH", "{s}1", "before") == 1
    assert await subscriber.next() == [b"smessage", b"{s}1", b"before"]
    mover = Mover(cluster)
    await mover.open()
    slot = key_slot(b"{s}")
    source = (await mover.owners())[slot]
    target = next(node for node in cluster.primaries if node is not source)
    await mover.move(slot, source, target)

    async def heard() -> bool:
        return (await target.ask("PUBSUB", "SHARDNUMSUB", "{s}1"))[1] == 1

    await wait_for(heard, "the subscription at the new owner")
    assert await publisher.call("SPUBLISH", "{s}2", "after") == 1
    assert await subscriber.next() == [b"smessage", b"{s}2", b"after"]
    mover.close()


async def flowing(node: Node, subscriber: Caller, channel: str) -> None:
    """Publish at a node until a message arrives."""
    until = time.monotonic() + 20
    for number in itertools.count():
        assert time.monotonic() < until, "no message arrives"
        await node.ask("PUBLISH", channel, number)
        with contextlib.suppress(TimeoutError):
            await subscriber.next(0.02)
            return


@pytest.mark.parametrize("gap", ["silent", "disconnect"])
async def test_the_subscribed_node_is_killed(
    start_cluster: StartCluster, tmp_path: Path, gap: str
) -> None:
    """Another node is listened to at once; what the gap is to clients is the operator's choice."""
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 0))
    async with front_of({"cache": {**cluster_block(cluster), "gap": gap}}, tmp_path) as sidecar:
        subscriber, publisher = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
        assert await subscriber.call("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]
        await publisher.call("PUBLISH", "c", -1)
        assert await subscriber.next() == [b"message", b"c", b"-1"]
        (home,) = [n for n in cluster.nodes if (await n.ask("PUBSUB", "NUMSUB", "c"))[1]]
        bystander = next(node for node in cluster.nodes if node is not home)
        watch = Stopwatch(sidecar.pid, bystander.pid)
        home.kill()
        if gap == "disconnect":
            with pytest.raises(ConnectionError):
                await subscriber.next()
            subscriber = await Caller.open(sidecar.port)
            await subscriber.call("SUBSCRIBE", "c")
        await flowing(bystander, subscriber, "c")
        print(f"\nmessages flow {watch.elapsed:.3f} s after the kill")
        assert watch.spent < 1.0
        assert await metric(sidecar, "sidecache_subscription_gaps_total") == 1

        async def published() -> bool:
            return not is_error(await publisher.call("PUBLISH", "c", "through us"))

        # Any node takes it, whoever owned the slot of the name.
        await wait_for(published, "a message through the proxy", 3.0)


async def test_a_demoted_home_doubles_nothing(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A planned failover of the node that is listened to doubles no message and keeps the order."""
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 3))
    sidecar = await proxy_process({"cache": cluster})
    subscriber, publisher = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    await subscriber.call("SUBSCRIBE", "c")
    (home,) = [n for n in cluster.nodes if (await n.ask("PUBSUB", "NUMSUB", "c"))[1]]
    (replica,) = await cluster.replicas_of(home)
    bystander = next(node for node in cluster.primaries if node is not home)
    await replica.ask("CLUSTER", "FAILOVER")
    sent: list[float] = []  # when

    async def moved() -> bool:
        sent.append(time.monotonic())
        await bystander.ask("PUBLISH", "c", len(sent) - 1)
        # A client's command brings the evidence that the topology has changed.
        for key in "abcdef":
            await publisher.call("SET", key, "x")
        counts = [(await n.ask("PUBSUB", "NUMSUB", "c"))[1] for n in cluster.nodes]
        return sum(counts) == 1 and not counts[cluster.nodes.index(home)]

    await wait_for(moved, "another home", 20.0)
    await bystander.ask("PUBLISH", "c", "end")
    heard = []
    while (message := (await messages(subscriber, 1))[0][2]) != b"end":
        heard.append(int(message))
    assert heard == sorted(set(heard))
    # Nodes pass messages on to each other as they get to it: what is under way at the moment of the
    # change may come to the new home before it is listened to there, and to the old one after it is
    # left. Before and behind that moment nothing is lost.
    lost = [sent[number] for number in set(range(len(sent))) - set(heard)]
    assert not lost or max(lost) - min(lost) < UNDER_WAY
    assert await metric(sidecar, "sidecache_subscription_gaps_total") == 0


async def test_a_subscriber_that_does_not_read_is_closed(proxy_process: StartProxy) -> None:
    """It goes when it holds more than its share; others get every message."""
    limits = {"output_bytes": "1MiB", "output_total_bytes": "16MiB", "output_seconds": "500ms"}
    sidecar = await proxy_process(limits=limits)
    reader, publisher = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    deaf = await Caller.open(sidecar.port)
    for caller in (deaf, reader):
        await caller.call("SUBSCRIBE", "flood")
    deaf.writer.transport.pause_reading()
    payload = b"x" * 65536
    for number in itertools.count():
        await publisher.call("PUBLISH", "flood", payload)
        assert (await reader.next())[2] == payload
        if number % 50 == 49 and await publisher.call("PUBSUB", "NUMSUB", "flood") == [b"flood", 1]:
            break
        assert number < 5000
    assert await metric(sidecar, 'sidecache_connections_closed_total{reason="output"}') == 1


async def calls(caller: Caller, number: int, until: asyncio.Event) -> tuple[int, list[int]]:
    """Call and listen on one RESP3 connection; return the calls made and the messages heard."""
    made, heard, key = 0, [], f"calls:{number}"
    # Messages may come as soon as SUBSCRIBE is answered, so that answer is the last one here.
    await caller.pipeline([("SET", key, 0), ("HELLO", 3), ("SUBSCRIBE", "both")])
    while not until.is_set():
        caller.writer.write(b"".join(pack("INCR", key) for _ in range(10)))
        replies = 0
        while replies < 10:
            value = await caller.next()
            if isinstance(value, hiredis.PushNotification):
                assert value[:2] == [b"message", b"both"]
                heard.append(int(value[2]))
            else:
                replies += 1
                made += 1
                assert value == made
    return made, heard


async def test_pushes_and_replies_do_not_mix(proxy: Sidecar) -> None:
    """20 clients call and listen at once: every reply is the right one, no message is missed."""
    publisher = await Caller.open(proxy.port)
    callers = [await Caller.open(proxy.port) for _ in range(20)]
    until = asyncio.Event()
    tasks = [asyncio.create_task(calls(caller, n, until)) for n, caller in enumerate(callers)]

    async def everybody() -> bool:
        return await publisher.call("PUBSUB", "NUMSUB", "both") == [b"both", 20]

    await wait_for(everybody, "20 subscribers")
    for number in range(0, 500, 10):
        await publisher.pipeline([("PUBLISH", "both", number + n) for n in range(10)])
    until.set()
    for made, heard in await asyncio.gather(*tasks):
        assert made > 0
        assert heard == list(range(len(heard)))


async def test_no_node_to_listen_to(start_cluster: StartCluster, proxy_process: StartProxy) -> None:
    """A subscription that no node acknowledges is refused in time, and leaves nothing behind."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"cache": cluster})
    for node in cluster.nodes:
        node.kill()
    caller = await Caller.open(sidecar.port)
    for command in ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"):
        watch = Stopwatch(sidecar.pid)
        assert is_error(await caller.call(command, "c"))
        assert watch.spent < 2.0
    assert await caller.call("ECHO", "as before") == b"as before"
    assert await metric(sidecar, "sidecache_subscriptions{") == 0
