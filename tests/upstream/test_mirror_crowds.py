"""Crowds that look at one lock, before fake nodes."""

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from proxy.upstream import mirror as module
from proxy.upstream.errands import Errands
from proxy.upstream.mirror import DROP, LOOK, PUT, Mirror, Shown
from tests.fakenode import FakeCluster, FakeConnection
from tests.handlers.backed_desk import plan
from tests.upstream.stand import Stand, cluster_config, data_of, fake_cluster, key_of, standing

pytestmark = pytest.mark.integration

VALUE = b"u"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(1) as cluster:
        cluster.nodes[0].answers["EVALSHA"] = answer
        yield cluster


@pytest.fixture
async def stand(cluster: FakeCluster) -> AsyncIterator[Stand]:
    async with standing(cluster_config(cluster.nodes)) as stand:
        yield stand


@pytest.fixture
def key(cluster: FakeCluster) -> bytes:
    return key_of(cluster, 0)


@pytest.fixture
async def mirror(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setattr(module, "SEEN", 5.0)
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    return Mirror(stand.router, Errands(stand.router, stand.flusher.batch))


def answer(connection: FakeConnection, words: list[bytes]) -> bytes:
    return b"*2\r\n$1\r\nu\r\n:9000\r\n" if words[1] == LOOK.digest else b":1\r\n"


def value_of(shown: Shown | None) -> bytes | None:
    return None if shown is None else shown.value


def asked(cluster: FakeCluster) -> list[str]:
    """Return what the node was asked, in order."""
    names = {LOOK.digest: "look", PUT.digest: "put", DROP.digest: "drop"}
    sent = [words for each in cluster.nodes[0].connections for words in data_of(each)]
    return [names[words[1]] for words in sent]


async def test_a_crowd_is_one_question(cluster: FakeCluster, mirror: Mirror, key: bytes) -> None:
    """All who ask at a time, and who comes right after, are answered by one question."""
    assert mirror.seen(key) is None
    shown = await asyncio.gather(*(mirror.look(plan(), key) for _ in range(20)))
    assert shown[0] is not None
    assert shown[0].value == VALUE
    assert set(shown) == {shown[0]}
    assert await mirror.look(plan(), key) == mirror.seen(key) == shown[0]
    assert asked(cluster) == ["look"]


async def test_an_answer_grows_old(
    cluster: FakeCluster, mirror: Mirror, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen is taken for true no longer than a moment."""
    monkeypatch.setattr(module, "SEEN", 0.0)
    for _ in range(2):
        assert value_of(await mirror.look(plan(), key)) == VALUE
        assert mirror.seen(key) is None
    assert asked(cluster) == ["look", "look"]


async def test_an_answer_that_a_busy_loop_has_not_read_counts(
    cluster: FakeCluster, mirror: Mirror, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came in time is heard, also where the loop comes to read it after that time."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)

    def busy(connection: FakeConnection, words: list[bytes]) -> bytes:
        assert connection.transport is not None
        os.write(connection.transport.get_extra_info("socket").fileno(), answer(connection, words))
        time.sleep(2 * module.PATIENCE)
        return b""

    cluster.nodes[0].answers["EVALSHA"] = busy
    assert value_of(await mirror.look(plan(), key)) == VALUE


async def test_a_release_ends_what_was_seen(
    cluster: FakeCluster, mirror: Mirror, key: bytes
) -> None:
    """Who asks after a drop asks Redis."""
    await mirror.look(plan(), key)
    await mirror.drop(plan(), key, 7)
    assert mirror.seen(key) is None
    await mirror.look(plan(), key)
    assert asked(cluster) == ["look", "drop", "look"]


async def test_what_a_change_overtakes_is_not_kept(mirror: Mirror, key: bytes) -> None:
    """An answer to what was asked before a grant is for those alone who had asked by then."""
    early = asyncio.create_task(mirror.look(plan(), key))
    await asyncio.sleep(0)
    mirror.put(plan(), key, 7, b"v", 9000)
    assert value_of(await early) == VALUE
    assert mirror.seen(key) is None
    assert mirror.seen(key) is None
