"""CLIENT: a client's own name and library, and the list of those who share its user.

Always true: a client sees and closes connections of its own user only, unless its role is `admin`,
so one tenant learns nothing about another. Names in the list have no spaces or line ends, or they
could forge an entry. Who has been told that a client is closed finds nothing waiting for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.blocked import blocked_by
from proxy.handlers.connection import LONGEST_NAME, bad_name, integer, printable
from proxy.handlers.tenants import sees

# How long CLIENT KILL waits for nodes to end what clients waited for, in seconds. A node needs a
# round trip; one that needs longer is silent, and its connection is closed in time anyway.
ENDING = 1.0


def client_id(session: Session, request: wire.Request) -> bytes:
    return resp.integer(session.id)


def getname(session: Session, request: wire.Request) -> bytes:
    return resp.bulk(session.name) if session.name else resp.null(session.protocol)


def setname(session: Session, request: wire.Request) -> bytes:
    name = request.arguments[2]
    refusal = bad_name(name)
    if refusal is not None:
        return refusal
    session.name = name
    return resp.OK


def setinfo(session: Session, request: wire.Request) -> bytes:
    option, value = request.arguments[2:]
    name, version = session.library
    if option.upper() not in (b"LIB-NAME", b"LIB-VER"):
        return errors.unrecognized_option(option)
    if not printable(value) or len(value) > LONGEST_NAME:
        return errors.bad_client_info(option)
    session.library = (value, version) if option.upper() == b"LIB-NAME" else (name, value)
    return resp.OK


def switch(session: Session, request: wire.Request) -> bytes:
    """NO-EVICT and NO-TOUCH: accepted; the shared connections to nodes cannot carry them."""
    word = request.arguments[2].upper()
    return resp.OK if word in (b"ON", b"OFF") else errors.SYNTAX


def getredir(session: Session, request: wire.Request) -> bytes:
    """Answer -1: nothing is tracked, so no invalidation goes to another client."""
    return resp.integer(-1)


def info(session: Session, request: wire.Request) -> bytes:
    return resp.encode(resp.Verbatim(_line(session, request) + "\n"), session.protocol)


def client_list(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    shown = _visible(session)
    if words:
        option, values = words[0].upper(), words[1:]
        if option == b"TYPE" and len(values) == 1:
            kind = values[0].lower()
            if kind not in _TYPES:
                return errors.unknown_client_type(values[0])
            shown = [other for other in shown if kind in _types_of(other)]
        elif option == b"ID" and values:
            ids = [integer(value) for value in values]
            if None in ids:
                return errors.BAD_CLIENT_ID
            shown = [other for other in shown if other.id in ids]
        else:
            return errors.SYNTAX
    text = "".join(_line(other, request) + "\n" for other in shown)
    return resp.encode(resp.Verbatim(text), session.protocol)


_TYPES = {b"normal", b"master", b"slave", b"replica", b"pubsub", b"primary"}


def _types_of(session: Session) -> Sequence[bytes]:
    """Return as what a client counts in CLIENT LIST and KILL; there are no replicas here."""
    return (b"pubsub",) if "subscriptions" in session.holdings else (b"normal",)


def _visible(session: Session) -> list[Session]:
    return [other for other in session.server.sessions.values() if sees(session, other.user)]


def _line(session: Session, request: wire.Request) -> str:
    """Return one client's line as CLIENT LIST has it, without the end of line."""
    return " ".join(f"{name}={value}" for name, value in describe(session, request.received))


def describe(session: Session, now: float) -> Iterator[tuple[str, object]]:
    """Yield what CLIENT LIST tells of one client, in Redis' order; now is on the loop's clock.

    What the proxy has no number for is 0, and what it does not have at all is -1, as in Redis.
    """
    side, holdings = session.downstream, session.holdings.values()
    counts = {"sub": 0, "psub": 0, "ssub": 0, "multi": -1, "watch": 0}
    for held in holdings:
        counts.update(held.counts)
    rows, last = side.ruleset.commands, side.last_row
    yield "id", session.id
    yield "addr", session.peer
    yield "laddr", session.local
    yield "fd", -1
    yield "name", session.name.decode("latin-1")
    yield "age", max(0, int(time.time() - session.created))
    yield "idle", max(0, int(now - session.active))
    yield "flags", "".join(sorted({held.flag for held in holdings})) or "N"
    yield "db", session.database
    yield from counts.items()
    yield "qbuf", side.held_bytes
    yield "qbuf-free", 0
    yield "argv-mem", 0
    yield "multi-mem", session.queued_bytes
    yield "rbs", 0
    yield "rbp", 0
    yield "obl", 0
    yield "oll", side.pending
    yield "omem", side.output_bytes
    yield "tot-mem", side.held_bytes + session.queued_bytes + side.output_bytes
    yield "events", "r"
    yield "cmd", rows[last].name.decode() if 0 <= last < len(rows) else "NULL"
    yield "user", session.user
    yield "redir", -1
    yield "resp", session.protocol
    yield "lib-name", session.library[0].decode("latin-1")
    yield "lib-ver", session.library[1].decode("latin-1")


def kill(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    words = request.arguments[2:]
    if len(words) == 1:
        address = words[0].decode("latin-1")
        found = [other for other in _visible(session) if other.peer == address]
        return _close(session, found, resp.OK) if found else errors.NO_SUCH_CLIENT
    filters = _filters(session, words)
    if isinstance(filters, bytes):
        return filters
    found = [
        other
        for other in _visible(session)
        if all(fits(other) for fits in filters.tests) and not (other is session and filters.skip_me)
    ]
    return _close(session, found, resp.integer(len(found)))


def _close(session: Session, found: Sequence[Session], reply: bytes) -> bytes | Awaitable[bytes]:
    """Close clients; the one that asks gets its reply first, once no node waits for the others."""
    ends = []
    for other in found:
        if other is session:
            session.closing = True
            continue
        other.close()
        wait = blocked_by(other)
        if wait is not None:
            ends.append(wait.abandon())
    if not ends:
        return reply
    # What the same client writes behind it must not be taken for one that is gone.
    session.downstream.hold()
    return _closed(session, ends, reply)


async def _closed(session: Session, ends: Sequence[asyncio.Future[bool]], reply: bytes) -> bytes:
    try:
        await asyncio.wait(ends, timeout=ENDING)
    finally:
        session.downstream.release()
    return reply


@dataclass
class _Filters:
    skip_me: bool = True
    tests: list[Callable[[Session], bool]] = field(default_factory=list)


def _filters(session: Session, words: Sequence[bytes]) -> _Filters | bytes:
    """Return what CLIENT KILL asks for, or the error line of its first mistake."""
    if len(words) % 2:
        return errors.SYNTAX
    filters = _Filters()
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option.upper() == b"SKIPME":
            if value.lower() not in (b"yes", b"no"):
                return errors.SYNTAX
            filters.skip_me = value.lower() == b"yes"
            continue
        test = _filter(session, option.upper(), value)
        if isinstance(test, bytes):
            return test
        filters.tests.append(test)
    return filters


def _filter(session: Session, option: bytes, value: bytes) -> Callable[[Session], bool] | bytes:
    text = value.decode("latin-1")
    match option:
        case b"ID":
            number = integer(value)
            if number is None or number < 1:
                return errors.CLIENT_ID_NOT_POSITIVE
            return lambda other: other.id == number
        case b"ADDR":
            return lambda other: other.peer == text
        case b"LADDR":
            return lambda other: other.local == text
        case b"TYPE":
            if value.lower() not in _TYPES:
                return errors.unknown_client_type(value)
            return lambda other: value.lower() in _types_of(other)
        case b"USER":
            # Other users are nobody's business, so they do not exist for this one.
            known = {user.name for user in session.server.config.users}
            if text not in known or not sees(session, text):
                return errors.no_such_user(value)
            return lambda other: other.user == text
        case b"MAXAGE":
            age = integer(value)
            if age is None or age < 1:
                return errors.MAXAGE_NOT_POSITIVE
            limit = time.time() - age
            return lambda other: other.created <= limit
    return errors.SYNTAX


HANDLERS: dict[bytes, Handler] = {
    b"client|id": client_id,
    b"client|getname": getname,
    b"client|setname": setname,
    b"client|setinfo": setinfo,
    b"client|no-evict": switch,
    b"client|no-touch": switch,
    b"client|getredir": getredir,
    b"client|info": info,
    b"client|list": client_list,
    b"client|kill": kill,
}
