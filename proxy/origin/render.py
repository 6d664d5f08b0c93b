"""Rows to what a key holds: the one place that says so, for fill, fallback, restore and drift.

Used by handlers and control loops. `codecs` says how single values look; here is what a row is to
each type: a hash has a field for each column that is not NULL, JSON an object with all of them, a
string is its only column, a list or a set has a member for each row (or each element of an array),
a sorted set a pair of member and score. One column called `value` is the whole value.

Always true: the same rows make the same bytes. What Redis cannot hold, an empty collection or NULL,
is no key.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from proxy.errors import OriginMisfit
from proxy.origin.codecs import canonical
from proxy.plans import Plan

# A row, by the names of its columns in their order.
Row = Mapping[str, Any] | asyncpg.Record

# What a restoring statement gives beside the key's segments; see `restored`.
VALUE, TTL = "value", "ttl"

# The longest time that a row may say, in seconds.
CENTURY = 100 * 365 * 86400.0


class Value(NamedTuple):
    """What a key holds. Equal values are equal to every reader."""

    type: str  # as TYPE says it: string hash list set zset
    # bytes; fields; elements; members; (member, score) by score and member
    data: bytes | dict[bytes, bytes] | list[bytes] | frozenset[bytes] | list[tuple[bytes, float]]


class Restored(NamedTuple):
    """A key of a restoring statement."""

    key: bytes  # as clients name it
    value: Value | None
    ttl_ms: int | None  # None: what the policy says


def rendered(value: object) -> bytes:
    """Return a value that is not NULL as bytes of a field, an element or a string."""
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case _:
            return canonical(value).encode()


def value_of(plan: Plan, records: Sequence[Row]) -> Value | None:
    """Return what the key of a plan holds by the rows of its statement; None: there is no key.

    Raises OriginMisfit where the rows make no such value.
    """
    if len(records) > plan.max_rows:
        raise OriginMisfit(f"{plan.name}: more than {plan.max_rows} rows (max_rows)")
    rows = [_named(plan, record) for record in records]
    try:
        return _made(plan, rows) if rows else None
    except RecursionError:
        raise OriginMisfit(f"{plan.name}: JSON within JSON, too deep") from None


def restored(plan: Plan, record: Row) -> Restored:
    """Return the key, value and time of one row of a restoring statement.

    It has the key's segments, `ttl` in seconds if it wants, and the rest is the value.
    Raises OriginMisfit.
    """
    names = {segment.name for segment in plan.segments}
    missing = names - set(record.keys())
    if missing:
        raise OriginMisfit(f"{plan.name}: no column {min(missing)} in a row to restore")
    left = _milliseconds(record.get(TTL))
    key = plan.key_of({name: rendered(record[name]).decode() for name in names})
    rest = {name: value for name, value in record.items() if name not in names and name != TTL}
    gone = left is not None and left <= 0
    return Restored(key, None if gone else value_of(plan, [rest]), left)


def flat(value: Value) -> list[bytes]:
    """Return the members as the command that makes them takes them (ZADD: score, member)."""
    match value.data:
        case bytes() as text:
            return [text]
        case dict() as fields:
            return [part for pair in fields.items() for part in pair]
        case frozenset() as members:
            return sorted(members)
        case elements:
            return [part for each in elements for part in _flat(each)]


def _flat(element: bytes | tuple[bytes, float]) -> list[bytes]:
    return [element] if isinstance(element, bytes) else [score_text(element[1]), element[0]]


def fill_arguments(value: Value, ttl_ms: int) -> list[bytes]:
    """Return how a script of ours is told of a value: its type, its time (0: none), its members."""
    return [value.type.encode(), b"%d" % ttl_ms, *flat(value)]


def held(word: str, elements: Sequence[bytes]) -> Value | None:
    """Return what a node holds, from the elements of its reply, to compare it with a value.

    Of GET the one string, HGETALL, LRANGE 0 -1, SMEMBERS, ZRANGE 0 -1 WITHSCORES.
    """
    if not elements:
        return None
    match word:
        case "string":
            return Value(word, elements[0])
        case "hash":
            return Value(word, dict(zip(elements[::2], elements[1::2], strict=True)))
        case "set":
            return Value(word, frozenset(elements))
        case "zset":
            return _sorted_set(zip(elements[::2], map(float, elements[1::2]), strict=True))
        case _:
            return Value(word, list(elements))


def score_text(score: float) -> bytes:
    """Return a score as text that means the same number to a node."""
    return b"%d" % score if score.is_integer() and abs(score) < 2**53 else repr(score).encode()


def _named(plan: Plan, record: Row) -> dict[str, Any]:
    if not plan.columns:
        return dict(record.items())
    try:
        return {name: record[column] for name, column in plan.columns}
    except KeyError as error:
        raise OriginMisfit(f"{plan.name}: columns names {error}, which is none") from None


def _made(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    kind = plan.type or "string"
    maker = _MAKERS.get(kind)
    if maker is None:
        raise OriginMisfit(f"{plan.name}: rows make no {kind}")
    return maker(plan, rows)


def _only(plan: Plan, row: dict[str, Any]) -> Any:
    if len(row) != 1:
        raise OriginMisfit(f"{plan.name}: one column is wanted, {len(row)} are there")
    return next(iter(row.values()))


def _string(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    value = _only(plan, _single(plan, rows))
    return None if value is None else Value("string", rendered(value))


def _single(plan: Plan, rows: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) > 1:
        raise OriginMisfit(f"{plan.name}: one row is wanted, {len(rows)} are there")
    return rows[0]


def _json(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    documents = [row[VALUE] if [*row] == [VALUE] else row for row in rows]
    whole = documents if plan.max_rows > 1 else documents[0]
    return None if whole is None else Value("string", canonical(whole).encode())


def _hash(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    if plan.max_rows > 1:
        pairs = [(row.get("field"), row.get(VALUE)) for row in rows]
    else:
        pairs = list(_single(plan, rows).items())
    data = {
        rendered(name): rendered(value)
        for name, value in pairs
        if name is not None and value is not None
    }
    return Value("hash", data) if data else None


def _members(plan: Plan, rows: list[dict[str, Any]]) -> list[bytes]:
    values: list[Any] = []
    for row in rows:
        value = _only(plan, row)
        values += value if isinstance(value, list) else [value]
    return [rendered(value) for value in values if value is not None]


def _list(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    elements = _members(plan, rows)
    return Value("list", elements) if elements else None


def _set(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    members = frozenset(_members(plan, rows))
    return Value("set", members) if members else None


def _zset(plan: Plan, rows: list[dict[str, Any]]) -> Value | None:
    pairs = []
    for row in rows:
        if len(row) != 2:
            raise OriginMisfit(f"{plan.name}: member and score are wanted")
        member, score = row.values()
        try:
            if member is not None and score is not None:
                pairs.append((rendered(member), float(score)))
        except (TypeError, ValueError):
            raise OriginMisfit(f"{plan.name}: a score is no number") from None
    return _sorted_set(pairs)


def _sorted_set(pairs: Any) -> Value | None:
    scores: dict[bytes, float] = {}
    for member, score in pairs:
        if math.isnan(score):
            raise OriginMisfit("NaN is no score")
        scores[member] = score + 0.0
    ordered = sorted(scores.items(), key=lambda pair: (pair[1], pair[0]))
    return Value("zset", ordered) if ordered else None


def _milliseconds(seconds: Any) -> int | None:
    try:
        # What ends never ends in a century: every clock can add that.
        return None if seconds is None else math.floor(min(float(seconds), CENTURY) * 1000)
    except (TypeError, ValueError, OverflowError):
        raise OriginMisfit("ttl is no number of seconds") from None


_MAKERS: dict[str, Callable[[Plan, list[dict[str, Any]]], Value | None]] = {
    "string": _string,
    "counter": _string,
    "json": _json,
    "hash": _hash,
    "list": _list,
    "set": _set,
    "zset": _zset,
}
