"""The tests' own reader of replies: strict, and of one mind with hiredis about what it accepts."""

import hiredis
import pytest

from tests.replies import Incomplete, Malformed, frame_end, pack, parse

WHOLE = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-12\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
    b"%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b",inf\r\n",
    b"=6\r\ntxt:ab\r\n",
    b">2\r\n+a\r\n+b\r\n",
]

BROKEN = [
    b"OK\r\n",
    b"$1\r\nab\r\n",
    b"$01\r\na\r\n",
    b"$+1\r\na\r\n",
    b":1_0\r\n",
    b":007\r\n",
    b"+OK\rX",
    b"+OK\n\r\n",
    b"%-1\r\n",
    b"#x\r\n",
    b"*1\r\n" * 20 + b":1\r\n",
]


@pytest.mark.parametrize("frame", WHOLE)
def test_a_whole_reply_ends_where_hiredis_sees_its_end(frame: bytes) -> None:
    """A well-formed reply is measured exactly, with anything behind it."""
    assert frame_end(frame + b"+next\r\n") == len(frame)
    reader = hiredis.Reader(protocolError=ValueError)
    reader.feed(frame)
    assert reader.gets() is not False


@pytest.mark.parametrize("frame", WHOLE)
def test_every_beginning_of_a_reply_is_incomplete(frame: bytes) -> None:
    """No prefix of a reply is taken for a reply or for nonsense."""
    for size in range(len(frame)):
        with pytest.raises(Incomplete):
            frame_end(frame[:size])


@pytest.mark.parametrize("frame", BROKEN)
def test_what_redis_never_writes_is_malformed(frame: bytes) -> None:
    """Lax numbers, wrong terminators and unknown types are refused."""
    with pytest.raises(Malformed):
        frame_end(frame)


def test_values_keep_their_type() -> None:
    """Replies of different types with the same text differ when parsed."""
    assert parse(b"$1\r\n1\r\n")[0] != parse(b":1\r\n")[0] != parse(b"+1\r\n")[0]
    assert parse(pack("SET", "k", 1))[0] == ("*", [b"SET", b"k", b"1"])
