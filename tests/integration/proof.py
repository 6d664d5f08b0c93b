"""One run of the proof: a crowd in a hall, troubles meanwhile, and what comes out of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.integration import truth
from tests.integration.chaos import Chaos, Troubles
from tests.integration.crowd import Connect, Crowd, Plan
from tests.integration.hall import Hall
from tests.integration.rig import Caller
from tests.integration.verdicts import Verdict, judge
from tests.quiet import without_collector

# What a client may be told while something is away, or of a lock that another connection took.
EXCUSED = {"PGDOWN", "TRYAGAIN", "DEGRADED", "CLUSTERDOWN", "LOCKOWNER"}


def through_sidecars(hall: Hall) -> Connect:
    """Return how a client gets a line: to a sidecar of its own, and to the next when it is lost."""
    tries: dict[int, int] = {}

    async def connect(number: int) -> Caller:
        tries[number] = tries.get(number, -1) + 1
        sidecar = hall.sidecars[(number + tries[number]) % len(hall.sidecars)]
        return await Caller.open(sidecar.port)

    return connect


@contextlib.asynccontextmanager
async def working(crowd: Crowd) -> AsyncIterator[None]:
    """Let a crowd ask until the block is left; then until it has asked enough."""
    task = asyncio.create_task(crowd.run())
    try:
        yield
        while not crowd.enough and not task.done():
            await asyncio.sleep(0.05)
    finally:
        crowd.over.set()
        await task


async def prove(hall: Hall, plan: Plan, troubles: Troubles) -> Verdict:
    """Let a crowd work amid troubles; print what happened, and return what it proves."""
    crowd = Crowd(plan, through_sidecars(hall))
    chaos = Chaos(hall.cluster, hall.postgres, hall.wires, plan.seed)
    begun = time.monotonic()
    with without_collector():
        async with working(crowd):
            await chaos.run(troubles, lambda: crowd.progress)
        seconds = time.monotonic() - begun
        verdict = await asyncio.to_thread(judge, crowd.history, plan.limit)
    print("\n".join(chaos.log))
    print(f"{crowd.answered} answered in {seconds:.1f} s: {crowd.answered / seconds:.0f}/s")
    print(f"{dict(sorted(crowd.outcomes.items()))}\ntroubles {dict(chaos.counts)}")
    answered(crowd, verdict)
    await compare(hall, crowd, verdict)
    print(verdict)
    return verdict


def answered(crowd: Crowd, verdict: Verdict) -> None:
    """Add to a verdict what shows that too little was asked, or not what was meant."""
    odd = {
        each.error
        for each in crowd.history
        if each.error and each.error.split(" ")[0] not in EXCUSED
    }
    verdict.add("errors that no trouble explains", odd)
    if not crowd.enough:
        verdict.add("seats too few", [f"only {crowd.answered} operations were answered"])


async def compare(hall: Hall, crowd: Crowd, verdict: Verdict) -> None:
    """Add to a verdict what PostgreSQL says otherwise."""
    history, limit = crowd.history, crowd.plan.limit
    checks: dict[str, Any] = {
        "grants that PostgreSQL made wrongly": truth.granted_wrongly(hall),
        "orphans": truth.orphans(hall, history),
        "grants that PostgreSQL never made": truth.unknown_to_postgres(hall, history),
        "sales that PostgreSQL has not": truth.sold(hall, history),
        "owners over the limit in PostgreSQL": truth.hoarded(hall, limit),
        "mirrors that differ": truth.agree(truth.mirrored, hall),
        "availability that differs": truth.agree(truth.available, hall),
    }
    print(f"expired locks were swept {await truth.settled(hall):.2f} s after the last question")
    for kind, check in checks.items():
        verdict.add(kind, await check)
