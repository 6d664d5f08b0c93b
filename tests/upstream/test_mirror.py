"""What Redis shows of locks, on a real cluster: nothing that is late undoes what is later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.redis import Cluster, Shape
from proxy.upstream.mirror import PATIENCE
from tests.conftest import StartCluster
from tests.integration.rig import wait_for
from tests.upstream.mirrored import KEY, NAME, Mirrored, mirrored

pytestmark = pytest.mark.integration


@pytest.fixture
async def stage(locks_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Mirrored]:
    async with mirrored(locks_cluster, tmp_path) as found:
        yield found


async def test_a_grant_is_shown_for_its_time(stage: Mirrored) -> None:
    """Value, time and token are there, in the slot of the lock, and a look tells them."""
    stage.mirror.put(stage.plan, KEY, 7, b"mine", 30_000)
    await stage.shows("mine")
    assert 29_000 < int(await stage.ask("PTTL", NAME)) <= 30_000
    assert await stage.token() == "7"
    shown = await stage.mirror.look(stage.plan, KEY)
    assert shown is not None
    assert shown.value == b"mine"
    assert 29.0 < shown.ends - asyncio.get_running_loop().time() <= 30.0


async def test_a_release_is_seen_by_who_is_told_of_it(stage: Mirrored) -> None:
    """When drop returns nothing is shown any more."""
    stage.mirror.put(stage.plan, KEY, 7, b"mine", 30_000)
    await stage.shows("mine")
    await stage.mirror.drop(stage.plan, KEY, 7)
    assert await stage.value() is None
    assert await stage.mirror.look(stage.plan, KEY) is None


async def test_a_put_after_its_drop_comes_too_late(stage: Mirrored) -> None:
    """A grant that was on its way for longer than its release shows nothing."""
    await stage.mirror.drop(stage.plan, KEY, 7)
    stage.mirror.put(stage.plan, KEY, 7, b"late", 30_000)
    stage.mirror.put(stage.plan, b"seat_lock:e1:s2", 1, b"after it", 30_000)
    await stage.shows("after it", "seat_lock:{e1}:s2")
    assert await stage.value() is None


async def test_an_older_grant_does_not_hide_a_newer(stage: Mirrored) -> None:
    """Neither a put nor a drop of an older token changes what a newer one shows."""
    stage.mirror.put(stage.plan, KEY, 8, b"newer", 30_000)
    stage.mirror.put(stage.plan, KEY, 7, b"older", 30_000)
    await stage.mirror.drop(stage.plan, KEY, 7)
    await stage.shows("newer")
    assert await stage.token() == "8"
    stage.mirror.put(stage.plan, KEY, 9, b"newest", 30_000)
    await stage.shows("newest")


@pytest.mark.parametrize("token", [9, 99, 2**53, 10**17 - 1, 2**63 - 2])
async def test_tokens_of_any_size_have_an_order(stage: Mirrored, token: int) -> None:
    """The next one is later, also where a double has no room for both."""
    stage.mirror.put(stage.plan, KEY, token + 1, b"newer", 30_000)
    stage.mirror.put(stage.plan, KEY, token, b"older", 30_000)
    await stage.mirror.drop(stage.plan, KEY, token)
    assert await stage.value() == "newer"
    assert await stage.token() == str(token + 1)
    await stage.mirror.drop(stage.plan, KEY, token + 1)
    stage.mirror.put(stage.plan, KEY, token, b"older", 30_000)
    stage.mirror.put(stage.plan, b"seat_lock:e1:s2", 1, b"after it", 30_000)
    await stage.shows("after it", "seat_lock:{e1}:s2")
    assert await stage.value() is None


async def test_an_extended_lock_lasts_longer(stage: Mirrored) -> None:
    """The same token again sets value and time, as long as the lock is shown."""
    stage.mirror.put(stage.plan, KEY, 7, b"mine", 10_000)
    stage.mirror.put(stage.plan, KEY, 7, b"mine still", 50_000)
    await stage.shows("mine still")
    assert int(await stage.ask("PTTL", NAME)) > 40_000


async def test_what_is_over_is_not_shown(stage: Mirrored) -> None:
    """A grant without time left shows nothing."""
    stage.mirror.put(stage.plan, KEY, 7, b"over", 0)
    await stage.mirror.drop(stage.plan, b"seat_lock:e1:s2", 1)
    assert await stage.value() is None
    assert await stage.token() is None


async def test_what_was_shown_by_others_is_dropped(stage: Mirrored) -> None:
    """A value without a token, as a restore writes it, goes with any release, also of token 0."""
    await stage.ask("SET", NAME, "restored", "PX", "30000")
    await stage.mirror.drop(stage.plan, KEY, 0)
    assert await stage.value() is None


async def test_many_looks_are_one_question(stage: Mirrored) -> None:
    """A hundred who look at one lock at a time are answered alike, by a script that runs once."""
    stage.mirror.put(stage.plan, KEY, 7, b"mine", 30_000)
    await stage.shows("mine")
    owner = await stage.cluster.owner(9052)
    before = await calls(stage)
    found = await asyncio.gather(*(stage.mirror.look(stage.plan, KEY) for _ in range(100)))
    assert {each.value if each else None for each in found} == {b"mine"}
    assert owner is not None
    # Once by its digest, and where the node does not know it once in full.
    assert await calls(stage) - before <= 2


async def calls(stage: Mirrored) -> int:
    """Return how many scripts the node of the lock has been asked to run."""
    lines = str(await stage.ask("INFO", "commandstats")).splitlines()
    counts = [line for line in lines if line.startswith(("cmdstat_eval:", "cmdstat_evalsha:"))]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in counts)


async def test_a_silent_node_is_not_waited_for(start_cluster: StartCluster, tmp_path: Path) -> None:
    """While a node does not answer, a look knows nothing and a drop returns, both at once."""
    cluster = await start_cluster(shape=Shape(3, 0))
    async with mirrored(cluster, tmp_path) as stage:
        stage.mirror.put(stage.plan, KEY, 7, b"mine", 30_000)
        await stage.shows("mine")
        for node in cluster.nodes:
            node.pause()
        try:
            began = asyncio.get_running_loop().time()
            assert await stage.mirror.look(stage.plan, KEY) is None
            await stage.mirror.drop(stage.plan, KEY, 7)
            assert asyncio.get_running_loop().time() - began < 10 * PATIENCE
        finally:
            for node in cluster.nodes:
                node.resume()

        async def known() -> bool:
            return await stage.mirror.look(stage.plan, KEY) is None

        await wait_for(known, "the node to answer again")
