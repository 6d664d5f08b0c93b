"""What a shard has lost is read from PostgreSQL again, where a policy says how.

One `Restoration` per cluster in every sidecar; whoever leads the cluster's invalidations is told of
shards that have lost their data, and brings it back: keyspace by keyspace in the order of their
priorities (locks first), page by page (`refill`) within the turn of the applier. Until that is
done the shard has a position and no mark, so everybody can see that it lacks something, and
whoever leads next goes on from the row that PostgreSQL has of it. What is refilled by reads
needs nothing but the mark; what is lost for good is said in the log.

Always true:
  * a shard is marked when everything was brought back that can be, and not before;
  * what is lost meanwhile begins it again: keys that are there already cost a look each;
  * PostgreSQL and the invalidations come first: a page is followed by a rest of twice its time, by
    a longer one where it took long, and one that cannot be read or written is tried again.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from proxy import log, wire
from proxy.control.invalidation import Applier, Lost
from proxy.control.refill import BATCH, Page, Refill, Surroundings
from proxy.errors import OriginError, OriginMisfit, OriginRefused, SidecacheError
from proxy.origin.budget import BACKGROUND
from proxy.plans import Plan, Statement, plans_in
from proxy.upstream.errands import Errands

# A page that takes longer, in seconds, is one that PostgreSQL has no time for; how long it is left
# alone then, and how long after a failure.
SLOW, PAUSE = 0.25, 1.0

# How long to wait for changes that are read again before a look whether they are, in seconds.
REPLAY = 0.05

# How many times as long as a page took there is none.
REST = 2

# How often it is looked which shards are marked, in seconds.
LOOK = 1.0

_LOAD = Statement("sidecache restore", "SELECT value::text AS value FROM sidecache_progress "
                  "WHERE name = $1::text", ())  # fmt: skip
_SAVE = Statement(
    "sidecache restore",
    "INSERT INTO sidecache_progress AS p (name, value) VALUES ($1::text, $2::text::jsonb) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value, at = clock_timestamp() "
    "RETURNING name",
    (),
)
_FORGET = Statement("sidecache restore", "DELETE FROM sidecache_progress WHERE name = $1::text "
                    "RETURNING name", ())  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a keyspace is."""

    cluster: str
    keyspace: str
    state: str  # "waiting" "running" "paused" "done" "refused" "left" (another leads)
    rows: int = 0  # that were read
    written: int = 0  # keys that were brought back
    left: int | None = None  # rows, where that is known

    @property
    def over(self) -> bool:
        return self.state in ("done", "refused", "left")


class NotHere(SidecacheError):
    """Another sidecar does this, or nothing is to be done."""


class _Resigned(Exception):
    """This sidecar leads no longer."""


class _Again(Exception):
    """More has been lost."""


class Restoration:
    """That of one cluster."""

    def __init__(self, around: Surroundings, applier: Applier, cluster: int) -> None:
        self._around = around
        self._applier = applier
        self._cluster = cluster
        self._name = around.clusters[cluster]
        self._loop = asyncio.get_running_loop()
        self._errands = Errands(around.router, around.batch)
        self._asked = asyncio.Event()
        self._due: set[bytes] = set()  # tags of shards that are not marked before all is done
        self._resumes = False
        self._only: str | None = None
        self.recovering: frozenset[int] = frozenset()  # slots of shards that lack something
        self.progress: tuple[Progress, ...] = ()  # replaced, never changed: threads look at it

    def lost(self, report: Lost) -> None:
        """Hear of shards that lack what they should have; called before they are marked."""
        self._say_what(report)
        if not self._plans():
            return
        self._applier.positions.withheld |= {*report.tags, *report.begun}
        # What is under way need not begin again because another leader has looked at it.
        if tags := {*report.tags, *set(report.begun).difference(self._due)}:
            self._resumes = not report.tags and not self._due
            self._due |= tags
            self.recovering |= self._slots_of(tags)
            self._asked.set()

    def start(self, keyspace: str | None) -> None:
        """Bring back what is lacking in all shards. Raises NotHere."""
        if not self._applier.statistics().leading:
            raise NotHere(f"cluster {self._name}: another sidecar leads it, or none does")
        if not any(keyspace in (None, plan.name) for plan in self._plans()):
            raise NotHere(f"cluster {self._name}: nothing there has a block restore")
        self._only, self._resumes = keyspace, False
        self.progress = tuple(
            Progress(self._name, plan.name, "waiting")
            for plan in self._plans()
            if keyspace in (None, plan.name)
        )
        self._asked.set()

    async def work(self) -> None:
        """Restore whenever something is lost, for ever."""
        running = self._around.metrics.running.labels(self._name)
        while True:
            await self._asked.wait()
            self._asked.clear()
            running.set(1)
            try:
                await self._restore()
            except _Resigned:
                self._due.clear()
                self.progress = tuple(
                    each if each.over else replace(each, state="left") for each in self.progress
                )
                self._tell(log.INFO, "left")
            except _Again:
                continue
            finally:
                running.set(0)

    async def look(self) -> None:
        """Look which shards lack something, whoever restores them, for ever."""
        while True:
            await asyncio.sleep(LOOK)
            leads = self._applier.statistics().leading
            if self._plans() and not leads:
                # Whoever leads may have done all and not said so yet.
                self.recovering = self._slots_of(await self._applier.positions.unmarked())
            else:
                self.recovering = self._slots_of(self._due)

    def _plans(self) -> list[Plan]:
        """Return what is brought back, in its order."""
        found = [plan for plan in self._all() if plan.restoring is not None]
        return sorted(
            found, key=lambda plan: (plan.restoring and plan.restoring.priority, plan.name)
        )

    def _all(self) -> Iterable[Plan]:
        known = plans_in(self._around.router.ruleset).by_keyspace.values()
        return (plan for plan in known if plan.cluster == self._cluster)

    def _say_what(self, report: Lost) -> None:
        if report.tags:
            self._around.metrics.lost.count(self._name, amount=len(report.tags))
            known = plans_in(self._around.router.ruleset)
            restored = {plan.name for plan in self._plans()}
            lost = {name for cluster, name in known.lost if cluster == self._cluster}
            refilled = {plan.name for plan in self._all()} - restored - lost
            log.event(
                log.WARNING, "shards_lost_data", cluster=self._name, shards=len(report.tags),
                restore=_listed(restored), refill=_listed(refilled), lost=_listed(lost),
            )  # fmt: skip

    def _slots_of(self, tags: Iterable[bytes]) -> frozenset[int]:
        """Return all slots of the shards that have these tags."""
        slots = self._around.router.slots
        if self._cluster >= slots.clusters or not (tags := set(tags)):
            return frozenset()
        count = slots.slot_count(self._cluster)
        owners = {slots.owner(self._cluster, wire.key_slot(tag) % count) for tag in tags}
        return frozenset(s for s in range(count) if slots.owner(self._cluster, s) in owners)

    # One restore.

    async def _restore(self) -> None:
        tags = frozenset(self._due)
        only = None if tags else self._only
        plans = [plan for plan in self._plans() if only in (None, plan.name)]
        slots = self._slots_of(tags or self._applier.positions.tags())
        first, after = await self._place(tags, [plan.name for plan in plans])
        self.progress = tuple(
            Progress(self._name, plan.name, "waiting" if index >= first else "done")
            for index, plan in enumerate(plans)
        )
        self._tell(log.INFO, "running", slots=len(slots))
        for plan in plans[first:]:
            await self._refill(plan, slots, after, tags)
            after = ()
        if self._asked.is_set():
            raise _Again
        self._due -= tags
        self._applier.positions.withheld -= tags
        self.recovering = self._slots_of(self._due)
        if tags:
            await self._ask(_FORGET)
        self._tell(log.INFO, "done", keys=sum(each.written for each in self.progress))

    async def _refill(
        self, plan: Plan, slots: frozenset[int], after: tuple[str, ...], tags: frozenset[bytes]
    ) -> None:
        """Bring a keyspace back. Raises _Resigned or _Again where that is not for us to end."""
        refill = Refill(self._around, self._errands, plan, slots)
        done = Progress(self._name, plan.name, "running", left=await refill.count())
        self._note(done)
        while True:
            started = self._loop.time()
            try:
                page = await self._page(refill, after, done)
            except (OriginRefused, OriginMisfit, ValueError) as error:
                # The driver's word for a segment that it cannot take back is a ValueError.
                self._note(replace(done, state="refused"))
                log.event(log.WARNING, "restore_refused", cluster=self._name, keyspace=plan.name,
                          reason=str(error))  # fmt: skip
                return
            if page is None:
                continue
            after, took = page.last, self._loop.time() - started
            left = None if done.left is None else max(0, done.left - page.rows)
            done = replace(done, rows=done.rows + page.rows, written=done.written + page.written,
                           left=left)  # fmt: skip
            self._around.metrics.keys.count(self._name, amount=page.written)
            if page.rows < BATCH:
                break
            if tags:
                await self._save(plan, after, tags)
            if took > SLOW:
                await self._pause(done, f"a page took {took:.2f} s")
            else:
                self._note(done)
                self._tell(log.INFO, "running")
            await self._rest(max(took * REST, _pace(plan, page.written) - took))
        if refill.misfits:
            log.event(log.WARNING, "restore_misfits", cluster=self._name, keyspace=plan.name,
                      rows=refill.misfits)  # fmt: skip
        self._note(replace(done, state="done", left=0))

    async def _page(self, refill: Refill, after: tuple[str, ...], done: Progress) -> Page | None:
        """Bring back a page; None, after a rest, where it has to be tried again.

        Raises _Resigned, and what says that it never will go.
        """
        try:
            async with self._applier.still() as leading:
                if not leading:
                    raise _Resigned
                page = await refill.page(after) if self._applier.current else None
        except (OriginRefused, OriginMisfit):
            raise
        except OriginError as error:
            await self._pause(done, str(error))
            return None
        if page is None:
            # Changes of before the loss are read again, which takes keys away.
            await self._rest(REPLAY)
        elif not page.complete:
            await self._pause(done, "a node does not answer")
            return None
        return page

    async def _pause(self, progress: Progress, reason: str) -> None:
        self._note(replace(progress, state="paused"))
        self._tell(log.WARNING, "paused", keyspace=progress.keyspace, reason=reason)
        await self._rest(PAUSE)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        if self._asked.is_set():
            raise _Again

    def _note(self, progress: Progress) -> None:
        self.progress = tuple(
            progress if each.keyspace == progress.keyspace else each for each in self.progress
        )

    # What outlives this leader.

    async def _place(
        self, tags: frozenset[bytes], names: Sequence[str]
    ) -> tuple[int, tuple[str, ...]]:
        """Return where to begin: number of a keyspace, and behind which row of it."""
        if not self._resumes:
            return 0, ()
        rows = await self._ask(_LOAD)
        said = json.loads(rows[0]) if rows else {}
        if said.get("keyspace") not in names or not tags <= {t.encode() for t in said["tags"]}:
            return 0, ()
        return names.index(said["keyspace"]), tuple(said["after"])

    async def _save(self, plan: Plan, after: tuple[str, ...], tags: frozenset[bytes]) -> None:
        value = {"keyspace": plan.name, "after": after, "tags": [tag.decode() for tag in tags]}
        await self._ask(_SAVE, json.dumps(value))

    async def _ask(self, statement: Statement, *arguments: str) -> list[str]:
        """Ask for the row of this restore. Without it the next leader begins at the beginning."""
        name = f"restore {self._name} {self._applier.identity}"
        try:
            rows = await self._around.origin.fetch(
                statement, [name, *arguments], BACKGROUND, primary=True
            )
        except OriginError:
            return []
        return [str(row[0]) for row in rows]

    def _tell(self, level: int, state: str, **fields: object) -> None:
        self._around.states.change(
            level, f"restore {self._name}", state, f"restore_{state}", cluster=self._name, **fields
        )


def _listed(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def _pace(plan: Plan, written: int) -> float:
    """Return how long so many keys take at the rate of their keyspace, in seconds."""
    rate = plan.restoring and plan.restoring.rate
    return written / rate if rate else 0.0


class Restore:
    """All clusters."""

    def __init__(self, around: Surroundings, appliers: Sequence[Applier]) -> None:
        self._of = tuple(
            Restoration(around, applier, cluster) for cluster, applier in enumerate(appliers)
        )

    def lost(self, report: Lost) -> None:
        self._of[report.cluster].lost(report)

    def recovering(self, cluster: int, slot: int) -> bool:
        """Return whether the shard of a slot lacks keys that are being brought back."""
        return slot in self._of[cluster].recovering

    def start(self, keyspace: str | None = None) -> str:
        """Begin in each cluster that this sidecar leads; say what was begun. Raises NotHere."""
        said, begun = [], False
        for each in self._of:
            try:
                each.start(keyspace)
            except NotHere as reason:
                said.append(str(reason))
            else:
                begun = True
        if not begun:
            raise NotHere("; ".join(said))
        return "restoring" + "".join(f"; {line}" for line in said)

    def page(self) -> str:
        """Return how far everything is, as JSON. Called from other threads."""
        rows = [asdict(progress) for each in self._of for progress in each.progress]
        return json.dumps({"restore": rows}, indent=1) + "\n"

    async def watch(self) -> None:
        """Run everything, for ever."""
        async with asyncio.TaskGroup() as group:
            for each in self._of:
                group.create_task(each.work())
                group.create_task(each.look())
