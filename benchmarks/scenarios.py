"""The loads that the first user expects, through a whole demo with its policies; open loop.

    python benchmarks/scenarios.py
    python benchmarks/scenarios.py --seconds 20 --json benchmarks/results/scenarios.json
    python benchmarks/scenarios.py --only load --demo demo.json      in front of a running demo

load      An evening: 5,000 operations a second, 55 % of which read rows (six keyspaces), 35 %
          touch sessions and 10 % count what users do, while 5 bookings a second change seats in
          PostgreSQL. How many transactions PostgreSQL carries out, against an application that
          has no cache and sends one statement for each of the same reads and counts; and which
          part of reads Redis answers, of hot keyspaces. Goals: half the load, 95 %.
sessions  5,000 operations a second on sessions (70 % HGETALL, 30 % HSET). Goal: p99 < 10 ms.
cache     10,000 reads of rows a second. Goal: p99 < 5 ms.

PostgreSQL's own counters tell the load (pg_stat_database), so what the proxy asks for itself, the
outbox above all, counts against it. Latencies run from the moment at which a request was due.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import openloop  # noqa: E402
from benchmarks.endtoend import machine  # noqa: E402
from benchmarks.stage import Stage, StageError, Target  # noqa: E402
from proxy.embedded.node import packed  # noqa: E402
from proxy.embedded.process import EmbeddedError  # noqa: E402
from proxy.embedded.traffic import questions  # noqa: E402
from proxy.policy import compiler, planning  # noqa: E402

EVENING_RATE, SESSION_RATE, CACHE_RATE = 5_000, 5_000, 10_000  # operations per second
BOOKINGS = 5  # per second, of two seats each
SESSIONS = 10_000
REEL = 50_000  # requests of a reel, which is sent again and again

# Of an evening's operations; the rest are sessions.
READS, COUNTS = 0.55, 0.10

# Read so often that a copy is worth its memory; of a person's own rows each is read seldom.
HOT = ("event", "venue", "org", "event_availability")

LOAD_GOAL, HIT_GOAL, SESSION_GOAL, CACHE_GOAL = 0.5, 0.95, 10.0, 5.0

WARM_SECONDS = 5.0
# A server process tells its counters at the latest when it has been idle for ten seconds.
SETTLE_SECONDS = 11.0
# Statements at a time of the application without a cache, as many as the proxy may have.
CONNECTIONS = 8

_REQUESTS = re.compile(r'^sidecache_requests_total\{[^}]*keyspace="(\w+)"[^}]*\} (\S+)$', re.M)
_ANSWERS = re.compile(
    r'^sidecache_origin_answers_total\{keyspace="(\w+)",source="(\w+)"\} (\S+)$', re.M
)

COUNT = """
INSERT INTO user_activity_log AS a (user_id, date, page_views) VALUES ($1, $2::text::date, 1)
    ON CONFLICT (user_id, date) DO UPDATE SET page_views = a.page_views + 1"""

BOOK = """
UPDATE seat_booking_state SET updated_at = now(),
       status = CASE status WHEN 'available' THEN 'blocked' ELSE 'available' END
 WHERE event_id = $1 AND seat_id = ANY($2) AND status IN ('available', 'blocked')"""

Question = tuple[str, ...]


class Running:
    """A demo that runs, by the file that its --json wrote."""

    def __init__(self, file: Path) -> None:
        told = json.loads(file.read_text())
        self.proxy = Target("sidecache", int(told["proxy"]["port"]), int(told["proxy"]["pid"]))
        self.dsn = str(told["postgres"]["dsn"])
        self._admin = str(told["admin"]["url"])

    def answers(self) -> tuple[Counter[str], Counter[str]]:
        """Return by keyspace how much was asked, and how much Redis did not answer."""
        with urllib.request.urlopen(f"{self._admin}/metrics", timeout=5) as reply:
            page = reply.read().decode()
        asked: Counter[str] = Counter()
        elsewhere: Counter[str] = Counter()
        for keyspace, count in _REQUESTS.findall(page):
            asked[keyspace] += int(float(count))
        for keyspace, source, count in _ANSWERS.findall(page):
            if source != "redis":
                elsewhere[keyspace] += int(float(count))
        return asked, elsewhere

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(self.dsn, timeout=5, command_timeout=5)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def transactions(self) -> int:
        """Return how many transactions the database has carried out, when all have told it."""
        await asyncio.sleep(SETTLE_SECONDS)
        async with self.database() as connection:
            return int(
                await connection.fetchval(
                    "SELECT xact_commit + xact_rollback FROM pg_stat_database"
                    " WHERE datname = current_database()"
                )
            )


def session_reel(chance: random.Random, count: int) -> list[Question]:
    """Return what requests do with sessions: read them, and note when they were last seen."""
    reel: list[Question] = []
    for _ in range(count):
        key = f"session:sess_{chance.randrange(SESSIONS)}"
        if chance.random() < 0.7:
            reel.append(("HGETALL", key))
        else:
            reel.append(("HSET", key, "last_activity", str(chance.randrange(10**9))))
    return reel


def session(number: int) -> Question:
    """Return how a session begins."""
    return (
        *("HSET", f"session:sess_{number}", "user_id", f"usr_{number}", "role", "customer"),
        *("organization_id", "org_1", "ip_address", "192.168.1.100", "login_at", "1640995200"),
        *("last_activity", "1640995800", "user_agent", "Mozilla/5.0 (X11; Linux x86_64)"),
        *("csrf_token", "csrf_abc123", "device_fingerprint", "fp_xyz789"),
    )


async def evening(running: Running) -> list[Question]:
    chance = random.Random(1)
    reads = await questions(running.dsn, round(READS * REEL))
    day = time.strftime("%Y-%m-%d", time.gmtime())
    counts = [
        ("HINCRBY", f"user_activity:usr_{chance.randint(1, 200)}:daily:{day}", "page_views", "1")
        for _ in range(round(COUNTS * REEL))
    ]
    mixed = [*reads, *counts, *session_reel(chance, REEL - len(reads) - len(counts))]
    chance.shuffle(mixed)
    return mixed


async def played(
    running: Running, rate: int, seconds: float, reel: Sequence[Question]
) -> dict[str, Any]:
    """Send a reel at a rate; return the figures, with CPU in microseconds per request."""
    plan = openloop.Plan(running.proxy.port, rate, seconds)
    requests = [packed(words) for words in reel]
    before, ours = running.proxy.cpu_seconds(), time.process_time()
    outcome = await openloop.drive(plan, requests)
    spent = running.proxy.cpu_seconds() - before, time.process_time() - ours
    return {
        "rate": rate, **dataclasses.asdict(outcome),
        "cpu_us": round(spent[0] / outcome.sent * 1e6, 1),
        "generator_cpu_us": round(spent[1] / outcome.sent * 1e6, 1),
    }  # fmt: skip


@contextlib.asynccontextmanager
async def booking(running: Running) -> AsyncIterator[None]:
    """Change seats in PostgreSQL while the block runs."""

    async def book() -> None:
        chance = random.Random(2)
        async with running.database() as connection:
            rows = await connection.fetch("SELECT event_id, seat_id FROM seat_booking_state")
            seats: dict[str, list[str]] = {}
            for event, seat in rows:
                seats.setdefault(event, []).append(seat)
            due = time.monotonic()
            while True:
                event = chance.choice(list(seats))
                await connection.execute(BOOK, event, chance.sample(seats[event], 2))
                due += 1 / BOOKINGS
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    task = asyncio.create_task(book())
    try:
        yield
    finally:
        task.cancel()
        # What went wrong meanwhile must not pass for a quiet database.
        for error in await asyncio.gather(task, return_exceptions=True):
            if isinstance(error, Exception):
                raise error


async def without(running: Running, reel: Sequence[Question], seconds: float) -> dict[str, float]:
    """Send one statement per read and count, as fast as PostgreSQL answers; return what it took."""
    policies = compiler.read(ROOT / "policies", None)
    plans = planning.plans_of(policies, lambda cluster: 0).by_keyspace.values()
    reads = {plan.name: plan.read.text for plan in plans if plan.read is not None}
    due = iter([words for words in reel if words[0] == "HINCRBY" or _keyspace(words) in reads])
    sent = 0

    async def ask(connection: Any, deadline: float) -> None:
        nonlocal sent
        for words in due:
            if time.monotonic() > deadline:
                return
            keyspace, name, *rest = words[1].split(":")
            if words[0] == "HINCRBY":
                await connection.execute(COUNT, name, rest[-1])
            else:
                await connection.fetch(reads[keyspace], name)
            sent += 1

    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(running.database()) for _ in range(CONNECTIONS)
        ]
        before, started = await running.transactions(), time.monotonic()
        async with booking(running):
            await asyncio.gather(*(ask(each, started + seconds) for each in connections))
        spent = time.monotonic() - started
        done = await running.transactions() - before - BOOKINGS * spent
    return {"sent": sent, "rate": sent / spent, "transactions_each": done / sent}


def _keyspace(words: Question) -> str:
    return words[1].partition(":")[0]


async def load(running: Running, seconds: float) -> dict[str, Any]:
    """How much less PostgreSQL has to do, and how much of it Redis answers."""
    reel = await evening(running)
    alone = await without(running, reel, seconds / 2)
    expected = EVENING_RATE * (READS + COUNTS) * alone["transactions_each"] + BOOKINGS
    async with booking(running):
        await played(running, EVENING_RATE, WARM_SECONDS, reel)
        before, answers = await running.transactions(), running.answers()
        figures = await played(running, EVENING_RATE, seconds, reel)
        asked, elsewhere = (
            now - then for now, then in zip(running.answers(), answers, strict=True)
        )
        # While the counters settle the proxy asks on for itself: that counts against it too.
        each_second = (await running.transactions() - before) / seconds
    hot = sum(elsewhere[name] for name in HOT) / sum(asked[name] for name in HOT)
    return figures | {
        "without_proxy": alone,
        "transactions_per_second": round(each_second, 1),
        "transactions_per_second_without_proxy": round(expected, 1),
        "load": round(each_second / expected, 4),
        "hit_rate": {name: round(1 - elsewhere[name] / asked[name], 4) for name in sorted(asked)},
        "hit_rate_hot": round(1 - hot, 4),
    }


async def sessions(running: Running, seconds: float) -> dict[str, Any]:
    """5,000 operations a second on sessions."""
    beginnings = [session(number) for number in range(SESSIONS)]
    await played(running, SESSION_RATE, SESSIONS / SESSION_RATE, beginnings)
    return await played(running, SESSION_RATE, seconds, session_reel(random.Random(1), REEL))


async def cache(running: Running, seconds: float) -> dict[str, Any]:
    """10,000 reads of rows a second."""
    reel = await questions(running.dsn, REEL)
    await played(running, CACHE_RATE // 2, WARM_SECONDS, reel)
    return await played(running, CACHE_RATE, seconds, reel)


SCENARIOS: Mapping[str, Callable[[Running, float], Awaitable[dict[str, Any]]]] = {
    "load": load, "sessions": sessions, "cache": cache,
}  # fmt: skip


def verdicts(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line per goal: what was aimed at, what came out."""
    goals = [
        ("load", "load", "PostgreSQL's transactions, of those without the proxy", LOAD_GOAL, -1),
        ("load", "hit_rate_hot", "reads of hot keyspaces that Redis answers", HIT_GOAL, 1),
        ("sessions", "p99", "ms p99 of sessions", SESSION_GOAL, -1),
        ("cache", "p99", "ms p99 of reads", CACHE_GOAL, -1),
    ]
    lines = []
    for scenario, field, text, goal, way in goals:
        if scenario in found:
            value = found[scenario][field]
            word = "met   " if way * value >= way * goal else "MISSED"
            lines.append(f"{word} {value:.3f} {text} (goal {'>=' if way > 0 else '<='} {goal})")
    for scenario, figures in found.items():
        lost = figures["sent"] - figures["answered"] + figures["errors"]
        word = "met   " if not lost else "MISSED"
        lines.append(f"{word} {lost} of {figures['sent']:,} requests of {scenario} without a value")
    return lines


async def play(running: Running, names: Sequence[str], seconds: float) -> dict[str, Any]:
    found = {}
    for name in names:
        found[name] = await SCENARIOS[name](running, seconds)
        print(f"{name:<9} {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return found


def started(stage: Stage) -> Running:
    """Start a demo as a user does."""
    file = stage.folder / "demo.json"
    command = (sys.executable, "-m", "proxy", "demo", "--json", str(file))
    stage.spawn("demo", command, file.exists)
    return Running(file)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="which scenarios")
    parser.add_argument("--demo", type=Path, help="file written by `sidecache demo --json`")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"unknown scenario {', '.join(unknown)}: choose from {', '.join(SCENARIOS)}")
    try:
        with Stage() as stage:
            running = Running(options.demo) if options.demo else started(stage)
            found = uvloop.run(play(running, names, options.seconds))
    except (StageError, EmbeddedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(verdicts(found)))
    if options.json:
        report = {"machine": machine(), "scenarios": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
