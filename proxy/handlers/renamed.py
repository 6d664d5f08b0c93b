"""Commands whose reply carries the names of keys, when a key was renamed by its hash tag.

The data plane forwards these itself unless a key has another name at its node. Then the command
goes out with the node's names, and the client's names are put back: in the places of the reply
that hold a key, never in values that happen to look like one; and in error lines, which quote keys.

Always true: elements, ids and values pass as the bytes that the node sent.
"""

import re
from collections.abc import Awaitable, Callable, Mapping

from proxy import wire
from proxy.handlers import Handler, Session
from proxy.handlers.forward import locate_all, send_followed
from proxy.resp import bulk

Names = Mapping[bytes, bytes]  # a node's name to the client's


def popped(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """LMPOP and ZMPOP: one key and what was taken from it."""
    return _forward(session, request, popped_names)


def streams(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """XREAD and XREADGROUP without BLOCK: each stream's name and its entries."""
    return _forward(session, request, stream_names)


def plain(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Commands that name a key in an error only."""
    return _forward(session, request, lambda reply, names: reply)


def _forward(
    session: Session, request: wire.Request, translate: Callable[[bytes, Names], bytes]
) -> bytes | Awaitable[bytes]:
    words = request.arguments
    locations = locate_all(session, request, words)
    if isinstance(locations, bytes):
        return locations
    names: dict[bytes, bytes] = {}
    for position, location in zip(request.keys, locations, strict=True):
        names[location.name] = words[position]
        words[position] = location.name

    def restore(reply: bytes) -> bytes:
        return error_names(reply, names) if reply[:1] == b"-" else translate(reply, names)

    return send_followed(session, request, locations, words, restore)


# Options before STREAMS, and how many words belong to each.
STREAM_VALUES: Mapping[bytes, int] = {b"COUNT": 1, b"GROUP": 2, b"NOACK": 0}


def popped_names(reply: bytes, names: Names) -> bytes:
    """Return a reply of [key, elements ...], or a null, with the client's name for the key."""
    if not reply.startswith((b"*2\r\n", b"*3\r\n")):
        return reply
    key, end = _bulk_at(reply, 4)
    return reply[:4] + bulk(names.get(key, key)) + reply[end:]


def stream_names(reply: bytes, names: Names) -> bytes:
    """Return a reply of streams, a null, an array of pairs or a map, with the client's names."""
    kind = reply[:1]
    at = reply.index(b"\r\n") + 2
    if kind not in (b"*", b"%") or reply[1:2] == b"-":
        return reply
    parts = [reply[:at]]
    for _ in range(int(reply[1 : at - 2])):
        if kind == b"*":
            parts.append(b"*2\r\n")
            at += 4
        key, at = _bulk_at(reply, at)
        end = wire.frame_end(reply, at)
        parts += (bulk(names.get(key, key)), reply[at:end])
        at = end
    return b"".join(parts)


def first_name(reply: bytes, names: Names) -> bytes:
    """Return a reply of an array that begins with a key, or a null, with the client's name."""
    if reply[:1] != b"*" or reply[1:2] in (b"-", b"0"):
        return reply
    at = reply.index(b"\r\n") + 2
    key, end = _bulk_at(reply, at)
    return reply[:at] + bulk(names.get(key, key)) + reply[end:]


def error_names(line: bytes, names: Names) -> bytes:
    """Return an error line with the client's names.

    A name that begins another may be replaced in its place: both have the same tag in it.
    """
    pattern = b"|".join(map(re.escape, names))
    return re.sub(pattern, lambda match: names[match.group()], line)


def _bulk_at(reply: bytes, at: int) -> tuple[bytes, int]:
    """Return the bulk string at a position, and where it ends."""
    head = reply.index(b"\r\n", at)
    start = head + 2
    end = start + int(reply[at + 1 : head])
    return reply[start:end], end + 2


def names_keys(name: bytes) -> bool:
    """Return whether a command's replies, or its errors, carry the names of keys."""
    return name in _PLACES or name in HANDLERS


def restored(name: bytes, reply: bytes, names: Names) -> bytes:
    """Return the reply of a command, an error too, with the client's names where keys stand."""
    place = _PLACES.get(name)
    if reply[:1] == b"-":
        return error_names(reply, names) if names_keys(name) else reply
    return reply if place is None else place(reply, names)


# Where a reply has the names of keys. Commands that block stand here because they answer at once
# inside a transaction.
_PLACES: Mapping[bytes, Callable[[bytes, Names], bytes]] = {
    b"lmpop": popped_names,
    b"zmpop": popped_names,
    b"blmpop": popped_names,
    b"bzmpop": popped_names,
    b"blpop": first_name,
    b"brpop": first_name,
    b"bzpopmin": first_name,
    b"bzpopmax": first_name,
    b"xread": stream_names,
    b"xreadgroup": stream_names,
}

HANDLERS: dict[bytes, Handler] = {
    b"lmpop": popped,
    b"zmpop": popped,
    b"xpending": plain,
    b"xclaim": plain,
    b"xautoclaim": plain,
    b"xinfo|consumers": plain,
    b"xgroup|createconsumer": plain,
    b"xgroup|delconsumer": plain,
    b"xgroup|setid": plain,
}
