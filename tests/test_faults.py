"""The relay does what its faults say, and nothing when there are none."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.faults import HELD_BYTES, Faults, Relay

pytestmark = pytest.mark.integration

PATIENCE = 5.0

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Echo:
    """A server that gives back what it gets, and counts the pieces in which it came."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.port = 0
        self.ends: list[str] = []
        self.answering = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 20):
                self.pieces.append(data)
                if self.answering:
                    writer.write(data)
            self.ends.append("finish")
        except ConnectionError:
            self.ends.append("reset")
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def relay(echo: Echo) -> AsyncIterator[Relay]:
    relay = Relay(("127.0.0.1", echo.port), seed=1)
    await relay.start()
    yield relay
    await relay.stop()


async def connect(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", relay.port)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def test_without_faults_bytes_pass_in_order(relay: Relay) -> None:
    """A megabyte comes back as it was sent, far more than the relay holds at once."""
    reader, writer = await connect(relay)
    data = bytes(range(256)) * 4096
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE) == data
    writer.close()


async def test_an_end_of_stream_passes_behind_the_bytes(relay: Relay) -> None:
    """Half-closing one side reaches the other, and its answer still comes back."""
    reader, writer = await connect(relay)
    writer.write(b"last words")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b"last words"
    await until(lambda: not relay.links)
    writer.close()


async def test_latency_delays_and_keeps_the_order(relay: Relay) -> None:
    """Jitter never lets a later byte overtake an earlier one."""
    relay.apply(Faults(latency=0.02, jitter=0.03), Faults(jitter=0.03))
    reader, writer = await connect(relay)
    start = asyncio.get_running_loop().time()
    for number in range(50):
        writer.write(b"%04d" % number)
        await writer.drain()
        await asyncio.sleep(0)
    got = await asyncio.wait_for(reader.readexactly(200), PATIENCE)
    assert got == b"".join(b"%04d" % number for number in range(50))
    assert asyncio.get_running_loop().time() - start >= 0.02
    writer.close()


async def test_slices_arrive_in_small_pieces(relay: Relay, echo: Echo) -> None:
    """A sliced chunk reaches the target in several reads."""
    relay.apply(Faults(slice_share=1.0, slice_bytes=5), Faults())
    reader, writer = await connect(relay)
    writer.write(b"x" * 300)
    await asyncio.wait_for(reader.readexactly(300), PATIENCE)
    assert len(echo.pieces) > 10
    writer.close()


async def test_bandwidth_is_a_limit(relay: Relay) -> None:
    """Ten kilobytes at 100 kB a second take a tenth of a second."""
    relay.apply(Faults(bandwidth=100_000, slice_share=1.0, slice_bytes=2000), Faults())
    reader, writer = await connect(relay)
    start = asyncio.get_running_loop().time()
    writer.write(b"x" * 10_000)
    await asyncio.wait_for(reader.readexactly(10_000), PATIENCE)
    assert asyncio.get_running_loop().time() - start >= 0.08
    writer.close()


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(reset_share=1.0), ConnectionResetError),
        (Faults(finish_share=1.0), asyncio.IncompleteReadError),
        (Faults(cut_after=4, cut_with="reset"), ConnectionResetError),
    ],
)
async def test_a_link_ends_as_asked(
    relay: Relay, echo: Echo, faults: Faults, error: type[Exception]
) -> None:
    """A reset is a reset for the client, a finish an orderly end."""
    echo.answering = False
    relay.apply(faults, Faults())
    reader, writer = await connect(relay)
    writer.write(b"four bytes and more")
    with pytest.raises(error):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE)
    await until(lambda: not relay.links)
    writer.close()


async def test_a_cut_lets_exactly_the_first_bytes_through(relay: Relay) -> None:
    """After byte N of the answer the client sees the end of the stream."""
    relay.apply(Faults(), Faults(cut_after=7, cut_with="finish"))
    reader, writer = await connect(relay)
    writer.write(b"0123456789")
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b"0123456"
    writer.close()


async def test_half_closed_by_the_relay_only_one_side_sees_an_end(relay: Relay, echo: Echo) -> None:
    """The receiver gets an end of stream while the sender goes on unaware."""
    echo.answering = False
    relay.apply(Faults(half_share=1.0), Faults())
    _, writer = await connect(relay)
    writer.write(b"first")
    await until(lambda: echo.ends == ["finish"])
    assert echo.pieces == [b"first"]
    writer.close()


async def test_a_blackhole_swallows_and_a_stall_only_delays(relay: Relay, echo: Echo) -> None:
    """Bytes sent into a blackhole never arrive; those behind a stall do."""
    relay.apply(Faults(blackhole=True), Faults())
    reader, writer = await connect(relay)
    writer.write(b"gone")
    await until(lambda: relay.tally.bytes == 4)
    relay.apply(Faults(stall_share=1.0, stall=0.1), Faults())
    start = asyncio.get_running_loop().time()
    writer.write(b"late")
    assert await asyncio.wait_for(reader.readexactly(4), PATIENCE) == b"late"
    assert asyncio.get_running_loop().time() - start >= 0.09
    assert echo.pieces == [b"late"]
    writer.close()


async def test_a_deaf_relay_makes_the_sender_wait(relay: Relay) -> None:
    """Nothing is read from a direction that is deaf, and all of it once it hears again."""
    reader, writer = await connect(relay)
    writer.write(b"a")
    await asyncio.wait_for(reader.readexactly(1), PATIENCE)
    relay.apply(Faults(deaf=True), Faults())
    writer.write(b"b" * 20_000_000)
    await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > 10_000_000
    assert relay.tally.bytes < 2 + 4 * HELD_BYTES
    relay.apply(Faults(), Faults())
    await asyncio.wait_for(reader.readexactly(20_000_000), 20.0)
    writer.close()


async def test_corruption_changes_one_bit(relay: Relay) -> None:
    """The bytes that come back differ from those sent in exactly one bit."""
    relay.apply(Faults(corrupt_share=1.0), Faults())
    reader, writer = await connect(relay)
    writer.write(b"\0" * 50)
    got = await asyncio.wait_for(reader.readexactly(50), PATIENCE)
    assert sum(byte.bit_count() for byte in got) == 1
    writer.close()


async def test_a_stopped_relay_refuses_and_comes_back_on_its_port(relay: Relay) -> None:
    """`stop` ends links and refuses connections until `start`."""
    reader, writer = await connect(relay)
    writer.write(b"x")
    await reader.readexactly(1)
    await relay.stop()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await connect(relay)
    await relay.start()
    again, other = await connect(relay)
    other.write(b"y")
    assert await again.readexactly(1) == b"y"
    writer.close()
    other.close()
