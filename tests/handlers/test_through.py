"""Write-through where PostgreSQL or Redis is away, and what is refused."""

import asyncio
from types import SimpleNamespace

import pytest

from proxy import errors
from proxy.handlers import backed
from proxy.plans import Detour, Parameter
from tests.handlers.backed_desk import THROUGH, WRITE, BackedDesk, plan

OVER = errors.not_behind("user", "a time that is over would delete the key")
FIELDS = tuple(Parameter(name, "field") for name in ("value", "ttl"))
STRING = plan(type="string", writing=THROUGH._replace(statement=WRITE._replace(parameters=FIELDS)))


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan(writing=THROUGH))


async def test_what_postgres_does_not_take_is_not_answered_with_ok(table: BackedDesk) -> None:
    """PostgreSQL is away: the client hears so, and Redis is not touched."""
    client = table.connect()
    client.send(b"HMSET", b"user:1", b"name", b"x")
    assert await client.reply() == errors.ORIGIN_DOWN
    assert table.home.sent == b""


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (b"HMSET user:1 name x age 3", errors.no_column("user")),
        (b"HSETNX user:1 name x", errors.no_statement("user")),
        (b"HINCRBY user:1 name 1", errors.no_statement("user")),
        (b"HDEL user:1 name", errors.no_statement("user")),
        (b"SET user:1 x", errors.no_column("user")),
        (b"SET user:1 x NX", errors.no_statement("user")),
        (b"SET user:1 x GET", errors.no_statement("user")),
        (b"SETEX user:1 ten x", errors.NOT_AN_INTEGER),
        (b"SETEX user:1 0 x", errors.invalid_expire("setex")),
        (b"PSETEX user:1 -1 x", errors.invalid_expire("psetex")),
        (b"SET user:1 x EX 9223372036854775807", errors.invalid_expire("set")),
        (b"HSET user:1 name x name", errors.wrong_arity(b"hset")),
        (b"EVAL x 1 user:1", errors.no_statement("user")),
        (b"EVALSHA x 2 other user:1", errors.no_statement("user")),
        (b"FCALL f 1 user:1", errors.no_statement("user")),
        (b"COPY other user:1", errors.no_statement("user")),
        (b"BLPOP user:1 0", errors.no_statement("user")),
        (b"RENAME user:{1}a user:{1}b", errors.no_statement("user")),
    ],
)
async def test_what_the_statement_cannot_do_is_refused(
    table: BackedDesk, command: bytes, line: bytes
) -> None:
    """Nothing is written in part, neither here nor there."""
    client = table.connect()
    client.send(*command.split())
    assert await client.reply() == line
    assert table.home.sent == b""


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (b"SET user:1 x KEEPTTL", errors.no_statement("user")),
        (b"SET user:1 x EXAT 1", OVER),
        (b"SET user:1 x PXAT 1000", OVER),
        (b"SET user:1 x EX 5 KEEPTTL", errors.SYNTAX),
        (b"SET user:1 x EX", errors.SYNTAX),
        (b"SET user:1 x XX EX 5", errors.no_statement("user")),
        (b"SET user:1 x EX 5 GET", errors.no_statement("user")),
        (b"SET user:1 x EX 5", errors.ORIGIN_DOWN),
        (b"SET user:1 x", errors.ORIGIN_DOWN),
    ],
)
async def test_a_time_is_told_or_refused(command: bytes, line: bytes) -> None:
    """What PostgreSQL would take for no time, or for one that is over, never reaches it."""
    client = BackedDesk(STRING).connect()
    client.send(*command.split())
    assert await client.reply() == line


async def test_without_redis_a_policy_may_refuse_writes() -> None:
    """Where writes do not go on without Redis, none reaches PostgreSQL."""
    table = BackedDesk(plan(writing=THROUGH, detour=Detour("origin", "error")))
    client = table.connect()
    table.away()
    client.send(b"HMSET", b"user:1", b"name", b"x")
    assert await client.reply() == errors.CLUSTERDOWN


async def test_a_write_that_is_given_up_leaves_no_copy(
    table: BackedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether PostgreSQL has it, so what Redis has goes."""
    monkeypatch.setattr(backed, "longest", lambda config: 0.05)

    async def execute(*_: object) -> int:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(table.reads, "postgres", SimpleNamespace(execute=execute))
    client = table.connect()
    client.send(b"HMSET", b"user:1", b"name", b"x")
    assert await client.reply() == errors.UNKNOWN_WRITE
    assert table.leases.owed == 1


async def test_a_deletion_without_redis_is_owed(table: BackedDesk) -> None:
    """The copy goes when its node is back, whatever PostgreSQL says of the row."""
    client = table.connect()
    table.away()
    client.send(b"DEL", b"user:1")
    assert await client.reply() == errors.ORIGIN_DOWN
    assert table.leases.owed == 1


async def test_a_script_that_only_reads_is_run(table: BackedDesk) -> None:
    """What cannot write is no way past PostgreSQL."""
    client = table.connect()
    client.send(b"EVAL_RO", b"return 1", b"1", b"user:1")
    assert await table.asked() == [[b"EVAL_RO", b"return 1", b"1", b"user:1"]]
