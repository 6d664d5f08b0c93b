"""Scripts and functions through a real proxy over real clusters, in both protocols."""

import asyncio
import hashlib
import re
from typing import Any

import pytest
import redis
import redis.asyncio

from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Cluster, Shape
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters, StartCluster, StartProxy
from tests.integration.rig import Caller, Mover, is_error, wait_for

pytestmark = pytest.mark.integration

PUSH = "return redis.call('rpush', KEYS[1], ARGV[1])"
PUSH_SHA = hashlib.sha1(PUSH.encode()).hexdigest()
COUNT = "redis.call('incr', KEYS[1]) "
LIBRARY = """#!lua name=counting
redis.register_function('count_up', function(keys, args) return redis.call('incr', keys[1]) end)
"""


@pytest.fixture(params=[2, 3])
async def caller(
    request: pytest.FixtureRequest, proxy: Sidecar, empty_clusters: Clusters
) -> Caller:
    caller = await Caller.open(proxy.port)
    await caller.call("HELLO", request.param)
    await caller.call("SCRIPT", "FLUSH")
    await caller.call("FUNCTION", "FLUSH")
    return caller


async def forget(clusters: Clusters, *what: str) -> None:
    """Let every primary forget behind the proxy's back, as one that was restarted has."""
    for cluster in (clusters.cache, clusters.locks):
        for node in cluster.primaries:
            await node.ask(*(what or ("SCRIPT", "FLUSH")))


async def test_scripts_run_where_their_keys_live(caller: Caller) -> None:
    """Each key is written through a script and read without one; a script needs no keys."""
    for number in range(20):
        key = f"scripted:{number}"
        script = "return redis.call('set', KEYS[1], ARGV[1])"
        assert await caller.call("EVAL", script, 1, key, number) == b"OK"
        assert await caller.call("GET", key) == b"%d" % number
        read = "return redis.call('get', KEYS[1])"
        assert await caller.call("EVAL_RO", read, 1, key) == b"%d" % number
    assert await caller.call("EVAL", "return {1, 'two', ARGV[1]}", 0, "x") == [1, b"two", b"x"]
    refused = await caller.call("EVAL", "return 1", 2, "a", "b")
    assert str(refused) == "CROSSSLOT Keys in request don't hash to the same slot"


async def test_a_loaded_script_is_on_every_primary(caller: Caller, clusters: Clusters) -> None:
    """SCRIPT LOAD reaches both clusters, and SCRIPT EXISTS says so; a broken script is refused."""
    assert await caller.call("SCRIPT", "LOAD", PUSH) == PUSH_SHA.encode()
    for cluster in (clusters.cache, clusters.locks):
        for node in cluster.primaries:
            assert await node.ask("SCRIPT", "EXISTS", PUSH_SHA) == [1]
    assert await caller.call("SCRIPT", "EXISTS", PUSH_SHA.upper(), "0" * 40) == [1, 0]
    assert str(await caller.call("SCRIPT", "LOAD", "return +")).startswith("ERR Error compiling")
    assert await caller.call("SCRIPT", "FLUSH", "ASYNC") == b"OK"
    assert await caller.call("SCRIPT", "EXISTS", PUSH_SHA) == [0]
    assert str(await caller.call("EVALSHA", PUSH_SHA, 1, "k", 1)).startswith("NOSCRIPT")


async def test_a_script_that_is_known_exists(caller: Caller, clusters: Clusters) -> None:
    """After EVAL on one node SCRIPT EXISTS may be relied on for all, as with a single Redis."""
    await caller.call("EVAL", PUSH, 1, "list", 0)
    assert await caller.call("SCRIPT", "EXISTS", PUSH_SHA) == [1]
    for node in clusters.cache.primaries:
        assert await node.ask("SCRIPT", "EXISTS", PUSH_SHA) == [1]


async def test_a_script_that_no_node_takes_does_not_exist(caller: Caller) -> None:
    """A body that EVAL could not compile is not there afterwards."""
    body = "#!lua flags=nosuch\nreturn 1"
    assert str(await caller.call("EVAL", body, 0)).startswith("ERR Unexpected flag")
    sha = hashlib.sha1(body.encode()).hexdigest()
    assert await caller.call("SCRIPT", "EXISTS", sha) == [0]


async def test_a_node_that_has_forgotten_is_told_again(caller: Caller, clusters: Clusters) -> None:
    """EVALSHA goes on when the caches of nodes are empty: nothing is lost, nothing runs twice."""
    await caller.call("SCRIPT", "LOAD", PUSH)
    for number in range(1, 21):
        await forget(clusters)
        assert await caller.call("EVALSHA", PUSH_SHA, 1, "list", number) == number


async def test_a_pipeline_of_runs_survives_a_flush(caller: Caller, clusters: Clusters) -> None:
    """A thousand EVALSHAs run once each and in order, whatever nodes forget meanwhile."""
    await caller.call("SCRIPT", "LOAD", PUSH)
    running = asyncio.ensure_future(
        caller.pipeline([("EVALSHA", PUSH_SHA, 1, "list", number) for number in range(1000)])
    )
    rounds = 0
    while not running.done():
        await forget(clusters)
        rounds += 1
        await asyncio.sleep(0)
    assert await running == list(range(1, 1001))
    assert rounds > 1
    pushed = await caller.call("LRANGE", "list", 0, -1)
    assert pushed == [b"%d" % number for number in range(1000)]


async def test_a_pipeline_over_many_slots_survives_a_flush(
    caller: Caller, clusters: Clusters
) -> None:
    """The order holds by slot, and so do the runs of other slots in between."""
    await caller.call("SCRIPT", "LOAD", PUSH)
    running = asyncio.ensure_future(
        caller.pipeline(
            [("EVALSHA", PUSH_SHA, 1, f"list:{number % 7}", number) for number in range(1001)]
        )
    )
    while not running.done():
        await forget(clusters)
        await asyncio.sleep(0)
    assert await running == [number // 7 + 1 for number in range(1001)]


async def test_a_run_that_was_overtaken_is_not_repeated(caller: Caller, clusters: Clusters) -> None:
    """Where another command has run behind it, its client hears NOSCRIPT, and order holds."""
    await caller.call("SCRIPT", "LOAD", PUSH)
    await forget(clusters)
    replies = await caller.pipeline(
        [("EVALSHA", PUSH_SHA, 1, "list", 1), ("RPUSH", "list", 2), ("LRANGE", "list", 0, -1)]
    )
    assert str(replies[0]).startswith("NOSCRIPT")
    assert replies[1:] == [1, [b"2"]]


@pytest.mark.parametrize(
    "error",
    ["TRYAGAIN later", "READONLY now", "LOADING us", "CLUSTERDOWN no", "MOVED 1 10.0.0.1:1"],
)
async def test_what_a_script_says_is_no_redirect(caller: Caller, error: str) -> None:
    """A script whose own error looks like that of a node runs once."""
    script = COUNT + f"return redis.error_reply('{error}')"
    assert str(await caller.call("EVAL", script, 1, "runs")) == error
    assert await caller.call("GET", "runs") == b"1"


async def test_functions_are_on_every_primary(caller: Caller, clusters: Clusters) -> None:
    """A library is loaded, listed, dumped, restored and deleted as on a single server."""
    assert await caller.call("FUNCTION", "LOAD", LIBRARY) == b"counting"
    exists = await caller.call("FUNCTION", "LOAD", LIBRARY)
    assert str(exists) == "ERR Library 'counting' already exists"
    assert await caller.call("FUNCTION", "LOAD", "REPLACE", LIBRARY) == b"counting"
    for key in ("a", "b", "c"):
        assert await caller.call("FCALL", "count_up", 1, key) == 1
    assert "counting" in str(await caller.call("FUNCTION", "LIST"))
    assert "libraries_count" in str(await caller.call("FUNCTION", "STATS"))
    dumped = await caller.call("FUNCTION", "DUMP")
    assert await caller.call("FUNCTION", "DELETE", "counting") == b"OK"
    assert str(await caller.call("FCALL", "count_up", 1, "a")) == "ERR Function not found"
    assert await caller.call("FUNCTION", "RESTORE", dumped) == b"OK"
    assert await caller.call("FCALL", "count_up", 1, "a") == 2
    bad = await caller.call("FCALL", "count_up", "x", "a")
    assert str(bad) == "ERR Bad number of keys provided"


async def test_a_primary_without_the_library_gets_it(caller: Caller, clusters: Clusters) -> None:
    """A call that a new primary does not know is repeated there, with the library."""
    await caller.call("FUNCTION", "LOAD", LIBRARY)
    for node in clusters.cache.primaries:
        await node.ask("FUNCTION", "FLUSH")
        calls = [("FCALL", "count_up", 1, f"n{key}") for key in range(50)]
        assert len(set(await caller.pipeline(calls))) == 1
    assert str(await caller.call("FCALL", "count_down", 1, "n")) == "ERR Function not found"


async def test_function_stats_keeps_the_order(caller: Caller) -> None:
    """It counts what was loaded before it in a pipeline, and nothing that is deleted behind it."""
    load, stats, flush = ("FUNCTION", "LOAD", LIBRARY), ("FUNCTION", "STATS"), ("FUNCTION", "FLUSH")
    for _ in range(10):
        replies = await caller.pipeline([stats, load, stats, flush, stats])
        told = [re.search(r"'libraries_count'\W+(\d)", str(reply)) for reply in replies[::2]]
        assert [found and found[1] for found in told] == ["0", "1", "0"]


async def test_what_was_deleted_in_a_pipeline_stays_deleted(caller: Caller) -> None:
    """Calls and runs behind the deletion hear that there is nothing, as from Redis."""
    calls = [("FCALL", "count_up", 1, f"n{number}") for number in range(20)]
    for deletion in (("FUNCTION", "FLUSH"), ("FUNCTION", "DELETE", "counting")):
        assert await caller.call("FUNCTION", "LOAD", LIBRARY) == b"counting"
        replies = await caller.pipeline([deletion, *calls])
        assert {str(reply) for reply in replies[1:]} == {"ERR Function not found"}
        assert await caller.call("FUNCTION", "LIST") == []
    run, sha = ("EVAL", "return 1", 0), hashlib.sha1(b"return 1").hexdigest()
    replies = await caller.pipeline([run, ("SCRIPT", "FLUSH"), ("EVALSHA", sha, 0)])
    assert str(replies[2]).startswith("NOSCRIPT")


async def test_what_another_sidecar_deleted_stays_deleted(
    caller: Caller, clusters: Clusters, proxy_process: StartProxy
) -> None:
    """Who loaded a library does not bring it back, and a part of it can be deleted."""
    other = await Caller.open((await proxy_process()).port)
    assert await caller.call("FUNCTION", "LOAD", LIBRARY) == b"counting"
    assert await other.call("FUNCTION", "DELETE", "counting") == b"OK"
    assert str(await caller.call("FCALL", "count_up", 1, "n")) == "ERR Function not found"
    await clusters.cache.primaries[0].ask("FUNCTION", "LOAD", LIBRARY)
    assert await other.call("FUNCTION", "DELETE", "counting") == b"OK"
    refused = await other.call("FUNCTION", "DELETE", "counting")
    assert str(refused) == "ERR Library not found"


async def test_a_part_of_the_primaries_is_told(caller: Caller, clusters: Clusters) -> None:
    """FUNCTION LOAD that one primary refuses says how many took it."""
    await clusters.cache.primaries[0].ask("FUNCTION", "LOAD", LIBRARY)
    reply = await caller.call("FUNCTION", "LOAD", LIBRARY)
    assert str(reply) == "ERR Library 'counting' already exists (5 of 6 parts succeeded)"


async def test_an_endless_script_is_killed(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """SCRIPT KILL reaches a node whose shared connection is stuck behind the script."""
    cluster = await start_cluster(NodeOptions(settings={"lua-time-limit": "20"}))
    sidecar = await proxy_process({"cache": cluster})
    caller, other = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    assert str(await other.call("SCRIPT", "KILL")).startswith("NOTBUSY")
    running = asyncio.ensure_future(caller.call("EVAL", "while true do end", 1, "a"))

    async def killed() -> bool:
        return bool(await other.call("SCRIPT", "KILL") == b"OK")

    await wait_for(killed, "the end of the script")
    assert "killed by user" in str(await running)
    assert await caller.call("SET", "a", 1) == b"OK"


async def test_a_failover_forgets_no_script(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """A replica that takes over has no scripts, and clients do not notice."""
    cluster = await start_cluster()
    sidecar = await proxy_process({"cache": cluster})
    caller = await Caller.open(sidecar.port)
    await caller.call("SCRIPT", "LOAD", PUSH)
    assert await caller.call("EVALSHA", PUSH_SHA, 1, "list", 0) == 1
    owner = await cluster.owner(await _slot(cluster, "list"))
    replica = (await cluster.replicas_of(owner))[0]
    await replica.ask("CLUSTER", "FAILOVER")
    number = 1

    async def taken_over() -> bool:
        nonlocal number
        number += 1
        assert await caller.call("EVALSHA", PUSH_SHA, 1, "list", number) == number
        return (await replica.ask("ROLE"))[0] == "master"

    await wait_for(taken_over, "the failover")
    assert await caller.call("EVALSHA", PUSH_SHA, 1, "list", 0) == number + 1


async def test_a_slot_moves_to_a_node_without_the_script(
    start_cluster: StartCluster, proxy_process: StartProxy
) -> None:
    """Pipelines of runs follow their key to a node that has never seen them, in order."""
    cluster = await start_cluster(shape=Shape(3, 0))
    sidecar = await proxy_process({"cache": cluster})
    caller = await Caller.open(sidecar.port)
    await caller.call("SCRIPT", "LOAD", PUSH)
    mover = Mover(cluster)
    await mover.open()
    slot = await _slot(cluster, "list")
    ran = 0
    for _ in range(6):
        source = await cluster.owner(slot)
        target = cluster.primaries[(cluster.primaries.index(source) + 1) % 3]
        await target.ask("SCRIPT", "FLUSH")
        running = asyncio.ensure_future(
            caller.pipeline(
                [("EVALSHA", PUSH_SHA, 1, "list", number) for number in range(ran, ran + 1000)]
            )
        )
        await mover.move(slot, source, target)
        await mover.settle()
        assert await running == list(range(ran + 1, ran + 1001))
        ran += 1000
    mover.close()
    pushed = await caller.call("LRANGE", "list", 0, -1)
    assert pushed == [b"%d" % number for number in range(ran)]


async def _slot(cluster: Cluster, key: str) -> int:
    return int(await cluster.primaries[0].ask("CLUSTER", "KEYSLOT", key))


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_scripts_and_locks(
    proxy: Sidecar, empty_clusters: Clusters, protocol: int
) -> None:
    """register_script, scripts in pipelines, and Lock, which releases by EVALSHA."""
    async with redis.asyncio.Redis.from_url(proxy.url, protocol=protocol) as client:
        script = client.register_script(PUSH)
        assert await script(keys=["list"], args=[1]) == 1
        await forget(empty_clusters)
        assert await script(keys=["list"], args=[2]) == 2
        pipeline: Any = client.pipeline(transaction=False)
        await forget(empty_clusters)
        pipeline.set("other", 1)
        await script(keys=["list"], args=[3], client=pipeline)
        pipeline.llen("list")
        assert await pipeline.execute() == [True, 3, 3]
        lock = client.lock("lock:seat", timeout=5)
        assert await lock.acquire(blocking=False)
        await forget(empty_clusters)
        assert await lock.extend(5)
        assert await lock.reacquire()
        await lock.release()
        assert await client.get("lock:seat") is None


async def test_a_client_that_falls_back_to_eval(caller: Caller, clusters: Clusters) -> None:
    """What ioredis does for defineCommand: EVALSHA, and EVAL behind a NOSCRIPT."""
    sha = hashlib.sha1(b"return ARGV[1]").hexdigest()
    assert is_error(await caller.call("EVALSHA", sha, 0, "x"))
    assert await caller.call("EVAL", "return ARGV[1]", 0, "x") == b"x"
    await forget(clusters)
    assert await caller.call("EVALSHA", sha, 0, "y") == b"y"
