"""Tables and triggers in a real database: what is made, what is noted, and what is left alone."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from proxy.embedded.postgres import Postgres
from proxy.errors import ConfigError, StartError
from proxy.origin import installing
from proxy.plans import Watch
from tests.origin.bench import WATCHES, Connection, connected, database

pytestmark = pytest.mark.integration


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    async with connected(url) as connection:
        yield connection


async def noted(connection: Connection) -> list[tuple[str, ...]]:
    """Return what is in the outbox, and empty it."""
    rows = await connection.fetch("DELETE FROM sidecache_outbox RETURNING tbl, op, key::text")
    return sorted(tuple(row.values()) for row in rows)


def key(name: str, venue: int | None, day: str | None = None) -> str:
    def text(value: object) -> str:
        return "null" if value is None else f'"{value}"'

    return f'{{"id": {text(name)}, "day": {text(day)}, "venue": {text(venue)}}}'


async def test_every_kind_of_change_is_noted_once_per_key(connection: Connection) -> None:
    """Inserted, deleted, and of an update the old key and the new one."""
    await connection.execute("INSERT INTO event VALUES ('a', 'x', 1, '2026-02-01')")
    await connection.execute("INSERT INTO event VALUES ('b', 'x', 2)")
    assert await noted(connection) == [
        ("event", "i", key("a", 1, "2026-02-01")), ("event", "i", key("b", 2)),
    ]  # fmt: skip
    await connection.execute("UPDATE event SET venue = 3 WHERE id = 'b'")
    assert await noted(connection) == [("event", "u", key("b", 2)), ("event", "u", key("b", 3))]
    await connection.execute("DELETE FROM event WHERE id = 'b'")
    assert await noted(connection) == [("event", "d", key("b", 3))]
    await connection.execute("TRUNCATE event")
    assert await noted(connection) == [("event", "t", "{}")]


async def test_rows_of_one_key_are_one_note(connection: Connection) -> None:
    """A statement that changes a thousand rows of one key says so once."""
    await connection.execute(
        "INSERT INTO sales.seat SELECT 'e', n::text, 'free' FROM generate_series(1, 1000) n"
    )
    assert await noted(connection) == [("sales.seat", "i", '{"event": "e"}')]
    await connection.execute(
        "INSERT INTO sales.seat VALUES ('e', '1', 'x') "
        "ON CONFLICT (event, seat) DO UPDATE SET status = excluded.status"
    )
    assert ("sales.seat", "u", '{"event": "e"}') in await noted(connection)


async def test_dates_are_written_as_keys_have_them(connection: Connection) -> None:
    """Whatever DateStyle the writer's session has."""
    await connection.execute("SET datestyle = 'SQL, DMY'")
    await connection.execute("INSERT INTO event VALUES ('a', 'x', 1, '01/02/2026')")
    assert await noted(connection) == [("event", "i", key("a", 1, "2026-02-01"))]


async def test_what_is_rolled_back_is_not_noted(connection: Connection) -> None:
    """The note is part of the transaction."""
    await connection.execute("BEGIN; INSERT INTO event VALUES ('a'); ROLLBACK")
    assert await noted(connection) == []


async def test_a_writer_can_say_who_it_is(connection: Connection) -> None:
    """SET LOCAL marks what its own transaction changes, and nothing after it."""
    async with connection.transaction():
        await connection.execute("SET LOCAL sidecache.origin = 'user_activity'")
        await connection.execute("INSERT INTO event VALUES ('a')")
    await connection.execute("INSERT INTO event VALUES ('b')")
    rows = await connection.fetch("SELECT origin FROM sidecache_outbox ORDER BY id")
    assert [row["origin"] for row in rows] == ["user_activity", None]


async def test_a_writer_needs_no_rights_on_our_tables(url: str, connection: Connection) -> None:
    """The functions run as who installed them, and no table of the writer's gets in the way."""
    role = "writer_" + url.rpartition("/")[2]
    await connection.execute(
        f"CREATE ROLE {role} LOGIN; GRANT INSERT ON event TO {role}; SET ROLE {role};"
        "CREATE TEMP TABLE sidecache_outbox (xid int); CREATE TEMP TABLE new_rows (id int)"
    )
    try:
        await connection.execute("INSERT INTO event VALUES ('a')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(
                "INSERT INTO public.sidecache_outbox (tbl, op, key) VALUES ('x', 'i', '{}')"
            )
    finally:
        await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    assert await connection.fetchval("SELECT count(*) FROM public.sidecache_outbox") == 1


async def test_it_can_be_installed_again_and_taken_away(url: str, connection: Connection) -> None:
    """Twice is as once; afterwards nothing of it is left, and triggers of others are."""
    await connection.execute(
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER theirs AFTER INSERT ON event EXECUTE FUNCTION theirs()"
    )
    await installing.run(url, WATCHES, apply=True, remove=False)
    await connection.execute("INSERT INTO event VALUES ('a')")
    assert len(await noted(connection)) == 1
    await installing.run(url, WATCHES, apply=True, remove=True)
    assert await ours(connection) == []
    triggers = await connection.fetch("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert [row["tgname"] for row in triggers] == ["theirs"]
    await installing.run(url, WATCHES, apply=True, remove=True)


async def ours(connection: Connection) -> list[Any]:
    return await connection.fetch(
        "SELECT relname AS name FROM pg_class WHERE relname ~ '^sidecache_' UNION ALL "
        "SELECT proname FROM pg_proc WHERE proname ~ '^sidecache_'"
    )


async def test_tables_stay_while_other_policies_watch(url: str, connection: Connection) -> None:
    """Without the outbox every write to a table that others watch would fail."""
    await installing.run(url, WATCHES[:1], apply=True, remove=True)
    await connection.execute("INSERT INTO event VALUES ('a')")
    await connection.execute("INSERT INTO sales.seat VALUES ('a', '1')")
    assert await noted(connection) == [("sales.seat", "i", '{"event": "a"}')]


async def test_printing_changes_nothing(postgres_server: Postgres) -> None:
    """What is printed, run by somebody else, is what would have been applied."""
    async with database(postgres_server, installed=False) as url, connected(url) as connection:
        text = await installing.run(url, WATCHES, apply=False, remove=False)
        assert await ours(connection) == []
        await connection.execute(text)
        await connection.execute("INSERT INTO event VALUES ('a')")
        assert len(await noted(connection)) == 1


async def test_all_mistakes_are_told_with_the_place_of_their_policy(url: str) -> None:
    """A table and a column that are not there, and a view, which takes no such trigger."""
    async with connected(url) as connection:
        await connection.execute("CREATE VIEW view AS SELECT 1 AS n")
    wrong = (
        Watch("nowhere", (), "p.yaml:9:1"),
        Watch("event", (("ID", "p.yaml:10:2"), ("id", "p.yaml:10:1")), "p.yaml:10:1"),
        Watch("view", (("n", "p.yaml:11:2"),), "p.yaml:11:1"),
    )
    with pytest.raises(ConfigError) as caught:
        await installing.run(url, wrong, apply=True, remove=False)
    assert str(caught.value).splitlines() == [
        "p.yaml:9:1: there is no table nowhere",
        "p.yaml:10:2: table event has no column ID; it has: day, id, title, venue",
        "p.yaml:11:1: no triggers fit: it is no table: view",
    ]


async def test_a_table_that_is_in_use_is_not_waited_for_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a lock makes everybody behind wait: it gives up and has changed nothing."""
    monkeypatch.setattr(installing, "LOCK_TIMEOUT", "50ms")
    async with connected(url) as other, other.transaction():
        await other.execute("LOCK TABLE event IN ROW EXCLUSIVE MODE")
        with pytest.raises(StartError, match="lock timeout; nothing was changed"):
            await installing.run(url, WATCHES, apply=True, remove=False)


async def test_a_database_that_is_away_is_an_error(unused_tcp_port: int) -> None:
    """A sentence, and no traceback."""
    url = f"postgresql://x@127.0.0.1:{unused_tcp_port}/x"
    with pytest.raises(StartError, match="cannot be reached"):
        await installing.run(url, WATCHES, apply=True, remove=False)


def test_names_that_differ_stay_apart() -> None:
    """What is left out of a table's name does not make two functions one."""
    names = {installing.note_of(table) for table in ("a.b", "a_b", "A_b", "a-b", "x" * 70)}
    assert len(names) == 5
    assert max(map(len, names)) + len("_truncate") <= 63
    assert installing.note_of("events") == "sidecache_note_events"


async def test_any_name_of_a_table_can_be_quoted(url: str, connection: Connection) -> None:
    """A name that needs quotes is written with them, as PostgreSQL's own."""
    await installing.run(url, (Watch('"Odd.ly"', (("id", ""),), ""),), apply=True, remove=False)
    await connection.execute("""INSERT INTO "Odd.ly" VALUES ('it''s')""")
    assert await noted(connection) == [('"Odd.ly"', "i", """{"id": "it's"}""")]


def test_without_a_database_names_are_as_written() -> None:
    """For whoever may not connect: our tables in public, theirs as the policies name them."""
    text = installing.install_sql(WATCHES)
    assert text.startswith("BEGIN;")
    assert text.endswith("COMMIT;\n")
    assert 'AFTER INSERT ON "sales"."seat"' in text
    assert '"public".sidecache_outbox' in text
    assert "DROP FUNCTION" in installing.remove_sql(WATCHES)
