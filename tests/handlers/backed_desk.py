"""A desk with a keyspace that PostgreSQL stands behind: the node answers when a test says so.

PostgreSQL itself is a port where nobody listens, so every statement fails at once. What is read and
written in a real one is shown by tests/integration/test_origin.py.
"""

import asyncio
import socket
from typing import Any

from prometheus_client import CollectorRegistry

from proxy import errors, log, wire
from proxy.commands import FAMILIES, ROWS
from proxy.config import Database
from proxy.handlers.leases import FILL, INVALIDATE, LEASE, Leases
from proxy.handlers.reading import Reads
from proxy.origin.postgres import Postgres
from proxy.plans import Age, Detour, Parameter, Plan, Plans, Statement, Writing
from proxy.secret import Secret
from proxy.tallies import OriginMetrics, ReadMetrics
from proxy.upstream.errands import Errands
from proxy.wire import rules
from tests.handlers.desk import Desk, Node

PATTERN = (b"user:", rules.Segment("id", "text"))
NAMES = {LEASE.digest: "lease", FILL.digest: "fill", INVALIDATE.digest: "invalidate"}

ID = Parameter("id", "text")
READ = Statement("user read", "SELECT name FROM users WHERE id = $1::text", (ID,))
WRITE = Statement(
    "user write", "UPDATE users SET name = $1 WHERE id = $2::text", (Parameter("name", "field"), ID)
)


def plan(**changes: Any) -> Plan:
    """Return a plan: a hash of a minute that may be stale for ten seconds, or a string."""
    return Plan(
        keyspace=0, name="user", pattern=PATTERN, cluster=0, kind="cache", type="hash",
        ttl_ms=60_000, jitter=0.0, read=READ, columns=(), max_rows=1,
        age=Age(stale_ms=10_000, error_ms=30_000, negative_ms=5000), writing=None,
        detour=Detour("origin", "origin"), restoring=None, on_loss=None, drift=0.0, security=False,
    )._replace(**changes)  # fmt: skip


THROUGH = Writing("through", WRITE, "replace", 5.0, 1000, 1 << 20)


def keyspace(own: Plan) -> rules.Keyspace:
    duties = bytes(rules.Duty.ORIGIN * (row.keys.kind is not rules.KeyKind.NONE) for row in ROWS)
    return rules.Keyspace(
        name="user", pattern=own.pattern, cluster=0, hash_tag=None, characters=None,
        max_key_bytes=512,
        denied=bytes(len(ROWS)), key_error=b"-POLICY key\r\n", denied_error=b"-NOPERM denied\r\n",
        duties=duties, detours=own.detour.reads != "error", written=own.mode == "none",
        ageing=rules.Ageing(own.age.window_ms, own.age.stale_ms),
    )  # fmt: skip


# What a test leaves looking for its PostgreSQL, which would go on beside all later tests.
LOOKING: list[Postgres] = []


def nobody() -> Postgres:
    """Return a PostgreSQL at a port where nobody listens; it ends with the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = Secret(f"postgresql://nobody@127.0.0.1:{free.getsockname()[1]}/none?sslmode=disable")
    LOOKING.append(Postgres(Database(url, url), OriginMetrics(CollectorRegistry())))
    return LOOKING[-1]


class BackedDesk(Desk):
    """A desk whose keyspace `user` has a plan."""

    def __init__(self, own: Plan) -> None:
        super().__init__()
        self.plan = own
        self.metrics = ReadMetrics(CollectorRegistry())
        router = self.server.router
        router.ruleset = wire.Ruleset(
            commands=ROWS, keyspaces=[keyspace(own)], roles=router.ruleset.roles,
            families=[*FAMILIES], errors=errors.DATA_PLANE, default_cluster=0,
            reject_unmatched=False, max_key_bytes=1024, plans=Plans({0: own}),
        )  # fmt: skip
        self.leases = Leases(router, Errands(router, self.batch), log.StateLog())
        self.reads = self.server.reads = Reads(nobody(), self.leases, self.metrics)

    @property
    def home(self) -> Node:
        """The node of user:1."""
        return self.node(1)

    async def asked(self) -> list[list[bytes]]:
        """Return what the node is asked next; scripts by their names, with keys and arguments."""
        async with asyncio.timeout(5):
            while not self.home.sent:
                await asyncio.sleep(0)
                self.settle()
        return [_named(words) for words in self.home.commands()]

    async def answer(self, *replies: bytes) -> None:
        self.home.answer(*replies)
        self.settle()

    def admit(self, share: int) -> None:
        """Let nodes have so many percent of what PostgreSQL can answer."""
        for pair in self.nodes:
            for node in pair:
                node.upstream.share = share

    def away(self) -> None:
        for pair in self.nodes:
            for node in pair:
                node.upstream.available = False


def _named(words: list[bytes]) -> list[bytes]:
    if words[0] != b"EVALSHA":
        return words
    return [NAMES[words[1]].encode(), *words[3:]]
