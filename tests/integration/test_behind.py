"""Write-behind through a real proxy: real clusters, a real PostgreSQL, and kill -9."""

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar, fetch
from tests.conftest import Clusters, StartCluster, StartProxy
from tests.integration.rig import Caller, direct, is_error, wait_for
from tests.origin.activity import execute, rows_of

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  activity:
    key: activity:{id}:{day:date}
    cluster: cache
    kind: state
    type: hash
    ttl: {default: 3600s}
    write:
      mode: behind
      merge: add
      flush: {every: EVERY, rows: 1000}
      sql: |
        INSERT INTO activity AS a (id, day, views, calls, name, score)
        VALUES (:id, :day, coalesce(:views, 0), coalesce(:calls, 0), :name, :score)
            ON CONFLICT (id, day) DO UPDATE
           SET views = a.views + excluded.views, calls = a.calls + excluded.calls,
               name = coalesce(excluded.name, a.name), score = greatest(a.score, excluded.score)
    fallback: {writes: journal}
  note:
    key: note:{id}
    cluster: cache
    type: string
    write:
      mode: behind
      flush: {every: EVERY}
      sql: |
        INSERT INTO notes (id, value, ttl) VALUES (:id, :value, :ttl)
            ON CONFLICT (id) DO UPDATE SET value = excluded.value, ttl = excluded.ttl
    fallback: {writes: journal}
"""
NOTES = "CREATE TABLE notes (id text PRIMARY KEY, value text, ttl numeric)"
KEY = "activity:u1:2026-11-29"
VIEWS = "SELECT id, views, calls, name FROM activity ORDER BY id"
LONG = "1h"


@pytest.fixture
def blocks(activity: str, tmp_path: Path) -> dict[str, object]:
    """Blocks of sidecache.yaml."""
    return {
        "database": {"url": activity},
        "journal": {"directory": str(tmp_path / "journal")},
        "policies": str(tmp_path / "rules"),
    }


def write_rules(tmp_path: Path, every: str = "50ms") -> None:
    (tmp_path / "rules").mkdir(exist_ok=True)
    (tmp_path / "rules" / "a.yaml").write_text(RULES.replace("EVERY", every))


@pytest.fixture
async def proxy(
    empty_clusters: Clusters, blocks: dict[str, object], proxy_process: StartProxy,
    activity: str, tmp_path: Path,
) -> Sidecar:  # fmt: skip
    write_rules(tmp_path)
    await execute(activity, NOTES)
    return await proxy_process(**blocks)


async def test_counters_arrive(proxy: Sidecar, activity: str) -> None:
    """Clients see Redis' replies at once, and PostgreSQL has the sums a moment later."""
    caller = await Caller.open(proxy.port)
    replies = await caller.pipeline([
        ("HINCRBY", KEY, "views", 2), ("HINCRBY", KEY, "views", 3), ("HSET", KEY, "name", "Ada"),
        ("HINCRBY", KEY, "calls", 1), ("HGETALL", KEY), ("TTL", KEY),
    ])  # fmt: skip
    assert replies[:4] == [2, 5, 1, 1]
    assert dict(zip(replies[4][::2], replies[4][1::2], strict=True)) == {
        b"views": b"5", b"name": b"Ada", b"calls": b"1",
    }  # fmt: skip
    assert 3590 <= replies[5] <= 3600

    async def arrived() -> bool:
        return await rows_of(activity, VIEWS) == [("u1", 5, 1, "Ada")]

    await wait_for(arrived, "the counters in PostgreSQL")
    _, page = await fetch(proxy.admin_host, proxy.admin_port, "/readyz")
    assert page.strip() == "locks=up cache=up behind=open"
    _, page = await fetch(proxy.admin_host, proxy.admin_port, "/metrics")
    assert 'sidecache_write_behind_state{state="open"} 1.0' in page
    assert "sidecache_write_behind_rows 0.0" in page


async def test_values_arrive(proxy: Sidecar, activity: str) -> None:
    """Strings with their time, several at once, and what was deleted."""
    caller = await Caller.open(proxy.port)
    replies = await caller.pipeline([
        ("SET", "note:1", "a", "EX", 100), ("SETEX", "note:2", 200, "b"), ("SET", "note:3", "c"),
        ("MSET", "note:4", "d", "note:5", "e", "other", "x"), ("DEL", "note:3", "other"),
        ("GET", "note:1"),
    ])  # fmt: skip
    assert replies == [b"OK", b"OK", b"OK", b"OK", 2, b"a"]

    async def arrived() -> bool:
        found = await rows_of(activity, "SELECT id, value, ttl::int FROM notes ORDER BY id")
        return found == [
            ("1", "a", 100), ("2", "b", 200), ("3", None, None), ("4", "d", None),
            ("5", "e", None),
        ]  # fmt: skip

    await wait_for(arrived, "the notes in PostgreSQL")


async def test_what_cannot_be_journalled_is_refused(proxy: Sidecar, activity: str) -> None:
    """With the keyspace's name, and Redis is left as it was."""
    caller = await Caller.open(proxy.port)
    refused = [
        ("HSETNX", KEY, "name", "x"), ("HINCRBY", KEY, "name", 1), ("HSET", KEY, "views", 1),
        ("HSET", KEY, "unknown", 1), ("RENAME", "note:{1}", "note:{1}b"),
        ("RENAME", "{1}", "note:{1}"), ("COPY", "note:{1}", "{1}"), ("APPEND", "note:1", "x"),
        ("SET", "note:1", "x", "NX"), ("GETDEL", "note:1"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "note:1"),
    ]  # fmt: skip
    for words in refused:
        reply = await caller.call(*words)
        assert str(reply).startswith("POLICY write refused by keyspace '"), (words, reply)
    for words, line in (
        (("HINCRBY", KEY, "views", "x"), "ERR value is not an integer or out of range"),
        (("HSET", KEY, "name"), "ERR wrong number of arguments for 'hset' command"),
        (("SET", "note:1", "x", "EX", 0), "ERR invalid expire time in 'set' command"),
    ):
        assert str(await caller.call(*words)) == line
    await caller.call("MULTI")
    assert is_error(await caller.call("SET", "note:1", "x"))
    assert is_error(await caller.call("EXEC"))
    assert await caller.call("EXISTS", KEY) == 0
    assert await caller.call("GET", "note:1") is None


async def test_what_redis_refuses_is_taken_back(
    proxy: Sidecar, empty_clusters: Clusters, activity: str
) -> None:
    """An increment that the node does not carry out is not counted in PostgreSQL either."""
    caller = await Caller.open(proxy.port)
    assert await caller.call("HINCRBY", KEY, "views", 2) == 2
    await direct(empty_clusters.cache, "HSET", KEY, "views", 2**63 - 1)
    assert is_error(await caller.call("HINCRBY", KEY, "views", 2))
    await direct(empty_clusters.cache, "HSET", KEY, "views", 2)
    assert await caller.call("HINCRBY", KEY, "views", 3) == 5

    async def arrived() -> bool:
        return [row[1] for row in await rows_of(activity, VIEWS)] == [5]

    await wait_for(arrived, "the sum in PostgreSQL")


async def test_without_redis_writes_go_on(
    start_cluster: StartCluster, proxy_process: StartProxy, blocks: dict[str, object],
    activity: str, tmp_path: Path,
) -> None:  # fmt: skip
    """Where the answer is exact they are journalled and answered; else nothing is changed."""
    write_rules(tmp_path, LONG)
    await execute(activity, NOTES)
    cluster = await start_cluster()
    proxy = await proxy_process({"cache": cluster, "locks": cluster}, **blocks)
    caller = await Caller.open(proxy.port)
    for node in cluster.nodes:
        node.kill()

    async def away() -> bool:
        return str(await caller.call("GET", "note:0")).startswith("CLUSTERDOWN")

    await wait_for(away, "the cluster to be away")
    assert await caller.call("SET", "note:1", "a") == b"OK"
    assert str(await caller.call("HINCRBY", KEY, "views", 1)).startswith("DEGRADED")
    assert str(await caller.call("DEL", "note:1")).startswith("DEGRADED")
    caller.close()
    await proxy.stop()
    assert await rows_of(activity, "SELECT id, value FROM notes") == [("1", "a")]
    assert await rows_of(activity, VIEWS) == []


async def test_a_key_that_redis_lost_is_answered_from_what_waits(
    empty_clusters: Clusters, blocks: dict[str, object], proxy_process: StartProxy,
    activity: str, tmp_path: Path,
) -> None:  # fmt: skip
    """Until PostgreSQL is told, the journal has the only copy, and it is readable."""
    write_rules(tmp_path, LONG)
    await execute(activity, NOTES)
    proxy = await proxy_process(**blocks)
    caller = await Caller.open(proxy.port)
    await caller.pipeline([("SET", "note:1", "a"), ("HINCRBY", KEY, "views", 4)])
    for node in empty_clusters.cache.nodes:
        direct = await Caller.open(node.port)
        await direct.call("FLUSHALL")  # replicas refuse it
    assert await caller.call("GET", "note:1") == b"a"
    assert await caller.call("HGETALL", KEY) == [b"views", b"4"]
    assert await caller.call("HGET", KEY, "views") == b"4"
    assert await caller.call("HGET", KEY, "name") is None


READ = """    type: string
    ttl: {default: 3600s}
    origin: {read: "SELECT value FROM notes WHERE id = :id"}
"""


@pytest.fixture
async def noted(
    empty_clusters: Clusters, blocks: dict[str, object], proxy_process: StartProxy,
    activity: str, tmp_path: Path,
) -> Caller:  # fmt: skip
    """A client of notes that are read from PostgreSQL too, where one is already."""
    write_rules(tmp_path, LONG)
    rules = tmp_path / "rules" / "a.yaml"
    rules.write_text(rules.read_text().replace("    type: string\n", READ))
    await execute(activity, NOTES)
    await execute(activity, "INSERT INTO notes VALUES ('row', 'in postgres', 3000)")
    return await Caller.open((await proxy_process(**blocks)).port)


async def test_a_row_beside_what_waits(noted: Caller) -> None:
    """MGET and EXISTS find the row of one key though another waits for PostgreSQL."""
    assert await noted.call("SET", "note:1", "a") == b"OK"
    assert await noted.call("MGET", "note:1", "note:row") == [b"a", b"in postgres"]
    assert await noted.call("EXISTS", "note:1", "note:row") == 2


async def test_what_waits_needs_neither_redis_nor_postgres(
    noted: Caller, empty_clusters: Clusters, activity: str
) -> None:
    """A value that was set is told; what nobody can say is an error, no nil."""
    assert await noted.call("SET", "note:1", "a") == b"OK"
    await empty_clusters.cache.flush()
    await execute(activity, "ALTER TABLE notes RENAME TO hidden")
    try:
        assert await noted.call("GET", "note:1") == b"a"
    finally:
        await execute(activity, "ALTER TABLE hidden RENAME TO notes")


async def test_times_of_set_are_told(noted: Caller) -> None:
    """A date is a time too, and a time that is kept is none that PostgreSQL can be told."""
    assert await noted.call("SET", "note:1", "a", "EXAT", 4_000_000_000) == b"OK"
    assert await noted.call("TTL", "note:1") > 1_000_000
    assert is_error(await noted.call("SET", "note:1", "b", "KEEPTTL"))
    assert await noted.call("GET", "note:1") == b"a"


async def test_a_proxy_that_is_killed_has_lost_nothing(
    empty_clusters: Clusters, blocks: dict[str, object], proxy_process: StartProxy,
    activity: str, tmp_path: Path,
) -> None:  # fmt: skip
    """What was acknowledged is in PostgreSQL after the next start, each increment once."""
    write_rules(tmp_path, LONG)
    await execute(activity, NOTES)
    first = await proxy_process(**blocks)
    caller = await Caller.open(first.port)
    for _ in range(20):
        await caller.call("HINCRBY", KEY, "views", 1)
    first.child.kill()
    second = await proxy_process(**blocks)
    again = await Caller.open(second.port)
    assert await again.call("HINCRBY", KEY, "views", 1) == 21
    again.close()
    await second.stop()
    assert await rows_of(activity, VIEWS) == [("u1", 21, 0, None)]


async def test_writes_behind_need_a_journal(
    empty_clusters: Clusters, blocks: dict[str, object], proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Without one the proxy does not start, and says what to write."""
    write_rules(tmp_path)
    del blocks["journal"]
    with pytest.raises(Exception, match="needs a journal: set"):
        await proxy_process(**blocks)


async def survive(dsn: str, directory: Path, kills: int, patience: float) -> None:
    """Kill a process that writes so many times, and look at every count."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.lives", str(directory), dsn, str(kills), str(seed),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(patience):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    told = json.loads(output)
    counted = dict(await rows_of(dsn, "SELECT id, views FROM activity"))
    everything = counted.pop("all", 0)
    acknowledged = {number for number in told["acknowledged"] if number > 0}
    shared = len(told["acknowledged"]) - len(acknowledged)
    assert len(acknowledged) > kills
    assert {number for number in acknowledged if counted.get(f"u{number}") != 1} == set()
    assert set(counted.values()) == {1}
    # At each death at most one write of each writer is journalled and not acknowledged yet.
    assert shared <= everything <= shared + 8 * kills
    assert await rows_of(dsn, "SELECT count(*) FROM sidecache_dead_letters") == [(0,)]
    assert sum(told["points"].values()) == kills


@pytest.mark.timeout(180)
async def test_no_kill_loses_or_repeats_a_write(activity: str, tmp_path: Path) -> None:
    """Around fsync, around COMMIT and anywhere: all acknowledged writes are counted once."""
    await survive(activity, tmp_path / "journal", 50, 150.0)
