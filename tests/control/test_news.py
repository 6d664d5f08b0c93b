"""What changes of rows are told on channels of a real cluster."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import wire
from proxy.control import news
from proxy.embedded.node import NodeOptions
from proxy.embedded.redis import Cluster, Shape
from proxy.origin import installing
from proxy.policy import compiler
from proxy.policy.planning import watches_of
from tests.conftest import StartCluster
from tests.control.bench import Bench, rules, sidecar
from tests.integration.rig import Caller, wait_for
from tests.origin.bench import Connection

pytestmark = pytest.mark.integration

POLICIES = """
channels:
  seats:
    channel: seats:{event_id}
    cluster: cache
    changes:
      - table: sales.seat
        key: {event_id: event}
        columns: [seat]
        sql: >
          SELECT json_build_object('seat', seat, 'status', status) AS message
          FROM sales.seat WHERE event = :event_id AND seat = :seat
  all_seats:
    channel: seats
    cluster: cache
    changes:
      - table: sales.seat
        columns: [event, seat]
        sql: "SELECT status AS message FROM sales.seat WHERE event = :event AND seat = :seat"
"""


@pytest.fixture
async def ruleset(tmp_path: Path, url: str) -> wire.Ruleset:
    """The rules, and the triggers that they want."""
    (tmp_path / "rules.yaml").write_text(POLICIES)
    policies = compiler.read(tmp_path / "rules.yaml", ("cache",))
    await installing.run(url, watches_of(policies), apply=True, remove=False)
    return rules(tmp_path, POLICIES)


@pytest.fixture
async def bench(cache_cluster: Cluster, ruleset: wire.Ruleset, url: str) -> AsyncIterator[Bench]:
    async with sidecar(cache_cluster, ruleset, url) as bench:
        await wait_for(lambda: bench.leads, "a leader")
        yield bench


@contextlib.asynccontextmanager
async def listening(cluster: Cluster, *channels: str) -> AsyncIterator[Caller]:
    """A subscriber at the last of the nodes, which messages reach through the others."""
    caller = await Caller.open(cluster.primaries[-1].port)
    await caller.pipeline([("SUBSCRIBE", channel) for channel in channels])
    try:
        yield caller
    finally:
        caller.close()


async def heard(caller: Caller, count: int) -> list[tuple[str, str]]:
    messages = [await caller.next() for _ in range(count)]
    return [(name.decode(), text.decode()) for _, name, text in messages]


async def test_each_changed_row_is_told_in_its_order(
    bench: Bench, cache_cluster: Cluster, writer: Connection
) -> None:
    """On the channel of its event and on that of all, as it is now; others hear nothing."""
    async with listening(cache_cluster, "seats:e", "seats", "seats:other") as caller:
        for number in range(3):
            await writer.execute("INSERT INTO sales.seat VALUES ('e', $1, 'free')", str(number))
        told = await heard(caller, 6)
    of_event = [json.loads(text) for name, text in told if name == "seats:e"]
    assert of_event == [{"seat": str(number), "status": "free"} for number in range(3)]
    assert [text for name, text in told if name == "seats"] == ["free"] * 3

    def counted() -> bool:
        return 'sidecache_changes_published_total{cluster="cache"} 6.0' in bench.page()

    await wait_for(counted, "the answers of the nodes")


async def test_changes_in_one_look_say_the_last(
    bench: Bench, cache_cluster: Cluster, writer: Connection
) -> None:
    """A row is told once, with what it is by then; one that is gone is not told of."""
    async with listening(cache_cluster, "seats:e") as caller:
        await writer.execute(
            "BEGIN; INSERT INTO sales.seat VALUES ('e', '1', 'free'), ('e', '2', 'free');"
            "UPDATE sales.seat SET status = 'sold' WHERE seat = '1';"
            "DELETE FROM sales.seat WHERE seat = '2'; COMMIT"
        )
        told = [json.loads(text) for _, text in await heard(caller, 1)]
        assert told == [{"seat": "1", "status": "sold"}]
        await writer.execute("TRUNCATE sales.seat; INSERT INTO sales.seat VALUES ('e', '3', 'x')")
        assert [json.loads(text)["seat"] for _, text in await heard(caller, 1)] == ["3"]


async def test_what_is_old_is_no_news(
    bench: Bench, cache_cluster: Cluster, writer: Connection
) -> None:
    """After an outage subscribers are not told of what was long before."""
    async with listening(cache_cluster, "seats:e") as caller:
        await writer.execute(
            "BEGIN; INSERT INTO sales.seat VALUES ('e', '1', 'free');"
            "UPDATE sidecache_outbox SET at = at - interval '1 minute';"
            "INSERT INTO sales.seat VALUES ('e', '2', 'free'); COMMIT"
        )
        assert [json.loads(text)["seat"] for _, text in await heard(caller, 1)] == ["2"]


async def test_messages_under_way_are_bounded(
    bench: Bench, cache_cluster: Cluster, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much is left out and counted, and the applier goes on."""
    monkeypatch.setattr(news, "UNANSWERED", 3)
    await writer.execute(
        "INSERT INTO sales.seat SELECT 'e', n::text, 'free' FROM generate_series(1, 20) n"
    )

    def counted() -> bool:
        return 'sidecache_changes_unpublished_total{cluster="cache"} 37.0' in bench.page()

    await wait_for(counted, "the rest to be left out")
    assert bench.leads


async def test_a_node_that_refuses_is_passed_over(
    start_cluster: StartCluster, ruleset: wire.Ruleset, url: str, writer: Connection
) -> None:
    """The first node is away: soon messages go through another, while nobody waits for it."""
    own = await start_cluster(NodeOptions(node_timeout=30.0), Shape(3, 0))
    async with sidecar(own, ruleset, url) as bench, listening(own, "seats") as caller:
        await wait_for(lambda: bench.leads, "a leader")
        own.primaries[0].kill()

        async def told() -> bool:
            await writer.execute(
                "INSERT INTO sales.seat VALUES ('e', '1', 'free') ON CONFLICT (event, seat) "
                "DO UPDATE SET status = 'free'"
            )
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                return bool(await caller.next(0.2))
            return False

        assert await wait_for(told, "a message", 10.0) < 5.0
