"""Commands that split over slots."""

import asyncio

import pytest

from proxy import errors
from proxy.handlers.fanout import IN_A_TURN
from tests.handlers.desk import Desk

# Keys of the default cluster: a (slot 15495) and c (7365) live apart, b is at c's node (3300).
# Keys of one hash tag share a slot.


async def test_one_sub_command_per_slot() -> None:
    """Keys of a slot travel together, whatever stands between them, and nothing else does."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"{a}1", b"b", b"{a}2", b"c", b"{a}1")
    assert desk.node(1).commands() == [[b"MGET", b"{a}1", b"{a}2", b"{a}1"]]
    assert sorted(desk.node(0).commands()) == [[b"MGET", b"b"], [b"MGET", b"c"]]


async def test_mget_keeps_positions() -> None:
    """Elements stand where their keys stood, nulls and repeated keys included."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"{a}1", b"b", b"{a}2", b"{a}1")
    desk.node(0).answer(b"*1\r\n$-1\r\n")
    desk.node(1).answer(b"*3\r\n$3\r\none\r\n$0\r\n\r\n$3\r\none\r\n")
    reply = b"*4\r\n$3\r\none\r\n$-1\r\n$0\r\n\r\n$3\r\none\r\n"
    assert await client.reply() == reply


async def test_parts_are_queued_before_what_follows() -> None:
    """A GET behind a split MSET of the same client reaches the node behind the MSET's part."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MSET", b"a", b"1", b"b", b"2")
    client.send(b"GET", b"a")
    assert desk.node(1).commands() == [[b"MSET", b"a", b"1"], [b"GET", b"a"]]
    desk.node(1).answer(b"+OK\r\n", b"$1\r\n1\r\n")
    desk.settle()
    assert client.take() == b""
    desk.node(0).answer(b"+OK\r\n")
    assert await client.reply() == b"+OK\r\n$1\r\n1\r\n"


async def test_mset_keeps_values_with_their_keys() -> None:
    """A key that is set twice keeps the order of its values, which is what decides."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MSET", b"{a}1", b"old", b"b", b"2", b"{a}1", b"new")
    assert desk.node(1).commands() == [[b"MSET", b"{a}1", b"old", b"{a}1", b"new"]]
    assert desk.node(0).commands() == [[b"MSET", b"b", b"2"]]


@pytest.mark.parametrize("command", [b"DEL", b"UNLINK", b"EXISTS", b"TOUCH"])
async def test_counts_are_added(command: bytes) -> None:
    """What each slot counted is one number for the client."""
    desk = Desk()
    client = desk.connect()
    client.send(command, b"a", b"b", b"c")
    desk.node(0).answer(b":1\r\n", b":0\r\n")
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":2\r\n"


async def test_an_error_tells_how_many_parts_took_effect() -> None:
    """The first error is the reply of a split DEL, with the number of parts that ran."""
    desk = Desk()
    client = desk.connect()
    client.send(b"DEL", b"a", b"b", b"c")
    desk.node(0).answer(b":1\r\n", b"-OOM command not allowed.\r\n")
    desk.node(1).answer(b"-ERR another\r\n")
    expected = b"-OOM command not allowed (1 of 3 parts succeeded)\r\n"
    assert await client.reply() == expected


async def test_a_failing_part_is_the_whole_reply_of_mget() -> None:
    """No error stands among the elements, where an application would take it for a value."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b")
    desk.node(0).answer(b"*1\r\n$1\r\n2\r\n")
    desk.node(1).answer(b"-ERR broken\r\n")
    assert await client.reply() == b"-ERR broken\r\n"


async def test_a_node_that_is_away_is_told_at_once() -> None:
    """Parts for a node that cannot be asked fail without waiting for their deadline."""
    desk = Desk()
    desk.node(1).upstream.available = False
    client = desk.connect()
    client.send(b"MSET", b"a", b"1", b"b", b"2")
    desk.node(0).answer(b"+OK\r\n")
    assert await client.reply() == errors.partial(errors.CLUSTERDOWN, 1, 2)


async def test_keys_of_two_clusters_are_refused() -> None:
    """Nothing is sent when one command names keys of two clusters."""
    desk = Desk()
    client = desk.connect()
    assert client.ask(b"DEL", b"a", b"seat_lock:evt_1:A1") == errors.CROSS_CLUSTER
    assert all(node.commands() == [] for pair in desk.nodes for node in pair)


async def test_names_are_those_of_the_node() -> None:
    """A key with a hash tag of its keyspace goes out under its name at the node."""
    desk = Desk()
    client = desk.connect()
    client.send(b"UNLINK", b"seat_lock:a:1", b"seat_lock:b:1", b"seat_lock:a:2")
    assert desk.node(3).commands() == [[b"UNLINK", b"seat_lock:{a}:1", b"seat_lock:{a}:2"]]
    assert desk.node(2).commands() == [[b"UNLINK", b"seat_lock:{b}:1"]]


async def test_a_keyspace_refuses_a_part() -> None:
    """A command that a keyspace denies is refused before any part of it is sent."""
    desk = Desk()
    client = desk.connect()
    reply = client.ask(b"TOUCH", b"seat_lock:a:1", b"seat_lock:b:1")
    assert reply == b"-NOPERM denied\r\n"
    assert all(node.commands() == [] for pair in desk.nodes for node in pair)


async def test_a_client_that_is_gone_leaves_nothing_behind() -> None:
    """Parts that are answered after their client has left are read and forgotten."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MGET", b"a", b"b")
    client.session.connection_lost(None)
    desk.node(0).answer(b"*1\r\n$1\r\n2\r\n")
    desk.node(1).answer(b"*1\r\n$1\r\n1\r\n")
    assert client.take() == b""


async def test_many_keys_are_asked_in_turns() -> None:
    """Between some hundred keys others get their turn; what follows is sent behind all parts."""
    desk = Desk()
    client = desk.connect()
    keys = [b"key:%d" % number for number in range(3 * IN_A_TURN)]
    client.send(b"MSET", *[word for key in keys for word in (key, b"1")])
    client.send(b"GET", keys[-1])
    asked: list[list[list[bytes]]] = [[], []]
    turns = 0
    async with asyncio.timeout(5):
        while client.session.downstream.blocked:
            news = [desk.node(number).commands() for number in range(2)]
            assert sum(map(len, news)) <= IN_A_TURN
            for commands, new in zip(asked, news, strict=True):
                commands += new
            turns += 1
            await asyncio.sleep(0)
            desk.settle()
    for number, commands in enumerate(asked):
        commands += desk.node(number).commands()
    assert turns >= 4
    ends = [commands.pop() for commands in asked if commands[-1][0] == b"GET"]
    assert ends == [[b"GET", keys[-1]]]
    parts = asked[0] + asked[1]
    assert sorted(key for part in parts for key in part[1::2]) == sorted(keys)
    assert {part[0] for part in parts} == {b"MSET"}
    for number, commands in enumerate(asked):
        desk.node(number).answer(*[b"+OK\r\n"] * len(commands))
    last = next(number for number in range(2) if desk.node(number).upstream.pending)
    desk.node(last).answer(b"$1\r\n1\r\n")
    assert await client.reply() == b"+OK\r\n$1\r\n1\r\n"
