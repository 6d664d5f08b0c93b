"""Recorded commands as text: what MONITOR prints, and what one types into redis-cli.

    1700000000.123456 [0 127.0.0.1:5000] "SET" "seat:e1:s2" "x"
    SET seat:e1:s2 "x y"
    user=booking GET seat:e1:s2

`replay` judges them. Always true: the file is read line by line in bounded memory, and a line that
cannot be read is told with its number and never guessed at. What MONITOR has shortened, as the
proxy's own does, is such a line: its sizes would be judged wrong.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# Longer lines hold values that no policy lets through.
MOST_BYTES = 4 << 20

_USER = re.compile(rb'user=([^\s"\']+)[ \t]+')
_STAMP = re.compile(rb'[0-9]+\.[0-9]+ \[[0-9]+ [^"]*\] +(?=")')
_WORD = re.compile(
    rb'\s*(?:"([^"\\]*(?:\\.[^"\\]*)*)"|\'([^\'\\]*(?:\\.[^\'\\]*)*)\'|([^\s"\']+))(?=\s|\Z)',
    re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_MEANT = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_SHORTENED = re.compile(rb"\.\.\. \([0-9]+ more (?:bytes|arguments)\)\Z")

# What MONITOR answers before the first command.
_GREETING = b"OK"


class Line(NamedTuple):
    """One line: a command, or why there is none."""

    number: int
    user: str | None
    words: list[bytes]
    wrong: str = ""


def read(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a recording, but for empty ones."""
    number = 0
    while data := file.readline(MOST_BYTES):
        number += 1
        if len(data) == MOST_BYTES and not data.endswith(b"\n"):
            while len(data) == MOST_BYTES and not data.endswith(b"\n"):
                data = file.readline(MOST_BYTES)
            yield Line(number, None, [], f"longer than {MOST_BYTES} bytes")
            continue
        text = data.strip()
        if text and text != _GREETING:
            yield _line(number, text)


def _line(number: int, text: bytes) -> Line:
    user = None
    if found := _USER.match(text):
        user = found[1].decode("utf-8", "surrogateescape")
        text = text[found.end() :]
    stamp = _STAMP.match(text)
    if stamp is not None:
        text = text[stamp.end() :]
    words = _words(text, plain=stamp is None)
    if not words:
        return Line(number, None, [], "quotes that do not go together" if text else "no command")
    if b" more " in text and any(map(_SHORTENED.search, words)):
        return Line(number, None, [], "shortened by MONITOR")
    return Line(number, user, words)


def _words(text: bytes, plain: bool) -> list[bytes]:
    """Return the words of a command, none where they cannot be told apart."""
    # Most lines of MONITOR have nothing to unescape, and a quote within a word would be escaped.
    if not plain and b"\\" not in text and text[-1:] == b'"':
        words = text[1:-1].split(b'" "')
        return [] if any(b'"' in word for word in words) else words
    words, at = [], 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            return []
        double, single, bare = word.groups()
        if double is not None:
            words.append(_ESCAPE.sub(_unescaped, double) if b"\\" in double else double)
        else:
            words.append(bare if single is None else single.replace(b"\\'", b"'"))
        at = word.end()
    return words


def _unescaped(found: re.Match[bytes]) -> bytes:
    digits, letter = found.groups()
    return bytes([int(digits, 16)]) if digits else _MEANT.get(letter, letter)
