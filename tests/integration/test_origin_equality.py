"""What PostgreSQL's rows are answered as is what a node answers that was filled with them.

Every type of value, every command of `answers`, both protocols, over a table with columns of all
kinds at random; and the keyspaces of the shipped policies over the sample database.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from proxy.config import Database
from proxy.embedded import sample
from proxy.embedded.node import Node
from proxy.embedded.postgres import Postgres as Server
from proxy.origin.postgres import Postgres, Record, Share
from proxy.origin.render import Value, restored, value_of
from proxy.plans import Plan, Statement, plans_in
from proxy.policy import compiler
from proxy.secret import Secret
from proxy.tallies import OriginMetrics
from tests.origin.asking_both import Both, Dice
from tests.policy.rulebook import SHIPPED, Folder

pytestmark = pytest.mark.integration

SHARE = Share("test", 1.0)

# A row of every kind, some of it NULL at random, from one number.
ROWS = """
CREATE TABLE rows AS
SELECT i AS id, i % 500 AS part,
       CASE WHEN i % 7 = 0 THEN NULL ELSE (random() * 2e9)::bigint - 1000000000 END AS n,
       CASE WHEN i % 11 = 0 THEN 'NaN' ELSE (random() * 1e6)::numeric(20, 6) END AS exact,
       CASE i % 13 WHEN 0 THEN 'infinity' WHEN 1 THEN NULL
            ELSE (random() - 0.5) * 10 ^ (i % 40 - 20) END::float8 AS double,
       to_timestamp(random() * 2e9) AS moment,
       CASE WHEN i % 5 = 0 THEN NULL ELSE jsonb_build_object(
           'z', i, 'a', jsonb_build_array(random(), NULL, 'é"\\', 1e20), '', i % 2 = 0) END AS doc,
       decode(md5(i::text), 'hex') AS bytes,
       CASE WHEN i % 3 = 0 THEN NULL ELSE 'text ' || chr(i % 900 + 32) || E'\\r\\n' END AS words,
       i % 2 = 0 AS truth,
       ARRAY['a', NULL, i::text] AS list,
       md5(i::text)::uuid AS uuid,
       date '2000-01-01' + i AS day
  FROM generate_series(1, {count}) AS i;
"""

POLICIES = """
keyspaces:
  a_hash: {key: "h:{id:int}", type: hash, origin: {read: SELECT * FROM rows WHERE id = :id}}
  a_json: {key: "j:{id:int}", type: json, origin: {read: SELECT * FROM rows WHERE id = :id}}
  a_string: {key: "s:{id:int}", type: string, origin: {read: SELECT bytes FROM rows WHERE id = :id}}
  a_counter: {key: "c:{id:int}", type: counter, origin: {read: SELECT n FROM rows WHERE id = :id}}
  a_list:
    key: "l:{id:int}"
    type: list
    origin: {read: SELECT words FROM rows WHERE part = :id ORDER BY id, max_rows: 100000}
  a_set:
    key: "m:{id:int}"
    type: set
    origin: {read: "SELECT bytes FROM rows WHERE part = :id", max_rows: 100000}
  a_zset:
    key: "z:{id:int}"
    type: zset
    origin: {read: "SELECT uuid, double FROM rows WHERE part = :id", max_rows: 100000}
"""


@pytest.fixture
async def origin(postgres_server: Server) -> AsyncIterator[Postgres]:
    """PostgreSQL with a database of this test's own, empty."""
    dsn = await postgres_server.create_database("equality")
    database = Database(Secret(dsn), Secret(dsn), timeout=30.0)
    found = Postgres(database, OriginMetrics(CollectorRegistry()))
    await found.start()
    yield found
    await found.stop()
    await postgres_server.drop_database("equality")


@pytest.fixture
def boths(plain_redis: Node) -> Iterator[list[Both]]:
    found = [Both(plain_redis.port, protocol) for protocol in (2, 3)]
    yield found
    for both in found:
        both.close()


async def rows_of(origin: Postgres, plan: Plan, *values: str) -> list[Record]:
    assert plan.read is not None
    return await origin.fetch(plan.read, values, SHARE)


def commands_of(dice: Dice, value: Value | None, count: int) -> list[list[bytes]]:
    """Return reads of a key, half of them of what it holds."""
    commands = [dice.command(b"equality") for _ in range(count)]
    names = list(value.data) if value is not None and isinstance(value.data, dict) else []
    for name in dice.sample(names, min(2, len(names))):
        commands += [[b"HGET", b"equality", name], [b"HMGET", b"equality", name, b"none"]]
    whole = {"hash": b"HGETALL", "string": b"GET", "set": b"SMEMBERS"}
    spans = {"list": [b"LRANGE"], "zset": [b"ZRANGE"]}
    if value is not None and value.type in whole:
        commands.append([whole[value.type], b"equality"])
    elif value is not None:
        extra = [b"WITHSCORES"] if value.type == "zset" else []
        commands.append([*spans[value.type], b"equality", b"0", b"-1", *extra])
    return commands


async def compare(
    origin: Postgres, plan: Plan, keys: Sequence[Sequence[str]], boths: Sequence[Both], count: int
) -> int:
    """Compare every key in all protocols; return how many of them there are."""
    dice, there = Dice(7), 0
    for values in keys:
        value = value_of(plan, await rows_of(origin, plan, *values))
        there += value is not None
        for both in boths:
            both.compare(value, commands_of(dice, value, count))
    assert not [line for both in boths for line in both.differences[:5]]
    return there


async def compare_rows(
    origin: Postgres, tmp_path: Path, boths: Sequence[Both], rows: int, count: int
) -> None:
    text = ROWS.format(count=rows)
    await origin.execute(Statement("rows write", text.strip().rstrip(";"), ()), [], SHARE)
    plans = plans_in(Folder(tmp_path).compile(POLICIES)).by_keyspace.values()
    singles = ("a_hash", "a_json", "a_string", "a_counter")
    for plan in plans:
        # Every row is a key of one of the four, and a member of each collection.
        start = singles.index(plan.name) if plan.name in singles else 0
        numbers = range(start, rows + 2, 4) if plan.name in singles else range(min(rows, 500))
        keys = [[str(number)] for number in numbers]
        there = await compare(origin, plan, keys, boths, count)
        assert there >= len(keys) * 0.6


async def test_rows_of_every_kind(origin: Postgres, tmp_path: Path, boths: list[Both]) -> None:
    """NULL, numbers, moments, documents, bytes, arrays: the same bytes in both protocols."""
    await compare_rows(origin, tmp_path, boths, 400, 6)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_ten_thousand_rows_of_every_kind(
    origin: Postgres, tmp_path: Path, boths: list[Both]
) -> None:
    """The same over as many rows as are promised."""
    await compare_rows(origin, tmp_path, boths, 10_000, 4)


# Where the ids of a shipped keyspace are.
IDS = {
    "event": "SELECT id FROM events",
    "event_availability": "SELECT id FROM events",
    "venue": "SELECT id FROM venues",
    "org": "SELECT id FROM organizations",
    "user_prefs": "SELECT id FROM users",
    "user_perms": "SELECT id FROM users",
}


@pytest.fixture
async def shipped(postgres_server: Server) -> AsyncIterator[Postgres]:
    """PostgreSQL with the sample of the demo."""
    dsn = await postgres_server.create_database("shipped")
    await sample.load(dsn, seed=1)
    found = Postgres(Database(Secret(dsn), Secret(dsn)), OriginMetrics(CollectorRegistry()))
    await found.start()
    yield found
    await found.stop()
    await postgres_server.drop_database("shipped")


def shipped_plans() -> dict[str, Plan]:
    ruleset, _ = compiler.from_files(SHIPPED, ("locks", "cache"))
    return {plan.name: plan for plan in plans_in(ruleset).by_keyspace.values()}


async def test_shipped_keyspaces_with_an_origin(shipped: Postgres, boths: list[Both]) -> None:
    """Each of them, over the sample, is what a node would answer."""
    plans = {name: plan for name, plan in shipped_plans().items() if plan.read is not None}
    # What users hold and who waits changes by the clock alone: `test_seats_by_name` has them.
    assert set(plans) == {*IDS, "user_locks", "lock_queue"}
    for name, statement in IDS.items():
        rows = await shipped.fetch(Statement("ids read", statement, ()), [], SHARE)
        keys = [[str(row["id"])] for row in rows]
        assert await compare(shipped, plans[name], [*keys[:40], ["nobody"]], boths, 3)


async def test_shipped_keyspaces_that_are_restored(shipped: Postgres) -> None:
    """Every row of a restoring statement is a key with a value and a time that is not over."""
    plans = [plan for plan in shipped_plans().values() if plan.restoring is not None]
    assert {plan.name for plan in plans} == {"seat_lock", "draft_booking"}
    for plan in plans:
        assert plan.restoring is not None
        rows = await shipped.fetch(plan.restoring.statement, [], SHARE)
        found = [restored(plan, row) for row in rows]
        assert found
        for key, value, ttl_ms in found:
            assert key.startswith(plan.name.encode() + b":")
            assert value is not None
            assert ttl_ms is None or ttl_ms > 0
