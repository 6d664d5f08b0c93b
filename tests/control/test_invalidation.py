"""From a change in a real database to a key that is gone from a real cluster."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import wire
from proxy.control import delivery, invalidation
from proxy.control.invalidation import Lost, Untrusted
from proxy.embedded.node import NodeOptions
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster, Shape
from proxy.origin import installing
from proxy.settings import Pace
from tests.conftest import StartCluster
from tests.control.bench import (
    POLICIES,
    Bench,
    ask,
    companions,
    fill,
    gone,
    held,
    positions,
    rules,
    sidecar,
)
from tests.integration.rig import wait_for
from tests.origin.bench import Connection, connected, database

pytestmark = pytest.mark.integration


@pytest.fixture
def ruleset(tmp_path: Path) -> wire.Ruleset:
    return rules(tmp_path)


@pytest.fixture
async def cluster(cache_cluster: Cluster) -> Cluster:
    await cache_cluster.flush()
    return cache_cluster


@pytest.fixture
async def bench(cluster: Cluster, ruleset: wire.Ruleset, url: str) -> AsyncIterator[Bench]:
    async with sidecar(cluster, ruleset, url) as bench:
        await leads(bench)
        yield bench


async def leads(*benches: Bench) -> Bench:
    """Wait until one of several leads, and return it."""
    await wait_for(lambda: any(bench.leads for bench in benches), "a leader")
    return next(bench for bench in benches if bench.leads)


async def applied(bench: Bench) -> None:
    """Wait until everything that is committed so far is applied."""
    applier = bench.applier
    start = asyncio.get_running_loop().time()
    await wait_for(lambda: applier._applied > start + 0.02, "everything to be applied")


async def add(writer: Connection, name: str, venue: int = 1) -> None:
    await writer.execute("INSERT INTO event (id, venue) VALUES ($1, $2)", name, venue)


async def test_every_change_takes_its_keys_away(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """Inserted, updated, moved to another key, deleted: value, lease and marker go; others stay."""
    others = ["event:b", "venue:3:events", "seats:{b}:all"]
    await fill(cluster, *others, *companions("event:a"), "venue:1:events")
    await add(writer, "a")
    await gone(cluster, *companions("event:a"), "venue:1:events")
    await fill(cluster, "event:a", "event:z", "venue:1:events", "venue:2:events")
    await writer.execute("UPDATE event SET id = 'z', venue = 2")
    await gone(cluster, "event:a", "event:z", "venue:1:events", "venue:2:events")
    await fill(cluster, "event:z")
    await writer.execute("DELETE FROM event")
    await gone(cluster, "event:z")
    await fill(cluster, *companions("seats:{e}:all"))
    await writer.execute("INSERT INTO sales.seat VALUES ('e', '1', 'free')")
    await gone(cluster, *companions("seats:{e}:all"))
    assert await held(cluster, others) == others
    assert bench.reports == [Lost(0, bench.reports[0].tags)]  # type: ignore[union-attr]


async def test_what_is_rolled_back_changes_nothing(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """The key stays where the transaction does not commit."""
    await fill(cluster, "event:a", "event:b")
    await writer.execute("BEGIN; INSERT INTO event (id) VALUES ('a'); ROLLBACK")
    await add(writer, "b")
    await gone(cluster, "event:b")
    assert await held(cluster, ["event:a"]) == ["event:a"]


async def test_an_open_transaction_holds_nobody_up_and_is_not_lost(
    bench: Bench, cluster: Cluster, url: str, writer: Connection
) -> None:
    """Later ones are applied at once, the older one when it commits."""
    await fill(cluster, "event:slow", "event:fast")
    async with connected(url) as slow:
        await slow.execute("BEGIN; INSERT INTO event (id) VALUES ('slow')")
        for number in range(5):
            await add(writer, f"other{number}")
        await add(writer, "fast")
        await gone(cluster, "event:fast")
        await applied(bench)
        await fill(cluster, "event:fast")
        assert await held(cluster, ["event:slow"]) == ["event:slow"]
        await slow.execute("COMMIT")
        await gone(cluster, "event:slow")
    assert await held(cluster, ["event:fast"]) == ["event:fast"]


async def test_one_key_a_thousand_times(bench: Bench, cluster: Cluster, writer: Connection) -> None:
    """Each of a thousand changes is noted; the key is gone behind the last."""
    await add(writer, "a")
    await fill(cluster, "event:a")
    async with writer.transaction():
        for number in range(1000):
            await writer.execute("UPDATE event SET title = $1", str(number))
    await gone(cluster, "event:a")
    await applied(bench)
    assert bench.invalidation.statistics()[0].changes == 1001


async def test_a_row_may_hold_anything(bench: Bench, cluster: Cluster, writer: Connection) -> None:
    """A value that makes no key, or a key of another keyspace, takes nothing away."""
    await fill(cluster, "seats:{x}:all", "seats:x:all", "sidecache:probe", "event:a")
    for name in ("", "a\r\nDEL x", "x" * 3000, "{a}", "a:b", "é\u2028"):
        await add(writer, name)
    await writer.execute("INSERT INTO event (id, venue) VALUES ('n', NULL), ('a', -5)")
    await gone(cluster, "event:a")
    names = ["seats:{x}:all", "seats:x:all", "sidecache:probe"]
    assert await held(cluster, names) == names
    assert bench.leads


async def test_a_writer_that_sees_to_its_keyspace_itself(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """Its own keyspace stays as it left it; others that depend on the table do not."""
    await fill(cluster, "event:a", "venue:1:events")
    await writer.execute(
        "BEGIN; SET LOCAL sidecache.origin = 'event'; "
        "INSERT INTO event (id, venue) VALUES ('a', 1); COMMIT"
    )
    await gone(cluster, "venue:1:events")
    assert await held(cluster, ["event:a"]) == ["event:a"]


async def test_truncate_is_told_of(bench: Bench, cluster: Cluster, writer: Connection) -> None:
    """No row says which keys: the keyspaces of the table are not to be trusted."""
    await writer.execute("TRUNCATE event")
    await wait_for(lambda: len(bench.reports) == 2, "a report")
    assert bench.reports[1] == Untrusted(0, frozenset({0, 1}), "truncated")


async def test_positions_wait_for_what_is_being_cleaned(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """Whoever leads after us has to hear of it again, until it is done."""
    await applied(bench)
    (name, *_) = await positions(cluster)
    bench.busy = True
    before = await ask(cluster, name, "GET", name)
    await fill(cluster, "event:a")
    await add(writer, "a")
    await writer.execute("TRUNCATE event")
    await wait_for(lambda: len(bench.reports) == 2, "a report")
    await gone(cluster, "event:a")
    assert await ask(cluster, name, "GET", name) == before
    bench.busy = False

    async def moved() -> bool:
        return await ask(cluster, name, "GET", name) != before

    await wait_for(moved, "the position to move")


async def test_one_of_two_leads_and_the_other_takes_over(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The server ends the leader's session: another applies soon, and nothing is lost."""
    caplog.set_level(logging.INFO, "sidecache")
    async with sidecar(cluster, ruleset, url) as one, sidecar(cluster, ruleset, url) as two:
        await wait_for(lambda: one.pids and two.pids, "both to connect")
        first = await leads(one, two)
        second = two if first is one else one
        await applied(first)
        assert not second.leads
        assert 'invalidation_leader{cluster="cache"} 1.0' in first.page()
        assert 'invalidation_leader{cluster="cache"} 0.0' in second.page()
        await fill(cluster, "event:a", "event:b")
        # In one transaction, so that there is a change that nobody has seen when the leader goes.
        await writer.execute(
            f"BEGIN; INSERT INTO event (id) VALUES ('a');"
            f"SELECT pg_terminate_backend({first.pids[-1]}); COMMIT"
        )
        taken = await gone(cluster, "event:a")
        assert taken < 2.5
        await leads(second, first)
        await add(writer, "b")
        await gone(cluster, "event:b")
        assert one.leads != two.leads
    assert "invalidation_failed" in [record.msg for record in caplog.records]


async def test_changes_while_nobody_leads_are_applied_later(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """The position in the shards says where to go on."""
    async with sidecar(cluster, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
        assert len(await positions(cluster)) == 3
    names = [f"event:{number}" for number in range(20)]
    await fill(cluster, *names)
    for number in range(20):
        await add(writer, str(number))
    async with sidecar(cluster, ruleset, url) as bench:
        await gone(cluster, *names)
        assert bench.reports == []


async def test_more_rows_than_a_page(bench: Bench, cluster: Cluster, writer: Connection) -> None:
    """A statement that changes thousands of keys takes them all away."""
    names = [f"event:{number}" for number in range(0, 3000, 100)]
    await fill(cluster, *names)
    await writer.execute("INSERT INTO event (id) SELECT n::text FROM generate_series(0, 2999) n")
    await gone(cluster, *names)


async def test_flushall_is_noticed_and_nothing_else_is_lost(
    bench: Bench, cluster: Cluster, url: str, writer: Connection
) -> None:
    """Every shard has lost its data: that is reported once, and marks and positions come back."""
    await applied(bench)
    bench.reports.clear()
    await cluster.flush()

    async def restored() -> bool:
        return len(await positions(cluster)) == 3

    await wait_for(restored, "positions")
    lost = {tag for report in bench.reports for tag in report.tags}  # type: ignore[union-attr]
    assert len(lost) == 3
    assert all(isinstance(report, Lost) for report in bench.reports)
    await fill(cluster, "event:a")
    await add(writer, "a")
    await gone(cluster, "event:a")
    count = len(bench.reports)
    await applied(bench)
    assert len(bench.reports) == count


async def test_a_position_that_went_back_is_read_from_again(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """A replica without the last invalidations took over: they are done again.

    So are those of whoever had seen to its keyspace itself: the replica has not heard of that.
    """
    await applied(bench)
    names = await positions(cluster)
    before = {name: await ask(cluster, name, "GET", name) for name in names}
    await fill(cluster, "event:a")
    await add(writer, "a")
    await writer.execute(
        "BEGIN; SET LOCAL sidecache.origin = 'event'; INSERT INTO event (id) VALUES ('own'); COMMIT"
    )
    await gone(cluster, "event:a")
    await applied(bench)
    # As the replica would have them: the keys, and the position of before.
    await fill(cluster, "event:a", "event:own")
    await ask(cluster, names[0], "SET", names[0], before[names[0]])
    await gone(cluster, "event:a", "event:own")
    assert bench.invalidation.statistics()[0].replays >= 1
    assert 'sidecache_invalidation_replays_total{cluster="cache"}' in bench.page()


async def test_a_replica_that_lacks_the_last_invalidations_takes_over(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """What it did not hear of is done again there, and it does not count as lost."""
    own = await start_cluster(shape=Shape(3, 1))
    async with sidecar(own, ruleset, url) as bench:
        await leads(bench)
        primary = own.primaries[0]
        (replica,) = await own.replicas_of(primary)
        first, last = (await own.members())[primary.id].ranges[0]
        keys = [f"event:{n}" for n in range(60) if first <= slot_of(f"event:{n}") <= last]
        await fill(own, *keys)
        await applied(bench)

        async def has_all() -> bool:
            size = await primary.ask("DBSIZE")
            return size > len(keys) and await replica.ask("DBSIZE") == size

        await wait_for(has_all, "the replica to have everything")
        bench.reports.clear()
        # Frozen it cannot come back to the primary, which has nowhere to send changes to.
        replica.pause()
        assert await primary.ask("CLIENT", "KILL", "TYPE", "replica") == 1
        for key in keys:
            await add(writer, key.removeprefix("event:"))
        await gone(own, *keys)
        await applied(bench)
        primary.kill()
        replica.resume()
        # It still has the keys, and the position of before.
        assert sorted(await replica.ask("KEYS", "event:*")) == sorted(keys)
        assert await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"

        async def repaired() -> bool:
            names = await replica.ask("KEYS", "event:*")
            role = await replica.ask("ROLE")
            return role[0] == "master" and not names

        await wait_for(repaired, "the keys to go")
        assert bench.invalidation.statistics()[0].replays >= 1
        assert bench.reports == []


def slot_of(key: str) -> int:
    return wire.key_slot(key.encode())


async def test_a_position_alone_that_is_gone(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """The data is there and nobody knows how old it is: its keyspaces are not to be trusted."""
    await applied(bench)
    bench.reports.clear()
    (name, *_) = await positions(cluster)
    await ask(cluster, name, "DEL", name)
    await wait_for(lambda: bench.reports, "a report")
    assert bench.reports == [Untrusted(0, frozenset({0, 1, 2}), "position")]


async def test_a_position_from_before_what_is_kept(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """Rows that were deleted cannot be read again, so what they changed is not to be trusted."""
    async with sidecar(cluster, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
    await add(writer, "a")
    await writer.execute("UPDATE sidecache_outbox SET at = at - interval '2 days'")
    async with connected(url) as other:
        now = await invalidation.outbox.moment(other)
        reader = invalidation.Outbox(other, now.snapshot)
        assert await reader.clean(86400) == 1
    async with sidecar(cluster, ruleset, url) as bench:
        await wait_for(lambda: bench.reports, "a report")
        assert bench.reports[0] == Untrusted(0, frozenset({0, 1, 2}), "retention")


@pytest.mark.parametrize(
    ("history", "reports"),
    [("{system}.77", []), ("1.1", [Untrusted(0, frozenset({0, 1, 2}), "database")] * 3)],
)
async def test_another_history_is_read_by_time(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection, history: str,
    reports: list[Untrusted],
) -> None:  # fmt: skip
    """After a failover of the database numbers repeat: what is minutes old is read again."""
    async with sidecar(cluster, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
    await add(writer, "a")
    await fill(cluster, "event:a")
    for name in await positions(cluster):
        xid, at, here = str(await ask(cluster, name, "GET", name)).split()
        system = here.partition(".")[0]
        there = history.format(system=system)
        await ask(cluster, name, "SET", name, f"{int(xid) + 10**6} {at} {there}")
    async with sidecar(cluster, ruleset, url) as bench:
        await gone(cluster, "event:a")
        assert bench.reports == reports


async def test_a_shard_that_is_away_is_owed_its_keys(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """Others are not held up; when it is back its keys go, and no position moved meanwhile."""
    own = await start_cluster(shape=Shape(3, 0))
    async with sidecar(own, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
        keys = [f"event:{number}" for number in range(30)]
        await fill(own, *keys)
        frozen = await own.owner(wire.key_slot(b"event:0"))
        of_frozen = [k for k in keys if await own.owner(wire.key_slot(k.encode())) is frozen]
        others = [key for key in keys if key not in of_frozen]
        frozen.pause()
        try:
            for number in range(30):
                await add(writer, str(number))
            await gone_on(own, others)
            await wait_for(lambda: bench.invalidation.statistics()[0].owed, "debts")
            assert bench.invalidation.statistics()[0].lag > 0
        finally:
            frozen.resume()
        await gone(own, *of_frozen)
        await applied(bench)
        assert bench.invalidation.statistics()[0].owed == 0


async def test_debts_to_one_shard_hold_up_no_other(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """Of two shards that owe an answer, that which is back first loses its keys at once."""
    own = await start_cluster(NodeOptions(node_timeout=30.0), Shape(3, 0))
    async with sidecar(own, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
        keys = [f"event:{number}" for number in range(60)]
        await fill(own, *keys)
        brief, _, frozen = own.primaries  # the first is asked where keys are
        of_brief = [k for k in keys if await own.owner(wire.key_slot(k.encode())) is brief]
        frozen.pause()
        try:
            brief.pause()
            try:
                for number in range(30):
                    await add(writer, str(number))
                applier = bench.applier
                await wait_for(lambda: applier.statistics().owed >= 20, "debts to both")
                # What was sent waits at the nodes, and is done when they go on; this is not sent.
                pool, slot = bench.pools.clusters[0], wire.key_slot(of_brief[0].encode())
                await wait_for(
                    lambda: not pool.owner_of(slot).breaker.closed, "its breaker to open"
                )
                for number in range(30, 60):
                    await add(writer, str(number))
                await wait_for(lambda: applier.statistics().owed >= 40, "more debts")
            finally:
                brief.resume()
            await gone_on(own, of_brief)
            assert applier.statistics().owed > 0
        finally:
            frozen.resume()
        await applied(bench)


async def gone_on(cluster: Cluster, keys: list[str]) -> None:
    assert await gone(cluster, *keys) < 3


async def test_more_debts_than_are_remembered_are_read_again(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Memory is bounded; the outbox remembers the rest."""
    monkeypatch.setattr(delivery, "OWED", 5)
    own = await start_cluster(shape=Shape(3, 0))
    async with sidecar(own, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
        keys = [f"event:{number}" for number in range(60)]
        await fill(own, *keys)
        frozen = own.primaries[0]
        frozen.pause()
        try:
            for number in range(60):
                await add(writer, str(number))
            await wait_for(lambda: bench.invalidation.statistics()[0].changes >= 60, "changes")
            assert bench.invalidation.statistics()[0].owed == 5
        finally:
            frozen.resume()
        await gone(own, *keys)


async def test_a_shard_that_comes_back_empty(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """Killed and restarted without its data it is reported as lost, alone."""
    own = await start_cluster(shape=Shape(3, 0))
    async with sidecar(own, ruleset, url) as bench:
        await leads(bench)
        await applied(bench)
        bench.reports.clear()
        victim = own.primaries[1]
        first = (await own.members())[victim.id].ranges[0][0]
        victim.kill()
        await victim.restart()
        await wait_for(lambda: bench.reports, "a report")
        (report,) = bench.reports
        assert isinstance(report, Lost)
        assert [wire.key_slot(tag) for tag in report.tags] == [first]
        await own.wait_ready()
        await fill(own, "event:a", "event:b", "event:c")
        for name in "abc":
            await add(writer, name)
        await gone(own, "event:a", "event:b", "event:c")


async def test_whoever_writes_beside_fills_can_keep_invalidations_waiting(
    bench: Bench, cluster: Cluster, writer: Connection
) -> None:
    """What is committed while rows are read is applied after they were written."""
    async with bench.applier.still() as leading:
        assert leading
        await add(writer, "a")
        await fill(cluster, "event:a")
        assert await held(cluster, ["event:a"]) == ["event:a"]
    await gone(cluster, "event:a")


async def test_old_rows_leave_and_tables_without_triggers_are_told(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The leader keeps the outbox small; a table that nobody watches is a line and a gauge."""
    caplog.set_level(logging.INFO, "sidecache")
    await writer.execute("ALTER TABLE event DISABLE TRIGGER USER")
    await writer.execute("INSERT INTO sales.seat VALUES ('e', '1', 'free')")
    await writer.execute("UPDATE sidecache_outbox SET at = at - interval '2 days'")
    async with sidecar(cluster, ruleset, url) as bench:

        async def empty() -> bool:
            return await writer.fetchval("SELECT count(*) FROM sidecache_outbox") == 0

        await wait_for(empty, "an empty outbox")
        gauge = 'sidecache_invalidation_tables_unwatched{cluster="cache"} 1.0'
        await wait_for(lambda: gauge in bench.page(), "the gauge")
    assert [r.msg for r in caplog.records].count("tables_unwatched") == 1


async def test_without_tables_it_waits_for_them(
    cluster: Cluster, ruleset: wire.Ruleset, postgres_server: Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """One line says what is missing; once they are there it leads."""
    caplog.set_level(logging.INFO, "sidecache")
    async with (
        database(postgres_server, installed=False) as url,
        sidecar(cluster, ruleset, url) as bench,
    ):
        await wait_for(lambda: len(bench.pids) > 2, "attempts")
        lines = [r for r in caplog.records if r.msg == "invalidation_failed"]
        assert len(lines) == 1
        await installing.run(url, (), apply=True, remove=False)
        await leads(bench)


async def test_triggers_of_other_policies_are_noticed(
    cluster: Cluster, tmp_path: Path, url: str, writer: Connection
) -> None:
    """A row that lacks a column of the mapping says nothing about which key."""
    text = POLICIES.replace("{table: sales.seat, key: {event_id: event}}",
                            "{table: sales.seat, key: {event_id: seat}}")  # fmt: skip
    async with sidecar(cluster, rules(tmp_path, text), url) as bench:
        await leads(bench)
        bench.reports.clear()
        await writer.execute("INSERT INTO sales.seat VALUES ('e', '1', 'free')")
        await wait_for(lambda: bench.reports, "a report")
        assert bench.reports == [Untrusted(0, frozenset({2}), "unmapped")]


async def test_rules_without_dependencies_need_no_connection(
    cluster: Cluster, tmp_path: Path, url: str, ruleset: wire.Ruleset
) -> None:
    """Nobody leads where nothing is to be done, until rules come that depend on a table."""
    plain = rules(tmp_path, "keyspaces: {a: {key: 'a:{b}', cluster: cache}}")
    async with sidecar(cluster, plain, url) as bench:
        with contextlib.suppress(AssertionError):
            await wait_for(lambda: bench.pids, "a connection", 0.3)
        assert bench.pids == []
        bench.router.ruleset = ruleset
        await leads(bench)


async def test_the_lag_is_short(
    cluster: Cluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """From COMMIT to a key that is gone: 99 of 100 within half a second."""
    async with sidecar(cluster, ruleset, url, Pace()) as bench:
        await leads(bench)
        await applied(bench)
        took = []
        for number in range(100):
            name = f"event:{number}"
            await fill(cluster, name)
            await add(writer, str(number))
            took.append(await gone(cluster, name))
    took.sort()
    print(f"lag p50 {took[50] * 1000:.0f} ms, p99 {took[98] * 1000:.0f} ms")
    assert took[98] < 0.5
