"""One client: what it gets when it leaves early, reads slowly, sends too much or nothing at all."""

import asyncio
import hashlib
import socket
from collections.abc import Awaitable
from typing import Any

import pytest

from proxy import errors, session, wire
from proxy.config import User
from proxy.handlers import Session
from proxy.handlers.budget import Account
from tests.fakenode import Answer
from tests.front import Front, front
from tests.integration.rig import Caller, is_error, wait_for
from tests.replies import pack
from tests.upstream.listening import push

pytestmark = pytest.mark.integration

LOCKED = User("default", (hashlib.sha256(b"pw").digest(),), "default", True, False)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at deadlines often enough for a test."""
    monkeypatch.setattr("proxy.server.ROUND", 0.01)


async def near(house: Front) -> Caller:
    """Return a client of whom the kernel keeps little, so that each read of it is seen."""
    caller = await house.connect(4096)
    assert await caller.call("PING") == b"PONG"
    transport = house.session._transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return caller


async def everything(caller: Caller) -> list[Any]:
    return await caller.rest(5.0)


@pytest.mark.parametrize("tail", [b"", pack("GET", "k")[:-3], b"GET k", pack("QUIT")])
@pytest.mark.parametrize("count", [1, 300, 5_000])
async def test_a_half_closed_client_is_answered_in_full(count: int, tail: bytes) -> None:
    """Who sends and then says that nothing more comes gets every reply, and then the end."""
    async with front() as house:
        house.node.values[b"k"] = b"v"
        caller = await house.connect()
        caller.writer.write(pack("GET", "k") * count + tail)
        caller.writer.write_eof()
        replies = await everything(caller)
        quits = [b"OK"] if tail == pack("QUIT") else []
        assert replies == [b"v"] * count + quits
        await wait_for(lambda: not house.server.sessions, "the end of the session")


@pytest.mark.parametrize("size", [90_000, 2_000_000])
async def test_a_large_request_behind_a_deep_pipeline(size: int) -> None:
    """Reading that paused for a full window goes on when half of a large request is held."""
    async with front() as house:
        house.node.values[b"k"] = b"v"
        caller = await house.connect()
        large = pack("SET", "large", b"x" * size)
        caller.writer.write(pack("GET", "k") * 300 + large + pack("PING"))
        caller.writer.write_eof()
        assert await everything(caller) == [b"v"] * 300 + [b"OK", b"PONG"]


@pytest.mark.parametrize("tail", [b"", pack("GET", "k")[:-3]])
async def test_a_half_closed_client_that_reads_late(tail: bytes) -> None:
    """Bytes held back because the client does not read are taken and answered when it does."""
    async with front() as house:
        value = b"x" * 200_000
        house.node.values[b"k"] = value
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") * 40 + tail)
        caller.writer.write_eof()
        await wait_for(lambda: house.session.downstream.paused, "the pause")
        await wait_for(lambda: house.session._ended, "the end of what is sent")
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await everything(caller) == [value] * 40
        await wait_for(lambda: not house.server.sessions, "the end of the session")


async def test_replies_in_flight_survive_quit_and_the_end_of_the_stream() -> None:
    """QUIT behind slow commands, and the client's FIN with it, cost none of their replies."""
    async with front() as house:
        house.node.values[b"k"] = b"v"
        house.node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.05)
        caller = await house.connect()
        caller.writer.write(pack("GET", "k") * 2 + pack("QUIT") + pack("GET", "k"))
        caller.writer.write_eof()
        assert await everything(caller) == [b"v", b"v", b"OK"]
        await wait_for(lambda: house.closed("quit") == 1, "the reason")


@pytest.mark.parametrize("last", [pack("QUIT"), b"*x\r\n"])
async def test_what_stands_behind_the_end_takes_nothing_back(last: bytes) -> None:
    """Bytes behind QUIT or a mistake are read and dropped, so that replies on their way arrive."""
    async with front() as house:
        value = b"x" * 200_000
        house.node.values[b"k"] = value
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") * 4 + last)
        await wait_for(lambda: house.session.downstream.closing, "the end")
        caller.writer.write(b"x" * 500_000)
        await caller.writer.drain()
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        replies = await everything(caller)
        assert replies[:4] == [value] * 4
        assert len(replies) == 5
        assert house.server.sessions
        caller.close()
        await wait_for(lambda: not house.server.sessions, "the end of the session")


async def test_who_quits_may_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment in which to go begins when everything has been sent, however long that takes."""
    monkeypatch.setattr(session, "LINGER", 0.01)
    async with front() as house:
        value = b"x" * 500_000
        house.node.values[b"k"] = value
        caller = await near(house)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") + pack("QUIT"))
        await wait_for(lambda: house.session._lingering, "the end")
        end = asyncio.get_running_loop().time() + 0.1
        await wait_for(lambda: asyncio.get_running_loop().time() > end, "ten moments")
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await everything(caller) == [value, b"OK"]


async def test_who_quits_and_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that nobody reads keep no connection for longer than others of the kind."""
    monkeypatch.setattr(session, "LINGER", 0.01)
    async with front(output_seconds=0.1) as house:
        house.node.values[b"k"] = b"x" * 500_000
        caller = await near(house)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") + pack("QUIT"))
        await wait_for(lambda: house.closed("quit") == 1, "the end")
        assert not house.server.sessions


async def test_who_does_not_close_its_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has quit and stays is not waited for."""
    monkeypatch.setattr(session, "LINGER", 0.05)
    async with front() as house:
        caller = await house.connect()
        caller.writer.write(pack("QUIT"))
        assert await everything(caller) == [b"OK"]
        await wait_for(lambda: not house.server.sessions, "the end of the session")
        assert house.closed("quit") == 1


async def test_the_rest_of_a_refused_request_is_part_of_it() -> None:
    """A client that is refused before it has sent everything counts as amid its request."""
    async with front() as house:
        caller = await house.connect()
        data = pack("SET", "sidecache:lease:k", "x" * 200_000)
        caller.writer.write(data[:100_000])
        assert is_error(await caller.next())
        assert house.session.amid_request
        caller.writer.write(data[100_000:] + pack("PING"))
        assert await caller.next() == b"PONG"
        assert not house.session.amid_request


async def test_half_a_request_behind_unread_replies() -> None:
    """It keeps nobody: when the replies are read, the connection of a half-closed client ends."""
    async with front() as house:
        value = b"x" * (16 << 20)
        house.node.values[b"k"] = value
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k"))
        await wait_for(lambda: house.session.downstream.paused, "the pause")
        caller.writer.write(pack("GET", "k")[:-3])
        caller.writer.write_eof()
        await wait_for(lambda: house.session._ended, "the end of what is sent")
        assert house.session.downstream.blocked
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await everything(caller) == [value]
        await wait_for(lambda: not house.server.sessions, "the end of the session")


async def test_replies_in_flight_survive_a_protocol_error() -> None:
    """What was right before the mistake is answered, also to a client that has said all it will."""
    async with front() as house:
        house.node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.05)
        caller = await house.connect()
        caller.writer.write(pack("GET", "k") * 2 + b"*x\r\n")
        caller.writer.write_eof()
        first, second, mistake = await everything(caller)
        assert (first, second) == (b"v", b"v")
        assert str(mistake).startswith("ERR Protocol error")
        await wait_for(lambda: house.closed("protocol") == 1, "the reason")


async def test_the_window_bounds_what_is_in_flight() -> None:
    """A client has at most 128 commands in flight, and beyond 64 KiB held it is not read."""
    async with front() as house:
        house.node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.0)
        caller = await house.connect()
        assert await caller.pipeline([("GET", "k")] * 1000) == [b"v"] * 1000
        house.node.answers["GET"] = Answer(b"", 60.0)
        before = len(house.node.received("GET"))
        caller.writer.write(pack("GET", "k") * 10_000)
        await wait_for(lambda: not house.session._reading, "the end of reading")
        assert house.session.downstream.pending <= 128
        assert len(house.node.received("GET")) - before <= 128
        assert house.session.downstream.held_bytes <= 64 * 1024 + session.RECEIVE_BYTES
        # The node comes back to life: whoever was held back goes on by himself.
        house.node.answers["GET"] = b"$1\r\nw\r\n"
        for connection in house.node.connections:
            connection.close("reset")
        replies = [await caller.next() for _ in range(10_000)]
        assert replies[-1] == b"w"
        assert all(reply == b"w" or is_error(reply) for reply in replies)
        assert house.session._reading


async def test_a_reader_that_does_not_read_is_closed() -> None:
    """More unread output than the limit, for longer than the limit, ends the connection."""
    limits = {"output_bytes": 1 << 20, "output_seconds": 0.1}
    async with front(**limits) as house:
        house.node.values[b"k"] = b"x" * (8 << 20)
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") * 3)
        await wait_for(lambda: house.server.unread.sizes, "unread output")
        await wait_for(lambda: house.closed("output") == 1, "the end")
        assert house.server.unread.total == 0


async def test_a_slow_reader_that_reads_is_not_closed() -> None:
    """Time above the limit counts only while it is above the limit."""
    limits = {"output_bytes": 1 << 20, "output_seconds": 0.05}
    async with front(**limits) as house:
        house.node.values[b"k"] = b"x" * (2 << 20)
        caller = await house.connect()
        for _ in range(20):
            assert len(await caller.call("GET", "k")) == 2 << 20
        assert house.closed("output") == 0


# What is too much of a stranger, and of what Redis says so.
STRANGE = [
    (b"*11\r\n" + b"$4\r\nPING\r\n" * 11, "unauthenticated multibulk length"),
    (b"*2\r\n$4\r\nAUTH\r\n$1025\r\n", "unauthenticated bulk length"),
    (b"x" * 2000, "too big inline request"),
    (b"*1000000\r\n", "unauthenticated multibulk length"),
]


@pytest.mark.parametrize(("data", "why"), STRANGE, ids=["words", "bytes", "line", "count"])
async def test_what_a_stranger_may_send(data: bytes, why: str) -> None:
    """Before AUTH a command has at most ten words of a KiB; more is a protocol error."""
    async with front(users=[LOCKED]) as house:
        caller = await house.connect()
        caller.writer.write(data)
        (reply,) = await everything(caller)
        assert str(reply) == f"ERR Protocol error: {why}"
        await wait_for(lambda: house.closed("protocol") == 1, "the reason")


async def test_a_stranger_has_little_time() -> None:
    """Who does not authenticate in time is closed, whatever it sends meanwhile; others stay."""
    async with front(users=[LOCKED], unauthenticated=0.1) as house:
        friend, silent, busy = [await house.connect() for _ in range(3)]
        assert await friend.call("AUTH", "pw") == b"OK"
        busy.writer.write(pack("GET", "k"))
        assert str(await busy.next()).startswith("NOAUTH")
        for caller in (silent, busy):
            assert await everything(caller) == []
        assert house.closed("unauthenticated") == 2
        assert await friend.call("SET", "k", "v") == b"OK"


async def test_who_asks_in_time_is_answered() -> None:
    """A right password that waits its turn, because others guess, does not end with its time."""
    async with front(users=[LOCKED], unauthenticated=0.2) as house:
        caller = await house.connect()
        account, now = Account("127.0.0.1", failed=False), house.session._loop.time()
        while not house.server.failures.wait(account, now):
            house.server.failures.fail(account, now)
        house.server.failures.fail(account, now)
        assert await caller.call("AUTH", "pw") == b"OK"
        assert house.session._loop.time() > now + 0.3
        assert await caller.call("PING") == b"PONG"


async def test_reset_makes_a_stranger_again() -> None:
    """After RESET the small budgets and the clock of strangers hold again, until AUTH."""
    async with front(users=[LOCKED], unauthenticated=0.1) as house:
        caller = await house.connect()
        assert await caller.call("AUTH", "pw") == b"OK"
        assert await caller.call("RESET") == b"RESET"
        assert str(await caller.call("GET", "k")).startswith("NOAUTH")
        assert await caller.call("AUTH", "pw") == b"OK"
        assert await caller.call("SET", "k", "x" * 5000) == b"OK"
        assert await caller.call("RESET") == b"RESET"
        assert await everything(caller) == []
        assert house.closed("unauthenticated") == 1


async def test_a_stranger_that_does_not_read_costs_little() -> None:
    """Unread replies of a stranger stop its commands after a few KiB."""
    async with front(users=[LOCKED]) as house:
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("GET", "k") * 200_000)
        await wait_for(lambda: house.session.downstream.paused, "the pause")
        await wait_for(lambda: not house.session._reading, "the end of reading")
        assert house.session.unread_bytes <= 1 << 16


async def test_a_handler_that_fails_is_an_error_and_the_connection_lives() -> None:
    """At once or later, an exception is one error line in its turn; what is behind it runs."""

    def fails(session: Session, request: wire.Request) -> bytes:
        raise RuntimeError("a mistake of ours")

    async def fails_later() -> bytes:
        await asyncio.sleep(0)
        raise ValueError("another")

    handlers = {b"ping": fails, b"echo": lambda session, request: fails_later()}
    async with front(handlers=handlers) as house:
        caller = await house.connect()
        replies = await caller.pipeline([
            ("SET", "k", "v"), ("PING",), ("ECHO", "x"), ("GET", "k"),
        ])  # fmt: skip
        internal = errors.INTERNAL[1:-2].decode()
        assert [str(reply) for reply in replies] == ["b'OK'", internal, internal, "b'v'"]
        assert not house.server.tasks


async def test_a_client_that_dies_amid_a_slow_request() -> None:
    """Its handler ends as if nothing had happened, and nobody else gets the reply."""
    going = asyncio.Event()
    done: list[bool] = []

    def slow(session: Session, request: wire.Request) -> Awaitable[bytes]:
        async def answer() -> bytes:
            await going.wait()
            done.append(session.closing)
            return b"+late\r\n"

        return answer()

    async with front(handlers={b"echo": slow}) as house:
        caller, other = await house.connect(), await house.connect()
        caller.writer.write(pack("ECHO", "x") + pack("GET", "k"))
        await wait_for(lambda: house.server.tasks, "the handler")
        house.abandon(caller)
        await wait_for(lambda: len(house.server.sessions) == 1, "the end of the session")
        going.set()
        assert await other.call("SET", "k", "v") == b"OK"
        await wait_for(lambda: not house.server.tasks, "the handler's end")
        assert done == [False]


async def test_why_connections_ended() -> None:
    """Each end counts under its reason."""
    async with front(idle=0.1) as house:
        quits, wrong, goes, killed, idles = [await house.connect() for _ in range(5)]
        assert await quits.call("QUIT") == b"OK"
        wrong.writer.write(b"*x\r\n")
        assert len(await everything(wrong)) == 1
        number = await killed.call("CLIENT", "ID")
        assert await goes.call("CLIENT", "KILL", "ID", number) == 1
        goes.close()
        assert await everything(idles) == []
        await wait_for(lambda: not house.server.sessions, "all ends")
        reasons = ("quit", "protocol", "client", "killed", "idle")
        assert [house.closed(reason) for reason in reasons] == [1] * 5


async def test_who_listens_is_not_idle() -> None:
    """A subscriber says nothing for longer than others may, and stays, as in Redis."""
    async with front(idle=0.3) as house:
        for word in ("SUBSCRIBE", "UNSUBSCRIBE"):
            house.node.answers[word] = lambda c, words: push(words[0], words[1], 1)
        subscriber, other = await house.connect(), await house.connect()
        assert await subscriber.call("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        assert await other.rest() == []
        assert house.closed("idle") == 1
        assert await subscriber.call("PING") == [b"pong", b""]


async def test_who_is_idle() -> None:
    """Half a request keeps nobody, and a request that is under way everybody."""
    going = asyncio.Event()

    async def wait() -> bytes:
        await going.wait()
        return b"+late\r\n"

    async with front(idle=0.1, handlers={b"echo": lambda session, request: wait()}) as house:
        waits, stops = await house.connect(), await house.connect()
        waits.writer.write(pack("ECHO", "x"))
        stops.writer.write(pack("GET", "k")[:-1])
        assert await everything(stops) == []
        assert house.closed("idle") == 1
        going.set()
        assert await waits.next() == b"late"
        assert await everything(waits) == []
        assert house.closed("idle") == 2


async def test_identity_and_protocol_belong_to_the_connection() -> None:
    """HELLO 3 changes this client's replies and the connection that carries its commands."""
    async with front() as house:
        caller, other = await house.connect(), await house.connect()
        assert b"proto" in (await caller.call("HELLO", "3"))
        assert await caller.call("GET", "none") is None
        assert await other.call("GET", "none") is None
        assert [c.protocol for c in house.node.connections if c.commands] == [2, 3]
        assert sorted(session.protocol for session in house.server.sessions.values()) == [2, 3]
