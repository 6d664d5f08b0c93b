"""Keyspaces that PostgreSQL stands behind, with PostgreSQL, or both, or a whole sidecar away."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.redis import Shape
from tests.conftest import Clusters, StartCluster
from tests.integration.origin import staged
from tests.integration.rig import Caller, StartProxy, is_error, wait_for

# Sessions of the loops that keep Redis in step, beside those of clients.
LEADERS = 2

pytestmark = pytest.mark.integration


@pytest.fixture
async def mortal_server(tmp_path: Path) -> AsyncIterator[Postgres]:
    async with postgres_for(tmp_path / "postgres") as server:
        yield server


async def starts_with(caller: Caller, words: tuple[str, ...], prefix: str) -> bool:
    return str(await caller.call(*words)).startswith(prefix)


async def test_without_postgres_errors_come_at_once(
    mortal_server: Postgres,
    empty_clusters: Clusters,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> None:
    """What Redis has goes on, the rest is an error within milliseconds, and a second heals it."""
    async with staged(mortal_server, empty_clusters.cache, proxy_process, tmp_path) as stage:
        caller = await stage.caller()
        assert await caller.call("HGET", "item:1", "title") == b"title 1"
        assert await caller.call("HGET", "item:2", "title") == b"title 2"
        await stage.direct("PEXPIRE", "item:2", 20_000)  # too old, unless PostgreSQL is away
        mortal_server.kill()
        await wait_for(
            lambda: starts_with(caller, ("GET", "title:1"), "PGDOWN"), "PostgreSQL to be missed"
        )
        times = []
        for number in range(50):
            started = time.monotonic()
            assert is_error(await caller.call("GET", f"title:{number}"))
            times.append(time.monotonic() - started)
        # Of fifty a few may wait for a busy machine.
        assert sorted(times)[45] < 0.05
        assert await caller.call("HGET", "item:1", "title") == b"title 1"
        assert await caller.call("HGET", "item:2", "title") == b"title 2"
        assert str(await caller.call("SET", "title:1", "x")).startswith("PGDOWN")
        await mortal_server.restart()
        started = time.monotonic()
        await wait_for(
            lambda: starts_with(caller, ("GET", "title:1"), "b'title 1'"), "PostgreSQL to be used"
        )
        assert time.monotonic() - started < 2


async def test_load_that_is_shed_is_no_nil(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Beyond the budget of PostgreSQL clients are told to come again; a whole MGET is one error."""
    budget = {"connections": 2, "queue": 2, "patience": "50ms"}
    async with staged(
        postgres_server, empty_clusters.cache, proxy_process, tmp_path, database=budget
    ) as stage:
        await stage.database.execute("UPDATE pace SET seconds = 0.1")
        callers = [await stage.caller() for _ in range(40)]
        replies = await asyncio.gather(
            *(each.call("GET", f"title:{n}") for n, each in enumerate(callers, 1))
        )
        wanted = [b"title %d" % number for number in range(1, 41)]
        answered = [reply for reply in replies if not is_error(reply)]
        assert answered
        assert set(answered) < set(wanted)
        shed = {str(reply).partition(" ")[0] for reply in replies if is_error(reply)}
        assert shed == {"TRYAGAIN"}
        several = await callers[0].call("MGET", *(f"title:{n}" for n in range(60, 80)))
        assert str(several).startswith("TRYAGAIN")
        assert await stage.sessions() <= 2 + LEADERS


async def test_a_write_whose_connection_is_lost_has_an_unknown_outcome(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Nobody knows whether it was committed: the client is told so, and Redis has nothing old."""
    async with staged(postgres_server, empty_clusters.cache, proxy_process, tmp_path) as stage:
        caller = await stage.caller()
        assert await caller.call("GET", "title:1") == b"title 1"
        await stage.database.execute("""
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.6); RETURN NEW; END';
            CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON items
            FOR EACH ROW EXECUTE FUNCTION wait();
        """)
        write = asyncio.create_task(caller.call("SET", "title:1", "x"))

        async def ended() -> bool:
            found = await stage.database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'INSERT INTO items%' AND state = 'active'"
            )
            return bool(found)

        await wait_for(ended, "the statement to run")
        assert "Outcome unknown" in str(await write)
        assert await stage.direct("EXISTS", "title:1") == 0
        assert await caller.call("GET", "title:1") == b"title 1"


async def test_two_sidecars_make_one_statement(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Who does not get the lease waits for who has it."""
    async with staged(postgres_server, empty_clusters.cache, proxy_process, tmp_path) as stage:
        other = await stage.another(proxy_process)
        await stage.database.execute("UPDATE pace SET seconds = 0.06")
        callers = [await Caller.open(port) for port in (stage.proxy.port, other.port) * 20]
        values = await asyncio.gather(*(each.call("GET", "title:1") for each in callers))
        assert set(values) == {b"title 1"}
        assert await stage.looks() == 1


async def test_a_fetch_that_a_change_overtakes_leaves_nothing(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """What was read before a change is told to who asked before it, and not kept."""
    async with staged(postgres_server, empty_clusters.cache, proxy_process, tmp_path) as stage:
        caller = await stage.caller()
        await stage.database.execute("UPDATE pace SET seconds = 0.3")
        slow = asyncio.create_task(caller.call("GET", "title:1"))

        async def fetched() -> bool:
            return await stage.looks() == 1

        await wait_for(fetched, "the fetch to begin")
        await stage.database.execute("UPDATE items SET title = 'new' WHERE id = '1'")
        await stage.void("title:1")
        assert await slow == b"title 1"
        assert await stage.direct("EXISTS", "title:1") == 0
        assert await caller.call("GET", "title:1") == b"new"


async def test_no_fill_outlives_a_change(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Changes in PostgreSQL race reads of two sidecars; what is left in Redis is never the old."""
    dice = random.Random(20)
    async with staged(postgres_server, empty_clusters.cache, proxy_process, tmp_path) as stage:
        other = await stage.another(proxy_process)
        await stage.database.execute("UPDATE pace SET seconds = 0.003")
        readers = [await Caller.open(port) for port in (stage.proxy.port, other.port) * 4]
        over = False

        async def read(caller: Caller) -> None:
            while not over:
                await caller.call("GET", f"title:{dice.randrange(1, 6)}")

        reading = [asyncio.create_task(read(caller)) for caller in readers]
        for number in range(300):
            key = dice.randrange(1, 6)
            await stage.database.execute(
                "UPDATE items SET title = $1 WHERE id = $2", f"v{number}", str(key)
            )
            await stage.void(f"title:{key}")
        over = True
        await asyncio.gather(*reading)
        for key in range(1, 6):
            wanted = await stage.database.fetchval(
                "SELECT title FROM items WHERE id = $1", str(key)
            )
            assert await stage.direct("GET", f"title:{key}") in (None, wanted.encode())


async def test_without_both_copies_are_shown_for_as_long_as_allowed(
    mortal_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Redis is away, then PostgreSQL too: what may be old is shown, the rest is an error."""
    cluster = await start_cluster()
    async with staged(mortal_server, cluster, proxy_process, tmp_path) as stage:
        caller = await stage.caller()
        for node in cluster.nodes:
            node.kill()
        assert await caller.call("HGET", "item:1", "title") == b"title 1"
        assert await caller.call("GET", "title:1") == b"title 1"
        mortal_server.kill()
        assert await caller.call("GET", "title:1") == b"title 1"
        await wait_for(
            lambda: starts_with(caller, ("GET", "title:1"), "PGDOWN"), "the copy to be too old"
        )
        assert await caller.call("HGET", "item:1", "title") == b"title 1"
        assert str(await caller.call("HGET", "item:2", "title")).startswith("PGDOWN")
        stale = 'sidecache_origin_answers_total{keyspace="item",source="stale"}'
        assert await stage.metric(stale) == 1
        await mortal_server.restart()


async def test_what_a_silent_node_was_not_told_is_not_shown(
    postgres_server: Postgres,
    start_cluster: StartCluster,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> None:
    """Who has written reads that, also when the node wakes up with a look-up before it.

    What only a node can answer may be refused until the node is used again.
    """
    reads: dict[tuple[str, ...], object] = {
        ("GET", "title:1"): b"new", ("STRLEN", "title:2"): 3, ("MGET", "title:3"): [b"new"],
        ("MGET", "title:4", "title:9"): [b"new", b"title 9"], ("LCS", "title:5", "title:5"): b"new",
    }  # fmt: skip
    cluster = await start_cluster(NodeOptions(node_timeout=5.0), Shape(3, 0))
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as stage:
        writer, *readers = [await stage.caller() for _ in range(1 + 2 * len(reads))]
        for words in reads:
            await writer.call(*words)
        for node in cluster.nodes:
            node.pause()
        written = [await stage.caller() for _ in reads]
        news = [
            each.call("SET", words[1], "new") for each, words in zip(written, reads, strict=True)
        ]
        assert await asyncio.gather(*news) == [b"OK"] * len(reads)
        askers = zip([*written, *readers], [*reads] * 3, strict=True)
        asked = [asyncio.create_task(each.call(*words)) for each, words in askers]
        # Its turn comes behind what is asked on these connections.
        await writer.call("PING")
        for node in cluster.nodes:
            node.resume()
        told = [*await asyncio.gather(*asked), *[await writer.call(*words) for words in reads]]
        for words, said in zip([*reads] * 4, told, strict=True):
            refused = words[0] == "LCS" and str(said).startswith("CLUSTERDOWN")
            assert said == reads[words] or refused, words
