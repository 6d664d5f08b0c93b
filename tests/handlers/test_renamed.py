"""Replies that carry key names, for keys that their node knows by another name."""

import pytest

from proxy import errors
from proxy.handlers.renamed import error_names, popped_names, restored, stream_names
from tests.handlers.desk import Desk

NAMES = {b"s:{e}:1": b"s:e:1", b"s:{e}:12": b"s:e:12"}


async def test_popped_key_has_the_clients_name() -> None:
    """LMPOP sends the node's name and answers the client's; elements that look alike stay."""
    desk = Desk()
    client = desk.connect()
    client.send(b"LMPOP", b"2", b"seat_lock:a:1", b"seat_lock:a:2", b"LEFT")
    wanted = [b"LMPOP", b"2", b"seat_lock:{a}:1", b"seat_lock:{a}:2", b"LEFT"]
    assert desk.node(3).commands() == [wanted]
    desk.node(3).answer(b"*2\r\n$15\r\nseat_lock:{a}:2\r\n*1\r\n$15\r\nseat_lock:{a}:2\r\n")
    expected = b"*2\r\n$13\r\nseat_lock:a:2\r\n*1\r\n$15\r\nseat_lock:{a}:2\r\n"
    assert await client.reply() == expected


async def test_streams_in_resp3_have_the_clients_names() -> None:
    """XREAD's map is keyed by the client's names, its entries pass as they are."""
    desk = Desk()
    client = desk.connect()
    client.ask(b"HELLO", b"3")
    client.send(b"XREAD", b"STREAMS", b"seat_lock:a:1", b"0")
    entries = b"*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
    desk.node(3, 3).answer(b"%1\r\n$15\r\nseat_lock:{a}:1\r\n" + entries)
    assert await client.reply() == b"%1\r\n$13\r\nseat_lock:a:1\r\n" + entries


async def test_errors_name_the_clients_key() -> None:
    """NOGROUP quotes a key, and the client never hears of the braces."""
    desk = Desk()
    client = desk.connect()
    client.send(b"XPENDING", b"seat_lock:a:1", b"g")
    desk.node(3).answer(b"-NOGROUP No such key 'seat_lock:{a}:1' or consumer group 'g'\r\n")
    expected = b"-NOGROUP No such key 'seat_lock:a:1' or consumer group 'g'\r\n"
    assert await client.reply() == expected


async def test_keys_of_two_slots_are_refused() -> None:
    """Renamed or not, the keys of one LMPOP live in one slot."""
    client = Desk().connect()
    reply = client.ask(b"LMPOP", b"2", b"seat_lock:a:1", b"seat_lock:b:1", b"LEFT")
    assert reply == errors.CROSSSLOT


async def test_a_group_named_block_is_no_option() -> None:
    """BLOCK as the name of a group is the name of a group."""
    desk = Desk()
    client = desk.connect()
    client.send(b"XREADGROUP", b"GROUP", b"BLOCK", b"c", b"STREAMS", b"seat_lock:a:1", b">")
    assert len(desk.node(3).commands()) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"*-1\r\n", b"*-1\r\n"),
        (b"_\r\n", b"_\r\n"),
        (b"*2\r\n$7\r\ns:{e}:1\r\n*0\r\n", b"*2\r\n$5\r\ns:e:1\r\n*0\r\n"),
        (b"*2\r\n$1\r\nx\r\n*0\r\n", b"*2\r\n$1\r\nx\r\n*0\r\n"),
    ],
)
def test_popped_names(reply: bytes, expected: bytes) -> None:
    """Nulls pass, and a name that was not renamed is kept."""
    assert popped_names(reply, NAMES) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"*-1\r\n", b"*-1\r\n"),
        (b"_\r\n", b"_\r\n"),
        (
            b"*2\r\n*2\r\n$7\r\ns:{e}:1\r\n*0\r\n*2\r\n$8\r\ns:{e}:12\r\n*1\r\n$7\r\ns:{e}:1\r\n",
            b"*2\r\n*2\r\n$5\r\ns:e:1\r\n*0\r\n*2\r\n$6\r\ns:e:12\r\n*1\r\n$7\r\ns:{e}:1\r\n",
        ),
        (
            b"%2\r\n$7\r\ns:{e}:1\r\n*0\r\n$8\r\ns:{e}:12\r\n*0\r\n",
            b"%2\r\n$5\r\ns:e:1\r\n*0\r\n$6\r\ns:e:12\r\n*0\r\n",
        ),
    ],
)
def test_stream_names(reply: bytes, expected: bytes) -> None:
    """Only the places of names are translated, in both protocols."""
    assert stream_names(reply, NAMES) == expected


def test_error_names() -> None:
    """Every name is put back, also one that begins another."""
    line = b"-NOGROUP 's:{e}:12' and 's:{e}:1'\r\n"
    assert error_names(line, NAMES) == b"-NOGROUP 's:e:12' and 's:e:1'\r\n"


@pytest.mark.parametrize(
    ("name", "reply", "wanted"),
    [
        (b"blpop", b"*2\r\n$7\r\ns:{e}:1\r\n$7\r\ns:{e}:1\r\n",
         b"*2\r\n$5\r\ns:e:1\r\n$7\r\ns:{e}:1\r\n"),
        (b"bzpopmin", b"*3\r\n$7\r\ns:{e}:1\r\n$1\r\nm\r\n$1\r\n1\r\n",
         b"*3\r\n$5\r\ns:e:1\r\n$1\r\nm\r\n$1\r\n1\r\n"),
        (b"blpop", b"*-1\r\n", b"*-1\r\n"),
        (b"blpop", b"_\r\n", b"_\r\n"),
        (b"get", b"$7\r\ns:{e}:1\r\n", b"$7\r\ns:{e}:1\r\n"),
        (b"get", b"-ERR of s:{e}:1\r\n", b"-ERR of s:{e}:1\r\n"),
        (b"xclaim", b"-NOGROUP s:{e}:12\r\n", b"-NOGROUP s:e:12\r\n"),
    ],
)  # fmt: skip
def test_one_reply_of_many(name: bytes, reply: bytes, wanted: bytes) -> None:
    """Elements of a transaction are translated by what their command answers, and no others."""
    assert restored(name, reply, NAMES) == wanted
