"""The gate before PostgreSQL, with a mirror before a fake node."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from proxy.errors import ORIGIN_IN_HAND, OriginBusy, OriginDown
from proxy.handlers import gate as module
from proxy.handlers.gate import Gate, Said
from proxy.plans import LockCalls, Locking
from proxy.upstream import mirror as showing
from proxy.upstream.errands import Errands
from proxy.upstream.mirror import Mirror
from tests.fakenode import FakeCluster
from tests.handlers.backed_desk import READ, plan
from tests.upstream.stand import cluster_config, fake_cluster, key_of, standing

pytestmark = pytest.mark.integration

LOCK = plan(
    kind="lock",
    locking=Locking(
        calls=LockCalls(*(READ for _ in LockCalls._fields)), mark="", table=None, columns=(),
        owner=(), longest=0.0, scope=0, most=0, gate=True, heartbeat=0.0, offer=0.0, blind=True,
    ),
)  # fmt: skip
HELD = Said("held", "u")


def refused(said: Said | None) -> bool:
    """Return whether that is what Redis shows: held by u, for nine seconds."""
    return said is not None and said[:2] == ("held", "u") and 8.0 < (said.left or 0.0) <= 9.0


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster(1) as cluster:
        cluster.nodes[0].answers["EVALSHA"] = b"*2\r\n$1\r\nu\r\n:9000\r\n"
        yield cluster


@pytest.fixture
def key(cluster: FakeCluster) -> bytes:
    return key_of(cluster, 0)


@pytest.fixture
async def gate(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    monkeypatch.setattr(showing, "SEEN", 5.0)
    monkeypatch.setattr(showing, "PATIENCE", 5.0)
    for name in ("BELIEVED", "RENEWED", "PATIENCE"):
        monkeypatch.setattr(module, name, 5.0)
    async with standing(cluster_config(cluster.nodes)) as stand:
        yield Gate(Mirror(stand.router, Errands(stand.router, stand.flusher.batch)))


async def test_others_are_refused_while_it_is_held(gate: Gate, key: bytes) -> None:
    """It takes PostgreSQL's word and what Redis shows; the second asker needs no question."""
    assert await gate.shut(LOCK, key, "v") is None
    gate.note(key, HELD)
    assert gate.known(LOCK, key, "v") is None
    assert refused(await gate.shut(LOCK, key, "v"))
    assert refused(gate.known(LOCK, key, "w"))
    assert gate.known(LOCK, key, "u") is None
    gate.note(key, None)
    assert gate.known(LOCK, key, "w") is None


def told_by(gate: Gate) -> list[tuple[str, bytes]]:
    """Return what the data plane will be told, and keep it from it."""
    told: list[tuple[str, bytes]] = []

    class Told:
        def close(self, key: bytes, outcome: str, *_: object, **more: object) -> None:
            told.append((outcome, key))

        def open(self, key: bytes) -> None:
            told.append(("open", key))

    gate._mirror.refusals = Told()  # type: ignore[assignment]
    return told


async def test_the_data_plane_refuses_what_the_gate_would(gate: Gate, key: bytes) -> None:
    """It is told of a refusal, of what PostgreSQL says next, and of every change made here."""
    told = told_by(gate)
    gate.note(key, HELD)
    await gate.shut(LOCK, key, "u")
    assert told == [("open", key)]
    await gate.shut(LOCK, key, "v")
    gate._mirror.put(LOCK, key, 7, b"w", 9000)
    gate.note(key, Said("booked", "x"))
    gate.known(LOCK, key, "v")
    assert told[1:] == [("held", key), ("open", key), ("open", key), ("booked", key)]


async def test_what_a_busy_loop_hears_late_is_told(
    gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data plane is told of who holds a lock, if it was shown longer ago than it is good for.

    Else a crowd that keeps the loop busy is never refused without Python, and keeps it so.
    """
    monkeypatch.setattr(showing, "SEEN", 0.0)
    told = told_by(gate)
    gate.note(key, HELD)
    assert refused(await gate.shut(LOCK, key, "v"))
    assert told == [("open", key), ("held", key)]


async def test_redis_is_not_believed_alone(gate: Gate, key: bytes) -> None:
    """Where Redis shows another than PostgreSQL has said, PostgreSQL is asked."""
    gate.note(key, Said("held", "x"))
    assert await gate.shut(LOCK, key, "v") is None
    assert gate.known(LOCK, key, "v") is None


async def test_what_is_sold_needs_no_holder(gate: Gate, key: bytes) -> None:
    """Of a seat that is sold Redis is not asked."""
    gate.note(key, Said("booked", "x"))
    assert gate.known(LOCK, key, "v") == await gate.shut(LOCK, key, "v") == Said("booked", "x")


async def test_what_is_kept_is_for_one(
    gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but who is offered a lock are refused, without a question, until the offer is over."""
    gate.note(key, Said("queue", "u", 9.0))
    for refusal in (gate.known(LOCK, key, "v"), await gate.shut(LOCK, key, "v")):
        assert refusal is not None
        assert refusal[:2] == ("queue", "u")
        assert 8.0 < (refusal.left or 0.0) <= 9.0
    assert gate.known(LOCK, key, "u") is None
    assert await gate.shut(LOCK, key, "u") is None
    gate.note(key, Said("queue", "u", 0.0))
    assert gate.known(LOCK, key, "v") is None
    assert await gate.shut(LOCK, key, "v") is None


async def test_who_is_no_proof_is_refused_like_others(gate: Gate, key: bytes) -> None:
    """Where the owner is one word for all, who holds a lock is no exception."""
    gate.note(key, HELD)
    assert refused(await gate.shut(LOCK, key, None))
    assert refused(gate.known(LOCK, key, None))


async def test_one_asks_again_while_others_are_refused(
    gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's word is renewed by one, before it is old."""
    gate.note(key, HELD)
    await gate.shut(LOCK, key, "v")
    monkeypatch.setattr(module, "RENEWED", -1.0)
    assert gate.known(LOCK, key, "v") is None
    assert await gate.shut(LOCK, key, "v") is None
    with gate.asking(LOCK, key, "x"):
        assert refused(gate.known(LOCK, key, "w"))
        assert refused(await gate.shut(LOCK, key, "w"))


async def asks(gate: Gate, key: bytes, owner: str, heard: list[str]) -> Said | None:
    """Do what a taker does; heard: who has asked PostgreSQL."""
    shut = await gate.shut(LOCK, key, owner)
    if shut is None:
        with gate.asking(LOCK, key, owner):
            heard.append(owner)
            await asyncio.sleep(0)
            gate.note(key, HELD)
    return shut


async def test_of_a_crowd_one_asks(gate: Gate, key: bytes) -> None:
    """Who comes while one asks is refused by what that one hears."""
    heard: list[str] = []
    told = await asyncio.gather(*(asks(gate, key, f"v{n}", heard) for n in range(20)))
    assert heard == ["v0"]
    assert told[0] is None
    assert {said and said[:2] for said in told[1:]} == {("held", "u")}


async def test_a_crowd_without_a_mirror_is_answered_by_one(
    cluster: FakeCluster, gate: Gate, key: bytes
) -> None:
    """Where Redis shows nothing, what PostgreSQL has just said is the answer for all who waited."""
    cluster.nodes[0].answers["EVALSHA"] = b"*2\r\n$-1\r\n:-2\r\n"
    gate.note(key, HELD)
    heard: list[str] = []
    told = await asyncio.gather(*(asks(gate, key, f"v{n}", heard) for n in range(20)))
    assert heard == ["v0"]
    assert told == [None] + [HELD] * 19


async def test_one_after_the_other(gate: Gate, key: bytes) -> None:
    """Where nobody holds it, the next asks, and never two at a time."""
    heard: list[str] = []
    at_a_time: list[int] = []

    async def one() -> None:
        if await gate.shut(LOCK, key, "v") is None:
            with gate.asking(LOCK, key, "v"):
                heard.append("begins")
                at_a_time.append(heard.count("begins") - heard.count("ends"))
                await asyncio.sleep(0)
                heard.append("ends")

    await asyncio.gather(*(one() for _ in range(5)))
    assert at_a_time == [1] * 5


@pytest.mark.parametrize("error", [OriginBusy("no room"), OriginDown("lost", sent=True)])
async def test_a_failure_is_shared(gate: Gate, key: bytes, error: OriginBusy | OriginDown) -> None:
    """Who waited for an answer that did not come hears so; nothing was sent for it."""
    with contextlib.suppress(type(error)), gate.asking(LOCK, key, "x"):
        waiter = asyncio.create_task(gate.shut(LOCK, key, "v"))
        await asyncio.sleep(0)
        raise error
    with pytest.raises(type(error)) as told:
        await waiter
    assert not getattr(told.value, "sent", False)


async def test_patience_has_an_end(gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited for long hears that the lock is in hand, and does not ask as well."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    with gate.asking(LOCK, key, "x"):
        with pytest.raises(OriginBusy) as told:
            await gate.shut(LOCK, key, "v")
        assert told.value.line == ORIGIN_IN_HAND


async def in_hand(gate: Gate, key: bytes) -> None:
    """Ask, and meet another transaction."""
    with contextlib.suppress(OriginBusy), gate.asking(LOCK, key, "x"):
        raise OriginBusy("row", ORIGIN_IN_HAND)


async def test_what_is_in_hand_is_so_for_a_moment(
    gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes later hears the same without a question, until there is news or it is over."""
    await in_hand(gate, key)
    for _ in range(2):
        with pytest.raises(OriginBusy) as told:
            await gate.shut(LOCK, key, "v")
        assert told.value.line == ORIGIN_IN_HAND
    gate.note(key, None)
    assert await gate.shut(LOCK, key, "v") is None
    monkeypatch.setattr(module, "IN_HAND", 0.0)
    await in_hand(gate, key)
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(OriginBusy):
                assert await gate.shut(LOCK, key, "v") is None
                break


async def test_who_holds_it_asks_whatever_others_wait_for(gate: Gate, key: bytes) -> None:
    """Neither another's question nor its failure keeps a holder; one word for all is no proof."""
    with gate.asking(LOCK, key, "x"):
        assert await gate.shut(LOCK, key, "u") is None
    await in_hand(gate, key)
    assert await gate.shut(LOCK, key, "u") is None
    with pytest.raises(OriginBusy):
        await gate.shut(LOCK, key, "u", same=False)


async def test_nobody_waits_for_who_holds_it(gate: Gate, key: bytes) -> None:
    """A holder may wait for what is no obstacle to a refusal: others ask beside it."""
    gate.note(key, Said("held", "w"))
    with gate.asking(LOCK, key, "w"):
        assert await gate.shut(LOCK, key, "v") is None


async def test_what_is_believed_is_bounded(
    gate: Gate, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of too many locks the oldest is forgotten."""
    monkeypatch.setattr(module, "LOCKS", 2)
    for name in (key, b"b", b"c"):
        gate.note(name, HELD)
    assert await gate.shut(LOCK, key, "v") is None
    assert refused(await gate.shut(LOCK, b"c", "v"))
