"""Lock libraries and load tests that know nothing of the proxy, on locks of PostgreSQL."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from pottery import Redlock
from pottery.exceptions import ExtendUnlockedLock, ReleaseUnlockedLock

from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from tests.clients.test_everyday import run
from tests.integration.holds import RULES, Hall, hall

pytestmark = pytest.mark.integration

BUYERS, SEATS, ROUNDS = 50, 200, 20

REDLOCK = """
  redlock:
    key: redlock:{name}
    cluster: locks
    kind: lock
    ttl: {default: 60s}
    lock: {owner: value}
  room:
    key: room:{house}:{name}
    cluster: locks
    hash_tag: house
    kind: lock
    ttl: {default: 60s}
    lock: {owner: value}
"""


@pytest.fixture
async def stage(
    postgres_server: Postgres, locks_cluster: Cluster, tmp_path: Path
) -> AsyncIterator[Hall]:
    await locks_cluster.flush()
    rules = RULES.replace("per_owner: {scope: event, max: 10}", "per_owner: {scope: seat, max: 1}")
    # Buyers who wait for a turn longer than usual would be told to try again.
    async with hall(
        postgres_server, locks_cluster, tmp_path, rules + REDLOCK, patience="2s"
    ) as made:
        yield made


async def test_the_redlock_of_pottery(stage: Hall) -> None:
    """With one master it takes, tells the time, extends, releases and is refused, unmodified."""
    await asyncio.to_thread(_redlock, stage.proxy.port)
    row = await stage.database.fetchrow(
        "SELECT status, locked_by FROM sidecache_locks WHERE name = 'redlock:printer'"
    )
    assert tuple(row or ()) == ("available", None)


def _redlock(port: int) -> None:
    with redis.Redis(port=port) as master, redis.Redis(port=port) as other:
        lock = Redlock(key="printer", masters={master}, auto_release_time=10)
        rival = Redlock(key="printer", masters={other}, auto_release_time=10)
        assert lock.acquire()
        assert not rival.acquire(blocking=False)
        assert 8 < lock.locked() < 10
        assert not rival.locked()
        lock.extend()
        assert lock.locked() > 9
        with pytest.raises(ExtendUnlockedLock):
            rival.extend()
        with pytest.raises(ReleaseUnlockedLock):
            rival.release()
        lock.release()
        with rival:
            assert not lock.acquire(blocking=False)
            assert rival.locked()
        assert not rival.locked()


@pytest.mark.parametrize("version", ["redlock", "redlock-4"])
async def test_the_redlock_of_node(stage: Hall, node_clients: Path, version: str) -> None:
    """Of one key and of two it takes, refuses, extends and releases, unmodified."""
    url = f"redis://127.0.0.1:{stage.proxy.port}"
    for keys in ("redlock:a", "room:h:a room:h:b"):
        text = await run("node", "redlock.mjs", version, url, *keys.split(), cwd=node_clients)
        assert json.loads(text) == {
            "acquired": True, "rival": False, "extended": True, "released": True,
            "rival extends": False, "left": 0, "rival again": True,
        }  # fmt: skip


async def test_a_load_of_buyers(stage: Hall) -> None:
    """50 buyers with a connection each take seats by SET NX EX, hold them, and DEL them.

    No seat is held by two at a time, every DEL ends a lock, and in the end all seats are free.
    """
    heard: Counter[str] = Counter()
    held: dict[str, str] = {}

    async def buyer(number: int) -> None:
        dice, user = random.Random(number), f"user_{number}"
        async with redis.asyncio.Redis(port=stage.proxy.port, single_connection_client=True) as own:
            for round_ in range(ROUNDS):
                # Half of them want the same few seats.
                seat = f"s{dice.randint(1, dice.choice((10, SEATS)))}"
                key = f"seat_lock:e1:{seat}"
                value = json.dumps({"user_id": user, "booking_id": f"booking_{number}_{round_}"})
                if not await own.set(key, value, ex=60, nx=True):
                    heard["refused"] += 1
                    continue
                heard["granted"] += 1
                heard["double"] += seat in held
                held[seat] = user
                await asyncio.sleep(dice.random() * 0.05)
                del held[seat]
                ended = await own.delete(key)
                heard["deleted"] += ended

    await asyncio.gather(*map(buyer, range(BUYERS)))
    assert heard["double"] == 0
    assert heard["deleted"] == heard["granted"] > 0
    assert heard["refused"] > 0
    assert heard["granted"] + heard["refused"] == BUYERS * ROUNDS
    states = "SELECT count(*) FROM seats WHERE status <> 'available'"
    assert await stage.database.fetchval(states) == 0
