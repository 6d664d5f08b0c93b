"""Changes of rows as work for one cluster: keys that are stale, and fields that are kept in step.

Plain values and no sending: `invalidation` reads the changes, `delivery` sends what is made of them
here. Always true: a key whose patch cannot be told for sure is taken away instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from proxy import log, plans, wire
from proxy.origin.outbox import TIMEOUT, Change
from proxy.origin.render import rendered
from proxy.plans import MOST_FIELDS, Dependency, Patch, Present
from proxy.wire.rules import Segment

# By key, as nodes name it: None takes it away; else the arguments of lua/patch.lua behind the
# moment, and nothing but the names of counters where it is taken away by that script.
Orders = Mapping[bytes, Sequence[bytes] | None]

# What a patch is given of one changed row.
Row = tuple[str | None, ...]


class Work(NamedTuple):
    """What a page of changes means for a cluster."""

    stale: set[bytes]  # keys, as nodes name them
    patched: dict[Patch, dict[tuple[bytes, Row], None]]  # each row once, in the order of changes
    doubtful: dict[str, set[int]]  # by reason: keyspaces of which nobody knows the keys


def tables_of(ruleset: wire.Ruleset, cluster: int) -> list[str]:
    """Return the tables of which a cluster's keys or channels are made."""
    known = plans.plans_in(ruleset)
    keyed = (
        table for table, rows in known.by_table.items()
        if any(ruleset.keyspaces[row.keyspace].cluster == cluster for row in rows)
    )  # fmt: skip
    told = (
        table for table, rules in known.news.items()
        if any(rule.cluster == cluster for rule in rules)
    )  # fmt: skip
    return [*dict.fromkeys((*keyed, *told))]


def work_of(ruleset: wire.Ruleset, cluster: int, changes: Iterable[Change]) -> Work:
    """Return what changes mean for the keys of a cluster."""
    by_table = plans.plans_in(ruleset).by_table
    work = Work(set(), {}, {"truncated": set(), "unmapped": set()})
    # Many changes are of few keys, such as those of one event.
    names: dict[tuple[int, tuple[str, ...], Row], bytes | None] = {}
    for change in changes:
        for row in by_table.get(change.table, ()):
            keyspace = ruleset.keyspaces[row.keyspace]
            if keyspace.cluster != cluster or keyspace.name == change.origin:
                continue
            if change.everything:
                work.doubtful["truncated"].add(row.keyspace)
                continue
            try:
                values = tuple([change.key[column] for column in row.columns])
            except KeyError:
                # The triggers were installed for other policies.
                work.doubtful["unmapped"].add(row.keyspace)
                continue
            known = row.keyspace, row.columns, values
            if known not in names:
                names[known] = _name(ruleset, row, values)
            if (name := names[known]) is not None:
                _note(work, row, name, change)
    return work


def _name(ruleset: wire.Ruleset, row: Dependency, values: Row) -> bytes | None:
    """Return the key of a keyspace as nodes name it; None where there is none.

    A column may hold anything: what is no key of this keyspace is nobody's, or that of another.
    """
    key = key_of(ruleset.keyspaces[row.keyspace].pattern, values)
    if key is None or ruleset.find_keyspace(key) != row.keyspace:
        return None
    return ruleset.upstream_name(key)


def _note(work: Work, row: Dependency, name: bytes, change: Change) -> None:
    if row.patch is None or plans.companion(plans.PATCHED, name) is None:
        work.stale.add(name)
    else:
        # A column that the triggers do not note yet makes no row, and so takes the key away.
        given = tuple(change.key.get(column) for column in row.patch.present.columns)
        work.patched.setdefault(row.patch, {})[name, given] = None


def key_of(pattern: Iterable[bytes | Segment], values: Sequence[str | None]) -> bytes | None:
    """Return the client's name of what a changed row is about, or None where it has none."""
    if None in values:
        return None
    rest = iter(values)
    parts = [part if isinstance(part, bytes) else (next(rest) or "").encode() for part in pattern]
    return b"".join(parts)


async def present(
    connection: "asyncpg.Connection[Any]", statement: Present, given: Sequence[Row]
) -> dict[int, list[Any]]:
    """Return what a statement says of changed rows as they are now, by their place in given.

    One that PostgreSQL refuses, or does not answer in time, says nothing of any.
    """
    found: dict[int, list[Any]] = {}
    try:
        arrays = ([row[place] for row in given] for place in range(len(statement.columns)))
        rows = await connection.fetch(statement.statement.text, *arrays, timeout=TIMEOUT)
    except (asyncpg.DataError, asyncpg.SyntaxOrAccessError, asyncpg.QueryCanceledError,
            TimeoutError) as error:  # fmt: skip
        log.event(log.WARNING, "present_rows_unknown", statement=statement.statement.name,
                  reason=str(error) or "no answer in time")  # fmt: skip
        return found
    for row in rows:
        found.setdefault(int(row["n"]) - 1, []).append(row)
    return found


async def orders_of(connection: "asyncpg.Connection[Any]", work: Work) -> Orders:
    """Return what to do with each key, by the rows as they are now."""
    orders: dict[bytes, Sequence[bytes] | None] = {}
    for patch, rows in work.patched.items():
        given = list(rows)
        found = await present(connection, patch.present, [row for _, row in given])
        counters = list(patch.counts or (b"", b""))
        triples: dict[bytes, list[bytes] | None] = {}
        for place, (name, _) in enumerate(given):
            words = _triples(patch, found.get(place, ()))
            sofar = triples.setdefault(name, [])
            triples[name] = None if words is None or sofar is None else sofar + words
        for name, all_words in triples.items():
            # Two patches of one key in one page: neither knows the counters of the other.
            both = name in orders
            orders[name] = [*counters, *([] if both else all_words or [])]
    for name in work.stale:
        orders[name] = [b"", b""] if name in orders else None
    return orders


def _triples(patch: Patch, rows: Sequence[Any]) -> list[bytes] | None:
    """Return fields, values and how they are written; None where only the whole key will do."""
    if not 0 < len(rows) <= MOST_FIELDS:
        return None
    words: list[bytes] = []
    for row in rows:
        if row["field"] is None or row["value"] is None:
            return None
        field = rendered(row["field"])
        counted = b"set" if patch.counts is None else b"count"
        words += field, rendered(row["value"]), (
            b"greatest" if field in patch.greatest else counted
        )  # fmt: skip
    return words
