"""Commands whose reply carries the names of keys, when a key was renamed by its hash tag.

The data plane forwards these itself unless a key has another name at its node. Then the command
goes out with the node's names, and the client's names are put back: in the places of the reply
that hold a key, never in values that happen to look like one; and in error lines, which quote keys.

Always true: elements, ids and values pass as the bytes that the node sent.
"""

import re
from collections.abc import Awaitable, Callable, Mapping

from proxy import errors, wire
from proxy.handlers import Handler, Session
from proxy.handlers.forward import locate_all, send
from proxy.resp import bulk

Names = Mapping[bytes, bytes]  # a node's name to the client's


def popped(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """LMPOP and ZMPOP: one key and what was taken from it."""
    return _forward(session, request, popped_names)


def streams(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """XREAD and XREADGROUP: each stream's name and its entries."""
    if _blocks(request.arguments):
        return errors.BLOCK_REFUSED
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

    return send(session, request, locations[0], words, restore)


def _blocks(words: list[bytes]) -> bool:
    """Return whether BLOCK stands among the options, and not as the name of a group."""
    position = 1
    while position < len(words):
        option = words[position].upper()
        if option == b"BLOCK":
            return True
        if option not in _STREAM_VALUES:
            return False
        position += 1 + _STREAM_VALUES[option]
    return False


_STREAM_VALUES: Mapping[bytes, int] = {b"COUNT": 1, b"GROUP": 2, b"NOACK": 0}


def popped_names(reply: bytes, names: Names) -> bytes:
    """Return a reply of [key, elements], or a null, with the client's name for the key."""
    if not reply.startswith(b"*2\r\n"):
        return reply
    key, end = _bulk_at(reply, 4)
    return b"*2\r\n" + bulk(names.get(key, key)) + reply[end:]


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


HANDLERS: dict[bytes, Handler] = {
    b"lmpop": popped,
    b"zmpop": popped,
    b"xread": streams,
    b"xreadgroup": streams,
    b"xpending": plain,
    b"xclaim": plain,
    b"xautoclaim": plain,
    b"xinfo|consumers": plain,
    b"xgroup|createconsumer": plain,
    b"xgroup|delconsumer": plain,
    b"xgroup|setid": plain,
}
