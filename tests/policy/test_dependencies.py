"""What changes of tables mean: what cannot be is told where it was written."""

import pytest

from tests.policy.conftest import Folder

PATCH = "invalidate: [{table: t, key: {x: x, y: y}, patch: {%s}}]"
HASH = "type: hash\norigin: {read: SELECT 1}\n"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (PATCH % "sql: 'SELECT 1 WHERE :x = :y'", "it needs type: hash and origin"),
        ("type: hash\n" + PATCH % "sql: 'SELECT 1 WHERE :x = :y'", "it needs type: hash and"),
        (HASH + PATCH % "columns: [z], sql: 'SELECT :x, :zz'", "the parameter :zz is no segment"),
        (HASH + PATCH % "sql: SELECT 1", "has no parameter"),
        (HASH + PATCH % "sql: 'DELETE FROM t WHERE x = :x'", "must only read"),
        (HASH + PATCH % "sql: 'SELECT :x; SELECT :y'", "must be one statement"),
        (HASH + PATCH % "sql: 'SELECT :x', counts: n", "expects a name with {value} in it"),
        (HASH + (PATCH % "columns: [x], sql: 'SELECT :x'").replace("x: x", "x: w"),
         '"x" is also a segment, which the column w holds'),
    ],
)  # fmt: skip
def test_patches_that_cannot_be(folder: Folder, fields: str, told: str) -> None:
    """Each mistake of a patch is told once."""
    found = folder.keyspace(fields)
    assert len(found) == 1, found
    assert told in found[0]


def test_a_patch_is_no_mistake(folder: Folder) -> None:
    """Segments and named columns are parameters."""
    sql = "sql: 'SELECT z AS field, 1 AS value FROM t WHERE x = :x AND z = :z'"
    rest = "columns: [z], counts: '{value}_n', greatest: [at]"
    assert folder.keyspace(HASH + PATCH % f"{sql}, {rest}") == []


CHANNEL = """
channels:
  c:
    channel: c:{x}
    changes:
      - {table: t, %s}
"""


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("sql: 'SELECT :z', columns: [z]", "the segment x of c:{x} has no column"),
        ("key: {x: x, y: y}, sql: 'SELECT :x'", '"y" is no segment of c:{x}'),
        ("key: {x: x}, sql: 'SELECT :z'", "the parameter :z is no segment of c:{x}"),
        ("key: {x: x}, sql: SELECT 1", "has no parameter"),
    ],
)
def test_news_that_cannot_be_told(folder: Folder, fields: str, told: str) -> None:
    """A channel's name is derived from the changed row as a key is."""
    found = folder.complaints(CHANNEL % fields)
    assert len(found) == 1, found
    assert told in found[0]
