"""Rows to what a key holds."""

from typing import Any

import pytest

from proxy.errors import OriginMisfit
from proxy.origin.codecs import Document, Number
from proxy.origin.render import (
    CENTURY,
    Value,
    fill_arguments,
    flat,
    held,
    rendered,
    restored,
    score_text,
    value_of,
)
from proxy.plans import Age, Detour, Plan
from proxy.wire.rules import Segment


def plan(type: str | None, max_rows: int = 1, **columns: str) -> Plan:
    segment = Segment("id", "text")
    return Plan(
        0, "k", (b"k:", segment), 0, "cache", type, 0, 0.0, None, tuple(columns.items()), max_rows,
        Age(), None, Detour(), None, None, 0.0, False,
    )  # fmt: skip


ROW: dict[str, Any] = {
    "n": Number("1.50"), "t": True, "x": None, "j": Document('{"a":1}'), "b": b"\xff", "l": ["a"],
}  # fmt: skip


def test_a_row_is_a_hash_of_its_columns() -> None:
    """NULL is no field; a document and an array are JSON; bytes are as they are."""
    assert value_of(plan("hash"), [ROW]) == Value(
        "hash", {b"n": b"1.50", b"t": b"true", b"j": b'{"a":1}', b"b": b"\xff", b"l": b'["a"]'}
    )


def test_a_row_is_an_object() -> None:
    """Members sorted, NULL is null, bytes as PostgreSQL spells them."""
    assert value_of(plan("json"), [ROW]) == Value(
        "string", b'{"b":"\\\\xff","j":{"a":1},"l":["a"],"n":1.50,"t":true,"x":null}'
    )


def test_columns_choose_and_name() -> None:
    """Only what is named, under the field's name; a column that is not there is a mistake."""
    assert value_of(plan("hash", number="n"), [ROW]) == Value("hash", {b"number": b"1.50"})
    with pytest.raises(OriginMisfit, match="columns names 'gone'"):
        value_of(plan("hash", number="gone"), [ROW])


@pytest.mark.parametrize(
    ("type", "rows", "value"),
    [
        ("string", [{"a": Number("7")}], Value("string", b"7")),
        ("counter", [{"a": Number("7")}], Value("string", b"7")),
        (None, [{"a": "x"}], Value("string", b"x")),
        ("json", [{"value": Document("[1]")}], Value("string", b"[1]")),
        ("json", [{"value": ["a", None]}], Value("string", b'["a",null]')),
        ("list", [{"a": "x"}, {"a": "y"}, {"a": "x"}], Value("list", [b"x", b"y", b"x"])),
        ("list", [{"a": ["x", None, "y"]}], Value("list", [b"x", b"y"])),
        ("set", [{"a": "x"}, {"a": "x"}], Value("set", frozenset([b"x"]))),
        ("zset", [{"m": "b", "s": Number("1")}, {"m": "a", "s": Number("1.0")},
                  {"m": "c", "s": Number("-inf")}],
         Value("zset", [(b"c", float("-inf")), (b"a", 1.0), (b"b", 1.0)])),
        ("hash", [{"field": "a", "value": Number("1")}, {"field": "b", "value": None}],
         Value("hash", {b"a": b"1"})),
    ],
)  # fmt: skip
def test_values_of_each_type(type: str, rows: list[dict[str, Any]], value: Value) -> None:
    """One column, one row for each member, or an array of them."""
    most = 1 if len(rows) == 1 else 10
    assert value_of(plan(type, most), rows) == value


@pytest.mark.parametrize("type", ["string", "json", "hash", "list", "set", "zset"])
def test_no_row_is_no_key(type: str) -> None:
    """For every type."""
    assert value_of(plan(type), []) is None


def test_what_redis_cannot_hold_is_no_key() -> None:
    """A hash without a field, a string that is NULL, an empty list."""
    assert value_of(plan("hash"), [{"a": None}]) is None
    assert value_of(plan("string"), [{"a": None}]) is None
    assert value_of(plan("list"), [{"a": []}]) is None
    assert value_of(plan("zset"), [{"m": None, "s": None}]) is None


@pytest.mark.parametrize(
    ("type", "rows"),
    [
        ("string", [{"a": "x", "b": "y"}]),
        ("string", [{"a": "x"}, {"a": "y"}]),
        ("zset", [{"m": "x"}]),
        ("zset", [{"m": "x", "s": "no"}]),
        ("zset", [{"m": "x", "s": Number("NaN")}]),
        ("stream", [{"a": "x"}]),
        ("set", [{"a": "x"}] * 11),
    ],
)
def test_rows_that_make_no_value(type: str, rows: list[dict[str, Any]]) -> None:
    """Are an error that names the keyspace, and never a part of a value."""
    with pytest.raises(OriginMisfit):
        value_of(plan(type, 10), rows)


def test_a_restored_row() -> None:
    """Segments make the key, ttl the time, the rest the value; one whose time is over is none."""
    row = {"id": "7", "value": Document('{"a":1}'), "ttl": Number("1.2345")}
    assert restored(plan("json"), row) == (b"k:7", Value("string", b'{"a":1}'), 1234)
    assert restored(plan("json"), row | {"ttl": Number("-3")}).value is None
    assert restored(plan("json"), row | {"ttl": Number("Infinity")}).ttl_ms == CENTURY * 1000
    assert restored(plan("list"), {"id": "7", "value": ["a"]}) == (
        b"k:7", Value("list", [b"a"]), None,
    )  # fmt: skip
    with pytest.raises(OriginMisfit, match="no column id"):
        restored(plan("json"), {"value": "x"})


@pytest.mark.parametrize(
    "value",
    [
        Value("string", b"x"),
        Value("hash", {b"a": b"1", b"b": b"2"}),
        Value("list", [b"a", b"b", b"a"]),
        Value("set", frozenset([b"a", b"b"])),
    ],
)
def test_what_is_filled_is_what_is_held(value: Value) -> None:
    """A drift check sees no difference right after a fill."""
    assert held(value.type, flat(value)) == value
    assert fill_arguments(value, 1500)[:2] == [value.type.encode(), b"1500"]


def test_sorted_sets_are_filled_score_first() -> None:
    """As ZADD takes them, and as ZRANGE WITHSCORES gives them back."""
    value = Value("zset", [(b"a", 1.5), (b"b", 1e22)])
    assert flat(value) == [b"1.5", b"a", b"1e+22", b"b"]
    assert held("zset", [b"b", b"1e+22", b"a", b"1.5"]) == value
    assert held("zset", []) is None
    assert float(score_text(2.0**62)) == 2.0**62


def test_bytes_of_single_values() -> None:
    """A truth is a word, an array is JSON."""
    assert [rendered(each) for each in (True, "é", b"\xff", [None, False])] == [
        b"true", "é".encode(), b"\xff", b"[null,false]",
    ]  # fmt: skip
