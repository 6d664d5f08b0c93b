"""In which state shards and clusters are, and who is told."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.control.states import PERIODS, Speed, States
from proxy.plans import Detour, Plan, Plans
from tests.fakenode import FakeCluster
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, fake_cluster

pytestmark = pytest.mark.integration


class Database:
    """PostgreSQL, of which only one thing is known."""

    def __init__(self) -> None:
        self.up = True
        self._watchers: list[Callable[[bool], None]] = []

    def watch(self, changed: Callable[[bool], None]) -> None:
        self._watchers.append(changed)

    def turn(self, up: bool) -> None:
        self.up = up
        for changed in self._watchers:
            changed(up)


class Watched:
    """States of a cluster of three fake nodes."""

    def __init__(self, stand: Stand, nodes: FakeCluster) -> None:
        self.stand = stand
        self.nodes = nodes
        self.database = Database()
        self.plans = Plans()
        self.states = States(
            stand.pools, lambda: self.plans, self.database, stand.states, stand.metrics.states
        )
        self.lost: set[int] = set()  # first slots of shards that hold too little
        stand.pools.lacks = lambda cluster, slot, since: slot in self.lost

    def slot(self, node: int) -> int:
        return self.nodes.owners.index(node)

    def counts(self) -> dict[str, int]:
        return dict(self.states.counts(self.stand.cluster))

    async def become(self, **counts: int) -> None:
        await wait_for(lambda: self.counts() == counts, f"{counts}, not {self.counts()}")

    def back(self) -> None:
        """Let PostgreSQL stand behind a keyspace of the cluster."""
        self.plans = Plans({0: plan()})


def plan() -> Plan:
    fields = dict.fromkeys(Plan._fields)
    return Plan(**(fields | {"name": "thing", "cluster": 0, "detour": Detour()}))


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with fake_cluster(3) as nodes:
        stand = Stand(cluster_config(nodes.nodes))
        made = Watched(stand, nodes)
        await stand.start()
        watching = asyncio.create_task(made.states.watch())
        await wait_for(
            lambda: all(n.connections[0][0].ready for n in stand.cluster.primaries()), "the nodes"
        )
        yield made
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await stand.stop()


async def test_one_shard_of_three(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """A node that dies changes the state of its own shard, and its return is told as well."""
    caplog.set_level(logging.INFO)
    assert watched.counts() == {"NORMAL": 3}
    assert watched.states.said(watched.stand.cluster) == "up"
    await watched.nodes.nodes[1].stop()
    await watched.become(NORMAL=2, REDIS_DOWN=1)
    assert watched.states.said(watched.stand.cluster) == "redis_down(1/3)"
    page = 'sidecache_state{cluster="cache",state="REDIS_DOWN"} 1.0'
    await wait_for(lambda: page in watched.stand.page(), "the metric")
    assert 'sidecache_shards{cluster="cache",state="NORMAL"} 2.0' in watched.stand.page()
    await watched.nodes.nodes[1].start()
    await watched.become(NORMAL=3)
    page = 'sidecache_state{cluster="cache",state="NORMAL"} 1.0'
    await wait_for(lambda: page in watched.stand.page(), "the metric")
    told = [r for r in caplog.records if r.getMessage() == "state_changed"]
    levels = [record.levelname for record in told]
    assert levels[0] == "INFO"
    assert "WARNING" in levels
    assert levels[-1] == "INFO"
    assert len(told) <= 4  # all well, one down, one recovering, all well


async def test_postgresql_goes(watched: Watched) -> None:
    """It matters where something stands on it, and with Redis away as well it is both."""
    watched.database.turn(False)
    assert watched.counts() == {"NORMAL": 3}
    watched.back()
    assert watched.counts() == {"PG_DOWN": 3}
    await watched.nodes.nodes[0].stop()
    await watched.become(PG_DOWN=2, BOTH_DOWN=1)
    watched.database.turn(True)
    assert watched.counts() == {"NORMAL": 2, "REDIS_DOWN": 1}


async def test_a_shard_that_has_lost_its_data(watched: Watched) -> None:
    """It is recovering until who knows says otherwise, and look-ups do not go there."""
    watched.lost.add(watched.slot(2))
    watched.states.look_soon()
    await watched.become(NORMAL=2, RECOVERING=1)
    node = watched.stand.cluster.owner_of(watched.slot(2))
    assert node is not None
    assert node.upstreams[0][0].share == 0
    watched.lost.clear()
    watched.states.look_soon()
    await watched.become(NORMAL=3)
    assert node.upstreams[0][0].share == 100


async def test_slots_without_a_primary(watched: Watched) -> None:
    """They are a shard that is down."""
    watched.nodes.owners[:] = [0 if owner == 1 else owner for owner in watched.nodes.owners]
    watched.nodes.owners[5:9] = [-1] * 4
    watched.stand.cluster.refresher.hint()
    await watched.become(NORMAL=2, REDIS_DOWN=1)


async def test_draining(watched: Watched) -> None:
    """A process that is about to end says so of everything."""
    watched.states.drain()
    assert watched.counts() == {"DRAINING": 3}


def test_slow_is_for_several_periods() -> None:
    """One reply in twenty is late for some periods in a row; one period of either is nothing."""
    speed, answered, late = Speed(), 0, 0
    seen = []
    for share in [10, 0, 10, 10, 10, 0, 10, 0, 0, 0]:
        answered, late = answered + 100, late + share
        speed.look(answered, late)
        seen.append(speed.slow)
    assert PERIODS == 3
    assert seen == [False] * 4 + [True] * 5 + [False]


def test_few_replies_say_nothing() -> None:
    """A node that is asked three times a second is not slow because of one of them."""
    speed = Speed()
    for second in range(1, 10):
        speed.look(3 * second, second)
    assert not speed.slow
