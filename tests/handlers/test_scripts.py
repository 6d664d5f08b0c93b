"""EVAL and SCRIPT: where they go, what is remembered, and what is made of many replies."""

import asyncio

import pytest

from proxy import errors
from proxy.handlers.scripts import for_transaction, killed, sha1
from tests.handlers.desk import Desk

BODY = b"return 1"
SHA = b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
FORGOTTEN = b"-NOSCRIPT No matching script.\r\n"


def test_scripts_are_called_what_redis_calls_them() -> None:
    """The name is the SHA1 of the body in hexadecimal."""
    assert sha1(BODY) == SHA


@pytest.mark.parametrize("command", [b"EVAL", b"EVAL_RO", b"EVALSHA", b"EVALSHA_RO", b"FCALL"])
@pytest.mark.parametrize(
    ("count", "line"),
    [
        (b"2", errors.TOO_MANY_KEYS),
        (b"-1", errors.NEGATIVE_KEYS),
        (b"01", errors.NOT_AN_INTEGER),
        (b"x", errors.NOT_AN_INTEGER),
    ],
)
async def test_bad_counts_of_keys_go_nowhere(command: bytes, count: bytes, line: bytes) -> None:
    """A count that cannot be is answered in Redis' words; FCALL has words of its own."""
    expected = line
    if command == b"FCALL" and line == errors.NOT_AN_INTEGER:
        expected = errors.BAD_NUMBER_OF_KEYS
    desk = Desk()
    assert desk.connect().ask(command, BODY, count, b"a") == expected
    assert not any(node.commands() for pair in desk.nodes for node in pair)


async def test_a_script_goes_where_its_keys_live_under_their_names_there() -> None:
    """Keys are renamed, arguments are not, and a forgotten script is sent with the same names."""
    desk = Desk()
    client = desk.connect()
    client.send(b"EVAL", BODY, b"2", b"seat_lock:a:1", b"seat_lock:a:2", b"seat_lock:a:3")
    named = [b"2", b"seat_lock:{a}:1", b"seat_lock:{a}:2", b"seat_lock:a:3"]
    assert desk.node(3).commands() == [[b"EVAL", BODY, *named]]
    desk.node(3).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n"
    client.send(b"EVALSHA_RO", SHA.upper(), *named[:1], *(b"seat_lock:a:%d" % n for n in (1, 2, 3)))
    desk.node(3).commands()
    desk.node(3).answer(FORGOTTEN)
    desk.settle()
    assert desk.node(3).commands() == [[b"EVAL_RO", BODY, *named]]


async def test_keys_must_share_a_slot() -> None:
    """Keys of two slots or two clusters go nowhere."""
    client = Desk().connect()
    assert client.ask(b"EVAL", BODY, b"2", b"a", b"b") == errors.CROSSSLOT
    assert client.ask(b"EVAL", BODY, b"2", b"a", b"seat_lock:a:1") == errors.CROSS_CLUSTER


async def test_a_script_without_keys_goes_to_one_node_of_the_default_cluster() -> None:
    """The SHA1 decides which, so the body and its name go to the same."""
    desk = Desk()
    for number in range(20):
        client = desk.connect()
        body = b"return %d" % number
        client.send(b"EVAL", body, b"0", b"x")
        client.send(b"EVALSHA", sha1(body).upper(), b"0")
    asked = [desk.node(number).commands() for number in range(4)]
    assert asked[2] == asked[3] == []
    assert all(asked[:2])
    for commands in asked[:2]:
        scripts = [words[1].lower() for words in commands]
        assert scripts[1::2] == [sha1(body) for body in scripts[::2]]


async def test_a_script_is_loaded_everywhere() -> None:
    """SCRIPT LOAD asks every primary of both clusters, and the script is known afterwards."""
    desk = Desk()
    client = desk.connect()
    client.send(b"SCRIPT", b"LOAD", BODY)
    for number in range(4):
        assert desk.node(number).commands() == [[b"SCRIPT", b"LOAD", BODY]]
        desk.node(number).answer(b"$40\r\n%b\r\n" % SHA)
    assert await client.reply() == b"$40\r\n%b\r\n" % SHA
    assert desk.server.scripts.get(SHA) == BODY


async def test_a_primary_that_is_away_fails_no_load() -> None:
    """What could not be asked gets the script when it needs it; all away is an error."""
    desk = Desk()
    for number in (2, 3):
        desk.node(number).upstream.available = False
    client = desk.connect()
    client.send(b"SCRIPT", b"LOAD", BODY)
    for number in (0, 1):
        desk.node(number).answer(b"$40\r\n%b\r\n" % SHA)
    assert await client.reply() == b"$40\r\n%b\r\n" % SHA
    for number in (0, 1):
        desk.node(number).upstream.available = False
    client.send(b"SCRIPT", b"LOAD", BODY)
    assert await client.reply() == errors.CLUSTERDOWN


async def test_a_broken_script_is_not_remembered() -> None:
    """The error of the node is the reply of SCRIPT LOAD."""
    desk = Desk()
    client = desk.connect()
    client.send(b"SCRIPT", b"LOAD", b"return +")
    for number in range(4):
        desk.node(number).answer(b"-ERR Error compiling script\r\n")
    assert await client.reply() == b"-ERR Error compiling script\r\n"
    assert len(desk.server.scripts) == 0


async def test_what_is_known_and_missing_is_loaded_before_it_exists() -> None:
    """SCRIPT EXISTS of a script that one primary lacks brings it there, and then says 1."""
    desk = Desk()
    desk.server.scripts.put(SHA, BODY)
    client = desk.connect()
    other = b"f" * 40
    client.send(b"SCRIPT", b"EXISTS", SHA, other)
    for number in range(4):
        desk.node(number).commands()
        desk.node(number).answer(b"*2\r\n:%d\r\n:0\r\n" % (number != 2))
    while not desk.node(2).sent:
        await _turn(desk)
    for number in range(4):
        assert desk.node(number).commands() == [[b"SCRIPT", b"LOAD", BODY]]
        desk.node(number).answer(b"$40\r\n%b\r\n" % SHA)
    assert await client.reply() == b"*2\r\n:1\r\n:0\r\n"


async def _turn(desk: Desk) -> None:
    await asyncio.sleep(0)
    desk.settle()


async def test_a_flush_forgets_everywhere() -> None:
    """SCRIPT FLUSH reaches every primary, and neither EVAL nor LOAD before it repairs any later."""
    desk = Desk()
    client = desk.connect()
    run = [b"EVALSHA", SHA, b"1", b"a"]  # at node 1
    client.send_all([
        [b"EVAL", BODY, b"1", b"a"], [b"SCRIPT", b"LOAD", BODY], [b"SCRIPT", b"FLUSH"], run,
    ])  # fmt: skip
    assert len(desk.server.scripts) == 0
    desk.node(1).answer(b":1\r\n")
    for number in range(4):
        desk.node(number).commands()
        desk.node(number).answer(b"$40\r\n%b\r\n" % SHA, b"+OK\r\n")
    desk.node(1).answer(FORGOTTEN)
    for _ in range(8):
        await _turn(desk)
    assert client.take().endswith(b"+OK\r\n" + FORGOTTEN)
    assert len(desk.server.scripts) == 0


async def test_what_no_primary_flushed_is_still_known() -> None:
    """After a SCRIPT FLUSH that every primary refused, runs are repaired as before."""
    desk = Desk()
    desk.server.scripts.put(SHA, BODY)
    client = desk.connect()
    client.send(b"SCRIPT", b"FLUSH", b"NOW")
    for number in range(4):
        desk.node(number).answer(b"-ERR syntax\r\n")
    assert await client.reply() == b"-ERR syntax\r\n"
    assert desk.server.scripts.get(SHA) == BODY


def test_whoever_had_nothing_to_kill_does_not_count() -> None:
    """One success is enough, and UNKILLABLE says more than NOTBUSY."""
    idle, stubborn = b"-NOTBUSY No scripts.\r\n", b"-UNKILLABLE Sorry\r\n"
    assert killed([idle, b"+OK\r\n", idle]) == b"+OK\r\n"
    assert killed([idle, stubborn, idle]) == stubborn
    assert killed([idle, idle]) == idle


async def test_a_transaction_gets_bodies() -> None:
    """EVALSHA becomes EVAL where the script is known; everything else stays as it is."""
    desk = Desk()
    desk.server.scripts.put(SHA, BODY)
    session = desk.connect().session
    run = [b"evalsha", SHA.upper(), b"1", b"k", b"v"]
    assert for_transaction(session, run) == [b"EVAL", BODY, b"1", b"k", b"v"]
    assert for_transaction(session, [b"EVALSHA_RO", SHA, b"0"]) == [b"EVAL_RO", BODY, b"0"]
    for words in ([b"EVALSHA", b"f" * 40, b"0"], [b"SET", SHA, b"0"], [b"EVALSHA"]):
        assert for_transaction(session, words) is words
