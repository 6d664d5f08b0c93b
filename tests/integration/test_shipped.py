"""The shipped policies on real clusters: what the booking application does with its keys."""

from pathlib import Path

import pytest
import yaml

from proxy.embedded.redis import Cluster
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, Word, is_error
from tests.policy.rulebook import SHIPPED
from tests.policy.test_shipped import FOLLOWING, JSON_LISTS
from tests.policy.test_shipped import ROWS as EVERY_ROW

pytestmark = pytest.mark.integration

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"

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


async def test_a_lock_of_the_manifests_is_one(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """As the manifests have it a lock is granted once, and for as long as it may be.

    Where PostgreSQL decides instead, as they say, nothing is granted while there is none.
    """
    manifest = yaml.safe_load((MANIFESTS / "policies.yaml").read_text())
    for number, drop in enumerate(("", "lock: {authority: redis}")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in manifest["data"].items():
            assert name != "seats.yaml" or drop in text
            (folder / name).write_text(text.replace(drop, ""))
        proxy = await proxy_process(policies=str(folder))
        caller, key = await Caller.open(proxy.port), "seat_lock:evt_1:seat_1"
        replies = [await caller.call("SET", key, who, "NX", "EX", 9999) for who in ("u1", "u2")]
        if drop:
            assert all(map(is_error, replies)), replies
            continue
        assert replies == [b"OK", None]
        assert 890 < await caller.call("TTL", key) <= 900
        assert await caller.call("SETNX", "seat_lock:evt_1:seat_2", "u1") == 1
        assert 590 < await caller.call("TTL", "seat_lock:evt_1:seat_2") <= 600


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
