"""What waits for PostgreSQL when slots have another primary."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from proxy import wire
from proxy.control import moved as module
from proxy.control.moved import Moved
from proxy.origin.batching import Connection
from proxy.origin.behind import WriteBehind
from proxy.origin.records import Change, Op
from proxy.plans import plans_in
from proxy.tallies import BehindMetrics
from tests.control.bench import rules
from tests.integration.rig import wait_for

POLICIES = """
keyspaces:
  note:
    key: note:{id}
    cluster: cache
    type: string
    ttl: {default: 3600s}
    origin: {read: "SELECT value FROM notes WHERE id = :id"}
    write: {mode: behind, sql: "INSERT INTO notes (id, value) VALUES (:id, :value)"}
"""
SET = (Change(Op.SET, b"value", b"v"),)


class Sidecar:
    """Writes that wait for a PostgreSQL that is away, and the keys that went."""

    def __init__(self, folder: Path) -> None:
        ruleset = rules(folder, POLICIES)
        slots = wire.SlotMap([(True, array("h", [-1] * 16384))], [])
        self.behind = WriteBehind(
            folder / "journal", away, lambda: plans_in(ruleset), BehindMetrics(CollectorRegistry())
        )
        self.gone: list[bytes] = []
        self.behind.lacks.watch(self.gone.append)
        self.moved = Moved(wire.Router(ruleset, slots), self.behind)

    async def write(self, *keys: bytes) -> None:
        for key in keys:
            await self.behind.write(self.behind.named()["note"], key, SET)


async def away() -> Connection:
    raise ConnectionRefusedError("there is no PostgreSQL here")


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    sidecar = Sidecar(tmp_path)
    await sidecar.behind.start()
    task = asyncio.create_task(sidecar.moved.watch())
    yield sidecar
    task.cancel()
    await sidecar.behind.stop(0.1)


async def test_redis_may_lack_what_waits_in_slots_that_moved(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those keys go and count as lacking; the ones of other slots and clusters stay."""
    monkeypatch.setattr(module, "SLICE", 3)
    keys = [b"note:%d" % number for number in range(20)]
    await sidecar.write(*keys)
    plan = sidecar.behind.named()["note"]
    sidecar.moved.take(1, map(wire.key_slot, keys))
    sidecar.moved.take(0, map(wire.key_slot, keys[:4]))
    sidecar.moved.take(0, map(wire.key_slot, keys[4:7]))
    await wait_for(lambda: len(sidecar.gone) == 7, "keys to go")
    assert set(sidecar.gone) == set(keys[:7])
    assert [sidecar.behind.lacks.has((plan.name, key)) for key in keys] == [True] * 7 + [False] * 13
    sidecar.moved.take(0, map(wire.key_slot, keys[10:11]))
    await wait_for(lambda: sidecar.gone[7:], "another key to go")
    assert sidecar.gone[7:] == [keys[10]]
