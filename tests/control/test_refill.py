"""Pages of rows on their way into a real cluster."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import wire
from proxy.control.refill import RESTORE, Refill
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.errors import OriginRefused
from proxy.plans import Plan, plans_in
from proxy.policy import compiler
from tests.control.bench import ask, rules
from tests.control.restoring import POLICIES, Restorer, restorer, whole
from tests.origin.bench import connected

pytestmark = pytest.mark.integration

SHIPPED = Path(__file__).parents[2] / "policies"
HELD = """
INSERT INTO organizations (id, name, slug) VALUES ('o', 'o', 'o');
INSERT INTO venues (id, organization_id, name, slug, capacity) VALUES ('v', 'o', 'v', 'v', 9);
INSERT INTO events (id, organization_id, venue_id, title, event_date, doors_open, sales_start,
                    sales_end, capacity, price_min_cents, price_max_cents)
SELECT 'evt_1', 'o', 'v', 'e', now() + '9 days', now() + '9 days', now() - interval '1 day',
       now() + '1 day', 9, 1, 2;
INSERT INTO users (id, email, name) VALUES ('usr_1', 'a@b', 'u');
INSERT INTO seat_booking_state (event_id, seat_id, status, locked_by, locked_at, locked_until)
SELECT 'evt_1', 'seat_2', 'locked', 'usr_1', now(), now() + interval '5 minutes'
UNION ALL SELECT 'evt_1', 'seat_3', 'locked', 'usr_1', now() - interval '9 minutes', now();
INSERT INTO bookings (booking_id, user_id, event_id, total_amount_cents, fee_amount_cents,
                      expires_at)
SELECT 'b_1', 'usr_1', 'evt_1', 500, 5, now() + interval '5 minutes';
"""
EVERYTHING = frozenset(range(16384))


@pytest.fixture
async def bench(cache_cluster: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Restorer]:
    await cache_cluster.flush()
    async with restorer(cache_cluster, rules(tmp_path, POLICIES), url) as bench:
        await whole(cache_cluster)
        yield bench


def plan_of(bench: Restorer, name: str) -> Plan:
    plans = plans_in(bench.router.ruleset).by_keyspace.values()
    return next(plan for plan in plans if plan.name == name)


def refill(bench: Restorer, name: str, slots: frozenset[int] = EVERYTHING) -> Refill:
    errands = bench.restoration._errands
    return Refill(bench.restoration._around, errands, plan_of(bench, name), slots)


async def insert(url: str, rows: str) -> None:
    async with connected(url) as writer:
        await writer.execute(f"INSERT INTO event (id, title, venue) {rows}")


async def test_pages_follow_each_other_without_gaps(
    bench: Restorer, cache_cluster: Cluster, url: str
) -> None:
    """Each begins behind the last row of the one before, whatever rows came and went meanwhile."""
    await insert(url, "SELECT 'k' || n, 't', 100 FROM generate_series(1, 1100) n")
    mine = refill(bench, "hold")
    assert await mine.count() == 1100
    first = await mine.page(())
    assert (first.rows, first.written, first.complete) == (500, 500, True)
    await insert(url, "SELECT 'a' || n, 't', 100 FROM generate_series(1, 10) n")
    second = await mine.page(first.last)
    third = await mine.page(second.last)
    assert [second.rows, third.rows] == [500, 100]
    assert (await mine.page(third.last)).rows == 0
    assert await ask(cache_cluster, "hold:k1100", "GET", "hold:k1100") == "t"


async def test_only_lost_slots_are_written(
    bench: Restorer, cache_cluster: Cluster, url: str
) -> None:
    """Keys of other shards are left out, although their rows are read."""
    await insert(url, "VALUES ('a', 't', 100), ('b', 't', 100), ('c', 't', 100)")
    slots = frozenset({wire.key_slot(b"hold:b")})
    page = await refill(bench, "hold", slots).page(())
    assert (page.rows, page.written) == (3, 1)
    assert await ask(cache_cluster, "hold:b", "EXISTS", "hold:b") == 1
    assert await ask(cache_cluster, "hold:a", "EXISTS", "hold:a") == 0


async def test_what_waits_for_postgres_is_left_out(
    bench: Restorer, cache_cluster: Cluster, url: str
) -> None:
    """A row that lacks writes of its key is not put in its place."""
    await insert(url, "VALUES ('a', 't', 100), ('b', 't', 100)")
    bench.dirty.add(b"hold:a")
    page = await refill(bench, "hold").page(())
    assert (page.rows, page.written) == (2, 1)
    assert await ask(cache_cluster, "hold:a", "EXISTS", "hold:a") == 0


async def test_times_are_those_of_the_rows(
    bench: Restorer, cache_cluster: Cluster, url: str
) -> None:
    """At most the longest that the policy allows; what ends within a second stays away."""
    await insert(url, "VALUES ('long', 't', 9999), ('brief', 't', 0), ('a', 't', 20)")
    page = await refill(bench, "hold").page(())
    assert (page.rows, page.written) == (3, 2)
    assert 590_000 < await ask(cache_cluster, "hold:long", "PTTL", "hold:long") <= 600_000
    assert 10_000 < await ask(cache_cluster, "hold:a", "PTTL", "hold:a") <= 20_000


async def test_rows_that_make_no_key_are_left_out(
    bench: Restorer, cache_cluster: Cluster, url: str
) -> None:
    """NULL in a segment or as the value, and what would be a key of nobody."""
    await insert(url, "VALUES ('a:b', 't', 50), ('none', NULL, 50), ('b', 't', NULL)")
    assert (await refill(bench, "hold").page(())).written == 0
    page = await refill(bench, "venue").page(())
    assert (page.rows, page.written) == (1, 1)


async def test_a_page_that_comes_late_writes_nothing(
    bench: Restorer, cache_cluster: Cluster
) -> None:
    """A node that was frozen does not write behind a change that was applied meanwhile."""
    errands = bench.restoration._errands
    seconds, _ = await ask(cache_cluster, "event:x", "TIME")

    async def restored(latest: int, ends: int) -> bytes:
        words = [b"%d" % (latest * 1000), b"string", b"%d" % (ends * 1000), b"value"]
        return await errands.ask(RESTORE, 0, [b"event:x"], words)

    now = int(seconds)
    assert await restored(now - 1, 0) == b":-1\r\n"
    assert await restored(now + 60, now + 1) == b":0\r\n"
    assert await ask(cache_cluster, "event:x", "EXISTS", "event:x") == 0
    assert await restored(now + 60, now + 60) == b":1\r\n"
    assert await restored(now + 60, 0) == b":0\r\n"
    assert 0 < await ask(cache_cluster, "event:x", "PTTL", "event:x") <= 60_000


async def test_a_marker_goes_with_it(bench: Restorer, cache_cluster: Cluster, url: str) -> None:
    """What was known as no row is one."""
    marker = "sidecache:none:{event:a}"
    await ask(cache_cluster, marker, "SET", marker, "")
    await insert(url, "VALUES ('z', 't', 1)")
    async with bench.applier.still():
        await insert(url, "VALUES ('a', 't', 1)")
        await refill(bench, "event").page(())
        assert await ask(cache_cluster, marker, "EXISTS", marker) == 0
        assert await ask(cache_cluster, "event:a", "EXISTS", "event:a") == 1


async def test_what_postgres_refuses_is_raised(bench: Restorer, url: str) -> None:
    """A statement that does not run is for the caller to say; nobody knows the number of rows."""
    async with connected(url) as writer:
        await writer.execute("ALTER TABLE event RENAME TO other")
    mine = refill(bench, "event")
    assert await mine.count() is None
    with pytest.raises(OriginRefused):
        await mine.page(())


async def test_shipped_statements_run_in_pages(
    cache_cluster: Cluster, postgres_server: Postgres
) -> None:
    """What is held and drafted in the shipped schema comes back, and nothing is behind it."""
    await cache_cluster.flush()
    ruleset, _ = compiler.from_files(SHIPPED, ("locks", "cache"))
    url = await postgres_server.create_database("shipped_restore")
    async with connected(url) as writer:
        await writer.execute((SHIPPED / "schema.sql").read_text("utf-8"))
        await writer.execute(HELD)
    async with restorer(cache_cluster, ruleset, url) as bench:
        for name in ("seat_lock", "draft_booking"):
            mine = refill(bench, name)
            first = await mine.page(())
            assert (first.rows, first.written, first.complete) == (1, 1, True)
            assert (await mine.page(first.last)).rows == 0
    await postgres_server.drop_database("shipped_restore")
    lock = "seat_lock:{evt_1}:seat_2"
    assert '"user_id":"usr_1"' in await ask(cache_cluster, lock, "GET", lock)
    assert 200_000 < await ask(cache_cluster, lock, "PTTL", lock) <= 300_000
    draft = "draft_booking:b_1"
    assert '"total_amount_cents":500' in await ask(cache_cluster, draft, "GET", draft)
