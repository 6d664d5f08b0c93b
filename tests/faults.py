"""A TCP relay that hurts what passes through it: the cable cutter of the tests.

Tests put it between a client and the proxy, or between the proxy and a node. Each direction has
its own `Faults`, an immutable value that may be replaced while traffic flows. Every decision comes
from one seeded generator, so a run is described by its seed.

Always true: bytes that are delivered are delivered in order; an end of stream travels in order
behind the bytes before it; whatever the relay holds is bounded by `HELD_BYTES` per direction.

What nodes say, as opposed to how bytes travel, belongs to `tests.fakenode`.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Literal, cast

# A direction holds this many bytes before it stops reading: enough to keep a fast link busy, small
# enough that back-pressure still reaches the sender.
HELD_BYTES = 256 * 1024

End = Literal["reset", "finish", "half"]
_MARKS: tuple[End, ...] = ("reset", "finish", "half")


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to one direction. Shares are probabilities per chunk as read from the socket."""

    latency: float = 0.0  # seconds added to every chunk
    jitter: float = 0.0  # seconds, up to this much more, evenly distributed
    bandwidth: float = 0.0  # bytes per second, 0 for no limit
    slice_share: float = 0.0
    slice_bytes: int = 40  # a sliced chunk leaves in pieces of 1 to this many bytes
    stall_share: float = 0.0
    stall: float = 0.35  # seconds
    reset_share: float = 0.0  # both ends get a reset
    finish_share: float = 0.0  # both ends get an orderly end
    half_share: float = 0.0  # only the receiver sees an end of stream
    corrupt_share: float = 0.0  # one byte of the chunk is changed
    cut_after: int = 0  # after this many bytes of a link's direction, 0 for never
    cut_with: End = "reset"
    blackhole: bool = False  # bytes are read and vanish
    deaf: bool = False  # bytes are not read at all


NO_FAULTS = Faults()


@dataclass(slots=True)
class Tally:
    """What a relay did so far, for the report of a test."""

    links: int = 0
    refused: int = 0
    chunks: int = 0
    bytes: int = 0
    sliced: int = 0
    stalled: int = 0
    reset: int = 0
    finished: int = 0
    corrupted: int = 0


class _Flow:
    """One direction of one link: a queue of pieces with the moment at which each may leave."""

    def __init__(self, link: "_Link", source: "_End", sink: "_End", upward: bool) -> None:
        self.link = link
        self.source = source
        self.sink = sink
        self.upward = upward
        self.pieces: deque[tuple[float, bytes | End]] = deque()
        self.held = 0
        self.passed = 0
        self.clear_at = 0.0  # when the last queued piece leaves
        self.ended = False  # the sink was told that nothing more comes
        self.timer: asyncio.Handle | None = None

    @property
    def faults(self) -> Faults:
        return self.link.relay.up if self.upward else self.link.relay.down

    def take(self, chunk: bytes) -> None:
        """Queue one chunk with everything that its faults do to it."""
        relay, faults, chance = self.link.relay, self.faults, self.link.relay.random
        relay.tally.chunks += 1
        relay.tally.bytes += len(chunk)
        if faults.blackhole:
            return
        mark = self._end_of(faults, len(chunk))
        if faults.cut_after and self.passed + len(chunk) >= faults.cut_after:
            chunk, mark = chunk[: faults.cut_after - self.passed], faults.cut_with
        self.passed += len(chunk)
        if faults.corrupt_share and chunk and chance.random() < faults.corrupt_share:
            relay.tally.corrupted += 1
            at = chance.randrange(len(chunk))
            chunk = chunk[:at] + bytes((chunk[at] ^ (1 << chance.randrange(8)),)) + chunk[at + 1 :]
        self._delay(faults)
        self._queue(faults, chunk)
        if mark is not None:
            self.pieces.append((self.clear_at, mark))
        self.pump()

    def _end_of(self, faults: Faults, size: int) -> End | None:
        chance = self.link.relay.random
        for share, mark in zip(
            (faults.reset_share, faults.finish_share, faults.half_share), _MARKS, strict=True
        ):
            if share and size and chance.random() < share:
                return mark
        return None

    def _delay(self, faults: Faults) -> None:
        relay, chance = self.link.relay, self.link.relay.random
        delay = faults.latency + (chance.random() * faults.jitter if faults.jitter else 0.0)
        if faults.stall_share and chance.random() < faults.stall_share:
            relay.tally.stalled += 1
            delay += faults.stall
        # Never before the piece in front of it: a link does not reorder.
        self.clear_at = max(self.clear_at, relay.loop.time() + delay if delay else 0.0)

    def _queue(self, faults: Faults, chunk: bytes) -> None:
        relay, chance = self.link.relay, self.link.relay.random
        sliced = bool(faults.slice_share) and chance.random() < faults.slice_share
        relay.tally.sliced += sliced
        position = 0
        while position < len(chunk):
            size = chance.randint(1, faults.slice_bytes) if sliced else len(chunk)
            piece = chunk[position : position + size]
            position += size
            if faults.bandwidth:
                start = max(self.clear_at, relay.loop.time())
                self.clear_at = start + len(piece) / faults.bandwidth
            self.pieces.append((self.clear_at, piece))
            self.held += len(piece)

    def finish(self) -> None:
        """Queue the end of the stream behind what is still held."""
        self.pieces.append((self.clear_at, "half"))
        self.pump()

    def pump(self) -> None:
        if self.timer is None and self.pieces:
            self._step()

    def _step(self) -> None:
        """Let one piece leave; the next one waits for the next turn, so that slices stay slices."""
        self.timer = None
        loop = self.link.relay.loop
        if not self.pieces or self.sink.full or self.sink.transport is None:
            return self.regulate()
        due, piece = self.pieces[0]
        wait = due - loop.time()
        if wait > 0:
            self.timer = loop.call_later(wait, self._step)
            return self.regulate()
        self.pieces.popleft()
        if isinstance(piece, str):
            self.link.end(piece, self)
        else:
            self.held -= len(piece)
            if not self.ended:
                self.sink.transport.write(piece)
        if self.pieces and self.timer is None:
            self.timer = loop.call_soon(self._step)
        return self.regulate()

    def regulate(self) -> None:
        """Read from the source only while there is room and the faults let it be heard."""
        transport = self.source.transport
        if transport is None or transport.is_closing() or self.source.ended:
            return
        wanted = self.held < HELD_BYTES and not self.faults.deaf
        if wanted != self.source.reading:
            self.source.reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()


class _End(asyncio.Protocol):
    """One socket of a link."""

    def __init__(self, link: "_Link", accepted: bool) -> None:
        self.link = link
        self.accepted = accepted
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.reading = True
        self.ended = False

    @property
    def outward(self) -> _Flow:
        return self.link.flows[0 if self.accepted else 1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        if self.accepted:
            self.link.open()
        else:
            for flow in self.link.flows:
                flow.regulate()
                flow.pump()

    def data_received(self, data: bytes) -> None:
        self.outward.take(bytes(data))

    def eof_received(self) -> bool:
        self.ended = True
        self.outward.finish()
        return True

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.link.flows[1 if self.accepted else 0].pump()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.link.end("reset" if error is not None else "finish", None)


class _Link:
    """One accepted connection and the one made for it."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        self.client = _End(self, accepted=True)
        self.target = _End(self, accepted=False)
        self.flows = (
            _Flow(self, self.client, self.target, upward=True),
            _Flow(self, self.target, self.client, upward=False),
        )
        self.half_closed = 0
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.relay.links.add(self)
        self.relay.tally.links += 1
        self.task = self.relay.loop.create_task(self._connect())

    async def _connect(self) -> None:
        host, port = self.relay.target
        try:
            await self.relay.loop.create_connection(lambda: self.target, host, port)
        except OSError:
            self.relay.tally.refused += 1
            self.end("reset", None)
            return
        if self not in self.relay.links:  # the client left while the target was being reached
            self.end("finish", None)

    def end(self, how: End, flow: _Flow | None) -> None:
        """Close the link, or in case of "half" only the receiving side of one flow."""
        if how == "half" and flow is not None:
            if flow.ended:
                return
            flow.ended = True
            transport = flow.sink.transport
            if transport is not None and not transport.is_closing():
                with contextlib.suppress(OSError, RuntimeError):
                    transport.write_eof()
            self.half_closed += 1
            if self.half_closed < 2:
                return
            how = "finish"
        if self in self.relay.links:
            self.relay.links.discard(self)
            self.relay.tally.reset += how == "reset"
            self.relay.tally.finished += how == "finish"
        for end in (self.client, self.target):
            _close(end.transport, how)
        for each in self.flows:
            each.pieces.clear()
            each.held = 0
            if each.timer is not None:
                each.timer.cancel()
                each.timer = None


def _close(transport: asyncio.Transport | None, how: End) -> None:
    if transport is None or transport.is_closing():
        return
    if how == "finish":
        transport.close()
        return
    reset(transport)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection so that its peer gets a reset instead of an end of stream."""
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    transport.abort()


class Relay:
    """Listens on a free port of the loopback and passes everything on to a target, hurt."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        seed: int,
        up: Faults = NO_FAULTS,
        down: Faults = NO_FAULTS,
    ) -> None:
        self.target = target
        self.random = random.Random(seed)
        self.up = up  # from whom connects to the target
        self.down = down  # from the target back
        self.links: set[_Link] = set()
        self.tally = Tally()
        self.port = 0
        self.loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await self.loop.create_server(
            lambda: _Link(self).client, "127.0.0.1", port or self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def apply(self, up: Faults, down: Faults) -> None:
        """Replace the faults, also for links that are open."""
        self.up, self.down = up, down
        for link in self.links:
            for flow in link.flows:
                flow.regulate()
                flow.pump()

    def cut(self, how: End = "reset") -> int:
        """End every open link and return how many there were."""
        links = list(self.links)
        for link in links:
            link.end(how, None)
        return len(links)

    async def stop(self) -> None:
        """Refuse new connections and end the open ones. `start` listens on the same port again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [link.task for link in self.links if link.task is not None]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
