"""Commands that are forwarded after a look at their arguments: COPY, SORT, SORT_RO.

A cluster refuses `COPY ... DB n` and `SORT ... BY pattern` or `GET pattern`. A single node would
carry them out: the first leaves the database that the rules speak about, the others read keys that
no rule has seen. So they are refused here, with the words of a cluster, whatever the node is.
"""

from collections.abc import Awaitable, Callable, Mapping

from proxy import errors, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.handlers.forward import locate_all, send_followed


def copy_refusal(words: list[bytes], database: int) -> bytes | None:
    position = 3
    while position < len(words):
        match words[position].upper():
            case b"REPLACE":
                position += 1
            case b"DB" if position + 1 < len(words):
                if integer(words[position + 1]) is None:
                    return errors.NOT_AN_INTEGER
                # Nodes know no other database, whichever the client has selected.
                if words[position + 1] != b"0" or database:
                    return errors.COPY_DB_REFUSED
                position += 2
            case _:
                return errors.SYNTAX
    return None


def sort_refusal(words: list[bytes], database: int) -> bytes | None:
    position = 2
    while position < len(words):
        option = words[position].upper()
        pattern = words[position + 1] if position + 1 < len(words) else b""
        # Without a star BY means "do not sort" and GET is always nil; `#` is the element itself.
        if option == b"BY" and b"*" in pattern:
            return errors.SORT_BY_REFUSED
        if option == b"GET" and b"*" in pattern:
            return errors.SORT_GET_REFUSED
        position += 1 + _SORT_VALUES.get(option, 0)
    return None


_SORT_VALUES: Mapping[bytes, int] = {b"BY": 1, b"GET": 1, b"STORE": 1, b"LIMIT": 2}


# What each command is looked at for: its words and the database that its client has selected, to an
# error line, or None for nothing wrong.
REFUSALS: Mapping[bytes, Callable[[list[bytes], int], bytes | None]] = {
    b"copy": copy_refusal,
    b"sort": sort_refusal,
    b"sort_ro": sort_refusal,
}


def forward(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    words = request.arguments
    refusal = REFUSALS[request.name](words, session.database)
    if refusal is not None:
        return refusal
    locations = locate_all(session, request, words)
    if isinstance(locations, bytes):
        return locations
    for position, location in zip(request.keys, locations, strict=True):
        words[position] = location.name
    return send_followed(session, request, locations, words)


HANDLERS: dict[bytes, Handler] = dict.fromkeys(REFUSALS, forward)
