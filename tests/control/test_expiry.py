"""Locks that are over are given back by one of all sidecars, in the database and in the mirror."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from proxy import log, wire
from proxy.control.expiry import Expiry, Surroundings
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.origin import installing, locking
from proxy.origin.misfits import Misfits
from proxy.policy import compiler
from proxy.tallies import LockMetrics
from tests.integration.holds import RULES
from tests.integration.rig import wait_for
from tests.origin.ticketing import Ticketing, ticketing
from tests.upstream.mirrored import KEY, Mirrored, mirrored

pytestmark = pytest.mark.integration


class Sweepers:
    """Sweepers of one database, of which one leads."""

    def __init__(self, tickets: Ticketing, mirrored: Mirrored) -> None:
        self.tickets = tickets
        self.mirrored = mirrored
        self.registry = CollectorRegistry()
        self.metrics = LockMetrics(self.registry)
        self.misfits = Misfits()
        self.connections: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> "asyncpg.Connection[Any]":
        connection = await asyncpg.connect(self.tickets.url, timeout=5)
        self.connections.append(connection)
        return connection

    def start(self, router: wire.Router | None = None) -> None:
        router = router or self.mirrored.stand.router
        mirror, states = self.mirrored.mirror, log.StateLog()
        expiry = Expiry(
            Surroundings(router, mirror, self.metrics, states, self.connect, self.misfits)
        )
        self.tasks.append(asyncio.create_task(expiry.watch()))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def expired(self) -> float:
        labels = {"outcome": "expired"}
        return self.registry.get_sample_value("sidecache_locks_total", labels) or 0


@pytest.fixture
async def sweepers(
    postgres_server: Postgres, locks_cluster: Cluster, tmp_path: Path
) -> AsyncIterator[Sweepers]:
    async with (
        ticketing(postgres_server, tmp_path) as tickets,
        mirrored(locks_cluster, tmp_path) as shown,
    ):
        found = Sweepers(tickets, shown)
        try:
            yield found
        finally:
            await found.stop()


async def free(tickets: Ticketing, name: str) -> bool:
    asker = await tickets.asker()
    row = await asker.seat(name)
    asker.connection.terminate()
    return bool(row["status"] == "available")


async def test_what_is_over_is_given_back(sweepers: Sweepers) -> None:
    """Within a second the row is available, the mirror shows nothing, and both are counted."""
    asker = await sweepers.tickets.asker()
    taken = await asker.take("u1", "s1", "s2", hold=30)
    assert taken.tokens is not None
    plan = sweepers.mirrored.plan
    sweepers.mirrored.mirror.put(plan, KEY, taken.tokens[0], b"{}", 30_000)
    await sweepers.mirrored.shows("{}")
    sweepers.start()
    await asker.expire("s1")
    await wait_for(lambda: free(sweepers.tickets, "s1"), "the seat to be free", 3.0)
    await sweepers.mirrored.shows(None)
    await wait_for(lambda: sweepers.expired == 1, "the count")
    assert not await free(sweepers.tickets, "s2")


async def test_a_lock_of_the_application_without_a_token(sweepers: Sweepers) -> None:
    """It is given back as any other, and the sweeper lives on."""
    asker = await sweepers.tickets.asker()
    sweepers.start()
    for name in ("s1", "s2"):
        await asker.connection.execute(
            "UPDATE seats SET status = 'locked', locked_by = 'app', lock_token = NULL,"
            " locked_until = clock_timestamp() WHERE event = 'e1' AND seat = $1", name,
        )  # fmt: skip
        await wait_for(lambda name=name: free(sweepers.tickets, name), f"{name} to be free", 3.0)


async def test_another_takes_over(sweepers: Sweepers) -> None:
    """When the session that sweeps is killed, one of the sidecars sweeps on."""
    asker = await sweepers.tickets.asker()
    for _ in range(2):
        sweepers.start()
    for name in ("s1", "s2", "s3"):
        await asker.take("u1", name)
        await asker.expire(name)
        await wait_for(lambda name=name: free(sweepers.tickets, name), f"{name} to be free", 8.0)
        await asker.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()"
        )


async def test_other_locks_are_swept_by_others(sweepers: Sweepers, tmp_path: Path) -> None:
    """A sidecar whose policies know other locks sweeps those, whoever sweeps what it has not."""
    asker = await sweepers.tickets.asker("mutex")
    seats = tmp_path / "seats.yaml"
    seats.write_text(RULES[: RULES.index("  mutex:")])
    router = wire.Router(compiler.from_files(seats, ("locks",))[0], wire.SlotMap([], []))
    sweepers.start(router)
    await wait_for(lambda: sweepers.connections, "the first sweeper")
    await asker.take("me", "mutex:a")
    await asker.connection.execute("UPDATE sidecache_locks SET locked_until = clock_timestamp()")
    sweepers.start()
    await wait_for(lambda: sweepers.expired == 1, "the sweep", 3.0)
    # Who learns of further locks sweeps with who has had them.
    router.ruleset = sweepers.mirrored.stand.router.ruleset
    sweepers.tasks[1].cancel()
    await asker.take("me", "mutex:b")
    await asker.connection.execute("UPDATE sidecache_locks SET locked_until = clock_timestamp()")
    await wait_for(lambda: sweepers.expired == 2, "the next sweep", 5.0)


async def test_more_than_one_sweep_takes(sweepers: Sweepers) -> None:
    """A thousand locks that end at a time are given back, those without a table too."""
    asker = await sweepers.tickets.asker("mutex")
    names = [f"mutex:{number}" for number in range(1100)]
    await asker.take("me", *names)
    await asker.connection.execute("UPDATE sidecache_locks SET locked_until = clock_timestamp()")
    sweepers.start()
    await wait_for(lambda: sweepers.expired == 1100, "all to be swept")
    left = "SELECT count(*) FROM sidecache_locks WHERE status = 'locked'"
    assert await asker.connection.fetchval(left) == 0


async def test_what_is_not_installed_is_told_until_it_is(
    sweepers: Sweepers, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that finds no function says so once, and the others are swept all the same."""
    caplog.set_level(logging.INFO)
    asker = await sweepers.tickets.asker("mutex")
    seats = (await sweepers.tickets.asker()).plan
    await asker.connection.execute("".join(locking.dropped(seats, "public")))
    await asker.take("me", "mutex:1")
    await asker.connection.execute("UPDATE sidecache_locks SET locked_until = clock_timestamp()")
    sweepers.start()
    await wait_for(lambda: sweepers.misfits.among([seats]), "the misfit")
    await wait_for(lambda: sweepers.expired == 1, "the sweep of what is there")
    assert not sweepers.misfits.among([asker.plan])
    await installing.run(sweepers.tickets.url, (), apply=True, remove=False, locks=[seats])
    await wait_for(lambda: not sweepers.misfits.among([seats]), "the functions")
    for event in ("lock_functions_misfit", "lock_functions_fit"):
        assert caplog.messages.count(event) == 1
