"""The locks that a connection was granted: whose a bare DEL or EXPIRE is, which names no owner.

`locks` and `seats` write it down here and go by it.
"""

from collections.abc import Mapping

from proxy.handlers import Session

# What one connection may hold at a time and still release by name; beyond it locks end by
# themselves, or by a command that names their owner.
HELD = 1000


class Held:
    """The locks that a connection was granted, with owner and token: a `Holding`."""

    flag = ""
    counts: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.grants: dict[bytes, tuple[str, int]] = {}

    def release(self) -> None:
        """Forget them; they last until they expire, as in Redis."""
        self.grants.clear()


def remember(session: Session, key: bytes, owner: str, token: int) -> None:
    """Note that a connection was granted a lock; of too many the oldest is forgotten."""
    held = session.holdings.get("locks")
    if not isinstance(held, Held):
        held = session.holdings["locks"] = Held()
    held.grants.pop(key, None)
    if len(held.grants) >= HELD:
        held.grants.pop(next(iter(held.grants)))
    held.grants[key] = (owner, token)


def known(session: Session, key: bytes) -> tuple[str, int] | None:
    """Return owner and token of the grant of a lock to a connection."""
    held = session.holdings.get("locks")
    return held.grants.get(key) if isinstance(held, Held) else None


def forget(session: Session, key: bytes) -> None:
    """Note that a connection has given a lock up."""
    held = session.holdings.get("locks")
    if isinstance(held, Held):
        held.grants.pop(key, None)
