"""Orders about keys on their way to a real cluster: patches, deletions, and what is owed."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy import plans
from proxy.control.delivery import PATCH, AsOf, Delivery
from proxy.embedded.redis import Cluster, Shape
from proxy.upstream.errands import Errands
from tests.conftest import StartCluster
from tests.control.bench import Bench, ask, companions, rules, sidecar
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration

KEY = "seats:{e}:all"
COUNTERS = (b"", b"_count")
HASH = {"1": "free", "2": "free", "3": "sold", "free_count": "2", "sold_count": "1", "at": "7"}


@pytest.fixture
async def cluster(cache_cluster: Cluster) -> Cluster:
    await cache_cluster.flush()
    return cache_cluster


@pytest.fixture
async def bench(cluster: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Bench]:
    async with sidecar(cluster, rules(tmp_path), url) as bench:
        yield bench


class Post:
    """A delivery, and how many keys it has kept in step."""

    def __init__(self, bench: Bench) -> None:
        self.patched = 0
        self.errands = Errands(bench.router, bench.batch)
        self.delivery = Delivery(bench.router, self.errands, 0, self._count)

    def _count(self) -> None:
        self.patched += 1

    async def send(self, finished: int, *triples: str, history: str = "a.1") -> None:
        words = [*COUNTERS, *(word.encode() for word in triples)]
        await self.delivery.send({KEY.encode(): words}, AsOf(history, finished))


async def put(cluster: Cluster, fields: dict[str, str] = HASH) -> None:
    await ask(cluster, KEY, "HSET", KEY, *(word for pair in fields.items() for word in pair))
    await ask(cluster, KEY, "EXPIRE", KEY, 100)


async def held(cluster: Cluster) -> dict[str, str]:
    words = await ask(cluster, KEY, "HGETALL", KEY)
    return dict(zip(words[::2], words[1::2], strict=True))


async def test_fields_are_set_and_counters_move(bench: Bench, cluster: Cluster) -> None:
    """Each field gets its value, its counters one less and one more; the time to live stays."""
    post = Post(bench)
    await post.send(5, "1", "free", "count")
    await put(cluster)
    await post.send(6, "1", "sold", "count", "2", "free", "count", "at", "9", "greatest",
                    "at", "8", "greatest")  # fmt: skip
    changed = {"1": "sold", "free_count": "1", "sold_count": "2", "at": "9"}
    assert await held(cluster) == HASH | changed
    assert 90 < await ask(cluster, KEY, "TTL", KEY) <= 100
    await post.send(6, "1", "sold", "count", "at", "3", "greatest")
    assert await held(cluster) == HASH | changed
    assert post.patched == 2
    assert not post.delivery.owed


async def test_fills_under_way_are_void_and_nothing_is_made(bench: Bench, cluster: Cluster) -> None:
    """Where the key is not there none comes into being; lease and marker go in any case."""
    post = Post(bench)
    for name in companions(KEY)[1:]:
        await ask(cluster, name, "SET", name, "token")
    await post.send(5, "1", "sold", "count")
    assert [await ask(cluster, name, "EXISTS", name) for name in companions(KEY)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("finished", "history", "triples"),
    [
        (4, "a.1", ("1", "sold", "count")),  # older than what is there
        (9, "a.2", ("1", "sold", "count")),  # of another history
        (9, "a.1", ("4", "sold", "count")),  # a field that is new
        (9, "a.1", ("1", "gone", "count")),  # a counter that is not there
        (9, "a.1", ("1", "sold", "greatest")),  # no number
        (9, "a.1", ()),  # a row that is gone
    ],
)
async def test_what_cannot_be_told_takes_the_key_away(
    bench: Bench, cluster: Cluster, finished: int, history: str, triples: Sequence[str]
) -> None:
    """A patch that is late, unknown or does not fit deletes, and half of it is never written."""
    post = Post(bench)
    await post.send(5, "1", "free", "count")
    await put(cluster)
    await post.send(finished, *triples, history=history)
    assert await held(cluster) == {}
    assert post.patched == 0


async def test_the_first_change_of_a_key_takes_it_away(bench: Bench, cluster: Cluster) -> None:
    """A node that does not know as of when a key is can compare nothing; the next it patches."""
    post = Post(bench)
    await put(cluster)
    await post.send(5, "1", "sold", "count")
    assert await held(cluster) == {}
    await put(cluster)
    await post.send(5, "1", "sold", "count")
    assert (await held(cluster))["sold_count"] == "2"


async def test_a_patch_that_is_owed_becomes_a_deletion(
    start_cluster: StartCluster, tmp_path: Path, url: str
) -> None:
    """The shard was away: the key goes, and the patch that arrives behind all that is refused."""
    own = await start_cluster(shape=Shape(3, 0))
    async with sidecar(own, rules(tmp_path), url) as bench:
        post = Post(bench)
        await post.send(5, "1", "free", "count")
        await put(own)
        owner = await own.owner(bench.router.slots.place_of(0, KEY.encode()).slot)
        owner.pause()
        try:
            await post.send(6, "1", "sold", "count")
            assert post.delivery.owed == {KEY.encode(): True}
        finally:
            owner.resume()

        async def repaid() -> bool:
            await post.delivery.catch_up(AsOf("a.1", 7))
            return not post.delivery.owed

        await wait_for(repaid, "the debt to be repaid")
        assert await held(own) == {}
        await put(own)
        moment = plans.companion(plans.PATCHED, KEY.encode())
        assert moment is not None
        keys = [moment, *(name.encode() for name in (companions(KEY)[1], KEY, companions(KEY)[2]))]
        late = [*AsOf("a.1", 6).words(), *COUNTERS, b"1", b"sold", b"count"]
        assert await post.errands.ask(PATCH, 0, keys, late) == b":-1\r\n"
        assert await held(own) == {}


async def test_a_node_that_is_full_lets_go(
    start_cluster: StartCluster, tmp_path: Path, url: str
) -> None:
    """Where no moment can be noted a patch takes the key away, and so does what is owed."""
    own = await start_cluster(shape=Shape(3, 0))
    async with sidecar(own, rules(tmp_path), url) as bench:
        post = Post(bench)
        await post.send(5, "1", "free", "count")
        await put(own)
        for node in own.primaries:
            await node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
            await node.ask("CONFIG", "SET", "maxmemory", "1")
        await post.send(6, "1", "sold", "count")
        assert not post.delivery.owed
        assert await held(own) == {}
        post.delivery.owed[KEY.encode()] = True
        await post.delivery.catch_up(AsOf("a.1", 7))
        assert not post.delivery.owed
        for node in own.primaries:
            await node.ask("CONFIG", "SET", "maxmemory", "0")
        await put(own)
        await post.send(6, "1", "sold", "count")
        assert await held(own) == {}
