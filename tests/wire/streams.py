"""Byte streams for differential tests: legal ones, nearly legal ones, and ways to cut them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hypothesis import strategies as st

from tests.wire import model

# Lengths and counts that some parser somewhere reads differently from another.
NUMBERS = [
    b"0", b"1", b"2", b"3", b"-1", b"-0", b"-2", b"-10", b"01", b"+1", b" 1", b"1 ", b"1_0", b"",
    b"0x1", b"1.0", b"9999999999", b"99999999999", b"2147483648", b"4294967297", b"1048576",
    b"1048577", b"536870912", b"536870913", b"\xd9\xa1",
]  # fmt: skip
ENDS = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"xx", b"\rX", b""]

words = st.binary(max_size=12) | st.sampled_from([b"GET", b"$1\r\n", b"*1\r\n", b"\r\n", b"a" * 70])
frames = st.lists(words, min_size=1, max_size=5).map(model.frame)
LINE_WORDS = [
    b"GET", b"k", b'"a\\x41\\n"', b"'it\\'s'", b'""', b" ", b"\t", b'"', b"\\", b"\0", b"k\vk",
    b"\f", b'"\\xaF\\x4"', b'"\\q\\r\\t\\b\\a\\""', b'k"k"', b"'\\n", b"_", b";",
]  # fmt: skip
STRAY = [
    b"*1\r\n$4\r\nPINGxx", b"*1\rX$4\rXPINGXX", b"PING\0X\r\n", b"POST /\r\n", b"hOsT: a\r\n",
    b"host:a\r\n", model.frame([b"post"]), model.frame([b"Host:", b"a"]),
]  # fmt: skip
lines = st.lists(st.sampled_from(LINE_WORDS), max_size=5).map(
    lambda parts: b" ".join(parts) + b"\r\n"
)
tokens = st.one_of(
    st.tuples(st.sampled_from([b"*", b"$"]), st.sampled_from(NUMBERS), st.sampled_from(ENDS)).map(
        b"".join
    ),
    st.sampled_from(STRAY),
    st.binary(max_size=6),
)
request_streams = st.lists(frames | frames | lines | tokens, max_size=6).map(b"".join)

bulks = st.binary(max_size=8).map(lambda text: b"$%d\r\n%b\r\n" % (len(text), text))
simple = st.sampled_from(
    [b"+OK\r\n", b"-ERR no\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n",
     b",inf\r\n", b"(12\r\n", b"=5\r\ntxt:a\r\n", b"!3\r\nERR\r\n", b"*0\r\n", b"%0\r\n"]
)  # fmt: skip


def _nested(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def whole(kind: bytes, items: list[bytes]) -> bytes:
        pairs = kind in (b"%", b"|")
        count = len(items) // 2 if pairs else len(items)
        body = b"".join(items[: count * 2] if pairs else items)
        return kind + b"%d\r\n" % count + body + (b"+described\r\n" if kind == b"|" else b"")

    kinds = st.sampled_from([b"*", b"~", b"%", b"|", b">"])
    return st.builds(whole, kinds, st.lists(children, max_size=4))


replies = st.recursive(simple | bulks, _nested, max_leaves=8)
reply_tokens = st.tuples(
    st.sampled_from([b"$", b"*", b"%", b"~", b"|", b">", b"=", b"!", b"+", b":", b"x"]),
    st.sampled_from(NUMBERS),
    st.sampled_from(ENDS),
).map(b"".join)
reply_streams = st.lists(replies | replies | reply_tokens, max_size=5).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> bytes:
    """A stream of which one byte may be changed, lost or doubled."""
    data = draw(streams)
    change = draw(st.sampled_from(["none", "none", "replace", "lose", "double"]))
    if not data or change == "none":
        return data
    at = draw(st.integers(0, len(data) - 1))
    if change == "replace":
        return data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    return data[:at] + (data[at + 1 :] if change == "lose" else data[at:][:1] + data[at:])


def cuts(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Return the data cut at these places, which are taken modulo its length."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[one:two] for one, two in pairwise(at)]


def every_cut(data: bytes) -> Iterator[list[bytes]]:
    """Yield the data whole, byte by byte, and cut in two at every place."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield from ([data[:i], data[i:]] for i in range(1, len(data)))
