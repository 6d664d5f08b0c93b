"""What the value of a lock says: who holds it, and for what.

Used by `locks`, `grants` and `gate`. By the `owner` of its policy a value is the owner
itself, or JSON with the owner at a path of members.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Values of locks that crowds ask for, some hundred bytes each.
READ = 1000


def owner_of(path: tuple[str, ...], value: bytes) -> str | None:
    """Return the owner that a value names; None where it names none."""
    if not path:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return member(said_by(value), path) or None


# What Redis shows of one lock is the same for thousands who ask.
holder_of = lru_cache(READ)(owner_of)


def said_by(value: bytes) -> Any:
    """Return what a value that is JSON says; None of any other."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def member(said: Any, path: Sequence[str]) -> str | None:
    """Return what stands at a path, a text or a number, or None."""
    for name in path:
        if not isinstance(said, dict):
            return None
        said = said.get(name)
    if isinstance(said, bool) or not isinstance(said, str | int):
        return None
    return str(said)


def value_for(
    path: Sequence[str], owner: str, booking: str | None, session: str | None, left: float
) -> str:
    """Return the value of a lock that no client has written; left: seconds."""
    if not path:
        return owner
    inner: Any = owner
    for name in reversed(path[1:]):
        inner = {name: inner}
    rest = {"booking_id": booking, "session_id": session}
    return json.dumps({path[0]: inner, **rest, "expires_in": round(left)})
