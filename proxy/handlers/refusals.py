"""What clients were refused for want of a right, as ACL LOG shows it.

The data plane tells of commands and keys, `pubsub` of channels, `connection` of failed logins.

Always true: at most `MOST_ENTRIES` are kept, the newest; of a name that a client chose, so many
bytes as `LONGEST_OBJECT`; what happens again within a minute is counted in its entry, as in Redis.
A client hears of what happened to its own user only, unless its role is `admin`.
"""

import time
from collections import deque
from dataclasses import dataclass, field

from proxy.handlers import Session
from proxy.handlers.clients import describe
from proxy.handlers.tenants import sees

# Redis' acllog-max-len, and how it groups: the newest ten are looked at, and a minute's time.
MOST_ENTRIES = 128
COMPARED = 10
GROUPED = 60.0  # seconds

# More of a name tells nobody anything; the data plane cuts at the same length.
LONGEST_OBJECT = 256  # bytes


@dataclass
class _Entry:
    number: int
    reason: str
    context: str
    object: bytes
    username: bytes
    actor: str  # who the client was, which decides who may hear of it
    client: str
    created: float
    updated: float = field(default=0.0)
    count: int = 1

    def same(self, other: "_Entry") -> bool:
        mine = (self.reason, self.context, self.object, self.username, self.actor)
        theirs = (other.reason, other.context, other.object, other.username, other.actor)
        return mine == theirs and other.created - self.updated < GROUPED


class Refusals:
    """The ring."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque(maxlen=MOST_ENTRIES)
        self._number = 0

    def note(
        self, session: Session | None, reason: str, name: bytes, user: str | None = None
    ) -> None:
        if session is None:
            return
        now = time.time()
        client = " ".join(f"{key}={value}" for key, value in describe(session, session.active))
        username = (session.user if user is None else user)[:LONGEST_OBJECT]
        new = _Entry(
            self._number, reason, "multi" if session.downstream.capture else "toplevel",
            name[:LONGEST_OBJECT], username.encode("utf-8", "replace"), session.user, client,
            now, now,
        )  # fmt: skip
        for index in range(min(COMPARED, len(self._entries))):
            old = self._entries[index]
            if old.same(new):
                del self._entries[index]
                old.count += 1
                old.client, old.updated = client, now
                self._entries.appendleft(old)
                return
        self._number += 1
        self._entries.appendleft(new)

    def entries(self, session: Session, most: int) -> list[dict[str, object]]:
        visible = [entry for entry in self._entries if sees(session, entry.actor)]
        return [_shown(entry) for entry in visible[:most]]

    def forget(self, session: Session) -> None:
        kept = [entry for entry in self._entries if not sees(session, entry.actor)]
        self._entries = deque(kept, MOST_ENTRIES)


def _shown(entry: _Entry) -> dict[str, object]:
    return {
        "count": entry.count,
        "reason": entry.reason,
        "context": entry.context,
        "object": entry.object,
        "username": entry.username,
        "age-seconds": max(time.time() - entry.updated, 0.0),
        "client-info": entry.client,
        "entry-id": entry.number,
        "timestamp-created": int(entry.created * 1000),
        "timestamp-last-updated": int(entry.updated * 1000),
    }
