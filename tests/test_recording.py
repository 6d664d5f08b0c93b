"""Recorded commands as text."""

import io

import pytest

from proxy import recording
from proxy.recording import Line

MONITORED = b"1700000000.123456 [0 127.0.0.1:5000] "


def read(*lines: bytes) -> list[Line]:
    return list(recording.read(io.BytesIO(b"\n".join(lines))))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (MONITORED + b'"SET" "k" "v"', [b"SET", b"k", b"v"]),
        (MONITORED + b'"SET" "a b" ""', [b"SET", b"a b", b""]),
        (MONITORED + rb'"SET" "k" "\"\\\n\x00\xff\" \"x"', [b"SET", b"k", b'"\\\n\x00\xff" "x']),
        (b'1.5 [3 [::1]:5000] "PING"', [b"PING"]),
        (b'1.5 [0 unix:/run/redis.sock] "PING"', [b"PING"]),
        (b'1.5 [0 lua] "GET" "k"', [b"GET", b"k"]),
        (b"SET k v\r", [b"SET", b"k", b"v"]),
        (b"  SET 'a \\'b' \"c\\td\"  ", [b"SET", b"a 'b", b"c\td"]),
    ],
)
def test_lines(line: bytes, words: list[bytes]) -> None:
    """What MONITOR prints and what one types are taken apart as Redis does."""
    assert read(line) == [Line(1, None, words)]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b'SET a "b', "quotes that do not go together"),
        (b'SET k {"a":1}', "quotes that do not go together"),
        (MONITORED + b'"SET" "k', "quotes that do not go together"),
        (MONITORED + b'"SET" "k"v"', "quotes that do not go together"),
        (MONITORED + b'"SET" "k" "vvv... (12 more bytes)"', "shortened by MONITOR"),
        (MONITORED + b'"DEL" "k" "... (12 more arguments)"', "shortened by MONITOR"),
        (b"GET " + b"k" * recording.MOST_BYTES, f"longer than {recording.MOST_BYTES} bytes"),
    ],
)
def test_lines_that_cannot_be_read(line: bytes, wrong: str) -> None:
    """A line that is no command is told with its number, and the next one is read."""
    assert read(b"", line, b"PING") == [
        Line(2, None, [], wrong),
        Line(3, None, [b"PING"]),
    ]


def test_users() -> None:
    """Whoever sends a command may stand before it, in both forms."""
    lines = read(b"OK", b"user=booking GET k", b"user=b " + MONITORED + b'"GET" "k"')
    assert lines == [Line(2, "booking", [b"GET", b"k"]), Line(3, "b", [b"GET", b"k"])]
