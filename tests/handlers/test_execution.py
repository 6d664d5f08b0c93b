"""EXEC: one unit, one array, in every order of arrival."""

from collections.abc import Mapping

import pytest

from proxy import errors, wire
from proxy.handlers import execution
from tests.handlers.desk import Client, Desk
from tests.handlers.test_transactions import OK, QUEUED, multi


async def test_local_commands_stand_at_their_places() -> None:
    """They are answered when the node has carried out the rest, in the order of the commands."""
    desk = Desk()
    client = multi(desk)
    for words in (b"PING", b"SET a 1", b"CLIENT SETNAME me", b"GET a", b"CLIENT GETNAME"):
        assert client.ask(*words.split()) == QUEUED
    client.send(b"EXEC")
    client.send(b"CLIENT", b"GETNAME")
    assert client.session.name == b""
    desk.node(1).answer(OK, QUEUED, QUEUED, b"*2\r\n+OK\r\n$1\r\n1\r\n")
    # The last one is the reply of the command behind EXEC, which sees what EXEC did.
    replies = b"*5\r\n+PONG\r\n+OK\r\n+OK\r\n$1\r\n1\r\n$2\r\nme\r\n" + b"$2\r\nme\r\n"
    assert await client.reply() == replies


async def test_only_local_commands_need_no_node() -> None:
    """A transaction that asks no node is answered at once."""
    client = multi(Desk())
    for words in (b"ECHO x", b"SELECT 3", b"TIME"):
        assert client.ask(*words.split()) == QUEUED
    reply = client.ask(b"EXEC")
    assert reply.startswith(b"*3\r\n$1\r\nx\r\n" + errors.SELECT_REFUSED + b"*2\r\n$")


async def test_local_replies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the bytes that a transaction may have of them is refused, and not begun."""
    monkeypatch.setattr(execution, "MOST_HERE", 10)
    client = multi(Desk())
    for words in (b"ECHO 12345678", b"CLIENT SETNAME me", b"PING"):
        assert client.ask(*words.split()) == QUEUED
    refused = errors.TOO_MUCH_HERE
    assert client.ask(b"EXEC") == b"*3\r\n$8\r\n12345678\r\n" + 2 * refused
    assert client.ask(b"CLIENT", b"GETNAME") == b"$-1\r\n"


async def test_local_commands_do_nothing_when_the_rest_failed() -> None:
    """An error of EXEC is the whole answer, and says that nothing was done."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.ask(b"CLIENT", b"SETNAME", b"me")
    client.send(b"EXEC")
    refusal = b"-EXECABORT Transaction discarded because of: OOM no\r\n"
    desk.node(1).answer(OK, b"-OOM no\r\n", b"-EXECABORT x\r\n")
    assert await client.reply() == refusal
    assert client.ask(b"CLIENT", b"GETNAME") == b"$-1\r\n"


async def test_no_node_to_ask_is_an_error_at_once() -> None:
    """The error is the node's absence, and the next command finds no transaction."""
    desk = Desk()
    desk.node(1).upstream.available = False
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.send(b"EXEC")
    assert await client.reply() == errors.CLUSTERDOWN
    assert client.ask(b"EXEC") == errors.EXEC_WITHOUT_MULTI


async def test_names_in_replies_are_the_clients() -> None:
    """Elements that carry keys are translated, the others and the values in them are not."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"GET", b"seat_lock:a:1")
    client.ask(b"LMPOP", b"1", b"seat_lock:a:1", b"LEFT")
    client.ask(b"XREAD", b"STREAMS", b"seat_lock:a:2", b"0")
    client.send(b"EXEC")
    assert desk.node(3).commands()[2] == [b"LMPOP", b"1", b"seat_lock:{a}:1", b"LEFT"]
    value = b"$15\r\nseat_lock:{a}:1\r\n"
    desk.node(3).answer(
        OK, QUEUED * 3,
        b"*3\r\n" + value + b"*2\r\n" + value + b"*1\r\n" + value
        + b"-WRONGTYPE of seat_lock:{a}:2\r\n",
    )  # fmt: skip
    assert await client.reply() == (
        b"*3\r\n" + value + b"*2\r\n$13\r\nseat_lock:a:1\r\n*1\r\n" + value
        + b"-WRONGTYPE of seat_lock:a:2\r\n"
    )  # fmt: skip


async def test_a_reply_that_is_none_of_these_commands() -> None:
    """A node that answers nonsense costs an error and nobody's wait."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.ask(b"PING")
    client.send(b"EXEC")
    desk.node(1).answer(OK, QUEUED, b"*2\r\n+OK\r\n+OK\r\n")
    assert await client.reply() == errors.INTERNAL
    assert client.ask(b"PING") == b"+PONG\r\n"


async def test_a_large_one_keeps_its_client_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit above the limit is answered before its client's next command is taken."""
    monkeypatch.setattr(execution, "HELD_BYTES", 50)
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.send(b"EXEC")
    client.send(b"GET", b"a")
    assert [words[0] for words in desk.node(1).commands()] == [b"MULTI", b"SET", b"EXEC"]
    desk.node(1).answer(OK, QUEUED, b"*1\r\n+OK\r\n")
    assert await client.reply() == b"*1\r\n+OK\r\n"
    assert desk.node(1).commands() == [[b"GET", b"a"]]


async def test_a_client_that_goes_meanwhile() -> None:
    """What it asked of the proxy itself is not done for nobody."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.ask(b"CLIENT", b"SETNAME", b"me")
    client.send(b"EXEC")
    client.session.connection_lost(None)
    desk.node(1).answer(OK, QUEUED, b"*1\r\n+OK\r\n")
    (task,) = desk.server.tasks
    await task
    assert client.session.name == b""


class Watching:
    """A watch that answers what a test says."""

    flag = ""
    counts: Mapping[str, int] = {"watch": 1}

    def __init__(self, client: Client, key: bytes, reply: bytes) -> None:
        location = client.session.downstream.locate(key, 0)
        assert isinstance(location, wire.Location)
        self.location = location
        self.reply = reply
        self.units: list[tuple[bytes, int]] = []
        self.released = 0
        client.session.holdings["watch"] = self

    async def execute(self, unit: bytes, replies: int) -> bytes:
        self.units.append((unit, replies))
        return self.reply

    def release(self) -> None:
        self.released += 1


UNIT = b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nEXEC\r\n"


@pytest.mark.parametrize("reply", [b"*1\r\n$1\r\n1\r\n", b"*-1\r\n", b"_\r\n"])
async def test_a_watched_transaction_runs_where_the_watch_is(reply: bytes) -> None:
    """Its reply, a null too, is EXEC's, and the watch is over."""
    desk = Desk()
    client = desk.connect()
    watch = Watching(client, b"a", reply)
    client.ask(b"MULTI")
    client.ask(b"GET", b"a")
    client.send(b"EXEC")
    assert await client.reply() == reply
    assert watch.units == [(UNIT, 3)]
    assert watch.released == 1
    assert "watch" not in client.session.holdings
    assert all(node.commands() == [] for pair in desk.nodes for node in pair)
    assert client.ask(b"PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    ("reply", "whole"), [(b"*0\r\n", b"*1\r\n+PONG\r\n"), (b"*-1\r\n", b"*-1\r\n")]
)
async def test_a_watch_is_asked_without_commands_too(reply: bytes, whole: bytes) -> None:
    """A transaction of local commands only is null when a watched key has changed."""
    client = Desk().connect()
    watch = Watching(client, b"a", reply)
    client.ask(b"MULTI")
    client.ask(b"PING")
    client.send(b"EXEC")
    assert await client.reply() == whole
    assert watch.units == [(execution.MULTI + execution.EXEC, 2)]


@pytest.mark.parametrize(
    ("words", "line"),
    [(b"SET b 1", errors.CROSSSLOT), (b"SET seat_lock:a:1 1", errors.CROSS_CLUSTER)],
)
async def test_a_watch_of_another_slot(words: bytes, line: bytes) -> None:
    """Nothing can be guarded from elsewhere, so nothing runs."""
    client = Desk().connect()
    watch = Watching(client, b"a", b"*1\r\n+OK\r\n")
    client.ask(b"MULTI")
    client.ask(*words.split())
    assert client.ask(b"EXEC") == line
    assert watch.units == []
    assert watch.released == 1


@pytest.mark.parametrize("last", [b"DISCARD", b"EXEC"])
async def test_a_watch_ends_with_what_is_not_carried_out(last: bytes) -> None:
    """DISCARD, and EXEC of a spoiled transaction, give the watch up."""
    client = Desk().connect()
    watch = Watching(client, b"a", b"")
    client.ask(b"MULTI")
    client.ask(b"SET", b"a")
    assert client.ask(last) == (OK if last == b"DISCARD" else errors.EXECABORT)
    assert watch.units == []
    assert watch.released == 1
