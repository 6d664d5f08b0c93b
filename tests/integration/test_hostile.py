"""Clients that mean harm or behave oddly: their cost is bounded, and what they sent counts."""

import asyncio
import contextlib
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator

import pytest

from proxy.embedded.node import Node
from proxy.embedded.process import temporary_directory
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.conftest import Clusters
from tests.integration.rig import (
    Caller,
    StartProxy,
    cpu_seconds,
    descriptors,
    is_error,
    keys_on,
    limit_descriptors,
    resident_bytes,
    wait_for,
)
from tests.quiet import Stopwatch, without_collector
from tests.replies import pack

pytestmark = pytest.mark.integration

KIB, MIB = 1024, 1024 * 1024

# What Redis reads as the start of something huge, and what no Redis client ever sends.
BOMBS = {
    "count": b"*2000000\r\n",
    "largest count": b"*2147483647\r\n",
    "legal count": b"*1000000\r\n",
    "length": b"*1\r\n$536870912\r\n",
    "too long": b"*1\r\n$4294967296\r\n",
    "map": b"%2000000\r\n",
    "set": b"~2000000\r\n",
    "push": b">2000000\r\n",
    "nested": b"*1\r\n" * 20_000,
    "digits": b"*" + b"9" * 100_000 + b"\r\n",
    "bulk digits": b"*1\r\n$" + b"1" * 100_000 + b"\r\n",
    "many of one": b"*1000000\r\n" + b"$1\r\na\r\n" * 10,
}

# These are within what Redis takes, which reads the last three as lines of unknown commands: the
# connection may stay open.
PATIENT = {"legal count", "length", "many of one", "map", "set", "push"}


@contextlib.asynccontextmanager
async def canary(sidecar: Sidecar) -> AsyncIterator[list[float]]:
    """Measure an innocent client's PING all the while."""
    latencies: list[float] = []
    until = asyncio.Event()

    async def ping() -> None:
        caller = await Caller.open(sidecar.port)
        while not until.is_set():
            watch = Stopwatch(sidecar.pid)
            await caller.call("PING")
            latencies.append(watch.spent)
            await asyncio.sleep(0.002)
        caller.close()

    task = asyncio.create_task(ping())
    await wait_for(lambda: latencies, "the first reply")
    try:
        with without_collector():
            yield latencies
    finally:
        until.set()
        await task


async def opened(port: int, count: int) -> list[Caller]:
    """Return connections that have been used once, opened a few at a time."""
    callers: list[Caller] = []
    while len(callers) < count:
        some = await asyncio.gather(
            *(Caller.open(port) for _ in range(min(100, count - len(callers))))
        )
        await asyncio.gather(*(caller.call("PING") for caller in some))
        callers += some
    return callers


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_header_allocates_nothing(proxy: Sidecar, bomb: str) -> None:
    """200 connections that announce the impossible cost what they sent, and nobody stalls."""
    callers = await opened(proxy.port, 200)
    before = resident_bytes(proxy.pid)
    async with canary(proxy) as latencies:
        for caller in callers:
            caller.writer.write(BOMBS[bomb])
        if bomb in PATIENT:
            await wait_for(lambda: len(latencies) > 50, "fifty replies")
        else:
            ends = await asyncio.gather(*(caller.rest() for caller in callers))
            assert all(end and is_error(end[0]) for end in ends), ends[0]
        grown = resident_bytes(proxy.pid) - before
    print(f"\n{bomb}: {grown / KIB:.0f} KiB, slowest PING {max(latencies) * 1000:.1f} ms")
    for caller in callers:
        caller.close()
    sent = len(BOMBS[bomb]) * 200 if len(BOMBS[bomb]) > 4 * KIB else 0
    assert grown <= MIB + (sent if bomb in PATIENT else 0)
    assert max(latencies) <= 0.1


async def test_what_is_refused_is_not_kept(proxy: Sidecar) -> None:
    """200 MiB for a key that nobody may write are refused at their beginning and cost no memory."""
    caller, size = await Caller.open(proxy.port), 200 * MIB
    before = most = resident_bytes(proxy.pid)
    caller.writer.write(b"*3\r\n$3\r\nSET\r\n$16\r\nsidecache:lease:\r\n$%d\r\n" % size)
    assert is_error(await caller.next())
    for _ in range(size // MIB):
        caller.writer.write(b"x" * MIB)
        await caller.writer.drain()
        most = max(most, resident_bytes(proxy.pid))
    caller.writer.write(b"\r\n" + pack("PING"))
    assert await caller.next() == b"PONG"
    print(f"\n200 MiB: {(most - before) / MIB:+.1f} MiB")
    assert most - before <= 2 * MIB


async def unread(sidecar: Sidecar, nodes: list[Node], clients: int) -> tuple[int, int]:
    """Let clients ask for 2,000 MiB each and read nothing; return what grew here and in Redis."""
    caller = await Caller.open(sidecar.port)
    assert await caller.call("SET", "large", b"x" * MIB) == b"OK"
    caller.close()
    request = pack("GET", "large") * 2000
    before = resident_bytes(sidecar.pid)
    redis = sum(resident_bytes(node.pid) for node in nodes)
    sockets = []
    for _ in range(clients):
        greedy = socket.socket()
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", sidecar.port))
        greedy.setblocking(False)
        greedy.send(request)
        sockets.append(greedy)
    highest = most = 0
    async with canary(sidecar) as latencies:
        while len(latencies) < 400:
            highest = max(highest, resident_bytes(sidecar.pid) - before)
            most = max(most, sum(resident_bytes(node.pid) for node in nodes) - redis)
            await asyncio.sleep(0.01)
    ordered = sorted(latencies)
    print(
        f"\n{clients} clients that never read: proxy +{highest / MIB:.1f} MiB, Redis "
        f"+{most / MIB:.1f} MiB, PING of another p99 {ordered[-len(ordered) // 100] * 1000:.1f} ms"
    )
    for greedy in sockets:
        greedy.close()
    return highest, most


async def test_unread_replies_cost_a_fixed_amount(
    empty_clusters: Clusters, proxy_process: StartProxy
) -> None:
    """46 kB of requests whose 2 GB of replies nobody reads."""
    sidecar = await proxy_process()
    nodes = [*empty_clusters.locks.nodes, *empty_clusters.cache.nodes]
    ours, redis = await unread(sidecar, nodes, 1)
    assert ours <= 8 * MIB
    assert redis <= 32 * MIB


@pytest.mark.parametrize("delay", [0.0, 0.5])
@pytest.mark.usefixtures("empty_clusters")
async def test_half_closed_clients_get_every_reply(proxy: Sidecar, delay: float) -> None:
    """20,000 GETs, then the end of the stream: 20,000 replies, also for a late reader."""
    caller = await Caller.open(proxy.port)
    assert await caller.call("SET", "kilobyte", b"k" * KIB) == b"OK"
    caller.writer.write(pack("GET", "kilobyte") * 20_000)
    caller.writer.write_eof()
    start = time.monotonic()
    await wait_for(lambda: time.monotonic() - start >= delay, "the reader's delay")
    replies = await caller.rest(30.0)
    assert len(replies) == 20_000
    assert set(replies) == {b"k" * KIB}
    caller.close()


async def in_flight(sidecar: Sidecar, connections: int, depth: int) -> tuple[int, float]:
    """Send SIGTERM with pipelines under way; return how many were answered in full, and seconds."""
    callers = await opened(sidecar.port, connections)
    for number, caller in enumerate(callers):
        caller.writer.write(pack("GET", f"key:{number}") * depth)
    # The requests are accepted once the proxy has read them: that is what drain promises.
    await asyncio.gather(*(caller.next() for caller in callers))
    start = time.monotonic()
    sidecar.child.send(signal.SIGTERM)
    ends = await asyncio.gather(*(caller.rest(15.0) for caller in callers))
    assert await sidecar.child.wait_exit(15.0)
    for caller in callers:
        caller.close()
    complete = sum(
        len(end) == depth - 1 and not any(is_error(value) for value in end) for end in ends
    )
    return complete, time.monotonic() - start


async def test_sigterm_loses_nothing(proxy_process: StartProxy) -> None:
    """200 connections with 50 requests each in flight all get all replies; exit code 0."""
    sidecar = await proxy_process()
    complete, seconds = await in_flight(sidecar, 200, 50)
    print(f"\n{complete} of 200 connections complete, exit after {seconds:.2f} s")
    assert complete == 200
    assert seconds <= 10.0
    assert sidecar.child.exit_code == 0


async def test_running_out_of_descriptors_is_boring(
    empty_clusters: Clusters, both_clusters: dict[str, Cluster]
) -> None:
    """2,000 connects against 512 descriptors: clients inside go on, and room is used at once."""
    with temporary_directory("sidecache-test-") as folder:
        sidecar = Sidecar(configuration_for(both_clusters), folder)
        limit_descriptors(sidecar, 512)
        async with sidecar:
            await exhaust(sidecar, empty_clusters.locks)


async def exhaust(sidecar: Sidecar, cluster: Cluster) -> None:
    pid = sidecar.pid
    (key,) = await keys_on(cluster, cluster.primaries[0], 1)
    inside = await Caller.open(sidecar.port)
    await inside.call("GET", key)
    async with canary(sidecar) as latencies:
        alone = await gathered(latencies, 100)
        crowd = []
        for _ in range(2000):
            stranger = socket.socket()
            stranger.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stranger.connect(("127.0.0.1", sidecar.port))
            crowd.append(stranger)
        start, used = time.monotonic(), cpu_seconds(pid)
        crowded = await gathered(latencies, 500)
        share = (cpu_seconds(pid) - used) / (time.monotonic() - start)
        held = descriptors(pid)
        # Its connections to the nodes are lost now, of all moments, and come back all the same.
        for node in cluster.primaries:
            await node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        reconnected = await wait_for(lambda: serves(inside, key), "service", 3.0)
        for stranger in crowd:
            stranger.close()
        relief = await wait_for(lambda: accepts(sidecar.port), "a new client", 3.0)
    print(
        f"\n{held} descriptors of 512; CPU {share:.0%} of a core; p99 {alone * 1000:.2f} ms alone, "
        f"{crowded * 1000:.2f} ms crowded; nodes again after {reconnected:.2f} s, new clients "
        f"{relief:.3f} s after relief"
    )
    inside.close()
    assert held <= 512
    assert share <= 0.25  # the innocent client's own PINGs are a part of it
    assert reconnected <= 1.0
    assert relief <= 0.5


async def gathered(latencies: list[float], count: int) -> float:
    """Return the 99th percentile of the next measurements."""
    first = len(latencies)
    await wait_for(lambda: len(latencies) >= first + count, "measurements", 30.0)
    return sorted(latencies[first:])[-max(1, count // 100)]


async def serves(caller: Caller, key: str) -> bool:
    return not is_error(await caller.call("GET", key))


async def accepts(port: int) -> bool:
    try:
        caller = await Caller.open(port)
        try:
            return await caller.call("PING") in ("PONG", b"PONG")
        finally:
            caller.close()
    except OSError:
        return False


def allow_descriptors(count: int) -> None:
    """Raise our own limit; the machine's hard limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"this machine allows {hard} descriptors, {count} are needed")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def idle(sidecar: Sidecar, count: int) -> float:
    """Return how many bytes each of many idle connections costs that were used once."""
    for caller in await opened(sidecar.port, 100):  # what is allocated once is not theirs
        caller.close()
    await wait_for(lambda: descriptors(sidecar.pid) < 100, "the first clients to be gone")
    before = resident_bytes(sidecar.pid)
    start = time.monotonic()
    callers = await opened(sidecar.port, count)
    seconds = time.monotonic() - start
    each = (resident_bytes(sidecar.pid) - before) / count
    answers = await asyncio.gather(*(caller.call("PING") for caller in callers))
    assert len(answers) == count
    print(f"\n{count} idle connections: {each:.0f} bytes each, connected in {seconds:.1f} s")
    for caller in callers:
        caller.close()
    return each


async def test_an_idle_connection_costs_little(proxy_process: StartProxy) -> None:
    """A thousand clients that sent one PING each cost at most 6 kB each."""
    allow_descriptors(2500)
    assert await idle(await proxy_process(), 1000) <= 6000
