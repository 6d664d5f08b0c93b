"""Rows of PostgreSQL back into keys that shards have lost, one page at a time.

Used by `restore`, which does each page within the applier's turn: a change that was committed after
the page was read is applied after it was written.

Always true:
  * pages are found by their first key and never by a cursor. What a cursor gives is as old as the
    cursor, and its changes may have been applied before it is written;
  * nothing is written over: a key that is there is newer than what was lost, and one of which this
    sidecar has writes that PostgreSQL lacks is left to those who ask for it;
  * a page that reaches its node late does nothing there, and until then nobody else has the turn:
    a node that was frozen cannot write it behind a change either;
  * keys end with their rows: by the node's own clock, asked before the rows were read.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from proxy import log, plans, resp, wire
from proxy.control.comparing import Dirty
from proxy.errors import OriginError, OriginMisfit
from proxy.origin.budget import BACKGROUND
from proxy.origin.render import Row, Value, fill_arguments, rendered, restored
from proxy.origin.rows import Origin
from proxy.plans import Plan, Statement
from proxy.tallies import RestoreMetrics
from proxy.upstream.errands import Errands, Script

RESTORE = Script("restore")

# Rows of a page: some milliseconds of everybody's work.
BATCH = 500

# How long a page may be under way to its nodes, in seconds. Invalidations wait for it.
WRITING = 0.5

# What has less left to live is not brought back, in milliseconds.
LEAST_MS = 1000


@dataclass(frozen=True)
class Surroundings:
    """What all restorations of a process share."""

    router: wire.Router
    batch: wire.Batch
    states: log.StateLog
    metrics: RestoreMetrics
    clusters: tuple[str, ...]
    origin: Origin
    dirty: Dirty


class Page(NamedTuple):
    """What became of a page."""

    rows: int
    written: int
    last: tuple[str, ...]  # segments of the last row, where the next page begins
    complete: bool  # every node has answered; what is not is done again


class _Clock(NamedTuple):
    """What a node said the time is, in milliseconds, and when that was by the loop's clock."""

    ms: int
    heard: float

    def at(self, moment: float) -> int:
        return self.ms + round((moment - self.heard) * 1000)


class _Key(NamedTuple):
    name: bytes  # as nodes name it
    value: Value
    ends: int  # 0: never
    clock: _Clock


class Refill:
    """One keyspace, in those slots of its cluster that have lost their keys."""

    def __init__(
        self,
        around: Surroundings,
        errands: Errands,
        plan: Plan,
        slots: frozenset[int],
    ) -> None:
        self._router = around.router
        self._errands = errands
        self._origin = around.origin
        self._dirty = around.dirty
        self._plan = plan
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self.misfits = 0  # rows that make no value

    async def count(self) -> int | None:
        """Return how many rows there are, None where nobody says."""
        statement = self._statement("SELECT count(*) AS rows", "")
        try:
            (row,) = await self._origin.fetch(statement, [], BACKGROUND, primary=True)
        except OriginError:
            return None
        return int(row["rows"])

    async def page(self, after: tuple[str, ...]) -> Page:
        """Bring the page behind a row back. Raises OriginError where it cannot be read."""
        columns = ", ".join(f'"{segment.name}"' for segment in self._plan.segments)
        numbers = ", ".join(f"${number}" for number in range(1, len(after) + 1))
        behind = f"AND ({columns}) > ({numbers})" if after else ""
        statement = self._statement(
            "SELECT *", f"WHERE ({columns}) IS NOT NULL {behind} ORDER BY {columns} LIMIT {BATCH}"
        )
        clocks = await self._clocks()
        if clocks is None:
            return Page(0, 0, after, complete=False)
        rows = await self._origin.fetch(statement, after, BACKGROUND, primary=True)
        if not rows:
            return Page(0, 0, after, complete=True)
        keys = list(self._keys(rows, clocks))
        written = await self._write(keys)
        last = tuple(rendered(rows[-1][segment.name]).decode() for segment in self._plan.segments)
        return Page(len(rows), written or 0, last, complete=written is not None)

    def _statement(self, head: str, tail: str) -> Statement:
        assert self._plan.restoring is not None
        said = self._plan.restoring.statement
        inner = said.text.strip().removesuffix(";")
        return said._replace(text=f"{head} FROM (\n{inner}\n) AS lost {tail}")

    async def _clocks(self) -> dict[int, _Clock] | None:
        """Return the clocks of all nodes with lost slots, by their number; None: one is away."""
        slots, cluster = self._router.slots, self._plan.cluster
        places = {slots.owner(cluster, place.slot): place for place in slots.places(cluster)}
        owners = {slots.owner(cluster, slot) for slot in self._slots}
        if not owners <= places.keys():
            return None
        replies = await asyncio.gather(
            *(self._errands.tell(places[owner], [b"TIME"]) for owner in owners)
        )
        heard, clocks = self._loop.time(), {}
        for owner, reply in zip(owners, replies, strict=True):
            if reply[:1] != b"*":
                return None
            seconds, micros = map(int, resp.decode(reply))
            clocks[owner] = _Clock(seconds * 1000 + micros // 1000, heard)
        return clocks

    def _keys(self, rows: Iterable[Row], clocks: dict[int, _Clock]) -> Iterable[_Key]:
        """Return the keys of rows that live in lost slots and in this keyspace."""
        ruleset, slots = self._router.ruleset, self._router.slots
        cluster = self._plan.cluster
        for row in rows:
            try:
                key, value, left = restored(self._plan, row)
            except (OriginMisfit, UnicodeDecodeError):
                self.misfits += 1
                continue
            found = ruleset.find_keyspace(key)
            if found < 0 or ruleset.keyspaces[found].name != self._plan.name:
                continue
            if self._dirty(self._plan, key):
                continue
            if value is None or (left is not None and left < LEAST_MS):
                continue
            name = ruleset.upstream_name(key)
            slot = wire.key_slot(name) % slots.slot_count(cluster)
            clock = clocks.get(slots.owner(cluster, slot))
            if slot in self._slots and clock is not None:
                longest = ruleset.keyspaces[found].lifetime.longest
                yield _Key(name, value, self._end(left, longest, clock), clock)

    def _end(self, left: int | None, longest: int, clock: _Clock) -> int:
        """Return when a key ends, by its node's clock; 0: never."""
        plan = self._plan
        life = plan.ttl_ms * (1 - random.uniform(0, plan.jitter)) if left is None else left
        if not life:
            return 0
        return clock.ms + round(min(life, longest or life)) + plan.age.window_ms

    async def _write(self, keys: Sequence[_Key]) -> int | None:
        """Write keys; return how many were lacking, None where not all nodes said so in time."""
        now, written, done = self._loop.time(), 0, asyncio.Event()
        waiting = {key.name for key in keys}

        def heard(name: bytes, reply: bytes) -> None:
            nonlocal written
            if reply in (b":0\r\n", b":1\r\n"):
                written += reply == b":1\r\n"
                waiting.discard(name)
                if not waiting:
                    done.set()

        for key in keys:
            # A marker cannot be where nothing is read.
            marker = plans.companion(plans.ABSENT, key.name) if self._plan.read else None
            others = () if marker is None else (marker,)
            latest = key.clock.at(now + WRITING)
            arguments = [b"%d" % latest, *fill_arguments(key.value, key.ends)]
            self._errands.run(
                RESTORE, self._plan.cluster, key.name, arguments, partial(heard, key.name), others
            )
        if waiting:
            # Also where a node refused at once: others may still be about to write.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(now + WRITING):
                    await done.wait()
        return None if waiting else written
