"""Write-behind whole: journal, partitions, flushers and their bounds, with a real PostgreSQL."""

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from proxy.errors import JournalError, JournalRefused
from proxy.origin import behind as module
from proxy.origin import journal as journal_module
from proxy.origin import segments
from proxy.origin.batching import Connection
from proxy.origin.behind import WriteBehind, WriteBehindFull
from proxy.origin.records import Change, Op
from proxy.plans import NONE, Plan, Plans, Statement
from proxy.tallies import BehindMetrics
from tests.integration.rig import wait_for
from tests.origin.activity import (
    connecting,
    execute,
    key_of,
    plan_of,
    plans_of,
    rows_of,
    views,
    writing,
)

pytestmark = pytest.mark.integration

SECONDS = 20.0
VIEWS = "SELECT id, views FROM activity ORDER BY id"


class Sidecar:
    """A write-behind whose PostgreSQL can be taken away."""

    def __init__(self, directory: Path, dsn: str, plan: Plan | None = None) -> None:
        self.registry = CollectorRegistry()
        self.plan = plan or plan_of()
        self.plans: Plans = plans_of(self.plan)
        self.away = False
        self._connect = connecting(dsn)
        metrics = BehindMetrics(self.registry)
        self.behind = WriteBehind(directory, self.connect, lambda: self.plans, metrics)

    async def connect(self) -> Connection:
        if self.away:
            raise ConnectionRefusedError("taken away")
        return await self._connect()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"sidecache_{name}", labels)

    @property
    def state(self) -> str:
        states = ("open", "late", "through", "misfit", "full", "failed")
        (state,) = [s for s in states if self.sample("write_behind_state", state=s)]
        return state


Start = Callable[..., contextlib.AbstractAsyncContextManager[Sidecar]]


@pytest.fixture
def start(tmp_path: Path, activity: str) -> Start:
    """Sidecars of one directory, one after the other."""

    @contextlib.asynccontextmanager
    async def started(
        plan: Plan | None = None, *, away: bool = False, directory: Path = tmp_path
    ) -> AsyncIterator[Sidecar]:
        sidecar = Sidecar(directory, activity, plan)
        sidecar.away = away
        await sidecar.behind.start()
        try:
            yield sidecar
            assert not any(task.done() for task in sidecar.behind.tasks)
        finally:
            await sidecar.behind.stop(0.1 if sidecar.away else SECONDS)

    return started


async def test_writes_arrive(start: Start, activity: str) -> None:
    """What was written is in PostgreSQL when it has stopped, and nothing waits."""
    async with start() as sidecar:
        await asyncio.gather(
            *(sidecar.behind.write(sidecar.plan, key_of(n % 5), views(1)) for n in range(50))
        )
        assert sidecar.state == "open"
    assert await rows_of(activity, VIEWS) == [(f"u{n}", 10) for n in range(5)]
    assert sidecar.sample("write_behind_rows") == 0
    assert sidecar.sample("write_behind_age_seconds") == 0
    assert sidecar.sample("write_behind_flushed_rows_total", outcome="written")
    assert sidecar.sample("journal_bytes")


async def test_what_could_not_be_flushed_is_flushed_after_a_restart(
    start: Start, activity: str
) -> None:
    """The journal keeps it, and the overlay shows it meanwhile."""
    async with start(away=True) as first:
        await first.behind.write(first.plan, key_of(1), views(3))
    async with start(away=True) as second:
        await second.behind.write(second.plan, key_of(1), views(4))
        row = second.behind.overlay(second.plan, key_of(1))
        assert row is not None
        assert row.cells[b"views"].value == b"7"
        assert second.behind.overlay(second.plan, key_of(2)) is None
        assert second.behind.age() > 0
    async with start() as third:
        pass
    assert third.sample("write_behind_rows") == 0
    assert await rows_of(activity, VIEWS) == [("u1", 7)]


async def test_flushed_segments_are_deleted(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal does not grow while PostgreSQL keeps up."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 200)
    async with start() as sidecar:
        for _ in range(30):
            await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
    assert len(list(tmp_path.glob("*.segment"))) <= 2


async def test_a_filling_journal_slows_writes_and_a_full_one_refuses_them(
    start: Start, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 70 % on a write waits for PostgreSQL, at 100 % nothing is changed."""
    monkeypatch.setattr(module, "SLOWED_SECONDS", 0.05)
    plan = plan_of(writing(every=3600.0, journal_bytes=1000))
    loop = asyncio.get_running_loop()
    async with start(plan) as sidecar:
        written = 0
        while not await rows_of(activity, VIEWS):
            await sidecar.behind.write(plan, key_of(written % 20), views(1))
            written += 1
        assert 5 < written < 20
        sidecar.away = True
        for task in await rows_of(
            activity,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        ):
            assert task == (True,)
        began = loop.time()
        refused = False
        while not refused:
            try:
                await sidecar.behind.write(plan, key_of(written % 20), views(1))
                written += 1
            except WriteBehindFull:
                refused = True
        assert sidecar.state == "full"
        assert loop.time() - began > 0.05
        sidecar.away = False
    total = await rows_of(activity, "SELECT sum(views)::int FROM activity")
    assert total == [(written,)]


async def test_a_second_process_is_refused(start: Start, tmp_path: Path, activity: str) -> None:
    """It would write into the same journal."""
    async with start():
        with pytest.raises(JournalError, match="another process"):
            await Sidecar(tmp_path, activity).behind.start()


async def test_a_write_waits_too_long(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm, told once; nothing is refused for it."""
    monkeypatch.setattr(module, "MAX_AGE", 0.0)
    async with start(away=True) as sidecar:
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        assert sidecar.state == "late"
        sidecar.away = False


async def test_dead_letters_are_counted(start: Start) -> None:
    """Beside the rows that were written."""
    async with start() as sidecar:
        await sidecar.behind.write(sidecar.plan, key_of(1), (Change(Op.SET, b"score", b"many"),))
        await sidecar.behind.write(sidecar.plan, key_of(2), views(1))
    assert sidecar.sample("write_behind_flushed_rows_total", outcome="dead") == 1
    assert sidecar.sample("write_behind_flushed_rows_total", outcome="written") == 1


READ = Statement("activity read", "SELECT views, calls FROM activity", ())


async def test_redis_does_not_keep_what_postgres_refused(start: Start, activity: str) -> None:
    """The innocent writes of a key are in PostgreSQL, and the key is one that Redis has not."""
    gone: list[bytes] = []
    async with start(plan_of(writing(every=3600.0))._replace(read=READ)) as sidecar:
        sidecar.behind.lacks.watch(gone.append)
        for amount in (3, 2**31, 2):
            await sidecar.behind.write(sidecar.plan, key_of(1), views(amount))
        await sidecar.behind.write(sidecar.plan, key_of(2), views(1))
    assert await rows_of(activity, VIEWS) == [("u1", 5), ("u2", 1)]
    assert gone == [key_of(1)]


async def test_of_a_deleted_key_postgres_may_have_more(start: Start, activity: str) -> None:
    """Sums stay when their key is deleted, so what Redis has of it ends with the flush."""
    gone: list[bytes] = []
    async with start(plan_of(writing(every=3600.0))._replace(read=READ)) as sidecar:
        sidecar.behind.lacks.watch(gone.append)
        await sidecar.behind.write(sidecar.plan, key_of(1), (Change(Op.DROP),))
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        assert gone == []
    assert gone == [key_of(1)]


async def test_of_writers_who_wrote_nothing_nothing_is_kept(start: Start) -> None:
    """Where two met and something waits, its flush makes the key void; else nobody need know."""
    gone: list[bytes] = []
    async with start(plan_of(writing(every=3600.0))._replace(read=READ)) as sidecar:
        behind, plan = sidecar.behind, sidecar.plan
        behind.lacks.watch(gone.append)
        await behind.write(plan, key_of(1), views(1))
        for number in (1, 2):
            assert not await behind.turns.enter(key_of(number), sums=False)
            assert await behind.turns.enter(key_of(number), sums=False)
            behind.lacks.contended(plan, key_of(number))
        for number in (1, 2, 1, 2):
            assert len(behind.lacks._contended) == 2
            behind.turns.leave(key_of(number), sums=False)
            if not behind.turns.busy(key_of(number)):
                behind.lacks.left(plan, key_of(number))
        assert behind.lacks._contended == {("activity", key_of(1))}
    assert gone == [key_of(1)]
    assert not behind.lacks._contended


async def test_rules_that_drop_a_keyspace_bury_what_waits(start: Start, activity: str) -> None:
    """Its writes are not lost, and nothing is stuck behind them."""
    async with start(away=True) as sidecar:
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        sidecar.plans = NONE
        sidecar.away = False
    assert await rows_of(activity, "SELECT key FROM sidecache_dead_letters") == [(key_of(1),)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(directory)],
        check=False, capture_output=True, timeout=10,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True, timeout=10)


async def test_a_full_disk_makes_writes_wait_for_postgres(
    start: Start, activity: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is refused while PostgreSQL is there, nothing is lost, and the disk is used again."""
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.0)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(180 << 10))
    plan = plan_of(writing(every=0.5))
    name = (Change(Op.SET, b"name", b"x" * 5000),)
    async with start(plan, directory=small_disk) as sidecar:
        states = set()
        for number in range(30):
            await sidecar.behind.write(plan, key_of(number), (*views(1), *name))
            states.add(sidecar.state)
        assert states == {"open", "failed"}
        filler.unlink()
        await sidecar.behind.write(plan, key_of(99), views(1))
        assert sidecar.state == "open"
    assert await rows_of(activity, "SELECT count(*), sum(views)::int FROM activity") == [(31, 31)]


async def test_after_a_full_disk_numbers_still_land_in_their_order(
    start: Start, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that was refused once comes behind those that were queued, so none is passed over."""
    append, fail, go_on = segments.Segment.append, threading.Event(), threading.Event()
    calls = itertools.count(1)

    def failing(self: segments.Segment, data: bytes) -> None:
        if (number := next(calls)) == 1:
            fail.wait(5)
            raise OSError(errno.ENOSPC, "full")
        if number == 2:
            go_on.wait(5)
        append(self, data)

    monkeypatch.setattr(segments.Segment, "append", failing)
    plan = plan_of(writing(every=3600.0))
    one_partition = [key for key in map(key_of, range(30)) if zlib.crc32(key) % 2 == 0][:2]
    async with start(plan) as one:
        writes = [
            asyncio.create_task(one.behind.write(plan, key, views(1))) for key in one_partition
        ]
        while not one.behind._appending:
            await asyncio.sleep(0)
        fail.set()
        go_on.set()
        await asyncio.gather(*writes)
        one.away = True
        for flusher in one.behind._flushers:
            flusher._drop_connection()
    async with start(plan):
        pass
    assert len(await rows_of(activity, VIEWS)) == 2


async def test_a_full_disk_without_postgres_is_told(
    start: Start, activity: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody can keep a write: its client hears that the outcome is unknown."""
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.05)
    async with start(away=True, directory=small_disk) as sidecar:
        with contextlib.suppress(OSError):
            (small_disk / "filler").write_bytes(bytes(256 << 10))
        with pytest.raises(JournalRefused) as refused:
            await sidecar.behind.write(
                sidecar.plan, key_of(1), (Change(Op.SET, b"name", b"x" * 9000),)
            )
        assert not refused.value.certain
        sidecar.away = False


async def test_a_statement_that_does_not_fit_is_told_at_once(
    start: Start, activity: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The state says so and the log names the statement, until somebody has put it right."""
    async with start() as sidecar:
        await execute(activity, "ALTER TABLE activity RENAME views TO seen")
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        await wait_for(lambda: sidecar.state == "misfit", "the state")
        assert sidecar.behind.state == "misfit"
        (record,) = [r for r in caplog.records if r.getMessage() == "write_behind_misfit"]
        assert "activity.yaml:3:5: " in str(record.__dict__)
        await execute(activity, "ALTER TABLE activity RENAME seen TO views")
        await wait_for(lambda: sidecar.state == "open", "the end of it")
    assert await rows_of(activity, VIEWS) == [("u1", 1)]


async def test_a_failed_sync_loses_nothing(
    start: Start, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO now and then: each write is either acknowledged and counted once, or was refused."""
    sync, calls = os.fdatasync, 0

    def sometimes(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(file)

    monkeypatch.setattr(os, "fdatasync", sometimes)
    async with start() as sidecar:
        for number in range(40):
            await sidecar.behind.write(sidecar.plan, key_of(number), views(1))
    assert calls > 10
    assert await rows_of(activity, "SELECT count(*), sum(views)::int FROM activity") == [(40, 40)]


async def test_a_directory_that_was_put_back_loses_no_new_write(
    start: Start, activity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL is further than the journal knows: what is written now counts all the same."""
    clock = itertools.count(2_000_000_000, 10)
    later_each_time = SimpleNamespace(time=lambda: float(next(clock)), monotonic=time.monotonic)
    monkeypatch.setattr(journal_module, "time", later_each_time)
    saved, copy = tmp_path / "journal", tmp_path / "copy"
    async with start(directory=saved) as first:
        await first.behind.write(first.plan, key_of(1), views(1))
    shutil.copytree(saved, copy)
    for _ in range(3):
        async with start(directory=saved) as later:
            await later.behind.write(later.plan, key_of(1), views(1))
            await later.behind.write(later.plan, key_of(2), views(1))
    for _ in range(2):
        async with start(away=True, directory=copy) as restored:
            await restored.behind.write(restored.plan, key_of(1), views(10))
    async with start(directory=copy):
        pass
    assert await rows_of(activity, VIEWS) == [("u1", 24), ("u2", 3)]


async def test_without_tables_of_ours_writes_wait(start: Start, activity: str) -> None:
    """Nothing is flushed before they are installed, and everything after that."""
    await execute(activity, "ALTER TABLE sidecache_write_positions RENAME TO hidden")
    async with start() as sidecar:
        await sidecar.behind.write(sidecar.plan, key_of(1), views(1))
        assert not await rows_of(activity, VIEWS)
        await execute(activity, "ALTER TABLE hidden RENAME TO sidecache_write_positions")
    assert await rows_of(activity, VIEWS) == [("u1", 1)]
