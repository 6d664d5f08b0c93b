"""Flushing into a real PostgreSQL: once, in order, and around rows that it does not take."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence

import asyncpg
import pytest

from proxy.origin import flushing
from proxy.origin.batching import Connection
from proxy.origin.flushing import Flushed, Flusher, Observer, Writer
from proxy.origin.merging import Batch, Partition
from proxy.origin.records import Change, Entry, Op
from proxy.plans import Plan, Writing
from tests.origin.activity import (
    UPSERT,
    connecting,
    execute,
    key_of,
    plan_of,
    rows_of,
    views,
    writing,
)

pytestmark = pytest.mark.integration

SECONDS = 20.0
VIEWS = "SELECT id, views FROM activity ORDER BY id"
POSITION = "SELECT partition, sequence FROM sidecache_write_positions WHERE sidecar = 'me'"


class Desk:
    """A partition, its flusher, and what is heard of it."""

    def __init__(self, dsn: str, written: Writing | None = None, run: int = 1 << 40) -> None:
        self.plans: dict[str, Plan] = {"activity": plan_of(written)}
        self.lacking: set[tuple[str, bytes]] = set()
        self.partition = Partition(lambda _: "add")
        observer = Observer(
            self._settled, self._flushed, self._failed, self.lacking.__contains__, self._apart
        )
        self.connect = connecting(dsn)
        self.flusher = Flusher(
            Writer("me", 3, run), self.partition, self._connect, lambda: self.plans, observer
        )
        self.journal: list[Entry] = []
        self.known: list[Entry] = []
        self.flushed: list[Flushed] = []
        self.failures: list[str] = []
        self.failing = asyncio.Event()
        self.sequence = 0

    async def _connect(self) -> Connection:
        return await self.connect()

    async def _settled(self, entries: Sequence[Entry]) -> None:
        self.known += entries

    async def _flushed(self, flushed: Flushed) -> None:
        self.flushed.append(flushed)

    async def _apart(self, batch: Batch) -> Mapping[tuple[str, bytes], Sequence[Entry]]:
        found: dict[tuple[str, bytes], list[Entry]] = {}
        for entry in self.journal:
            if batch.first <= entry.sequence <= batch.last:
                found.setdefault((entry.keyspace, entry.key), []).append(entry)
        return found

    def _failed(self, partition: int, reason: Exception | None) -> None:
        self.failures.append("" if reason is None else f"{type(reason).__name__}: {reason}")
        if reason:
            self.failing.set()

    def write(self, key: bytes, *changes: Change, keyspace: str = "activity") -> int:
        self.sequence += 1
        self.journal.append(Entry(self.sequence, 1.0, keyspace, key, changes))
        self.partition.add(self.journal[-1])
        self.flusher.poke()
        return self.sequence

    async def views(self) -> int:
        """Return what PostgreSQL has of the first key, and upon it what waits."""
        async with self.flusher.still():
            connection = await self.connect()
            there = await connection.fetchval("SELECT views FROM activity WHERE id = 'u1'")
            row = self.partition.overlay("activity", key_of(1))
            connection.terminate()
        return int(there or 0) + (0 if row is None else int(row.cells[b"views"].value))

    async def through(self) -> None:
        assert await self.flusher.through(self.sequence, SECONDS)


@contextlib.asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[Desk]:
    task = asyncio.create_task(desk.flusher.run())
    try:
        yield desk
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        desk.flusher.stop()


@pytest.fixture
async def desk(activity: str) -> AsyncIterator[Desk]:
    async with running(Desk(activity)) as desk:
        yield desk


async def test_rows_and_position_are_committed_together(desk: Desk, activity: str) -> None:
    """Increments of a key become one row's sum, and the position is that of the last write."""
    for number in (2, 1, 2):
        desk.write(key_of(number), *views(5))
    await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 5), ("u2", 10)]
    assert await rows_of(activity, POSITION) == [(3, 3)]
    assert sum(len(flushed.batch.rows) for flushed in desk.flushed) >= 2


async def test_types_are_known_before_the_first_write(desk: Desk) -> None:
    """And while there is no connection."""
    async with asyncio.timeout(SECONDS):
        while not (types := desk.flusher.types(UPSERT)):
            await asyncio.sleep(0.01)
    assert types[b"views"] == "int4"
    assert types[b"score"] == "numeric"
    desk.flusher.stop()
    assert desk.flusher.types(UPSERT) == types


async def test_a_write_is_flushed_after_its_time(activity: str) -> None:
    """Without a word, and not before."""
    async with running(Desk(activity, writing(every=0.2))) as desk:
        desk.write(key_of(1), *views(1))
        while not desk.flushed:
            await asyncio.sleep(0.01)
    assert await rows_of(activity, VIEWS) == [("u1", 1)]


async def test_so_many_rows_are_flushed_at_once(activity: str) -> None:
    """A batch that is full waits for nobody."""
    async with running(Desk(activity, writing(every=3600.0, rows=10))) as desk:
        desk.plans["activity"] = plan_of(writing(every=3600.0, rows=10))
        loop = asyncio.get_running_loop()
        for number in range(9):
            desk.partition.add(Entry(number + 1, 4e9, "activity", key_of(number), views(1)))
        desk.sequence = 9
        desk.write(key_of(10), *views(1))
        deadline = loop.time() + SECONDS
        while not desk.flushed and loop.time() < deadline:
            await asyncio.sleep(0.01)
        assert len(desk.flushed[0].batch.rows) == 10


async def test_what_is_flushed_is_passed_over_after_a_restart(activity: str) -> None:
    """The position in PostgreSQL says which replayed entries count no more."""
    async with running(Desk(activity)) as first:
        first.write(key_of(1), *views(1))
        await first.through()
    second = Desk(activity)
    second.write(key_of(1), *views(1))
    second.write(key_of(1), *views(10))
    async with running(second):
        await second.through()
    assert [entry.sequence for entry in second.known] == [1]
    assert await rows_of(activity, VIEWS) == [("u1", 11)]


async def test_a_position_from_elsewhere_goes_back(activity: str) -> None:
    """PostgreSQL cannot know what this run has numbered: its writes are not passed over."""
    await execute(activity, "INSERT INTO sidecache_write_positions VALUES ('me', 3, 99)")
    desk = Desk(activity, run=10)
    desk.sequence = 9
    desk.write(key_of(1), *views(1))
    async with running(desk):
        await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 1)]
    assert await rows_of(activity, POSITION) == [(3, 10)]


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    desk: Desk, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt finds the position moved."""
    execute, lost = asyncpg.Connection.execute, False

    async def losing(self: Connection, query: str, *arguments: object) -> str:
        nonlocal lost
        status = await execute(self, query, *arguments)
        if not lost and query == "COMMIT":
            lost = True
            raise ConnectionResetError("lost behind the commit")
        return status

    monkeypatch.setattr(asyncpg.Connection, "execute", losing)
    desk.write(key_of(1), *views(7))
    await desk.through()
    assert lost
    assert await rows_of(activity, VIEWS) == [("u1", 7)]
    assert desk.failures == ["ConnectionResetError: lost behind the commit", ""]


async def test_nobody_reads_while_a_commit_is_in_doubt(
    desk: Desk, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL has what still waits here: together that would be counted twice."""
    execute, connect = asyncpg.Connection.execute, desk.connect
    waiting = asyncio.Event()

    async def losing(self: Connection, query: str, *arguments: object) -> str:
        status = await execute(self, query, *arguments)
        if query == "COMMIT":
            desk.connect = away
            raise ConnectionResetError("lost behind the commit")
        return status

    async def away() -> Connection:
        waiting.set()
        raise OSError("no route")

    monkeypatch.setattr(asyncpg.Connection, "execute", losing)
    desk.write(key_of(1), *views(7))
    async with asyncio.timeout(SECONDS):
        await waiting.wait()
    assert await rows_of(activity, VIEWS) == [("u1", 7)]
    reader = asyncio.create_task(desk.views())
    waiting.clear()
    async with asyncio.timeout(SECONDS):
        await waiting.wait()
    assert not reader.done()
    desk.connect = connect
    async with asyncio.timeout(SECONDS):
        assert await reader == 7


async def test_nobody_reads_before_it_is_known_what_an_earlier_run_flushed(activity: str) -> None:
    """Entries of the journal may be in PostgreSQL already."""
    async with running(Desk(activity)) as first:
        first.write(key_of(1), *views(7))
        await first.through()
    desk = Desk(activity)
    desk.write(key_of(1), *views(7))
    reader = asyncio.create_task(desk.views())
    async with running(desk), asyncio.timeout(SECONDS):
        assert await reader == 7


async def test_a_commit_that_is_under_way_is_waited_for(activity: str) -> None:
    """A server may still commit what it was told on a connection that is gone."""
    late = await asyncpg.connect(activity, timeout=5)
    transaction = late.transaction()
    await transaction.start()
    await late.execute("INSERT INTO activity (id, day, views) VALUES ('u1', '2026-11-29', 7)")
    await late.execute("INSERT INTO sidecache_write_positions VALUES ('me', 3, 1)")
    desk = Desk(activity)
    desk.write(key_of(1), *views(7))
    blocked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with running(desk), asyncio.timeout(SECONDS):
        while not await rows_of(activity, blocked):
            await asyncio.sleep(0.01)
        await transaction.commit()
        await desk.through()
    late.terminate()
    assert await rows_of(activity, VIEWS) == [("u1", 7)]


async def test_poison_is_buried_and_the_rest_is_written(desk: Desk, activity: str) -> None:
    """Values, constraints, bytes that are no text and keys of no day: each write for itself."""
    for number in range(40):
        desk.write(key_of(number), *views(1))
    desk.write(key_of(3), Change(Op.SET, b"score", b"1000"))
    desk.write(key_of(7), Change(Op.ADD, b"calls", b"word"))
    desk.write(key_of(11), Change(Op.SET, b"name", b"\xff\x00"))
    desk.write(key_of(13), Change(Op.SET, b"name", b"a\x00b"))
    desk.write(key_of(17), Change(Op.ADD, b"views", b"99999999999"))
    desk.write(b"activity:u:2026-02-31", *views(1))
    desk.write(b"activity:bad", *views(1))
    await desk.through()
    letters = await rows_of(
        activity, "SELECT key, sqlstate, payload::text FROM sidecache_dead_letters ORDER BY key"
    )
    assert {(key, state) for key, state, _ in letters} == {
        (key_of(3), "23514"), (key_of(7), "22P02"), (key_of(11), "22021"),
        (key_of(13), "22021"), (key_of(17), "22003"),
        (b"activity:u:2026-02-31", "22008"), (b"activity:bad", "22021"),
    }  # fmt: skip
    payload = next(json.loads(text) for key, _, text in letters if key == key_of(3))
    assert payload["fields"] == {"score": {"op": "set", "value": "1000"}}
    assert await rows_of(activity, "SELECT count(*), sum(views) FROM activity") == [(40, 40)]
    assert sum(len(flushed.dead) for flushed in desk.flushed) == 7


async def test_two_keys_of_one_row_are_written_apart(desk: Desk, activity: str) -> None:
    """PostgreSQL takes a row once per statement, and both keys are counted."""
    desk.write(b"activity:u1:2026-11-29", *views(1))
    desk.write(b"activity:u1:20261129", *views(2))
    await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 3)]
    assert await rows_of(activity, "SELECT count(*) FROM sidecache_dead_letters") == [(0,)]


async def test_writes_of_a_keyspace_that_is_gone_are_buried(desk: Desk, activity: str) -> None:
    """Nobody knows any more where they belong, and they are not lost."""
    desk.write(b"k", *views(1), keyspace="former")
    await desk.through()
    assert await rows_of(activity, "SELECT keyspace, key FROM sidecache_dead_letters") == [
        ("former", b"k")
    ]


async def test_a_statement_that_does_not_fit_waits_for_a_person(activity: str) -> None:
    """No row is buried for a mistake of the policy or a missing column."""
    await execute(activity, "ALTER TABLE activity RENAME views TO seen")
    async with running(Desk(activity)) as desk, asyncio.timeout(SECONDS):
        desk.write(key_of(1), *views(1))
        await desk.failing.wait()
        assert desk.failures[0].startswith("Misfit: activity.yaml:3:5: ")
        await execute(activity, "ALTER TABLE activity RENAME seen TO views")
        await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 1)]
    assert await rows_of(activity, "SELECT count(*) FROM sidecache_dead_letters") == [(0,)]


async def test_a_table_that_changes_while_rows_are_written_buries_none(
    desk: Desk, activity: str
) -> None:
    """A statement that has been prepared fits no more: that is no row's fault either."""
    desk.write(key_of(1), *views(1))
    await desk.through()
    await execute(activity, "ALTER TABLE activity RENAME views TO seen")
    desk.write(key_of(1), *views(1))
    desk.write(key_of(2), *views(1))
    async with asyncio.timeout(SECONDS):
        await desk.failing.wait()
    assert desk.failures[0].startswith("Misfit: activity.yaml:3:5: ")
    await execute(activity, "ALTER TABLE activity RENAME seen TO views")
    await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 2), ("u2", 1)]
    assert await rows_of(activity, "SELECT count(*) FROM sidecache_dead_letters") == [(0,)]


async def test_a_row_that_is_locked_is_tried_again(
    desk: Desk, activity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may work later is repeated until it does."""
    monkeypatch.setattr(flushing, "_BEGIN", "BEGIN; SET LOCAL lock_timeout = '50ms'")
    desk.write(key_of(1), *views(1))
    await desk.through()
    blocker = await asyncpg.connect(activity, timeout=5)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT FROM activity FOR UPDATE")
    desk.write(key_of(1), *views(1))
    async with asyncio.timeout(SECONDS):
        await desk.failing.wait()
    await transaction.rollback()
    blocker.terminate()
    await desk.through()
    assert await rows_of(activity, VIEWS) == [("u1", 2)]


async def test_nobody_waits_longer_than_asked(activity: str) -> None:
    """A flush that does not come is told, and the write is flushed when it can be."""
    desk = Desk(activity)

    async def away() -> Connection:
        raise OSError("no route")

    connect, desk.connect = desk.connect, away
    async with running(desk):
        desk.write(key_of(1), *views(1))
        assert not await desk.flusher.through(1, 0.05)
        assert not await desk.flusher.drain(0.05)
        desk.connect = connect
        assert await desk.flusher.drain(SECONDS)
        assert await desk.flusher.drain(SECONDS)
    assert await rows_of(activity, VIEWS) == [("u1", 1)]


async def test_what_changes_is_marked_as_ours(desk: Desk, activity: str) -> None:
    """Triggers are told the keyspace, so that nobody deletes from Redis what is newer there."""
    await execute(
        activity,
        """CREATE TABLE marks (origin text);
           CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
               INSERT INTO marks VALUES (current_setting('sidecache.origin', true));
               RETURN NULL; END$$;
           CREATE TRIGGER t AFTER INSERT OR UPDATE ON activity FOR EACH STATEMENT
               EXECUTE FUNCTION mark()""",
    )
    desk.write(key_of(1), *views(1))
    await desk.through()
    assert await rows_of(activity, "SELECT DISTINCT origin FROM marks") == [("activity",)]
