"""Python values as RESP2 or RESP3 reply bytes, and replies of nodes taken apart.

For replies that the proxy makes itself; the data plane passes a node's replies on as they are, and
only what has to look into one takes it apart. Handlers call it with the protocol of their session.

Always true: a type that RESP2 does not have becomes what Redis itself sends there: a map becomes
a flat array, a set an array, a double and a verbatim string a bulk string, a boolean an integer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import hiredis

from proxy import wire

OK = b"+OK\r\n"


class Simple(str):
    """A simple string: one line of our own words."""

    __slots__ = ()


class Verbatim(str):
    """Text for people: RESP3 tells clients that it is not to be escaped."""

    __slots__ = ()


def encode(value: object, protocol: int) -> bytes:
    """Return the reply bytes of a value."""
    parts: list[bytes] = []
    _append(parts, value, protocol)
    return b"".join(parts)


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def integer(number: int) -> bytes:
    return b":%d\r\n" % number


def null(protocol: int) -> bytes:
    return b"_\r\n" if protocol == 3 else b"$-1\r\n"


def null_array(protocol: int) -> bytes:
    """Return what says that there is no array, where RESP2 tells that from no string."""
    return b"_\r\n" if protocol == 3 else b"*-1\r\n"


def array(elements: list[bytes]) -> bytes:
    """Return an array of elements that are reply bytes already."""
    # Joined at once: of elements of hundreds of MiB a copy more would be felt.
    return b"".join((b"*%d\r\n" % len(elements), *elements))


def distinct(elements: list[bytes], protocol: int) -> bytes:
    """Return a set of elements that are reply bytes already, in their order."""
    head = b"~" if protocol == 3 else b"*"
    return b"%b%d\r\n%b" % (head, len(elements), b"".join(elements))


def mapping(pairs: Iterable[tuple[bytes, bytes]], protocol: int) -> bytes:
    """Return a map of keys and values that are reply bytes already."""
    flat = [part for pair in pairs for part in pair]
    head = b"%%%d\r\n" % (len(flat) // 2) if protocol == 3 else b"*%d\r\n" % len(flat)
    return head + b"".join(flat)


def _append(parts: list[bytes], value: object, protocol: int) -> None:
    match value:
        case None:
            parts.append(null(protocol))
        case bool():
            parts.append((b"#t\r\n" if value else b"#f\r\n") if protocol == 3 else integer(value))
        case int():
            parts.append(integer(value))
        case float():
            # 17 digits bring every double back, and are what Redis 7.0 sends.
            text = format(value, ".17g").encode()
            parts.append(b",%b\r\n" % text if protocol == 3 else bulk(text))
        case Simple():
            parts.append(b"+%b\r\n" % value.encode())
        case Verbatim():
            parts.append(_verbatim(value.encode(), protocol))
        case str():
            parts.append(bulk(value.encode()))
        case bytes():
            parts.append(bulk(value))
        case _:
            _append_many(parts, value, protocol)


def _verbatim(text: bytes, protocol: int) -> bytes:
    return b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text) if protocol == 3 else bulk(text)


def _append_many(parts: list[bytes], value: object, protocol: int) -> None:
    match value:
        case Mapping():
            size = len(value)
            parts.append(b"%%%d\r\n" % size if protocol == 3 else b"*%d\r\n" % (2 * size))
            elements: Iterable[object] = (part for pair in value.items() for part in pair)
        case set() | frozenset():
            parts.append(b"~%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % len(value))
            elements = value
        case list() | tuple():
            parts.append(b"*%d\r\n" % len(value))
            elements = value
        case _:
            raise TypeError(f"a reply cannot hold {type(value).__name__}")
    for element in elements:
        _append(parts, element, protocol)


# Replies of nodes, taken apart where a handler has to look into one.


def decode(reply: bytes) -> Any:
    """Return the value of a reply: text as bytes, an error line as an exception that is a value.

    Raises hiredis.HiredisError for bytes that are no reply.
    """
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


def elements(reply: bytes) -> list[bytes]:
    """Return the elements of an array, a set or a push, or the keys and values of a map, as bytes.

    A null has none. Raises ValueError for a reply of another type.
    """
    if reply[:1] not in (b"*", b"~", b"%", b">"):
        if reply in (b"$-1\r\n", b"_\r\n"):
            return []
        raise ValueError("no aggregate")
    at = reply.index(b"\r\n") + 2
    count = int(reply[1 : at - 2]) * (2 if reply[:1] == b"%" else 1)
    found = []
    for _ in range(count):
        end = wire.frame_end(reply, at)
        found.append(reply[at:end])
        at = end
    return found
