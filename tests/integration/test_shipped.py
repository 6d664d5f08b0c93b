"""The shipped policies on real clusters: what the booking application does with its keys."""

import pytest

from proxy.embedded.redis import Cluster
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, Word, is_error
from tests.policy.rulebook import SHIPPED
from tests.policy.test_shipped import FOLLOWING, JSON_LISTS
from tests.policy.test_shipped import ROWS as EVERY_ROW

pytestmark = pytest.mark.integration

OBJECT = '{"user_id":"usr_1","expires_at":1640995800}'

# What PostgreSQL has to be there for, see test_seats_by_name.py.
DECIDED = {"seat_lock", *FOLLOWING}
ROWS = [row for row in EVERY_ROW if row.keyspace not in DECIDED]

# How a key of each type comes into being, behind the key's name.
WRITES: dict[str, tuple[str, ...]] = {
    "json": ("SET", OBJECT),
    "string": ("SET", "ok", "EX", "10"),
    "hash": ("HSET", "last_updated", "1640995200"),
    "list": ("LPUSH", OBJECT),
    "set": ("SADD", "conn_abc123"),
    "zset": ("ZADD", "1.5", "evt_1"),
    "stream": ("XADD", "*", "user_id", "usr_1"),
    "counter": ("INCR",),
}
# A command that no key of this type takes.
WRONG: dict[str, tuple[str, ...]] = {
    "json": ("HGETALL",), "string": ("LLEN",), "hash": ("GET",), "list": ("SCARD",),
    "set": ("GET",), "zset": ("XLEN",), "stream": ("GET",), "counter": ("HGETALL",),
}  # fmt: skip


async def names(cluster: Cluster) -> set[str]:
    """Return the names of all keys of a cluster, as nodes know them, without the proxy's own."""
    found = {key for node in cluster.nodes for key in await node.ask("KEYS", "*")}
    return {key for key in found if not key.startswith("sidecache:")}


async def test_every_key_of_the_application_can_be_used(
    empty_clusters: Clusters, proxy_process: StartProxy
) -> None:
    """Each key is written as the application writes it, lives where it should, and is of its type.

    What is no JSON is refused where JSON is meant, and commands of other types everywhere.
    """
    proxy = await proxy_process(policies=str(SHIPPED))
    caller = await Caller.open(proxy.port)
    keys = [row.key for row in ROWS]
    for protocol in (2, 3):
        await caller.call("HELLO", protocol)
        writes: list[tuple[Word, ...]] = [
            (WRITES[row.type][0], row.key, *WRITES[row.type][1:]) for row in ROWS
        ]
        replies = await caller.pipeline(writes)
        assert [row.keyspace for row, reply in zip(ROWS, replies, strict=True)
                if is_error(reply)] == []  # fmt: skip
        replies = await caller.pipeline([(*WRONG[row.type], row.key) for row in ROWS])
        assert all(str(reply).startswith("WRONGTYPE") for reply in replies)
        judged = [row for row in ROWS if row.type == "json" or row.keyspace in JSON_LISTS]
        replies = await caller.pipeline(
            [(WRITES[row.type][0], row.key, '{"__proto__":1}') for row in judged]
        )
        assert all("it is no valid JSON (member __proto__" in str(reply) for reply in replies)
        where = {"locks": empty_clusters.locks, "cache": empty_clusters.cache}
        for name, cluster in where.items():
            expected = {row.key.decode() for row in ROWS if row.cluster == name}
            found = {key.replace("{", "").replace("}", "") for key in await names(cluster)}
            assert found == expected, name
        tagged = {key for key in await names(empty_clusters.locks) if "{" in key}
        assert tagged == {"event_availability:{evt_1}"}
        await caller.pipeline([("DEL", key) for key in keys])


async def test_without_postgresql_no_seat_is_locked(proxy_process: StartProxy) -> None:
    """What PostgreSQL decides is refused where there is none; what follows is never written."""
    proxy = await proxy_process(policies=str(SHIPPED))
    caller = await Caller.open(proxy.port)
    replies = await caller.pipeline(
        [
            ("SET", "seat_lock:evt_1:seat_1", OBJECT, "NX", "EX", 60),
            ("SEAT.ACQUIRE", "evt_1", "seat_1", "usr_1", "b", "s"),
            ("LPUSH", "user_locks:usr_1:evt_1", "seat_1"),
            ("LPUSH", "lock_queue:evt_1:seat_1", OBJECT),
        ]
    )
    assert [str(reply).split()[0] for reply in replies] == ["PGDOWN", "PGDOWN", "NOPERM", "NOPERM"]
