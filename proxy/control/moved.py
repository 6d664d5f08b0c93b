"""Slots that have another primary, which may have heard less than the one before.

A replica takes over without the last writes of its primary. What of them is in PostgreSQL the
outbox says again (`invalidation`); what still waits for it only this sidecar knows: Redis counts as
lacking that, so that it is put back where somebody asks.

Always true: one look at all that waits, however many slots move meanwhile, and no step of it holds
up clients for long.
"""

import asyncio
from collections.abc import Iterable

from proxy import wire
from proxy.origin.behind import WriteBehind
from proxy.plans import Plan

# Keys between two of which others have their turn: less than a millisecond.
SLICE = 500


class Moved:
    """Those of all clusters."""

    def __init__(self, router: wire.Router, behind: WriteBehind) -> None:
        self._router = router
        self._behind = behind
        self._slots: dict[int, set[int]] = {}  # by cluster
        self._wake = asyncio.Event()

    def take(self, cluster: int, slots: Iterable[int]) -> None:
        """Hear which slots have another primary."""
        self._slots.setdefault(cluster, set()).update(slots)
        self._wake.set()

    async def watch(self) -> None:
        """Look at what waits whenever slots have moved, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            slots, self._slots = self._slots, {}
            for place, (keyspace, key) in enumerate(self._behind.places(), 1):
                plan = self._behind.named().get(keyspace)
                if plan is not None and self._slot_of(plan, key) in slots.get(plan.cluster, ()):
                    self._behind.lacks.note(plan, key)
                if place % SLICE == 0:
                    await asyncio.sleep(0)

    def _slot_of(self, plan: Plan, key: bytes) -> int:
        name = self._router.ruleset.upstream_name(key)
        return wire.key_slot(name) % max(1, self._router.slots.slot_count(plan.cluster))
