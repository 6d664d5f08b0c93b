"""What is said in the shards of a real cluster, and what is found there."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import wire
from proxy.control.positions import Found, Position, Positions, beside, keys_of, tag_of
from proxy.embedded.redis import Cluster, Shape
from proxy.upstream.errands import Errands
from tests.conftest import StartCluster
from tests.control.bench import Bench, ask, fill, gone, positions, rules, sidecar, without_database
from tests.integration.rig import Mover, wait_for
from tests.origin.bench import connected, database

pytestmark = pytest.mark.integration

FIRST = Position(100, 1_700_000_000_000, "abc.1")


@pytest.fixture
async def cluster(cache_cluster: Cluster) -> Cluster:
    await cache_cluster.flush()
    return cache_cluster


@pytest.fixture
async def bench(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Bench]:
    async with without_database(cluster, tmp_path) as bench:
        yield bench


def of(bench: Bench) -> Positions:
    return Positions(bench.router, Errands(bench.router, wire_batch(bench)), 0)


def wire_batch(bench: Bench) -> wire.Batch:
    return bench.pools.plumbing.batch


async def test_every_shard_gets_the_position(bench: Bench, cluster: Cluster) -> None:
    """Nothing is there at first, then what was written, in a slot of each primary, with a mark."""
    mine = of(bench)
    found = await mine.look()
    assert [each.lost for each in found] == [True] * 3
    assert await mine.write(FIRST) == []
    for node in cluster.primaries:
        (name,) = await node.ask("KEYS", "sidecache:position:*")
        assert await node.ask("GET", name) == FIRST.text().decode()
        assert await node.ask("EXISTS", name.replace("position", "generation")) == 1
    other = of(bench)
    found = await other.look()
    assert [(each.position, each.marked, each.lost) for each in found] == [(FIRST, True, False)] * 3


async def test_what_somebody_else_wrote_is_not_written_over(bench: Bench, cluster: Cluster) -> None:
    """It is told, and expected from then on."""
    mine, other = of(bench), of(bench)
    await mine.look()
    await mine.write(FIRST)
    await other.look()
    assert await other.write(FIRST._replace(xid=200)) == []
    found = await mine.write(FIRST._replace(xid=150))
    assert {each.position for each in found} == {FIRST._replace(xid=200)}
    assert await mine.write(FIRST._replace(xid=300)) == []
    (name, *_) = await positions(cluster)
    assert str(await ask(cluster, name, "GET", name)).startswith("300 ")


async def test_what_is_lost_is_told_until_it_is_written_again(
    bench: Bench, cluster: Cluster
) -> None:
    """Who fails between the loss and the next position leaves the loss to be found."""
    mine = of(bench)
    await mine.look()
    await mine.write(FIRST)
    await cluster.flush()
    assert [each.lost for each in await mine.write(FIRST)] == [True] * 3
    assert [each.lost for each in await of(bench).look()] == [True] * 3
    assert await mine.write(FIRST) == []
    assert [each.lost for each in await of(bench).look()] == [False] * 3


async def test_what_is_reached_is_what_the_oldest_shard_says(
    bench: Bench, cluster: Cluster
) -> None:
    """Of all shards; where one says nothing nobody can tell, and looking writes nothing."""
    mine, later = of(bench), FIRST._replace(xid=200, at=FIRST.at + 1)
    assert await mine.reached() == 0
    assert await positions(cluster) == []
    await mine.look()
    await mine.write(FIRST)
    await mine.write(later)
    assert await mine.reached() == later.at
    (name, *_) = await positions(cluster)
    await ask(cluster, name, "SET", name, FIRST.text().decode())
    assert await of(bench).reached() == FIRST.at
    await ask(cluster, name, "DEL", name)
    assert await mine.reached() == 0


async def test_sidecars_agree_upon_an_identity(bench: Bench) -> None:
    """The first proposal counts for all, also that of an applier that has no database."""
    first = await of(bench).identity(b"one")
    assert first is not None
    assert await of(bench).identity(b"two") == first


async def test_slots_that_move_lose_nothing(
    start_cluster: StartCluster, tmp_path: Path, postgres_server: object
) -> None:
    """While a first slot moves its keys are invalidated, and no shard counts as lost."""
    own = await start_cluster(shape=Shape(3, 0))
    async with (
        database(postgres_server) as url,  # type: ignore[arg-type]
        connected(url) as writer,
        sidecar(own, rules(tmp_path), url) as bench,
    ):
        await wait_for(lambda: bench.leads, "a leader")

        async def said() -> bool:
            return len(await positions(own)) == 3

        await wait_for(said, "positions")
        bench.reports.clear()
        slot = (await own.members())[own.primaries[1].id].ranges[0][0]
        name = next(n for n in range(10**6) if wire.key_slot(b"event:%d" % n) == slot)
        key = f"event:{name}"
        await fill(own, key)
        mover = Mover(own)
        await mover.open()
        try:
            source, target = own.primaries[1], own.primaries[2]
            await mover.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            await mover.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
            await writer.execute("INSERT INTO event (id) VALUES ($1)", str(name))

            async def away() -> bool:
                return key not in await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10)

            await wait_for(away, "the key of a slot that moves to go")
            await mover.move(slot, source, target)
        finally:
            mover.close()

        async def followed() -> bool:
            names = await positions(own)
            slots = {wire.key_slot(each.encode()) for each in names}
            # The target's first slot is the one that moved; its former position is gone.
            return len(names) == 3 and slots == {0, slot, slot + 1}

        await wait_for(followed, "the position of another first slot")
        await fill(own, key)
        await writer.execute("UPDATE event SET title = 'x'")
        await gone(own, key)
        assert bench.reports == []


def test_a_position_is_text() -> None:
    """What is not one is none."""
    assert Position.parse(FIRST.text()) == FIRST
    for text in (b"", b"1", b"1 2", b"x 2 3", b"1 x 3", b"\xff", b"-1 2 3"):
        assert Position.parse(text) is None


def test_a_loss_is_one_of_data() -> None:
    """A mark without a position is none, nor is a place that is new."""
    assert Found(b"", None, False, False).lost
    assert not Found(b"", None, True, False).lost
    assert not Found(b"", None, False, True).lost
    assert not Found(b"", FIRST, False, False).lost


@pytest.mark.parametrize("slot", [0, 1, 5461, 16383])
def test_tags_have_their_slot(slot: int) -> None:
    """Position and mark of a slot lie in it."""
    assert {wire.key_slot(key) for key in keys_of(tag_of(slot))} == {slot}


def test_the_lease_goes_first() -> None:
    """Then the key, then the marker; a name that allows no companion goes alone."""
    assert beside(b"event:1") == [
        b"sidecache:lease:{event:1}", b"event:1", b"sidecache:none:{event:1}",
    ]  # fmt: skip
    assert beside(b"a}b") == [b"a}b"]
