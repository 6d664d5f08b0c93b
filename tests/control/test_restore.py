"""Shards of a real cluster lose their data, and get back what a real database has of it."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import wire
from proxy.control.restore import NotHere
from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Cluster, Shape
from tests.conftest import StartCluster
from tests.control.bench import ask, rules
from tests.control.restoring import POLICIES, Restorer, marked, names_on, restorer, whole
from tests.integration.rig import wait_for
from tests.origin.bench import Connection, connected

pytestmark = pytest.mark.integration

ROWS = 1200


@pytest.fixture
async def writer(url: str) -> AsyncIterator[Connection]:
    async with connected(url) as connection:
        await connection.execute(
            "INSERT INTO event SELECT n::text, 'title ' || n, 100 + n % 50 "
            f"FROM generate_series(1, {ROWS}) n"
        )
        yield connection


@pytest.fixture
def ruleset(tmp_path: Path) -> wire.Ruleset:
    return rules(tmp_path, POLICIES)


@pytest.fixture
async def cluster(cache_cluster: Cluster) -> Cluster:
    await cache_cluster.flush()
    return cache_cluster


@pytest.fixture
async def bench(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> AsyncIterator[Restorer]:
    async with restorer(cluster, ruleset, url) as bench:
        await whole(cluster)
        yield bench


async def test_what_was_lost_comes_back(
    bench: Restorer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """All keys of the lost shard, as they were, with their times; others are not touched."""
    caplog.set_level(logging.INFO, "sidecache")
    lost, *others = cluster.primaries
    before = await names_on(lost, "[ehv]*")
    assert len(before) > ROWS // 4
    for node in others:
        for name in await names_on(node, "hold:*"):
            await node.ask("SET", name, "untouched")
    await lost.ask("FLUSHALL")
    await wait_for(lambda: len(bench.reports) == 2, "the loss to be noticed")
    assert bench.restore.recovering(0, 0) != bench.restore.recovering(0, 16383)
    await whole(cluster)
    assert await names_on(lost, "[ehv]*") == before
    event = next(name for name in before if name.startswith("event:"))
    number = int(event.partition(":")[2])
    fields = {"title": f"title {number}", "venue": str(100 + number % 50)}
    assert await lost.ask("HGETALL", event) == list(itertools.chain(*fields.items()))
    assert 290_000 < await lost.ask("PTTL", event) <= 300_000
    hold = next(name for name in before if name.startswith("hold:"))
    number = int(hold.partition(":")[2])
    assert 0 <= (100 + number % 50) * 1000 - await lost.ask("PTTL", hold) < 20_000
    venue = next(name for name in before if name.startswith("venue:"))
    assert len(await lost.ask("LRANGE", venue, 0, -1)) == ROWS // 50
    for node in others:
        for name in list(await names_on(node, "hold:*"))[:20]:
            assert await node.ask("GET", name) == "untouched"
    await wait_for(lambda: not bench.restore.recovering(0, 0), "everybody to see that")
    assert [each.state for each in bench.progress.values()] == ["done"] * 3
    assert bench.progress["event"].left == 0
    page = bench.page()
    assert 'sidecache_restore_running{cluster="cache"} 0.0' in page
    assert 'sidecache_shards_lost_data_total{cluster="cache"} 4.0' in page
    events = [record.msg for record in caplog.records]
    assert [events.count(f"restore_{state}") for state in ("running", "done")] == [1, 1]
    (said,) = [record for record in caplog.records if record.msg == "shards_lost_data"]
    assert said.__dict__["fields"] == {
        "cluster": "cache", "shards": 1,
        "restore": "event hold venue", "refill": "", "lost": "cart",
    }  # fmt: skip


async def test_a_newer_key_stays(bench: Restorer, cluster: Cluster) -> None:
    """What was filled or written since the loss is newer than what was lost."""
    lost = cluster.primaries[0]
    names = await names_on(lost, "hold:*")
    # So that the page that has them is read after they were written.
    async with bench.applier.still():
        await lost.ask("FLUSHALL")
        for name in names:
            await lost.ask("SET", name, "newer")
    await wait_for(lambda: len(bench.reports) == 2, "the loss to be noticed")
    await whole(cluster)
    assert {await lost.ask("GET", name) for name in names} == {"newer"}


async def test_the_first_are_back_before_others_begin(bench: Restorer, cluster: Cluster) -> None:
    """By priority; a shard is not marked before the last is done."""
    lost = cluster.primaries[0]
    await lost.ask("FLUSHALL")
    await wait_for(lambda: bench.progress["venue"].state == "waiting", "it to begin", patience=20)
    await wait_for(lambda: bench.progress["event"].rows, "the second keyspace", patience=20)
    assert bench.progress["hold"].state == "done"
    assert bench.progress["venue"].state == "waiting"
    assert bench.progress["event"].left == ROWS - bench.progress["event"].rows
    assert len(await names_on(lost, "hold:*")) > ROWS // 5
    assert await marked(cluster) == 2
    await whole(cluster)


async def test_changes_that_are_committed_meanwhile_win(
    cluster: Cluster, tmp_path: Path, url: str, writer: Connection
) -> None:
    """Whatever is there behind a restore is what the database says, however much it changes."""

    async def change() -> None:
        for number in range(1, ROWS, 2):
            await writer.execute("UPDATE event SET title = 'new' WHERE id = $1", str(number))

    # Rows are those of when the statement began, and others are committed before it ends.
    text = POLICIES.replace("venue FROM event;", "venue FROM event, pg_sleep(0.1);")
    async with restorer(cluster, rules(tmp_path, text), url) as bench:
        await wait_for(lambda: "event" in bench.progress, "it to begin")
        await wait_for(lambda: bench.progress["event"].state == "running", "it to come to rows")
        await asyncio.gather(change(), whole(cluster))
        end = asyncio.get_running_loop().time()
        await wait_for(lambda: bench.applier._applied > end + 0.02, "everything to be applied")
    titles = {row["id"]: row["title"] for row in await writer.fetch("SELECT id, title FROM event")}
    names = [name for node in cluster.primaries for name in await names_on(node, "event:*")]
    assert len(names) > ROWS // 3
    wrong = [
        name
        for name in names
        if await ask(cluster, name, "HGET", name, "title") != titles[name.partition(":")[2]]
    ]
    assert wrong == []


async def test_another_leader_goes_on(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """Where the first got to is in the database: what was done is not done again."""
    async with contextlib.AsyncExitStack() as stack:
        lives = [contextlib.AsyncExitStack() for _ in range(2)]
        for life in lives:
            await stack.enter_async_context(life)
        one, two = [
            await life.enter_async_context(restorer(cluster, ruleset, url)) for life in lives
        ]

        def begun(bench: Restorer) -> bool:
            return "event" in bench.progress and bench.progress["event"].rows > 0

        await wait_for(lambda: begun(one) or begun(two), "the second keyspace", patience=20)
        first, second = (one, two) if begun(one) else (two, one)
        assert second.progress == {}
        await wait_for(lambda: second.restoration.recovering, "the other to see it")
        await lives[0 if first is one else 1].aclose()
        assert not first.progress["event"].over
        await whole(cluster)
        assert second.progress["hold"].state == "done"
        assert second.progress["hold"].rows == 0
        assert 0 < second.progress["event"].rows < ROWS
        rows = "SELECT FROM sidecache_progress WHERE name LIKE 'restore%'"

        async def forgotten() -> bool:
            return not await writer.fetch(rows)

        await wait_for(forgotten, "the row to go")
    for node in cluster.primaries:
        assert len(await names_on(node, "event:*")) > ROWS // 5


async def test_a_statement_that_is_refused_holds_up_nothing_else(
    cluster: Cluster, tmp_path: Path, url: str, writer: Connection
) -> None:
    """It is said, and the shard is marked when the others are done."""
    text = POLICIES.replace("title AS value, venue AS ttl", "1 / (venue - venue) AS value")
    async with restorer(cluster, rules(tmp_path, text), url) as bench:
        await whole(cluster)
        states = [bench.progress[name].state for name in ("hold", "event", "venue")]
        assert states == ["refused", "done", "done"]


async def test_it_is_begun_by_hand_where_this_sidecar_leads(
    bench: Restorer, cluster: Cluster
) -> None:
    """One keyspace or all; a keyspace without a restore is refused."""
    node = cluster.primaries[0]
    names = await names_on(node, "hold:*")
    await node.ask("DEL", next(iter(names)))
    with pytest.raises(NotHere, match="nothing there has a block restore"):
        bench.restore.start("cart")
    assert bench.restore.start("hold") == "restoring"
    await wait_for(lambda: list(bench.progress) == ["hold"], "it to begin")
    await wait_for(lambda: bench.progress["hold"].over, "it to end")
    assert await names_on(node, "hold:*") == names
    assert '"keyspace": "hold"' in bench.restore.page()
    assert await marked(cluster) == 3


async def test_it_waits_for_a_shard_that_is_away(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """The page is tried again until its node is back, and others keep being invalidated."""
    options = NodeOptions(settings={"cluster-require-full-coverage": "no"})
    own = await start_cluster(options, Shape(3, 0))
    async with restorer(own, ruleset, url) as bench:
        await whole(own)
        lost, other = own.primaries[:2]
        before = await names_on(lost, "hold:*")
        name = next(iter(await names_on(other, "event:*")))
        await lost.ask("FLUSHALL")
        await wait_for(lambda: len(bench.reports) == 2, "the loss to be noticed")
        lost.pause()
        try:
            progress = bench.restoration
            await wait_for(
                lambda: any(p.state == "paused" for p in progress.progress), "a pause", patience=20
            )
            await writer.execute("UPDATE event SET title = 'x' WHERE id = $1", name[6:])

            async def gone() -> bool:
                return not await other.ask("EXISTS", name)

            await wait_for(gone, "the change to be applied")
        finally:
            lost.resume()
        await whole(own)
        assert await names_on(lost, "hold:*") == before
