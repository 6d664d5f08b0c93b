"""A mirror of locks on a real cluster, and what its nodes have of them."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from proxy import wire
from proxy.embedded.redis import Cluster
from proxy.plans import TOKEN, Plan, companion, plans_in
from proxy.policy import compiler
from proxy.upstream.errands import Errands
from proxy.upstream.mirror import Mirror
from tests.integration.holds import RULES
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config

KEY = b"seat_lock:e1:s1"
NAME = "seat_lock:{e1}:s1"


class Mirrored:
    """A mirror, and the cluster behind it."""

    def __init__(self, stand: Stand, cluster: Cluster, rules: wire.Ruleset) -> None:
        self.stand = stand
        self.cluster = cluster
        stand.router.ruleset = rules
        self.plans = {plan.name: plan for plan in plans_in(rules).by_keyspace.values()}
        self.mirror = Mirror(stand.router, Errands(stand.router, stand.flusher.batch))

    @property
    def plan(self) -> Plan:
        return self.plans["seat_lock"]

    async def ask(self, *words: str, key: str = NAME) -> Any:
        owner = await self.cluster.owner(wire.key_slot(key.encode()))
        return await owner.ask(*words)

    async def value(self, key: str = NAME) -> Any:
        return await self.ask("GET", key, key=key)

    async def token(self) -> Any:
        beside = companion(TOKEN, NAME.encode())
        assert beside is not None
        return await self.ask("GET", beside.decode())

    async def shows(self, value: str | None, key: str = NAME) -> None:
        """Wait until the nodes show a value."""

        async def shown() -> bool:
            return bool(await self.value(key) == value)

        await wait_for(shown, f"{key} to be {value}")


@contextlib.asynccontextmanager
async def mirrored(cluster: Cluster, folder: Path, rules: str = RULES) -> AsyncIterator[Mirrored]:
    """Connect a mirror to a cluster that has been emptied."""
    path = folder / "mirrored.yaml"
    path.write_text(rules)
    await cluster.flush()
    stand = Stand(cluster_config(cluster.primaries, timeout=1.0))
    try:
        await stand.start()
        yield Mirrored(stand, cluster, compiler.from_files(path, ("locks",))[0])
    finally:
        await stand.stop()
