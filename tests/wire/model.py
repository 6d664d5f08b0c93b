"""The reference that the data plane is compared with: slow and obvious.

Two parsers that look at whole byte strings from the start, a reader of inline commands, the slot of
a key by the standard library's CRC, and the place of a key in a pattern. Nothing here is shared
with `proxy.wire` but the tables of rows.
"""

import binascii
import re
from collections.abc import Sequence
from typing import NamedTuple

from proxy import keys
from proxy.commands import Row

DIGITS = 10
LINE_BYTES = 65536
MOST_ELEMENTS = 10**12


class Bounds(NamedTuple):
    """What one frame may hold."""

    words: int = 1_048_576
    word_bytes: int = 536_870_912
    inline_bytes: int = 65_536


class Incomplete(Exception):
    """The bytes are the beginning of something legal."""


class Fault(Exception):
    """The bytes cannot be continued to anything legal; the first argument is the error line."""


BAD_COUNT = b"-ERR Protocol error: invalid multibulk length\r\n"
BAD_LENGTH = b"-ERR Protocol error: invalid bulk length\r\n"
BAD_TYPE = b"-ERR Protocol error: expected '$'\r\n"
BAD_WORD = b"-ERR Protocol error: expected '$', got '%b'\r\n"
BAD_TERMINATOR = b"-ERR Protocol error: expected CR LF after a bulk\r\n"
TOO_BIG_INLINE = b"-ERR Protocol error: too big inline request\r\n"
UNBALANCED = b"-ERR Protocol error: unbalanced quotes in request\r\n"
NOT_MULTIBULK = b"-ERR Protocol error: expected '*' or an inline command\r\n"
SPEAKS_HTTP = b"-ERR Protocol error: this port speaks the Redis protocol\r\n"


def find_keys(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    """Return the positions of a command's keys, None where they are not certain."""
    return keys.find_keys(row, arguments)


def key_slot(key: bytes) -> int:
    """Return the hash slot of a key: of its hash tag, where it has one that is not empty."""
    tagged = re.match(rb"[^{]*\{([^}]+)\}", key, re.DOTALL)
    return binascii.crc_hqx(tagged.group(1) if tagged else key, 0) % 16384


def frame(words: Sequence[bytes]) -> bytes:
    """Return the canonical form of a command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def number(data: bytes, at: int, fault: bytes, negative: bool) -> tuple[int, int]:
    """Return a header's number and where the next line begins."""
    sign = negative and data[at : at + 1] == b"-"
    first = at + sign
    text = re.match(rb"[0-9]*", data[first:]).group()  # type: ignore[union-attr]
    rest = data[first + len(text) :]
    if len(text) > DIGITS or (len(text) > 1 and text.startswith(b"0")):
        raise Fault(fault)
    if not rest:
        raise Incomplete
    if not text or rest[:1] != b"\r" or (sign and text == b"0"):
        raise Fault(fault)
    if len(rest) == 1:
        raise Incomplete
    if rest[1:2] != b"\n":
        raise Fault(fault)
    return int(text) * (-1 if sign else 1), first + len(text) + 2


def bulk(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """Return the bytes of a bulk whose header is read, and where the next line begins."""
    end = at + size
    if len(data) < end + 2:
        raise Incomplete
    if data[end : end + 2] != b"\r\n":
        raise Fault(BAD_TERMINATOR)
    return data[at:end], end + 2


def multibulk(data: bytes, at: int, bounds: Bounds) -> tuple[list[bytes], int]:
    """Return the words of the request at "*", and where it ends."""
    count, at = number(data, at + 1, BAD_COUNT, True)
    if count > bounds.words:
        raise Fault(BAD_COUNT)
    words = []
    for _ in range(count):
        if at >= len(data):
            raise Incomplete
        if (found := data[at : at + 1]) != b"$":
            raise Fault(BAD_WORD % (b" " if found in b"\r\n" else found))
        size, at = number(data, at + 1, BAD_LENGTH, False)
        if size > bounds.word_bytes:
            raise Fault(BAD_LENGTH)
        word, at = bulk(data, at, size)
        words.append(word)
    return words, at


ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
QUOTED = rb'"((?:\\.|[^"\\])*)"'
# Between single quotes a backslash is itself, unless a quote follows: that is then never the end.
SINGLE = rb"'((?:\\'|[^'])*+)'"


def unescape(text: bytes) -> bytes:
    """Return what stands between double quotes, read as redis-cli does."""
    pattern = rb"\\x([0-9a-fA-F]{2})|\\(.)"

    def plain(found: re.Match[bytes]) -> bytes:
        if found.group(1):
            return bytes([int(found.group(1), 16)])
        return ESCAPES.get(found.group(2), found.group(2))

    return re.sub(pattern, plain, text, flags=re.DOTALL)


def inline_words(line: bytes, bounds: Bounds = Bounds()) -> list[bytes]:  # noqa: B008
    """Return the words of an inline command."""
    spaces = b" \t\n\r\v\f"
    words: list[bytes] = []
    at = 0
    while True:
        while at < len(line) and line[at] in spaces:
            at += 1
        if at == len(line):
            return words
        word = b""
        while at < len(line) and line[at] not in b" \t\n\r":
            if line[at : at + 1] in (b'"', b"'"):
                double = line[at : at + 1] == b'"'
                found = re.compile(QUOTED if double else SINGLE, re.DOTALL).match(line, at)
                if found is None or (found.end() < len(line) and line[found.end()] not in spaces):
                    raise Fault(UNBALANCED)
                text = found.group(1)
                word += unescape(text) if double else text.replace(b"\\'", b"'")
                at = found.end()
                break
            word += line[at : at + 1]
            at += 1
        if len(words) == bounds.words or len(word) > bounds.word_bytes:
            raise Fault(TOO_BIG_INLINE)
        words.append(word)


def inline(data: bytes, at: int, bounds: Bounds) -> tuple[list[bytes], int]:
    """Return the words of the inline request at `at`, and where its line ends."""
    if not re.match(rb"[\t-\r -#%-~]", data[at:]):
        raise Fault(NOT_MULTIBULK)
    feed = data.find(b"\n", at, at + bounds.inline_bytes)
    if feed < 0:
        if len(data) - at >= bounds.inline_bytes:
            raise Fault(TOO_BIG_INLINE)
        raise Incomplete
    line = data[at:feed].removesuffix(b"\r")
    if b"\0" in line:
        raise Fault(UNBALANCED)
    return inline_words(line, bounds), feed + 1


def requests(data: bytes, bounds: Bounds = Bounds()) -> tuple[list[list[bytes]], bytes | None]:  # noqa: B008
    """Return the commands in a stream, and the error line on which it ends, if it does."""
    found = []
    at = 0
    try:
        while at < len(data):
            read = multibulk if data[at : at + 1] == b"*" else inline
            words, at = read(data, at, bounds)
            if words and words[0].lower() in (b"post", b"host:"):
                raise Fault(SPEAKS_HTTP)
            if words:
                found.append(words)
    except Fault as fault:
        return found, fault.args[0]
    except Incomplete:
        pass
    return found, None


def reply_end(data: bytes, at: int) -> int:
    """Return where the reply at `at` ends; nesting is a count of what is still to come."""
    left = 1
    while left:
        if at >= len(data):
            raise Incomplete
        kind = data[at : at + 1]
        if kind in (b"$", b"=", b"!"):
            size, at = number(data, at + 1, BAD_LENGTH, True)
            if size < -1:
                raise Fault(BAD_LENGTH)
            if size >= 0:
                at = bulk(data, at, size)[1]
            left -= 1
        elif kind in (b"*", b"~", b">", b"%", b"|"):
            count, at = number(data, at + 1, BAD_COUNT, True)
            if count < -1:
                raise Fault(BAD_COUNT)
            left += max(count, 0) * (2 if kind in (b"%", b"|") else 1)
            if left > MOST_ELEMENTS and count > 0:
                raise Fault(BAD_COUNT)
            left -= kind != b"|"
        elif kind in (b"+", b"-", b":", b"_", b"#", b",", b"("):
            end = data.find(b"\r", at + 1)
            if (len(data) if end < 0 else end) - at - 1 > LINE_BYTES:
                raise Fault(TOO_BIG_INLINE)
            if end < 0 or end + 1 >= len(data):
                raise Incomplete
            if data[end + 1 : end + 2] != b"\n":
                raise Fault(BAD_TERMINATOR)
            at, left = end + 2, left - 1
        else:
            raise Fault(BAD_TYPE)
    return at


def replies(data: bytes) -> tuple[list[bytes], bool]:
    """Return the whole replies of a stream, and whether it ends in bytes that are none."""
    found = []
    at = 0
    try:
        while at < len(data):
            end = reply_end(data, at)
            found.append(data[at:end])
            at = end
    except Fault:
        return found, True
    except Incomplete:
        pass
    return found, False
