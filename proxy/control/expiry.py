"""Locks that nobody holds any more are given back: in PostgreSQL, and so in all that follows it.

One sidecar of all that have the same locks sweeps for them. An expired lock is free for whoever
asks, swept or not; a sweep is for those who do not ask: who watches the table, waits in a queue, or
reads how many are left.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from proxy import log, wire
from proxy.control.lease import FAILURES, Connect, leading
from proxy.origin.misfits import Misfits
from proxy.plans import Plan, plans_in
from proxy.tallies import LockMetrics
from proxy.upstream.mirror import Mirror

# How often it is swept, in seconds; a seat is on sale again within a second of its expiry.
PERIOD = 0.25

# What one sweep may take, and how long it is waited after a failure, in seconds.
TIMEOUT = 5.0
PAUSE = 0.5

# So many expired locks at once, and the next sweep begins at once.
MANY = 100


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is swept, and who hears of it."""

    router: wire.Router
    mirror: Mirror
    metrics: LockMetrics
    states: log.StateLog
    connect: Connect
    misfits: Misfits


class Expiry:
    """The sweeper of one sidecar."""

    def __init__(self, around: Surroundings) -> None:
        self._router = around.router
        self._mirror = around.mirror
        self._metrics = around.metrics
        self._states = around.states
        self._connect = around.connect
        self._misfits = around.misfits

    async def watch(self) -> None:
        """Sweep whenever nobody else does, for ever."""
        while True:
            if self._plans():
                try:
                    await self._lead()
                except FAILURES as error:
                    self._states.change(
                        log.WARNING, "locks", "unswept", "locks_unswept",
                        reason=str(error) or "no answer in time",
                    )  # fmt: skip
            await asyncio.sleep(PAUSE)

    async def _lead(self) -> None:
        async with leading(self._lease, self._connect) as connection:
            self._states.change(log.INFO, "locks", "swept", "locks_swept_here")
            lease = self._lease()
            while (plans := self._plans()) and self._lease() == lease:
                busy = False
                for plan in plans:
                    busy = await self._swept(connection, plan) or busy
                if not busy:
                    await asyncio.sleep(PERIOD)

    def _lease(self) -> str:
        """Name what is swept: sidecars of other policies sweep something else, or otherwise."""
        locks = [plan.locking for plan in self._plans() if plan.locking is not None]
        return "\n".join(
            sorted(f"{each.calls.sweep.text} {each.offer} {each.most}" for each in locks)
        )

    def _plans(self) -> Sequence[Plan]:
        known = plans_in(self._router.ruleset).by_keyspace.values()
        return [plan for plan in known if plan.locking is not None]

    async def _swept(self, connection: "asyncpg.Connection[Any]", plan: Plan) -> bool:
        """Sweep a keyspace; return whether that was much. What the database refuses of one keyspace
        keeps no other waiting.
        """
        assert plan.locking is not None
        call = plan.locking.calls.sweep
        try:
            busy = await self._sweep(connection, plan)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            if self._misfits.refused(call, error):
                return False
            self._states.change(
                log.WARNING, f"locks {plan.name}", "unswept", "keyspace_unswept",
                keyspace=plan.name, reason=str(error),
            )  # fmt: skip
            return False
        self._misfits.answered(call)
        self._states.change(
            log.INFO, f"locks {plan.name}", "swept", "keyspace_swept", keyspace=plan.name
        )
        return busy

    async def _sweep(self, connection: "asyncpg.Connection[Any]", plan: Plan) -> bool:
        """Give back what has expired; return whether that was much."""
        locking = plan.locking
        assert locking is not None
        rows = await connection.fetch(
            locking.calls.sweep.text, f"{locking.offer:.3f}", str(locking.most), timeout=TIMEOUT
        )
        self._metrics.count("expired", amount=len(rows))
        keys = ((self._key(plan, row["name"]), row["token"]) for row in rows)
        await asyncio.gather(*(self._mirror.drop(plan, key, token) for key, token in keys))
        return len(rows) >= MANY

    @staticmethod
    def _key(plan: Plan, columns: Sequence[str]) -> bytes:
        if plan.locking is not None and plan.locking.table is None:
            return columns[0].encode()
        names = (segment.name for segment in plan.segments)
        return plan.key_of(dict(zip(names, columns, strict=True)))
