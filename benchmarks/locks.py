"""Locks of seats: how many are granted, how fast others are refused; open loop.

    python benchmarks/locks.py                     each for ten seconds
    python benchmarks/locks.py --only refusals-set --seconds 20
    python benchmarks/locks.py --store             keeps the figures in results/

In front of two clusters of three primaries and of a PostgreSQL with fsync, with the policies of
policies/. Latencies run from the moment at which a request was due.

grants    500 buyers, each on a connection of its own, take another free seat each and give it back
          after some thought, 1,000 a second: by SEAT.ACQUIRE and SEAT.RELEASE (`seat`), by SET NX
          EX and DEL (`set`), and without the proxy (`direct`): SET NX EX by a cluster client, then
          the UPDATE of the row, and back. Goals: >= 1,000/s, p50 < 50 ms, p99 < 100 ms.
refusals  500 connections ask for 20 seats that others hold, 10,000 times a second, by SEAT.ACQUIRE
          or SET NX EX. Goals: >= 10,000/s, p99 < 5 ms. Beyond that, how many a second at most.

`per_cpu_second` is what the proxy answers for a second of its own CPU: what a busy machine leaves
as it is.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import multiprocessing
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import asyncpg
import hiredis
import redis.asyncio
import uvloop
from redis.asyncio.cluster import ClusterNode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.endtoend import machine  # noqa: E402
from benchmarks.stage import Stage, Target  # noqa: E402
from proxy.embedded import sample  # noqa: E402
from proxy.embedded.node import packed  # noqa: E402
from proxy.embedded.postgres import postgres_for  # noqa: E402
from proxy.embedded.process import temporary_directory  # noqa: E402
from proxy.origin import installing  # noqa: E402
from proxy.policy import compiler, planning  # noqa: E402

POLICIES = ROOT / "policies"
CLUSTERS = ("cache", "locks")

# Buyers, of one of the events and each with seats of its own; what is asked for by everybody is in
# another event.
BUYERS, EVENTS, SEATS_EACH, HOT = 500, 20, 10, 20

# How long a buyer thinks, seconds; less than from one seat of a buyer to the next.
THOUGHT = 0.2

# The generator wakes this often, in seconds. For refusals a millisecond is too coarse: it stops for
# less, which leaves a core to others and is part of what is measured.
GRANTS_TURN, REFUSALS_TURN, REFUSALS_STOP = 0.001, 0.0, 0.0004

# How long the last replies are waited for, seconds.
PATIENCE = 5.0

# Statements at a time of the application without a proxy, as many as the proxy may have.
CONNECTIONS = 8

GRANTS_GOALS = {"p50_ms": 50.0, "p99_ms": 100.0}
REFUSALS_GOALS = {"p99_ms": 5.0}

TABLES = """
INSERT INTO events
SELECT (jsonb_populate_record(NULL::events, e || jsonb_build_object('id', 'sale_' || n))).*
  FROM (SELECT to_jsonb(v) AS e FROM events AS v LIMIT 1) AS one, generate_series(0, {events}) AS n;
INSERT INTO seat_booking_state (event_id, seat_id)
SELECT 'sale_' || e, s::text
  FROM generate_series(0, {events}) AS e, generate_series(0, {seats} - 1) AS s;
ANALYZE seat_booking_state"""

LOCK = """
UPDATE seat_booking_state
   SET status = 'locked', locked_by = $3, locked_at = now(), session_id = 'web', updated_at = now(),
       locked_until = now() + interval '10 minutes', lock_token = coalesce(lock_token, 0) + 1
 WHERE event_id = $1 AND seat_id = $2 AND status = 'available' RETURNING lock_token"""
UNLOCK = """
UPDATE seat_booking_state SET status = 'available', locked_by = NULL, locked_until = NULL,
       updated_at = now()
 WHERE event_id = $1 AND seat_id = $2 AND locked_by = $3 RETURNING lock_token"""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and where."""

    target: Target
    nodes: tuple[int, ...]  # ports of the cluster of the locks
    dsn: str  # of a database that nobody else uses
    seconds: float
    grants: int  # per second
    refusals: int


class Line(asyncio.Protocol):
    """One connection, which gives each reply to who asked."""

    def __init__(self) -> None:
        self.asked: deque[Callable[[Any], None]] = deque()
        self._replies = hiredis.Reader(encoding="utf-8")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, frame: bytes, heard: Callable[[Any], None]) -> None:
        self.asked.append(heard)
        self.transport.write(frame)

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            self.asked.popleft()(reply)


class Tallies:
    """What was heard, and when."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.heard: Counter[str] = Counter()
        self.late = 0

    def hear(self, due: float, outcome: str) -> None:
        self.times.append(time.perf_counter() - due)
        self.heard[outcome] += 1

    def figures(self, seconds: float, wanted: str) -> dict[str, Any]:
        """Return them, for replies of one kind as those that were wanted."""
        times = sorted(self.times)
        cuts = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
        return {
            "per_second": round(self.heard[wanted] / seconds),
            **{name: round(times[int(cut * (len(times) - 1))] * 1e3, 2)
               for name, cut in cuts.items()},
            "heard": dict(self.heard), "late_share": round(self.late / len(times), 4),
        }  # fmt: skip


Wording = Callable[[str, str, str, str], bytes]  # event, seat, owner, token


def _value(owner: str) -> str:
    return json.dumps({"user_id": owner, "booking_id": f"book_{owner}", "session_id": "web"})


def _set(event: str, seat: str, owner: str, token: str = "") -> bytes:
    return packed(("SET", f"seat_lock:{event}:{seat}", _value(owner), "NX", "EX", "600"))


def _del(event: str, seat: str, owner: str, token: str) -> bytes:
    return packed(("DEL", f"seat_lock:{event}:{seat}"))


def _acquire(event: str, seat: str, owner: str, token: str = "") -> bytes:
    return packed(("SEAT.ACQUIRE", event, seat, owner, f"book_{owner}", "web"))


def _release(event: str, seat: str, owner: str, token: str) -> bytes:
    return packed(("SEAT.RELEASE", event, seat, owner, token))


WORDINGS: Mapping[str, tuple[Wording, Wording]] = {
    "set": (_set, _del), "seat": (_acquire, _release),
}  # fmt: skip


def outcome_of(reply: Any) -> str:
    """Return what a reply says, in the words of SEAT.ACQUIRE."""
    if isinstance(reply, list):
        return str(reply[1])
    if isinstance(reply, Exception):
        return str(reply).partition(" ")[0]
    return "acquired" if reply == "OK" else "held" if reply is None else str(reply)


def wanted_by(buyer: int, turn: int) -> tuple[str, str, str]:
    """Return event, seat and owner of a buyer's turn."""
    event, place = divmod(buyer, BUYERS // EVENTS)
    return f"sale_{event}", str(place * SEATS_EACH + turn % SEATS_EACH), f"usr_{buyer}"


async def lines(plan: Plan) -> list[Line]:
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(Line, "127.0.0.1", plan.target.port))[1]
        for _ in range(BUYERS)
    ]


async def paced(
    tallies: Tallies, rate: float, seconds: float, send: Callable[..., None], turn: float
) -> None:
    """Call send with number and moment of each request when it is due."""
    total, sent, start = int(rate * seconds), 0, time.perf_counter() + 0.01
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := start + sent / rate) <= now:
            send(sent, due)
            tallies.late += now - due > 0.001
            sent += 1
        if not turn:
            time.sleep(REFUSALS_STOP)
        await asyncio.sleep(turn)
    deadline = time.perf_counter() + PATIENCE
    while len(tallies.times) < total and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)


async def grants(plan: Plan, wording: str) -> dict[str, Any]:
    """Take seats and give them back, through the proxy."""
    take, give = WORDINGS[wording]
    tallies, loop, buyers = Tallies(), asyncio.get_running_loop(), await lines(plan)
    back: Counter[str] = Counter()

    def given(reply: Any) -> None:
        back[outcome_of(reply)] += 1

    def send(number: int, due: float) -> None:
        turn, buyer = divmod(number, BUYERS)
        seat, line = wanted_by(buyer, turn), buyers[buyer]

        def heard(reply: Any) -> None:
            tallies.hear(due, outcome_of(reply))
            token = str(reply[3]) if isinstance(reply, list) else ""
            loop.call_later(THOUGHT, line.ask, give(*seat, token), given)

        line.ask(take(*seat, ""), heard)

    spent = plan.target.cpu_seconds()
    await paced(tallies, plan.grants, plan.seconds, send, GRANTS_TURN)
    await asyncio.sleep(2 * THOUGHT)
    spent = plan.target.cpu_seconds() - spent
    for line in buyers:
        line.transport.close()
    figures = tallies.figures(plan.seconds, "acquired")
    return figures | {
        "given_back": dict(back),
        # Of each grant there is a release.
        "per_cpu_second": round((len(tallies.times) + back.total()) / spent),
    }


async def direct(plan: Plan, wording: str) -> dict[str, Any]:
    """Take seats and give them back as an application does that has no proxy."""
    nodes = [ClusterNode("127.0.0.1", port) for port in plan.nodes]
    cluster: Any = redis.asyncio.RedisCluster(startup_nodes=nodes, max_connections=BUYERS)
    tallies, tasks = Tallies(), set[asyncio.Task[None]]()
    async with asyncpg.create_pool(plan.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:

        async def buy(event: str, seat: str, owner: str, due: float) -> None:
            key, row = f"seat_lock:{{{event}}}:{seat}", (event, seat, owner)
            free = await cluster.set(key, _value(owner), nx=True, ex=600)
            done = free and await pool.fetchval(LOCK, *row)
            tallies.hear(due, "acquired" if done else "held")
            await asyncio.sleep(THOUGHT)
            await pool.fetchval(UNLOCK, *row)
            await cluster.delete(key)

        def send(number: int, due: float) -> None:
            turn, buyer = divmod(number, BUYERS)
            task = asyncio.create_task(buy(*wanted_by(buyer, turn), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        await paced(tallies, plan.grants, plan.seconds, send, GRANTS_TURN)
        await asyncio.gather(*tasks)
    await cluster.aclose()
    return tallies.figures(plan.seconds, "acquired")


async def refusals(plan: Plan, wording: str) -> dict[str, Any]:
    """Ask for seats that others hold, at the rate of the plan and then as fast as they say no."""
    take, _ = WORDINGS[wording]
    askers, event = await lines(plan), f"sale_{EVENTS}"
    for seat in range(HOT):
        held: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        askers[0].ask(_acquire(event, str(seat), f"holder_{seat // 10}"), held.set_result)
        await asyncio.wait_for(held, PATIENCE)
    reel = [
        [take(event, str(seat), f"usr_{number}", "") for seat in range(HOT)]
        for number in range(BUYERS)
    ]
    warm, tallies = Tallies(), Tallies()

    def sender(tallies: Tallies) -> Callable[[int, float], None]:
        def send(number: int, due: float) -> None:
            turn, asker = divmod(number, BUYERS)
            frame = reel[asker][(asker + turn) % HOT]
            askers[asker].ask(frame, lambda reply: tallies.hear(due, outcome_of(reply)))

        return send

    await paced(warm, plan.refusals / 2, 1.0, sender(warm), REFUSALS_TURN)
    spent, own = plan.target.cpu_seconds(), time.process_time()
    await paced(tallies, plan.refusals, plan.seconds, sender(tallies), REFUSALS_TURN)
    spent, own = plan.target.cpu_seconds() - spent, time.process_time() - own
    most = await _closed(plan, askers, reel)
    for line in askers:
        line.transport.close()
    figures = tallies.figures(plan.seconds, "held")
    return figures | {
        "per_cpu_second": round(len(tallies.times) / spent),
        "generator_per_cpu_second": round(len(tallies.times) / own), "most_per_second": most,
    }  # fmt: skip


async def _closed(plan: Plan, askers: list[Line], reel: list[list[bytes]]) -> int:
    """Return how many are refused a second where each connection asks again at once."""
    until, count = time.perf_counter() + plan.seconds / 2, 0

    def again(asker: int, turn: int) -> None:
        def heard(reply: Any) -> None:
            nonlocal count
            count += outcome_of(reply) == "held"
            if time.perf_counter() < until:
                again(asker, turn + 1)

        askers[asker].ask(reel[asker][(asker + turn) % HOT], heard)

    for asker in range(len(askers)):
        again(asker, 0)
    while any(line.asked for line in askers) and time.perf_counter() < until + PATIENCE:
        await asyncio.sleep(0.05)
    return round(count / (plan.seconds / 2))


SCENARIOS: Mapping[str, tuple[Callable[[Plan, str], Awaitable[dict[str, Any]]], str]] = {
    "grants-seat": (grants, "seat"), "grants-set": (grants, "set"), "grants-direct": (direct, ""),
    "refusals-seat": (refusals, "seat"), "refusals-set": (refusals, "set"),
}  # fmt: skip


def play(plan: Plan, name: str, pipe: Connection) -> None:
    """Be the process that asks; send the figures."""
    gc.collect()
    gc.disable()
    scenario, wording = SCENARIOS[name]

    async def run() -> dict[str, Any]:
        return await scenario(plan, wording)

    pipe.send(uvloop.run(run()))


def measured(plan: Plan, name: str) -> dict[str, Any]:
    """Play one scenario in a process of its own."""
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=play, args=(plan, name, far))
    process.start()
    far.close()
    try:
        if not near.poll(2 * plan.seconds + 60):
            raise ConnectionError(f"{name} does not end")
        found: dict[str, Any] = near.recv()
    finally:
        process.terminate()
        process.join()
    return found


def verdicts(plan: Plan, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line per goal: what was aimed at, what came out."""
    lines = []
    for name, figures in found.items():
        refused = name.startswith("refusals")
        # Open loop: what was asked for within the time is answered a moment after it.
        goal = plan.refusals if refused else plan.grants
        word = "met   " if figures["per_second"] >= goal else "MISSED"
        lines.append(f"{word} {name}: {figures['per_second']:,} a second (goal >= {goal:,})")
        for field, most in (REFUSALS_GOALS if refused else GRANTS_GOALS).items():
            word = "met   " if figures[field] < most else "MISSED"
            lines.append(f"{word} {name}: {field} {figures[field]} (goal < {most})")
    return lines


async def prepare(dsn: str, *, told: bool) -> None:
    """Fill a database with events on sale; told: with what the proxy needs in it."""
    await sample.load(dsn, 1)
    connection = await asyncpg.connect(dsn, timeout=PATIENCE)
    seats = BUYERS // EVENTS * SEATS_EACH
    await connection.execute(TABLES.format(events=EVENTS, seats=seats))
    await connection.close()
    if told:
        policies = compiler.read(POLICIES, CLUSTERS)
        watches, locks = planning.watches_of(policies), planning.locks_of(policies)
        await installing.run(dsn, watches, apply=True, remove=False, locks=locks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="which scenarios")
    parser.add_argument("--grants", type=int, default=1_000, help="asked for per second")
    parser.add_argument("--refusals", type=int, default=10_000, help="asked for per second")
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/locks.json")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with temporary_directory("sidecache-bench-") as folder, asyncio.Runner() as runner:
        server = postgres_for(folder / "postgres", durable=True)
        runner.run(server.start())
        try:
            dsn, alone = (runner.run(server.create_database(name)) for name in ("sale", "alone"))
            with Stage() as stage:
                clusters = {name: stage.cluster(3, name) for name in CLUSTERS}
                ports = tuple(node.port for node in clusters["locks"].nodes)
                runner.run(prepare(dsn, told=True))
                runner.run(prepare(alone, told=False))
                target = stage.sidecache(
                    clusters, policies=str(POLICIES), database={"url": dsn},
                    journal={"directory": str(folder / "journal")},
                )  # fmt: skip
                plan = Plan(target, ports, alone, options.seconds, options.grants, options.refusals)
                for name in options.only.split(","):
                    found[name] = measured(plan, name)
                    print(f"{name:<13} {json.dumps(found[name])}", file=sys.stderr, flush=True)
        finally:
            runner.run(server.stop())
    print("\n".join(verdicts(plan, found)))
    if options.store:
        report = {"machine": machine(), "seconds": options.seconds, "scenarios": found}
        path = ROOT / "benchmarks" / "results" / "locks.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
