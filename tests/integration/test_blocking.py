"""Clients that wait or watch while primaries die and slots move."""

import asyncio
import contextlib
import time

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Cluster, Shape
from proxy.embedded.sidecar import Sidecar
from tests.conftest import StartCluster
from tests.fakenode import key_slot
from tests.integration.rig import (
    Caller,
    Mover,
    StartProxy,
    is_error,
    keys_on,
    wait_for,
)
from tests.integration.test_failover import NODE_TIMEOUT
from tests.replies import pack

pytestmark = pytest.mark.integration


async def waits(sidecar: Sidecar, count: int) -> None:
    """Wait until so many clients have a connection of their own to wait on."""

    async def shown() -> bool:
        _, page = await sidecar.get("/metrics")
        return f'sidecache_pins{{use="blocked"}} {count}.0\n' in page

    await wait_for(shown, f"{count} waits")


async def waiting(sidecar: Sidecar, *commands: list[str]) -> list[Caller]:
    """Return a client that waits for each command."""
    callers = []
    for number, words in enumerate(commands, 1):
        caller = await Caller.open(sidecar.port)
        await caller.call("HELLO", 2 + number % 2)
        caller.writer.write(pack(*words))
        callers.append(caller)
    await waits(sidecar, len(commands))
    return callers


async def push(port: int, *words: str) -> None:
    """Write through the proxy, as soon as it takes it."""
    caller = await Caller.open(port)

    async def taken() -> bool:
        return not is_error(await caller.call(*words))

    await wait_for(taken, "the write", 30.0)
    caller.close()


async def test_a_slot_moves_while_clients_wait(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """They wait on at the new owner, and get what is pushed there."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    (key,) = await keys_on(cluster, cluster.primaries[0], 1)
    stream = f"{{{key}}}stream"
    callers = await waiting(
        sidecar, ["BLPOP", key, "0"], ["BLPOP", key, "30"],
        ["XREAD", "BLOCK", "0", "STREAMS", stream, "$"],
    )  # fmt: skip
    mover = Mover(cluster)
    await mover.open()
    source, target = cluster.primaries[:2]
    await mover.settle()
    await mover.move(key_slot(key.encode()), source, target)
    mover.close()
    await push(sidecar.port, "RPUSH", key, "a", "b")
    await push(sidecar.port, "XADD", stream, "1-1", "f", "v")
    assert sorted([(await caller.next())[1] for caller in callers[:2]]) == [b"a", b"b"]
    assert "1-1" in str(await callers[2].next())
    await waits(sidecar, 0)


async def test_a_primary_steps_down_while_clients_wait(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """CLUSTER FAILOVER sends every client that waits to the new primary, with the time left."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    primary = cluster.primaries[0]
    (key,) = await keys_on(cluster, primary, 1)
    (replica,) = await cluster.replicas_of(primary)
    commands = [["BLPOP", key, "0"], ["BRPOP", key, "20"], ["BLMPOP", "0", "1", key, "LEFT"]]
    callers = await waiting(sidecar, *commands)
    await replica.ask("CLUSTER", "FAILOVER")

    async def promoted() -> bool:
        await cluster.refresh()
        return replica.role == "primary"

    await wait_for(promoted, "the failover")
    await push(sidecar.port, "RPUSH", key, "a", "b", "c")
    replies = [await caller.next() for caller in callers]
    assert not any(is_error(reply) for reply in replies), replies
    await waits(sidecar, 0)


async def kill_under_waits(cluster: Cluster, sidecar: Sidecar, count: int) -> float:
    """Kill a primary on which clients wait; return the seconds until all are answered or wait."""
    primary = cluster.primaries[0]
    (key,) = await keys_on(cluster, primary, 1)
    stream = f"{{{key}}}stream"
    pops = await waiting(sidecar, *[["BLPOP", key, "0"]] * count)
    reader = await Caller.open(sidecar.port)
    reader.writer.write(pack("XREAD", "BLOCK", "0", "STREAMS", stream, "$"))
    await waits(sidecar, count + 1)
    start = time.monotonic()
    primary.kill()
    replies = await asyncio.gather(*(caller.next() for caller in pops))
    seconds = time.monotonic() - start
    assert all("Outcome unknown" in str(reply) for reply in replies), replies
    await push(sidecar.port, "XADD", stream, "*", "field", "value")
    assert "field" in str(await reader.next(30.0))
    await primary.restart()
    await cluster.wait_ready()
    return seconds


async def test_a_primary_dies_while_clients_wait(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Pops end in an unknown outcome at once; a read goes on at the replica that takes over."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    seconds = await kill_under_waits(cluster, sidecar, 20)
    print(f"\n20 pops answered {seconds * 1000:.0f} ms after the kill")
    assert seconds < 1.0


async def test_a_primary_freezes_while_clients_wait(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A wait without end on a node that says nothing ends when another node has its slots."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    primary = cluster.primaries[0]
    (key,) = await keys_on(cluster, primary, 1)
    (caller,) = await waiting(sidecar, ["BLPOP", key, "0"])
    primary.pause()
    try:
        assert "Outcome unknown" in str(await caller.next(30.0))
    finally:
        primary.resume()
    with contextlib.suppress(AssertionError):
        await cluster.wait_ready()


async def test_a_killed_client_takes_no_element(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """What is pushed behind CLIENT KILL, in the same pipeline, stays in its list."""
    sidecar = await proxy_process({"cache": await start_cluster(shape=Shape(3, 0))})
    caller = await Caller.open(sidecar.port)
    for number in range(20):
        (waiter,) = await waiting(sidecar, ["BLPOP", f"list:{number}", "0"])
        push = ("RPUSH", f"list:{number}", "kept")
        assert await caller.pipeline([("CLIENT", "KILL", "TYPE", "normal"), push]) == [1, 1]
        assert await caller.call("LRANGE", f"list:{number}", 0, -1) == [b"kept"]
        waiter.close()
