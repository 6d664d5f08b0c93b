"""Policies to the plans of what happens in PostgreSQL.

Used by the compiler. Statements get numbered parameters here: their text is fixed when rules are
loaded, and what a client sends is never part of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from proxy.plans import (
    MOST_FIELDS,
    SQL_TYPES,
    Age,
    Dependency,
    Detour,
    News,
    Parameter,
    Patch,
    Plan,
    Plans,
    Present,
    Restoring,
    Statement,
    Watch,
    Writing,
)
from proxy.policy import sql
from proxy.policy.blocks import Origin
from proxy.policy.locking import locking_of
from proxy.policy.model import Keyspace, Policies
from proxy.policy.patterns import Pattern
from proxy.validation import Location


def plans_of(policies: Policies, cluster_of: Callable[[str], int]) -> Plans:
    """Return the plans of all keyspaces that have to do with PostgreSQL."""
    by_keyspace = {
        index: _plan(index, name, own, policies, cluster_of(own.cluster))
        for index, (name, own) in enumerate(policies.effective.items())
        if own.backed or own.restore is not None
    }
    lost = tuple(
        (cluster_of(own.cluster), name)
        for name, own in policies.effective.items()
        if own.on_loss == "lost"
    )
    cheap = tuple(
        (policies.place(("keyspaces", name, "lock", "authority")), name)
        for name, own in policies.effective.items()
        if own.kind == "lock" and not own.decided
    )
    endless = tuple(
        (policies.place(("keyspaces", name, "ttl", "max")), name)
        for name, own in policies.effective.items()
        if own.ttl.max is not None and own.ttl.default is None and own.ttl.missing is None
    )
    return Plans(
        by_keyspace, _by_table(policies), lost, cheap, endless, _news(policies, cluster_of)
    )


def _plan(index: int, name: str, own: Keyspace, policies: Policies, cluster: int) -> Plan:
    def statement(what: str, text: str, *field: str) -> Statement:
        at: Location = ("keyspaces", name, *field)
        return numbered(f"{name} {what}", text, own, policies.place(at))

    origin, fallback = own.origin, own.fallback
    return Plan(
        keyspace=index,
        name=name,
        pattern=own.key.parts,
        cluster=cluster,
        kind=own.kind,
        type=own.type,
        ttl_ms=_ms(own.ttl.default),
        jitter=own.ttl.jitter or 0.0,
        read=statement("read", bounded(origin), "origin", "read") if origin else None,
        columns=tuple(origin.columns.items()) if origin else (),
        max_rows=origin.max_rows if origin else 1,
        age=age_of(own),
        writing=_writing(own, statement),
        detour=Detour(
            fallback.reads, fallback.writes, fallback.share, fallback.exercise or 0.0
        ),
        restoring=None if own.restore is None else Restoring(
            statement("restore", own.restore.sql, "restore", "sql"),
            own.restore.priority,
            own.restore.rate.amount / own.restore.rate.seconds if own.restore.rate else None,
        ),
        on_loss=own.on_loss,
        drift=own.drift.rate.amount / own.drift.rate.seconds if own.drift else 0.0,
        security=own.security,
        locking=locking_of(name, own, policies.place(("keyspaces", name, "lock"))),
    )  # fmt: skip


def _ms(seconds: float | None) -> int:
    return max(1, round(seconds * 1000)) if seconds else 0


def age_of(own: Keyspace) -> Age:
    """Return how old answers of a keyspace may be."""
    said = own.freshness
    return Age(
        _ms(said.stale_while_revalidate),
        _ms(said.stale_if_error),
        _ms(said.negative),
        _ms(said.lease) or Age().lease_ms,
        said.early,
    )


def _writing(own: Keyspace, statement: Callable[..., Statement]) -> Writing | None:
    write = own.write
    if write.mode == "none" or write.sql is None:
        return None
    return Writing(
        write.mode,
        statement("write", write.sql, "write", "sql"),
        write.merge,
        write.flush.every,
        write.flush.rows,
        write.journal,
    )


def bounded(origin: Origin) -> str:
    """Return a read that gives at most one row too many, which is noticed.

    One that has lost its WHERE would else fill our memory before anybody could count.
    """
    text = origin.read.strip().removesuffix(";")
    return f"SELECT * FROM (\n{text}\n) AS rows LIMIT {origin.max_rows + 1}"  # noqa: S608


def numbered(name: str, text: str, own: Keyspace, place: str = "") -> Statement:
    """Return a statement with a number in the place of each parameter's name."""
    names = sql.parameters(text)
    kinds = {segment.name: segment.kind for segment in own.key.segments}
    # No client says which write is the newer one.
    told = {"version": "version"} | kinds
    parameters = tuple(Parameter(each, told.get(each, "field")) for each in names)

    def written(each: str) -> str:
        number = names.index(each) + 1
        return f"${number}::{SQL_TYPES[kinds[each]]}" if each in kinds else f"${number}"

    return Statement(name, sql.replaced(text, written).strip(), parameters, place)


def present(
    name: str, text: str, key: Pattern, columns: Mapping[str, str], gives: Sequence[str],
    most: int, place: str,
) -> Present:  # fmt: skip
    """Return a statement about one row as one about many; columns has that of each parameter.

    Names of parameters become columns of a row whose names nobody would choose.
    """
    names = sql.parameters(text)
    kinds = {segment.name: segment.kind for segment in key.segments}

    def written(each: str) -> str:
        return f"sidecache_row.p{names.index(each)}::{SQL_TYPES.get(kinds.get(each, ''), 'text')}"

    arrays = ", ".join(f"${number}::text[]" for number in range(1, len(names) + 1))
    row = ", ".join([*(f"p{number}" for number in range(len(names))), "n"])
    now = ", ".join(f"sidecache_now.{each}" for each in gives)
    inner = sql.replaced(text, written).strip().removesuffix(";")
    whole = f"""\
SELECT sidecache_row.n, {now}
  FROM unnest({arrays}) WITH ORDINALITY AS sidecache_row({row})
 CROSS JOIN LATERAL (SELECT * FROM (
{inner}
) AS rows LIMIT {most}) AS sidecache_now ORDER BY 1"""  # noqa: S608
    parameters = tuple(Parameter(each, kinds.get(each, "text")) for each in names)
    return Present(
        Statement(name, whole, parameters, place), tuple(columns[each] for each in names)
    )


def _patch(policies: Policies, name: str, index: int) -> Patch | None:
    own = policies.effective[name]
    rule = own.invalidate[index]
    said = rule.patch
    if said is None:
        return None
    at: Location = ("keyspaces", name, "invalidate", index, "patch", "sql")
    columns = {**{column: column for column in said.columns}, **rule.key}
    before, _, behind = (said.counts or "").partition("{value}")
    return Patch(
        present(f"{name} patch", said.sql, own.key, columns, ("field", "value"),
                MOST_FIELDS + 1, policies.place(at)),
        (before.encode(), behind.encode()) if said.counts else None,
        frozenset(each.encode() for each in said.greatest),
    )  # fmt: skip


def _by_table(policies: Policies) -> dict[str, tuple[Dependency, ...]]:
    places = {name: index for index, name in enumerate(policies.effective)}
    found: dict[str, list[Dependency]] = {}

    def note(
        table: str, keyspace: str, columns: dict[str, str], patch: Patch | None = None
    ) -> None:
        segments: Sequence[str] = policies.effective[keyspace].key.names
        row = Dependency(places[keyspace], tuple(columns[segment] for segment in segments), patch)
        if row not in (rows := found.setdefault(table, [])):
            rows.append(row)

    for name, own in policies.effective.items():
        for index, rule in enumerate(own.invalidate):
            note(rule.table, name, rule.key, _patch(policies, name, index))
            for other, columns in rule.also.items():
                note(rule.table, other, columns)
    return {table: tuple(rows) for table, rows in found.items()}


def _news(policies: Policies, cluster_of: Callable[[str], int]) -> dict[str, tuple[News, ...]]:
    found: dict[str, tuple[News, ...]] = {}
    for name, own in policies.channels.items():
        for index, rule in enumerate(own.changes):
            place = policies.place(("channels", name, "changes", index, "sql"))
            columns = {**{column: column for column in rule.columns}, **rule.key}
            asked = present(
                f"{name} changes", rule.sql, own.channel, columns, ("message",), 1, place
            )
            told = News(
                name, own.channel.parts, cluster_of(own.cluster),
                tuple(rule.key[segment] for segment in own.channel.names), asked,
            )  # fmt: skip
            found[rule.table] = (*found.get(rule.table, ()), told)
    return found


def locks_of(policies: Policies) -> tuple[Plan, ...]:
    """Return the plans of all locks about which PostgreSQL decides."""
    known = plans_of(policies, lambda name: 0).by_keyspace.values()
    return tuple(plan for plan in known if plan.locking is not None)


def watches_of(policies: Policies) -> tuple[Watch, ...]:
    """Return every table whose changes mean something, with all columns that anybody needs."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for table, at, columns in named(policies):
        _, known = found.setdefault(table, (policies.place((*at, "table")), {}))
        for field, column in columns:
            known.setdefault(column, policies.place((*at, *field)))
    return tuple(
        Watch(table, tuple(sorted(columns.items())), place)
        for table, (place, columns) in sorted(found.items())
    )


# A column and where below a rule it is named.
_Named = tuple[Location, str]


def named(policies: Policies) -> Iterator[tuple[str, Location, Iterable[_Named]]]:
    """Yield the table of each rule, where the rule stands, and the columns that it names."""
    for name, own in policies.effective.items():
        for index, rule in enumerate(own.invalidate):
            columns = [*_mapped(("key",), rule.key)]
            for other, mapping in rule.also.items():
                columns += _mapped(("also", other), mapping)
            if rule.patch is not None:
                columns += _listed(("patch", "columns"), rule.patch.columns)
            yield rule.table, ("keyspaces", name, "invalidate", index), columns
    for name, channel in policies.channels.items():
        for index, told in enumerate(channel.changes):
            columns = [*_mapped(("key",), told.key), *_listed(("columns",), told.columns)]
            yield told.table, ("channels", name, "changes", index), columns


def _mapped(at: Location, mapping: Mapping[str, str]) -> Iterable[_Named]:
    return [((*at, segment), column) for segment, column in mapping.items()]


def _listed(at: Location, columns: Sequence[str]) -> Iterable[_Named]:
    return [((*at, index), column) for index, column in enumerate(columns)]
