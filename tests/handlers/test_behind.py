"""Write-behind between a client, a journal with a real PostgreSQL, and nodes that a test plays."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from proxy import errors, log
from proxy.commands import ROWS
from proxy.handlers.in_redis import UPON
from proxy.handlers.leases import Leases
from proxy.handlers.reading import Reads
from proxy.origin import behind as module
from proxy.origin.behind import WriteBehind
from proxy.origin.segments import Segment
from proxy.plans import Detour, Statement, plans_in
from proxy.tallies import BehindMetrics, ReadMetrics
from proxy.upstream.errands import Errands
from proxy.wire.rules import Duty, Keyspace
from tests.handlers import desk
from tests.handlers.backed_desk import nobody
from tests.handlers.desk import Desk
from tests.integration.rig import wait_for
from tests.origin.activity import UPSERT, connecting, plan_of, plans_of, rows_of, writing

KEY = b"activity:u1:2026-11-29"
VIEWS = "SELECT views, name FROM activity"
PLAN = plan_of(writing(every=3600.0), detour=Detour(writes="journal"))

READABLE = PLAN._replace(
    read=Statement("activity read", "SELECT", UPSERT.parameters[:2]),
)


class Table(Desk):
    """A desk whose keyspace is written behind; both nodes of its cluster answer what it says."""

    def __init__(self, directory: Path, dsn: str) -> None:
        super().__init__()
        metrics = BehindMetrics(CollectorRegistry())
        rules = self.server.router.ruleset
        self.behind = WriteBehind(directory, connecting(dsn), lambda: plans_in(rules), metrics)
        self.server.behind = self.behind
        self.client = self.connect()

    async def ask(self, *words: bytes, node: bytes | None = None) -> bytes:
        """Return the reply to a command, for which the node says this where it is asked."""
        self.client.send(*words)
        if node is not None:
            while not any(each.sent for pair in self.nodes for each in pair):
                await asyncio.sleep(0)
                self.settle()
            for pair in self.nodes:
                for each in pair:
                    if each.commands():
                        each.answer(node)
        return await self.client.reply()

    def lose(self) -> None:
        for pair in self.nodes:
            for each in pair:
                each.upstream.available = False


@pytest.fixture
async def table(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    activity: str,
) -> AsyncIterator[Table]:
    keyspace = Keyspace(
        name="activity", pattern=PLAN.pattern, cluster=0, hash_tag=None, characters=None,
        max_key_bytes=512, denied=bytes(len(ROWS)), key_error=b"-POLICY key\r\n",
        denied_error=b"-NOPERM denied\r\n", detours=True,
        duties=bytes(Duty.ORIGIN * (row.looks_up or row.write) for row in ROWS),
    )  # fmt: skip
    monkeypatch.setattr(desk, "KEYSPACES", [keyspace])
    monkeypatch.setattr(desk, "PLANS", plans_of(getattr(request, "param", PLAN)))
    made = Table(tmp_path, activity)
    await made.behind.start()
    yield made
    await made.behind.stop(10.0)


pytestmark = pytest.mark.integration


async def test_a_write_is_journalled_before_the_node_hears(table: Table, activity: str) -> None:
    """And the client gets the node's reply."""
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2", node=b":2\r\n") == b":2\r\n"
    assert table.behind.overlay(PLAN, KEY) is not None
    await table.behind.stop(10.0)
    assert await rows_of(activity, VIEWS) == [(2, None)]


async def test_an_increment_that_the_node_refuses_is_taken_back(
    table: Table, activity: str
) -> None:
    """An outcome that nobody knows is left as it is: it may have happened."""
    refused = b"-ERR hash value is not an integer\r\n"
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2", node=refused) == refused
    unknown = errors.UNKNOWN_OUTCOME
    assert await table.ask(b"HINCRBY", KEY, b"views", b"-5", node=unknown) == unknown
    await table.behind.stop(10.0)
    assert await rows_of(activity, VIEWS) == [(-5, None)]


async def test_what_the_journal_refuses_does_not_reach_the_node(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is full nor where the command cannot be told."""
    monkeypatch.setattr(table.behind, "_share", lambda plan: 1.0)
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2") == errors.JOURNAL_FULL
    reply = await table.ask(b"HSETNX", KEY, b"name", b"x")
    assert reply.startswith(b"-POLICY write refused by keyspace 'activity'")
    assert not any(node.sent for pair in table.nodes for node in pair)


async def test_what_postgres_has_no_value_for_is_refused(table: Table) -> None:
    """A day that is none, bytes that are no text: an error now, and no dead letter later."""
    reply = await table.ask(b"HINCRBY", b"activity:u1:2026-99-99", b"views", b"2")
    assert reply.startswith(b"-POLICY key refused by keyspace 'activity'")
    reply = await table.ask(b"HINCRBY", b"activity:\xff:2026-11-29", b"views", b"2")
    assert reply.startswith(b"-POLICY")
    for value in (b"\xff", b"a\0b"):
        reply = await table.ask(b"HSET", KEY, b"name", value)
        assert reply.startswith(b"-POLICY write refused by keyspace 'activity'")
    assert table.behind.overlay(PLAN, KEY) is None
    assert not any(node.sent for pair in table.nodes for node in pair)


async def test_times_and_reads_go_past_the_journal(table: Table) -> None:
    """They change no value."""
    assert await table.ask(b"EXPIRE", KEY, b"100", node=b":1\r\n") == b":1\r\n"
    assert await table.ask(b"HGET", KEY, b"views", node=b"$1\r\n7\r\n") == b"$1\r\n7\r\n"
    assert table.behind.overlay(PLAN, KEY) is None


async def test_a_look_up_that_finds_nothing_finds_what_waits(table: Table) -> None:
    """A key that Redis has lost is what was written since PostgreSQL was told."""
    await table.ask(b"HSET", KEY, b"name", b"Ada", node=b":1\r\n")
    assert await table.ask(b"HGET", KEY, b"name", node=b"$-1\r\n") == b"$3\r\nAda\r\n"
    await table.ask(b"DEL", KEY, node=b":1\r\n")
    assert await table.ask(b"HGETALL", KEY, node=b"*0\r\n") == b"*0\r\n"
    other = b"activity:u2:2026-11-29"
    assert await table.ask(b"HGET", other, b"name", node=b"$-1\r\n") == b"$-1\r\n"


async def test_without_redis_only_exact_answers_are_given(table: Table, activity: str) -> None:
    """A key that was deleted before is known whole; of others only PostgreSQL knows more."""
    await wait_for(lambda: table.behind.types(plan_of(), KEY), "the types of columns")
    await table.ask(b"DEL", KEY, node=b":0\r\n")
    table.lose()
    assert await table.ask(b"HMSET", KEY, b"name", b"Ada") == b"+OK\r\n"
    assert await table.ask(b"HINCRBY", KEY, b"views", b"5") == b":5\r\n"
    assert await table.ask(b"HINCRBY", KEY, b"views", b"-2") == b":3\r\n"
    assert b"no such number" in await table.ask(b"HINCRBYFLOAT", KEY, b"views", b"1.50")
    assert await table.ask(b"HINCRBYFLOAT", KEY, b"views", b"1.00") == b"$1\r\n4\r\n"
    assert await table.ask(b"HSET", KEY, b"name", b"x", b"score", b"1") == b":1\r\n"
    assert await table.ask(b"HDEL", KEY, b"score", b"name") == b":2\r\n"
    assert await table.ask(b"HGETALL", KEY) == b"*2\r\n$5\r\nviews\r\n$1\r\n4\r\n"
    assert await table.ask(b"DEL", KEY) == b":1\r\n"
    assert await table.ask(b"DEL", KEY) == b":0\r\n"
    other = b"activity:u2:2026-11-29"
    assert await table.ask(b"HINCRBY", other, b"views", b"1") == errors.DEGRADED
    assert await table.ask(b"HGET", other, b"views") == errors.CLUSTERDOWN
    await table.behind.stop(10.0)
    assert await rows_of(activity, "SELECT id FROM activity") == [("u1",)]


@pytest.mark.parametrize("table", [READABLE], indirect=True)
async def test_without_redis_postgres_knows_the_rest(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that was flushed, and upon it what waits: an increment is answered exactly."""

    async def fetch(*_: object, **__: object) -> list[dict[str, str]]:
        return [{"views": "40", "name": "Ada"}]

    monkeypatch.setattr(table.server, "postgres", SimpleNamespace(fetch=fetch))
    table.lose()
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2") == b":42\r\n"
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2") == b":44\r\n"
    assert await table.ask(b"HGET", KEY, b"views") == b"$2\r\n44\r\n"
    assert await table.ask(b"HSET", KEY, b"name", b"x", b"score", b"1") == b":1\r\n"


@pytest.mark.parametrize("table", [PLAN._replace(detour=Detour())], indirect=True)
async def test_without_redis_a_policy_may_refuse_writes(table: Table) -> None:
    """Then nothing is journalled."""
    table.lose()
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2") == errors.CLUSTERDOWN
    assert table.behind.overlay(PLAN, KEY) is None


async def test_a_disk_that_hangs_is_told(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what becomes of the write, and its client is told so."""
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    assert await table.ask(b"HINCRBY", KEY, b"views", b"2") == errors.UNKNOWN_WRITE


@pytest.mark.parametrize("table", [READABLE], indirect=True)
async def test_what_lands_late_is_lacking_in_redis(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk has it in the end, and nobody has told Redis."""
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    held, append = threading.Event(), Segment.append

    def slow(segment: Segment, data: bytes) -> None:
        held.wait(5)
        append(segment, data)

    monkeypatch.setattr(Segment, "append", slow)
    table.lose()
    assert await table.ask(b"HMSET", KEY, b"name", b"x") == errors.UNKNOWN_WRITE
    held.set()
    async with asyncio.timeout(5):
        while table.behind.overlay(READABLE, KEY) is None:
            await asyncio.sleep(0.001)
        while not table.behind.lacks.has((READABLE.name, KEY)):
            await asyncio.sleep(0.001)


async def test_a_time_that_is_over_is_refused(table: Table) -> None:
    """The key would be back with what waits for PostgreSQL."""
    for words in (
        (b"EXPIRE", KEY, b"0"),
        (b"PEXPIREAT", KEY, b"1"),
        (b"GETEX", KEY, b"PXAT", b"1"),
    ):
        assert b"send DEL" in await table.ask(*words)


async def test_a_transaction_cannot_be_journalled(table: Table) -> None:
    """Its commands are refused one by one, and EXEC runs nothing."""
    assert await table.ask(b"MULTI") == b"+OK\r\n"
    reply = await table.ask(b"HINCRBY", KEY, b"views", b"2")
    assert reply.startswith(b"-POLICY write refused by keyspace 'activity': hincrby")
    assert b"expire cannot be journalled" in await table.ask(b"EXPIRE", KEY, b"0")
    assert (await table.ask(b"EXEC")).startswith(b"-EXECABORT")


@pytest.mark.parametrize("table", [READABLE], indirect=True)
async def test_what_redis_may_have_without_a_write_goes(table: Table) -> None:
    """Refused after it was journalled: void at once, and once more when that is flushed."""
    router = table.server.router
    leases = Leases(router, Errands(router, table.batch), log.StateLog())
    table.server.reads = Reads(nobody(), leases, ReadMetrics(CollectorRegistry()))
    gone: list[bytes] = []
    table.behind.lacks.watch(gone.append)
    refused = b"-OOM\r\n"
    table.client.send(b"HINCRBY", KEY, b"views", b"2")
    await answered(table, b"EVALSHA", b"$5\r\nthere\r\n")
    await answered(table, b"EVALSHA", refused)
    assert await table.client.reply() == refused
    # It is taken back: Redis lacks nothing.
    assert not table.behind.lacks.has((READABLE.name, KEY))
    table.client.send(b"HSET", KEY, b"name", b"x")
    await answered(table, b"EVALSHA", refused)
    assert await table.client.reply() == b"-OOM; PostgreSQL is told of it nevertheless\r\n"
    assert table.behind.lacks.has((READABLE.name, KEY))
    await table.behind.stop(10.0)
    assert gone == [KEY] * 2
    assert not table.behind.lacks.has((READABLE.name, KEY))


@pytest.mark.parametrize("table", [READABLE], indirect=True)
async def test_a_write_is_upon_what_postgres_has_and_ends_fetches(table: Table) -> None:
    """A part is written to the whole row, and what was read before does not take its place."""
    router = table.server.router
    leases = Leases(router, Errands(router, table.batch), log.StateLog())
    table.server.reads = Reads(nobody(), leases, ReadMetrics(CollectorRegistry()))
    table.client.send(b"HINCRBY", KEY, b"views", b"2")
    await answered(table, b"EVALSHA", b"$5\r\nthere\r\n")
    ((_, script, *words),) = await answered(table, b"EVALSHA", b":42\r\n")
    beside = [b"sidecache:%b:{%b}" % (kind, KEY) for kind in (b"lease", b"none")]
    assert (script, words[:4]) == (UPON.digest, [b"3", KEY, *beside])
    assert words[4:] == [b"2", b"1", b"-1", b"4", b"HINCRBY", KEY, b"views", b"2"]
    assert await table.client.reply() == b":42\r\n"
    # What waits is in Redis, and PostgreSQL is behind: nothing is fetched.
    table.client.send(b"HINCRBY", KEY, b"views", b"1")
    await answered(table, b"EVALSHA", b":43\r\n")
    assert await table.client.reply() == b":43\r\n"


async def answered(table: Table, name: bytes, replies: bytes) -> list[list[bytes]]:
    """Answer what a node is asked next; return it."""
    nodes = [node for pair in table.nodes for node in pair]
    async with asyncio.timeout(5):
        while not any(node.sent for node in nodes):
            await asyncio.sleep(0)
            table.settle()
    node = next(node for node in nodes if node.sent)
    sent = node.commands()
    assert sent[0][0] == name
    node.answer(replies)
    table.settle()
    return sent
