"""Statements of policies against a real schema."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.config import Database
from proxy.origin import installing, locking, pool
from proxy.origin.preparing import about_table, findings
from proxy.plans import plans_in
from proxy.policy import planning
from proxy.secret import Secret
from tests.policy.rulebook import Folder

pytestmark = pytest.mark.integration

SCHEMA = (
    "CREATE SCHEMA shop; CREATE TABLE shop.t (id int PRIMARY KEY, name text, day date, n numeric)"
)


@pytest.fixture
async def connection(postgres: str) -> AsyncIterator[pool.Connection]:
    """A connection to a database with a table shop.t, which is taken away again."""
    found = await pool.connect(Secret(postgres), Database(Secret(postgres), Secret(postgres)))
    await found.execute(SCHEMA)
    yield found
    await found.execute("DROP SCHEMA shop CASCADE")
    found.terminate()


async def found_of(connection: pool.Connection, folder: Path, fields: str, key: str) -> list[str]:
    ruleset = Folder(folder).compile(f"keyspaces:\n  k:\n    key: {key}\n{fields}")
    (plan,) = plans_in(ruleset).by_keyspace.values()
    return [text async for _, text in findings(connection, plan)]


READS = [
    ("hash", "SELECT name, n FROM shop.t WHERE id = :id", "k:{id:int}", ""),
    ("hash", "SELECT name FROM shop.t WHERE id = :id", "k:{id}", "write {id:int} in the key"),
    ("hash", "SELECT name FROM shop.t WHERE day = :id", "k:{id}", "write {id:date} in the key"),
    ("hash", "SELECT nam FROM shop.t WHERE name = :id", "k:{id}", 'column "nam" does not exist'),
    ("hash", "SELECT * FROM gone WHERE name = :id", "k:{id}", 'relation "gone" does not exist'),
    ("hash", "SELECT name, name FROM shop.t WHERE name = :id", "k:{id}", "comes twice"),
    ("hash", "SELECT int4range(1, n::int) AS r FROM shop.t WHERE name = :id", "k:{id}", "cast it"),
    ("string", "SELECT name, n FROM shop.t WHERE name = :id", "k:{id}", "one column, not 2"),
    ("zset", "SELECT id, name FROM shop.t WHERE name = :id", "k:{id}", "score, a number"),
    ("zset", "SELECT name, n FROM shop.t WHERE name = :id", "k:{id}", ""),
]


@pytest.mark.parametrize(("type", "read", "key", "said"), READS)
async def test_reads(
    connection: pool.Connection, tmp_path: Path, type: str, read: str, key: str, said: str
) -> None:
    """What PostgreSQL does not take, and what makes no value of the keyspace's type."""
    fields = f"    type: {type}\n    origin: {{read: '{read}'}}\n"
    found = await found_of(connection, tmp_path, fields, f'"{key}"')
    assert len(found) == bool(said), found
    assert not said or said in found[0]


async def test_columns_that_are_not_there(connection: pool.Connection, tmp_path: Path) -> None:
    """A mapping of columns names what the statement gives."""
    fields = (
        "    type: hash\n"
        "    origin: {read: 'SELECT name FROM shop.t WHERE name = :id', columns: {title: nam}}\n"
    )
    (said,) = await found_of(connection, tmp_path, fields, "k:{id}")
    assert said == 'columns names "nam", which is none of it: name'


async def test_what_restores_and_what_writes(connection: pool.Connection, tmp_path: Path) -> None:
    """A restored row has the key's segments and a value; a written one the table's columns."""
    fields = (
        "    type: hash\n    kind: state\n    evict: never\n    cluster: locks\n"
        "    on_loss: restore\n"
        "    restore: {sql: 'SELECT name AS value, day AS ttl FROM shop.t', priority: 1}\n"
        "    write: {mode: through, sql: 'INSERT INTO shop.t (id, nam) VALUES (:id, :x)'}\n"
    )
    found = await found_of(connection, tmp_path, fields, "k:{id}")
    assert len(found) == 3
    assert 'column "nam" of relation "t" does not exist' in found[0]
    assert found[1:] == [
        'the key needs the column "id"; there is: value text, ttl date',
        'the column "ttl" is a number of seconds, not date',
    ]


async def test_tables_that_are_watched(connection: pool.Connection) -> None:
    """They exist, and so do the columns that hold the ids."""
    assert await about_table(connection, "shop.t", ["id", "name"]) is None
    assert await about_table(connection, "shop.u", []) == 'there is no table "shop.u"'
    said = await about_table(connection, "shop.t", ["id", "idd"])
    assert said == 'the table "shop.t" has no column "idd"; it has: id, name, day, n'
    assert await about_table(connection, "a b c", []) is not None


@pytest.mark.parametrize(
    ("index", "enough"),
    [
        ("UNIQUE (event, seat)", True), ("UNIQUE (seat)", True), ("UNIQUE (seat, event, n)", False),
        ("(event, seat)", False), ("UNIQUE (event, seat) WHERE n > 1", False),
        ("UNIQUE (event, lower(seat))", False), ("UNIQUE (event) INCLUDE (seat)", True),
    ],
)  # fmt: skip
async def test_a_lock_is_one_row(
    connection: pool.Connection, postgres: str, tmp_path: Path, index: str, enough: bool
) -> None:
    """A table of locks needs a unique index on the columns of the key, or on some of them."""
    await connection.execute(
        "CREATE TABLE shop.seats (event text, seat text, n int, status text, locked_by text,"
        " locked_at timestamptz, locked_until timestamptz, lock_token bigint, booking_id text,"
        " session_id text, updated_at timestamptz);"
    )
    unique, _, rest = index.partition("(")
    await connection.execute(f"CREATE {unique} INDEX ON shop.seats ({rest}")
    fields = (
        '    kind: lock\n    ttl: {default: 60s}\n    restore: {sql: "SELECT event, seat,'
        ' locked_by AS value, 1 AS ttl FROM shop.seats"}\n    on_loss: restore\n'
        "    lock: {owner: value, table: shop.seats, key: {event: event, seat: seat}}\n"
    )
    policies = Folder(tmp_path).load(f'keyspaces:\n  k:\n    key: "k:{{event}}:{{seat}}"\n{fields}')
    locks = planning.locks_of(policies)
    await installing.run(postgres, (), apply=True, remove=False, locks=locks)
    try:
        found = await found_of(connection, tmp_path, fields, '"k:{event}:{seat}"')
        assert len(found) == (not enough), found
        wanted = 'CREATE UNIQUE INDEX ON "shop"."seats" ("event", "seat")'
        assert enough or found[0].endswith(wanted)
    finally:
        await installing.run(postgres, (), apply=True, remove=True, locks=locks)


async def test_locks_that_are_not_installed(connection: pool.Connection, tmp_path: Path) -> None:
    """Functions that are not there are told once, with what makes them."""
    fields = "    kind: lock\n    ttl: {default: 60s}\n    lock: {owner: value}\n"
    (found,) = await found_of(connection, tmp_path, fields, "k:{id}")
    assert found.startswith("PostgreSQL has no functions for the locks of k, or those of other")
    assert found.endswith("run `sidecache sql install`")


async def test_locks_of_other_policies(
    connection: pool.Connection, postgres: str, tmp_path: Path
) -> None:
    """What was installed for others, or by another version, is told until the next install."""
    fields = "    kind: lock\n    ttl: {default: 60s}\n    lock: {owner: value}\n"
    counted = fields.replace("value}", "value, per_owner: {scope: id, max: 2}}")
    policies = Folder(tmp_path).load(f'keyspaces:\n  k:\n    key: "k:{{id}}"\n{fields}')
    (plan,) = planning.locks_of(policies)
    await installing.run(postgres, (), apply=True, remove=False, locks=[plan])
    try:
        assert await found_of(connection, tmp_path, fields, "k:{id}") == []
        (found,) = await found_of(connection, tmp_path, counted, "k:{id}")
        assert "those of other policies" in found
        take = locking.named("take", plan)
        await connection.execute(f"COMMENT ON FUNCTION {take} IS 'of old'")
        (found,) = await found_of(connection, tmp_path, fields, "k:{id}")
        assert found == (
            "the functions for the locks of k are those of another version of sidecache: "
            "run `sidecache sql install`"
        )
    finally:
        await installing.run(postgres, (), apply=True, remove=True, locks=[plan])


async def test_a_table_that_takes_no_lock(connection: pool.Connection, tmp_path: Path) -> None:
    """Columns of other types are told by name, before anybody installs anything for them."""
    await connection.execute(
        "CREATE TABLE shop.seats (seat text PRIMARY KEY, status text, locked_by bigint,"
        " locked_at timestamptz, locked_until timestamptz, lock_token bigint, booking_id uuid,"
        " session_id text, updated_at timestamptz);"
    )
    fields = (
        '    kind: lock\n    ttl: {default: 60s}\n    restore: {sql: "SELECT seat,'
        ' locked_by AS value, 1 AS ttl FROM shop.seats"}\n    on_loss: restore\n'
        "    lock: {owner: value, table: shop.seats, key: {seat: seat}}\n"
    )
    found = await found_of(connection, tmp_path, fields, '"k:{seat}"')
    of_type = 'of the table "shop.seats" is of type'
    assert [text.partition(",")[0] for text in found[:2]] == [
        f'the column "locked_by" {of_type} bigint', f'the column "booking_id" {of_type} uuid',
    ]  # fmt: skip
