"""What clients hear of the journal, which is on a real disk; PostgreSQL is away."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from proxy import errors
from proxy.handlers.journalling import journalled, taken_back
from proxy.handlers.told import Told
from proxy.origin.batching import Connection
from proxy.origin.behind import WriteBehind
from proxy.origin.records import Change, Op
from proxy.tallies import BehindMetrics
from tests.origin.activity import key_of, plan_of, plans_of, views, writing

PLAN = plan_of(writing(every=3600.0, journal_bytes=80))


async def away() -> Connection:
    raise ConnectionRefusedError("there is no PostgreSQL here")


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[WriteBehind]:
    plans = plans_of(PLAN)
    behind = WriteBehind(tmp_path, away, lambda: plans, BehindMetrics(CollectorRegistry()))
    await behind.start()
    yield behind
    await behind.stop(0.1)


async def test_of_several_keys_some_may_have_found_room(behind: WriteBehind) -> None:
    """Only where nothing was taken hears the client that nothing was changed."""
    parts = [(PLAN, Told(key_of(number), views(1))) for number in range(3)]
    assert await journalled(behind, parts) == errors.UNKNOWN_WRITE
    assert await journalled(behind, parts) == errors.JOURNAL_FULL
    assert not await taken_back(behind, parts[:1])


@pytest.mark.parametrize(("amount", "left"), [(b"5", b"0"), (b"-0.1", b"0"), (b"+7", b"0")])
async def test_increments_are_taken_back(behind: WriteBehind, amount: bytes, left: bytes) -> None:
    """To the last digit; what was set beside them stays."""
    wide = PLAN._replace(writing=writing(every=3600.0))
    changes = (Change(Op.ADD, b"views", amount), Change(Op.SET, b"name", b"Ada"))
    parts = [(wide, Told(key_of(1), changes))]
    assert await journalled(behind, parts) is None
    assert await taken_back(behind, parts)
    row = behind.overlay(wide, key_of(1))
    assert row is not None
    assert (row.cells[b"views"].value, row.cells[b"name"].value) == (left, b"Ada")
