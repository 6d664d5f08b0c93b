"""Scans over both clusters with real clients, and while slots move and nodes change their roles."""

import asyncio
import random
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from proxy.embedded.redis import Shape
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters, StartCluster
from tests.integration.rig import Caller, Mover, StartProxy, is_error, wait_for

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  seat:
    {key: "seat:{event}:{seat}", cluster: locks, hash_tag: event, kind: state, ttl: {default: 600s}}
  session: {key: "session:{id}", cluster: locks}
  jobs: {key: "jobs:{rest:path}", cluster: cache, hash_tag: {literal: jobs}}
"""

PATTERNS = ["seat:e1:*", "jobs:1*", "*:17", "{t1}*", "session:55", "s*", "[jp]*1", "nosuch*"]


def names(count: int) -> list[bytes]:
    """Return keys of every kind: renamed or not, with tags of their own, in both clusters."""
    return [
        name
        for number in range(count // 5)
        for name in (
            b"seat:e%d:%d" % (number % 50, number),
            b"session:%d" % number,
            b"jobs:%d" % number,
            b"plain:%d" % number,
            b"{t%d}x:%d" % (number % 7, number),
        )
    ]


async def fill(port: int, keys: list[bytes]) -> None:
    caller = await Caller.open(port)
    for start in range(0, len(keys), 1000):
        replies = await caller.pipeline([["SET", key, "v"] for key in keys[start : start + 1000]])
        assert not any(map(is_error, replies))
    caller.close()


@pytest.fixture
async def filled(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> tuple[Sidecar, list[bytes]]:
    """A proxy with keyspaces that rename, in front of 20,000 keys in two clusters."""
    (tmp_path / "rules.yaml").write_text(RULES)
    users = {
        "default": {"nopass": True},
        "other": {"password": "secret"},
    }
    sidecar = await proxy_process(policies=str(tmp_path / "rules.yaml"), users=users)
    keys = names(20_000)
    await fill(sidecar.port, keys)
    # What the proxy keeps for itself, and what somebody wrote past it.
    node = await Caller.open(empty_clusters.locks.primaries[0].port)
    for number in range(50):
        await node.call("SET", f"sidecache:{number}", "v")
        await node.call("SET", f"seat:e1:past{number}", "v")
    node.close()
    return sidecar, keys


@pytest.mark.parametrize("protocol", [2, 3])
async def test_every_key_of_both_clusters_once(
    filled: tuple[Sidecar, list[bytes]], protocol: int
) -> None:
    """A scan shows 20,000 keys of two clusters, each once, under its client's name."""
    sidecar, keys = filled
    async with Redis(port=sidecar.port, protocol=protocol) as client:
        for count in (7, 1000):
            seen = [key async for key in client.scan_iter(count=count)]
            assert sorted(seen) == sorted(keys)
        for pattern in PATTERNS:
            seen = [key async for key in client.scan_iter(match=pattern, count=500)]
            fit = [key for key in keys if fnmatchcase(key.decode(), pattern)]
            assert sorted(seen) == sorted(fit), pattern
        assert [key async for key in client.scan_iter(count=1000, _type="hash")] == []
        assert sorted(await client.keys("*")) == sorted(keys)
        assert await client.randomkey() in set(keys)


async def test_a_cursor_of_another_user(filled: tuple[Sidecar, list[bytes]]) -> None:
    """What one user began, another cannot go on with; nor anybody after another MATCH."""
    sidecar, _ = filled
    async with (
        Redis(port=sidecar.port) as client,
        Redis(port=sidecar.port, username="other", password="secret") as other,
    ):
        cursor, _ = await client.scan(0)
        for foreign in (other.scan(cursor), client.scan(cursor, match="a*"), client.scan(5)):
            with pytest.raises(ResponseError, match="invalid cursor"):
                await foreign
        following, _ = await client.scan(cursor)
        assert following not in (0, cursor)


async def test_redis_cli(redis_cli: str, filled: tuple[Sidecar, list[bytes]]) -> None:
    """redis-cli lists all keys and finds the biggest ones."""
    sidecar, keys = filled

    async def run(*flags: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            redis_cli, "-p", str(sidecar.port), *flags, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return out

    assert sorted((await run("--scan")).split()) == sorted(keys)
    assert sorted((await run("--scan", "--pattern", "seat:e3:*")).split()) == sorted(
        key for key in keys if key.startswith(b"seat:e3:")
    )
    assert b"Sampled 20000 keys in the keyspace!" in await run("--bigkeys")


async def test_flush_spares_the_locks(filled: tuple[Sidecar, list[bytes]]) -> None:
    """FLUSHALL empties the cache on every primary, and never what holds locks."""
    sidecar, keys = filled
    kept = sorted(key for key in keys if key.startswith((b"seat:", b"session:")))
    async with Redis(port=sidecar.port) as client:
        assert await client.flushall(asynchronous=True)
        assert sorted([key async for key in client.scan_iter(count=1000)]) == kept


class Shifter:
    """Moves slots that hold keys round the primaries until it is told to stop."""

    def __init__(self, mover: Mover, slots: list[int]) -> None:
        self.mover = mover
        self.slots = slots
        self.moved = 0

    async def run(self, until: asyncio.Event) -> None:
        owners, nodes = await self.mover.owners(), self.mover.cluster.primaries
        while not until.is_set():
            for source in nodes:
                target = nodes[(nodes.index(source) + 1) % len(nodes)]
                await self.mover.settle()
                chosen = [slot for slot in self.slots if owners[slot] is source]
                for slot in random.sample(chosen, min(20, len(chosen))):
                    await self.mover.move(slot, source, target)
                    owners[slot] = target
                    self.moved += 1


async def test_nothing_is_missed_while_slots_move(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Scan after scan sees every key, while its slots go round the nodes."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    keys = [b"{%d}:%d" % (number % 60, number) for number in range(3000)]
    await fill(sidecar.port, keys)
    mover, until = Mover(cluster), asyncio.Event()
    await mover.open()
    slots = sorted({int(await mover.ask(cluster.primaries[0], "CLUSTER", "KEYSLOT", key))
                    for key in keys[:60]})  # fmt: skip
    shifter = Shifter(mover, slots)
    moving = asyncio.create_task(shifter.run(until))
    scans = 0
    try:
        async with Redis(port=sidecar.port) as client:
            while scans < 5 or shifter.moved < 100:
                seen = [key async for key in client.scan_iter(count=20)]
                assert set(seen) == set(keys), f"scan {scans}, after {shifter.moved} slots"
                scans += 1
                assert set(await client.keys("*")) == set(keys)
    finally:
        until.set()
        await moving
        mover.close()
    print(f"\n{scans} scans, {shifter.moved} slots")


async def test_a_slot_that_stays_open(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A slot with keys at both ends is read at both, as often as it is asked."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    keys = [b"{k}:%d" % number for number in range(100)] + [b"x:%d" % n for n in range(300)]
    await fill(sidecar.port, keys)
    mover = Mover(cluster)
    await mover.open()
    slot = int(await mover.ask(cluster.primaries[0], "CLUSTER", "KEYSLOT", "k"))
    source = (await mover.owners())[slot]
    target = next(node for node in cluster.primaries if node is not source)
    await mover.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    await mover.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    some = await mover.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 50)
    await mover.ask(source, "MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *some)
    async with Redis(port=sidecar.port) as client:
        for _ in range(2):
            assert sorted([key async for key in client.scan_iter(count=20)]) == sorted(keys)
        assert len(await client.keys("{k}*")) == 100
    mover.close()


async def test_a_failover_amid_a_scan(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A replica takes over while its primary is read, and every key is still seen."""
    cluster = await start_cluster(shape=Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    keys = [b"key:%d" % number for number in range(3000)]
    await fill(sidecar.port, keys)
    owners = await _owners(cluster)
    for primary in list(cluster.primaries):
        (replica,) = await cluster.replicas_of(primary)
        await _in_sync(primary, replica)
        async with Redis(port=sidecar.port) as client:
            cursor: Any = 0
            seen: set[bytes] = set()
            pages = 0
            while pages == 0 or cursor != 0:
                cursor, page = await client.scan(cursor, count=50)
                seen.update(page)
                pages += 1
                if pages == 10:
                    promoted = await Caller.open(replica.port)
                    assert await promoted.call("CLUSTER", "FAILOVER", "TAKEOVER") == b"OK"
                    promoted.close()
            assert seen == set(keys)
        await cluster.refresh()
    assert owners != await _owners(cluster)


async def _owners(cluster: Any) -> set[str]:
    await cluster.refresh()
    return {node.id for node in cluster.primaries}


async def _in_sync(primary: Any, replica: Any) -> None:
    one, other = await Caller.open(primary.port), await Caller.open(replica.port)

    async def same() -> bool:
        return bool(await one.call("DBSIZE") == await other.call("DBSIZE"))

    await wait_for(same, "the replica's copy")
    one.close()
    other.close()
