"""Rules about what changes of tables mean: stale keys, patched fields, messages on channels.

Used by the loader beside `checks`, whose complaints these are. Whether tables and columns are there
only the database knows: `inspection` asks it.
"""

from collections.abc import Iterator, Sequence

from proxy.documents import quote
from proxy.policy import sql
from proxy.policy.blocks import Invalidation
from proxy.policy.checks import Complaint, known_parameters, mapped, no_keyspace
from proxy.policy.model import Keyspace, Policies
from proxy.policy.patterns import Pattern
from proxy.validation import Location


def check_dependencies(policies: Policies) -> Iterator[Complaint]:
    """Yield changes whose keys cannot be derived, or which would lose what is not in SQL."""
    for name, own in policies.keyspaces.items():
        for index, rule in enumerate(own.invalidate):
            at: Location = ("keyspaces", name, "invalidate", index)
            if own.durable:
                yield Complaint(at, f"would delete keys of kind {own.kind}, which nothing can "
                                "bring back; leave it out")  # fmt: skip
            yield from mapped(own.key, (*at, "key"), rule.key, complete=True)
            yield from _also(policies, at, rule)
            yield from _patch(own, (*at, "patch"), rule)
    for name, channel in policies.channels.items():
        for index, told in enumerate(channel.changes):
            at = ("channels", name, "changes", index)
            yield from mapped(channel.channel, (*at, "key"), told.key, complete=True)
            yield from _present(channel.channel, at, told.key, told.columns, told.sql)


def _also(policies: Policies, at: Location, rule: Invalidation) -> Iterator[Complaint]:
    for other, mapping in rule.also.items():
        target, there = policies.keyspaces.get(other), (*at, "also", other)
        if target is None:
            yield no_keyspace(policies, there, other)
            continue
        if target.durable:
            yield Complaint(there, f"would delete keys of kind {target.kind}, which nothing can "
                            "bring back")  # fmt: skip
        yield from mapped(target.key, there, mapping, complete=True)


def _patch(own: Keyspace, at: Location, rule: Invalidation) -> Iterator[Complaint]:
    """Yield why the fields of a hash cannot be kept in step by a rule."""
    if rule.patch is None:
        return
    if own.type != "hash" or own.origin is None:
        yield Complaint(at, "patches fields of a hash that is read from PostgreSQL; it needs type: "
                        "hash and origin", "type" if own.type != "hash" else "origin")  # fmt: skip
    yield from _present(own.key, at, rule.key, rule.patch.columns, rule.patch.sql)


def _present(
    key: Pattern, at: Location, mapping: dict[str, str], columns: Sequence[str], text: str
) -> Iterator[Complaint]:
    """Yield what is wrong with a statement about a changed row, and the columns it is given."""
    for index, column in enumerate(columns):
        if mapping.get(column, column) != column:
            yield Complaint((*at, "columns", index), f"{quote(column)} is also a segment, which "
                            f"the column {mapping[column]} holds; call that something else"
                            )  # fmt: skip
    yield from known_parameters(key, (*at, "sql"), text, (*key.names, *columns))
    if not sql.reads(text):
        yield Complaint(
            (*at, "sql"), "must only read: it begins with SELECT, WITH, VALUES or TABLE"
        )
    elif not sql.parameters(text):
        yield Complaint((*at, "sql"), "has no parameter, and so says the same of every row")
