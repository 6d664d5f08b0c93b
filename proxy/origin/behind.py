"""Write-behind: what clients write is on this disk at once and in PostgreSQL a little later.

Made by `app`, used by `handlers.behind`. A write is numbered, journalled, synced, and then waits in
the partition of its key until that partition's flusher has committed it.

States, of all keyspaces together, the worst one: `open`; `late` (something waits longer than
MAX_AGE, PostgreSQL is slow or away); `through` (a keyspace's journal is full to THROUGH: its writes
wait for PostgreSQL); `misfit` (a statement does not fit the tables: with its rows those of other
keyspaces in the same partition wait for a person); `full` (they are refused); `failed` (the disk
takes no writes: they are flushed before they are answered).

Always true: what `write` returned for survives the end of this process; what it raised for with
`certain` never reaches PostgreSQL.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from proxy import log
from proxy.errors import JournalRefused, SidecacheError
from proxy.origin.flushing import Connect, Flushed, Flusher, Observer, Writer
from proxy.origin.journal import Journal
from proxy.origin.lacks import Lacks
from proxy.origin.letters import Misfit
from proxy.origin.merging import Partition, Row, sizes_of
from proxy.origin.records import Change, Entry, Place
from proxy.origin.turns import Turns
from proxy.plans import Plan, Plans
from proxy.tallies import BehindMetrics

# Share of a keyspace's journal from which on its writes wait for PostgreSQL.
THROUGH = 0.7

# A write that waits longer is an alarm. Keys live in Redis for three times as long at least
# (`policy.checks`), so that what is written is read again before it is flushed.
MAX_AGE = 30.0  # seconds

# A sync takes milliseconds; a disk that takes longer than this is broken.
SYNC_SECONDS = 5.0
# What is journalled is safe, so a write is only slowed down; what is not, waits for its COMMIT.
SLOWED_SECONDS = 1.0
COMMIT_SECONDS = 5.0


class WriteBehindFull(SidecacheError):
    """Nothing was written: too much waits already."""


class WriteBehind:
    """All writes of this sidecar that PostgreSQL is told later."""

    def __init__(
        self,
        directory: Path,
        connect: Connect,
        plans: Callable[[], Plans],
        metrics: BehindMetrics,
    ) -> None:
        self._directory = directory
        self._connect = connect
        self._plans = plans
        self._metrics = metrics
        self._named: tuple[Plans | None, dict[str, Plan]] = (None, {})
        self._waiting: dict[str, int] = {}  # bytes per keyspace
        self._states = log.StateLog()
        self.lacks = Lacks(lambda name, key: self._flusher(key).partition.waits(name, key))
        self._misfits: dict[int, str] = {}  # by partition: which statement it waits for
        self.turns = Turns()
        self.state = "open"  # one of those above
        self._journal: Journal | None = None
        self._flushers: list[Flusher] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._appending: set[asyncio.Future[Entry]] = set()
        metrics.journal.set_function(lambda: self._journal.size if self._journal else 0)
        metrics.waiting.set_function(lambda: sum(f.partition.rows for f in self._flushers))
        metrics.age.set_function(self.age)

    async def start(self) -> None:
        """Read the journal and begin to flush it. Raises JournalError."""
        journal = await asyncio.to_thread(Journal, self._directory, self._landed)
        self._journal = journal
        observer = Observer(self._settled, self._flushed, self._failed, self.lacks.has, journal.of)
        self._flushers = [
            Flusher(Writer(journal.identity.sidecar, number, journal.run), Partition(self._kind_of),
                    self._connect, self.named, observer)
            for number in range(journal.identity.partitions)
        ]  # fmt: skip
        for entry in journal.recovered:
            self._count(entry.keyspace, entry.size)
            self._flusher(entry.key).partition.add(entry)
            # Nobody knows whether Redis has heard of it.
            if (plan := self.named().get(entry.keyspace)) is not None:
                self.lacks.note(plan, entry.key)
        if journal.recovered:
            log.event(log.INFO, "journal_replayed", entries=len(journal.recovered))
        journal.recovered = ()
        self._tasks = [asyncio.create_task(flusher.run()) for flusher in self._flushers]
        self._look()

    async def stop(self, seconds: float) -> bool:
        """Flush what waits, and say whether it is all in PostgreSQL; the rest stays journalled."""
        drained = await asyncio.gather(*(flusher.drain(seconds) for flusher in self._flushers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for flusher in self._flushers:
            flusher.stop()
        if self._journal is not None:
            await self._journal.close()
        if not all(drained):
            rows = sum(flusher.partition.rows for flusher in self._flushers)
            log.event(log.WARNING, "journal_kept", rows=rows)
        return all(drained)

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """Return the loops, which never end by themselves."""
        return self._tasks

    async def write(self, plan: Plan, key: bytes, changes: tuple[Change, ...]) -> None:
        """Return when a write is durable.

        Raises WriteBehindFull, and JournalRefused, whose `certain` says whether it may show yet.
        """
        share = self._share(plan)
        if self.full(plan):
            self._look()
            raise WriteBehindFull(plan.name)
        entry = self._ready.entry(plan.name, key, changes)
        if not self._ready.available:
            await self._write_through(entry)
            return
        landing = self._append(entry)
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                await asyncio.shield(landing)
        except (TimeoutError, asyncio.CancelledError) as given_up:
            # It may land yet, and nobody will tell Redis.
            landing.add_done_callback(lambda _: self.lacks.note(plan, key))
            if isinstance(given_up, asyncio.CancelledError):
                raise
            raise JournalRefused("the disk does not answer", certain=False) from None
        except JournalRefused as refused:
            if not refused.certain:
                raise
            await self._all_landed()
            await self._write_through(self._ready.entry(plan.name, key, changes))
        if share >= THROUGH:
            await self._flusher(key).through(entry.sequence, SLOWED_SECONDS)

    def overlay(self, plan: Plan, key: bytes) -> Row | None:
        """Return what of a key waits, or None."""
        return self._flusher(key).partition.overlay(plan.name, key)

    def waits(self, plan: Plan, key: bytes) -> bool:
        """Return whether PostgreSQL lacks, or is about to be told, writes of a key."""
        return plan.mode == "behind" and (self.turns.busy(key) or self.holds(plan, key))

    def holds(self, plan: Plan, key: bytes) -> bool:
        """Return whether anything of a key waits."""
        return self._flusher(key).partition.waits(plan.name, key)

    def types(self, plan: Plan, key: bytes) -> Mapping[bytes, str]:
        """Return PostgreSQL's names of the types of fields, as far as it has told them."""
        assert plan.writing is not None
        return self._flusher(key).types(plan.writing.statement)

    def places(self) -> Iterator[Place]:
        """Yield keyspace and key of what waits; what lands meanwhile may be missing."""
        for flusher in self._flushers:
            yield from flusher.partition.places()

    def still(self, key: bytes) -> contextlib.AbstractAsyncContextManager[None]:
        """Return what holds the flusher of a key back: then PostgreSQL and overlay add up.

        Nobody gets in while it is not known whether something was committed.
        """
        return self._flusher(key).still()

    def turn(self, key: bytes) -> asyncio.Lock:
        """Return what those hold one after another who answer a write by what was there before."""
        return self._flusher(key).turn

    def age(self) -> float:
        """Return how many seconds the oldest write waits, 0 where none does."""
        oldest = min((f.partition.oldest for f in self._flushers), default=float("inf"))
        return max(0.0, time.time() - oldest) if oldest != float("inf") else 0.0

    def named(self) -> Mapping[str, Plan]:
        """Return the plans in force whose writes are told later, by the names of keyspaces."""
        plans = self._plans()
        if self._named[0] is not plans:
            behind = {
                plan.name: plan
                for plan in plans.by_keyspace.values()
                if plan.writing is not None and plan.writing.mode == "behind"
            }
            self._named = plans, behind
        return self._named[1]

    @property
    def _ready(self) -> Journal:
        assert self._journal is not None, "start comes first"
        return self._journal

    async def _all_landed(self) -> None:
        """Return when no number that was given out may still land.

        PostgreSQL counts as told of every number below one that it is told: what lands late, with a
        lower one, would be passed over after a crash.
        """
        until = asyncio.get_running_loop().time() + SYNC_SECONDS
        while self._appending:
            pending = [*self._appending]
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or (await asyncio.wait(pending, timeout=left))[1]:
                raise JournalRefused("the disk does not answer", certain=True)

    def _append(self, entry: Entry) -> asyncio.Future[Entry]:
        """Journal an entry that counts as waiting unless it is refused, whoever still listens."""
        self._count(entry.keyspace, entry.size)

        def ended(future: asyncio.Future[Entry]) -> None:
            self._appending.discard(future)
            if future.exception() is not None:
                self._count(entry.keyspace, -entry.size)
                self._look()

        future = self._ready.append(entry)
        self._appending.add(future)
        future.add_done_callback(ended)
        return future

    async def _write_through(self, entry: Entry) -> None:
        """Commit a write that no journal holds."""
        self._count(entry.keyspace, entry.size)
        flusher = self._flusher(entry.key)
        flusher.partition.add(entry)
        if not await flusher.through(entry.sequence, COMMIT_SECONDS):
            raise JournalRefused("neither disk nor PostgreSQL", certain=False)

    def _kind_of(self, keyspace: str) -> str:
        plan = self.named().get(keyspace)
        return plan.writing.merge if plan is not None and plan.writing is not None else "replace"

    def _flusher(self, key: bytes) -> Flusher:
        return self._flushers[zlib.crc32(key) % len(self._flushers)]

    def full(self, plan: Plan) -> bool:
        """Return whether nothing more is taken for a keyspace."""
        return self._share(plan) >= 1.0

    def _share(self, plan: Plan) -> float:
        assert plan.writing is not None
        return self._waiting.get(plan.name, 0) / plan.writing.journal_bytes

    def _count(self, keyspace: str, size: int) -> None:
        self._waiting[keyspace] = self._waiting.get(keyspace, 0) + size

    def _landed(self, entries: Sequence[Entry]) -> None:
        touched = set()
        for entry in entries:
            flusher = self._flusher(entry.key)
            flusher.partition.add(entry)
            touched.add(flusher)
        for flusher in touched:
            flusher.poke()
        self._look()

    async def _settled(self, entries: Sequence[Entry]) -> None:
        for keyspace, size in sizes_of(entries).items():
            self._count(keyspace, -size)
        self.lacks.flushed({(entry.keyspace, entry.key) for entry in entries})
        await self._checkpoint()

    async def _flushed(self, flushed: Flushed) -> None:
        for keyspace, size in flushed.batch.sizes.items():
            self._count(keyspace, -size)
        rows, letters = flushed.batch.rows, len(flushed.dead)
        self._metrics.flushed.count("written", amount=len(rows.keys() - flushed.dead))
        self._metrics.flushed.count("dead", amount=letters)
        if letters:
            self._states.change(log.ERROR, "rows", "dead", "dead_letters", rows=letters)
        else:
            self._states.change(log.INFO, "rows", "fine", "dead_letters_ended")
        self._look()
        # Before they are forgotten: after a crash in between they are looked at again. What is dead
        # Redis has and PostgreSQL has not; of a deleted key PostgreSQL may have more than Redis.
        differing = {*flushed.dead, *(place for place, row in rows.items() if row.dropped)}
        for name, key in differing:
            if (plan := self.named().get(name)) is not None:
                self.lacks.note(plan, key)
        self.lacks.flushed(rows)
        await self._checkpoint()

    def _failed(self, partition: int, error: Exception | None) -> None:
        level, state = (log.INFO, "working") if error is None else (log.WARNING, "failing")
        reason = "" if error is None else f"{type(error).__name__}: {error}"
        if error is None:
            self._misfits.pop(partition, None)
        elif isinstance(error, Misfit):
            level, state = log.ERROR, "misfit"
            self._misfits[partition] = str(error)
        self._states.change(level, f"partition {partition}", state, f"flush_{state}",
                            partition=partition, reason=reason)  # fmt: skip
        self._look()

    async def _checkpoint(self) -> None:
        lows = (flusher.partition.lowest for flusher in self._flushers)
        beyond = self._ready.durable + 1
        await self._ready.checkpoint(min(low if low is not None else beyond for low in lows))

    def _look(self) -> None:
        """Take notice of the state, and tell of a change."""
        shares = [self._share(plan) for plan in self.named().values()]
        fullest = max(shares, default=0.0)
        if self._ready.failure is not None:
            state = "failed"
        elif fullest >= 1.0:
            state = "full"
        elif self._misfits:
            state = "misfit"
        elif fullest >= THROUGH:
            state = "through"
        else:
            state = "late" if self.age() > MAX_AGE else "open"
        level = log.INFO if state == "open" else log.WARNING
        fault = self._ready.failure or "; ".join({*self._misfits.values()})
        if self._states.change(level, "write_behind", state, f"write_behind_{state}", fault=fault):
            self.state = state
            self._metrics.enter(state)
