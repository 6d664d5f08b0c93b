"""Transactions over real clusters: the replies of one Redis, and whole whatever happens."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from proxy.embedded.node import Node, NodeOptions
from proxy.embedded.redis import SLOTS, Cluster, Shape
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters, StartCluster
from tests.fakenode import key_slot
from tests.integration.ledger import Ledger
from tests.integration.rig import Caller, Mover, StartProxy, keys_on, wait_for
from tests.integration.test_failover import NODE_TIMEOUT, served
from tests.integration.workers import Outcome

pytestmark = pytest.mark.integration

# What every server and version answers alike; lines of one list are sent in one pipeline.
CONVERSATIONS = [
    ["MULTI", "EXEC"],
    ["EXEC", "DISCARD"],
    ["MULTI", "SET {t}a 1", "INCR {t}a", "GET {t}a", "GET {t}none", "EXEC", "GET {t}a"],
    ["MULTI", "SET {t}a text", "LPUSH {t}a 1", "INCR {t}a", "APPEND {t}a !", "EXEC", "GET {t}a"],
    ["MULTI", "SET {t}a", "GET {t}a", "EXEC", "GET {t}a"],
    ["MULTI", "SET {t}a 5", "DISCARD", "GET {t}a"],
    ["MULTI", "FLY", "PING", "EXEC"],
    ["MULTI", "PING", "ECHO hello", "GET {t}a", "PING again", "EXEC"],
    ["MULTI", "CLIENT SETNAME inside", "CLIENT GETNAME", "SET {t}b 1", "EXEC", "CLIENT GETNAME"],
    ["MULTI", "HSET {t}h f 1 g 2", "HGETALL {t}h", "ZADD {t}z 1.5 m", "ZSCORE {t}z m", "EXEC"],
    ["MULTI", "ZRANGE {t}z 0 -1 WITHSCORES", "SADD {t}s x", "SMEMBERS {t}s", "EXEC"],
    ["MULTI", "XADD {t}x 1-1 f v", "XREAD BLOCK 0 STREAMS {t}x 0", "EXEC"],
    ["MULTI", "XREAD BLOCK 0 STREAMS {t}x 9", "EXEC"],
    ["MULTI", "RPUSH {t}l 3 1 2", "SORT {t}l", "COPY {t}l {t}m", "LMPOP 1 {t}m LEFT", "EXEC"],
    ["MULTI", "MSET {t}1 a {t}2 b", "MGET {t}1 {t}2 {t}3", "DEL {t}1 {t}2", "EXEC"],
    ["MULTI", "SELECT 99", "SELECT 0", "EXEC"],
    ["MULTI", "SET {t}a 7", "RESET", "EXEC", "GET {t}a"],
]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_same_values_as_one_redis(
    empty_clusters: Clusters, plain_redis: Node, proxy: Sidecar, protocol: int
) -> None:
    """Pipelines with transactions in them are answered as a plain Redis answers them."""
    await plain_redis.ask("FLUSHALL")
    plain, through = await Caller.open(plain_redis.port), await Caller.open(proxy.port)
    for lines in CONVERSATIONS:
        commands = [tuple(line.split()) for line in [f"HELLO {protocol}", *lines]]
        wanted, got = await plain.pipeline(commands), await through.pipeline(commands)
        # hiredis' errors are equal only when they are the same object.
        assert repr(got[1:]) == repr(wanted[1:]), lines


def fill(pipeline: Any) -> None:
    """Queue what works, what fails in its own place, and what has a reply of each shape."""
    pipeline.set("{p}a", "1").incr("{p}a").get("{p}a").hset("{p}h", mapping={"f": "v"})
    pipeline.hgetall("{p}h").zadd("{p}z", {"m": 1.5}).zrange("{p}z", 0, -1, withscores=True)
    pipeline.lpush("{p}a", "no list").exists("{p}a", "{p}none").ping()


FILLED = [True, 2, b"2", 1, {b"f": b"v"}, 1, "scores", "error", 1, True]


def judge(results: list[Any]) -> None:
    scores, error = results[6], results[7]
    assert [tuple(pair) for pair in scores] == [(b"m", 1.5)]
    assert isinstance(error, redis.ResponseError)
    assert "WRONGTYPE" in str(error)
    assert [*results[:6], "scores", "error", *results[8:]] == FILLED


@pytest.mark.usefixtures("empty_clusters")
@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py(proxy: Sidecar, protocol: int) -> None:
    """redis-py's default pipeline is a transaction, and keys of several slots are an error."""
    await asyncio.to_thread(use_redis_py, proxy.port, protocol)


def use_redis_py(port: int, protocol: int) -> None:
    with redis.Redis(port=port, protocol=protocol) as client:
        pipeline = client.pipeline()
        fill(pipeline)
        judge(pipeline.execute(raise_on_error=False))
        pipeline.set("{q}b", "1").set("c", "1")
        with pytest.raises(redis.ResponseError, match="same slot"):
            pipeline.execute()
        assert client.get("{q}b") is None
        assert client.ping()


@pytest.mark.usefixtures("empty_clusters")
@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_asyncio(proxy: Sidecar, protocol: int) -> None:
    """The same for its other half."""
    async with redis.asyncio.Redis(port=proxy.port, protocol=protocol) as client:
        async with client.pipeline() as pipeline:
            fill(pipeline)
            judge(await pipeline.execute(raise_on_error=False))
        assert await client.ping()


LOOSE = """
keyspaces:
  seat: {key: "seat:{number}", kind: state, transactions: single}
defaults: {transactions: split}
"""


@pytest.mark.usefixtures("empty_clusters")
async def test_a_split_transaction(proxy_process: StartProxy, tmp_path: Path) -> None:
    """Where the policies allow it, redis-py's pipeline works over many slots; never for state."""
    (tmp_path / "rules.yaml").write_text(LOOSE)
    sidecar = await proxy_process(policies=str(tmp_path))
    async with redis.asyncio.Redis(port=sidecar.port) as client:
        async with client.pipeline() as pipeline:
            for number in range(100):
                pipeline.set(f"loose:{number}", number).get(f"loose:{number}")
            wanted = [value for number in range(100) for value in (True, b"%d" % number)]
            assert await pipeline.execute() == wanted
        async with client.pipeline() as pipeline:
            pipeline.set("seat:1", 1).set("seat:2", 1)
            with pytest.raises(redis.ResponseError, match="same slot"):
                await pipeline.execute()
        assert await client.get("seat:1") is None


async def mishaps(cluster: Cluster, port: int, slots: list[int], chance: random.Random) -> None:
    """Move slots from each primary to the next; then kill one and wait for what follows."""
    mover = Mover(cluster)
    await mover.open()
    owners, nodes = await mover.owners(), cluster.primaries
    for index, source in enumerate(nodes):
        await mover.settle()
        for slot in (slot for slot in slots if owners[slot] is source):
            await mover.move(slot, source, nodes[(index + 1) % len(nodes)])
    mover.close()
    victim = chance.choice(nodes)
    (key,) = await keys_on(cluster, victim, 1)
    caller = await Caller.open(port)
    victim.kill()
    await wait_for(lambda: served(caller, key), "service", 30.0)
    caller.close()
    await victim.restart()
    await cluster.wait_ready()


async def keep_books(
    cluster: Cluster, port: int, transactions: int, rounds: int, clients: int, seed: int
) -> tuple[Outcome, Counter[str]]:
    """Run transactions while slots move and primaries die; return what was seen and found."""
    chance, outcome, until = random.Random(seed), Outcome(), asyncio.Event()
    ledgers = [Ledger(seed + number, port, outcome) for number in range(clients)]
    tasks = [asyncio.create_task(ledger.run(until)) for ledger in ledgers]
    held = {key_slot(tag.encode()) for ledger in ledgers for tag in ledger.tags}
    start, done = time.monotonic(), 0
    while done < rounds or outcome.operations < transactions:
        slots = chance.sample(sorted(held), len(held) // 2) + chance.sample(range(SLOTS), 20)
        await mishaps(cluster, port, list(dict.fromkeys(slots)), chance)
        done += 1
    until.set()
    await asyncio.gather(*tasks)
    seconds, found = time.monotonic() - start, Counter[str]()
    caller = await Caller.open(port)
    for ledger in ledgers:
        found += await ledger.check(caller)
    caller.close()
    print(f"\nseed {seed}: {done} rounds, {seconds:.1f} s; {dict(found)}; {outcome}")
    return outcome, found


def assert_whole(outcome: Outcome, found: Counter[str]) -> None:
    """Replication may lose what was acknowledged; nothing else may be wrong."""
    assert not outcome.wrong
    assert not found["half-applied"]
    assert not found["repeated"]
    assert not found["refused and run"]
    assert not outcome.closed
    assert not any("EXECABORT" in name for name in outcome.errors), outcome.errors


async def test_slots_move_under_transactions(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A transaction moves whole: no error, no reply that shows half of one."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    outcome, until = Outcome(), asyncio.Event()
    ledgers = [Ledger(number, sidecar.port, outcome) for number in range(4)]
    tasks = [asyncio.create_task(ledger.run(until)) for ledger in ledgers]
    mover = Mover(cluster)
    await mover.open()
    owners, nodes = await mover.owners(), cluster.primaries
    slots = sorted({key_slot(tag.encode()) for ledger in ledgers for tag in ledger.tags})
    for turn in (1, 2):
        for index, source in enumerate(nodes):
            await mover.settle()
            for slot in (slot for slot in slots if owners[slot] is source):
                await mover.move(slot, source, nodes[(index + turn) % len(nodes)])
        owners = await mover.owners()
    mover.close()
    until.set()
    await asyncio.gather(*tasks)
    caller, found = await Caller.open(sidecar.port), Counter[str]()
    for ledger in ledgers:
        found += await ledger.check(caller)
    caller.close()
    print(f"\n{dict(found)}; {outcome}")
    assert_whole(outcome, found)
    assert not found["lost"]
    assert not outcome.errors
    assert outcome.operations > 500


async def test_three_thousand_transactions_stay_whole(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """While slots move and a primary is killed: none half-applied, none repeated, no crash."""
    cluster = await start_cluster(NodeOptions(node_timeout=NODE_TIMEOUT), Shape(3, 3))
    sidecar = await proxy_process({"locks": cluster, "cache": cluster})
    seed = random.SystemRandom().randrange(1_000_000)
    outcome, found = await keep_books(cluster, sidecar.port, 3_000, rounds=1, clients=4, seed=seed)
    assert_whole(outcome, found)
    assert sidecar.child.running


@pytest.mark.usefixtures("empty_clusters")
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_message_comes_with_its_keys(proxy: Sidecar, protocol: int) -> None:
    """SETEX and PUBLISH of one transaction, as Celery stores results: who hears finds the key."""
    async with (
        redis.asyncio.Redis(port=proxy.port, protocol=protocol) as client,
        client.pubsub(ignore_subscribe_messages=True) as listener,
    ):
        names = [f"celery-task-meta-{number}" for number in range(20)]
        await listener.subscribe(*names)
        await listener.get_message(timeout=5)
        for name in names:
            async with client.pipeline() as pipeline:
                pipeline.execute_command("SETEX", name, 60, name)
                pipeline.publish(name, "done")
                pipeline.get(name)
                stored, _, value = await pipeline.execute()
            assert (stored, value) == (True, name.encode())
        heard: list[str] = []
        while len(heard) < len(names):
            message = await listener.get_message(timeout=5)
            if message is not None:
                heard.append(message["channel"].decode())
                assert await client.get(heard[-1]) is not None
        assert sorted(heard) == sorted(names)


@pytest.mark.usefixtures("empty_clusters")
async def test_messages_stand_in_exec_whatever_their_slot(proxy: Sidecar) -> None:
    """Every reply has its place, and a message is a part of what the node runs."""
    caller, listener = await Caller.open(proxy.port), await Caller.open(proxy.port)
    await listener.call("SSUBSCRIBE", "{m}s")
    await listener.call("SSUBSCRIBE", "elsewhere")
    words = ["MULTI", "PUBLISH x 1", "SET {m}k v", "SPUBLISH {m}s 2", "PING",
             "SPUBLISH elsewhere 3", "GET {m}k", "EXEC"]  # fmt: skip
    replies = await caller.pipeline([line.split() for line in words])
    assert replies[-1] == [0, b"OK", 1, b"PONG", 1, b"v"]
    heard = {(await listener.next())[2] for _ in range(2)}
    assert heard == {b"2", b"3"}
