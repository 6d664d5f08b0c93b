"""Which runs are repeated when a node has forgotten a script, and when they are not."""

import asyncio

from proxy.handlers.scripts import sha1
from tests.handlers.desk import Client, Desk, Node, parsed

BODY = b"return redis.call('rpush', KEYS[1], ARGV[1])"
SHA = sha1(BODY)
FORGOTTEN = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"

# Keys of the default cluster: a (slot 15495) is at node 1, b (3300) and c (7365) are at node 0.


def knowing() -> tuple[Desk, Client]:
    """Return a desk whose server has seen the script, and a client."""
    desk = Desk()
    desk.server.scripts.put(SHA, BODY)
    return desk, desk.connect()


def run(client: Client, key: bytes, value: bytes) -> None:
    client.send(b"EVALSHA", SHA, b"1", key, value)


def values(node: Node) -> list[tuple[bytes, bytes]]:
    """Return the name and the last word of what a node was asked since."""
    return [(words[0], words[-1]) for words in node.commands()]


async def test_a_forgotten_run_is_sent_with_its_body() -> None:
    """The client hears nothing of a NOSCRIPT, and the node gets the same keys and arguments."""
    desk, client = knowing()
    run(client, b"a", b"1")
    desk.node(1).commands()
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    assert desk.node(1).commands() == [[b"EVAL", BODY, b"1", b"a", b"1"]]
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n"


async def test_a_script_that_nobody_has_seen_is_not_found() -> None:
    """Without its body there is nothing to send, and the client hears so at once."""
    desk = Desk()
    client = desk.connect()
    run(client, b"a", b"1")
    desk.node(1).answer(FORGOTTEN)
    assert await client.reply() == FORGOTTEN


async def test_a_run_is_repeated_once() -> None:
    """A node that forgets again at once is believed."""
    desk, client = knowing()
    run(client, b"a", b"1")
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    desk.node(1).answer(FORGOTTEN)
    assert await client.reply() == FORGOTTEN


async def test_runs_behind_it_are_repeated_in_order() -> None:
    """From the first forgotten one on all are sent again, and nothing is taken in between."""
    desk, client = knowing()
    for value in (b"1", b"2", b"3"):
        run(client, b"a", value)
    desk.node(1).commands()
    desk.node(1).answer(b":1\r\n", FORGOTTEN)
    client.send(b"RPUSH", b"a", b"4")
    assert desk.node(1).commands() == []
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    await asyncio.sleep(0)
    desk.settle()
    assert values(desk.node(1)) == [(b"EVAL", b"2"), (b"EVAL", b"3"), (b"RPUSH", b"4")]
    desk.node(1).answer(b":2\r\n", b":3\r\n", b":4\r\n")
    assert await client.reply() + await client.reply() == b":1\r\n:2\r\n:3\r\n:4\r\n"


async def test_a_run_behind_it_that_ran_has_overtaken_it() -> None:
    """Somebody else brought the script in between: the first run hears NOSCRIPT, as from Redis."""
    desk, client = knowing()
    for value in (b"1", b"2", b"3"):
        run(client, b"a", value)
    desk.node(1).commands()
    desk.node(1).answer(FORGOTTEN, b":1\r\n", FORGOTTEN)
    desk.settle()
    assert values(desk.node(1)) == [(b"EVAL", b"3")]
    desk.node(1).answer(b":2\r\n")
    assert await client.reply() == FORGOTTEN + b":1\r\n:2\r\n"


async def test_another_command_behind_it_has_overtaken_it() -> None:
    """What the data plane forwarded behind a run counts as having run, wherever it went."""
    desk, client = knowing()
    run(client, b"a", b"1")
    client.send(b"GET", b"b")
    desk.node(1).answer(FORGOTTEN)
    desk.node(0).answer(b"$-1\r\n")
    assert await client.reply() == FORGOTTEN + b"$-1\r\n"
    assert values(desk.node(1)) == [(b"EVALSHA", b"1")]


async def test_a_command_before_it_does_not_matter() -> None:
    """Only what stands behind a run can overtake it, however late the rest is answered."""
    desk, client = knowing()
    client.send(b"GET", b"b")
    run(client, b"a", b"1")
    desk.node(1).commands()
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    assert values(desk.node(1)) == [(b"EVAL", b"1")]
    desk.node(1).answer(b":1\r\n")
    desk.node(0).answer(b"$-1\r\n")
    assert await client.reply() == b"$-1\r\n:1\r\n"


async def test_runs_of_other_slots_do_not_matter() -> None:
    """Scripts touch one slot: those of another that were answered sooner change nothing."""
    desk, client = knowing()
    run(client, b"a", b"1")
    run(client, b"b", b"2")
    desk.node(1).commands()
    desk.node(0).answer(b":1\r\n")
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    assert values(desk.node(1)) == [(b"EVAL", b"1")]
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n:1\r\n"


async def test_a_run_that_no_node_got_does_not_matter() -> None:
    """What was refused for want of a node is no command that could have run."""
    desk, client = knowing()
    desk.node(0).upstream.available = False
    run(client, b"a", b"1")
    run(client, b"b", b"2")
    desk.node(1).commands()
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    assert values(desk.node(1)) == [(b"EVAL", b"1")]
    desk.node(1).answer(b":1\r\n")
    assert parsed(await client.reply()) == 1


async def test_nothing_is_repeated_for_a_client_that_has_gone() -> None:
    """Whoever would read the reply has left, and Redis would not have run it either."""
    desk, client = knowing()
    run(client, b"a", b"1")
    desk.node(1).commands()
    client.session.connection_lost(None)
    desk.node(1).answer(FORGOTTEN)
    desk.settle()
    assert desk.node(1).commands() == []
