"""What can be told of an SQL text without a database."""

import pytest

from proxy.policy import sql


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT 1", []),
        ("SELECT * FROM t WHERE a = :a AND b = :b OR a = :a", ["a", "b"]),
        ("SELECT ':no', \":no\", $$ :no $$, $x$ :no $$ $x$ -- :no\n/* :no */, :yes", ["yes"]),
        ("SELECT a::text, :b::date", ["b"]),
        ("SELECT a[1:n], b[c[1]:n], 'it''s :no'", []),
    ],
)
def test_parameters(text: str, names: list[str]) -> None:
    """A parameter is a colon and a name outside of text, comments, casts and slices."""
    assert sql.parameters(text) == names


@pytest.mark.parametrize(
    ("text", "single"),
    [("SELECT 1", True), ("SELECT 1; ", True), ("SELECT ';'", True), ("SELECT 1; DROP t", False)],
)
def test_single(text: str, single: bool) -> None:
    """A second statement is seen, and a semicolon at the end or in text is none."""
    assert sql.single(text) is single


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("select 1", True),
        ("-- why\n WITH x AS (SELECT 1) TABLE x", True),
        ("/* a */ VALUES (1)", True),
        ("UPDATE t SET a = 1", False),
        ("selector", False),
        ("", False),
    ],
)
def test_reads(text: str, reads: bool) -> None:
    """A statement that reads begins with one of four words, comments passed over."""
    assert sql.reads(text) is reads


UPSERT = "INSERT INTO t AS t (id, v) VALUES (:id, :version) ON CONFLICT (id) DO UPDATE SET "


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        (UPSERT + "v = excluded.v WHERE t.v < excluded.v", True),
        (UPSERT + 'a = 1, "v"=EXCLUDED.v where "v" IS NULL or excluded.v >= t.v RETURNING 1', True),
        ("UPDATE t SET v = :version WHERE id = :id AND v < :version", True),
        (UPSERT + "v = excluded.v", False),
        (UPSERT + "v = excluded.v WHERE t.v > excluded.v", False),
        (UPSERT + "v = excluded.v WHERE t.w < excluded.w", False),
        (UPSERT + "v = excluded.v WHERE t.w < excluded.v2", False),
        (UPSERT + "w = excluded.v WHERE t.v < excluded.v", False),
        (UPSERT + "v = excluded.v WHERE true -- t.v < excluded.v", False),
        (UPSERT + "v = excluded.v WHERE t.a <> 't.v < excluded.v'", False),
    ],
)
def test_guards(text: str, guarded: bool) -> None:
    """The column is set to the number of the write, and only where it is below that."""
    assert sql.guards(text, "v") is guarded


@pytest.mark.parametrize(
    ("text", "adds"),
    [
        (UPSERT + "v = t.v + excluded.v", True),
        (UPSERT + "v = excluded.v+t.v", True),
        (UPSERT + "v = excluded.v", False),
        (UPSERT + "v = excluded.v -- t.v + excluded.v", False),
    ],
)
def test_adds(text: str, adds: bool) -> None:
    """A column grows by what the upsert excludes."""
    assert sql.adds(text) is adds
