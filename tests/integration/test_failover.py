"""A primary dies or freezes under load: explicit errors, then service again, and honest counts."""

import asyncio
import random
import time
from pathlib import Path

import pytest

from proxy.embedded.node import Node, NodeOptions
from proxy.embedded.redis import Cluster, Shape
from proxy.embedded.sidecar import Sidecar, cluster_block
from tests.conftest import StartCluster
from tests.integration.rig import (
    Caller,
    StartProxy,
    front_of,
    is_error,
    keys_on,
    start_unready,
    wait_for,
)
from tests.integration.workers import Counters, Outcome
from tests.quiet import Stopwatch

pytestmark = pytest.mark.integration

# How long the cluster takes a silent node for alive; the proxy has no part in it.
NODE_TIMEOUT = 1.0  # seconds

# What the proxy may add to the cluster's own promotion of a replica.
BACK_WITHIN = 0.25  # seconds

DEADLINE = 0.5  # seconds of a request
SLACK = 0.1


async def writable(node: Node, key: str) -> bool:
    """Return whether a node, asked directly, takes a write for a key."""
    try:
        caller = await Caller.open(node.port)
    except OSError:
        return False
    try:
        return await caller.call("SET", key, "probe") == b"OK"
    except OSError:
        return False
    finally:
        caller.close()


async def served(caller: Caller, key: str) -> bool:
    return not is_error(await caller.call("SET", key, "probe"))


async def kill_primary(
    cluster: Cluster, primary: Node, port: int, seed: int
) -> tuple[Counters, float, float]:
    """Kill a primary under counters; return the books, and when its slots were back where.

    The two times are seconds after the kill: on the promoted replica asked directly, and through
    the proxy.
    """
    (replica,) = await cluster.replicas_of(primary)
    keys = await keys_on(cluster, primary, 30)
    probe, counted = keys[0], keys[1:]
    caller = await Caller.open(port)
    for key in counted:
        await caller.call("DEL", key)
    counters, until = Counters(port, counted, Outcome()), asyncio.Event()
    load = [asyncio.create_task(counters.run(seed + n, until, 0.002)) for n in range(20)]
    await wait_for(lambda: counters.outcome.operations > 500, "load")
    start = time.monotonic()
    primary.kill()

    async def back(condition: asyncio.Task[float]) -> float:
        await condition
        return time.monotonic() - start

    direct = asyncio.create_task(wait_for(lambda: writable(replica, probe), "promotion", 30.0))
    through = asyncio.create_task(wait_for(lambda: served(caller, probe), "service", 30.0))
    promoted, returned = await asyncio.gather(back(direct), back(through))
    count = counters.outcome.operations
    await wait_for(lambda: counters.outcome.operations > count + 500, "load after the failover")
    until.set()
    await asyncio.gather(*load)
    caller.close()
    return counters, promoted, returned


async def fail_over(cluster: Cluster, port: int, primary: Node, seed: int) -> None:
    """Kill one primary, judge what clients saw, and bring the node back as a replica."""
    counters, promoted, returned = await kill_primary(cluster, primary, port, seed)
    outcome = counters.outcome
    lost, unknown, wrong = await counters.books(port)
    print(
        f"\nseed {seed}: {primary.name} killed; replica writable after {promoted:.2f} s, proxy "
        f"after {returned:.2f} s; {lost} acknowledged lost by replication, {unknown} unknown; "
        f"{outcome}"
    )
    assert not wrong
    assert returned <= promoted + BACK_WITHIN
    assert outcome.closed == 0  # an error is no reason to close a client's connection
    assert not any("Error " in name for name in outcome.errors), outcome.errors
    await primary.restart()
    await cluster.wait_ready()


async def test_a_killed_primary_is_replaced(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Errors are explicit, service returns with the replica, no addition is counted twice."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    seed = random.SystemRandom().randrange(1_000_000)
    await fail_over(cluster, sidecar.port, cluster.primaries[0], seed)


async def test_a_frozen_node_holds_no_request_beyond_its_deadline(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    """Every request to a node that is stopped ends in time; other nodes serve as before."""
    cluster = await start_cluster(NodeOptions(node_timeout=30.0), Shape(3, 0))
    block = {**cluster_block(cluster), "timeout": f"{DEADLINE * 1000:.0f}ms"}
    async with front_of({"locks": block, "cache": block}, tmp_path) as sidecar:
        await freeze(cluster, sidecar)


async def freeze(cluster: Cluster, sidecar: Sidecar) -> None:
    frozen, *others = cluster.primaries
    stuck, fine = await keys_on(cluster, frozen, 1), await keys_on(cluster, others[0], 1)
    callers = [await Caller.open(sidecar.port) for _ in range(20)]
    await asyncio.gather(*(caller.call("GET", stuck[0]) for caller in callers))
    frozen.pause()
    try:
        spent = await asyncio.gather(
            *(timed(sidecar.pid, caller, stuck[0], 5) for caller in callers[:15])
        )
        alive = await asyncio.gather(
            *(timed(sidecar.pid, caller, fine[0], 5) for caller in callers[15:])
        )
    finally:
        frozen.resume()
    longest, normal = max(map(max, spent)), max(map(max, alive))
    print(f"\nlongest request to the frozen node {longest:.3f} s, to another {normal:.3f} s")
    assert longest <= DEADLINE + SLACK
    assert normal <= DEADLINE / 2
    await wait_for(lambda: served(callers[0], stuck[0]), "service after the thaw", 5.0)
    for caller in callers:
        caller.close()


async def timed(pid: int | None, caller: Caller, key: str, count: int) -> list[float]:
    """Return how long each of some requests took to be answered, by whatever."""
    spent = []
    for _ in range(count):
        watch = Stopwatch(pid)
        await caller.call("GET", key)
        spent.append(watch.spent)
    return spent


async def test_started_while_everything_is_down(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """The proxy listens and greets without Redis, refuses keys, and serves once Redis is up."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    await sidecar.child.stop()
    for node in cluster.nodes:
        node.kill()
    await start_unready(sidecar)
    caller = await Caller.open(sidecar.port)
    assert await caller.call("PING") in (b"PONG", "PONG")
    assert not is_error(await caller.call("HELLO", 3))
    assert not is_error(await caller.call("CLIENT", "SETNAME", "early"))
    watch = Stopwatch(sidecar.pid)
    refused = await caller.call("GET", "key")
    assert is_error(refused)
    assert watch.spent < 1.5
    assert (await sidecar.get("/livez"))[0] == 200
    for node in cluster.nodes:
        await node.restart()
    await cluster.wait_ready()
    recovered = await wait_for(lambda: served(caller, "key"), "service", 5.0)
    print(f"\nrefused with {refused}; served {recovered:.2f} s after the cluster was ready")
    caller.close()
