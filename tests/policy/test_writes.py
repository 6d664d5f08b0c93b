"""What a write does in PostgreSQL: what never arrives, or lets an older write win, is refused."""

import pytest

from tests.policy.rulebook import Folder

BEHIND = "write: {mode: behind, sql: UPDATE t}"
VERSION = "type: {}\nwrite: {{mode: through, version: v, sql: 'UPDATE t SET {}'}}"


@pytest.mark.parametrize(
    ("fields", "place", "told"),
    [
        ("write: {mode: through}", "4:12", "mode through needs the statement"),
        ("write: {sql: UPDATE t}", "4:12", "sql is given but mode is none"),
        (
            'type: string\nwrite: {mode: through, sql: "UPDATE t SET a = :valeu"}',
            "5:33",
            'did you mean "value"?',
        ),
        (
            "type: hash\nwrite: {mode: through, sql: UPDATE t; DROP t}",
            "5:33",
            "must be one statement",
        ),
        ("fallback: {writes: origin}", "4:24", "origin needs write.sql"),
        ("fallback: {writes: journal}", "4:24", "journal needs write.mode: behind"),
        ("ttl: {default: 60s}\n" + BEHIND, "4:20", "lives 90s at least: three times as long"),
        ("ttl: {max: 60s}\n" + BEHIND, "4:16", "lives 90s at least: three times as long"),
        ("type: string\nwrite: {version: v}", "5:22", "needs a statement with the parameter"),
        (VERSION.format("hash", "v = v + 1"), "5:37", "needs a statement with the parameter"),
        (VERSION.format("hash", "v = :version"), "5:37", "does not let an older write lose"),
        (
            "type: hash\nwrite: {mode: through, sql: 'UPDATE t SET a = :ttl'}",
            "5:33",
            "the parameter :ttl is the time that a write gives",
        ),
    ],
)
def test_what_cannot_be(folder: Folder, fields: str, place: str, told: str) -> None:
    """Each mistake is told once, where it was written."""
    found = folder.keyspace(fields)
    assert len(found) == 1, found
    assert found[0].startswith(f"a.yaml:{place}: ")
    assert told in found[0]


@pytest.mark.parametrize(
    "fields",
    [
        "type: hash\nwrite: {mode: behind, merge: add, sql: 'INSERT INTO t VALUES (:x, :views)'}",
        VERSION.format("hash", "v = :version WHERE v < :version"),
        VERSION.format("string", "a = :value, t = :ttl, v = :version WHERE v < :version"),
    ],
)
def test_what_can_be(folder: Folder, fields: str) -> None:
    """What arrives, and lets the newer write win, is not complained of."""
    assert folder.keyspace(fields) == []
