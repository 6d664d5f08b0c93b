"""Write-behind where Redis has lost a key, or was away when it was written."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy import wire
from proxy.embedded.redis import Cluster, Shape
from proxy.embedded.sidecar import Sidecar
from proxy.origin import installing
from proxy.policy import compiler, planning
from tests.conftest import Clusters, StartCluster
from tests.faults import Relay
from tests.integration.rig import Caller, StartProxy, Word, direct, wait_for
from tests.origin.activity import execute, rows_of

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  activity:
    key: activity:{id}:{day:date}
    cluster: cache
    type: hash
    ttl: {default: 3600s}
    freshness: {stale_while_revalidate: 60s}
    origin: {read: "SELECT views, calls, name FROM activity WHERE id = :id AND day = :day"}
    write:
      mode: behind
      merge: add
      flush: {every: 1s, rows: 1000}
      sql: |
        INSERT INTO activity AS a (id, day, views, calls, name)
        VALUES (:id, :day, coalesce(:views, 0), coalesce(:calls, 0), :name)
            ON CONFLICT (id, day) DO UPDATE
           SET views = a.views + excluded.views, calls = a.calls + excluded.calls,
               name = coalesce(excluded.name, a.name)
    fallback: {writes: journal}
"""
# Two keyspaces of one table: what is written to notes waits for long.
NOTES = """\
  NAME:
    key: NAME:{id}
    cluster: cache
    type: string
    ttl: {default: 3600s}
    origin: {read: "SELECT value FROM notes WHERE id = :id"}
    write:
      mode: behind
      flush: {every: EVERY}
      sql: |
        INSERT INTO notes (id, value) VALUES (:id, :value)
            ON CONFLICT (id) DO UPDATE SET value = excluded.value
    fallback: {writes: journal}
"""
RULES += NOTES.replace("NAME", "note").replace("EVERY", "1h")
RULES += NOTES.replace("NAME", "memo").replace("EVERY", "200ms")
KEY = "activity:u1:2026-11-29"
Start = Callable[..., Awaitable[Sidecar]]


INVALIDATE = "    invalidate: [{table: activity, key: {id: id, day: day}}]\n"


@pytest.fixture
async def start(activity: str, proxy_process: StartProxy, tmp_path: Path) -> Start:
    """A proxy with a row of 40 views and one note in PostgreSQL."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(RULES)
    await execute(activity, "CREATE TABLE notes (id text PRIMARY KEY, value text)")
    await execute(activity, "INSERT INTO notes VALUES ('row', 'in postgres')")
    await execute(activity, "INSERT INTO activity (id, day, views, calls, name) "
                            "VALUES ('u1', '2026-11-29', 40, 7, 'Ada')")  # fmt: skip

    async def started(cluster: Cluster, **urls: str) -> Sidecar:
        return await proxy_process(
            {"cache": cluster, "locks": cluster}, database={"url": activity, **urls},
            policies=str(tmp_path / "rules"), journal={"directory": str(tmp_path / "journal")},
        )  # fmt: skip

    return started


async def held(caller: Caller) -> dict[bytes, bytes]:
    words = await caller.call("HGETALL", KEY)
    return dict(zip(words[::2], words[1::2], strict=True))


async def flushed(activity: str, views: int) -> None:
    async def arrived() -> bool:
        return await rows_of(activity, "SELECT views FROM activity") == [(views,)]

    await wait_for(arrived, "the sum in PostgreSQL")


async def test_an_increment_of_what_redis_lost_counts_on(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """It is upon what was there, and the key is whole again, in Redis too."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    assert await caller.call("HINCRBY", KEY, "views", 2) == 42
    await empty_clusters.cache.flush()
    assert await caller.call("HINCRBY", KEY, "views", 1) == 43
    assert await held(caller) == {b"views": b"43", b"calls": b"7", b"name": b"Ada"}
    assert await caller.call("HINCRBY", KEY, "views", 1) == 44
    await flushed(activity, 44)
    assert await held(caller) == {b"views": b"44", b"calls": b"7", b"name": b"Ada"}


async def test_what_redis_lost_is_found_in_what_waits(
    start: Start, empty_clusters: Clusters
) -> None:
    """By commands about several keys too, and by those about times."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    assert await caller.call("SET", "note:1", "a") == b"OK"
    await empty_clusters.cache.flush()
    assert await caller.call("MGET", "note:1", "note:row", "note:2") == [b"a", b"in postgres", None]
    assert await caller.call("EXISTS", "note:1", "note:row", "note:2") == 2
    assert 0 < await caller.call("TTL", "note:1") <= 3600
    assert await caller.call("SET", "note:1", "b", "GET") == b"a"
    assert await caller.call("GET", "note:1") == b"b"


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("GETEX note:1", b"abc"), ("GETEX note:1 EX 100", b"abc"), ("BITCOUNT note:1", 10),
        ("TOUCH note:1", 1), ("EXPIRE note:1 100", 1), ("PERSIST note:1", 1), ("DEL note:1", 1),
        ("UNLINK note:1", 1), ("LCS note:1 note:1", b"abc"), ("STRLEN note:1", 3),
    ],
)  # fmt: skip
async def test_no_command_meets_less_than_was_written(
    start: Start, empty_clusters: Clusters, words: str, reply: Word
) -> None:
    """Whatever is asked of a key that Redis has lost, it is put back first."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    assert await caller.call("SET", "note:1", "abc") == b"OK"
    await empty_clusters.cache.flush()
    assert await caller.call(*words.split()) == reply


async def test_a_hot_counter_that_ends_counts_on(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """Under 30 clients whose writes are everywhere between journal and Redis nothing is lost there.

    Nor is anything there twice: after the flush Redis says what PostgreSQL does.
    """
    port = (await start(empty_clusters.cache)).port
    callers = [await Caller.open(port) for _ in range(30)]
    replies: list[int] = []

    async def count(caller: Caller) -> None:
        for _ in range(40):
            reply = await caller.call("HINCRBY", KEY, "views", 1)
            replies.append(reply)

    async def end() -> None:
        while len(replies) < 900:
            before = len(replies)
            await direct(empty_clusters.cache, "DEL", KEY)
            await wait_for(lambda before=before: len(replies) > before + 100, "some to count")

    await asyncio.gather(end(), *map(count, callers))
    assert sorted(replies) == list(range(41, 1241))
    await flushed(activity, 1240)
    assert await direct(empty_clusters.cache, "HGET", KEY, "views") == b"1240"
    assert len(await held(callers[0])) == 3


async def test_a_refresh_leaves_what_waits(start: Start, empty_clusters: Clusters) -> None:
    """What is stale and has writes that PostgreSQL lacks is not fetched again; sums are exact."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    assert await caller.call("HINCRBY", KEY, "views", 2**60) == 2**60 + 40
    await direct(empty_clusters.cache, "PEXPIRE", KEY, 30_000)
    for _ in range(20):
        assert (await held(caller))[b"views"] == b"%d" % (2**60 + 40)


async def test_those_who_set_a_value_at_once_leave_one(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """Redis may have had them in another order than the journal: PostgreSQL's is what stays."""
    port = (await start(empty_clusters.cache)).port
    callers = [await Caller.open(port) for _ in range(20)]
    for caller in callers[::2]:
        await caller.call("HELLO", 3)  # another connection to the node
    for number in range(20):
        await asyncio.gather(
            *(caller.call("SET", f"memo:{number}", f"n{n}") for n, caller in enumerate(callers))
        )

    async def alike() -> bool:
        rows = await rows_of(activity, "SELECT id, value FROM notes WHERE id <> 'row'")
        found = [await callers[1].call("GET", f"memo:{id}") for id, _ in rows]
        return len(rows) == 20 and found == [value.encode() for _, value in rows]

    await wait_for(alike, "Redis to say what PostgreSQL does")


async def test_what_cannot_be_kept_whole_is_refused(start: Start, empty_clusters: Clusters) -> None:
    """A part of a key beside which nothing can stand in its slot."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    assert "braces" in str(await caller.call("HINCRBY", "activity:x}y:2026-11-29", "views", 1))


async def test_a_copy_from_before_an_outage_is_not_shown(
    start: Start, start_cluster: StartCluster
) -> None:
    """What was written while nodes were frozen is what clients see when they go on."""
    cluster = await start_cluster()
    caller = await Caller.open((await start(cluster)).port)
    assert await caller.call("SET", "note:1", "before") == b"OK"
    for node in cluster.nodes:
        node.pause()
    values = itertools.count()

    async def taken() -> bool:
        # What a frozen node was sent it carries out later: each of them is another value.
        return bool(await caller.call("SET", "note:1", str(next(values))) == b"OK")

    try:
        await wait_for(taken, "a write without Redis", 20.0)
        last = b"%d" % (next(values) - 1)
        assert await caller.call("GET", "note:1") == last
    finally:
        for node in cluster.nodes:
            node.resume()

    async def gone() -> bool:
        return bool(await direct(cluster, "EXISTS", "note:1") == 0)

    await wait_for(gone, "the copy from before to go")
    assert await caller.call("GET", "note:1") == last


async def test_what_a_killed_proxy_had_journalled_is_what_clients_see(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """Nobody knows whether Redis had heard of it: its copy goes when PostgreSQL has it."""
    first = await start(empty_clusters.cache)
    assert await (await Caller.open(first.port)).call("HINCRBY", KEY, "views", 2) == 42
    first.child.kill()
    await direct(empty_clusters.cache, "HSET", KEY, "views", 40)
    second = await Caller.open((await start(empty_clusters.cache)).port)
    await flushed(activity, 42)

    async def right() -> bool:
        return (await held(second))[b"views"] == b"42"

    await wait_for(right, "the copy that lacks a write to go")


async def test_a_write_that_is_journalled_and_flushed_counts_once(
    start: Start, empty_clusters: Clusters, activity: str, tmp_path: Path
) -> None:
    """Before it is known what PostgreSQL has, nobody adds to it what the journal has."""
    parts = urlsplit(activity)
    relay = Relay((parts.hostname or "", parts.port or 0), seed=1)
    await relay.start()
    user = parts.netloc.rpartition("@")[0]
    direct_url = f"postgresql://{user}@127.0.0.1:{relay.port}{parts.path}"
    first = await start(empty_clusters.cache, direct_url=direct_url)
    assert await (await Caller.open(first.port)).call("HINCRBY", KEY, "views", 5) == 45
    await flushed(activity, 45)
    first.child.kill()
    # As if it had died a moment before it noted how far it is.
    (tmp_path / "journal" / "checkpoint").unlink(missing_ok=True)
    await relay.stop()
    caller = await Caller.open((await start(empty_clusters.cache, direct_url=direct_url)).port)
    assert "TRYAGAIN" in str(await caller.call("HINCRBY", KEY, "views", 1))
    assert await caller.call("HGET", KEY, "views") != b"50"
    await relay.start()

    async def counted() -> bool:
        return bool(await caller.call("HINCRBY", KEY, "views", 1) == 46)

    await wait_for(counted, "what is flushed to be known")
    await flushed(activity, 46)
    await relay.stop()


async def test_a_replica_that_lacks_the_last_writes_takes_over(
    start: Start, start_cluster: StartCluster, activity: str, tmp_path: Path
) -> None:
    """What waits is put back, and what is in PostgreSQL already is read from there again."""
    rules = tmp_path / "rules" / "a.yaml"
    rules.write_text(RULES.replace("    fallback", INVALIDATE + "    fallback", 1))
    watches = planning.watches_of(compiler.read(rules, ("cache", "locks")))
    await installing.run(activity, watches, apply=True, remove=False)
    cluster = await start_cluster(shape=Shape(3, 3))
    caller = await Caller.open((await start(cluster)).port)
    # Another key with the slot of the counter.
    note = next(f"note:{n}" for n in itertools.count() if slot_of(f"note:{n}") == slot_of(KEY))
    assert await caller.call("SET", note, "before") == b"OK"
    assert await caller.call("HINCRBY", KEY, "views", 1) == 41
    await flushed(activity, 41)
    primary = await cluster.owner(slot_of(KEY))
    (replica,) = await cluster.replicas_of(primary)

    async def told() -> bool:
        """Whether the replica has both, and the position that is written after them."""
        return bool(await replica.ask("DBSIZE") == await primary.ask("DBSIZE") > 2)

    await wait_for(told, "the replica to hear of it")
    # Frozen it cannot come back to the primary, which has nowhere to send changes to.
    replica.pause()
    assert await primary.ask("CLIENT", "KILL", "TYPE", "replica") == 1
    assert await caller.call("SET", note, "after") == b"OK"
    assert await caller.call("HINCRBY", KEY, "views", 5) == 46
    await flushed(activity, 46)
    primary.kill()
    replica.resume()
    assert await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"

    async def right() -> bool:
        return [await caller.call("GET", note), await caller.call("HGET", KEY, "views")] == [
            b"after", b"46",
        ]  # fmt: skip

    await wait_for(right, "what the replica lacks", 20.0)
    assert await caller.call("HINCRBY", KEY, "views", 1) == 47


async def test_clients_see_what_postgres_took(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """Where a write of a key is refused for good the others arrive, and nothing else is shown."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    for field, amount in (("views", 3), ("views", 2**30), ("views", 2**30), ("calls", 2)):
        await caller.call("HINCRBY", KEY, field, amount)

    async def right() -> bool:
        rows = await rows_of(activity, "SELECT views, calls FROM activity")
        found = await held(caller)
        return rows == [(43 + 2**30, 9)] and found == {
            b"views": b"%d" % (43 + 2**30), b"calls": b"9", b"name": b"Ada",
        }  # fmt: skip

    await wait_for(right, "Redis to say what PostgreSQL does")
    assert len(await rows_of(activity, "SELECT key FROM sidecache_dead_letters")) == 1


async def test_what_was_deleted_and_counted_on_is_shown_as_it_is(
    start: Start, empty_clusters: Clusters, activity: str
) -> None:
    """Deleting a key does not take back what was counted, once PostgreSQL has said so."""
    caller = await Caller.open((await start(empty_clusters.cache)).port)
    words = (("HINCRBY", KEY, "views", 1), ("DEL", KEY), ("HINCRBY", KEY, "views", 1))
    assert [await caller.call(*each) for each in words] == [41, 1, 1]
    await flushed(activity, 42)

    async def right() -> bool:
        return (await held(caller)).get(b"views") == b"42"

    await wait_for(right, "Redis to say what PostgreSQL does")


def slot_of(key: str) -> int:
    return wire.key_slot(key.encode())
