"""The scripted node: what it is told to do, it does, and it remembers what it was told."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio.cluster import RedisCluster

from tests.fakenode import Answer, FakeCluster, FakeConnection, FakeNode, key_slot
from tests.replies import pack

pytestmark = pytest.mark.integration


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode()
    await node.start()
    yield node
    await node.stop()


async def exchange(node: FakeNode, data: bytes, size: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(data)
    got = await asyncio.wait_for(reader.readexactly(size), 5.0)
    writer.close()
    return got


async def test_the_usual_answers_are_those_of_a_small_redis(node: FakeNode) -> None:
    """Values set are values got, in the order asked, and bytes are kept as they came."""
    data = pack("SET", "k", "v") + pack("GET", "k") + pack("GET", "none") + pack("INCR", "n")
    wanted = b"+OK\r\n$1\r\nv\r\n$-1\r\n:1\r\n"
    assert await exchange(node, data, len(wanted)) == wanted
    assert bytes(node.connections[0].received) == data
    assert node.received("get") == [[b"GET", b"k"], [b"GET", b"none"]]


async def test_answers_can_be_delayed_dropped_doubled_and_invented(node: FakeNode) -> None:
    """A delay holds back what is behind it; data may be nothing, or too much."""
    node.answers = {
        "GET": Answer(b"+slow\r\n", delay=0.02),
        "ECHO": b"",
        "INCR": b":1\r\n:1\r\n",
        "CLUSTER MYID": b"-ERR none\r\n",
    }
    data = pack("GET", "a") + pack("ECHO", "x") + pack("INCR", "n") + pack("CLUSTER", "myid")
    wanted = b"+slow\r\n:1\r\n:1\r\n-ERR none\r\n"
    assert await exchange(node, data, len(wanted)) == wanted


async def test_a_script_sees_the_connection(node: FakeNode) -> None:
    """A script may answer, push, or close at any byte."""

    def script(connection: FakeConnection, words: list[bytes]) -> Answer | None:
        if words[0] == b"PING":
            connection.put(b">2\r\n+a\r\n+b\r\n")
            return Answer(b"$100\r\nhalf", close="reset")
        return None

    node.script = script
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await exchange(node, pack("PING"), 1000)


async def test_a_fake_cluster_is_one_for_a_cluster_client() -> None:
    """redis-py finds all nodes through their topology replies and follows MOVED and ASK."""
    cluster = FakeCluster(3)
    await cluster.start()
    client = RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port, protocol=2)
    try:
        for number in range(20):
            assert await client.set(f"key{number}", "v")
        assert all(node.values for node in cluster.nodes)
        slot = key_slot(b"key1")
        owner = cluster.owners[slot]
        cluster.asking[slot] = (owner + 1) % 3
        del cluster.nodes[owner].values[b"key1"]
        cluster.nodes[(owner + 1) % 3].values[b"key1"] = b"elsewhere"
        assert await client.get("key1") == b"elsewhere"
        cluster.owners[slot] = (owner + 1) % 3
        assert await client.get("key1") == b"elsewhere"
    finally:
        await client.aclose()
        await cluster.stop()
