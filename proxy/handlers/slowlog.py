"""SLOWLOG and LATENCY HISTOGRAM: how long commands took, as measured here.

A command's time in the slow log runs from the last byte of its request to the write of its reply to
the client: what the client waited for, the node's queue and the network included. Redis' own slow
log has the time of running it only. Where the time went is on the admin port, at /slowlog.

Always true: what is kept is bounded in entries and in bytes of each; a client is shown, counts and
forgets what its own user sent only, unless its role is `admin`.
"""

from collections.abc import Sequence

from proxy import commands, errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.handlers.glimpse import Entry
from proxy.handlers.tenants import sees

# Entries that SLOWLOG GET shows when it is not told how many.
SHOWN = 10


def get(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    count = SHOWN
    if len(words) > 1:
        return errors.unknown_or_arity(*request.arguments[:2])
    if words:
        asked = integer(words[0])
        if asked is None or asked < -1:
            return errors.SLOWLOG_COUNT
        count = asked if asked >= 0 else len(session.server.slowlog.entries)
    shown = [
        [entry.number, entry.when, entry.microseconds, entry.words, entry.peer, entry.name]
        for entry in _visible(session)[:count]
    ]
    return resp.encode(shown, session.protocol)


def length(session: Session, request: wire.Request) -> bytes:
    return resp.integer(len(_visible(session)))


def reset(session: Session, request: wire.Request) -> bytes:
    session.server.slowlog.forget(_visible(session))
    return resp.OK


def _visible(session: Session) -> list[Entry]:
    return [entry for entry in session.server.slowlog.entries if sees(session, entry.user)]


def histogram(session: Session, request: wire.Request) -> bytes:
    """Answer the cumulative counts by power of two of microseconds, for the commands named or all.

    A container's name stands for all its sub-commands, as in Redis.
    """
    asked = [word.lower() for word in request.arguments[2:]]
    found = {}
    for row, _, _, buckets in session.server.latencies.commands():
        name = commands.ROWS[row].name
        if asked and name not in asked and name.partition(b"|")[0] not in asked:
            continue
        found[name] = {"calls": sum(buckets), "histogram_usec": _cumulative(buckets)}
    return resp.encode(found, session.protocol)


def _cumulative(buckets: Sequence[int]) -> dict[int, int]:
    """Return upper bound in microseconds to how many took no longer, where that changes."""
    total = 0
    found = {}
    for power, count in enumerate(buckets):
        if count:
            total += count
            found[1 << power] = total
    return found


HANDLERS: dict[bytes, Handler] = {
    b"slowlog|get": get,
    b"slowlog|len": length,
    b"slowlog|reset": reset,
    b"latency|histogram": histogram,
}
