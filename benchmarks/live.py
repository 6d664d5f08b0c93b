"""Seats that change in PostgreSQL, and how late subscribers behind one sidecar hear of it.

    python benchmarks/live.py                       1,000 subscribers, 500 changes/s for 10 s
    python benchmarks/live.py --store               keeps the figures in results/

The policies are those of policies/, in front of two clusters of three primaries. A process of its
own writes: each change is one UPDATE of another seat, begun when it is due. The events go round,
and each has its share of the subscribers, who are read in another process with plain epoll. The
lateness is from the beginning of the UPDATE, so with its COMMIT, to the subscriber's read.
"""

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import re
import select
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncpg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.endtoend import machine  # noqa: E402
from benchmarks.stage import Stage, Target  # noqa: E402
from proxy.embedded import sample  # noqa: E402
from proxy.embedded.postgres import postgres_for  # noqa: E402
from proxy.embedded.process import temporary_directory  # noqa: E402
from proxy.origin import installing  # noqa: E402
from proxy.policy import compiler  # noqa: E402
from proxy.policy.planning import watches_of  # noqa: E402

POLICIES = ROOT / "policies"
CLUSTERS = ("cache", "locks")

# How long the last messages may take, and whoever starts, in seconds.
PATIENCE = 30.0

# Connections of the writer: one that waits for a disk does not hold up what is due next.
WRITERS = 8

SEAT = re.compile(rb'"seat_id":"(\d+)"')

TABLES = """
INSERT INTO events
SELECT (jsonb_populate_record(NULL::events, e || jsonb_build_object('id', 'live_' || n))).*
  FROM (SELECT to_jsonb(v) AS e FROM events AS v LIMIT 1) AS one,
       generate_series(0, {events} - 1) AS n;
INSERT INTO seat_booking_state (event_id, seat_id)
SELECT 'live_' || n % {events}, n::text FROM generate_series(0, {seats} - 1) AS n"""

UPDATE = """
UPDATE seat_booking_state SET status = 'booked', updated_at = clock_timestamp()
 WHERE event_id = $1 AND seat_id = $2"""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is done."""

    subscribers: int
    events: int
    rate: int  # changes per second, over all events
    seconds: float

    @property
    def changes(self) -> int:
        """Return how many: as many of each event."""
        return int(self.rate * self.seconds) // self.events * self.events

    @property
    def deliveries(self) -> int:
        return self.changes // self.events * self.subscribers


def write(plan: Plan, dsn: str, pipe: Connection) -> None:
    """Be the process that writes; send when each change was begun."""
    pipe.send(asyncio.run(_write(plan, dsn)))


async def _write(plan: Plan, dsn: str) -> list[int]:
    begun = [0] * plan.changes
    numbers = iter(range(plan.changes))
    connections = [await asyncpg.connect(dsn, timeout=PATIENCE) for _ in range(WRITERS)]
    start = time.monotonic() + 0.5

    async def one(connection: Any) -> None:
        for number in numbers:
            await asyncio.sleep(max(0.0, start + number / plan.rate - time.monotonic()))
            begun[number] = time.monotonic_ns()
            event = f"live_{number % plan.events}"
            await connection.execute(UPDATE, event, str(number), timeout=PATIENCE)

    await asyncio.gather(*map(one, connections))
    return begun


class Ears:
    """All subscribers, in one thread."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.plan = plan
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.rests: dict[int, bytes] = {}
        self.heard: list[tuple[int, int]] = []  # number of the change, nanoseconds
        for number in range(plan.subscribers):
            self._subscribe(port, b"seat_updates:live_%d" % (number % plan.events))

    def _subscribe(self, port: int, name: bytes) -> None:
        link = socket.create_connection(("127.0.0.1", port), PATIENCE)
        link.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(name), name))
        answer = b""
        while not answer.endswith(b":1\r\n"):
            more = link.recv(4096)
            if not more:
                raise ConnectionError(f"a subscriber was turned away: {answer!r}")
            answer += more
        link.setblocking(False)
        self.sockets[link.fileno()], self.rests[link.fileno()] = link, b""
        self.poll.register(link, select.EPOLLIN)

    def listen(self, until: float) -> None:
        """Read until everything is there, or for so long."""
        while len(self.heard) < self.plan.deliveries and time.monotonic() < until:
            for descriptor, _ in self.poll.poll(0.1, 4096):
                data = self.rests[descriptor] + self.sockets[descriptor].recv(65536)
                now, end = time.monotonic_ns(), 0
                for found in SEAT.finditer(data):
                    self.heard.append((int(found[1]), now))
                    end = found.end()
                self.rests[descriptor] = data[end:]


def listen(plan: Plan, port: int, pipe: Connection) -> None:
    """Be the process of the subscribers."""
    ears = Ears(plan, port)
    pipe.send("subscribed")
    ears.listen(time.monotonic() + plan.seconds + PATIENCE)
    pipe.send(ears.heard)


def run(plan: Plan, dsn: str, target: Target) -> dict[str, Any]:
    """Play a plan and return the figures."""
    spawn = multiprocessing.get_context("spawn")
    (ears, heard_by), (pen, written_by) = multiprocessing.Pipe(), multiprocessing.Pipe()
    listener = spawn.Process(target=listen, args=(plan, target.port, heard_by))
    writer = spawn.Process(target=write, args=(plan, dsn, written_by))
    listener.start()
    try:
        if not ears.poll(PATIENCE) or ears.recv() != "subscribed":
            raise ConnectionError("the subscribers are not subscribed")
        before = target.cpu_seconds()
        writer.start()
        if not pen.poll(plan.seconds + PATIENCE):
            raise ConnectionError("the writer does not end")
        begun: list[int] = pen.recv()
        if not ears.poll(PATIENCE + 10):
            raise ConnectionError("the subscribers do not end")
        heard: list[tuple[int, int]] = ears.recv()
        spent = target.cpu_seconds() - before
    finally:
        for process in (listener, writer):
            if process.pid is not None:
                process.terminate()
                process.join()
    late = sorted(at - begun[number] for number, at in heard) or [0]
    cuts = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "most_ms": 1}
    took = (max(begun) - min(begun)) / 1e9
    return dataclasses.asdict(plan) | {
        "changes": plan.changes,
        "changes_per_second": round(plan.changes / took),
        "deliveries": plan.deliveries,
        "delivered": len(heard),
        **{
            name: round(late[min(int(len(late) * share), len(late) - 1)] / 1e6, 1)
            for name, share in cuts.items()
        },
        "proxy_cpu_share": round(spent / took, 2),
    }


async def prepare(dsn: str, plan: Plan) -> None:
    """Fill a database with the events of the plan, and let their changes be noted."""
    await sample.load(dsn, 1)
    connection = await asyncpg.connect(dsn, timeout=PATIENCE)
    await connection.execute(TABLES.format(events=plan.events, seats=plan.changes))
    await connection.close()
    watches = watches_of(compiler.read(POLICIES, CLUSTERS))
    await installing.run(dsn, watches, apply=True, remove=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--rate", type=int, default=500, help="changes per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/live.json")
    options = parser.parse_args()
    plan = Plan(options.subscribers, options.events, options.rate, options.seconds)
    with temporary_directory("sidecache-bench-") as folder, asyncio.Runner() as runner:
        server = postgres_for(folder / "postgres")
        runner.run(server.start())
        try:
            dsn = runner.run(server.create_database("live"))
            runner.run(prepare(dsn, plan))
            with Stage() as stage:
                target = stage.sidecache(
                    {name: stage.cluster(3, name) for name in CLUSTERS},
                    policies=str(POLICIES), database={"url": dsn},
                    journal={"directory": str(folder / "journal")},
                )  # fmt: skip
                figures = {"machine": machine(), **run(plan, dsn, target)}
        finally:
            runner.run(server.stop())
    text = json.dumps(figures, indent=1)
    print(text)
    if options.store:
        (ROOT / "benchmarks" / "results" / "live.json").write_text(text + "\n")
    return 1 if figures["delivered"] != figures["deliveries"] else 0


if __name__ == "__main__":
    sys.exit(main())
