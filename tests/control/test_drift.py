"""Keys that somebody has made wrong behind the proxy's back are found and repaired."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.control import drift
from proxy.control.drift import Breaker, Drift, Surroundings, Walk
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.errors import OriginDown
from proxy.plans import Plan
from proxy.settings import Pace
from tests.control.bench import ask, rules
from tests.control.restoring import POLICIES, Restorer, whole
from tests.integration.rig import wait_for
from tests.origin.bench import connected, database

pytestmark = pytest.mark.integration

ROWS = 60
RULES = POLICIES.replace(
    'origin: {read: "SELECT title, venue FROM event WHERE id = :event_id"}',
    'origin: {read: "SELECT title, venue FROM event WHERE id = :event_id"}\n'
    "    drift: {rate: 200/s}",
)


class Sampled(Restorer):
    """With a sampler beside it."""

    def begin(self, *dirty: bytes) -> Drift:
        plumbing = self.pools.plumbing
        self.drift = Drift(
            Surroundings(
                self.router, plumbing.batch, plumbing.states, self.metrics.drift, ("cache",),
                self.postgres, lambda plan, key: key in dirty,
            ),
            self.invalidation.appliers,
        )  # fmt: skip
        return self.drift

    def sample(self, *dirty: bytes) -> None:
        self._tasks.append(asyncio.create_task(self.begin(*dirty).watch()))

    def counted(self, kind: str) -> int:
        place = ("event", kind)
        return self.metrics.drift._counts[""].get(place, 0)

    @property
    def repairs(self) -> int:
        return self.metrics.drift._counts["repairs"].get(("event",), 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "ROUND", 0.05)
    monkeypatch.setattr(drift, "CONFIRM", 0.2)


@pytest.fixture
async def url(postgres_server: Postgres) -> AsyncIterator[str]:
    async with database(postgres_server) as url, connected(url) as writer:
        await writer.execute(
            f"INSERT INTO event SELECT n::text, 'title ' || n, 1 FROM generate_series(1, {ROWS}) n"
        )
        yield url


@pytest.fixture
async def bench(cache_cluster: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Sampled]:
    await cache_cluster.flush()
    bench = Sampled(cache_cluster, rules(tmp_path, RULES), url, Pace(poll="20ms"))
    try:
        await bench.start()
        await whole(cache_cluster)
        yield bench
    finally:
        await bench.stop()


async def spoil(cluster: Cluster) -> None:
    """Make one key of each kind wrong, past everybody."""
    await ask(cluster, "event:1", "HSET", "event:1", "title", "forged")
    await ask(cluster, "event:gone", "HSET", "event:gone", "title", "x")
    await ask(cluster, "event:gone", "EXPIRE", "event:gone", 100)
    await ask(cluster, "event:2", "PERSIST", "event:2")
    await ask(cluster, "event:3", "SET", "event:3", "text", "EX", 100)


WRONG = {"event:1": "stale", "event:gone": "orphan", "event:2": "ttl", "event:3": "type"}


async def test_what_is_wrong_is_found_and_taken_away(
    bench: Sampled, cache_cluster: Cluster
) -> None:
    """One of each kind is counted once and gone; keys that are right stay."""
    await spoil(cache_cluster)
    bench.sample()
    for name, kind in WRONG.items():

        async def gone(name: str = name) -> bool:
            return not await ask(cache_cluster, name, "EXISTS", name)

        await wait_for(gone, f"{name} to go")
        assert bench.counted(kind) == 1
    page = bench.page()
    assert 'sidecache_drift_total{keyspace="event",kind="stale"} 1.0' in page
    assert 'sidecache_drift_repairs_total{keyspace="event"} 4.0' in page
    await wait_for(lambda: bench.metrics.drift._counts["samples"][("event",)] > ROWS, "all")
    assert await ask(cache_cluster, "event:4", "EXISTS", "event:4") == 1
    assert sum(map(bench.counted, drift.KINDS)) == 4


async def test_what_mends_itself_is_no_drift(bench: Sampled, cache_cluster: Cluster) -> None:
    """A key that is right two seconds later, is fetched, or has writes that wait, is left alone."""
    await ask(cache_cluster, "event:1", "HSET", "event:1", "title", "x")
    await ask(cache_cluster, "event:2", "HSET", "event:2", "title", "x")
    await ask(cache_cluster, "event:3", "HSET", "event:3", "title", "x")
    lease = "sidecache:lease:{event:2}"
    await ask(cache_cluster, lease, "SET", lease, "somebody")
    bench.sample(b"event:3")
    await wait_for(lambda: bench.drift._suspects, "a suspect")
    await ask(cache_cluster, "event:1", "HSET", "event:1", "title", "title 1")
    samples = bench.metrics.drift._counts["samples"]
    await wait_for(lambda: not bench.drift._suspects, "it to be looked at again")
    before = samples[("event",)]
    await wait_for(lambda: samples[("event",)] > before + ROWS, "all keys")
    assert sum(map(bench.counted, drift.KINDS)) == 0
    for name in ("event:1", "event:2", "event:3"):
        assert await ask(cache_cluster, name, "EXISTS", name) == 1


async def test_a_change_on_its_way_is_no_drift(
    bench: Sampled, cache_cluster: Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its key is compared meanwhile; what was forged is found afterwards."""
    # Nothing is applied for longer than anything takes to be confirmed.
    monkeypatch.setattr(drift, "CALM", 60.0)
    forged, changed = "event:1", "event:2"
    async with connected(url) as writer:
        async with bench.applier.still():
            await writer.execute("UPDATE event SET title = 'new' WHERE id = '2'")
            await ask(cache_cluster, forged, "HSET", forged, "title", "forged")
            bench.sample()
            samples = bench.metrics.drift._counts["samples"]
            await wait_for(lambda: samples.get(("event",), 0) > 10 * ROWS, "ten rounds of all keys")
            assert bench.drift._suspects
            for name in (forged, changed):
                assert await ask(cache_cluster, name, "EXISTS", name) == 1
        await wait_for(lambda: bench.repairs, "what was forged to be repaired")
        await wait_for(lambda: not bench.drift._suspects, "all to be looked at again")
    assert sum(map(bench.counted, drift.KINDS)) == bench.counted("stale") == bench.repairs == 1
    for name in (forged, changed):
        assert await ask(cache_cluster, name, "EXISTS", name) == 0


async def test_a_report_tells_changes_on_their_way_from_drift(
    bench: Sampled, cache_cluster: Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys are counted apart, neither named as wrong nor repaired."""
    monkeypatch.setattr(drift, "UNDER_WAY", 0.5)
    report = bench.begin().report
    async with connected(url) as writer, bench.applier.still():
        await writer.execute("UPDATE event SET title = 'new' WHERE id = '2'")
        first, *others = (await report("event", 10_000, repair=True)).splitlines()
        assert first == f"event: {ROWS} compared, no drift"
        assert others == ["  1 differ from rows whose changes are not in Redis yet"]
        assert await ask(cache_cluster, "event:2", "EXISTS", "event:2") == 1

    async def applied() -> bool:
        return not await ask(cache_cluster, "event:2", "EXISTS", "event:2")

    await wait_for(applied, "the change to arrive")
    assert await report("event", 10_000, repair=True) == f"event: {ROWS - 1} compared, no drift"


async def test_much_drift_stops_repairs(
    bench: Sampled, cache_cluster: Cluster, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """When more than a twentieth is wrong it is said once, and nothing more is taken away."""
    caplog.set_level(logging.INFO, "sidecache")
    monkeypatch.setattr(drift, "FEWEST", 10)
    bench.begin()
    breaker = bench.drift._breakers["event"]
    for _ in range(9):
        breaker.note(False)
    names = [f"event:{n}" for n in range(1, ROWS + 1)]
    for name in names:
        await ask(cache_cluster, name, "HSET", name, "title", "forged")
    bench._tasks.append(asyncio.create_task(bench.drift.watch()))
    await wait_for(lambda: bench.counted("stale") > 5, "drift")
    assert breaker.open
    there = [name for name in names if await ask(cache_cluster, name, "EXISTS", name)]
    assert len(there) == ROWS
    assert [r.msg for r in caplog.records].count("drift_repairs_stopped") == 1
    assert 'sidecache_drift_repairs_stopped{keyspace="event"} 1.0' in bench.page()


def test_a_breaker_knows_what_was_long_ago_no_more() -> None:
    """It opens beyond a twentieth of a hundred or more, and closes when that is history."""
    breaker = Breaker()
    for number in range(99):
        breaker.note(number < 6)
    assert not breaker.open
    breaker.note(False)
    assert breaker.open
    for _ in range(30):
        breaker.note(False)
    assert not breaker.open


async def test_a_report_finds_the_same_at_once(bench: Sampled, cache_cluster: Cluster) -> None:
    """By keyspace and kind, with the keys; nothing changes unless it is to be repaired."""
    await spoil(cache_cluster)
    report = bench.begin().report
    text = await report(None, 10_000, repair=False)
    assert f"event: {ROWS + 1} compared, 1 stale, 1 orphan, 1 type, 1 ttl" in text
    assert sorted(text.splitlines()[1:]) == sorted(
        f"  {kind:6} {name}" for name, kind in WRONG.items()
    )
    assert await ask(cache_cluster, "event:1", "EXISTS", "event:1") == 1
    assert (await report("event", 10_000, repair=True)).splitlines()[0].endswith("; 4 repaired")
    assert await report("event", 10_000, repair=False) == f"event: {ROWS - 3} compared, no drift"
    assert await report("cart", 10, repair=False) == "nothing to compare"


async def test_without_postgres_nothing_is_drift(bench: Sampled, url: str) -> None:
    """A report says that it cannot ask; the sampler waits."""
    await bench.postgres.stop()
    bench.postgres._primary.up = False
    with pytest.raises(OriginDown):
        await bench.begin().report(None, 10, repair=True)


async def test_a_walk_comes_by_every_key(bench: Sampled, cache_cluster: Cluster) -> None:
    """Round after round, node by node; keys of nobody and keys of ours are passed over."""
    await ask(cache_cluster, "stranger", "SET", "stranger", "x")
    walk = Walk(bench.router, bench.restoration._errands, 0)
    seen: list[tuple[Plan, bytes]] = []
    while walk.nodes < 3:
        seen += await walk.step()
    events = [key for plan, key in seen if plan.name == "event"]
    assert sorted(events) == sorted(b"event:%d" % n for n in range(1, ROWS + 1))
    assert {plan.name for plan, _ in seen} == {"event", "venue"}
