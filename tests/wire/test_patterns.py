"""Which keyspace a key is of."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.rules import Segment
from tests.wire.stage import keyspace, ruleset

SPACES: dict[str, list[bytes | Segment]] = {
    "user": [b"user:", Segment("id", "int")],
    "me": [b"user:me"],
    "profile": [b"user:", Segment("id", "int"), b":profile"],
    "any": [b"user:", Segment("id", "text")],
    "uuid": [b"s:", Segment("id", "uuid")],
    "hex": [b"s:", Segment("id", "hex")],
    "day": [b"d:", Segment("day", "date"), b":", Segment("n", "int")],
    "dash": [b"p:", Segment("a", "text"), b"-", Segment("b", "text")],
    "path": [b"f:", Segment("path", "path")],
    "ip": [b"ip:", Segment("ip", "ip"), b":api"],
}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (b"user:7", "user"),
        (b"user:-7", "user"),
        (b"user:-", "any"),
        (b"user:7-8", "any"),
        (b"user:me", "me"),
        (b"user:mex", "any"),
        (b"user:7:profile", "profile"),
        (b"user:x:profile", None),
        (b"user:", None),
        (b"user", None),
        (b"User:7", None),
        (b"user:7:", None),
        (b"s:00000000-0000-0000-0000-00000000000A", "uuid"),
        (b"s:00000000-0000-0000-0000-00000000000", None),
        (b"s:00ff", "hex"),
        (b"s:00fg", None),
        (b"d:2024-01-31:5", "day"),
        (b"d:2024/01/31:5", None),
        (b"p:a-b", "dash"),
        (b"p:a-b-c", "dash"),
        (b"p:-b", None),
        (b"p:a-", None),
        (b"f:a:b:c", "path"),
        (b"f:", None),
        (b"ip:10.0.0.1:api", "ip"),
        (b"ip:2001:db8::1:api", "ip"),
        (b"ip:10.0.0.1:apix", None),
        (b"", None),
    ],
)
def test_keyspace_of_a_key(key: bytes, name: str | None) -> None:
    """A key belongs to the keyspace with the narrowest pattern that fits all of it."""
    rules = ruleset(keyspaces=[keyspace(name, pattern) for name, pattern in SPACES.items()])
    index = rules.find_keyspace(key)
    assert (list(SPACES)[index] if index >= 0 else None) == name


def test_two_keyspaces_of_one_pattern() -> None:
    """Names of segments do not tell patterns apart."""
    with pytest.raises(ValueError, match="two keyspaces have one pattern"):
        ruleset(
            keyspaces=[keyspace(name, [b"a:", Segment(name, "text")]) for name in ("one", "two")]
        )


TEXT = Segment("part", "text")
literals = st.text("ab:-", min_size=1, max_size=5).map(str.encode)
shapes = st.lists(literals, min_size=1, max_size=4)


def expression(pattern: list[bytes | Segment]) -> re.Pattern[bytes]:
    """Return the same as an expression: a text ends at a colon, or where a literal begins."""
    pieces = []
    for part, after in zip(pattern, [*pattern[1:], b":"], strict=True):
        stop = after[:1] if isinstance(after, bytes) else b":"
        pieces.append(
            re.escape(part) if isinstance(part, bytes) else b"[^:" + re.escape(stop) + b"]+"
        )
    return re.compile(b"".join(pieces), re.DOTALL)


@given(st.lists(shapes, min_size=1, max_size=12), st.lists(literals, min_size=1, max_size=20))
@settings(max_examples=80, deadline=None)
def test_as_an_expression_would(shapes: list[list[bytes]], keys: list[bytes]) -> None:
    """A key has a keyspace exactly where one of the patterns fits all of it."""
    patterns: dict[re.Pattern[bytes], list[bytes | Segment]] = {}
    for shape in shapes:
        pattern = [piece for literal in shape for piece in (literal, TEXT)][:-1]
        patterns.setdefault(expression(pattern), pattern)
        patterns.setdefault(expression([*pattern, TEXT]), [*pattern, TEXT])
    rules = ruleset(keyspaces=[keyspace(str(i), row) for i, row in enumerate(patterns.values())])
    for key in [*keys, *[a + b for a in keys for b in keys]]:
        found = rules.find_keyspace(key)
        fitting = [i for i, rule in enumerate(patterns) if rule.fullmatch(key)]
        assert found in fitting if fitting else found == -1
