"""What clients make the process hold: replies they have not read, what they have only begun.

Made by `server`, which hears of both from sessions and has them looked at from time to time. What
is gathered of a reply that nodes send in parts counts as unread; replies that have not come whole
have an account of their own (`upstream.arriving`). In no account are the copy of a reply while it
is made or given to its client, and requests that wait for their answers.
Always true:
  * of clients that stop reading no more than `output_total_bytes` is kept for longer than
    `output_seconds`. A FEW at a time may be on their way to replies of any size that a request
    could have brought; what all others leave never comes to more than that total;
  * requests that are not whole, and those that wait for an EXEC, come to `input_total_bytes` at
    most, beyond one read of each client;
  * over a total, who holds most goes first, and one log line says so: one more when it is under it.
"""

import heapq
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from proxy import log, wire
from proxy.config import Limits

# Clients whose replies may be larger than the total at the same time: whether they read shows only
# later. Of a crowd each may leave its window, so that a crowd cannot be given time.
FEW = 4

# A request or reply of which no more has come costs no more than any other, and is not counted.
ONE_READ = 64 * 1024


class Holder(Protocol):
    """A client, or a connection to a node, as far as something of it grows."""

    @property
    def begun_bytes(self) -> int:
        """Return how much has come: of requests until EXEC, or of a reply."""


class Session(Holder, Protocol):
    """A client, as far as it holds memory."""

    downstream: wire.Downstream
    active: float  # when it last sent something

    @property
    def unread_bytes(self) -> int:
        """Return the bytes of replies that the client has not taken yet."""

    def count_unread(self) -> None:
        """Tell `Unread` of them, and of what the transport keeps besides."""

    def close(self, reason: str) -> None: ...


H = TypeVar("H", bound=Holder)


def _close(session: Session, reason: str) -> None:
    session.close(reason)


def largest(limits: Limits) -> int:
    """Return how large a reply may be: what could be stored can be read.

    Its request was no larger than all may be together.
    """
    return limits.output_total_bytes + limits.input_total_bytes


class Account(Generic[H]):
    """Bytes that single clients hold, or connections to nodes, and what they come to."""

    holders = "clients"

    def __init__(self, reason: str, limit: int, end: Callable[[H, str], None]) -> None:
        self.sizes: dict[H, int] = {}
        self.total = 0
        self._reason = reason
        self._limit = limit
        self._end = end
        self._over = False

    def count(self, holder: H, size: int) -> None:
        """Take note of what somebody holds now."""
        self.total += size - self.sizes.pop(holder, 0)
        if size:
            self.sizes[holder] = size

    def close_largest(self) -> None:
        """Close who holds most."""
        self.tell()
        self.close(max(self.sizes, key=self.sizes.__getitem__))

    def close(self, holder: H) -> None:
        self.count(holder, 0)
        self._end(holder, self._reason)

    def tell(self) -> None:
        """Log that the total is over its limit, or under it again."""
        over = self.total > self._limit
        if over != self._over:
            self._over = over
            log.event(
                log.WARNING if over else log.INFO,
                f"{self._reason}_over_limit" if over else f"{self._reason}_within_limit",
                bytes=self.total, limit=self._limit, **{self.holders: len(self.sizes)},
            )  # fmt: skip


class Growing(Account[H]):
    """What is begun and not whole, of those that hold more than one read of it."""

    def count(self, holder: H, size: int) -> None:
        """Take note of what somebody has by now; over the total, who has most goes."""
        self._note(holder, size)
        if self.total > self._limit:
            self._recount()
        while self.total > self._limit and self.sizes:
            self.close_largest()

    def look(self, now: float) -> None:
        """Find out what has become whole."""
        self._recount()
        self.tell()

    def _recount(self) -> None:
        """Forget what has become whole since, or has gone: nobody tells of that."""
        for holder in list(self.sizes):
            self._note(holder, holder.begun_bytes)

    def _note(self, holder: H, size: int) -> None:
        super().count(holder, size if size > ONE_READ else 0)


class Unread(Account[Session]):
    """Replies that clients have not read."""

    def __init__(self, limits: Limits) -> None:
        super().__init__("output", limits.output_total_bytes, _close)
        self._limits = limits
        self._most = largest(limits)
        # Since when a client has read nothing, and what it owed then.
        self._seen: dict[Session, tuple[float, int]] = {}

    def count(self, session: Session, size: int) -> None:
        """Take note of what a client leaves; beyond what may be left at once, the largest goes."""
        super().count(session, size)
        if not size or size <= self._limits.output_bytes < self._seen.get(session, (0.0, 0))[1]:
            self._seen.pop(session, None)
        while self.total > self._limits.output_total_bytes and (too_much := self._too_much()):
            self.tell()
            self.close(too_much)

    def _too_much(self) -> Session | None:
        """Return who has to go at once: of all if they leave too much, or of all but a few."""
        most = heapq.nlargest(FEW + 1, self.sizes, key=self.sizes.__getitem__)
        if self.total > self._most:
            return most[0]
        others = self.total - sum(self.sizes[session] for session in most[:FEW])
        return most[FEW] if others > self._limits.output_total_bytes else None

    def look(self, now: float) -> None:
        """Close who does not read, above its own limit or while the total is above its."""
        for session in list(self.sizes):
            # Others may read slowly: what they still owe is known only here.
            session.count_unread()
        still = [session for session in list(self.sizes) if not self._reads(session, now)]
        self.tell()
        for session in sorted(still, key=self.sizes.__getitem__, reverse=True):
            over = self.total > self._limits.output_total_bytes
            if over or self.sizes[session] > self._limits.output_bytes:
                self.close(session)
        self.tell()

    def _reads(self, session: Session, now: float) -> bool:
        """Return whether a client has read lately, or has had no time to.

        Above its limit it has only if it owes less than before: a subscriber that is sent more
        than it reads has not.
        """
        # What waits for a reply before it, or for the rest of itself, cannot be read yet.
        owed = session.unread_bytes - session.downstream.waiting_bytes
        if not owed:
            self._seen.pop(session, None)
            return True
        since, before = self._seen.get(session, (now, 0))
        if owed < before or (owed != before and before <= self._limits.output_bytes):
            self._seen[session] = now, owed
            return True
        return now - since <= self._limits.output_seconds


class Begun(Growing[Session]):
    """Requests that are not whole, or wait for an EXEC."""

    def __init__(self, limits: Limits) -> None:
        super().__init__("input", limits.input_total_bytes, _close)
        self._seconds = limits.input_seconds

    def look(self, now: float) -> None:
        """Close those whose requests have stopped to grow, unless it is we who do not read.

        An open transaction may wait: it has a time of its own, and its client is told of that.
        """
        self._recount()
        for session in list(self.sizes):
            downstream = session.downstream
            amid = downstream.held_bytes > ONE_READ and not downstream.blocked
            if amid and now - session.active > self._seconds:
                self.close(session)
        self.tell()
