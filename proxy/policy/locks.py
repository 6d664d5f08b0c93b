"""Rules about keyspaces of kind lock: what is not safe there, cannot work, or would be ignored.

Used by the loader beside `checks`, whose complaints these are. What PostgreSQL makes of a table it
says itself when it is prepared.

Always true: what nothing acts on is told of a keyspace that says it itself. What it inherits is
said for all, and means others.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.policy.checks import Complaint, mapped, no_segment
from proxy.policy.model import Keyspace
from proxy.validation import Location

# What a lock that PostgreSQL decides is to Redis.
_STRINGS = ("string", "json")

# Blocks and fields that concern what is read from rows, or has members.
_IDLE: tuple[Location, ...] = (
    ("origin",), ("drift",), ("collection",), ("undelivered",), ("fallback", "exercise"),
    ("freshness", "negative"), ("freshness", "early"), ("freshness", "lease"),
)  # fmt: skip

_DECIDED = "PostgreSQL decides about these locks, with Redis or without; allowed: origin"

# Words that say what is not so of a lock, and why.
_UNTRUE: Mapping[Location, tuple[tuple[str, ...], str]] = {
    ("fallback", "reads"): (("error",), _DECIDED),
    ("fallback", "writes"): (("error",), _DECIDED),
    ("on_loss",): (("refill", "lost"), "PostgreSQL has what Redis loses; allowed: restore"),
    ("ttl", "missing"): (("allow",), "no lock is for ever; allowed: apply, reject"),
    ("ttl", "refresh"): (
        ("on_read", "on_write"), "a lock lasts longer where that is asked for; allowed: never",
    ),
}  # fmt: skip


def check_lock(own: Keyspace, said: Keyspace) -> Iterator[Complaint]:
    """Yield what is wrong with the locks of a keyspace; said: the same without its defaults."""
    if own.kind != "lock":
        if own.lock is not None:
            yield Complaint(("lock",), f"only keyspaces of kind lock have this block; this one is "
                            f"of kind {own.kind}", "kind")  # fmt: skip
        return
    yield from _granted_twice(own)
    if own.ttl.default is None:
        yield Complaint(("ttl", "default"), "a lock needs a time to live, or one crash holds it for"
                        " ever: ttl: {default: 600s}", "ttl")  # fmt: skip
    if own.decided:
        yield from _ignored(said)
        yield from _rows(own)
        yield from _held(own)
    for name in own.locks.idle:
        yield Complaint(("lock", name), "with authority: redis nothing acts on it; leave it out")


def _granted_twice(own: Keyspace) -> Iterator[Complaint]:
    if own.write.mode != "none":
        yield Complaint(("write", "mode"), "a lock is written by its authority alone: a buffered "
                        "one can be granted twice; leave write out")  # fmt: skip
    if own.fallback.writes == "journal":
        allowed = "origin" if own.decided else "origin, error"
        yield Complaint(("fallback", "writes"), "a journalled lock can be granted twice; allowed: "
                        f"{allowed}")  # fmt: skip


def _ignored(said: Keyspace) -> Iterator[Complaint]:
    """Yield what a keyspace says that is not so where PostgreSQL decides."""
    if said.type not in (*_STRINGS, None):
        yield Complaint(("type",), "a lock is taken by SET NX and shown as a string; allowed: "
                        f"{', '.join(_STRINGS)}")  # fmt: skip
    for at in _IDLE:
        if _written(said, at) is not None:
            yield Complaint(at, "PostgreSQL decides about these locks, and nothing acts on it; "
                            "leave it out")  # fmt: skip
    for at, (words, why) in _UNTRUE.items():
        if _written(said, at) in words:
            yield Complaint(at, why)


def _written(said: Keyspace, at: Location) -> Any:
    """Return what a keyspace says there; None where it says nothing."""
    found: Any = said
    for field in at:
        if found is None or field not in found.model_fields_set:
            return None
        found = getattr(found, str(field))
    return found


def _rows(own: Keyspace) -> Iterator[Complaint]:
    """Yield why it is not clear which row a lock is."""
    lock, at = own.locks, ("lock", "key")
    if lock.table is None:
        if lock.key:
            yield Complaint(at, "names columns, and of which table is not said; say lock: table: "
                            "too, or leave it out", "lock")  # fmt: skip
        return
    columns = [*mapped(own.key, at, lock.key, complete=True)]
    yield from columns
    if own.restore is None and not columns:
        yield Complaint(("lock", "table"), "what a row of it looks like as a key is said by the "
                        "statement that restores it: restore: {sql: SELECT … AS value, … AS ttl}",
                        "restore")  # fmt: skip


def _held(own: Keyspace) -> Iterator[Complaint]:
    lock = own.locks
    if lock.per_owner is not None and lock.per_owner.scope not in own.key.names:
        yield no_segment(own.key, ("lock", "per_owner", "scope"), lock.per_owner.scope)
    if lock.max_hold and own.ttl.default and lock.max_hold < own.ttl.default:
        yield Complaint(("lock", "max_hold"), "is shorter than ttl.default")
    if lock.queue is not None and lock.queue.offer > lock.queue.heartbeat:
        yield Complaint(("lock", "queue", "offer"), "is longer than heartbeat: who is silent for "
                        "that long has lost the place, and what was offered with it")  # fmt: skip
