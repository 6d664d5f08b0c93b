"""One command to every primary, and one reply of many."""

from proxy import errors, wire
from proxy.handlers import Session
from proxy.handlers.everywhere import (
    all_succeeded,
    ask_primaries,
    each_true,
    every_cluster,
    merged,
    one_succeeded,
    summed,
)
from tests.handlers.desk import Desk, parsed

NO = b"-ERR no\r\n"


def sizes(session: Session, request: wire.Request) -> object:
    return merged(ask_primaries(session, request, [b"DBSIZE"], every_cluster(session)), summed)


async def test_every_primary_is_asked_in_the_order_of_the_client() -> None:
    """The command stands behind what the client sent before, and before what it sends next."""
    desk = Desk()
    desk.server.handlers = {**desk.server.handlers, b"time": sizes}
    client = desk.connect()
    client.send(b"SET", b"a", b"1")
    client.send(b"TIME")
    client.send(b"GET", b"a")
    assert [node.commands() for node in (desk.node(0), desk.node(2), desk.node(3))] == [
        [[b"DBSIZE"]]
    ] * 3
    assert desk.node(1).commands() == [[b"SET", b"a", b"1"], [b"DBSIZE"], [b"GET", b"a"]]
    desk.node(1).answer(b"+OK\r\n", b":5\r\n", b"$1\r\n1\r\n")
    for number in (0, 2, 3):
        desk.node(number).answer(b":1\r\n")
    assert await client.reply() == b"+OK\r\n:8\r\n$1\r\n1\r\n"


async def test_a_primary_that_is_away_gives_an_error_at_once() -> None:
    """Each primary has one reply, so nothing waits for one that cannot be asked."""
    desk = Desk()
    desk.server.handlers = {**desk.server.handlers, b"time": sizes}
    desk.node(3).upstream.available = False
    client = desk.connect()
    client.send(b"TIME")
    for number in (0, 1, 2):
        desk.node(number).answer(b":1\r\n")
    assert await client.reply() == errors.CLUSTERDOWN


async def test_a_cluster_without_a_primary_is_an_error() -> None:
    """A cluster of which no node is known does not count as one that agreed."""
    desk = Desk()
    desk.server.handlers = {**desk.server.handlers, b"time": sizes}
    desk.lose_everybody()
    client = desk.connect()
    client.send(b"TIME")
    assert await client.reply() == errors.CLUSTERDOWN


async def test_what_no_node_says_is_an_internal_error() -> None:
    """A reply of another type ends in an error line, not in an exception."""
    desk = Desk()
    desk.server.handlers = {**desk.server.handlers, b"time": sizes}
    client = desk.connect()
    client.send(b"TIME")
    for number in range(4):
        desk.node(number).answer(b"+what\r\n")
    assert await client.reply() == errors.INTERNAL


def test_all_must_succeed() -> None:
    """One failure is the reply, and says how many took effect, if any did."""
    assert all_succeeded([b"+OK\r\n", b"+OK\r\n"]) == b"+OK\r\n"
    assert all_succeeded([b"+OK\r\n", NO]) == b"-ERR no (1 of 2 parts succeeded)\r\n"
    assert all_succeeded([NO, b"-ERR other\r\n"]) == NO


def test_one_success_is_enough() -> None:
    """Whoever had nothing to do does not count."""
    assert one_succeeded([NO, b"+OK\r\n"]) == b"+OK\r\n"
    assert one_succeeded([NO, b"-ERR other\r\n"]) == NO


def test_integers_are_added() -> None:
    """The sum is of all, or an error."""
    assert summed([b":1\r\n", b":41\r\n"]) == b":42\r\n"
    assert summed([b":1\r\n", NO]) == NO


def test_truth_is_what_all_say() -> None:
    """By position: one zero makes a zero."""
    assert parsed(each_true([b"*2\r\n:1\r\n:1\r\n", b"*2\r\n:0\r\n:1\r\n"])) == [0, 1]
    assert each_true([b"*1\r\n:1\r\n", NO]) == NO
