"""When a shard that was away is asked again: once its position has been written anew."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.control.positions import Position, Positions
from proxy.control.returned import PATIENCE, Returned
from proxy.embedded.redis import Cluster
from proxy.upstream.errands import Errands
from tests.control.bench import Bench, without_database
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration

BEFORE = Position(100, 1_700_000_000_000, "abc.1")
AFTER = Position(100, 1_700_000_000_250, "abc.1")


@pytest.fixture
async def bench(cache_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Bench]:
    """A sidecar that does not lead: nobody writes positions but the test."""
    await cache_cluster.flush()
    async with without_database(cache_cluster, tmp_path) as bench:
        yield bench


class Returns:
    """What is told of shards that are back, and the leader that writes positions."""

    def __init__(self, bench: Bench) -> None:
        self.needed = True
        self.changes = 0
        self.since = asyncio.get_running_loop().time()
        self.returned = Returned(bench.invalidation.appliers, lambda: self.needed)
        self.returned.changed = self._changed
        self.leader = Positions(bench.router, Errands(bench.router, bench.batch), 0)

    def _changed(self) -> None:
        self.changes += 1

    def lacks(self, since: float | None = None) -> bool:
        return self.returned.lacks(0, 0, self.since if since is None else since)


async def test_it_is_waited_for_until_its_position_is_another(bench: Bench) -> None:
    """Also one that a leader had written before says nothing, and the end of the wait is told."""
    returns = Returns(bench)
    await returns.leader.look()
    await returns.leader.write(BEFORE)
    assert returns.lacks()
    (waiting,) = returns.returned._waiting.values()
    await asyncio.wait((waiting,), timeout=0.3)
    assert not waiting.done()
    assert returns.lacks()
    await returns.leader.write(AFTER)
    await wait_for(lambda: returns.changes, "word of it")
    assert not returns.lacks()
    assert returns.lacks(asyncio.get_running_loop().time())  # it was away once more
    returns.returned.stop()


async def test_a_shard_without_a_position_is_not_waited_for(bench: Bench) -> None:
    """It has lost its data as well, or nobody has ever led: there is nothing old in it."""
    returns = Returns(bench)
    assert returns.lacks()
    await wait_for(lambda: returns.changes, "word of it")
    assert not returns.lacks()


async def test_nothing_is_waited_for_in_vain(bench: Bench) -> None:
    """Where PostgreSQL cannot be asked, for what never was away, and for longer than it takes."""
    returns = Returns(bench)
    assert not returns.lacks(since=-float("inf"))
    assert not returns.lacks(since=returns.since - PATIENCE - 1)
    returns.needed = False
    assert not returns.lacks()
