"""Policies to the plans of what happens in PostgreSQL.

Used by the compiler. Statements get numbered parameters here: their text is fixed when rules are
loaded, and what a client sends is never part of it.
"""

from collections.abc import Callable, Sequence

from proxy.plans import (
    SQL_TYPES,
    Age,
    Dependency,
    Detour,
    Parameter,
    Plan,
    Plans,
    Restoring,
    Statement,
    Watch,
    Writing,
)
from proxy.policy import sql
from proxy.policy.blocks import Origin
from proxy.policy.locking import locking_of
from proxy.policy.model import Keyspace, Policies
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
    return Plans(by_keyspace, _by_table(policies), lost)


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
        write.version,
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
    parameters = tuple(Parameter(each, kinds.get(each, "field")) for each in names)

    def written(each: str) -> str:
        number = names.index(each) + 1
        return f"${number}::{SQL_TYPES[kinds[each]]}" if each in kinds else f"${number}"

    return Statement(name, sql.replaced(text, written).strip(), parameters, place)


def _by_table(policies: Policies) -> dict[str, tuple[Dependency, ...]]:
    places = {name: index for index, name in enumerate(policies.effective)}
    found: dict[str, list[Dependency]] = {}

    def note(table: str, keyspace: str, columns: dict[str, str]) -> None:
        segments: Sequence[str] = policies.effective[keyspace].key.names
        row = Dependency(places[keyspace], tuple(columns[segment] for segment in segments))
        if row not in (rows := found.setdefault(table, [])):
            rows.append(row)

    for name, own in policies.effective.items():
        for rule in own.invalidate:
            note(rule.table, name, rule.key)
            for other, columns in rule.also.items():
                note(rule.table, other, columns)
    return {table: tuple(rows) for table, rows in found.items()}


def locks_of(policies: Policies) -> tuple[Plan, ...]:
    """Return the plans of all locks about which PostgreSQL decides."""
    known = plans_of(policies, lambda name: 0).by_keyspace.values()
    return tuple(plan for plan in known if plan.locking is not None)


def watches_of(policies: Policies) -> tuple[Watch, ...]:
    """Return every table that an invalidation names, with all columns that any of them needs."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for name, own in policies.effective.items():
        for index, rule in enumerate(own.invalidate):
            at: Location = ("keyspaces", name, "invalidate", index)
            _, columns = found.setdefault(rule.table, (policies.place((*at, "table")), {}))
            for field, mapping in [
                (("key",), rule.key),
                *((("also", o), m) for o, m in rule.also.items()),
            ]:
                for segment, column in mapping.items():
                    columns.setdefault(column, policies.place((*at, *field, segment)))
    return tuple(
        Watch(table, tuple(sorted(columns.items())), place)
        for table, (place, columns) in sorted(found.items())
    )
