"""Reading the outbox of a real database: nothing is lost, and nothing is read twice."""

from collections.abc import AsyncIterator

import pytest

from proxy.origin import outbox
from proxy.origin.outbox import Change, Outbox, Snapshot
from tests.origin.bench import Connection, connected

pytestmark = pytest.mark.integration


@pytest.fixture
async def reader(url: str) -> AsyncIterator[Outbox]:
    async with connected(url) as connection:
        now = await outbox.moment(connection)
        yield Outbox(connection, Snapshot.before(now.snapshot.xmin))


def ids(changes: list[Change]) -> list[str | None]:
    return [change.key["id"] for change in changes]


async def add(connection: Connection, name: str) -> None:
    await connection.execute("INSERT INTO event (id) VALUES ($1)", name)


async def test_what_is_committed_is_read_once(writer: Connection, reader: Outbox) -> None:
    """A change comes with its table, key and time, and not again."""
    await add(writer, "a")
    (change,) = await reader.read()
    assert change[:4] == ("event", False, {"id": "a", "venue": None, "day": None}, None)
    assert 0 <= reader.now - change.at < 5000
    assert await reader.read() == []
    await writer.execute("TRUNCATE event")
    (change,) = await reader.read()
    assert change.everything


async def test_an_older_transaction_that_commits_later_is_not_lost(
    url: str, writer: Connection, reader: Outbox
) -> None:
    """Later ones are read while it is open, it is read when it commits, and none comes twice."""
    async with connected(url) as slow:
        transaction = slow.transaction()
        await transaction.start()
        await add(slow, "slow1")
        before = reader.position
        await add(writer, "fast1")
        assert ids(await reader.read()) == ["fast1"]
        await add(slow, "slow2")
        await add(writer, "fast2")
        assert ids(await reader.read()) == ["fast2"]
        # Whoever goes on from here has to read from the open one on.
        opened = int(await slow.fetchval("SELECT pg_current_xact_id()::text"))
        assert before <= reader.position <= opened
        await transaction.commit()
        assert ids(await reader.read()) == ["slow1", "slow2"]
        assert await reader.read() == []
        assert reader.position > opened


async def test_a_savepoint_belongs_to_its_transaction(
    url: str, writer: Connection, reader: Outbox
) -> None:
    """What a sub-transaction writes carries the number of the whole, and is read with it."""
    async with connected(url) as slow:
        transaction = slow.transaction()
        await transaction.start()
        async with slow.transaction():
            await add(slow, "inner")
        await add(writer, "fast")
        assert ids(await reader.read()) == ["fast"]
        await transaction.commit()
        assert ids(await reader.read()) == ["inner"]


async def test_a_prepared_transaction_is_read_when_it_commits(
    writer: Connection, reader: Outbox
) -> None:
    """Where two phases are allowed, the first shows nothing."""
    if await writer.fetchval("SHOW max_prepared_transactions") == "0":
        await writer.execute("BEGIN; INSERT INTO event (id) VALUES ('a')")
        assert await reader.read() == []
        await writer.execute("COMMIT")
    else:
        await writer.execute("BEGIN; INSERT INTO event (id) VALUES ('a'); PREPARE TRANSACTION 'p'")
        assert await reader.read() == []
        await writer.execute("COMMIT PREPARED 'p'")
    assert ids(await reader.read()) == ["a"]


async def test_a_position_is_enough_to_go_on(url: str, writer: Connection, reader: Outbox) -> None:
    """A reader that begins at another's position misses nothing, with an open transaction too."""
    async with connected(url) as slow, connected(url) as other:
        transaction = slow.transaction()
        await transaction.start()
        await add(slow, "slow")
        await add(writer, "fast")
        await reader.read()
        follower = Outbox(other, Snapshot.before(reader.position))
        assert ids(await follower.read()) == ["fast"]
        await transaction.commit()
        assert ids(await follower.read()) == ["slow"]


async def test_many_rows_come_in_pages(
    writer: Connection, reader: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are of the first one's moment, and the position moves behind the last."""
    start, earlier = reader.position, reader.began
    for number in range(3):
        await writer.execute(
            "INSERT INTO event (id) SELECT $1::text || '.' || n FROM generate_series(1, 400) n",
            str(number),
        )
    found = ids(await reader.read())
    assert len(found) == outbox.PAGE
    assert not reader.complete
    assert reader.position == start
    began = reader.began
    assert began == reader.now > earlier
    await add(writer, "later")
    while not reader.complete:
        found += ids(await reader.read())
    assert len(found) == len(set(found)) == 1200
    assert "later" not in found
    assert reader.now >= reader.began == began
    assert ids(await reader.read()) == ["later"]


async def test_a_reader_can_go_back(writer: Connection, reader: Outbox) -> None:
    """From an earlier transaction on everything is read again; forwards it does not jump."""
    start = reader.position
    await add(writer, "a")
    await add(writer, "b")
    assert ids(await reader.read()) == ["a", "b"]
    reader.rewind(reader.position + 100)
    assert await reader.read() == []
    assert reader.complete
    reader.rewind(start)
    assert not reader.complete
    assert ids(await reader.read()) == ["a", "b"]


async def test_what_is_read_again_names_no_writer(
    writer: Connection, reader: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had seen to it in Redis had done so before something was lost there."""
    monkeypatch.setattr(outbox, "_POLL", outbox._POLL.replace("LIMIT 500", "LIMIT 2"))
    monkeypatch.setattr(outbox, "PAGE", 2)
    start = reader.position
    await writer.execute("SET sidecache.origin = 'event'")
    for name in ("a", "b", "c"):
        await add(writer, name)
    assert [change.origin for change in await reader.read() + await reader.read()] == ["event"] * 3
    reader.rewind(start)
    assert [change.origin for change in await reader.read() + await reader.read()] == [None] * 3
    await add(writer, "d")
    assert [change.origin for change in await reader.read()] == ["event"]


async def test_only_what_is_old_and_read_is_deleted(
    url: str, writer: Connection, reader: Outbox
) -> None:
    """What an open transaction wrote long ago stays until it has been read; the floor is noted."""
    async with connected(url) as slow:
        transaction = slow.transaction()
        await transaction.start()
        await add(slow, "slow")
        await add(writer, "fast")
        await writer.execute("UPDATE sidecache_outbox SET at = at - interval '2 days'")
        await slow.execute(
            "UPDATE sidecache_outbox SET at = at - interval '2 days' "
            "WHERE xid = pg_current_xact_id()"
        )
        await reader.read()
        assert await reader.clean(86400) == 0
        await transaction.commit()
        assert ids(await reader.read()) == ["slow"]
        assert await reader.clean(86400 * 3) == 0
        assert await reader.clean(86400) == 2
    now = await outbox.moment(writer)
    assert now.floor < reader.position <= now.snapshot.xmin
    assert await reader.clean(86400) == 0


async def test_a_time_leads_to_a_transaction(writer: Connection, reader: Outbox) -> None:
    """Where numbers say nothing any more, the time does."""
    await add(writer, "a")
    (change,) = await reader.read()
    assert await outbox.since(writer, change.at + 1000) is None
    first = await outbox.since(writer, change.at - 1000)
    assert first is not None
    reader.rewind(first)
    assert ids(await reader.read()) == ["a"]


async def test_a_table_without_triggers_is_known(writer: Connection) -> None:
    """All four have to be there, and to be enabled."""
    assert await outbox.noting(writer, "sales.seat")
    assert not await outbox.noting(writer, "nowhere")
    await writer.execute("ALTER TABLE event DISABLE TRIGGER sidecache_note_event_update")
    assert not await outbox.noting(writer, "event")


async def test_a_look_costs_what_is_new(url: str, writer: Connection, reader: Outbox) -> None:
    """Rows behind an open transaction are not read again: both halves go by the index."""
    async with connected(url) as slow, slow.transaction():
        await add(slow, "slow")
        await writer.execute(
            "INSERT INTO sidecache_outbox (tbl, op, key) SELECT 'x', 'i', '{}' "
            "FROM generate_series(1, 20000)"
        )
        await writer.execute("ANALYZE sidecache_outbox")
        while await reader.read():
            pass
        query = outbox._POLL.replace("$1", f"'{reader._behind.text}'").replace("$2", "'0'")
        query = query.replace("$3", "'0'").replace("$4", "''")
        plan = "\n".join(row[0] for row in await writer.fetch("EXPLAIN ANALYZE " + query))
    assert "Seq Scan" not in plan
    assert "Rows Removed by Filter" not in plan


async def test_a_reader_needs_no_more_than_its_tables(url: str, writer: Connection) -> None:
    """An ordinary role with the rights that the manual names can lead."""
    role = "reader_" + url.rpartition("/")[2]
    await writer.execute(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT, DELETE ON sidecache_outbox TO {role};"
        f"GRANT SELECT, INSERT, UPDATE ON sidecache_progress TO {role}"
    )
    try:
        async with connected(url.replace("//sidecache@", f"//{role}@")) as connection:
            assert await connection.fetchval("SELECT current_user::text") == role
            now = await outbox.moment(connection)
            reader = Outbox(connection, Snapshot.before(now.snapshot.xmin))
            await add(writer, "a")
            await writer.execute("UPDATE sidecache_outbox SET at = at - interval '2 days'")
            assert ids(await reader.read()) == ["a"]
            assert await reader.clean(86400) == 1
            assert await outbox.noting(connection, "event")
    finally:
        await writer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(("text", "finished"), [("5:5:", 5), ("5:9:5", 8), ("5:9:5,7", 7)])
def test_a_snapshot_that_shows_more_counts_more(text: str, finished: int) -> None:
    """Transactions before its end that are not open are finished."""
    assert Snapshot(text).finished == finished
