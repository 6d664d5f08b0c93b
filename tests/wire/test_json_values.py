"""A value is JSON here when it is for Python's json, less what readers understand differently."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import wire
from tests.rounds import in_rounds, resident

DEPTH = 128
MEMBERS = 131_072
DANGEROUS = ("__proto__", "constructor", "prototype")

quick = settings(max_examples=60, deadline=None)


class Unfit(ValueError):
    """What the reference refuses and Python's json does not."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or any(name in DANGEROUS for name in names):
        raise Unfit
    return dict(pairs)


def _unfit(text: str) -> Any:
    raise Unfit


def fits(data: bytes) -> bool:
    """Return what the reference says: Python's json, and the stricter rules."""
    try:
        # Numbers stay text: Python counts their digits, and so must nobody else.
        value = json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_unfit,
                           parse_int=str, parse_float=str)  # fmt: skip
    except (ValueError, RecursionError):
        return False
    level = [value]
    depth = 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError:
                    return False
            elif isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth <= DEPTH


def fault(data: bytes) -> tuple[str, int] | None:
    found = wire.json_fault(data)
    return None if found is None else (wire.JSON_FAULTS[found[0]], found[1])


@pytest.mark.parametrize(
    ("text", "words", "at"),
    [
        (b"", "ends too early", 0),
        (b" \n", "ends too early", 2),
        (b'{"a":', "ends too early", 5),
        (b'"abc', "ends too early", 4),
        (b'"\xc3', "ends too early", 1),
        (b"[1,]", "syntax", 3),
        (b'{"a":1,}', "syntax", 7),
        (b"{a:1}", "syntax", 1),
        (b"[1}", "syntax", 2),
        (b"1 2", "syntax", 2),
        (b"NaN", "syntax", 0),
        (b"-Infinity", "number", 1),
        (b"tru", "syntax", 0),
        (b"1\0", "syntax", 1),
        (b"'a'", "syntax", 0),
        (b"/**/1", "syntax", 0),
        (b'"\xff"', "not UTF-8", 1),
        (b'"\xc0\xaf"', "not UTF-8", 1),
        (b'"\xed\xa0\x80"', "not UTF-8", 1),
        (b'"\xf4\x90\x80\x80"', "not UTF-8", 1),
        (b'\xef\xbb\xbf"a"', "byte order mark", 0),
        (b'"a\nb"', "control character in a string", 2),
        (rb'"\x41"', "escape", 1),
        (rb'"\u12G4"', "escape", 1),
        (rb'"\ud800"', "lone surrogate", 1),
        (rb'"\udc00\ud800"', "lone surrogate", 1),
        (rb'"\ud800\u0041"', "lone surrogate", 1),
        (b"01", "number", 2),
        (b"1.", "number", 2),
        (b".5", "syntax", 0),
        (b"1e+", "number", 3),
        (b"+1", "syntax", 0),
        (b"[" * 129, "nested too deep", 128),
        (b"[" * 100_000, "nested too deep", 128),
        (b'{"a":1,"b":{"c":1},"a":2}', "duplicate member", 19),
        (rb'{"a":1,"\u0061":2}', "duplicate member", 7),
        (rb'{"\ud83d\ude00":1,"' + "😀".encode() + b'":2}', "duplicate member", 18),
        (b'[{"__proto__":1}]', "member __proto__, constructor or prototype", 2),
        (rb'{"\u005f_proto__":1}', "member __proto__, constructor or prototype", 1),
        (b'{"constructor":1}', "member __proto__, constructor or prototype", 1),
        (b'{"a":{"prototype":1}}', "member __proto__, constructor or prototype", 6),
    ],
)
def test_what_is_wrong_is_said(text: bytes, words: str, at: int) -> None:
    """A value that is refused is refused for what is wrong with it, and where that is."""
    assert fault(text) == (words, at)
    assert not fits(text)


@pytest.mark.parametrize(
    "text",
    [
        b"0", b"-0.0e-0", b"1e999", b'""', b"null", b" [ ] ", b"{}", b'{"":{"":{}}}', b"9" * 10_000,
        b'{"a":{"a":1},"b":{"a":1}}', b'[{"a":1},{"a":1}]', b'{"a":1,"A":2,"a ":3}',
        rb'{"a":1,"\\u0061":2}', rb'"\ud83d\ude00\u0000\/"', b'{"proto":1,"__proto_":2}',
        b'"__proto__"', b'["constructor"]', b"[" * 128 + b"]" * 128, '"é日😀"'.encode(),
        "{'é': 1}".replace("'", '"').encode(),
    ],
)  # fmt: skip
def test_what_is_right_passes(text: bytes) -> None:
    """A value that every reader understands in the same way passes."""
    assert fault(text) is None
    assert fits(text)


names = st.text(max_size=3) | st.sampled_from(["a", "b", "a\\", *DANGEROUS])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=30,
)
TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b" ", b'"a"', b'"b"', rb'"\u0061"', b'"a":', b'"b":1',
    b"1", b"-0", b"01", b"1.5", b"1e5", b"2e", b"true", b"false", b"null", b"NaN", b"\0", b'"',
    b"\\", rb"\u", rb'"\ud800"', rb'"\ud83d\ude00"', "é".encode(), b"\xff", b"\n", b"\x1f",
]  # fmt: skip


@quick
@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_what_json_writes_is_judged_as_it_reads(
    value: Any, ascii: bool, indent: int | None
) -> None:
    """What Python's json writes passes, but for what it should not have written."""
    data = json.dumps(value, ensure_ascii=ascii, indent=indent).encode(errors="surrogatepass")
    assert (fault(data) is None) == fits(data)


@quick
@given(values, st.data())
def test_a_byte_that_is_wrong(value: Any, data: st.DataObject) -> None:
    """A value with bytes changed, cut or put in is judged as the reference judges it."""
    text = bytearray(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.sampled_from(TOKENS) | st.binary(max_size=2))
        text[at : at + data.draw(st.integers(0, 2))] = piece
    assert (fault(bytes(text)) is None) == fits(bytes(text))


streams = st.lists(st.sampled_from(TOKENS), max_size=14).map(b"".join)


def judged_alike(text: bytes) -> None:
    assert (fault(text) is None) == fits(text)


@quick
@given(streams)
def test_any_tokens(text: bytes) -> None:
    """Tokens in any order are JSON exactly where the reference says so."""
    judged_alike(text)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_thousand_streams_of_tokens() -> None:
    """Tokens in any order are JSON exactly where the reference says so, at scale."""
    in_rounds(100_000, judged_alike, streams | streams.map(lambda text: b"[%b]" % text))


@quick
@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    """Bytes of any kind are judged, within a string too, as the reference judges them."""
    assert (fault(data) is None) == fits(data)
    assert (fault(b'"%b"' % data) is None) == fits(b'"%b"' % data)


@quick
@given(st.lists(names, max_size=8), st.data())
def test_names_are_compared_as_what_they_mean(found: list[str], data: st.DataObject) -> None:
    """However the names of an object are spelled, they are told apart by what they mean."""

    def spelled(name: str) -> str:
        return "".join(
            json.dumps(mark, ensure_ascii=data.draw(st.booleans()))[1:-1]
            if data.draw(st.booleans())
            else "".join(f"\\u{part:04x}" for part in _halves(mark))
            for mark in name
        )

    text = "{" + ",".join(f'"{spelled(name)}":0' for name in found) + "}"
    raw = text.encode(errors="surrogatepass")
    assert (fault(raw) is None) == fits(raw)


def _halves(mark: str) -> list[int]:
    data = mark.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2]) for i in range(0, len(data), 2)]


@pytest.mark.parametrize("count", [10, 70, 1000, 100_000])
def test_many_members(count: int) -> None:
    """Objects of any size are looked through, also with large objects within them."""
    body = ",".join(f'"{i}":0' for i in range(count))
    data = f'{{{body},"x":{{{body}}},"y":1}}'.encode()
    assert fault(data) is None or count * 2 > MEMBERS
    for again in random.Random(count).sample(range(count), min(count, 100_000 // count * 10)):
        words, _ = fault(b'{%b,"%d":1}' % (body.encode(), again)) or ("", 0)
        assert words == "duplicate member"
    assert fault(b'{"0":1}') is None


def test_more_members_than_are_told_apart() -> None:
    """Members of open objects have a limit; those of objects that have ended do not count."""
    most = ",".join(f'"{i:x}":0' for i in range(MEMBERS))
    assert fault(f"{{{most}}}".encode()) is None
    assert fault(f"[{{{most}}},{{{most}}}]".encode()) is None
    words, _ = fault(f'{{{most},"more":0}}'.encode()) or ("", 0)
    assert words == "too many members"


def test_nothing_is_kept() -> None:
    """Refused values and large ones leave nothing behind: neither names nor memory."""
    large = b"{" + b",".join(rb'"\u0061%d":0' % i for i in range(20_000))

    def judge() -> None:
        for _ in range(5):
            assert fault(large + b',"a1":1}') == ("duplicate member", len(large) + 1)
            assert fault(b'{"a1":1,"b":2') is not None
            assert fault(b'{"a1":1,"b":2}') is None

    judge()
    before = resident()
    judge()
    assert resident() - before < 2 << 20


def test_views_are_judged_too() -> None:
    """Any buffer is taken, and only its own bytes are looked at."""
    assert wire.json_fault(memoryview(b'x{"a":1}x')[1:-1]) is None
    assert wire.json_fault(bytearray(b"[1]")) is None
