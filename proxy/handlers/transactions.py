"""MULTI, EXEC and DISCARD: a transaction is queued here and sent in one piece.

MULTI turns on the data plane's capture and puts a `Transaction` in the place of the table of
handlers. Each command is checked as outside - arity, rights, key grammar, slot, refusals of its own
- and answered +QUEUED; EXEC sends MULTI, the commands and EXEC as one unit on the client's shared
connection (`execution`), so nothing is pinned.

Always true: a command that was refused while queueing makes EXEC answer EXECABORT, and nothing of
the transaction has been sent; what a transaction holds is bounded in commands, bytes and time, and
that of all together as requests that are not whole are (`Session.queued_bytes`, `proxy.memory`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import cast

from proxy import errors, resp, wire
from proxy.handlers import (
    Handler,
    Mode,
    Session,
    backed,
    connection,
    fanout,
    offered,
    pubsub,
    scripts,
)
from proxy.handlers.execution import Plan, Watch, execute
from proxy.handlers.forward import followers, locate_all
from proxy.handlers.guarded import REFUSALS
from proxy.handlers.targets import targets_of, writes

QUEUED = b"+QUEUED\r\n"

# A node runs a transaction without a pause: as many short commands take it a tenth of a second.
MOST_COMMANDS = 100_000

# A quarter of what may wait at one node before others are refused.
MOST_BYTES = 64 * 1024 * 1024

# What a queued command takes beyond its frame: measured, where it is to be answered here. A PING
# of 14 bytes takes twenty times as many.
COMMAND_BYTES = 256

# What an open transaction may hold for as long as its client likes: as much as any client may have
# sent and not been answered. One that holds more is emptied when it stays open for too long.
IDLE_BYTES = 64 * 1024
MOST_SECONDS = 60.0

# Not at home in a transaction: their replies are no replies, they change who the client is between
# check and run, or they take over the connection.
REFUSED = frozenset({
    b"auth", b"hello", b"client|reply", b"monitor", b"subscribe", b"unsubscribe", b"psubscribe",
    b"punsubscribe", b"ssubscribe", b"sunsubscribe", b"wait", b"waitaof",
})  # fmt: skip

# Ride with the keys of their cluster: who hears a message finds what was written before it.
MESSAGES = frozenset({b"publish", b"spublish"})

# Done at once, as outside.
IMMEDIATE = frozenset({b"quit", b"reset"})


class Transaction:
    """What one client has queued since MULTI."""

    flag = "x"

    def __init__(self, session: Session) -> None:
        self.plan = Plan()
        self.cluster = self.slot = -1  # of its keys; one slot unless it may be split
        self.several = False  # its keys lie in more than one slot
        self._bytes = 0
        self._session = session
        self._before: tuple[Mode | None, bool] = (session.mode, session.downstream.capture)
        self._rules = session.downstream.ruleset
        self._splitting = splitting(self._rules)
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    @property
    def abort(self) -> bytes:
        """Return what EXEC answers to a transaction that is spoiled."""
        if self._expired:
            return errors.TRANSACTION_EXPIRED
        if self._session.downstream.ruleset is not self._rules:
            return errors.TRANSACTION_OUTLIVED
        return errors.EXECABORT

    @property
    def counts(self) -> Mapping[str, int]:
        return {"multi": self.plan.count}

    def begin(self) -> None:
        downstream = self._session.downstream
        self._session.holdings["transaction"] = self
        self._session.mode = self
        downstream.capture, downstream.spoiled = True, False

    def end(self) -> None:
        """Give commands the meaning back that they had before MULTI."""
        self._session.holdings.pop("transaction", None)
        self._session.mode, self._session.downstream.capture = self._before
        self._session.queued_bytes = 0
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> None:
        self._empty()
        if self._timer is not None:
            self._timer.cancel()

    def take(self, session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
        server, location = session.server, request.location
        targets = {}
        if server.reads is not None or server.behind is not None:
            targets = targets_of(request)
        if targets:
            if (line := backed.barred(session, request, targets.values())) is not None:
                return self._spoil(line)
            if not writes(request):
                targets = {}
        if location is None:
            reply = self._take_unplaced(session, request)
        elif server.reads is None or not targets:
            routed = request.routed or request.command
            reply = self._queue(request, location, routed, request.followers)
        else:
            reply = self._queue(request, location, *backed.queued(request, targets.values()))
        if server.reads is not None:
            self.plan.written.update(targets)
        return reply

    def _take_unplaced(self, session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
        """Take a command that the data plane leaves to handlers."""
        name = request.name
        if name in _CONTROL:
            return _CONTROL[name](self, session, request)
        if name in IMMEDIATE:
            return session.server.handlers[name](session, request)
        if request.row < 0:
            return self._spoil(cast(bytes, session.server.handlers[b""](session, request)))
        # Keys that are queued already have their cluster, and the slot is one for all.
        if name in REFUSED or (name == b"select" and connection.changes_database(session, request)):
            return self._spoil(errors.NOT_IN_TRANSACTION)
        if name in MESSAGES:
            return self._take_message(session, request)
        if name in fanout.HANDLERS and self._splitting:
            return self._take_divided(session, request)
        if request.keys or name in REFUSALS:
            return self._take_keyed(session, request)
        return self._queue(request, None, request.command)

    def _take_keyed(self, session: Session, request: wire.Request) -> bytes:
        """Take a command with keys that outside has a handler: nodes run it inside as it is."""
        words = request.arguments
        check = REFUSALS.get(request.name)
        refusal = None if check is None else check(words, session.database)
        if offered.decided(session, request):
            refusal = errors.NOT_IN_TRANSACTION
        locations = refusal or locate_all(session, request, words)
        if isinstance(locations, bytes):
            return self._spoil(locations)
        for position, location in zip(request.keys, locations, strict=True):
            words[position] = location.name
        # Nothing of a transaction can be repaired once EXEC has run the rest.
        script = offered.script_of(request)
        words = offered.whole(script, words) if script else scripts.for_transaction(session, words)
        follow = followers(self._session, request, locations)
        return self._queue(request, locations[0], wire.pack(words), follow)

    def _take_message(self, session: Session, request: wire.Request) -> bytes:
        """Take a PUBLISH or SPUBLISH: its channel is no key, and binds the transaction to no slot.

        Which node it goes to is known at EXEC, when all keys are.
        """
        place = pubsub.publish_place(session, request)
        if isinstance(place, bytes):
            return self._spoil(place)
        if session.downstream.spoiled:
            return QUEUED
        self.plan.add_message(request, place)
        return self._bounded(request, len(request.command))

    def _take_divided(self, session: Session, request: wire.Request) -> bytes:
        """Take a command over several slots, where the transaction may have several."""
        found = fanout.divided(session, request)
        if isinstance(found, bytes):
            return self._spoil(found)
        parts, merge = found
        for part in parts:
            refusal = self._enter(request, part.location)
            if refusal is not None:
                return self._spoil(refusal)
        if self._session.downstream.spoiled:
            return QUEUED
        self.plan.add_divided(parts, merge)
        return self._bounded(request, len(request.command))

    def _queue(
        self,
        request: wire.Request,
        location: wire.Location | None,
        routed: bytes,
        follow: list[bytes] | None = None,
    ) -> bytes:
        """Take a command as nodes get it, and what rules send behind it."""
        if self._session.downstream.spoiled:
            self._empty()
            return QUEUED
        if location is None:
            self.plan.add_here(request)
        else:
            if location.slot != self.slot or location.cluster != self.cluster or self._splitting:
                refusal = self._enter(request, location)
                if refusal is not None:
                    return self._spoil(refusal)
            self.plan.add(self._session, request, location, routed)
            if follow:
                self.plan.follow(location, follow)
                return self._bounded(request, len(routed) + sum(map(len, follow)))
        return self._bounded(request, len(routed))

    def _bounded(self, request: wire.Request, size: int) -> bytes:
        """Count a queued command; spoil a transaction that holds too much."""
        self._bytes += size
        held = self._session.queued_bytes = self._bytes + self.plan.count * COMMAND_BYTES
        if self.plan.count > MOST_COMMANDS:
            return self._spoil(errors.transaction_too_large(MOST_COMMANDS, "commands"))
        if held > IDLE_BYTES and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MOST_SECONDS, self._expire)
        if self._bytes > MOST_BYTES:
            return self._spoil(errors.transaction_too_large(MOST_BYTES, "bytes"))
        return QUEUED

    def _enter(self, request: wire.Request, location: wire.Location) -> bytes | None:
        """Take in another slot, or return the error line where the transaction has one already.

        Slots may differ only where every key so far allows it; under WATCH it has one.
        """
        if self._splitting:
            words = request.arguments
            spaces = {self._rules.find_keyspace(words[position]) for position in request.keys}
            if not spaces <= self._splitting:
                self._splitting = frozenset()
        if self.cluster < 0:
            self.cluster, self.slot = location.cluster, location.slot
        elif location.cluster != self.cluster or location.slot != self.slot:
            if not self._splitting or "watch" in self._session.holdings:
                same = location.cluster == self.cluster
                return errors.CROSSSLOT if same else errors.CROSS_CLUSTER
            self.several = True
        elif self.several and not self._splitting:
            return errors.CROSSSLOT
        return None

    def _spoil(self, line: bytes) -> bytes:
        self._session.downstream.spoiled = True
        self._empty()
        return line

    def _empty(self) -> None:
        """Let go of what is queued."""
        self.plan = Plan()
        self._bytes = self._session.queued_bytes = 0

    def _expire(self) -> None:
        self._spoil(b"")
        self._expired = True


@lru_cache(maxsize=2)  # the rules in force, and those that some clients have not left yet
def splitting(rules: wire.Ruleset) -> frozenset[int]:
    """Return the keyspaces whose transactions may be split; -1 stands for keys of none."""
    spaces = {number for number, row in enumerate(rules.keyspaces) if row.split_transactions}
    return frozenset(spaces | {-1} if rules.split_unmatched else spaces)


def multi(session: Session, request: wire.Request) -> bytes:
    Transaction(session).begin()
    return resp.OK


def _exec(
    transaction: Transaction, session: Session, request: wire.Request
) -> bytes | Awaitable[bytes]:
    line = request.refusal
    if line is None and session.downstream.spoiled:
        line = transaction.abort
    if line is not None:
        _discard(transaction, session, request)
        return line
    transaction.end()
    watch = cast(Watch | None, session.holdings.pop("watch", None))
    if session.server.reads is not None:
        for key in transaction.plan.written:
            session.server.reads.changed(key)
    return execute(session, transaction.plan, watch, request.received)


def _discard(transaction: Transaction, session: Session, request: wire.Request) -> bytes:
    transaction.end()
    watch = session.holdings.pop("watch", None)
    if watch is not None:
        watch.release()
    return resp.OK


# Answered on the spot. A nested MULTI and a WATCH are errors that spoil nothing, as in Redis 7.
_CONTROL: Mapping[
    bytes, Callable[[Transaction, Session, wire.Request], bytes | Awaitable[bytes]]
] = {
    b"exec": _exec,
    b"discard": _discard,
    b"multi": lambda transaction, session, request: errors.NESTED_MULTI,
    b"watch": lambda transaction, session, request: errors.WATCH_IN_MULTI,
}


def exec_alone(session: Session, request: wire.Request) -> bytes:
    if request.refusal is None:
        return errors.EXEC_WITHOUT_MULTI
    # Redis ends what an EXEC would end, the watches too, also where there is nothing to execute.
    if (watch := session.holdings.pop("watch", None)) is not None:
        watch.release()
    return request.refusal


def discard_alone(session: Session, request: wire.Request) -> bytes:
    return errors.DISCARD_WITHOUT_MULTI


HANDLERS: dict[bytes, Handler] = {
    b"multi": multi,
    b"exec": exec_alone,
    b"discard": discard_alone,
}
