"""A desk whose locks a real database decides about; the nodes are silent, so no mirror helps."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from proxy.config import Database
from proxy.embedded.postgres import Postgres as Server
from proxy.handlers.grants import Grants
from proxy.origin.postgres import Postgres
from proxy.plans import Plan, plans_in
from proxy.policy import compiler
from proxy.secret import Secret
from proxy.tallies import LockMetrics, OriginMetrics
from proxy.upstream.errands import Errands
from proxy.upstream.mirror import Mirror
from tests.handlers.desk import Client, Desk, parsed
from tests.integration.holds import RULES
from tests.origin.ticketing import Ticketing, ticketing


def grants_of(url: str, mirror: Mirror) -> tuple[Postgres, Grants]:
    """Return what decides about locks in a database, and its connections."""
    registry = CollectorRegistry()
    postgres = Postgres(Database(Secret(url), Secret(url)), OriginMetrics(registry))
    return postgres, Grants(postgres, mirror, LockMetrics(registry))


class LockDesk(Desk):
    """Sessions of which each may hold locks."""

    def __init__(self, path: Path, tickets: Ticketing) -> None:
        super().__init__()
        router = self.server.router
        router.ruleset = compiler.from_files(path, ("cache", "locks"))[0]
        self.tickets = tickets
        self.mirror = Mirror(router, Errands(router, self.batch))
        self.postgres, self.grants = grants_of(tickets.url, self.mirror)
        self.server.grants = self.grants

    def plan(self, name: str) -> Plan:
        known = plans_in(self.server.router.ruleset).by_keyspace.values()
        return next(plan for plan in known if plan.name == name)


async def told(client: Client, *words: str) -> Any:
    """Send a command and return its reply as a Python value; half letters stand for bytes."""
    client.send(*(word.encode(errors="surrogateescape") for word in words))
    return parsed(await client.reply())


@contextlib.asynccontextmanager
async def lock_desk(
    server: Server, folder: Path, rules: str = RULES, *, lua: Path | None = None
) -> AsyncIterator[LockDesk]:
    """A desk with a database of its own; lua: where scripts of the rules are."""
    if lua is not None:
        (folder / "lua").symlink_to(lua)
    async with ticketing(server, folder, rules) as tickets:
        desk = LockDesk(folder / "rules.yaml", tickets)
        await desk.postgres.start()
        try:
            yield desk
        finally:
            await desk.postgres.stop()
