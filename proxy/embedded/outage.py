"""The story of an outage, played on the terminal: Redis goes, answers do not.

Used by `sidecache demo --outage`. Clients ask for rows throughout; all nodes of the cache cluster
are killed, then those of the other one; rows change meanwhile; the nodes are started again, empty.
A table shows what the proxy says of itself, where answers come from and how long they take.

Always true: only nodes that were started here are killed, and whatever ends the story leaves the
stopping of servers to who started them.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from proxy.embedded.board import Board
from proxy.embedded.process import EmbeddedError, wait_until
from proxy.embedded.redis import Cluster, together
from proxy.embedded.sidecar import Sidecar
from proxy.embedded.smoke import Client, connected
from proxy.embedded.traffic import Question, Tally, Traffic, questions

# How long the whole story takes where nodes come back as fast as on an idle machine.
SECONDS = 60.0

# How often the table is drawn.
INTERVAL = 0.5  # seconds

# A cluster whose nodes were all killed is whole again after some four seconds.
CLUSTER_TIMEOUT = 60.0  # seconds
# From then on until the proxy says so, and until clients read from Redis again.
BACK_TIMEOUT = 20.0  # seconds
BACK_SHARE = 0.9

# Where an answer came from; what Redis has is asked most, and is all that no other has given.
SOURCES = ("redis", "origin", "gutter", "stale", "error")

CHANGED = "Renamed While Redis Was Away"

# On a busy machine the admin port may answer late: what it does not tell now it tells next time.
_UNTOLD = (OSError, TimeoutError, ValueError)

_TRANSACTIONS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

_REQUESTS = re.compile(r'^sidecache_requests_total\{[^}]*keyspace="(\w+)"[^}]*\} (\S+)$', re.M)
_ANSWERS = re.compile(r'^sidecache_origin_answers_total\{[^}]*source="(\w+)"\} (\S+)$', re.M)
_RESTORED = re.compile(r"^sidecache_restored_keys_total\{[^}]*\} (\S+)$", re.M)
_RESTORING = re.compile(r"^sidecache_restore_running\{[^}]*\} 1", re.M)


@dataclass(frozen=True)
class Scene:
    """What the story is played with."""

    sidecar: Sidecar
    clusters: Sequence[Cluster]  # the one that is killed first comes first
    dsn: str
    replica: str | None = None  # address of the same database there


@dataclass
class Act:
    """A part of the story, and what clients heard in it."""

    title: str
    heard: Tally = field(default_factory=Tally)
    sources: Counter[str] = field(default_factory=Counter)

    def row(self) -> str:
        figures = "".join(f"{self.sources[name]:>8,}" for name in SOURCES)
        return (
            f"  {self.title:<42}{figures}{self.heard.errors:>8,}"
            f"{self.heard.percentile(0.5):>9.2f}{self.heard.percentile(0.99):>9.2f}"
        )


def sources_of(page: str, keyspaces: frozenset[str]) -> Counter[str]:
    """Return how many answers about keyspaces came from where, by a page of /metrics."""
    found: Counter[str] = Counter()
    for source, count in _ANSWERS.findall(page):
        found[source if source in SOURCES else "origin"] += int(float(count))
    asked = sum(int(float(count)) for name, count in _REQUESTS.findall(page) if name in keyspaces)
    # Redis answers most without anybody's being told.
    found["redis"] = asked - sum(found[name] for name in SOURCES if name != "redis")
    return found


def restored_of(page: str) -> int:
    """Return how many keys that Redis had lost were brought back, by a page of /metrics."""
    return sum(int(float(count)) for count in _RESTORED.findall(page))


async def play(scene: Scene, board: Board, seconds: float = SECONDS) -> bool:
    """Play the story; return whether every client always had its answer, and the right one.

    Raises EmbeddedError where there are nodes that are not ours to kill, or a server is lost that
    nobody has killed.
    """
    for cluster in scene.clusters:
        if any(node.pid is None for node in cluster.nodes):
            raise EmbeddedError(f"the nodes of {cluster.name} are not ours to kill")
    try:
        return await _Performance(scene, board, seconds, await questions(scene.dsn)).play()
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError) as error:
        raise EmbeddedError(f"the story cannot go on: {error or 'no answer'}") from error


class _Performance:
    def __init__(
        self, scene: Scene, board: Board, seconds: float, reel: Sequence[Question]
    ) -> None:
        self._scene = scene
        self._board = board
        self._seconds = seconds
        self._traffic = Traffic((scene.sidecar.host, scene.sidecar.port), reel)
        self._keyspaces = frozenset(words[1].partition(":")[0] for words in reel)
        self._acts: list[Act] = []
        self._started = self._looked = time.monotonic()
        self._counted: Counter[str] = Counter()
        self._restored = self._restored_before = 0

    async def play(self) -> bool:
        page = await self._metrics()
        self._counted, self._restored_before = self._sources(page), restored_of(page)
        async with self._traffic.running(), self._watched():
            await self._acts_in_order()
        return self._summary(await self._sees_change())

    async def _acts_in_order(self) -> None:
        first, *others = self._scene.clusters
        await self._begin("Redis works")
        await asyncio.sleep(0.2 * self._seconds)
        await self._begin(f"kill -9 of all nodes of {first.name}")
        _kill(first)
        before = await self._carried_out()
        await asyncio.sleep(0.1 * self._seconds)
        await self._change()
        await asyncio.sleep(0.1 * self._seconds)
        await self._begin(f"and of {' and '.join(cluster.name for cluster in others)}")
        for cluster in others:
            _kill(cluster)
        await asyncio.sleep(0.2 * self._seconds)
        if self._scene.replica is not None:
            part = await self._carried_out() - before
            self._board.tell(f"{self._clock()}  {part:,} of these reads were the replica's")
        await self._begin("all nodes are started again, empty")
        self._restored_before = restored_of(await self._metrics())
        await together(_restart(cluster) for cluster in self._scene.clusters)
        whole = time.monotonic()
        self._board.tell(f"{self._clock()}  cluster_state:ok on all nodes")
        await wait_until(self._still_away, BACK_TIMEOUT, [self._scene.sidecar.child])
        spent = time.monotonic() - whole
        await self._begin("Redis answers again")
        self._board.tell(f"{self._clock()}  {spent:.1f} s later clients read from Redis again")
        await asyncio.sleep(0.2 * self._seconds)

    async def _begin(self, title: str) -> None:
        if self._acts:
            with contextlib.suppress(*_UNTOLD):
                self._book(await self._metrics())
        self._board.tell(f"{self._clock()}  {title}")
        self._acts.append(Act(title))

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:5.1f} s"

    async def _change(self) -> None:
        """Change a row that clients ask for, while nobody can be told."""
        async with connected(self._scene.dsn) as database:
            await database.execute(
                "UPDATE venues SET name = $1, updated_at = now() WHERE id = 'venue_1'", CHANGED
            )

    async def _carried_out(self) -> int:
        """Return how many transactions the replica has had, as far as its sessions told it."""
        if self._scene.replica is None:
            return 0
        async with connected(self._scene.replica) as replica:
            return int(await replica.fetchval(_TRANSACTIONS))

    async def _sees_change(self) -> bool:
        sidecar = self._scene.sidecar
        client = Client(*await asyncio.open_connection(sidecar.host, sidecar.port))
        try:
            (answer,) = await client.send("GET venue:venue_1")
        finally:
            client.close()
        return CHANGED in str(answer)

    async def _still_away(self) -> str | None:
        """Return what is missing until the proxy and its clients have Redis back."""
        try:
            return await self._missing()
        except _UNTOLD as error:
            return f"the admin port does not answer: {error or 'no reply in time'}"

    async def _missing(self) -> str | None:
        said = await self._states()
        if away := [name for name, state in said.items() if state != "up"]:
            return f"the proxy says {', '.join(away)} is not up"
        before = await self._metrics()
        await asyncio.sleep(INTERVAL)
        page = await self._metrics()
        if _RESTORING.search(page):
            return "what was lost is being restored"
        now = _since(self._sources(before), self._sources(page))
        if now["redis"] < BACK_SHARE * now.total():
            return f"Redis answers {now['redis']} of {now.total()}"
        return None

    async def _states(self) -> dict[str, str]:
        """Return what the proxy says of each cluster."""
        _, body = await self._scene.sidecar.get("/readyz")
        words = dict(word.partition("=")[::2] for word in body.split())
        return {cluster.name: words.get(cluster.name, "?") for cluster in self._scene.clusters}

    async def _metrics(self) -> str:
        return (await self._scene.sidecar.get("/metrics"))[1]

    def _sources(self, page: str) -> Counter[str]:
        return sources_of(page, self._keyspaces)

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Keep the table and the books of the act while the block runs."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with contextlib.suppress(*_UNTOLD):
                states, page = await self._states(), await self._metrics()
                self._show(states, *self._book(page))

    def _book(self, page: str) -> tuple[Tally, dict[str, float]]:
        """Add to the act what was heard since the last time; return it with answers per second."""
        counted, self._restored = self._sources(page), restored_of(page) - self._restored_before
        now, self._counted = _since(self._counted, counted), counted
        spent, self._looked = time.monotonic() - self._looked, time.monotonic()
        heard, act = self._traffic.take(), self._acts[-1]
        act.heard.add(heard)
        act.sources.update(now)
        return heard, {name: now[name] / spent for name in SOURCES}

    def _show(self, states: Mapping[str, str], heard: Tally, rates: Mapping[str, float]) -> None:
        """Draw the table."""
        sources = "   ".join(f"{name} {max(0.0, rate):,.0f}" for name, rate in rates.items())
        times = f"p50 {heard.percentile(0.5):.2f} ms   p99 {heard.percentile(0.99):.2f} ms"
        if not heard.latencies:
            times = "nobody was answered"
        answers = sum(len(each.heard.latencies) for each in self._acts)
        errors = sum(each.heard.errors for each in self._acts)
        nodes = {
            cluster.name: f"{sum(node.running for node in cluster.nodes)} of {len(cluster.nodes)}"
            for cluster in self._scene.clusters
        }
        self._board.show(
            [
                "",
                f"  {self._clock()}   {self._acts[-1].title}",
                "",
                "  cluster    the proxy says    nodes that run",
                *(f"  {name:<10} {state:<17} {nodes[name]}" for name, state in states.items()),
                "",
                f"  answers/s  {sources}",
                f"  latency    {times}",
                f"  clients    {answers:,} answers, {errors:,} errors",
                f"  restored   {self._restored:,} keys that nobody asked for",
            ],
            f"{self._clock()}  "
            + "  ".join(f"{name} {state} ({nodes[name]})" for name, state in states.items())
            + f"   per second: {sources}   {times}   errors {errors}",
        )

    def _summary(self, seen: bool) -> bool:
        """Say how it went; return whether it went well."""
        self._acts[-1].heard.add(self._traffic.take())
        total = Act("all of it")
        for act in self._acts:
            total.heard.add(act.heard)
            total.sources.update(act.sources)
        columns = "".join(f"{name:>8}" for name in SOURCES)
        rows = [act.row() for act in (*self._acts, total)]
        self._board.tell(
            "\n".join(
                (f"\n  {'answers from':<42}{columns}{'errors':>8}{'p50 ms':>9}{'p99 ms':>9}", *rows)
            )
        )
        for kind, count in self._traffic.kinds.items():
            self._board.tell(f"  {count:,} errors: {kind}")
        self._board.tell(f"  {self._restored:,} keys were brought back that nobody had asked for")
        change = "is seen" if seen else "IS NOT SEEN"
        self._board.tell(f"  a row that changed while Redis was away {change}")
        return seen and not total.heard.errors


def _since(before: Counter[str], now: Counter[str]) -> Counter[str]:
    """Return what has been added; a source may lose what was counted for it too early."""
    return Counter({name: now[name] - before[name] for name in SOURCES})


def _kill(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.kill()


async def _restart(cluster: Cluster) -> None:
    await together(node.restart() for node in cluster.nodes)
    await cluster.wait_ready(CLUSTER_TIMEOUT)
