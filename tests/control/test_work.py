"""Changes of rows as work for one cluster."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy import wire
from proxy.control.work import Row, Work, orders_of, present, work_of
from proxy.origin.codecs import set_codecs
from proxy.origin.outbox import Change
from tests.control.bench import rules
from tests.origin.bench import Connection, connected

POLICIES = """
keyspaces:
  seats:
    key: seats:{event_id}:all
    cluster: cache
    type: hash
    origin: {read: "SELECT seat AS field, status AS value FROM sales.seat WHERE event = :event_id"}
    invalidate:
      - table: sales.seat
        key: {event_id: event}
        patch:
          columns: [seat]
          sql: %s
          counts: "{value}_count"
          greatest: [at]
      - {table: event, key: {event_id: id}}
"""
SQL = "SELECT seat AS field, status AS value FROM sales.seat WHERE event=:event_id AND seat=:seat"


def change(table: str, everything: bool = False, **key: str | None) -> Change:
    return Change(table, everything, key, None, 0)


def made(ruleset: wire.Ruleset, *changes: Change) -> Work:
    return work_of(ruleset, 0, changes)


@pytest.fixture
def ruleset(tmp_path: Path) -> wire.Ruleset:
    return rules(tmp_path, POLICIES % SQL)


def test_each_row_is_patched_once_and_in_order(ruleset: wire.Ruleset) -> None:
    """Rows that changed several times are asked for once; other tables' keys are stale."""
    seats = [change("sales.seat", event="e", seat=seat) for seat in ("2", "1", "2")]
    work = made(ruleset, *seats, change("event", id="f"), change("other", id="g"))
    (rows,) = work.patched.values()
    assert list(rows) == [(b"seats:e:all", ("e", "2")), (b"seats:e:all", ("e", "1"))]
    assert work.stale == {b"seats:f:all"}


def test_what_no_patch_can_tell(ruleset: wire.Ruleset) -> None:
    """All rows, columns that are not noted, and names that take nothing beside them."""
    work = made(ruleset, change("sales.seat", everything=True), change("sales.seat", event="{}x"),
                change("sales.seat", seat="1"), change("sales.seat", event="e"))  # fmt: skip
    assert work.doubtful == {"truncated": {0}, "unmapped": {0}}
    assert work.stale == {b"seats:{}x:all"}
    assert [list(rows) for rows in work.patched.values()] == [[(b"seats:e:all", ("e", None))]]


@pytest.fixture
async def reader(url: str) -> AsyncIterator[Connection]:
    """A connection as appliers have, with four seats of one event."""
    async with connected(url) as connection:
        await connection.execute(
            "INSERT INTO sales.seat VALUES ('e', '1', 'free'), ('e', '2', 'sold'), "
            "('e', '3', NULL), ('f', '1', 'free')"
        )
        await set_codecs(connection)
        yield connection


@pytest.mark.integration
async def test_orders_say_what_rows_are_now(ruleset: wire.Ruleset, reader: Connection) -> None:
    """One statement for all rows; a row that is gone or says NULL takes its key away."""
    asked = {"e": ("2", "1"), "f": ("1", "9"), "g": ("1",)}
    seats = [change("sales.seat", event=e, seat=s) for e, names in asked.items() for s in names]
    counters = [b"", b"_count"]
    orders = await orders_of(reader, made(ruleset, *seats, change("event", id="h")))
    assert orders == {
        b"seats:e:all": [*counters, b"2", b"sold", b"count", b"1", b"free", b"count"],
        b"seats:f:all": counters,
        b"seats:g:all": counters,
        b"seats:h:all": None,
    }
    null = await orders_of(reader, made(ruleset, change("sales.seat", event="e", seat="3")))
    assert null == {b"seats:e:all": counters}


@pytest.mark.integration
async def test_a_key_that_another_table_makes_stale(
    ruleset: wire.Ruleset, reader: Connection
) -> None:
    """It is taken away by the script that also refuses a patch that is under way."""
    both = change("sales.seat", event="e", seat="1"), change("event", id="e")
    assert await orders_of(reader, made(ruleset, *both)) == {b"seats:e:all": [b"", b""]}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sql", "written"),
    [
        ("SELECT 'at' AS field, 5 AS value WHERE :event_id = :seat", [b"at", b"5", b"greatest"]),
        ("SELECT n AS field, 1 AS value FROM generate_series(1, 17) n WHERE :seat = 'e'", []),
        ("SELECT nothing AS field, 1 AS value WHERE :seat = 'e'", []),
        ("SELECT 'a' AS field, 1 / (length(:seat) - 1) AS value", []),
    ],
)
async def test_what_statements_say(
    tmp_path: Path, reader: Connection, sql: str, written: Sequence[bytes]
) -> None:
    """The greater number is marked; too many fields, and statements that fail, take keys away."""
    work = made(rules(tmp_path, POLICIES % sql), change("sales.seat", event="e", seat="e"))
    assert await orders_of(reader, work) == {b"seats:e:all": [b"", b"_count", *written]}


@pytest.mark.integration
async def test_rows_are_told_by_their_place(ruleset: wire.Ruleset, reader: Connection) -> None:
    """Each row belongs to that which was asked for, whatever is not there."""
    (patch,) = made(ruleset, change("sales.seat", event="e", seat="1")).patched
    given: list[Row] = [("x", "1"), ("e", "2"), ("e", None), ("e", "1")]
    found = await present(reader, patch.present, given)
    assert {place: rows[0]["value"] for place, rows in found.items()} == {1: "sold", 3: "free"}
