"""Now and then keys are compared with their rows: the check of all that keeps them in step.

One `Drift` in every sidecar; it samples the clusters that this sidecar leads, and reports when it
is asked to. Keys are found by a scan without end of each cluster, one for all keyspaces: those
that many read are fetched often and seldom wrong, and what nobody reads any more is found too.

Always true:
  * nothing is called drift before it is the same two seconds later, and every change that the
    comparison may have met is in all shards: what is on its way mends itself, however slowly;
  * repair makes a key one that nobody has, as a change of its row does, and writes nothing. What is
    written behind has two flushes' time to be the same again: another sidecar may have the writes
    that PostgreSQL lacks. If it still has, it puts them back with its next write;
  * where more than a twentieth is wrong repairs stop: then the cause is not a lost message, and
    to fetch everything again would be an outage of PostgreSQL;
  * while invalidations lag nothing is sampled.
"""

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy import errors, log, resp, wire
from proxy.control.comparing import KINDS, Comparer, Dirty, Verdict
from proxy.control.invalidation import Applier
from proxy.control.positions import INVALIDATE, beside
from proxy.errors import OriginError
from proxy.keys import client_name
from proxy.origin.rows import Origin
from proxy.plans import Plan, plans_in
from proxy.tallies import DriftMetrics
from proxy.upstream.errands import Errands

# How often keys are taken, in seconds, and how many a node looks at for it: some 100 µs of it.
ROUND, STEP = 1.0, b"500"

# Keys of a keyspace that are known and wait for their comparison.
KNOWN = 200

# After how long what is wrong must still be wrong, in seconds.
CONFIRM = 2.0

# Keys that are wrong and not confirmed yet.
SUSPECTS = 1000

# Beyond this lag of invalidations, in seconds, keys are older than their rows and it is known why.
CALM = 1.0

# Of so many comparisons at least, and at most, more than this part is too much to repair.
FEWEST, WINDOW, LIMIT = 100, 1000, 0.05

# Keys of one report, those that it names, and how long it may take, in seconds; how long it waits
# for changes that are under way.
REPORT, NAMED, PATIENCE, UNDER_WAY = 10_000, 20, 45.0, 10.0


@dataclass(frozen=True)
class Surroundings:
    """What is sampled, and with what."""

    router: wire.Router
    batch: wire.Batch
    states: log.StateLog
    metrics: DriftMetrics
    clusters: tuple[str, ...]
    origin: Origin
    dirty: Dirty


class Suspect(NamedTuple):
    """A key that was wrong once."""

    plan: Plan
    key: bytes  # as clients name it
    verdict: Verdict
    due: float


class Breaker:
    """Whether so much of a keyspace is wrong that repair would do harm."""

    def __init__(self) -> None:
        self._wrong: deque[bool] = deque(maxlen=WINDOW)

    def note(self, wrong: bool) -> None:
        self._wrong.append(wrong)

    @property
    def open(self) -> bool:
        return len(self._wrong) >= FEWEST and sum(self._wrong) > LIMIT * len(self._wrong)


class Walk:
    """A scan without end over one cluster, node by node."""

    def __init__(self, router: wire.Router, errands: Errands, cluster: int) -> None:
        self._router = router
        self._errands = errands
        self._cluster = cluster
        self._node = random.randrange(2**16)
        self._cursor = b"0"
        self.nodes = 0  # that were passed

    async def step(self) -> list[tuple[Plan, bytes]]:
        """Return the next keys that PostgreSQL stands behind, as clients name them."""
        places = self._router.slots.places(self._cluster)
        if not places:
            self.nodes += 1
            return []
        place = places[self._node % len(places)]
        reply = await self._errands.tell(place, [b"SCAN", self._cursor, b"COUNT", STEP])
        self._cursor, names = resp.decode(reply) if reply[:1] == b"*" else (b"0", [])
        if self._cursor == b"0":
            self._node += 1
            self.nodes += 1
        return list(self._known(names))

    def _known(self, names: Iterable[bytes]) -> Iterable[tuple[Plan, bytes]]:
        ruleset = self._router.ruleset
        known = plans_in(ruleset).by_keyspace
        for name in names:
            key = client_name(ruleset, bytes(name))
            plan = None if key is None else known.get(ruleset.find_keyspace(key))
            if key is not None and plan is not None and plan.cluster == self._cluster:
                yield plan, key


class Drift:
    """All clusters."""

    def __init__(self, around: Surroundings, appliers: Sequence[Applier]) -> None:
        self._around = around
        self._appliers = appliers
        self._loop = asyncio.get_running_loop()
        self._errands = Errands(around.router, around.batch)
        self._comparer = Comparer(around.router, self._errands, around.origin, around.dirty)
        clusters = range(len(around.clusters))
        self._walks = [Walk(around.router, self._errands, cluster) for cluster in clusters]
        # By the keyspace's name: numbers change when rules do.
        self._keys: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=KNOWN))
        self._credit: dict[str, float] = defaultdict(float)
        self._breakers: dict[str, Breaker] = defaultdict(Breaker)
        self._suspects: deque[Suspect] = deque(maxlen=SUSPECTS)

    async def watch(self) -> None:
        """Sample for ever."""
        while True:
            await asyncio.sleep(ROUND)
            for cluster, applier in enumerate(self._appliers):
                if applier.statistics().leading and applier.lag < CALM:
                    await self._sample(cluster)

    async def _sample(self, cluster: int) -> None:
        known = plans_in(self._around.router.ruleset).by_keyspace.values()
        plans = [plan for plan in known if plan.cluster == cluster and plan.drift and plan.read]
        for plan in plans:
            # No more than a round's part is saved up, and a whole key where that is less than one.
            part = plan.drift * ROUND
            self._credit[plan.name] = min(self._credit[plan.name] + part, max(part, 1.0))
        if any(len(self._keys[plan.name]) < self._credit[plan.name] for plan in plans):
            for plan, key in await self._walks[cluster].step():
                self._keys[plan.name].append(key)
        try:
            for plan in plans:
                while self._credit[plan.name] >= 1 and self._keys[plan.name]:
                    self._credit[plan.name] -= 1
                    await self._examine(plan, self._keys[plan.name].popleft())
            await self._confirm(cluster)
        except OriginError:
            # PostgreSQL has other things to do, or is away: what others say of it is enough.
            return

    async def _examine(self, plan: Plan, key: bytes) -> None:
        verdict = await self._comparer.judge(plan, key)
        if verdict is None:
            return
        self._around.metrics.sampled(plan.name)
        if verdict.kind is None:
            self._judged(plan, wrong=False)
        else:
            self._suspects.append(Suspect(plan, key, verdict, self._loop.time() + _pause(plan)))

    async def _confirm(self, cluster: int) -> None:
        """Look again at what was wrong long enough ago."""
        now = self._loop.time()
        due = [s for s in self._suspects if s.plan.cluster == cluster and s.due <= now]
        for suspect in await self._settled(due):
            self._suspects.remove(suspect)
            if await self._confirmed(suspect):
                self._judged(suspect.plan, wrong=True)
                if not self._breakers[suspect.plan.name].open:
                    await self._repair(suspect)
            else:
                self._judged(suspect.plan, wrong=False)

    async def _settled(self, suspects: Sequence[Suspect]) -> list[Suspect]:
        """Return those whose rows show nothing that is still on its way to Redis.

        The shards are asked, not the applier: one that has lost its tail says so at once.
        """
        clusters = {suspect.plan.cluster for suspect in suspects}
        reached = {each: await self._appliers[each].positions.reached() for each in clusters}
        return [s for s in suspects if s.verdict.settled(reached[s.plan.cluster])]

    async def _confirmed(self, suspect: Suspect) -> bool:
        """Return whether a key is wrong as it was, and count it."""
        verdict = await self._comparer.judge(suspect.plan, suspect.key)
        kind, before = suspect.verdict.kind, suspect.verdict.held
        if verdict is None or verdict.kind != kind or verdict.held.value != before.value:
            return False
        self._around.metrics.found(suspect.plan.name, kind or "")
        return True

    def _judged(self, plan: Plan, *, wrong: bool) -> None:
        breaker = self._breakers[plan.name]
        before = breaker.open
        breaker.note(wrong)
        if breaker.open != before:
            self._around.metrics.stopped(plan.name, breaker.open)
            self._around.states.change(
                log.WARNING if breaker.open else log.INFO, f"drift {plan.name}", str(breaker.open),
                "drift_repairs_stopped" if breaker.open else "drift_repairs_resumed",
                keyspace=plan.name,
            )  # fmt: skip

    async def _repair(self, suspect: Suspect) -> bool:
        """Make a key one that nobody has; return whether it was."""
        plan = suspect.plan
        name = self._around.router.ruleset.upstream_name(suspect.key)
        reply = await self._errands.ask(INVALIDATE, plan.cluster, beside(name))
        if reply[:1] != b":":
            return False
        self._around.metrics.repaired(plan.name)
        return True

    # A report.

    async def report(self, keyspace: str | None, keys: int, *, repair: bool) -> str:
        """Compare so many keys of each cluster, of one keyspace or of all; return lines of text.

        Raises OriginBusy or OriginDown where PostgreSQL cannot be asked.
        """
        compared: Counter[str] = Counter()
        suspects: list[Suspect] = []
        until = self._loop.time() + PATIENCE
        for cluster in range(len(self._around.clusters)):
            for plan, key in await self._found(cluster, keyspace, min(keys, REPORT), until):
                verdict = await self._comparer.judge(plan, key)
                compared[plan.name] += verdict is not None
                if verdict is not None and verdict.kind is not None:
                    suspects.append(Suspect(plan, key, verdict, 0.0))
                if self._loop.time() > until:
                    break
        settled = await self._settling(suspects)
        wrong = [suspect for suspect in settled if await self._confirmed(suspect)]
        # What is written behind may be in PostgreSQL a little later: that is the sampler's.
        now = [suspect for suspect in wrong if repair and suspect.plan.mode != "behind"]
        repaired = Counter([suspect.plan.name for suspect in now if await self._repair(suspect)])
        return "\n".join(_lines(compared, wrong, repaired, len(suspects) - len(settled)))

    async def _settling(self, suspects: Sequence[Suspect]) -> Sequence[Suspect]:
        """Return those that may be confirmed: all of them, unless invalidations are behind."""
        if not suspects:
            return ()
        await asyncio.sleep(CONFIRM)
        until = self._loop.time() + UNDER_WAY
        settled = await self._settled(suspects)
        while len(settled) < len(suspects) and self._loop.time() < until:
            await asyncio.sleep(ROUND)
            settled = await self._settled(suspects)
        return settled

    async def _found(
        self, cluster: int, keyspace: str | None, keys: int, until: float
    ) -> list[tuple[Plan, bytes]]:
        """Return so many keys of a cluster, or all there are."""
        walk = Walk(self._around.router, self._errands, cluster)
        found: list[tuple[Plan, bytes]] = []
        nodes = len(self._around.router.slots.places(cluster))
        while walk.nodes < nodes and len(found) < keys and self._loop.time() < until:
            found += [
                (plan, key)
                for plan, key in await walk.step()
                if keyspace in (None, plan.name) and plan.read is not None
            ]
        return found[:keys]


def _pause(plan: Plan) -> float:
    """Return how many seconds something must be wrong, and the same, to be drift.

    What another sidecar writes behind it has told PostgreSQL by then.
    """
    behind = plan.writing is not None and plan.mode == "behind"
    return CONFIRM + (2 * plan.writing.every if behind and plan.writing else 0.0)


def _lines(
    compared: Counter[str], wrong: Sequence[Suspect], repaired: Counter[str], unsettled: int
) -> Iterable[str]:
    """Return a line for each keyspace, and one for each of the first keys that are wrong."""
    for name in sorted(compared):
        kinds = Counter(s.verdict.kind for s in wrong if s.plan.name == name)
        parts = [f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind]]
        mended = f"; {repaired[name]} repaired" if repaired[name] else ""
        yield f"{name}: {compared[name]} compared, {', '.join(parts) or 'no drift'}{mended}"
    for suspect in wrong[:NAMED]:
        yield f"  {suspect.verdict.kind:6} {errors.quoted(suspect.key)}"
    if len(wrong) > NAMED:
        yield f"  and {len(wrong) - NAMED} more"
    if unsettled:
        yield f"  {unsettled} differ from rows whose changes are not in Redis yet"
    if not compared:
        yield "nothing to compare"
