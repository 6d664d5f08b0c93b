"""Real clusters: ready when they say so, whole after a failover, gone when stopped."""

import asyncio
from pathlib import Path

import pytest

from proxy.embedded import redis
from proxy.embedded.node import Node, NodeError, NodeOptions, TLSFiles, parse_fields
from proxy.embedded.process import EmbeddedError, ServerFailed, temporary_directory
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster, ExistingCluster, Shape
from tests.conftest import Clusters, StartCluster

pytestmark = pytest.mark.integration


async def test_a_started_cluster_is_whole_as_every_node_sees_it(clusters: Clusters) -> None:
    """Every node of both knows all slots, all nodes, and has its replicas in step."""
    for cluster in (clusters.locks, clusters.cache):
        assert (len(cluster.primaries), len(cluster.replicas)) == (3, 3)
        for node in cluster.nodes:
            state = parse_fields(await node.ask("CLUSTER", "INFO"))
            assert state["cluster_state"] == "ok"
            assert state["cluster_slots_ok"] == str(redis.SLOTS)
            assert state["cluster_known_nodes"] == "6"
        for primary in cluster.primaries:
            assert (await primary.info("replication"))["connected_slaves"] == "1"
            assert len(await cluster.replicas_of(primary)) == 1


async def test_the_clusters_evict_as_their_purpose_wants(clusters: Clusters) -> None:
    """Locks are never evicted, cached values are."""
    for cluster, policy in ((clusters.locks, "noeviction"), (clusters.cache, "allkeys-lfu")):
        assert (await cluster.nodes[0].ask("CONFIG", "GET", "maxmemory-policy"))[1] == policy


async def test_the_owner_of_a_slot_takes_its_keys(cache_cluster: Cluster) -> None:
    """The node named as owner accepts a write that another redirects to it."""
    slot = await cache_cluster.nodes[0].ask("CLUSTER", "KEYSLOT", "some key")
    owner = await cache_cluster.owner(slot)
    assert await owner.ask("SET", "some key", "x") == "OK"
    other = next(node for node in cache_cluster.primaries if node is not owner)
    with pytest.raises(NodeError, match=f"MOVED {slot} {owner.address}"):
        await other.ask("SET", "some key", "x")


async def test_flush_empties_every_primary(cache_cluster: Cluster) -> None:
    """After a flush no node holds a key."""
    await cache_cluster.primaries[0].ask(
        "FUNCTION", "LOAD", "#!lua name=a\nredis.register_function('f', function() return 1 end)"
    )
    await cache_cluster.flush()
    assert [await node.ask("DBSIZE") for node in cache_cluster.primaries] == [0, 0, 0]


async def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(
    start_cluster: StartCluster,
) -> None:
    """wait_ready waits for the failover, and again for the old primary to be in step."""
    cluster = await start_cluster(NodeOptions(node_timeout=0.5), Shape(3, 1))
    victim = cluster.primaries[0]
    heir = (await cluster.replicas_of(victim))[0]
    victim.kill()
    await cluster.wait_ready()
    assert heir.role == "primary"
    assert victim not in cluster.primaries
    await victim.restart()
    await cluster.wait_ready()
    assert victim.role == "replica"
    assert [node.id for node in await cluster.replicas_of(heir)] == [victim.id]


async def test_a_cluster_may_have_a_user_and_tls(
    start_cluster: StartCluster, debian_redis: Program, certificates: TLSFiles
) -> None:
    """Nodes reach each other with user, password and certificates too."""
    options = NodeOptions(user="app", password="secret", tls=certificates)
    cluster = await start_cluster(options, Shape(1, 1), debian_redis)
    assert await cluster.primaries[0].ask("SET", "a", "1") == "OK"
    assert cluster.replicas[0].role == "replica"


async def test_an_existing_cluster_is_used_and_left_alone(
    cache_cluster: Cluster, tmp_path: Path
) -> None:
    """All its nodes are found from one address; stopping ends none, killing is refused."""
    found = ExistingCluster("mine", cache_cluster.replicas[0].url, tmp_path)
    async with found:
        ports = {node.port: node.role for node in found.nodes}
        assert ports == {node.port: node.role for node in cache_cluster.nodes}
        with pytest.raises(EmbeddedError, match="was not started here"):
            found.nodes[0].kill()
    assert all(node.running for node in cache_cluster.nodes)


async def test_the_environment_names_an_existing_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variable for tests makes cluster_for take what is there."""
    monkeypatch.setenv(redis.EXISTING_CLUSTER, "redis://127.0.0.1:1")
    assert isinstance(redis.cluster_for("a", tmp_path), ExistingCluster)


async def test_a_start_that_fails_leaves_no_node(redis_binary: Program) -> None:
    """One refused node ends the others."""
    with temporary_directory("sidecache-test-") as directory:
        cluster = Cluster(
            "bad", redis_binary, directory, NodeOptions(settings={"cluster-port": "1"}), Shape(2, 0)
        )
        with pytest.raises(ServerFailed):
            await cluster.start()
        assert not any(node.running for node in cluster.nodes)


async def test_a_cancelled_start_leaves_no_node(redis_binary: Program) -> None:
    """Cancelled half-way, a start ends what it had started."""
    with temporary_directory("sidecache-test-") as directory:
        cluster = Cluster("cut", redis_binary, directory)
        start = asyncio.create_task(cluster.start())
        while not any(node.running for node in cluster.nodes):
            await asyncio.sleep(0.001)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert cluster.nodes
        assert not any(node.running for node in cluster.nodes)


def test_a_line_of_cluster_nodes_with_a_slot_on_its_way() -> None:
    """Slots under migration are listed twice and counted once; a lone slot is a range of one."""
    line = (
        "0f 127.0.0.1:7000@7100,host myself,master - 0 0 3 connected 0-9 12 [12->-1a] [13-<-2b]\n"
        "1a :7001@7101 slave,fail 0f 0 0 3 disconnected\n"
    )
    first, second = redis._parse_members(line).values()
    assert (first.port, first.role, first.ranges, first.slots) == (
        7000,
        "primary",
        ((0, 9), (12, 12)),
        11,
    )
    assert (second.role, second.follows, second.failing) == ("replica", "0f", True)


async def test_a_single_node_is_no_cluster(plain_redis: Node) -> None:
    """The node to compare with runs without cluster mode."""
    with pytest.raises(NodeError, match="cluster support disabled"):
        await plain_redis.ask("CLUSTER", "INFO")
