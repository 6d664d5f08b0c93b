"""Values of keys that PostgreSQL stands behind, where a node or PostgreSQL does not do its part."""

import asyncio

import pytest

from proxy.errors import OriginDown
from proxy.handlers import reading
from proxy.handlers.reading import Found, There
from proxy.handlers.targets import Target, target_of
from proxy.plans import Age, Detour
from tests.handlers.backed_desk import BackedDesk, plan

WON, HELD, THERE, NONE = b"$3\r\nwon\r\n", b"$4\r\nheld\r\n", b"$5\r\nthere\r\n", b"$4\r\nnone\r\n"


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan())


def aim(table: BackedDesk, key: bytes = b"user:1") -> Target:
    target = target_of(table.server.router.ruleset, key)
    assert target is not None
    return target


async def test_a_failed_fetch_gives_the_lease_back(table: BackedDesk) -> None:
    """Where PostgreSQL does not answer the key stays as it is, and others may try at once."""
    task = asyncio.create_task(table.reads.value(aim(table)))
    ((name, *_, token, life, least),) = await table.asked()
    # What has more left than the part of the window that is not served counts as there.
    assert (name, life, least) == (b"lease", b"3000", b"20000")
    await table.answer(WON)
    assert await table.asked() == [[b"fill", *aim(table).keys, token, b"kept", b"0"]]
    await table.answer(b":1\r\n")
    assert isinstance(await task, OriginDown)
    assert isinstance(await table.reads.value(aim(table)), OriginDown)  # for a moment
    assert table.home.sent == b""


async def test_who_does_not_get_the_lease_looks_again(table: BackedDesk) -> None:
    """The value appears while others fetch it; who waits holds nothing."""
    task = asyncio.create_task(table.reads.value(aim(table)))
    for reply in (HELD, HELD, THERE):
        assert len(await table.asked()) == 1
        await table.answer(reply)
    assert await task == There()


async def test_who_waits_for_too_long_fetches_by_itself(
    table: BackedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease of somebody who does not come back costs a moment, and nothing is filled."""
    monkeypatch.setattr(reading, "PAUSES", (0.001, 0.001))
    task = asyncio.create_task(table.reads.value(aim(table)))
    for _ in range(3):
        await table.asked()
        await table.answer(HELD)
    assert isinstance(await task, OriginDown)
    assert table.home.sent == b""


async def test_that_there_is_no_row_is_known(table: BackedDesk) -> None:
    """A marker is an answer without PostgreSQL."""
    task = asyncio.create_task(table.reads.value(aim(table)))
    await table.asked()
    await table.answer(NONE)
    assert await task == Found(None)


async def test_a_key_that_is_no_text_has_no_row(table: BackedDesk) -> None:
    """PostgreSQL has no such text, and is not asked."""
    for key in (b"user:\xff\xfe", b"user:a\x00b"):
        found = await table.reads.bypass(aim(table, key))
        assert isinstance(found, Found)
        assert found.value is None


async def test_a_refresh_waits_for_nobody(table: BackedDesk) -> None:
    """What is stale is fetched by one sidecar; who does not get the lease forgets about it."""
    table.reads.refresh(aim(table), 25_000)
    table.reads.refresh(aim(table), 25_000)
    ((name, *_, least),) = await table.asked()
    assert (name, least) == (b"lease", b"30000")
    await table.answer(HELD)
    await asyncio.sleep(0)
    assert table.home.sent == b""


async def test_refreshes_are_bounded(table: BackedDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many keys are fetched in the background at a time, and no more."""
    monkeypatch.setattr(reading, "REFRESHES", 3)
    for number in range(10):
        table.reads.refresh(aim(table, b"user:{1}%d" % number), 25_000)
    assert len(await table.asked()) == 3
    table.reads.stop()


async def test_early_refreshes_are_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its end hardly anybody fetches a key again; just before it most do."""
    table = BackedDesk(plan(age=Age(stale_ms=10_000, early=True)))
    far = sum(table.reads._due(table.plan, 10_000 + 1000) for _ in range(2000))
    near = sum(table.reads._due(table.plan, 10_000 + 1) for _ in range(2000))
    assert far == 0  # a fetch takes ten milliseconds, as far as anybody knows
    assert 1600 < near < 2000
    exercised = plan(age=Age(stale_ms=10_000), detour=Detour("origin", exercise=0.5))
    assert 800 < sum(table.reads._due(exercised, 19_000) for _ in range(2000)) < 1200


async def test_markers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are made up fill no memory: so many markers a second and keyspace."""
    monkeypatch.setattr(reading, "MARKERS", 3)
    markers = reading.Markers()
    assert [markers.admit(plan(), 1.5) for _ in range(5)] == [True] * 3 + [False] * 2
    assert markers.admit(plan(name="other"), 1.6)
    assert markers.admit(plan(), 2.0)


async def test_a_policy_may_want_an_error(table: BackedDesk) -> None:
    """Without a detour a node's error is the answer, and PostgreSQL is not asked."""
    assert await BackedDesk(plan(detour=Detour())).reads.away(aim(table)._replace(
        plan=plan(detour=Detour()))) is None  # fmt: skip
    assert isinstance(await table.reads.away(aim(table)), OriginDown)
    only = aim(table)._replace(plan=plan(detour=Detour("stale")))
    assert await table.reads.away(only) is None
