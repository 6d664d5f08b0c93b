"""Writes in PostgreSQL racing reads over three sidecars, and an oracle of how old answers are.

Whoever reads takes a moment to get the row home, so that most invalidations come between a read
and its fill. Every key has one writer, so the times at which its versions were committed are known.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg

from proxy.embedded.node import Node
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from proxy.handlers.gutter import SECONDS
from proxy.origin import installing
from proxy.origin.batching import Connection
from proxy.policy import compiler, planning
from tests.fakenode import key_slot
from tests.integration.rig import Caller, StartProxy, is_error, wait_for

KEYS = 1000
PROBES = 30  # the first keys, whose way to every sidecar is measured
BATCH = 20  # rows of one transaction
WRITERS = 4
READERS = 5  # clients of each sidecar
PACE = 0.015  # seconds between two reads of a client
LAG = 0.5  # seconds after which a committed version has to be the answer

TABLES = f"""
CREATE TABLE scores (id int PRIMARY KEY, version int NOT NULL);
INSERT INTO scores SELECT n, 0 FROM generate_series(0, {KEYS - 1}) n;
CREATE FUNCTION score(wanted bigint) RETURNS SETOF int LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  RETURN QUERY SELECT version FROM scores WHERE id = wanted;
  -- What is read is old by the time that it arrives.
  PERFORM pg_sleep(random() * 0.005);
END $$;
"""

RULES = """
keyspaces:
  score:
    key: score:{id:int}
    type: string
    ttl: {default: 600s}
    origin: {read: "SELECT version FROM score(:id) AS version"}
    invalidate: [{table: scores, key: {id: id}}]
    fallback: {reads: origin}
  card:
    key: card:{id:int}
    type: hash
    ttl: {default: 600s}
    origin: {read: "SELECT version FROM score(:id) AS version"}
    invalidate: [{table: scores, key: {id: id}}]
    fallback: {reads: origin}
"""

_NUMBERS = count()


def question(kind: str, number: int) -> tuple[str, ...]:
    return ("GET", f"score:{number}") if kind == "score" else ("HGET", f"card:{number}", "version")


@dataclass
class Seen:
    """What was written, answered and measured; times are those of the monotonic clock."""

    committed: list[list[float]]  # of every key: when each version was known to be there
    written: int = 0
    answers: int = 0
    errors: list[tuple[float, str]] = field(default_factory=list)
    late: list[tuple[float, float, str]] = field(default_factory=list)  # asked, age, what
    lags: list[tuple[float, float]] = field(default_factory=list)  # of the probes: since, seconds
    away: list[tuple[float, float]] = field(default_factory=list)  # a node was, or came back

    def judge(self, number: int, version: int, asked: float, what: str) -> None:
        """Note an answer that was older than allowed when it was asked for."""
        self.answers += 1
        times = self.committed[number]
        if version + 1 < len(times) and asked - times[version + 1] > LAG:
            self.late.append((asked, asked - times[version + 1], f"{what} is {version}"))

    def calm(self, since: float, until: float) -> bool:
        """Return whether all nodes were there all the time."""
        return not any(since < end and until > begin for begin, end in self.away)

    def percentile(self, share: float) -> float:
        """Return a percentile of the lags measured while all nodes were there, in seconds."""
        lags = sorted(lag for since, lag in self.lags if self.calm(since, since + lag))
        return lags[min(len(lags) - 1, int(len(lags) * share))]

    def stale(self) -> list[tuple[float, float, str]]:
        """Return the late answers that no lost node excuses.

        While a node is away, a sidecar may tell for seconds what it has just read.
        """
        return [
            each for each in self.late
            if each[1] > SECONDS + LAG or self.calm(each[0] - LAG, each[0])
        ]  # fmt: skip

    def failed(self) -> list[str]:
        """Return the errors that no lost node excuses."""
        return [text for asked, text in self.errors if self.calm(asked, asked)]

    def __str__(self) -> str:
        calm = sum(self.calm(since, since + lag) for since, lag in self.lags)
        oldest = max((age for _, age, _ in self.late), default=0.0)
        return (
            f"{self.written} writes, {self.answers} answers, {len(self.errors)} errors, "
            f"{len(self.away)} kills ({sum(b - a for a, b in self.away):.1f} s); "
            f"{len(self.stale())} stale, {len(self.late)} later than {LAG} s with the kills "
            f"(oldest {oldest:.2f} s); lag of {calm} probes p50 {self.percentile(0.5):.3f} s, "
            f"p99 {self.percentile(0.99):.3f} s, longest {self.percentile(1):.3f} s"
        )


class Races:
    """Three sidecars between a cluster and a database."""

    def __init__(self, dsn: str, cluster: Cluster, sidecars: Sequence[Sidecar], seed: int) -> None:
        self.dsn = dsn
        self.cluster = cluster
        self.sidecars = sidecars
        self.dice = random.Random(seed)
        self.seen = Seen([[time.monotonic()] for _ in range(KEYS)])
        self.over = asyncio.Event()

    async def run(self, writes: int, kills: int, rate: float) -> Seen:
        """Write so many rows, so many per second at most, and kill nodes meanwhile."""
        async with asyncio.TaskGroup() as group:
            for sidecar in self.sidecars:
                for _ in range(READERS):
                    group.create_task(self._read(sidecar, random.Random(self.dice.random())))
            group.create_task(self._probe(random.Random(self.dice.random())))
            async with asyncio.TaskGroup() as writing:
                for share in range(WRITERS):
                    numbers = range(PROBES + share, KEYS, WRITERS)
                    dice = random.Random(self.dice.random())
                    writing.create_task(self._write(numbers, writes // WRITERS, rate, dice))
                writing.create_task(self._kill(kills, writes / rate))
            self.over.set()
        return self.seen

    async def _write(
        self, numbers: Sequence[int], writes: int, rate: float, dice: random.Random
    ) -> None:
        connection = await asyncpg.connect(self.dsn)
        due = time.monotonic()
        for _ in range(0, writes, BATCH):
            due = max(due + BATCH * WRITERS / rate, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            await self._commit(connection, dice.sample(numbers, BATCH))
        connection.terminate()

    async def _commit(self, connection: Connection, numbers: Sequence[int]) -> float:
        text = "UPDATE scores SET version = version + 1 WHERE id = ANY($1)"
        await connection.execute(text, list(numbers))
        now = time.monotonic()
        for number in numbers:
            self.seen.committed[number].append(now)
        self.seen.written += len(numbers)
        return now

    async def write(self, numbers: Sequence[int]) -> None:
        """Give rows their next version, in one transaction."""
        connection = await asyncpg.connect(self.dsn)
        await self._commit(connection, numbers)
        connection.terminate()

    async def fill(self, caller: Caller, node: Node) -> list[int]:
        """Let a sidecar put scores into a node that has none; return their numbers."""
        numbers = await self._living_at(node)
        for number in numbers:
            assert await caller.call(*question("score", number)) == b"0"
        return numbers

    async def _living_at(self, node: Node) -> list[int]:
        """Return some numbers whose scores live at a node."""
        ranges = (await self.cluster.members())[node.id].ranges
        slots = {number: key_slot(f"score:{number}".encode()) for number in range(PROBES, KEYS)}
        return [n for n, slot in slots.items() if any(a <= slot <= b for a, b in ranges)][:40]

    async def _read(self, sidecar: Sidecar, dice: random.Random) -> None:
        caller = await Caller.open(sidecar.port)
        while not self.over.is_set():
            await asyncio.sleep(dice.uniform(0, 2 * PACE))
            number = dice.randrange(KEYS)
            words = question(dice.choice(("score", "card")), number)
            asked = time.monotonic()
            value = await caller.call(*words)
            if value is None or is_error(value):
                self.seen.errors.append((asked, f"{words[1]} of {sidecar.port}: {value}"))
            else:
                self.seen.judge(number, int(value), asked, f"{words[1]} of {sidecar.port}")
        caller.close()

    async def _probe(self, dice: random.Random) -> None:
        """Write one row, wait until all sidecars tell it, and so on."""
        connection = await asyncpg.connect(self.dsn)
        callers = [await Caller.open(sidecar.port) for sidecar in self.sidecars]
        while not self.over.is_set():
            await asyncio.sleep(dice.uniform(0, 0.1))
            number = dice.randrange(PROBES)
            words = question(dice.choice(("score", "card")), number)
            await asyncio.gather(*(caller.call(*words) for caller in callers))
            since = await self._commit(connection, [number])
            version = b"%d" % (len(self.seen.committed[number]) - 1)
            lags = await asyncio.gather(*(until(caller, words, version) for caller in callers))
            self.seen.lags.append((since, max(lags) - since))
        connection.terminate()

    async def _kill(self, kills: int, seconds: float) -> None:
        """Kill primaries, and give each back before or after a replica has taken over."""
        for _ in range(kills):
            await asyncio.sleep(seconds / kills * self.dice.uniform(0.2, 0.5))
            await self.cluster.refresh()
            node: Node = self.dice.choice(self.cluster.primaries)
            killed = time.monotonic()
            node.kill()
            await asyncio.sleep(self.dice.choice((0.0, 0.3, 2.5)))
            await node.restart()
            await self.cluster.wait_ready()
            await wait_for(self.normal, "the normal state of all sidecars", 15.0)
            self.seen.away.append((killed, time.monotonic() + LAG))

    async def normal(self) -> bool:
        """Return whether every sidecar says that all is well."""
        pages = await asyncio.gather(*(each.get("/readyz") for each in self.sidecars))
        return all(page == (200, "cache=up\n") for page in pages)

    async def quiescent(self) -> None:
        """Wait until whoever leads has applied all that is committed."""
        last = max(times[-1] for times in self.seen.committed)

        async def applied() -> bool:
            now = time.monotonic()
            leaders = [lag async for _, lag in self._leaders()]
            return bool(leaders) and max(leaders) < now - last

        await wait_for(applied, "all changes to be applied", 15.0)

    async def leader(self) -> Sidecar:
        """Return the sidecar that applies changes, once one does."""

        async def one() -> list[Sidecar]:
            return [sidecar async for sidecar, _ in self._leaders()]

        await wait_for(one, "a leader", 15.0)
        return (await one())[0]

    async def _leaders(self) -> AsyncIterator[tuple[Sidecar, float]]:
        """Yield who applies changes, and how far behind it is, in seconds."""
        for sidecar in self.sidecars:
            _, page = await sidecar.get("/metrics")
            lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
            if float(lines['sidecache_invalidation_leader{cluster="cache"}']):
                lag = float(lines['sidecache_invalidation_lag_seconds{cluster="cache"}'])
                yield sidecar, lag

    async def compare(self) -> list[str]:
        """Return what a node or a sidecar tells and PostgreSQL does not."""
        connection = await asyncpg.connect(self.dsn)
        rows = await connection.fetch("SELECT id, version FROM scores")
        connection.terminate()
        wanted = {row["id"]: b"%d" % row["version"] for row in rows}
        wrong = await self._stored(wanted)
        told = (
            self._told(sidecar, kind, wanted)
            for sidecar in self.sidecars
            for kind in ("score", "card")
        )
        return wrong + [text for texts in await asyncio.gather(*told) for text in texts]

    async def _told(self, sidecar: Sidecar, kind: str, wanted: dict[int, bytes]) -> list[str]:
        caller, wrong = await Caller.open(sidecar.port), []
        # Each asks in an order of its own, so that they do not wait for each other's fetches.
        for number in self.dice.sample(sorted(wanted), len(wanted)):
            words = question(kind, number)
            value = await caller.call(*words)
            if value != wanted[number]:
                wrong.append(f"{words[1]} of {sidecar.port} is {value}, not {wanted[number]!r}")
        caller.close()
        return wrong

    async def _stored(self, wanted: dict[int, bytes]) -> list[str]:
        await self.cluster.refresh()
        members, wrong = await self.cluster.members(), []
        for node in self.cluster.primaries:
            ranges = members[node.id].ranges
            questions = [
                (number, words)
                for number in wanted
                for words in (question("score", number), question("card", number))
                if any(a <= key_slot(words[1].encode()) <= b for a, b in ranges)
            ]
            caller = await Caller.open(node.port)
            told = await caller.pipeline([words for _, words in questions])
            caller.close()
            wrong += [
                f"{words[1]} of {node.name} is {value}, not {wanted[number]!r}"
                for (number, words), value in zip(questions, told, strict=True)
                if value not in (None, wanted[number])
            ]
        return wrong


async def until(caller: Caller, words: Sequence[str], version: bytes) -> float:
    """Return when a sidecar first told a version."""
    told: object = None

    async def reached() -> bool:
        nonlocal told
        told = await caller.call(*words)
        return told == version

    try:
        await wait_for(reached, f"version {version!r}", 15.0)
    except AssertionError as error:
        raise AssertionError(f"{words} is {told!r} in the end") from error
    return time.monotonic()


@contextlib.asynccontextmanager
async def races(
    server: Postgres, cluster: Cluster, start: StartProxy, folder: Path, seed: int
) -> AsyncIterator[Races]:
    """Start three sidecars with `RULES` in front of a cluster and a database of their own."""
    name = f"races{next(_NUMBERS)}"
    dsn = await server.create_database(name)
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    connection.terminate()
    watches = planning.watches_of(compiler.read(rules, ("cache",)))
    await installing.run(dsn, watches, apply=True, remove=False)
    blocks = {"policies": str(rules), "database": {"url": dsn}}
    sidecars = [await start({"cache": cluster}, **blocks) for _ in range(3)]
    try:
        yield Races(dsn, cluster, sidecars, seed)
    finally:
        await server.drop_database(name)
