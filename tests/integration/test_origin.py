"""Keyspaces that PostgreSQL stands behind, through a real proxy: reads, writes, age, outages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.postgres import Postgres
from tests.conftest import Clusters, StartCluster
from tests.integration.origin import Stage, staged
from tests.integration.rig import Caller, StartProxy, Word, is_error, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
async def stage(
    postgres_server: Postgres,
    empty_clusters: Clusters,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> AsyncIterator[Stage]:
    async with staged(postgres_server, empty_clusters.cache, proxy_process, tmp_path) as made:
        yield made


@pytest.fixture
async def caller(stage: Stage) -> AsyncIterator[Caller]:
    made = await stage.caller()
    yield made
    made.close()


async def test_a_miss_is_fetched_once_and_filled(stage: Stage, caller: Caller) -> None:
    """The first read comes from PostgreSQL, the next from Redis, whole and with a time."""
    first = await caller.call("HGETALL", "item:1")
    assert dict(zip(first[::2], first[1::2], strict=True)) == {
        b"title": b"title 1",
        b"price": b"1.5",
    }
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    assert await caller.call("HGET", "item:1", "nothing") is None
    assert await caller.call("EXISTS", "item:1") == 1
    assert await stage.looks() == 1
    assert 100_000 < await stage.direct("PTTL", "item:1") <= 120_000
    assert 40_000 < await caller.call("PTTL", "item:1") <= 60_000
    assert 40 < await caller.call("TTL", "item:1") <= 60
    assert await stage.direct("EXISTS", "sidecache:lease:{item:1}") == 0


async def test_an_empty_string_is_read_from_redis(stage: Stage, caller: Caller) -> None:
    """PostgreSQL is asked for it once, and a part of a string that has nothing there never."""
    await stage.database.execute("UPDATE items SET title = '' WHERE id = '1'")
    assert await caller.call("GET", "title:1") == b""
    for words in (("GET", "title:1"), ("STRLEN", "title:1"), ("GETRANGE", "title:1", 0, 9)):
        for _ in range(5):
            assert await caller.call(*words) == (0 if words[0] == "STRLEN" else b"")
    assert await stage.looks() == 1


async def test_no_row_is_remembered_for_a_while(stage: Stage, caller: Caller) -> None:
    """A key without a row is nil, and PostgreSQL is asked for it once."""
    assert await caller.call("GET", "title:nobody") is None
    assert await caller.call("GET", "title:nobody") is None
    assert await caller.call("TTL", "title:nobody") == -2
    assert await stage.looks() == 1
    assert await caller.call("SET", "title:nobody", "somebody") == b"OK"
    assert await caller.call("GET", "title:nobody") == b"somebody"


async def test_many_clients_make_one_statement(stage: Stage) -> None:
    """However many ask for a cold key at once, PostgreSQL is asked once."""
    await stage.database.execute("UPDATE pace SET seconds = 0.1")
    callers = [await stage.caller() for _ in range(200)]
    values = await asyncio.gather(*(each.call("GET", "title:1") for each in callers))
    assert set(values) == {b"title 1"}
    assert await stage.looks() == 1


async def test_a_random_pick_is_none_of_nothing(stage: Stage, caller: Caller) -> None:
    """While another sidecar fetches a key for long, there is a row but none to pick from yet."""
    await stage.direct("SET", "sidecache:lease:{item:1}", "another", "PX", 60_000)
    assert str(await caller.call("HRANDFIELD", "item:1")).startswith("TRYAGAIN")
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    await stage.direct("DEL", "sidecache:lease:{item:1}")
    assert await caller.call("HRANDFIELD", "item:1") in (b"title", b"price")
    assert await caller.call("HRANDFIELD", "item:nobody") is None


async def test_what_is_stale_is_served_and_fetched_again(stage: Stage, caller: Caller) -> None:
    """Inside the stale window the old value is the answer, and the new one comes by itself."""
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    await stage.database.execute("UPDATE items SET title = 'new' WHERE id = '1'")
    await stage.direct("PEXPIRE", "item:1", 50_000)  # ten seconds into the window
    assert await caller.call("HGET", "item:1", "title") == b"title 1"

    async def renewed() -> bool:
        return bool(await caller.call("HGET", "item:1", "title") == b"new")

    await wait_for(renewed, "the value to be fetched again")
    assert await stage.looks() == 2
    assert await caller.call("PTTL", "item:1") > 40_000


async def test_what_is_too_old_is_fetched_before_it_is_shown(stage: Stage, caller: Caller) -> None:
    """Beyond the stale window PostgreSQL decides; where it cannot, the old value is shown."""
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    await stage.database.execute("UPDATE items SET title = 'new' WHERE id = '1'")
    await stage.direct("PEXPIRE", "item:1", 20_000)  # forty seconds into the window
    assert await caller.call("TTL", "item:1") == 0
    assert await caller.call("HGET", "item:1", "title") == b"new"
    await stage.direct("PEXPIRE", "item:1", 20_000)
    await stage.database.execute("ALTER FUNCTION item(text) RENAME TO gone")
    assert await caller.call("HGET", "item:1", "title") == b"new"
    missing = await caller.call("HGET", "item:2", "title")
    assert is_error(missing)
    assert "42883" in str(missing)


async def test_a_write_is_in_postgres_before_it_is_answered(stage: Stage, caller: Caller) -> None:
    """HSET and SET reach PostgreSQL, answer as Redis does, and the next read shows them."""
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    commands = [("HSET", "item:1", "title", "x"), ("HGET", "item:1", "title")]
    assert await caller.pipeline(commands) == [0, b"x"]
    assert await stage.database.fetchval("SELECT title FROM items WHERE id = '1'") == "x"
    await stage.database.execute("UPDATE items SET price = NULL WHERE id = '2'")
    assert await caller.call("HSET", "item:2", "price", "7.25") == 1
    assert await caller.call("HMSET", "item:2", "title", "y", "price", "8") == b"OK"
    assert await caller.call("HGETALL", "item:2") == [b"title", b"y", b"price", b"8"]
    assert await caller.call("SET", "title:new", "z", "EX", 5) == b"OK"
    assert await caller.call("GET", "title:new") == b"z"


async def test_what_a_statement_cannot_do_is_refused(stage: Stage, caller: Caller) -> None:
    """Writes that PostgreSQL is not told in full change nothing, in transactions neither."""
    refused = await caller.pipeline([
        ("HSET", "item:1", "owner", "me"), ("HSET", "item:none", "title", "x"),
        ("HDEL", "item:1", "title"), ("HINCRBY", "item:1", "price", 1),
        ("SET", "title:1", "x", "NX"), ("APPEND", "title:1", "x"),
        ("MSET", "title:1", "x", "title:2", "y"),
        ("HSET", "item:1", "price", "much"),
    ])  # fmt: skip
    assert [str(each).partition(" ")[0] for each in refused] == ["POLICY"] * 7 + ["ERR"]
    replies = await caller.pipeline([("MULTI",), ("SET", "title:1", "x"), ("EXEC",)])
    assert str(replies[1]).startswith("POLICY")
    assert str(replies[2]).startswith("EXECABORT")
    assert await stage.database.fetchval("SELECT title FROM items WHERE id = '1'") == "title 1"


async def test_a_write_in_redis_alone_keeps_the_time_that_was_asked(
    stage: Stage, caller: Caller
) -> None:
    """Where nothing is written through, clients see their own times and Redis has the window."""
    assert await caller.call("SET", "note:1", "mine", "EX", 30) == b"OK"
    assert await caller.call("GET", "note:1") == b"mine"
    assert 80_000 < await stage.direct("PTTL", "note:1") <= 90_000
    assert 20 < await caller.call("TTL", "note:1") <= 30
    assert await caller.call("SET", "note:2", "mine") == b"OK"
    assert 50 < await caller.call("TTL", "note:2") <= 60
    assert await caller.call("EXPIRE", "note:2", 10) == 1
    assert 60_000 < await stage.direct("PTTL", "note:2") <= 70_000
    assert await caller.call("SETEX", "note:3", 10, "mine") == b"OK"
    assert 0 < await caller.call("TTL", "note:3") <= 10
    replies = await caller.pipeline([("MULTI",), ("SET", "note:4", "x", "PX", 9000), ("EXEC",)])
    assert replies[2] == [b"OK"]
    assert 0 < await caller.call("PTTL", "note:4") <= 9000
    assert await caller.call("DEL", "note:1", "note:2", "note:3", "note:4") == 4
    assert await caller.call("GET", "note:1") == b"title 1"


async def test_a_part_is_written_to_the_whole(stage: Stage, caller: Caller) -> None:
    """A command that changes a part of a value, or its time, finds the value that clients see."""
    assert await caller.call("APPEND", "note:1", "!") == 8
    assert await caller.call("GET", "note:1") == b"title 1!"
    assert await caller.call("EXPIRE", "note:2", 10) == 1
    assert await caller.call("GETEX", "note:3", "EX", 10) == b"title 3"
    assert 0 < await caller.call("TTL", "note:3") <= 10
    assert await caller.call("MSET", "note:4", "four", "note:5", "five", "other", "o") == b"OK"
    assert await caller.call("MGET", "note:4", "note:5", "other") == [b"four", b"five", b"o"]
    assert 50 < await caller.call("TTL", "note:4") <= 60
    assert await caller.call("EXPIRE", "note:none", 10) == 0
    assert await caller.call("SET", "note:6", "x", "NX") is None
    assert await caller.call("SET", "note:7", "x", "GET") == b"title 7"
    assert await caller.call("SET", "note:none", "x", "NX") == b"OK"
    assert await caller.call("GETDEL", "note:8") == b"title 8"
    assert await caller.call("PERSIST", "note:10") == 1


async def test_a_part_is_not_written_to_nothing(stage: Stage, caller: Caller) -> None:
    """While somebody else holds the lease, or nobody can, a part is refused and nothing is told."""
    await stage.database.execute("INSERT INTO items VALUES ('a}b', 'braced', 7)")
    lease = ("SET", "sidecache:lease:{note:1}", "gone", "PX", 60_000)
    for words in (("APPEND", "note:1", "!"), ("BITCOUNT", "note:1"), ("SET", "note:1", "x", "NX")):
        await stage.direct(*lease)
        assert str(await caller.call(*words)).startswith("TRYAGAIN"), words
        assert await stage.direct("EXISTS", "note:1") == 0
    await stage.void("note:1")
    assert await caller.call("APPEND", "note:1", "!") == 8
    for braced in (("APPEND", "note:a}b", "!"), ("BITCOUNT", "note:a}b")):
        assert "braces" in str(await caller.call(*braced))
    assert await caller.call("GET", "note:a}b") == b"braced"


async def test_parts_that_race_with_changes_are_of_the_whole(stage: Stage, caller: Caller) -> None:
    """Where the key goes between the fetch and the write, it is fetched again."""
    other = await stage.caller()
    for number in range(1, 61):
        key = f"note:{number}"
        replies = await asyncio.gather(
            caller.call("APPEND", key, "!"), stage.void(key), other.call("APPEND", key, "?")
        )
        assert b"title" in await caller.call("GET", key), (key, replies)


async def test_what_is_watched_is_fetched_first(stage: Stage, caller: Caller) -> None:
    """A look-up behind WATCH does not count as a change by somebody else."""
    assert await caller.call("WATCH", "note:5") == b"OK"
    assert await caller.call("GET", "note:5") == b"title 5"
    assert await caller.call("MULTI") == b"OK"
    assert await caller.call("SET", "note:5", "mine") == b"QUEUED"
    assert await caller.call("EXEC") == [b"OK"]
    await stage.void("note:6")
    assert await caller.call("WATCH", "note:6") == b"OK"
    await stage.direct("SET", "note:6", "theirs")
    assert await caller.call("MULTI") == b"OK"
    assert await caller.call("SET", "note:6", "mine") == b"QUEUED"
    assert await caller.call("EXEC") is None


async def test_what_is_no_look_up_finds_the_row_too(stage: Stage, caller: Caller) -> None:
    """Scans and questions about a value are answered upon what PostgreSQL has."""
    cursor, fields = await caller.call("HSCAN", "item:1", 0)
    assert (cursor, sorted(fields)) == (b"0", [b"1.5", b"price", b"title", b"title 1"])
    assert await caller.call("TOUCH", "note:1", "note:2", "note:nobody") == 2
    assert await caller.call("OBJECT", "ENCODING", "note:3") in (b"embstr", b"raw")
    assert await caller.call("BITCOUNT", "note:4", 0, 0) == 4
    assert await caller.call("EXPIRE", "item:2", 100) == 1
    assert await caller.call("GETEX", "title:5") == b"title 5"
    assert await caller.call("HSCAN", "item:nobody", 0) == [b"0", []]


SET = ("SET", "note:1", "mine")
EVAL = ("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, "note:1", "mine")


@pytest.mark.parametrize("sidecars", [1, 2])
@pytest.mark.parametrize(
    "commands",
    [[SET], [("MULTI",), SET, ("EXEC",)], [EVAL], [("MULTI",), EVAL, ("EXEC",)]],
    ids=["alone", "transaction", "script", "script in transaction"],
)
async def test_a_write_ends_the_fetch_that_began_before_it(
    stage: Stage,
    caller: Caller,
    proxy_process: StartProxy,
    sidecars: int,
    commands: list[tuple[Word, ...]],
) -> None:
    """What a client wrote in Redis is not replaced by what any sidecar read before."""
    await stage.database.execute("UPDATE pace SET seconds = 0.3")
    proxy = stage.proxy if sidecars == 1 else await stage.another(proxy_process)
    other = await Caller.open(proxy.port)
    slow = asyncio.create_task(other.call("GET", "note:1"))

    async def fetched() -> bool:
        return await stage.looks() == 1

    await wait_for(fetched, "the fetch to begin")
    assert (await caller.pipeline(commands))[-1] in (b"OK", [b"OK"])
    assert await slow == b"title 1"
    # A time that the rules give is as long in Redis as that of a copy: nothing is stale yet.
    assert await stage.direct("PTTL", "note:1") > 100_000
    assert await caller.call("GET", "note:1") == b"mine"
    assert await stage.looks() == 1


async def test_a_divided_write_gives_as_long_a_time_as_a_copy_has(
    stage: Stage, caller: Caller
) -> None:
    """Over several slots too, what a transaction writes is not stale as soon as it is there."""
    keys = ("note:1", "note:2", "note:3", "note:4")
    pairs = [word for key in keys for word in (key, "mine")]
    assert (await caller.pipeline([("MULTI",), ("MSET", *pairs), ("EXEC",)]))[-1] == [b"OK"]
    assert all([await stage.direct("PTTL", key) > 100_000 for key in keys])


async def test_several_keys_are_answered_each_by_its_rule(stage: Stage, caller: Caller) -> None:
    """MGET keeps order and duplicates, whatever Redis lacks; EXISTS counts each time."""
    await caller.call("SET", "plain", "p")
    keys = ("title:3", "plain", "title:nobody", "title:4", "title:3", "absent")
    wanted = [b"title 3", b"p", None, b"title 4", b"title 3", None]
    assert await caller.call("MGET", *keys) == wanted
    assert await caller.call("MGET", *keys) == wanted
    assert await caller.call("MGET", "title:5") == [b"title 5"]
    assert (
        await caller.call("EXISTS", "title:3", "title:3", "title:9", "title:nobody", "plain") == 4
    )
    assert await stage.looks() == 5
    assert await caller.call("DEL", "title:3", "plain", "title:nobody") == 2
    assert await caller.call("GET", "title:3") == b"title 3"
    await stage.database.execute("ALTER FUNCTION item(text) RENAME TO gone")
    assert is_error(await caller.call("MGET", "title:4", "title:50"))


async def test_hostile_keys_make_no_other_statement(stage: Stage, caller: Caller) -> None:
    """Whatever keys, fields and values hold, PostgreSQL gets the texts of the policies."""
    hostile = ("'; DROP TABLE items; --", "$1", "\\", "%s", "{0}", "é", "a b", "*", '"', "]x[")
    for text in hostile:
        assert await caller.call("GET", f"title:{text}") is None
        assert await caller.call("SET", f"title:{text}", text) == b"OK"
        assert await caller.call("GET", f"title:{text}") == text.encode()
        assert is_error(await caller.call("HSET", "item:1", text, "x"))
    assert await caller.call("GET", b"title:\xff\xfe") is None
    texts = await stage.database.fetch(
        "SELECT DISTINCT query FROM pg_stat_activity WHERE application_name LIKE 'sidecache%'"
    )
    assert not [row for row in texts if "DROP" in row["query"]]
    assert await stage.database.fetchval("SELECT count(*) FROM items") == 100 + len(hostile)


@pytest.fixture
async def mortal(
    postgres_server: Postgres,
    start_cluster: StartCluster,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> AsyncIterator[Stage]:
    """A stage whose cluster may be killed."""
    cluster = await start_cluster()
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as made:
        yield made


async def test_without_redis_answers_go_on(mortal: Stage) -> None:
    """With the cluster killed all goes to PostgreSQL; Redis is used again when it is back."""
    caller = await mortal.caller()
    assert await caller.call("GET", "title:1") == b"title 1"
    assert await caller.call("HGET", "item:1", "title") == b"title 1"
    for node in mortal.cluster.nodes:
        node.kill()
    replies = await caller.pipeline([
        ("GET", "title:1"), ("HGET", "item:1", "title"), ("MGET", "title:1", "title:2"),
        ("TTL", "title:1"), ("HRANDFIELD", "item:1"), ("GET", "note:1"), ("GET", "title:nobody"),
    ])  # fmt: skip
    assert replies[:3] == [b"title 1", b"title 1", [b"title 1", b"title 2"]]
    assert replies[3] == 60
    assert str(replies[4]).startswith("DEGRADED")
    assert str(replies[5]).startswith("CLUSTERDOWN")
    assert replies[6] is None
    assert await caller.call("SET", "title:1", "new") == b"OK"
    assert await caller.call("GET", "title:1") == b"new"
    assert await caller.call("HSET", "item:1", "title", "newer") == 0
    assert await caller.call("DEL", "title:2") == 1
    await asyncio.gather(*(node.restart() for node in mortal.cluster.nodes))

    async def filled() -> bool:
        return await caller.call("GET", "title:1") == b"new" and bool(
            await mortal.direct("EXISTS", "title:1")
        )

    await wait_for(filled, "Redis to be used again", 30)
    assert await caller.call("HGET", "item:1", "title") == b"newer"


async def test_a_stampede_without_redis_is_one_statement(mortal: Stage) -> None:
    """A thousand clients read one key while no node is there: one statement, within two seconds."""
    callers = [await mortal.caller() for _ in range(1000)]
    for node in mortal.cluster.nodes:
        node.kill()
    await wait_for_away(mortal, callers[0])
    await mortal.database.execute("UPDATE pace SET seconds = 0.2")
    before = await mortal.looks()
    async with asyncio.timeout(2):
        values = await asyncio.gather(*(each.call("GET", "title:7") for each in callers))
    assert set(values) == {b"title 7"}
    assert await mortal.looks() - before == 1


async def wait_for_away(stage: Stage, caller: Caller) -> None:
    async def away() -> bool:
        return str(await caller.call("GET", "note:1")).startswith("CLUSTERDOWN")

    await wait_for(away, "the cluster to be away")
