"""Who waits, and who ends it: CLIENT UNBLOCK, a client that goes, a process that stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from proxy import errors
from proxy.config import OPEN_DEFAULT_USER, User
from tests.fakenode import Answer, FakeConnection
from tests.front import Front, front
from tests.integration.rig import Caller, is_error, wait_for
from tests.replies import pack
from tests.test_session import near

pytestmark = pytest.mark.integration


@contextlib.asynccontextmanager
async def house(**fields: object) -> AsyncIterator[Front]:
    """A front whose node lets BLPOP wait, and ends the wait when it is told to."""
    async with front(**fields) as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "BLPOP": Answer(b"")}

        def unblock(connection: FakeConnection, words: list[bytes]) -> bytes:
            error = words[3] == b"ERROR"
            waiting_on(made).put(errors.UNBLOCKED if error else b"*-1\r\n")
            return b":1\r\n"

        made.node.answers["CLIENT UNBLOCK"] = unblock
        yield made


def waiting_on(made: Front) -> FakeConnection:
    """Return the node's connection on which a client waits."""
    return next(c for c in made.node.connections if c.open and c.asked(b"BLPOP"))


async def blocked(made: Front, *more: bytes) -> Caller:
    """Return a client that waits, with more sent behind."""
    caller = await made.connect()
    before = len(made.node.received("BLPOP"))
    caller.writer.write(pack("BLPOP", "q", "0") + b"".join(more))
    await wait_for(lambda: len(made.node.received("BLPOP")) > before, "the wait")
    return caller


def number(made: Front) -> int:
    """Return the number of the client that waits."""
    (found,) = [n for n, s in made.server.sessions.items() if "blocked" in s.holdings]
    return found


@pytest.mark.parametrize(
    ("how", "reply"),
    [((), None), ((b"TIMEOUT",), None), ((b"timeout",), None), ((b"ERROR",), errors.UNBLOCKED)],
)
async def test_client_unblock(how: tuple[bytes, ...], reply: bytes | None) -> None:
    """A wait ends as if its time were over, or with an error; the client goes on."""
    async with house() as made:
        caller, other = await blocked(made, pack("PING")), await made.connect()
        assert await other.call("CLIENT", "UNBLOCK", number(made), *how) == 1
        got = await caller.next()
        assert (str(got).encode() in reply) if reply else got is None
        assert await caller.next() == b"PONG"


async def test_what_can_be_unblocked() -> None:
    """Nobody there, nobody who waits, and nobody of another user: 0. Nonsense: Redis' words."""
    users = [OPEN_DEFAULT_USER, User("other", (), "default", True, True)]
    async with house(users=users) as made:
        await blocked(made)
        other = await made.connect()
        mine = await other.call("CLIENT", "ID")
        for target in (99, mine):
            assert await other.call("CLIENT", "UNBLOCK", target) == 0
        for words, line in (
            (["x"], errors.NOT_AN_INTEGER),
            (["1", "foo"], errors.UNBLOCK_REASON),
            (["1", "TIMEOUT", "x"], errors.SYNTAX),
        ):
            assert str(await other.call("CLIENT", "UNBLOCK", *words)).encode() == line[1:-2]
        assert await other.call("AUTH", "other", "x") == b"OK"
        assert await other.call("CLIENT", "UNBLOCK", number(made)) == 0


async def test_an_element_in_the_same_moment_is_delivered() -> None:
    """Where the node was faster than the word, the client gets what was taken for it."""
    async with house() as made:

        def late(connection: FakeConnection, words: list[bytes]) -> bytes:
            waiting_on(made).put(b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n")
            return b":0\r\n"

        made.node.answers["CLIENT UNBLOCK"] = late
        caller, other = await blocked(made), await made.connect()
        assert await other.call("CLIENT", "UNBLOCK", number(made)) == 0
        assert await caller.next() == [b"q", b"x"]


async def test_a_word_that_overtakes_the_command_is_said_again() -> None:
    """A node that has not heard of the wait yet is told once more."""
    async with house() as made:
        calls = []

        def early(connection: FakeConnection, words: list[bytes]) -> bytes:
            calls.append(words)
            if len(calls) == 1:
                return b":0\r\n"
            waiting_on(made).put(b"*-1\r\n")
            return b":1\r\n"

        made.node.answers["CLIENT UNBLOCK"] = early
        caller, other = await blocked(made), await made.connect()
        assert await other.call("CLIENT", "UNBLOCK", number(made)) == 1
        assert await caller.next() is None


async def test_a_node_that_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed after the node's time, and the client told what is known."""
    monkeypatch.setattr("tests.front.TIMEOUT", 0.1)
    async with house() as made:
        made.node.answers["CLIENT UNBLOCK"] = b"-NOPERM no\r\n"
        caller, other = await blocked(made), await made.connect()
        assert await other.call("CLIENT", "UNBLOCK", number(made)) == 0
        assert str(await caller.next()).encode() == errors.UNKNOWN_OUTCOME[1:-2]


@pytest.mark.parametrize("skip_me", ["yes", "no"])
async def test_a_kill_is_answered_when_the_wait_has_ended(skip_me: str) -> None:
    """What who kills writes behind it, or after the answer, goes to nobody who is gone."""
    async with house() as made:
        order: list[str] = []

        def late(connection: FakeConnection, words: list[bytes]) -> Answer:
            wait = waiting_on(made)
            asyncio.get_running_loop().call_later(0.05, wait.put, b"*-1\r\n")
            asyncio.get_running_loop().call_later(0.05, order.append, "ended")
            return Answer(b":1\r\n")

        def push(connection: FakeConnection, words: list[bytes]) -> bytes:
            order.append("pushed")
            return b":1\r\n"

        made.node.answers |= {"CLIENT UNBLOCK": late, "RPUSH": push}
        await blocked(made)
        other = await made.connect()
        kill = pack("CLIENT", "KILL", "TYPE", "normal", "SKIPME", skip_me)
        other.writer.write(kill + pack("RPUSH", "q", "x"))
        assert await other.next() == (1 if skip_me == "yes" else 2)
        assert order[0] == "ended"
        assert await other.next() == 1 if skip_me == "yes" else await other.rest() == []
        assert order == (["ended", "pushed"] if skip_me == "yes" else ["ended"])


async def test_a_kill_does_not_wait_for_a_silent_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered in a bounded time, whatever the node does about the wait."""
    monkeypatch.setattr("proxy.handlers.clients.ENDING", 0.05)
    async with house() as made:
        made.node.answers["CLIENT UNBLOCK"] = Answer(b"")
        await blocked(made)
        other = await made.connect()
        async with asyncio.timeout(2.0):
            assert await other.call("CLIENT", "KILL", "ID", number(made)) == 1
            assert await other.call("PING") == b"PONG"


@pytest.mark.parametrize("how", ["finish", "reset", "half", "killed"])
async def test_a_client_that_goes(how: str) -> None:
    """Its wait is ended at the node at once, however it leaves."""
    async with house() as made:
        caller = await blocked(made)
        wait = made.server.sessions[number(made)].holdings["blocked"]
        assert wait.flag == "b"
        if how == "reset":
            made.abandon(caller)
        elif how == "half":
            caller.writer.write_eof()
        elif how == "killed":
            other = await made.connect()
            assert await other.call("CLIENT", "KILL", "ID", number(made)) == 1
        else:
            caller.close()
        await wait_for(lambda: made.node.received("CLIENT")[-1][1] == b"UNBLOCK", "the word")
        await wait_for(lambda: not made.server.tasks, "the end of the wait")
        assert 'sidecache_pins{use="blocked"} 0.0' in made.stand.page()


async def test_a_client_that_had_said_all_before_it_waits() -> None:
    """It gets what it had asked for before, and its wait lasts for a moment."""
    async with house() as made:
        made.node.answers["GET"] = Answer(b"$-1\r\n", delay=0.05)
        caller = await made.connect()
        caller.writer.write(pack("GET", "k") + pack("BLPOP", "q", "0"))
        caller.writer.write_eof()
        assert await caller.rest() == [None, None]
        await wait_for(lambda: made.node.received("CLIENT")[-1][1] == b"UNBLOCK", "the word")
        await wait_for(lambda: not made.server.tasks, "the end of the wait")


@pytest.mark.parametrize("how", ["finish", "half", "reset"])
async def test_the_end_of_a_client_that_is_not_read(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has sent much behind its wait, so that no more of it is read, does not wait for ever."""
    monkeypatch.setattr("proxy.server.ROUND", 0.01)
    async with house() as made:
        caller = await made.connect()
        caller.writer.write(pack("BLPOP", "q", "0") + b"*2\r\n$4\r\nECHO\r\n$300000\r\n")
        caller.writer.write(b"x" * 200_000)
        await wait_for(lambda: not made.session._reading, "the end of reading")
        await wait_for(lambda: made.node.received("BLPOP"), "the wait")
        if how == "half":
            caller.writer.write_eof()
        elif how == "reset":
            made.abandon(caller)
        else:
            caller.close()
        await wait_for(lambda: made.node.received("CLIENT")[-1][1] == b"UNBLOCK", "the word")
        await wait_for(lambda: not made.server.tasks, "the end of the wait")
        await wait_for(lambda: not made.server.sessions, "the end of the client")


async def test_a_wait_that_is_left_takes_no_replies_back() -> None:
    """What a half-closed client was answered before its wait reaches it, however it reads."""
    async with house() as made:
        value = b"x" * 500_000
        made.node.values[b"k"] = value
        caller = await near(made)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") + pack("BLPOP", "q", "0"))
        caller.writer.write_eof()
        await wait_for(lambda: made.node.received("CLIENT")[-1][1] == b"UNBLOCK", "the word")
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await caller.rest() == [value, None]


@pytest.mark.parametrize("waits", [("BLPOP", "q", "0"), ("WAIT", "0", "0")])
async def test_a_half_closed_client_gets_what_is_there(waits: tuple[str, ...]) -> None:
    """Who sends a command that need not wait, and closes its end with it, hears the answer."""
    async with house() as made:
        element = b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"
        made.node.answers["BLPOP"] = Answer(element, delay=0.02)
        made.node.answers["WAIT"] = Answer(b":0\r\n", delay=0.02)
        caller = await made.connect()
        caller.writer.write(pack("PING") + pack(*waits) + pack("PING"))
        caller.writer.write_eof()
        expected = [b"q", b"x"] if waits[0] == "BLPOP" else 0
        assert await caller.rest() == [b"PONG", expected, b"PONG"]


async def test_a_drain_ends_waits() -> None:
    """Who waits without end does not keep the process; it gets its null and is let go."""
    async with house() as made:
        caller = await blocked(made)
        assert await asyncio.wait_for(made.server.drain(5.0), 2.0)
        assert await caller.rest() == [None]


async def test_too_many_wait() -> None:
    """Over the limit a client is told at once; with room it may wait again."""
    async with house(blocked=1) as made:
        first, second = await blocked(made), await made.connect()
        refused = await second.call("BLPOP", "q", "0")
        assert is_error(refused)
        assert str(refused) == "ERR max number of blocked clients reached"
        waiting_on(made).put(b"*-1\r\n")
        assert await first.next() is None
        second.writer.write(pack("BLPOP", "q", "0"))
        await wait_for(lambda: len(made.node.received("BLPOP")) == 2, "the wait")


async def test_commands_behind_wait() -> None:
    """A client that waits is not listened to, QUIT and RESET included, as in Redis."""
    async with house() as made:
        caller = await blocked(made, pack("SET", "k", "v"), pack("RESET"), pack("QUIT"))
        assert not made.node.received("SET")
        waiting_on(made).put(b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n")
        assert await caller.rest() == [[b"q", b"x"], b"OK", b"RESET", b"OK"]
