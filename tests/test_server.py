"""All clients of the process: how many, where they connect, what they cost, how they are let go."""

import asyncio
import contextlib
import errno
import random
import socket
import stat
from collections.abc import Awaitable
from pathlib import Path

import pytest

from proxy import errors, wire
from proxy.config import Limits, User
from proxy.handlers import Session
from proxy.server import descriptors, shares
from proxy.wire import BEHIND
from tests.fakenode import Answer
from tests.front import front
from tests.integration.rig import Caller, wait_for
from tests.quiet import Stopwatch
from tests.replies import pack
from tests.wire.stage import ruleset

pytestmark = pytest.mark.integration


async def test_one_too_many() -> None:
    """A client beyond the limit is told so in Redis' words; a place that is free is given again."""
    async with front(clients=2) as house:
        first, second = await house.connect(), await house.connect()
        assert [await c.call("PING") for c in (first, second)] == [b"PONG", b"PONG"]
        third = await house.connect()
        assert [str(reply) for reply in await third.rest()] == [errors.MAX_CLIENTS[1:-2].decode()]
        first.close()
        await wait_for(lambda: len(house.server.sessions) == 1, "a free place")
        assert await (await house.connect()).call("PING") == b"PONG"
        statistics = house.server.statistics()
        assert (statistics.clients, statistics.connections_rejected) == (2, 1)
        assert statistics.connections_received == 4
        assert 'sidecache_connections_refused_total{reason="clients"} 1.0' in house.stand.page()


def test_descriptors_are_raised_to_what_is_allowed() -> None:
    """The process asks for all the descriptors it may have."""
    assert descriptors() == descriptors() > 128


async def call_unix(path: Path, *words: str) -> object:
    reader, writer = await asyncio.open_unix_connection(str(path))
    caller = Caller(reader, writer)
    try:
        return await caller.call(*words)
    finally:
        caller.close()


async def test_the_unix_socket(tmp_path: Path) -> None:
    """It has its mode from the start, replaces what a dead process left, and goes with us."""
    path = tmp_path / "redis.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with front(unix=path) as house:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await call_unix(path, "SET", "k", "v") == b"OK"
        assert await (await house.connect()).call("GET", "k") == b"v"
    assert not path.exists()


async def test_a_file_in_the_place_of_the_socket(tmp_path: Path) -> None:
    """What is no socket is not removed."""
    path = tmp_path / "redis.sock"
    path.write_text("important")
    with pytest.raises(OSError, match=f"{path}: the file exists and is no socket"):
        async with front(unix=path):
            pass
    assert path.read_text() == "important"


async def test_a_socket_without_a_directory(tmp_path: Path) -> None:
    """The error names the path."""
    path = tmp_path / "missing" / "redis.sock"
    with pytest.raises(FileNotFoundError, match=f"{path}: No such file or directory"):
        async with front(unix=path):
            pass


async def test_a_socket_where_somebody_listens(tmp_path: Path) -> None:
    """It is left to him, also while he is too busy to take a client."""
    path = tmp_path / "redis.sock"
    async with front(unix=path):
        with pytest.raises(OSError, match=f"{path}: another process listens here") as raised:
            async with front(unix=path):
                pass
        assert raised.value.errno == errno.EADDRINUSE
        assert await call_unix(path, "PING") == b"PONG"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another process listens here"):
            async with front(unix=path):
                pass
        assert path.is_socket()


async def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    """Who drains leaves the path to whoever comes next, and does not take it away in the end."""
    path = tmp_path / "redis.sock"
    async with front(unix=path) as first:
        first.node.answers["GET"] = Answer(b"", 60.0)
        caller = await first.connect()
        caller.writer.write(pack("GET", "k"))
        await wait_for(lambda: first.node.received("GET"), "the command")
        draining = asyncio.create_task(first.server.drain(1.0))
        await wait_for(lambda: not path.exists(), "the end of listening")
        async with front(unix=path):
            assert not await draining
            assert await call_unix(path, "PING") == b"PONG"
        assert not path.exists()


async def test_a_socket_that_was_replaced_stays(tmp_path: Path) -> None:
    """A file that somebody else has put in the place of ours is not ours to remove."""
    path = tmp_path / "redis.sock"
    async with front(unix=path) as first:
        path.unlink()
        async with front(unix=path):
            assert await first.server.drain(1.0)
            assert await call_unix(path, "PING") == b"PONG"
        assert not path.exists()


async def test_draining_answers_what_was_received() -> None:
    """Pipelines far beyond the window, slow commands and slow handlers are answered in full."""

    async def answer() -> bytes:
        await asyncio.sleep(0)
        return b"+done\r\n"

    def slow(session: Session, request: wire.Request) -> Awaitable[bytes]:
        return answer()

    async with front(handlers={b"echo": slow}) as house:
        house.node.values[b"k"] = b"v"
        house.node.script = lambda c, words: (
            Answer(b"$1\r\nv\r\n", 0.0005) if words[0] == b"GET" else None
        )
        callers = [await house.connect() for _ in range(10)]
        for caller in callers:
            assert await caller.call("PING") == b"PONG"
            caller.writer.write((pack("GET", "k") * 9 + pack("ECHO", "x")) * 50)
        await wait_for(
            lambda: all(s.downstream.pending for s in house.server.sessions.values()), "load"
        )
        assert await house.server.drain(20.0)
        for caller in callers:
            assert await caller.rest() == ([b"v"] * 9 + [b"done"]) * 50
        assert house.closed("drain") == 10
        with pytest.raises(ConnectionRefusedError):
            await house.connect()


async def test_draining_waits_for_a_request_that_arrives_in_pieces() -> None:
    """A frame whose rest comes is answered; one whose rest does not come is not waited for."""
    async with front() as house:
        whole, half, quiet = [await house.connect() for _ in range(3)]
        frame = pack("SET", "k", "v" * 1000)
        for caller in (whole, half):
            caller.writer.write(frame[:500])
        await wait_for(
            lambda: sum(s.amid_request for s in house.server.sessions.values()) == 2, "halves"
        )
        watch = Stopwatch()
        draining = asyncio.create_task(house.server.drain(10.0))
        assert await quiet.rest() == []
        assert watch.spent <= 0.3
        whole.writer.write(frame[500:])
        assert await whole.next() == b"OK"
        assert await draining
        assert watch.spent <= 2.0
        assert await half.rest() == []
        assert house.node.values[b"k"] == b"v" * 1000


async def test_draining_lets_busy_clients_go_between_two_requests() -> None:
    """Who sends the next request when it has an answer gets every answer, and is gone soon."""
    async with front() as house:
        asked = answered = 0

        async def ask(caller: Caller, *words: str) -> None:
            nonlocal asked, answered
            with contextlib.suppress(ConnectionError):
                while True:
                    asked += 1
                    await caller.call(*words)
                    answered += 1

        words = [("GET", "k"), ("SET", "k", "v"), ("PING",)] * 4
        busy = [asyncio.create_task(ask(await house.connect(), *each)) for each in words]
        await wait_for(lambda: answered > 100, "load")
        watch = Stopwatch()
        assert await house.server.drain(20.0)
        assert watch.spent <= 2.0
        await asyncio.gather(*busy)
        # The request that finds the connection closed was never taken.
        assert asked - answered == len(busy)
        assert house.closed("drain") == len(busy)


async def test_draining_ends_a_pipeline_that_never_does() -> None:
    """Half of the time later nothing more is taken, and what was taken is answered."""
    async with front() as house:
        caller = await house.connect()
        taken = 0

        def count(connection: object, words: list[bytes]) -> None:
            nonlocal taken
            taken += words[0] == b"SET"

        house.node.script = count
        answers = asyncio.create_task(caller.rest(20.0))

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                while not caller.writer.is_closing():
                    caller.writer.write(pack("SET", "k", "v") * 100)
                    await caller.writer.drain()

        flooding = asyncio.create_task(flood())
        await wait_for(lambda: house.node.values.get(b"k"), "load")
        assert await house.server.drain(4.0)
        assert await answers == [b"OK"] * taken
        caller.close()
        await flooding


async def test_draining_ends_at_its_deadline() -> None:
    """A client that is owed a reply at the deadline is closed, and the drain says so."""

    async def never() -> bytes:
        await asyncio.Event().wait()
        return b""

    async with front(handlers={b"echo": lambda session, request: never()}) as house:
        caller, idle = await house.connect(), await house.connect()
        caller.writer.write(pack("ECHO", "x"))
        await wait_for(lambda: house.server.tasks, "the handler")
        watch = Stopwatch()
        assert not await house.server.drain(0.2)
        assert watch.elapsed >= 0.2
        assert watch.spent <= 0.5
        assert await idle.rest() == await caller.rest() == []
        assert not house.server.tasks


async def test_draining_lets_handlers_of_gone_clients_end() -> None:
    """What a handler has begun it finishes, though nobody waits for the reply."""
    going = asyncio.Event()
    done: list[str] = []

    async def slow() -> bytes:
        await going.wait()
        done.append("written")
        return b"+OK\r\n"

    async with front(handlers={b"echo": lambda session, request: slow()}) as house:
        caller = await house.connect()
        caller.writer.write(pack("ECHO", "x"))
        await wait_for(lambda: house.server.tasks, "the handler")
        house.abandon(caller)
        await wait_for(lambda: not house.server.sessions, "the end of the session")
        draining = asyncio.create_task(house.server.drain(5.0))
        asyncio.get_running_loop().call_later(0.05, going.set)
        assert await draining
        assert done == ["written"]


async def test_the_largest_unread_output_goes_first() -> None:
    """Beyond what may ever be left, who leaves most is closed at once, and the others stay."""
    async with front(output_total_bytes=40 << 20, input_total_bytes=4 << 20) as house:
        sizes = {"small": 12 << 20, "large": 30 << 20, "last": 16 << 20}
        callers = {}
        for name, size in sizes.items():
            house.node.values[name.encode()] = b"x" * size
            callers[name] = await house.connect(4096)
            callers[name].writer.transport.pause_reading()  # type: ignore[attr-defined]
            callers[name].writer.write(pack("GET", name))
            waiting = len(house.server.unread.sizes) + 1
            await wait_for(
                lambda w=waiting: len(house.server.unread.sizes) == w or house.closed("output"),
                "output",
            )
        await wait_for(lambda: house.closed("output") == 1, "the end of one")
        await wait_for(lambda: len(house.server.sessions) == 2, "the others")
        assert house.server.unread.total == sum(house.server.unread.sizes.values())
        for name in ("small", "last"):
            callers[name].writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await callers[name].next()) == sizes[name]
        await wait_for(lambda: house.server.unread.total == 0, "an even account")


async def test_clients_that_leave_little_each_count_together() -> None:
    """Twenty clients that each leave less than stops a client leave no more than the total."""
    total = 4 << 20
    async with front(output_total_bytes=total // 2, input_total_bytes=total // 2) as house:
        house.node.values[b"k"] = b"x" * 900_000
        callers = [await house.connect(4096) for _ in range(20)]
        for caller in callers:
            assert await caller.call("PING") == b"PONG"
        for session in house.server.sessions.values():
            # What the kernel takes of a reply is none of the process' memory.
            peer = session._transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for caller in callers:
            caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
            caller.writer.write(pack("GET", "k"))
        await wait_for(lambda: house.node.commands.count([b"GET", b"k"]) == 20, "all requests")
        sessions = house.server.sessions
        await wait_for(lambda: not any(s.downstream.pending for s in sessions.values()), "replies")

        def fits() -> bool:
            left = [session.unread_bytes for session in sessions.values()]
            return sum(left) <= total + len(left) * BEHIND

        await wait_for(fits, "the end of those over the total")
        assert house.closed("output") >= 10
        assert not any(session.downstream.paused for session in sessions.values())


async def test_what_is_held_counts_and_not_what_is_left() -> None:
    """A reply is in memory as a whole until its last byte is sent, and so it is counted."""
    size = 900_000
    async with front() as house:
        house.node.values[b"k"] = b"x" * size
        caller = await house.connect(4096)
        assert await caller.call("PING") == b"PONG"
        session = house.session
        peer = session._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        caller.writer.write(pack("GET", "k"))
        await caller.reader.readexactly(size // 2)
        session.count_unread()
        assert session.unread_bytes <= size // 2
        assert house.server.unread.sizes[session] > size
        await caller.reader.readexactly(size - size // 2)
        await wait_for(lambda: house.server.unread.total == 0, "an even account")


async def test_replies_behind_one_that_is_missing_count() -> None:
    """Large replies that wait for the answer before them are output before anything is sent."""
    never = asyncio.Event()

    async def wait(session: Session, request: wire.Request) -> bytes:
        await never.wait()
        return b"+OK\r\n"

    async with front(
        output_total_bytes=3 << 20, input_total_bytes=1 << 20, handlers={b"lolwut": wait}
    ) as house:
        house.node.values |= {b"small": b"x", b"large": b"x" * 200_000}
        caller = await house.connect()
        # Small replies open the window for the large ones.
        for _ in range(10):
            assert await caller.call("GET", "small") == b"x"
        caller.writer.write(pack("LOLWUT") + pack("GET", "large") * 60)
        await wait_for(lambda: house.closed("output") == 1, "its end")
        never.set()


async def test_the_account_of_unread_output_never_drifts() -> None:
    """However clients grow, shrink and go, the total is the sum of what they owe."""
    chance = random.Random(7)
    async with front(output_total_bytes=4000, input_total_bytes=1000, clients=1000) as house:
        server = house.server
        sessions = [server._connect() for _ in range(50)]
        for _ in range(5000):
            session = chance.choice(sessions)
            match chance.randrange(4):
                case 0:
                    server.unread.count(session, 0)
                case 1:
                    server.dismiss(session, "client")
                case _:
                    server.unread.count(session, chance.randrange(800))
            assert server.unread.total == sum(server.unread.sizes.values()) <= 5000
        for session in sessions:
            server.dismiss(session, "client")
        assert (server.unread.total, server.unread.sizes, server.unread._seen) == (0, {}, {})


async def test_silent_clients_are_given_new_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few per turn of the loop, and not those of whom something is under way."""
    monkeypatch.setattr("proxy.server.RENEWED_PER_TURN", 2)
    async with front() as house:
        callers = [await house.connect() for _ in range(5)]
        for caller in callers:
            await caller.call("PING")
        house.node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.3)
        callers[0].writer.write(pack("GET", "k"))
        await wait_for(lambda: house.node.received("GET"), "the command")
        sides = [session.downstream for session in house.server.sessions.values()]
        former, house.server.router.ruleset = house.server.router.ruleset, ruleset()
        work = asyncio.create_task(house.server.renew())
        await asyncio.sleep(0)
        assert [side.ruleset is former for side in sides] == [True, False, True, True, True]
        await work
        assert [side.ruleset is former for side in sides] == [True] + [False] * 4
        assert await callers[0].next() == b"v"
        assert await callers[0].call("PING") == b"PONG"
        assert sides[0].ruleset is not former


async def test_who_a_client_is_before_auth() -> None:
    """The default user, if it needs no password; a disabled user has no role."""
    nobody = User("default", (), "default", False, True)
    other = User("app", (), "default", True, True)
    async with front(users=[nobody, other]) as house:
        assert house.server.first_user() is None
        assert house.server.role_of("default") is None
        assert house.server.role_of("app") == "default"
        assert house.server.role_of("unknown") is None


@pytest.mark.parametrize(
    ("room", "expected"), [(100_000, (10_000, 1100)), (4000, (2900, 1100)), (384, (192, 192))]
)
def test_descriptors_are_shared(room: int, expected: tuple[int, int]) -> None:
    """Clients and connections of their own never need more descriptors than there are."""
    limits = Limits(10_000, 0.0, 5.0, 1, 1, 1.0, 1, 1.0, 1000, 100, 60.0, 1, 1)
    assert shares(limits, room) == expected
