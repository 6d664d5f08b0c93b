"""What clients make the process hold, and who is closed for it."""

import asyncio
import logging

import pytest

from proxy.memory import FEW
from proxy.session import RECEIVE_BYTES, Session
from tests.front import Front, front
from tests.integration.rig import Caller, wait_for
from tests.replies import pack
from tests.test_session import near

pytestmark = pytest.mark.integration

LARGE = 20 << 20

# A SET whose value is to come.
VALUE = 4 << 20
HEAD = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % VALUE


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server.ROUND", 0.01)


def events(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [each.message for each in caplog.records if each.message.startswith(word)]


async def deaf(house: Front, key: str) -> Caller:
    """Return a client that asks for a key and does not read."""
    caller = await near(house)
    caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
    caller.writer.write(pack("GET", key))
    return caller


async def test_a_reply_above_the_total_reaches_who_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients that read get replies of any size at the same time; the log says so once each way."""
    with caplog.at_level(logging.INFO, "sidecache"):
        async with front(output_total_bytes=4 << 20) as house:
            house.node.values[b"k"] = b"x" * LARGE
            callers = [await house.connect() for _ in range(3)]
            replies = await asyncio.gather(*(caller.call("GET", "k") for caller in callers))
            assert [len(reply) for reply in replies] == [LARGE] * 3
            await wait_for(lambda: house.server.unread.total == 0, "an even account")
            await wait_for(lambda: len(events(caplog, "output")) >= 2, "both lines")
            assert house.closed("output") == 0
    lines = events(caplog, "output")
    assert lines == ["output_over_limit", "output_within_limit"] * (len(lines) // 2)


async def test_what_is_answered_at_once_waits_for_who_reads() -> None:
    """A pipeline of commands that no node is asked for is answered as far as its client reads."""
    async with front() as house:
        caller = await house.connect(4096)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(pack("COMMAND") * 300)
        await wait_for(lambda: house.server.unread.total, "output")
        assert house.server.unread.total < 4 << 20
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        sizes = {len(await caller.next()) for _ in range(300)}
        assert len(sizes) == 1
        await wait_for(lambda: house.server.unread.total == 0, "an even account")


async def reads(caller: Caller, session: Session) -> None:
    """Let a client read until its session has seen it."""
    owed = session.unread_bytes
    while session.unread_bytes == owed:
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await caller.reader.read(65536)
    caller.writer.transport.pause_reading()  # type: ignore[attr-defined]


async def test_over_the_total_who_does_not_read_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has read nothing for a while is closed, although another leaves more and reads."""
    monkeypatch.setattr("proxy.server.ROUND", 1000.0)
    async with front(output_total_bytes=4 << 20, output_bytes=64 << 20) as house:
        house.node.values |= {b"large": b"x" * LARGE, b"small": b"x" * (8 << 20)}
        reader = await deaf(house, "large")
        session = house.session
        await deaf(house, "small")
        await wait_for(lambda: house.server.unread.total > LARGE + (4 << 20), "both")
        house.server.unread.look(1.0)
        await reads(reader, session)
        house.server.unread.look(10.0)
        house.server.unread.look(12.0)
        await wait_for(lambda: house.closed("output") == 1, "the end of one")
        assert list(house.server.sessions.values()) == [session]
        reader.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await reader.reader.readexactly(LARGE // 2)


async def test_a_crowd_that_does_not_read_is_given_no_time() -> None:
    """What a crowd leaves is bounded at once, and who leaves most has its time all the same."""
    total, window = 4 << 20, 1 << 20
    async with front(output_total_bytes=total, output_bytes=64 << 20) as house:
        house.node.values |= {b"large": b"x" * LARGE, b"k": b"x" * window}
        reader = await deaf(house, "large")
        session, most = house.session, 0
        await wait_for(lambda: session.unread_bytes > LARGE // 2, "the large reply")
        for _ in range(20):
            await deaf(house, "k")
            most = max(most, house.server.unread.total - session.unread_bytes)
        await wait_for(lambda: house.closed("output") >= 20 - 8, "the end of most")
        assert most <= total + FEW * window
        assert session in house.server.sessions.values()
        reader.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await reader.reader.readexactly(LARGE // 2)


async def test_under_the_total_nobody_goes() -> None:
    """Who leaves less than its own limit unread may do so as long as there is room."""
    async with front(output_bytes=64 << 20, output_seconds=0.01) as house:
        house.node.values[b"k"] = b"x" * LARGE
        caller = await deaf(house, "k")
        await wait_for(lambda: house.server.unread.sizes, "unread output")
        house.server.unread.look(asyncio.get_running_loop().time() + 100.0)
        assert house.closed("output") == 0
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await caller.next()) == LARGE


async def test_a_large_reply_may_take_longer_than_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above its own limit a client stays as long as it reads, and goes when it stops."""
    monkeypatch.setattr("proxy.server.ROUND", 1000.0)
    async with front(output_bytes=1 << 20) as house:
        house.node.values[b"k"] = b"x" * LARGE
        caller = await deaf(house, "k")
        session = house.session
        await wait_for(lambda: session.unread_bytes > LARGE // 2, "the reply")
        for now in range(0, 50, 9):
            house.server.unread.look(float(now))
            await reads(caller, session)
        house.server.unread.look(54.0)
        assert session.unread_bytes > 1 << 20
        house.server.unread.look(63.0)
        assert house.closed("output") == 0
        house.server.unread.look(65.0)
        await wait_for(lambda: house.closed("output") == 1, "the end")


async def begin(house: Front, size: int) -> Caller:
    """Return a client that has sent so many bytes of a SET and of its value."""
    caller = await house.connect()
    caller.writer.write(HEAD + b"x" * size)
    await wait_for(lambda: house.session.downstream.held_bytes == len(HEAD) + size, "what was sent")
    return caller


async def end(caller: Caller, size: int) -> object:
    """Send the rest behind so many bytes of a value; return the reply."""
    caller.writer.write(b"x" * (VALUE - size) + b"\r\n")
    return await caller.next()


async def test_over_the_total_the_largest_request_goes(caplog: pytest.LogCaptureFixture) -> None:
    """Of those that have only begun a request it is who holds most; the others are served."""
    with caplog.at_level(logging.INFO, "sidecache"):
        async with front(input_total_bytes=6 << 20) as house:
            first, largest = await begin(house, 1 << 20), await begin(house, 3 << 20)
            assert house.server.begun.total == (4 << 20) + 2 * len(HEAD)
            last = await house.connect()
            last.writer.write(HEAD)
            assert await end(last, 0) == b"OK"
            assert await largest.rest() == []
            assert await end(first, 1 << 20) == b"OK"
            await wait_for(lambda: house.server.begun.total == 0, "an even account")
            assert house.closed("input") == 1
    assert events(caplog, "input") == ["input_over_limit", "input_within_limit"]


async def test_what_is_whole_counts_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large requests one after the other, and on several connections, come to no more than one."""
    monkeypatch.setattr("proxy.server.ROUND", 1000.0)
    async with front(input_total_bytes=5 << 20) as house:
        callers = [await house.connect() for _ in range(4)]
        for caller in callers * 3:
            # The beginning of a further request stays behind each.
            caller.writer.write(HEAD + b"x" * VALUE + b"\r\n" + b"*1\r\n$4\r\nPI")
            assert await caller.next() == b"OK"
            caller.writer.write(b"NG\r\n")
            assert await caller.next() == b"PONG"
        assert house.closed("input") == 0


async def test_a_large_request_that_stops_is_closed() -> None:
    """Beyond one read it has so long to grow; a small one may stay half as long as it likes."""
    async with front(input_seconds=0.1) as house:
        small = await begin(house, 1000)
        grown = await begin(house, 200_000)
        await begin(house, RECEIVE_BYTES + 1)
        seconds = asyncio.get_running_loop().time
        began = seconds()
        while house.closed("input") == 0:
            grown.writer.write(b"x")
            held = house.server.sessions[2].downstream.held_bytes
            await wait_for(
                lambda h=held: house.server.sessions[2].downstream.held_bytes > h, "a byte more"
            )
        assert seconds() - began >= 0.1
        assert list(house.server.sessions) == [1, 2]
        await wait_for(lambda: house.closed("input") == 2, "the end of the other")
        assert await end(small, 1000) == b"OK"
