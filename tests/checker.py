"""Clients that know every answer beforehand: the hunt for wrong replies.

    python -m tests.checker --port 6379 --replies 500000 --seconds 60 --seed 7

Every key holds a value that says whose it is: V, the key, and a filler whose length depends on the
key. So each reply of a random pipeline is known byte for byte before it is asked for, and a reply
that belongs to somebody else cannot pass. Clients misbehave on purpose: they leave with requests
in flight, reset, close half, stop in the middle of a request, read slowly, lose patience.

A reply is right, or an error line; anything else is a finding: *wrong* (well formed, not ours),
*extra* (nothing was asked) or *malformed*. A connection that the other side closes is counted and
is no finding. All chances come from the seed.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

from tests.faults import reset
from tests.replies import Incomplete, Malformed, frame_end, pack

# Findings kept in full for the report; the rest is only counted.
_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """How many clients do what, and how often they misbehave. Shares are per pipeline."""

    port: int = 0
    path: str = ""  # a unix socket, instead of the port
    clients: int = 40
    keys: int = 2000
    prefix: str = "check"
    seed: int = 1
    replies: int = 500_000  # stop after this many right replies and errors
    seconds: float = 60.0
    deepest: int = 8  # commands in one pipeline
    # A client gives up on a pipeline after these seconds: far beyond any deadline of a proxy, so
    # that what is late is late by fault of the proxy.
    patience: float = 5.0
    abort_share: float = 0.05  # leaves while replies are due
    half_share: float = 0.01  # closes half and still wants every reply
    slow_share: float = 0.01  # does not read for a while
    torn_share: float = 0.01  # leaves in the middle of a request
    idle_share: float = 0.05  # waits before the next pipeline, to see extra replies
    protocol3_share: float = 0.5  # connections that say HELLO 3
    stop_at_finding: bool = False


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    right: int = 0
    error: int = 0
    closed: int = 0  # replies that never came because the other side closed
    abandoned: int = 0  # replies that the client did not wait for
    late: int = 0  # replies that did not come within the client's patience
    wrong: int = 0
    extra: int = 0
    malformed: int = 0
    connections: int = 0
    refused: int = 0
    seconds: float = 0.0
    first_finding: float | None = None  # seconds after the start
    findings: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)  # by first words

    @property
    def replies(self) -> int:
        return self.right + self.error

    @property
    def faults(self) -> int:
        return self.wrong + self.extra + self.malformed

    def __str__(self) -> str:
        return (
            f"{self.right} right, {self.error} errors, {self.closed} closed, {self.abandoned} "
            f"abandoned, {self.late} late, {self.wrong} wrong, {self.extra} extra, "
            f"{self.malformed} malformed in {self.seconds:.1f} s over {self.connections} "
            f"connections; errors {self.errors}; findings {self.findings}"
        )


class Vocabulary:
    """Every key with its value, and requests whose replies are known."""

    def __init__(self, keys: int, prefix: str) -> None:
        self.keys = [b"%b:%d" % (prefix.encode(), number) for number in range(keys)]
        self.values = [self.value(key) for key in self.keys]
        self.bulks = [b"$%d\r\n%b\r\n" % (len(value), value) for value in self.values]

    @staticmethod
    def value(key: bytes) -> bytes:
        """Return V, the key and a filler; one key in fifty is large enough to arrive in pieces."""
        number = zlib.crc32(key)
        length = number % 200 if number % 50 else 4_000 + number % 60_000
        return b"V" + key + b"." * length

    def ask(self, chance: random.Random) -> tuple[bytes, bytes]:
        """Return a random request and the only right reply to it."""
        index, dice = chance.randrange(len(self.keys)), chance.random()
        key, value = self.keys[index], self.values[index]
        if dice < 0.52:
            return pack("GET", key), self.bulks[index]
        if dice < 0.67:
            return pack("SET", key, value), b"+OK\r\n"
        if dice < 0.77:
            last = chance.randrange(len(key), len(value))
            part = value[: last + 1]
            return pack("GETRANGE", key, 0, last), b"$%d\r\n%b\r\n" % (len(part), part)
        if dice < 0.82:
            return pack("STRLEN", key), b":%d\r\n" % len(value)
        if dice < 0.86:
            return pack("SET", key, value, "GET"), self.bulks[index]
        if dice < 0.90:
            nonce = b"%016x" % chance.getrandbits(64)
            return pack("ECHO", nonce), b"$16\r\n%b\r\n" % nonce
        several = [chance.randrange(len(self.keys)) for _ in range(chance.randint(2, 5))]
        names = [self.keys[each] for each in several]
        if dice < 0.95:
            return pack("EXISTS", *names), b":%d\r\n" % len(names)
        parts = b"".join(self.bulks[each] for each in several)
        return pack("MGET", *names), b"*%d\r\n%b" % (len(names), parts)


class Client(asyncio.Protocol):
    """One connection of one checker: sends a pipeline, checks, and goes on or leaves."""

    def __init__(self, hunt: "Hunt") -> None:
        self.hunt = hunt
        self.expected: deque[bytes | None] = deque()  # None: any well-formed reply will do
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.leaving = False  # by our own will
        self.half = False
        self.torn = False
        self.timers: list[asyncio.TimerHandle] = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)
        self.hunt.tally.connections += 1
        if self.hunt.chance.random() < self.hunt.plan.protocol3_share:
            self.expected.append(None)
            self.transport.write(pack("HELLO", 3))
        self.send_pipeline()

    def send_pipeline(self) -> None:
        """Send the next pipeline together with the misbehaviour that chance chose for it."""
        hunt, chance, plan = self.hunt, self.hunt.chance, self.hunt.plan
        if self.transport is None or self.transport.is_closing() or hunt.over:
            self.leave("finish")
            return
        requests = []
        for _ in range(chance.randint(1, plan.deepest)):
            request, reply = hunt.vocabulary.ask(chance)
            requests.append(request)
            self.expected.append(reply)
        data, dice = b"".join(requests), chance.random()
        if dice < plan.torn_share:
            self.torn = True
            self.expected.pop()
            self.transport.write(data[: len(data) - chance.randint(1, len(requests[-1]) - 1)])
            self.later(chance.random() * 0.005, lambda: self.leave("reset"))
            return
        self.transport.write(data)
        dice -= plan.torn_share
        if dice < plan.abort_share:
            how = "reset" if chance.random() < 0.5 else "finish"
            # Log-uniform from 0.1 ms to 100 ms: before, between and behind the replies.
            self.later(10 ** chance.uniform(-4, -1), lambda: self.leave(how))
            return
        dice -= plan.abort_share
        if dice < plan.half_share:
            self.half = True
            self.transport.write_eof()
        elif dice - plan.half_share < plan.slow_share:
            self.transport.pause_reading()
            self.later(chance.random() * 0.05, self.read_on)
        self.later(self.hunt.plan.patience, self.lose_patience)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self.timers.append(asyncio.get_running_loop().call_later(delay, call))

    def read_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def lose_patience(self) -> None:
        self.hunt.tally.late += len(self.expected)
        self.expected.clear()
        self.leave("reset")

    def leave(self, how: str) -> None:
        """Close the connection by our own will; what is due is abandoned, not lost."""
        self.leaving = True
        self.hunt.tally.abandoned += len(self.expected)
        self.expected.clear()
        if self.transport is None or self.transport.is_closing():
            return
        if how == "reset":
            reset(self.transport)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.leaving:
            return
        self.buffer += data
        try:
            self.check()
        except Malformed as fault:
            self.hunt.find("malformed", str(fault), bytes(self.buffer[:80]))
            self.leave("reset")

    def check(self) -> None:
        """Compare what arrived with what is due, and go on when nothing is due any more."""
        buffer, position, tally = self.buffer, 0, self.hunt.tally
        while self.expected:
            wanted = self.expected[0]
            if wanted is not None and buffer.startswith(wanted, position):
                position += len(wanted)
                tally.right += 1
            elif wanted is not None and wanted.startswith(bytes(buffer[position:])):
                break
            else:
                try:
                    end = frame_end(buffer, position)
                except Incomplete:
                    break
                self.judge(wanted, bytes(buffer[position:end]))
                position = end
            self.expected.popleft()
        del buffer[:position]
        if self.expected:
            return
        if buffer:
            self.hunt.find("extra", "nothing was asked", bytes(buffer[:80]))
            buffer.clear()
        self.rest()

    def judge(self, wanted: bytes | None, got: bytes) -> None:
        tally = self.hunt.tally
        if got.startswith(b"-"):
            tally.error += 1
            words = b" ".join(got.split()[:2]).decode("latin-1")
            if len(tally.errors) < 50 or words in tally.errors:
                tally.errors[words] = tally.errors.get(words, 0) + 1
        elif wanted is None:
            tally.right += 1
        else:
            self.hunt.find("wrong", f"wanted {wanted[:60]!r}", got[:80])

    def rest(self) -> None:
        """Send the next pipeline now, or after a pause in which nothing may arrive."""
        if self.torn:
            return
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        if self.half:
            self.later(
                self.hunt.plan.patience, lambda: self.leave("reset")
            )  # the other side closes next
            return
        if self.hunt.chance.random() < self.hunt.plan.idle_share:
            self.later(self.hunt.chance.random() * 0.02, self.send_pipeline)
        else:
            asyncio.get_running_loop().call_soon(self.send_pipeline)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in self.timers:
            timer.cancel()
        self.hunt.tally.closed += len(self.expected)
        self.expected.clear()
        self.transport = None
        if not self.lost.done():
            self.lost.set_result(None)


class Hunt:
    """All clients of one run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.vocabulary = Vocabulary(plan.keys, plan.prefix)
        self.tally = Tally()
        self.start = time.monotonic()

    @property
    def over(self) -> bool:
        return (
            self.tally.replies >= self.plan.replies
            or time.monotonic() - self.start >= self.plan.seconds
            or (self.plan.stop_at_finding and self.tally.faults > 0)
        )

    def find(self, kind: str, why: str, got: bytes) -> None:
        tally = self.tally
        setattr(tally, kind, getattr(tally, kind) + 1)
        if tally.first_finding is None:
            tally.first_finding = time.monotonic() - self.start
        if len(tally.findings) < _SAMPLES:
            tally.findings.append(f"{kind}: {why}, got {got!r}")

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        client = Client(self)
        if self.plan.path:
            await loop.create_unix_connection(lambda: client, self.plan.path)
        else:
            await loop.create_connection(lambda: client, "127.0.0.1", self.plan.port)
        return client

    async def repeat(self) -> None:
        """Be one client after the other until the hunt is over."""
        while not self.over:
            try:
                client = await self.connect()
            except OSError:
                self.tally.refused += 1
                await asyncio.sleep(0.01)
                continue
            await client.lost

    async def run(self) -> Tally:
        await fill(self.plan, self.vocabulary)
        self.start = time.monotonic()
        await asyncio.gather(*(self.repeat() for _ in range(self.plan.clients)))
        self.tally.seconds = time.monotonic() - self.start
        return self.tally


async def fill(plan: Plan, vocabulary: Vocabulary) -> None:
    """Write every key once; an error is retried, because faults may be on already."""
    deadline = time.monotonic() + 30.0
    left = list(zip(vocabulary.keys, vocabulary.values, strict=True))
    while left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(left)} keys could not be written")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            left = await asyncio.wait_for(_fill_some(plan, left), 5.0)


async def _fill_some(plan: Plan, left: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    opening = (
        asyncio.open_unix_connection(plan.path)
        if plan.path
        else asyncio.open_connection("127.0.0.1", plan.port)
    )
    reader, writer = await opening
    try:
        failed = []
        for start in range(0, len(left), 50):
            some = left[start : start + 50]
            writer.write(b"".join(pack("SET", key, value) for key, value in some))
            failed += [pair for pair in some if await reader.readline() != b"+OK\r\n"]
        return failed
    finally:
        writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for spec in dataclasses.fields(Plan):
        flag = "--" + spec.name.replace("_", "-")
        if isinstance(spec.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(spec.default), default=spec.default)
    plan = Plan(**vars(parser.parse_args()))
    tally = uvloop.run(Hunt(plan).run())
    print(json.dumps(dataclasses.asdict(tally)))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
