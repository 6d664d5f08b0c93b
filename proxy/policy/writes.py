"""Rules about what a write does in PostgreSQL: its statement, and when that is told.

Used by the loader beside `checks`, whose complaints these are. What PostgreSQL makes of a statement
it says itself when it is prepared.

Always true: where a keyspace names a version, its statement lets an older write lose.
"""

from collections.abc import Iterator

from proxy.policy import sql
from proxy.policy.checks import Complaint, known_parameters
from proxy.policy.model import Keyspace
from proxy.validation import Location

# A write that waits half a minute for PostgreSQL is an alarm. Its key must be there much longer.
_BEHIND_TTL = 3 * 30.0  # seconds

# Types whose writes give one value, and how long it lives.
_SINGLE = ("string", "json", "counter")


def check_write(own: Keyspace) -> Iterator[Complaint]:
    """Yield what is wrong with what a write of a keyspace does in PostgreSQL."""
    write = own.write
    if write.mode != "none" and write.sql is None:
        yield Complaint(("write", "sql"), f"mode {write.mode} needs the statement: sql: …", "write")
    if write.sql is not None:
        if write.mode == "none":
            yield Complaint(("write", "mode"), "sql is given but mode is none; allowed: through, "
                            "behind", "write")  # fmt: skip
        yield from _statement(own, write.sql)
    if write.version is not None:
        yield from _version(own, write.sql or "", write.version)
    if write.mode == "behind" and own.ttl.default and own.ttl.default < _BEHIND_TTL:
        yield Complaint(("ttl", "default"), f"a key that is written behind lives {_BEHIND_TTL:.0f}s"
                        " at least: three times as long as a write may wait", "ttl")  # fmt: skip
    if write.mode == "behind" and own.ttl.max is not None and own.ttl.max < _BEHIND_TTL:
        yield Complaint(("ttl", "max"), f"a key that is written behind lives {_BEHIND_TTL:.0f}s at "
                        "least: three times as long as a write may wait")  # fmt: skip
    if own.fallback.writes == "origin" and write.sql is None and own.kind != "lock":
        yield Complaint(("fallback", "writes"), "origin needs write.sql", "write")
    if own.fallback.writes == "journal" and write.mode != "behind" and own.kind != "lock":
        yield Complaint(("fallback", "writes"), "journal needs write.mode: behind", "write")


def _statement(own: Keyspace, text: str) -> Iterator[Complaint]:
    at: Location = ("write", "sql")
    # The fields of a hash are parameters too, and only the database knows them.
    if own.type in _SINGLE:
        names = (*own.key.names, "value", "ttl", "version")
        yield from known_parameters(own.key, at, text, names)
    elif not sql.single(text):
        yield Complaint(at, "must be one statement")
    if own.type not in _SINGLE and "ttl" in {*sql.parameters(text)} - {*own.key.names}:
        yield Complaint(at, "the parameter :ttl is the time that a write gives, which one of type "
                        f"{', '.join(_SINGLE)} may", "type")  # fmt: skip


def _version(own: Keyspace, text: str, column: str) -> Iterator[Complaint]:
    at: Location = ("write", "version")
    if "version" not in sql.parameters(text) or "version" in own.key.names:
        yield Complaint(at, "needs a statement with the parameter :version, which grows with every "
                        "write")  # fmt: skip
    elif not sql.guards(text, column):
        yield Complaint(at, "the statement does not let an older write lose; it needs SET "
                        f"{column} = excluded.{column} … WHERE t.{column} < excluded.{column}"
                        )  # fmt: skip
    if own.write.merge not in ("replace", "fields") or sql.adds(text):
        yield Complaint(at, "what an older write adds would be lost with it; leave it out")
