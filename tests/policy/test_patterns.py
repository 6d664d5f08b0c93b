"""Key patterns: what may be written, and which two can be told apart."""

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.model import EMPTY, Keyspace
from proxy.policy.patterns import (
    KINDS,
    MAX_PATTERN,
    Pattern,
    confused,
    intersects,
    parse,
    parse_characters,
    typed_characters,
)
from proxy.wire.rules import Segment
from tests.policy.rulebook import compiled
from tests.rounds import in_rounds


def test_parts() -> None:
    """A pattern is literal text and named segments in turn; doubled braces are themselves."""
    pattern = parse("a:{x}:{{{n:int}}}{rest:path}")
    assert pattern.parts == (
        b"a:", Segment("x", "text"), b":{", Segment("n", "int"), b"}", Segment("rest", "path"),
    )  # fmt: skip
    assert pattern.names == ("x", "n", "rest")
    assert pattern.literal == b"a::{}"
    assert [pattern.stop(i) for i in (1, 3, 5)] == [ord(":"), ord("}"), None]
    assert parse("é").parts == ("é".encode(),)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (None, "expects a pattern such as"),
        ("", "expects a pattern such as"),
        (7, "expects a pattern such as"),
        ("a:{x", "a single {; write {{"),
        ("a:x}", "a single }; write }}"),
        ("a:*", "* is no wildcard here"),
        ("a\tb", "control character"),
        ("{X}", "is no segment"),
        ("{}", "is no segment"),
        ("{x y}", "is no segment"),
        ("{" + "x" * 33 + "}", "is no segment"),
        ("{x:}", 'allowed: int, uuid, date, hex, ip, text, path'),
        ("{x:integer}", 'did you mean "int"?'),
        ("{x:dat}", 'did you mean "date"?'),
        ("{x}{y}", "follows a segment at once"),
        ("{x}:{x}", "{x} stands in it twice"),
        (":".join(f"{{s{i}}}" for i in range(17)), "more than 16 segments"),
        ("sidecache:{x}", "the proxy's own"),
        ("{rest:path}:a", "it must stand last"),
        ("{n:int}1", "its end cannot be told"),
        ("{h:hex}a", "its end cannot be told"),
        ("{d:date}-x", "its end cannot be told"),
        ("{u:uuid}-x", "its end cannot be told"),
        ("{a:ip}:face", "a part of an IPv6 address"),
        ("{a:ip}:{x}", "a part of an IPv6 address"),
        ("{a:ip}.x", "its end cannot be told"),
        ("x" * (MAX_PATTERN + 1), "more than 512 characters"),
    ],
)  # fmt: skip
def test_what_is_no_pattern(written: object, told: str) -> None:
    """Each pattern that could not be matched, or not for certain, is refused and told why."""
    with pytest.raises(ValueError, match=r".") as refused:
        parse(written)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "written", ["{n:int}-x", "{a:ip}:api", "{a:ip}", "{x}-{y}", "{{", "{h:hex}:"]
)
def test_what_is_a_pattern(written: str) -> None:
    """Ends that can be told are allowed."""
    assert parse(written).text == written


def test_characters() -> None:
    """A set of characters is ranges and single ones; a minus stands last."""
    flags = parse_characters("A-Ca:_-")
    assert {chr(i) for i in range(256) if flags[i]} == set("ABCa:_-")
    assert parse_characters("\x06a")[6] == 1
    for wrong in ("z-a", "a b", "é", "a\n", "\x01-\x06"):
        with pytest.raises(ValueError, match="is no range"):
            parse_characters(wrong)


def test_typed_segments_bring_their_characters() -> None:
    """An address has dots, a number has digits; free text brings nothing of its own."""
    assert typed_characters(parse("a:{x}:{y}")) == frozenset()
    assert typed_characters(parse("a:{x:ip}")) == frozenset(b"0123456789abcdefABCDEF.:")


PAIRS = [
    ("a:{x}", "a:{x}", True),
    ("a:{x}", "a:{y}", True),
    ("a:{x:int}", "a:{x}", False),  # the narrower type wins
    ("a:{x}", "a:b", False),  # literal text wins
    ("a:{x}", "a:{x}:b", False),
    ("{x}-b", "{x}.b", False),  # no key ends in both ways
    ("{x}-b", "{x}.c", False),
    ("{x}-{y}", "{x}.{y}", True),
    ("{x}-a", "{x}.b-a", True),
    ("a:{x}:b", "a:{rest:path}", False),
    ("a:{x:int}-b", "a:{x:int}:b", False),
]


@pytest.mark.parametrize(("one", "other", "same"), PAIRS)
def test_which_patterns_are_confused(one: str, other: str, same: bool) -> None:
    """Two patterns are confused when one key may fit both and no rule says which of them wins."""
    for pair in ((one, other), (other, one)):
        assert bool(list(confused([parse(text) for text in pair]))) is same


WORDS = st.sampled_from(
    ["a", "b", ":", "-", ".", "{x}", "{x:int}", "{x:hex}", "{x:path}", "{x:ip}"]
)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    words = draw(st.lists(WORDS, min_size=1, max_size=5))
    return "".join(w.replace("x", f"x{i}") for i, w in enumerate(words))


LETTERS = {
    "text": frozenset(range(256)) - {58}, "path": frozenset(range(256)),
    "int": frozenset(b"0123456789-"), "hex": frozenset(b"0123456789abcdefABCDEF"),
    "ip": frozenset(b"0123456789abcdefABCDEF.:"),
}  # fmt: skip


def reference(parsed: Pattern, key: bytes) -> bool:
    """Return whether a key fits a pattern, by trying every way to cut it."""

    def fits(index: int, at: int) -> bool:
        if index == len(parsed.parts):
            return at == len(key)
        part = parsed.parts[index]
        if isinstance(part, bytes):
            return key.startswith(part, at) and fits(index + 1, at + len(part))
        stop = parsed.stop(index) if part.kind != "ip" else None
        for end in range(at + 1, len(key) + 1):
            piece = key[at:end]
            if not LETTERS[part.kind].issuperset(piece) or (stop is not None and stop in piece):
                return False
            if part.kind == "int" and (b"-" in piece[1:] or piece == b"-"):
                continue
            last_or_colon = parsed.stop(index) in (None, ord(":"))
            if part.kind == "ip" and last_or_colon and b":" in piece.partition(b".")[2]:
                return False  # what follows the dots of an address is no part of it
            if fits(index + 1, end):
                return True
        return False

    return fits(0, 0)


def keys_up_to(length: int) -> list[bytes]:
    sizes = range(1, length + 1)
    return [bytes(k) for n in sizes for k in itertools.product(b"a1:-.", repeat=n)]


ALL_KEYS = keys_up_to(5)
# Every short key, and of those that fit five parts as many again from all over.
KEYS = [*keys_up_to(4), *ALL_KEYS[len(keys_up_to(4)) :: 7]]


def match(one: str, other: str, keys: list[bytes]) -> None:
    """Compare what is found with the reference, unless the loader refuses the two together."""
    try:
        pair = [parse(one), parse(other)]
    except ValueError:
        return
    if one == other or list(confused(pair)):
        return
    keyspaces = {f"k{i}": Keyspace(key=pattern) for i, pattern in enumerate(pair)}
    rules = compiled(replace(EMPTY, keyspaces=keyspaces))
    meets = intersects(*pair)
    for key in keys:
        fit = {i for i, pattern in enumerate(pair) if reference(pattern, key)}
        found = rules.find_keyspace(key)
        assert (found in fit) if fit else (found == -1), (key, one, other)
        assert meets or len(fit) < 2


@settings(max_examples=60, deadline=None)
@given(patterns(), patterns())
def test_the_matcher_does_what_the_loader_promises(one: str, other: str) -> None:
    """A key is found by a pattern that it fits, and only confused patterns share a rank."""
    match(one, other, KEYS)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_patterns() -> None:
    """The same for three thousand pairs of patterns and every key of five bytes."""
    in_rounds(3000, match, patterns(), patterns(), st.just(ALL_KEYS))


def test_hostile_patterns_are_compared_in_time() -> None:
    """A thousand patterns that end in different ways at one place are compared within a second."""
    for tail in ("x{0}", "x{0}{{b}}"):
        hostile = [parse("{a}" + "-._/"[i % 4] + tail.format(i)) for i in range(1000)]
        started = time.process_time()
        found = len(list(confused(hostile)))
        assert time.process_time() - started < 1
        assert (found > 0) is ("{{b}}" in tail)


def test_kinds_are_the_data_planes() -> None:
    """Every type of segment is one that the data plane knows."""
    for kind in KINDS:
        keyspaces = {"k": Keyspace(key=f"a:{{x:{kind}}}")}
        compiled(replace(EMPTY, keyspaces=keyspaces))
