"""Python values as reply bytes."""

import hiredis
import pytest

from proxy.resp import Simple, Verbatim, array, bulk, decode, elements, encode, mapping, null_array


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        (None, b"$-1\r\n", b"_\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        (False, b":0\r\n", b"#f\r\n"),
        (-5, b":-5\r\n", b":-5\r\n"),
        (0.1, b"$19\r\n0.10000000000000001\r\n", b",0.10000000000000001\r\n"),
        (3.0, b"$1\r\n3\r\n", b",3\r\n"),
        (float("inf"), b"$3\r\ninf\r\n", b",inf\r\n"),
        (b"\r\n\0", b"$3\r\n\r\n\0\r\n", b"$3\r\n\r\n\0\r\n"),
        ("é", b"$2\r\n\xc3\xa9\r\n", b"$2\r\n\xc3\xa9\r\n"),
        (Simple("OK"), b"+OK\r\n", b"+OK\r\n"),
        (Verbatim("hi\n"), b"$3\r\nhi\n\r\n", b"=7\r\ntxt:hi\n\r\n"),
        ([], b"*0\r\n", b"*0\r\n"),
        ([1, [b"a", None]], b"*2\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n",
         b"*2\r\n:1\r\n*2\r\n$1\r\na\r\n_\r\n"),
        ({"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        (frozenset([1]), b"*1\r\n:1\r\n", b"~1\r\n:1\r\n"),
    ],
)  # fmt: skip
def test_values(value: object, resp2: bytes, resp3: bytes) -> None:
    """A value is what Redis sends for it in each protocol."""
    assert encode(value, 2) == resp2
    assert encode(value, 3) == resp3


def test_what_has_no_reply_is_refused() -> None:
    """A value of no reply type is a mistake of ours and says so."""
    with pytest.raises(TypeError, match="cannot hold object"):
        encode([object()], 2)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_reader_gets_the_value_back(protocol: int) -> None:
    """What is encoded parses, to the last byte, as one reply."""
    value = {b"list": [1, None, b"x" * 1000], b"empty": [], b"map": {b"a": b"b"}}
    reader = hiredis.Reader()
    reader.feed(encode(value, protocol))
    found = reader.gets()
    if protocol == 3:
        assert found == value
    assert reader.gets() is False


def test_assembled_replies_are_the_same() -> None:
    """Putting encoded parts together gives what encoding the whole gives."""
    assert array([bulk(b"a"), bulk(b"b")]) == encode([b"a", b"b"], 2)
    for protocol in (2, 3):
        assert mapping([(bulk(b"a"), bulk(b"b"))], protocol) == encode({b"a": b"b"}, protocol)


def test_elements_of_every_aggregate() -> None:
    """Maps give keys and values in turn, nulls give nothing, and a string is no aggregate."""
    assert elements(b"%1\r\n+a\r\n:1\r\n") == [b"+a\r\n", b":1\r\n"]
    assert elements(b"~1\r\n:1\r\n") == [b":1\r\n"]
    assert elements(b"_\r\n") == elements(b"$-1\r\n") == []
    with pytest.raises(ValueError, match="aggregate"):
        elements(b"$1\r\na\r\n")


def test_no_array() -> None:
    """RESP2 tells no array from no string; RESP3 has one null for both."""
    assert null_array(2) == b"*-1\r\n"
    assert null_array(3) == b"_\r\n"


def test_values_of_replies() -> None:
    """A reply's value has text as bytes, and an error in it is a value too."""
    assert decode(b"*2\r\n$1\r\na\r\n:1\r\n") == [b"a", 1]
    assert isinstance(decode(b"-ERR no\r\n"), hiredis.ReplyError)
    with pytest.raises(hiredis.HiredisError):
        decode(b"no reply\r\n")
