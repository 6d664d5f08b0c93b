"""Keyspaces that PostgreSQL stands behind, at scale."""

import asyncio
import random
import re
import time
from pathlib import Path

import pytest

from proxy.embedded.postgres import Postgres
from proxy.plans import plans_in
from proxy.policy.draft import Order, drafted_here
from tests.conftest import Clusters, StartCluster
from tests.integration.origin import Stage, staged
from tests.integration.rig import Caller, StartProxy, cpu_seconds, wait_for
from tests.integration.test_origin import wait_for_away
from tests.replies import pack

pytestmark = [pytest.mark.integration, pytest.mark.long]

CLIENTS = 10_000
QUESTION = pack("GET", "title:7")


async def connected(stage: Stage, count: int) -> list[Caller]:
    """Return so many clients, some hundred of them connecting at a time."""
    callers: list[Caller] = []
    while len(callers) < count:
        callers += await asyncio.gather(
            *(stage.caller() for _ in range(min(200, count - len(callers))))
        )
    return callers


async def test_a_stampede_of_ten_thousand(
    postgres_server: Postgres,
    start_cluster: StartCluster,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> None:
    """Ten thousand clients, one cold key, no Redis: one statement, all answered in two seconds."""
    cluster = await start_cluster()
    limits = {"clients": CLIENTS + 100}
    async with staged(postgres_server, cluster, proxy_process, tmp_path, limits=limits) as stage:
        callers = await connected(stage, CLIENTS)
        for node in cluster.nodes:
            node.kill()
        await wait_for_away(stage, callers[0])
        before, sessions = await stage.looks(), 0
        started, cpu = time.monotonic(), cpu_seconds(stage.proxy.pid)
        for each in callers:
            each.writer.write(QUESTION)
        storm = asyncio.gather(*(each.next() for each in callers))
        while not storm.done():
            sessions = max(sessions, await stage.sessions())
            await asyncio.sleep(0.05)
        took = time.monotonic() - started
        assert set(await storm) == {b"title 7"}
        assert await stage.looks() - before == 1
        assert sessions <= 8
        cpu = cpu_seconds(stage.proxy.pid) - cpu
        print(f"{CLIENTS} answers in {took:.2f} s, {cpu:.2f} s of a core, {sessions} sessions")
        # What the proxy takes of it: clients and neighbours want the same two cores.
        assert cpu <= 1.5
        assert took <= 10


def hostile(dice: random.Random) -> bytes:
    """Return bytes that would be another statement, if anybody pasted them into one."""
    pieces = (b"'", b'"', b";", b"--", b"/*", b"$1", b"$$", b"\\", b"%s", b"{id}", b" OR ", b"1=1")
    words = (b"DROP", b"items", b"x", b"\xc3\xa9", b"\xff", b"(", b")", b"|", b"\t".hex().encode())
    return b"".join(dice.choice(pieces + words) for _ in range(dice.randrange(1, 12)))


async def test_hostile_words_make_no_other_statement(
    postgres_server: Postgres,
    empty_clusters: Clusters,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> None:
    """Of 5,000 keys, fields and values none changes what PostgreSQL is given as SQL."""
    log = postgres_server.directory / "server.log"
    if not log.exists():
        pytest.skip("the server of these tests has a log elsewhere")
    cluster = empty_clusters.cache
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as stage:
        rules = drafted_here(Order(tmp_path, ("cache",), None))[1]
        plans = plans_in(rules).by_keyspace.values()
        texts = {each.read.text for each in plans if each.read is not None}
        texts |= {each.writing.statement.text for each in plans if each.writing is not None}
        before = log.stat().st_size
        await stage.database.execute("SET log_statement = 'none'")
        name = await stage.database.fetchval("SELECT current_database()")
        await stage.database.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
        second = await stage.another(proxy_process)
        callers = [await Caller.open(second.port) for _ in range(20)]

        async def talk(caller: Caller, dice: random.Random) -> None:
            for _ in range(250 // 5):
                key, word = hostile(dice), hostile(dice)
                await caller.pipeline([
                    ("GET", b"title:" + key), ("SET", b"title:" + key, word),
                    ("HSET", "item:1", word, key), ("HSET", "item:1", "title", word),
                    ("HGETALL", b"item:" + word),
                ])  # fmt: skip

        await asyncio.gather(*(talk(c, random.Random(n)) for n, c in enumerate(callers)))
        with log.open("rb") as lines:
            lines.seek(before)
            logged = lines.read().decode(errors="replace")
        seen = {
            text.replace("\n\t", "\n").strip()
            for text in re.findall(r"LOG:  execute [^:]*: (.*(?:\n\t.*)*)", logged)
        }
        # What the proxy asks for itself.
        seen = {text for text in seen if not re.search("pg_try_advisory_lock|sidecache_", text)}
        assert seen <= {text.strip() for text in texts}, seen
        assert len(seen) >= 4
        assert await stage.database.fetchval("SELECT count(*) FROM items") >= 100


async def test_an_outage_under_load(
    postgres_server: Postgres,
    start_cluster: StartCluster,
    proxy_process: StartProxy,
    tmp_path: Path,
) -> None:
    """All nodes are killed and come back under load: no read fails, none is old, none is late."""
    cluster = await start_cluster()
    async with staged(postgres_server, cluster, proxy_process, tmp_path) as stage:
        callers = [await stage.caller() for _ in range(20)]
        wrong: list[object] = []
        times: list[tuple[float, float]] = []  # when asked, how long it took
        over = False

        async def read(caller: Caller, dice: random.Random) -> None:
            while not over:
                number = dice.randrange(1, 101)
                started = time.monotonic()
                if dice.random() < 0.5:
                    value = await caller.call("GET", f"title:{number}")
                else:
                    value = await caller.call("HGET", f"item:{number}", "title")
                times.append((started, time.monotonic() - started))
                if value != b"title %d" % number:
                    wrong.append(value)

        async def more(count: int) -> None:
            wanted = len(times) + count
            await wait_for(lambda: len(times) >= wanted, "more reads", 60)

        tasks = [asyncio.create_task(read(c, random.Random(n))) for n, c in enumerate(callers)]
        await more(3000)
        killed = time.monotonic()
        for node in cluster.nodes:
            node.kill()
        await more(10_000)
        await asyncio.gather(*(node.restart() for node in cluster.nodes))

        async def filled() -> bool:
            return await stage.direct("EXISTS", "title:1") == 1

        await wait_for(filled, "Redis to be used again", 30)
        back = time.monotonic() - killed
        await more(3000)
        over = True
        await asyncio.gather(*tasks)
        after = [took for at, took in times if killed - 0.1 < at < killed + 3]
        first = min(at + took - killed for at, took in times if at >= killed)
        print(
            f"{len(times)} reads, {len(wrong)} wrong, first {first * 1000:.0f} ms after the kill, "
            f"slowest {max(after) * 1000:.0f} ms, used again after {back:.1f} s"
        )
        assert not wrong, wrong[:5]
        assert first < 0.25
        # Nobody waits for the deadline of a node that is up while its cluster is not.
        assert max(after) < 0.9
