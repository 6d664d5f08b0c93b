"""FCALL and FUNCTION: where they go, and what is made of many replies."""

from proxy.handlers.functions import running
from tests.handlers.desk import Desk

CODE = b"#!lua name=l\nredis.register_function('Add', function() return 1 end)"
NOT_FOUND = b"-ERR Function not found\r\n"
NAME = b"$1\r\nl\r\n"


async def loaded(desk: Desk, *replies: bytes) -> bytes:
    client = desk.connect()
    client.send(b"FUNCTION", b"LOAD", b"REPLACE", CODE)
    for number, reply in enumerate(replies):
        assert desk.node(number).commands() == [[b"FUNCTION", b"LOAD", b"REPLACE", CODE]]
        desk.node(number).answer(reply)
    return await client.reply()


async def test_a_library_is_loaded_on_every_primary() -> None:
    """All of both clusters take it, and it is known afterwards."""
    desk = Desk()
    assert await loaded(desk, NAME, NAME, NAME, NAME) == NAME
    assert list(desk.server.libraries.bodies()) == [CODE]


async def test_a_primary_that_refuses_is_reported() -> None:
    """The error says how many took the library."""
    reply = await loaded(Desk(), NAME, b"-ERR no\r\n", NAME, NAME)
    assert reply == b"-ERR no (3 of 4 parts succeeded)\r\n"


async def test_a_node_without_the_library_gets_it_before_the_call() -> None:
    """The library goes out without REPLACE, and the call behind it, once."""
    desk = Desk()
    desk.server.libraries.put(b"l", CODE)
    desk.server.libraries.put(b"other", b"#!lua name=other")
    client = desk.connect()
    client.send(b"FCALL", b"add", b"1", b"a", b"v")
    desk.node(1).commands()
    desk.node(1).answer(NOT_FOUND)
    desk.settle()
    call = [b"FCALL", b"add", b"1", b"a", b"v"]
    assert desk.node(1).commands() == [[b"FUNCTION", b"LOAD", CODE], call]
    desk.node(1).answer(NAME, b":1\r\n")
    assert await client.reply() == b":1\r\n"


async def test_an_unknown_function_loads_nothing() -> None:
    """A name that stands in no known library is a mistake of the client."""
    desk = Desk()
    desk.server.libraries.put(b"l", CODE)
    client = desk.connect()
    for name in (b"subtract", b"redis", b""):
        client.send(b"FCALL_RO", name, b"1", b"a")
        desk.node(1).commands()
        desk.node(1).answer(NOT_FOUND)
        assert await client.reply() == NOT_FOUND
        assert desk.node(1).commands() == []


async def test_what_is_deleted_is_forgotten() -> None:
    """FUNCTION DELETE forgets one library; FLUSH and RESTORE leave none that is known."""
    for words in ([b"DELETE", b"l"], [b"FLUSH"], [b"RESTORE", b"payload"]):
        desk = Desk()
        desk.server.libraries.put(b"l", CODE)
        client = desk.connect()
        client.send(b"FUNCTION", *words)
        for number in range(4):
            desk.node(number).answer(b"+OK\r\n")
        assert await client.reply() == b"+OK\r\n"
        assert len(desk.server.libraries) == 0


async def test_libraries_are_listed_by_one_primary() -> None:
    """A primary of the default cluster answers for all."""
    desk = Desk()
    client = desk.connect()
    client.send(b"FUNCTION", b"LIST")
    asked = [desk.node(number).commands() for number in range(4)]
    assert asked == [[[b"FUNCTION", b"LIST"]], [], [], []]
    desk.node(0).answer(b"*0\r\n")
    assert await client.reply() == b"*0\r\n"


def test_whoever_runs_something_is_reported() -> None:
    """Of the reports of all primaries the first that is not idle is shown."""
    idle = b"%2\r\n+running_script\r\n_\r\n+engines\r\n%0\r\n"
    busy = b"%2\r\n+running_script\r\n%1\r\n+name\r\n+f\r\n+engines\r\n%0\r\n"
    assert running([b"-ERR away\r\n", idle, busy, idle], 3) == busy
    assert running([idle, idle], 3) == idle
    assert running([b"-ERR away\r\n"], 3) == b"-ERR away\r\n"
