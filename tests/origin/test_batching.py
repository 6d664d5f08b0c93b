"""Statements for one row become statements for many."""

import asyncpg
import pytest

from proxy.origin.batching import (
    arguments_of,
    prepared,
    run,
    segments_of,
    shape_of,
    spelled,
    summed,
)
from proxy.origin.merging import Row
from proxy.origin.records import Change, Entry, Op
from proxy.plans import Parameter, Plan, Statement
from proxy.wire.rules import Segment
from tests.origin.activity import UPSERT, plan_of, rows_of, writing


def test_an_upsert_is_taken_apart() -> None:
    """Commas and brackets in texts, comments, names and calls do not end a value."""
    shape = shape_of(
        'INSERT INTO s."t" AS a (x, "y, z") VALUES (coalesce($1, \'),(\'), /* ) */ f($2, (3))) '
        "ON CONFLICT (x) DO UPDATE SET x = $$)$$"
    )
    assert shape is not None
    assert shape.columns == ("x", '"y, z"')
    assert shape.values == ("coalesce($1, '),(')", "/* ) */ f($2, (3))")
    assert shape.rest.strip().startswith("ON CONFLICT")


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE t SET x = $1",
        "INSERT INTO t VALUES ($1)",
        "INSERT INTO t (x) SELECT $1",
        "INSERT INTO t (x) VALUES ($1), ($2)",
        "INSERT INTO t (x) VALUES ($1, $2)",
        "INSERT INTO t (x) VALUES ($1) ON CONFLICT (x) DO UPDATE SET x = $2",
        "INSERT INTO t (x",
    ],
)
def test_what_has_another_shape_is_run_row_by_row(text: str) -> None:
    """Nothing is guessed."""
    assert shape_of(text) is None
    assert summed(Statement("t write", text, ())) == frozenset()


def test_what_is_added_up_is_told_from_what_is_set() -> None:
    """A column that grows by what is written takes increments and nothing else."""
    assert summed(UPSERT) == {"views", "calls"}
    other = "INSERT INTO t (n) VALUES ($1) ON CONFLICT (n) DO UPDATE SET n = EXCLUDED.n + t.n"
    assert summed(Statement("t write", other, (Parameter("count", "field"),))) == {"count"}


def test_a_key_gives_its_segments() -> None:
    """Typed ones as they are typed; a key of another pattern is an error."""
    plan = plan_of()
    assert segments_of(plan, b"activity:u:2026-01-02") == {"id": "u", "day": "2026-01-02"}
    path = plan._replace(pattern=(b"f:", Segment("rest", "path")))
    assert segments_of(path, b"f:a:b\n") == {"rest": "a:b\n"}
    for key in (b"activity:u:word", b"activity:a:b:2026-01-02", b"other"):
        with pytest.raises(ValueError, match="pattern"):
            segments_of(plan, key)
    with pytest.raises(ValueError, match="utf-8"):
        segments_of(plan, b"activity:\xff:2026-01-02")


@pytest.mark.parametrize(
    ("kind", "text", "fits"),
    [
        ("int", "7", True), ("int", "-7", True), ("int", "007", False), ("int", "-0", False),
        ("int", "9223372036854775807", True), ("int", "9223372036854775808", False),
        ("int", "1" * 5000, False),
        ("uuid", "5f1c0a52-0a3e-4d5b-8a0e-1f2d3c4b5a69", True),
        ("uuid", "5F1C0A52-0A3E-4D5B-8A0E-1F2D3C4B5A69", False),
        ("date", "2026-02-28", True), ("date", "2026-02-29", False), ("date", "2026-99-99", False),
        ("date", "0000-01-01", False), ("text", "007", True), ("hex", "0A", True),
    ],
)  # fmt: skip
def test_a_value_has_one_spelling(kind: str, text: str, fits: bool) -> None:
    """What PostgreSQL would print otherwise, or has no such value for, is told from the rest."""
    plan = plan_of(writing())._replace(pattern=(b"a:", Segment("id", kind)))
    assert spelled(plan, b"a:" + text.encode()) is fits


def row_of(*changes: Change, key: bytes = b"activity:u:2026-01-02") -> Row:
    row = Row("activity", key)
    row.merge(Entry(1, 12.5, "activity", key, changes), "add")
    return row


def test_arguments_stand_in_the_order_of_the_parameters() -> None:
    """What was not written, and what was erased, is no value."""
    row = row_of(Change(Op.ADD, b"views", b"3"), Change(Op.ERASE, b"name"))
    assert arguments_of(plan_of(), row) == ["u", "2026-01-02", "3", None, None, None]
    guarded = UPSERT._replace(parameters=(Parameter("version", "version"),))
    assert arguments_of(plan_of(writing(statement=guarded)), row) == ["12500000"]


BY_ROW = Statement(
    "activity write",
    """WITH known AS (INSERT INTO activity (id, day) VALUES ($1::text, $2::date)
                      ON CONFLICT DO NOTHING)
       UPDATE activity SET views = views + $3 WHERE id = $1::text AND day = $2::date""",
    UPSERT.parameters[:3],
)


@pytest.mark.integration
@pytest.mark.parametrize(("statement", "together"), [(UPSERT, True), (BY_ROW, False)])
async def test_rows_are_written_either_way(
    activity: str, statement: Statement, together: bool
) -> None:
    """As one statement where its shape allows that, else row by row in one pipeline."""
    plan: Plan = plan_of(writing(statement=statement))
    rows = [row_of(Change(Op.ADD, b"views", b"2"), key=b"activity:%d:2026-01-02" % n)
            for n in range(3)]  # fmt: skip
    connection = await asyncpg.connect(activity, timeout=5)
    try:
        many = await prepared(connection, statement)
        assert many.together is together
        for _ in range(2):
            await run(connection, many, [arguments_of(plan, row) for row in rows])
    finally:
        connection.terminate()
    # An update does not see the row that its own statement inserts.
    expected = 4 if together else 2
    found = await rows_of(activity, "SELECT id, views FROM activity ORDER BY id")
    assert found == [(str(n), expected) for n in range(3)]


@pytest.mark.integration
async def test_every_type_is_cast_from_text(activity: str) -> None:
    """Arrays, quoted types and functions' arguments are what PostgreSQL says they are."""
    statement = Statement(
        "t write",
        'INSERT INTO t (a, b, c, d) VALUES ($1, $2, to_timestamp($3), $4::"od d")',
        tuple(Parameter(name, "field") for name in "abcd"),
    )
    connection = await asyncpg.connect(activity, timeout=5)
    try:
        await connection.execute(
            "CREATE TYPE \"od d\" AS ENUM ('x'); CREATE TABLE t "
            '(a integer[], b jsonb, c timestamptz, d "od d")'
        )
        many = await prepared(connection, statement)
        await run(connection, many, [["{1,2}", '{"k": 1}', "1.5", "x"], [None] * 4])
        found = await connection.fetch("SELECT a, b::text, d::text FROM t WHERE c IS NOT NULL")
    finally:
        connection.terminate()
    assert [tuple(row) for row in found] == [([1, 2], '{"k": 1}', "x")]
