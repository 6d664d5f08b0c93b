"""Nodes that lie, stammer or fall silent: clients get right replies or errors, never a mixture."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.fakenode import Answer, FakeCluster, FakeConnection, FakeNode, key_slot
from tests.integration.rig import Caller, front_of, is_error, resident_bytes, wait_for

pytestmark = pytest.mark.integration

DEADLINE = 0.5  # seconds of a request
SLACK = 0.1
MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def before(cluster: FakeCluster, folder: Path) -> AsyncIterator[Sidecar]:
    """Start a fake cluster and a proxy in front of it."""
    await cluster.start()
    block = {
        "mode": "cluster",
        "nodes": [f"redis://127.0.0.1:{node.port}" for node in cluster.nodes],
        "timeout": f"{DEADLINE * 1000:.0f}ms",
    }
    try:
        async with front_of({"locks": block, "cache": block}, folder) as sidecar:
            yield sidecar
    finally:
        await cluster.stop()


def key_of(cluster: FakeCluster, index: int, number: int = 0) -> bytes:
    """Return a key that a node owns."""
    found = -1
    for candidate in range(10_000):
        key = b"key:%d" % candidate
        found += cluster.owners[key_slot(key)] == index
        if found == number:
            return key
    raise AssertionError("no key found")


async def timed(caller: Caller, *words: bytes) -> tuple[object, float]:
    start = time.monotonic()
    return await caller.call(*words), time.monotonic() - start


def topology_requests(cluster: FakeCluster) -> int:
    """Return how often the topology was asked for, however it is asked."""
    words = (b"SHARDS", b"SLOTS", b"NODES")
    return sum(
        len(command) > 1 and command[1].upper() in words
        for node in cluster.nodes
        for command in node.received("CLUSTER")
    )


async def test_asking_stands_before_its_command(tmp_path: Path) -> None:
    """In a crowd, each command sent by ASK directly follows its ASKING, and each ASKING is used."""
    cluster = FakeCluster(3)
    async with before(cluster, tmp_path) as sidecar:
        moving = key_of(cluster, 0)
        cluster.asking[key_slot(moving)] = 1
        cluster.nodes[1].values[moving] = b"moved"
        busy = key_of(cluster, 1)
        callers = [await Caller.open(sidecar.port) for _ in range(20)]
        pipeline = [("SET", busy, "x"), ("GET", moving), ("GET", busy)] * 10
        ends = await asyncio.gather(*(caller.pipeline(pipeline) for caller in callers))
        assert all(end == [b"OK", b"moved", b"x"] * 10 for end in ends)
        for connection in cluster.nodes[1].connections:
            sent = connection.commands
            for at, words in enumerate(sent):
                asked = at > 0 and sent[at - 1] == [b"ASKING"]
                assert asked == (words[:2] == [b"GET", moving]), sent[max(0, at - 2) : at + 2]


@pytest.mark.parametrize("words", [(b"GET",), (b"SET", b"value")])
async def test_a_redirect_loop_ends(tmp_path: Path, words: tuple[bytes, ...]) -> None:
    """Two nodes that send a client to each other cost one error in time and no refresh storm."""
    cluster = FakeCluster(3)
    async with before(cluster, tmp_path) as sidecar:
        key = key_of(cluster, 0)
        slot = key_slot(key)

        def moved(to: int) -> bytes:
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, cluster.nodes[to].port)

        for index, node in enumerate(cluster.nodes):
            node.answers["GET"] = node.answers["SET"] = moved((index + 1) % 2)
        caller = await Caller.open(sidecar.port)
        asked, start = topology_requests(cluster), time.monotonic()
        for _ in range(4):
            reply, spent = await timed(caller, words[0], key, *words[1:])
            assert is_error(reply)
            assert not str(reply).startswith(("MOVED", "ASK"))
            assert spent <= DEADLINE + SLACK
        refreshes = (topology_requests(cluster) - asked) / 3
        assert refreshes <= 2 + 7 * (time.monotonic() - start)
        for node in cluster.nodes:
            node.answers.clear()
        await wait_for(lambda: _answers(caller, key), "the right answer")


async def _answers(caller: Caller, key: bytes) -> bool:
    return not is_error(await caller.call("GET", key))


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
@pytest.mark.parametrize("where", ["stranger", "nobody", "empty host", "nonsense"])
async def test_no_byte_of_data_leaves_the_cluster(tmp_path: Path, kind: str, where: str) -> None:
    """A redirect to an address that the cluster does not list is not followed."""
    cluster, stranger = FakeCluster(3), FakeNode()
    await stranger.start()
    try:
        async with before(cluster, tmp_path) as sidecar:
            key = key_of(cluster, 0)
            address = {
                "stranger": f"127.0.0.1:{stranger.port}",
                "nobody": "203.0.113.1:6379",
                "empty host": f":{stranger.port}",
                "nonsense": "not an address at all",
            }[where]
            line = f"-{kind} {key_slot(key)} {address}\r\n".encode()
            cluster.nodes[0].answers["SET"] = line
            caller = await Caller.open(sidecar.port)
            reply, spent = await timed(caller, b"SET", key, b"secret")
            assert is_error(reply)
            assert not str(reply).startswith(("MOVED", "ASK"))
            assert spent <= DEADLINE + SLACK
            assert not any(b"secret" in each.received for each in stranger.connections)
            cluster.nodes[0].answers.clear()
            assert await caller.call("SET", key, "value") == b"OK"
    finally:
        await stranger.stop()


async def test_a_node_with_a_foreign_identity_gets_no_data(tmp_path: Path) -> None:
    """An address that passed to a node of another cluster is recognised before any command."""
    cluster = FakeCluster(3)
    async with before(cluster, tmp_path) as sidecar:
        key = key_of(cluster, 0)
        caller = await Caller.open(sidecar.port)
        assert await caller.call("SET", key, "first") == b"OK"
        impostor = cluster.nodes[0]
        await impostor.stop()
        impostor.answers["CLUSTER MYID"] = b"$40\r\n" + b"e" * 40 + b"\r\n"
        impostor.connections.clear()
        await impostor.start()
        await wait_for(lambda: impostor.received("CLUSTER"), "the proxy to look at the node")
        reply, spent = await timed(caller, b"SET", key, b"secret")
        assert is_error(reply)
        assert spent <= 2 * DEADLINE
        assert not any(b"secret" in each.received for each in impostor.connections)


# What a node says when it ran the command and it failed: the client's to know, word for word.
PASSED = [
    b"-ERR something\r\n",
    b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    b"-BUSY Redis is busy running a script.\r\n",
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    b"-MISCONF Redis is configured to save RDB snapshots\r\n",
    b"-NOREPLICAS Not enough good replicas to write.\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-NOPERM this user has no permissions\r\n",
    b"-EXECABORT Transaction discarded\r\n",
    b"-BUSYKEY Target key name already exists.\r\n",
    b"-MOVEDX is no redirect\r\n",
]

# What a node says instead of running the command: the proxy's to overcome.
OVERCOME = [
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-MASTERDOWN Link with MASTER is down\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
]


async def test_errors_of_a_command_pass_word_for_word(tmp_path: Path) -> None:
    """Alone and inside a pipeline, for a read and for a write."""
    cluster = FakeCluster(3)
    async with before(cluster, tmp_path) as sidecar:
        key, other = key_of(cluster, 0), key_of(cluster, 1)
        caller = await Caller.open(sidecar.port)
        for count, line in enumerate(PASSED, 1):
            text = line[1:-2].decode()
            cluster.nodes[0].answers.update({"GET": line, "INCR": line})
            for command in ("GET", "INCR"):
                assert str(await caller.call(command, key)) == text
            replies = await caller.pipeline([("SET", other, 1), ("GET", key), ("GET", other)])
            assert [str(reply) for reply in replies] == ["b'OK'", text, "b'1'"]
            assert len(cluster.nodes[0].received("INCR")) == count


@pytest.mark.parametrize("line", OVERCOME, ids=lambda line: line.split()[0].decode())
async def test_refusals_of_a_moment_are_overcome(tmp_path: Path, line: bytes) -> None:
    """A node that could not run a command runs it a little later, once, and nobody notices."""
    cluster = FakeCluster(3)
    async with before(cluster, tmp_path) as sidecar:
        key = key_of(cluster, 0)
        refused = 0

        def script(connection: FakeConnection, words: list[bytes]) -> bytes | None:
            nonlocal refused
            if words[0] in (b"GET", b"INCR") and refused < 2:
                refused += 1
                return line
            return None

        for node in cluster.nodes:
            node.script = script
        caller = await Caller.open(sidecar.port)
        assert await caller.pipeline([("INCR", key), ("GET", key)]) == [1, b"1"]
        refused = -1_000_000
        reply, spent = await timed(caller, b"INCR", key)
        assert is_error(reply)
        assert spent <= DEADLINE + SLACK
        for node in cluster.nodes:
            node.script = None
        assert cluster.nodes[0].values[key] == b"1"


async def test_a_write_that_may_have_run_is_never_repeated(tmp_path: Path) -> None:
    """A node that dies behind an INCR: the client hears that the outcome is unknown, once."""
    cluster = FakeCluster(1)
    async with before(cluster, tmp_path) as sidecar:
        caller = await Caller.open(sidecar.port)
        for number in range(1, 6):
            cluster.nodes[0].answers["INCR"] = Answer(b"", close="reset")
            reply = await caller.call("INCR", "count")
            assert is_error(reply)
            assert "unknown" in str(reply)
            assert len(cluster.nodes[0].received("INCR")) == number
            cluster.nodes[0].answers.clear()
            await wait_for(lambda: _answers(caller, b"count"), "service after the reset")


@pytest.mark.parametrize("size", [100, 64 * 1024])
async def test_a_reply_that_is_cut_is_never_patched(tmp_path: Path, size: int) -> None:
    """A node that dies inside a reply: the client gets the whole of it, or an error instead."""
    cluster = FakeCluster(1)
    async with before(cluster, tmp_path) as sidecar:
        value = b"v" * size
        whole = b"$%d\r\n%b\r\n" % (size, value)
        # All around head and end where that is quick; a large one has the same of each.
        head, end = ([*range(1, 12)], 4) if size < 1024 else ([1, whole.index(b"\n") + 1], 1)
        offsets = [*head, size // 2, *range(len(whole) - end, len(whole))]
        caller = await Caller.open(sidecar.port)
        for offset in offsets:
            cut = iter([Answer(whole[:offset], close="reset")])
            cluster.nodes[0].answers["GET"] = lambda *_: next(cut, Answer(whole))  # noqa: B023
            reply, spent = await timed(caller, b"GET", b"key")
            assert reply == value or is_error(reply), offset
            assert spent <= DEADLINE + SLACK
            cluster.nodes[0].answers["GET"] = whole
            await wait_for(lambda: _reads(caller, value), "service after the cut")


async def _reads(caller: Caller, value: bytes) -> bool:
    return await caller.call("GET", "key") == value


LIES = {
    "two replies": b"$1\r\na\r\n$1\r\nb\r\n",
    "no reply of Redis": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "lax number": b"$+1\r\na\r\n",
    "wrong end": b"$1\r\naXY",
    "huge array": b"*2000000000\r\n",
    "huge string": b"$536870912\r\n",
    "huge map": b"%2000000000\r\n",
    "nested": b"*1\r\n" * 20_000,
    "digits": b"$" + b"9" * 100_000 + b"\r\n",
    "silence": b"",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_node_out_of_step_harms_nobody(tmp_path: Path, lie: str) -> None:
    """What is no reply, or one too many, ends that connection; the next answer is right again."""
    cluster = FakeCluster(1)
    async with before(cluster, tmp_path) as sidecar:
        callers = [await Caller.open(sidecar.port) for _ in range(5)]
        for number, caller in enumerate(callers):
            assert await caller.call("SET", f"own:{number}", number) == b"OK"
        memory = resident_bytes(sidecar.pid)
        cluster.nodes[0].answers["GET"] = LIES[lie]
        reply, spent = await timed(callers[0], b"GET", b"own:0")
        assert spent <= DEADLINE + SLACK
        assert reply == b"a" if lie == "two replies" else is_error(reply)
        liars = [each for each in cluster.nodes[0].connections if each.asked(b"GET")]
        await wait_for(lambda: not any(each.open for each in liars), "the end of the connection")
        cluster.nodes[0].answers.clear()
        for number, caller in enumerate(callers):
            await wait_for(lambda c=caller, n=number: _own(c, n), "the right answer")
        assert resident_bytes(sidecar.pid) - memory <= 2 * MIB


async def _own(caller: Caller, number: int) -> bool:
    """Return whether a client gets its own value; anything but an error must be it."""
    reply = await caller.call("GET", f"own:{number}")
    assert is_error(reply) or reply == b"%d" % number, reply
    return not is_error(reply)


async def test_pushes_between_replies_are_nobodys(tmp_path: Path) -> None:
    """A push of a node is read and dropped, and no client takes it for its reply."""
    cluster = FakeCluster(1)
    async with before(cluster, tmp_path) as sidecar:
        push = b">2\r\n+invalidate\r\n*1\r\n$3\r\nkey\r\n"
        cluster.nodes[0].answers["GET"] = push + b"$1\r\nv\r\n" + push
        caller = await Caller.open(sidecar.port)
        assert await caller.pipeline([("GET", "key")] * 20) == [b"v"] * 20
