"""FCALL and FUNCTION: where they go, and what is made of many replies."""

import asyncio
from array import array

import pytest

from proxy import errors, wire
from proxy.handlers.functions import running
from tests.fakenode import Answer, FakeConnection
from tests.front import front
from tests.handlers.desk import Client, Desk

CODE = b"#!lua name=l\nredis.register_function('Add', function() return 1 end)"
NOT_FOUND = b"-ERR Function not found\r\n"
NAME = b"$1\r\nl\r\n"
LISTED, UNLISTED = b"*1\r\n*0\r\n", b"*0\r\n"
GONE = b"-ERR Library not found\r\n"
CALL = [b"FCALL", b"add", b"1", b"a", b"v"]  # to node 1


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
    assert dict(desk.server.libraries.bodies()) == {b"l": CODE}


async def test_a_primary_that_refuses_is_reported() -> None:
    """The error says how many took the library."""
    reply = await loaded(Desk(), NAME, b"-ERR no\r\n", NAME, NAME)
    assert reply == b"-ERR no (3 of 4 parts succeeded)\r\n"


def knowing() -> tuple[Desk, Client]:
    """Return a desk whose server has seen the library loaded, and a client."""
    desk = Desk()
    desk.server.libraries.put(b"l", CODE)
    desk.server.libraries.put(b"other", b"#!lua name=other")
    return desk, desk.connect()


async def not_found(desk: Desk, client: Client) -> None:
    """Call the function at node 1, which does not know it."""
    client.send(*CALL)
    assert desk.node(1).commands() == [CALL]
    desk.node(1).answer(NOT_FOUND)
    await turns(desk)


async def turns(desk: Desk) -> None:
    """Let the handlers go on until they wait for nodes."""
    for _ in range(8):
        await asyncio.sleep(0)
        desk.settle()


async def listed(desk: Desk, *replies: bytes) -> None:
    """Let each primary say whether it has the library, when it is asked."""
    for number, reply in enumerate(replies):
        asked = desk.node(number).commands()
        assert asked == [[b"FUNCTION", b"LIST", b"LIBRARYNAME", b"l"]]
        desk.node(number).answer(reply)
    await turns(desk)


@pytest.mark.parametrize("others", [(LISTED, LISTED, LISTED), (LISTED, UNLISTED, LISTED)])
async def test_a_node_without_the_library_gets_it_before_the_call(others: tuple[bytes]) -> None:
    """Where half of the others have it, it goes out without REPLACE, and the call behind it."""
    desk, client = knowing()
    await not_found(desk, client)
    await listed(desk, others[0], UNLISTED, *others[1:])
    assert desk.node(1).commands() == [[b"FUNCTION", b"LOAD", CODE], CALL]
    desk.node(1).answer(NAME, b":1\r\n")
    assert await client.reply() == b":1\r\n"


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ((UNLISTED, UNLISTED, UNLISTED), False),
        ((UNLISTED, LISTED, UNLISTED), True),
        ((b"-ERR away\r\n",) * 3, True),
    ],
)
async def test_a_library_that_others_lack_is_not_brought_back(
    others: tuple[bytes], kept: bool
) -> None:
    """Another sidecar has deleted it: the client hears the node, and what none has is forgotten."""
    desk, client = knowing()
    await not_found(desk, client)
    await listed(desk, others[0], UNLISTED, *others[1:])
    assert client.take() == NOT_FOUND
    assert not any(desk.node(number).commands() for number in range(4))
    assert (desk.server.libraries.get(b"l") is not None) is kept


async def test_a_lone_primary_gets_its_library() -> None:
    """Where there is no other primary, what was loaded and not deleted here is sent again."""
    desk, client = knowing()
    owners = [(True, array("h", [number] * 16384)) for number in (0, -1)]
    lone = tuple(node.upstream for node in desk.nodes[1])
    desk.server.router.slots = wire.SlotMap(owners, [[(upstream,) for upstream in lone]])
    await not_found(desk, client)
    assert desk.node(1).commands() == [[b"FUNCTION", b"LIST", b"LIBRARYNAME", b"l"]]
    desk.node(1).answer(UNLISTED)
    await turns(desk)
    assert desk.node(1).commands() == [[b"FUNCTION", b"LOAD", CODE], CALL]


async def test_a_library_deleted_while_others_are_asked_is_not_brought_back() -> None:
    """A deletion by another client, between the question and its answer, holds."""
    desk, client = knowing()
    await not_found(desk, client)
    asked = [desk.node(number).commands() for number in range(4)]
    assert all(asked)
    desk.connect().send(b"FUNCTION", b"DELETE", b"l")
    for number in range(4):
        desk.node(number).answer(UNLISTED if number == 1 else LISTED, b"+OK\r\n")
    await turns(desk)
    assert client.take() == NOT_FOUND


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


DELETIONS = [[b"DELETE", b"l"], [b"FLUSH"], [b"RESTORE", b"payload"]]


@pytest.mark.parametrize("words", DELETIONS)
async def test_what_is_deleted_is_forgotten_at_once(words: list[bytes]) -> None:
    """A call behind FUNCTION DELETE, FLUSH or RESTORE brings nothing back, nor a load before it."""
    desk, client = knowing()
    client.send_all([[b"FUNCTION", b"LOAD", b"REPLACE", CODE], [b"FUNCTION", *words], CALL])
    assert desk.server.libraries.get(b"l") is None
    for number in range(4):
        desk.node(number).commands()
        desk.node(number).answer(NAME, b"+OK\r\n")
    desk.node(1).answer(NOT_FOUND)
    await turns(desk)
    assert client.take() == NAME + b"+OK\r\n" + NOT_FOUND
    assert desk.server.libraries.get(b"l") is None


@pytest.mark.parametrize("words", DELETIONS)
async def test_what_no_primary_deleted_is_still_known(words: list[bytes]) -> None:
    """After a deletion that failed everywhere new primaries get the library as before."""
    desk, client = knowing()
    client.send(b"FUNCTION", *words)
    for number in range(4):
        desk.node(number).answer(b"-OOM no\r\n")
    assert await client.reply() == b"-OOM no\r\n"
    assert desk.server.libraries.get(b"l") == CODE


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([GONE, b"+OK\r\n", GONE, GONE], b"+OK\r\n"),
        ([GONE] * 4, GONE),
        ([GONE, b"+OK\r\n", b"-OOM no\r\n", b"+OK\r\n"], errors.partial(b"-OOM no\r\n", 2, 3)),
    ],
)
async def test_a_primary_without_the_library_fails_no_deletion(
    replies: list[bytes], expected: bytes
) -> None:
    """FUNCTION DELETE succeeds where all that had the library have deleted it."""
    desk, client = knowing()
    client.send(b"FUNCTION", b"DELETE", b"l")
    for number, reply in enumerate(replies):
        desk.node(number).answer(reply)
    assert await client.reply() == expected
    assert desk.server.libraries.get(b"l") is None


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


@pytest.mark.integration
async def test_statistics_wait_for_what_was_sent_before() -> None:
    """FUNCTION STATS goes beside the client's connection, so not before it is all answered."""
    async with front() as made:
        order: list[bytes] = []

        def late(connection: FakeConnection, words: list[bytes]) -> Answer:
            asyncio.get_running_loop().call_later(0.05, order.append, b"answered")
            return Answer(b"$-1\r\n", delay=0.05)

        def statistics(connection: FakeConnection, words: list[bytes]) -> bytes:
            order.append(words[1])
            return b"*4\r\n+running_script\r\n$-1\r\n+engines\r\n*0\r\n"

        made.node.answers |= {"GET": late, "FUNCTION STATS": statistics}
        caller = await made.connect()
        assert (await caller.pipeline([("GET", "k"), ("FUNCTION", "STATS")]))[0] is None
        assert order == [b"answered", b"STATS"]
