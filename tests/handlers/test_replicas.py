"""WAIT and WAITAOF: the least that any primary says about a write younger than the client's."""

from array import array
from pathlib import Path

import pytest

from proxy import errors, wire
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster, Single
from proxy.embedded.sidecar import Sidecar
from proxy.handlers.replicas import least, shards
from proxy.upstream.dedicated import Missing, Reply
from tests.conftest import Clusters, StartProxy
from tests.fakenode import Answer
from tests.front import front
from tests.integration.rig import Caller, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([b":2\r\n", b":1\r\n"], b":1\r\n"),
        ([b"*2\r\n:1\r\n:0\r\n", b"*2\r\n:0\r\n:3\r\n"], b"*2\r\n:0\r\n:0\r\n"),
        ([b":1\r\n", b"-ERR no\r\n"], b"-ERR no\r\n"),
        ([b":1\r\n", Missing.UNSENT], errors.CLUSTERDOWN),
        ([b":1\r\n", Missing.UNKNOWN], errors.TIMEOUT),
    ],
)
def test_least(replies: list[Reply], expected: bytes) -> None:
    """The smallest of each number; the first thing that went wrong outweighs them."""
    assert least(replies) == expected


async def test_the_question_stands_behind_a_write() -> None:
    """On a connection of its own, and the client's own words reach the node."""
    async with front() as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "WAIT": b":3\r\n"}
        caller = await made.connect()
        assert await caller.call("WAIT", "2", "0") == 3
        (connection,) = [c for c in made.node.connections if c.asked(b"WAIT")]
        written, asked = connection.commands[-2:]
        assert written == [b"SET", b"sidecache:barrier:0", b"", b"PX", b"1"]
        assert asked == [b"WAIT", b"2", b"0"]


async def test_a_barrier_that_is_refused() -> None:
    """Where the node takes no write, nothing is known about writes."""
    async with front() as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "SET": b"-OOM no\r\n"}
        caller = await made.connect()
        assert str(await caller.call("WAIT", "2", "0")) == "OOM no"
        assert not made.node.received("WAIT")


async def test_a_client_that_waits_for_replicas_is_unblocked() -> None:
    """It counts as blocked; the node's number so far is the answer."""
    async with front() as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "WAIT": Answer(b"")}

        def unblock(connection: object, words: list[bytes]) -> bytes:
            next(c for c in made.node.connections if c.asked(b"WAIT")).put(b":1\r\n")
            return b":1\r\n"

        made.node.answers["CLIENT UNBLOCK"] = unblock
        caller, other = await made.connect(), await made.connect()
        number = await caller.call("CLIENT", "ID")
        caller.writer.write(pack("WAIT", "2", "0"))
        await wait_for(lambda: made.node.received("WAIT"), "the question")
        assert await other.call("CLIENT", "UNBLOCK", number) == 1
        assert await caller.next() == 1


async def test_too_many_primaries() -> None:
    """Each primary that is asked counts against the clients that may wait."""
    async with front(blocked=0) as made:
        caller = await made.connect()
        assert str(await caller.call("WAIT", "1", "0")).encode() == errors.MAX_BLOCKED[1:-2]


def test_no_place_without_nodes() -> None:
    """A cluster that nobody knows yet has nobody to ask."""
    slots = wire.SlotMap([(True, array("h", [-1] * 16384))], [])
    assert shards(slots, 0, True) == []


@pytest.mark.parametrize("protocol", [2, 3])
async def test_real_replicas(proxy: Sidecar, empty_clusters: Clusters, protocol: int) -> None:
    """Each primary has one replica: that many acknowledge, and no more."""
    caller = await Caller.open(proxy.port)
    await caller.call("HELLO", protocol)
    assert await caller.pipeline([("SET", "a", "1"), ("WAIT", "1", "1000")]) == [b"OK", 1]
    assert await caller.call("WAIT", "2", "50") == 1
    assert await caller.call("WAIT", "0", "0") >= 0
    # Redis 7.0 has no WAITAOF, and says so itself.
    assert str(await caller.call("WAITAOF", "0", "0", "0")).startswith(("[0, 0]", "ERR unknown"))
    for words, line in (
        (["WAIT", "x", "0"], "ERR value is not an integer or out of range"),
        (["WAIT", "0", "-1"], "ERR timeout is negative"),
    ):
        assert str(await caller.call(*words)) == line
    caller.close()


async def test_a_replica_that_is_behind(proxy: Sidecar, empty_clusters: Clusters) -> None:
    """A shard whose replica has stopped holds the number down, whatever the others say."""
    cluster: Cluster = empty_clusters.cache
    (replica,) = await cluster.replicas_of(await cluster.owner(wire.key_slot(b"a")))
    caller = await Caller.open(proxy.port)
    replica.pause()
    try:
        assert await caller.pipeline([("SET", "a", "1"), ("WAIT", "1", "100")]) == [b"OK", 0]
    finally:
        replica.resume()
    assert await caller.call("WAIT", "1", "2000") == 1
    caller.close()


async def test_only_clusters_that_were_written_to(
    proxy_process: StartProxy, empty_clusters: Clusters, redis_binary: Program, tmp_path: Path
) -> None:
    """A cluster without replicas says nothing about writes to another, until it is written to."""
    (tmp_path / "rules.yaml").write_text(
        "keyspaces:\n  lone: {key: 'lone:{n}', cluster: alone, type: string}\n"
    )
    async with Single("alone", redis_binary, tmp_path / "alone") as alone:
        sidecar = await proxy_process(
            {"cache": empty_clusters.cache, "alone": alone}, policies=str(tmp_path / "rules.yaml")
        )
        reader, writer = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
        assert await writer.pipeline([("SET", "a", "1"), ("WAIT", "1", "5000")]) == [b"OK", 1]
        assert await writer.pipeline([("SET", "lone:1", "1"), ("WAIT", "1", "50")]) == [b"OK", 0]
        # Without a write it is the number of replicas where the client's other keys are.
        assert await reader.pipeline([("GET", "lone:1"), ("WAIT", "1", "5000")]) == [b"1", 1]
        reader.close()
        writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"SET a v", b"MSET a 1 b 2", b"DEL a", b"EVAL x 1 a", b"EVAL x 0", b"FCALL f 0",
        b"BLPOP a 0", b"BLMOVE a a LEFT LEFT 0", b"MULTI\r\nSET a v", b"COPY a a REPLACE",
        b"FUNCTION FLUSH", b"XREADGROUP GROUP g c STREAMS a >",
    ],
)  # fmt: skip
async def test_what_counts_as_a_write(line: bytes) -> None:
    """Whatever way a write takes to its node, its cluster has been written to; a read is none."""
    async with front() as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "BLPOP": Answer(b""), "BLMOVE": Answer(b"")}
        caller = await made.connect()
        await caller.pipeline([("GET", "a"), ("EXISTS", "a"), ("EVAL_RO", "x", "1", "a")])
        side = made.session.downstream
        assert not side.has_written(0)
        caller.writer.write(line + b"\r\n")
        await wait_for(lambda: side.has_written(0), "the write")
        assert not side.has_written(1)
