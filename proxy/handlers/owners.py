"""What the value of a lock says: who holds it, and for what.

Used by `locks`, `grants` and `gate`. By the `owner` of its policy a value is the owner
itself, or JSON with the owner at a path of members.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from proxy.wire import LONGEST_NAME

# Values of locks that crowds ask for, and the longest that is kept.
READ, READ_BYTES = 1000, 1024


def owner_of(path: tuple[str, ...], value: bytes) -> str | None:
    """Return the owner that a value names; None where it names none."""
    if not path:
        return text_of(value.decode(errors="surrogateescape"))
    return member(said_by(value), path) or None


def holder_of(path: tuple[str, ...], value: bytes) -> str | None:
    """Return the same; what Redis shows of one lock is the same for thousands who ask."""
    return _remembered(path, value) if len(value) <= READ_BYTES else owner_of(path, value)


_remembered = lru_cache(READ)(owner_of)


def text_of(text: str) -> str | None:
    """Return a text that PostgreSQL can hold and find: not empty nor longer than LONGEST_NAME.

    None of any other, of one with a NUL, and with what is half a letter.
    """
    if not text or "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        return None
    return text if len(text.encode()) <= LONGEST_NAME else None


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
    try:
        return text_of(str(said))
    except ValueError:
        return None  # a number of thousands of digits


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
