"""Cells of shared limits: who waits, who is let go, and what happens while Redis is away."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.commands import FAMILIES, ROWS
from proxy.upstream import reservations
from proxy.upstream.reservations import Reservations, key_of
from proxy.wire import Rate, Ruleset, rules
from tests.fakenode import Answer, FakeCluster, FakeConnection, FakeNode, key_slot
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, fake_cluster, standing
from tests.wire import stage
from tests.wire.test_limits import row

pytestmark = pytest.mark.integration


def ruleset(**changes: Any) -> Ruleset:
    """Return rules with a shared limit for each key of k:{id}."""
    space = stage.keyspace(
        "k",
        [b"k:", rules.Segment("id", "text")],
        duties=bytes([rules.Duty.RATE] * len(ROWS)),
        rates=(row(scope=rules.Scope.SHARED, **changes),),
    )
    return stage.ruleset(keyspaces=(space,), families=FAMILIES)


class Counting:
    """A node that grants cells, so many of each key."""

    def __init__(self, cells: int, node: FakeNode) -> None:
        self.cells = cells
        self.asked: list[int] = []
        node.answers["EVALSHA"] = self.answer

    def answer(self, connection: FakeConnection, words: list[bytes]) -> bytes:
        wanted = int(words[4])
        self.asked.append(wanted)
        granted = min(wanted, self.cells)
        self.cells -= granted
        return b"*2\r\n:%d\r\n:%d\r\n" % (granted, 0 if self.cells else 30_000_000)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(1) as cluster:
        yield cluster


@pytest.fixture
async def stand(cluster: FakeCluster) -> AsyncIterator[Stand]:
    async with standing(cluster_config(cluster.nodes)) as stand:
        adopt(stand, ruleset())
        yield stand


def adopt(stand: Stand, ruling: Ruleset) -> Reservations:
    stand.router.ruleset = ruling
    found = Reservations(stand.router, stand.pools.plumbing, ("cache",))
    found.follow_rules()
    return found


def limit_of(stand: Stand) -> Rate:
    (limit,) = stand.router.ruleset.rates
    return limit


async def test_clients_of_one_turn_ask_together(cluster: FakeCluster, stand: Stand) -> None:
    """Who needs a cell of one id in one turn of the loop is asked for in one question."""
    node = Counting(3, cluster.nodes[0])
    clients = [stand.client() for _ in range(5)]
    for client in clients:
        client.send([b"GET", b"k:1"], [b"GET", b"x"])
    replies = [await client.take(2) for client in clients]
    assert node.asked == [5]
    assert [str(first)[:11] for first, _ in replies] == ["None"] * 3 + ["RATELIMITED"] * 2
    assert all(second is None for _, second in replies)
    # The node has said until when: nobody asks again.
    assert "RATELIMITED" in str(await stand.client().ask(b"GET", b"k:1"))
    assert node.asked == [5]


async def test_the_order_of_a_client_is_kept(cluster: FakeCluster, stand: Stand) -> None:
    """What is before and behind a command that waits takes effect in the client's order."""
    Counting(9, cluster.nodes[0])
    client = stand.client()
    client.send([b"SET", b"k:1", b"a"], [b"SET", b"x", b"b"], [b"GET", b"k:1"], [b"GET", b"x"])
    assert await client.take(4) == [b"OK", b"OK", b"a", b"b"]


async def test_a_client_that_goes_while_it_waits(cluster: FakeCluster, stand: Stand) -> None:
    """Its cell is left to the next."""
    node = Counting(1, cluster.nodes[0])
    gone = stand.client()
    gone.send([b"GET", b"k:1"])
    gone.downstream.connection_lost()
    await wait_for(lambda: node.asked, "the question")
    assert await stand.client().ask(b"GET", b"k:1") is None
    assert node.asked == [1]


async def test_without_an_answer_the_share_counts(
    cluster: FakeCluster, stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Redis cannot count, this sidecar's share does; one log line and a gauge say so."""
    adopt(stand, ruleset(amount=6))
    limit_of(stand).shared_by(3)
    cluster.nodes[0].answers["EVALSHA"] = b"-ERR broken\r\n"
    with caplog.at_level(logging.INFO, "sidecache"):
        replies = [str(await stand.client().ask(b"GET", b"k:1")) for _ in range(5)]
    assert [reply[:11] for reply in replies] == ["None"] * 2 + ["RATELIMITED"] * 3
    assert [r.msg for r in caplog.records if "rates" in r.msg] == ["shared_rates_away"]
    assert 'sidecache_rate_limits_alone{cluster="cache"} 1.0' in stand.page()
    assert limit_of(stand).statistics() == (2, 3, 0, 2)


async def test_a_late_answer_is_not_waited_for() -> None:
    """A client waits for a moment; what Redis grants after it may still be spent."""
    async with fake_cluster(2) as cluster, standing(cluster_config(cluster.nodes)) as stand:
        adopt(stand, ruleset(unavailable=rules.Unavailable.DENY))
        limit = limit_of(stand)
        names = (b"k:%d" % number for number in range(1000))
        # The key is on the node that answers, its count on the other.
        name = next(name for name in names
                    if cluster.owners[key_slot(name)] == 0
                    and cluster.owners[key_slot(key_of(limit, name))] == 1)  # fmt: skip
        late = Answer(b"*2\r\n:3\r\n:0\r\n", delay=1.5 * reservations.PATIENCE)
        cluster.nodes[1].answers["EVALSHA"] = late
        assert "RATELIMITED" in str(await stand.client().ask(b"GET", name))

        async def granted() -> bool:
            return await stand.client().ask(b"GET", name) is None

        await wait_for(granted, "the late answer")
        assert limit.statistics()[0] == 1


async def test_redis_is_asked_again_when_it_is_back(
    cluster: FakeCluster, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause an id is asked about again, and what Redis says counts."""
    monkeypatch.setattr(reservations, "PAUSE", 0.02)
    monkeypatch.setattr(reservations, "CALM", 0.02)
    cluster.nodes[0].answers["EVALSHA"] = b"-ERR broken\r\n"
    client = stand.client()
    assert await client.ask(b"GET", b"k:1") is None
    node = Counting(100, cluster.nodes[0])

    async def asked() -> bool:
        await client.ask(b"GET", b"k:1")
        return bool(node.asked)

    await wait_for(asked, "a question")

    async def back() -> bool:
        await client.ask(b"GET", b"k:2")
        return 'sidecache_rate_limits_alone{cluster="cache"} 0.0' in stand.page()

    await wait_for(back, "the gauge")


async def test_sidecars_are_counted(cluster: FakeCluster, stand: Stand) -> None:
    """How many share is what Redis has counted last; nobody knows better while it is away."""
    found = adopt(stand, ruleset())
    cluster.nodes[0].answers["EVALSHA"] = b":4\r\n"
    found._announce(0)
    await wait_for(lambda: limit_of(stand).sidecars == 4, "the count")
    cluster.nodes[0].answers["EVALSHA"] = b"-ERR broken\r\n"
    found._announce(0)
    await stand.client().ask(b"GET", b"x")
    assert limit_of(stand).sidecars == 4


def test_an_id_of_any_length_has_a_short_key() -> None:
    """What is known of an id lies under an internal name with a hash tag of its own."""
    limit = Rate(row(scope=rules.Scope.SHARED))
    keys = {key_of(limit, name) for name in (b"a", b"b", b"{a}", b"x" * 100_000, b"")}
    assert len(keys) == 5
    assert all(key.startswith(b"sidecache:rate:{") and len(key) == 49 for key in keys)
    other = Rate(row(scope=rules.Scope.SHARED, owner="keyspace other"))
    assert key_of(other, b"a") != key_of(limit, b"a")
