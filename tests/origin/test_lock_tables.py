"""Which tables can have locks for rows."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.embedded.postgres import Postgres
from proxy.errors import ConfigError
from proxy.origin import installing
from proxy.origin.lock_tables import COLUMNS, mistakes
from tests.origin.ticketing import Asker, ticketing

pytestmark = pytest.mark.integration


@pytest.fixture
async def asker(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[Asker]:
    async with ticketing(postgres_server, tmp_path) as tickets:
        # No index of theirs is in the way of another type.
        connection = (await tickets.asker()).connection
        await connection.execute("DROP INDEX seats_event_locked_by_idx, seats_locked_until_idx")
        yield await tickets.asker()


async def altered(asker: Asker, column: str, type: str) -> Sequence[str]:
    await asker.connection.execute(
        f"ALTER TABLE seats ALTER {column} DROP DEFAULT, ALTER {column} DROP NOT NULL,"
        f" ALTER {column} TYPE {type} USING NULL"
    )
    return await mistakes(asker.connection, asker.locking, 10.0)


@pytest.mark.parametrize(
    ("column", "type", "wanted"),
    [
        ("booking_id", "uuid", "text or varchar"), ("locked_by", "bigint", "text or varchar"),
        ("session_id", "uuid", "text or varchar"),
        ("status", "integer", "text, varchar or an enum"),
        ("locked_until", "timestamp without time zone", "timestamptz"),
        ("lock_token", "text", "bigint"),
    ],
)  # fmt: skip
async def test_a_column_that_takes_no_lock(
    asker: Asker, column: str, type: str, wanted: str
) -> None:
    """It is named with the type that it has and the one that it has to have."""
    said = (
        f'the column "{column}" of the table "seats" is of type {type}, with which no lock can be '
        f"taken: it has to be {wanted}"
    )
    assert await altered(asker, column, type) == [said]


@pytest.mark.parametrize(
    ("column", "type"),
    [
        ("status", "varchar(20)"), ("status", "state"), ("booking_id", "varchar(40)"),
        ("lock_token", "integer"), ("lock_token", "numeric"), ("locked_by", "who"),
        ("locked_until", "timestamptz(3)"), ("updated_at", "moment"),
    ],
)  # fmt: skip
async def test_a_column_that_takes_locks(asker: Asker, column: str, type: str) -> None:
    """Nothing is said of it, and a lock is taken, kept and given up."""
    await asker.connection.execute(
        "CREATE TYPE state AS ENUM ('available', 'locked', 'booked'); CREATE DOMAIN who AS text;"
        " CREATE DOMAIN moment AS timestamptz"
    )
    assert await altered(asker, column, type) == []
    await asker.connection.execute("UPDATE seats SET status = 'available'")
    assert (await asker.take("u1", "s1", booking="b1")).outcome == "acquired"
    assert (await asker.take("u2", "s1")).outcome == "held"
    assert (await asker.release("u1", "s1"))[0] == [1]


async def test_an_enum_without_a_state(asker: Asker) -> None:
    """Each label that a grant or a release would write is asked for."""
    await asker.connection.execute("CREATE TYPE state AS ENUM ('free', 'locked')")
    assert await altered(asker, "status", "state") == [
        'the column "status" of the table "seats" is of type state, which lacks the label '
        "'available'"
    ]


async def test_columns_that_are_not_there(asker: Asker) -> None:
    """Each is named; where there is no table, that alone."""
    await asker.connection.execute("ALTER TABLE seats DROP session_id, DROP updated_at")
    said = await mistakes(asker.connection, asker.locking, 10.0)
    assert [text.partition(",")[0] for text in said] == [
        'the table "seats" has no column "session_id"',
        'the table "seats" has no column "updated_at"',
    ]
    assert said[0].endswith("it has: event, seat, " + ", ".join([*COLUMNS][:-2]))
    await asker.connection.execute("DROP TABLE seats")
    assert list(await mistakes(asker.connection, asker.locking, 10.0)) == [
        'there is no table "seats"'
    ]


async def test_nothing_is_installed_for_such_a_table(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    """The install says what the check says, with the place of the policy."""
    async with ticketing(postgres_server, tmp_path) as tickets:
        asker = await tickets.asker()
        await asker.connection.execute("ALTER TABLE seats ALTER booking_id TYPE uuid USING NULL")
        with pytest.raises(ConfigError, match=r'rules.yaml:\d+:\d+: the column "booking_id"'):
            await installing.run(tickets.url, (), apply=True, remove=False, locks=[asker.plan])
