"""A strict and slow reader of RESP2 and RESP3 replies, written only for tests.

The checker, the differential run and the fake node read with it. It shares no line with
`proxy.wire`, so that a mistake there cannot hide here. It accepts exactly what Redis writes:
one spelling per number, a checked CR LF behind everything, no type that Redis does not send.
"""

import re

_LENGTH = re.compile(rb"-1|0|[1-9][0-9]{0,9}")
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_DOUBLE = re.compile(rb"-?(?:inf|nan|[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_LINES = frozenset(b"+-:,(#_")
_BLOBS = frozenset(b"$=!")
_AGGREGATES = frozenset(b"*%~>|")

# Redis answers nothing deeper than this; a reply that nests further is not from a Redis.
DEEPEST = 16


class Malformed(Exception):
    """The bytes are no reply of a Redis."""


class Incomplete(Exception):
    """The reply has not arrived in full."""


def _line(data: bytes | bytearray, position: int) -> tuple[bytes, int]:
    end = data.find(b"\r", position)
    if end < 0 or end + 1 >= len(data):
        if b"\n" in data[position:] and end < 0:
            raise Malformed("a line feed without its carriage return")
        raise Incomplete
    line = bytes(data[position:end])
    if data[end + 1] != 10 or b"\n" in line:
        raise Malformed(f"a line that does not end in CR LF: {line[:40]!r}")
    return line, end + 2


def _check_line(kind: int, text: bytes) -> None:
    if (
        (kind == 58 and not _INTEGER.fullmatch(text))
        or (kind == 44 and not _DOUBLE.fullmatch(text))
        or (kind == 40 and not re.fullmatch(rb"-?[0-9]+", text))
        or (kind == 35 and text not in (b"t", b"f"))
        or (kind == 95 and text)
    ):
        raise Malformed(f"{chr(kind)}{text[:40]!r}")


def frame_end(data: bytes | bytearray, position: int = 0, depth: int = 0) -> int:
    """Return where the reply that starts at position ends; raise Incomplete or Malformed."""
    if position >= len(data):
        raise Incomplete
    kind = data[position]
    if kind not in _LINES and kind not in _BLOBS and kind not in _AGGREGATES:
        raise Malformed(f"a reply that starts with {bytes(data[position : position + 20])!r}")
    text, after = _line(data, position + 1)
    if kind in _LINES:
        _check_line(kind, text)
        return after
    if not _LENGTH.fullmatch(text) or (text == b"-1" and kind not in b"$*"):
        raise Malformed(f"length {text[:40]!r}")
    length = int(text)
    if length < 0:
        return after
    if kind in _BLOBS:
        if len(data) < after + length + 2:
            raise Incomplete
        if data[after + length : after + length + 2] != b"\r\n":
            raise Malformed("a string without its CR LF")
        return after + length + 2
    if depth >= DEEPEST:
        raise Malformed("nested too deeply")
    for _ in range(length * 2 if kind in b"%|" else length):
        after = frame_end(data, after, depth + 1)
    # An attribute stands in front of the reply that it describes.
    return frame_end(data, after, depth) if kind == 124 else after


Value = bytes | None | tuple[str, object]


def parse(data: bytes | bytearray, position: int = 0) -> tuple[object, int]:
    """Return the reply at position as a value that keeps its type, and where it ends.

    A bulk string is bytes, a null is None; everything else is a pair of the type's first byte and
    its content, so that `:1` and `$1` differ.
    """
    kind = chr(data[position]) if position < len(data) else ""
    end = frame_end(data, position)
    text, after = _line(data, position + 1)
    if kind == "_" or (kind in "$*" and text == b"-1"):
        return (kind, None), end
    if kind == "$":
        return bytes(data[after : end - 2]), end
    if kind in "=!":
        return (kind, bytes(data[after : end - 2])), end
    if ord(kind) in _LINES:
        return (kind, text), end
    items = []
    for _ in range(int(text) * (2 if kind in "%|" else 1)):
        item, after = parse(data, after)
        items.append(item)
    return (kind, items), end


def pack(*words: bytes | str | int) -> bytes:
    """Return a command in its canonical form."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
