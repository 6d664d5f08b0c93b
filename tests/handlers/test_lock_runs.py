"""Scripts about locks, in front of a real database: which keys they are about, and all or none."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.postgres import Postgres
from proxy.handlers import lock_scripts
from proxy.handlers.lock_scripts import Does, Form
from proxy.handlers.terms import MOST
from tests.handlers.desk import Client
from tests.handlers.lock_desk import LockDesk, lock_desk, told
from tests.integration.holds import RULES, held_by

pytestmark = pytest.mark.integration

RELEASE = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1])"
    " else return 0 end"
)
EXTEND = RELEASE.replace("'del', KEYS[1]", "'pexpire', KEYS[1], ARGV[2]")
LEFT = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then local pttl = redis.call('pttl', KEYS[1])"
    " return (pttl > 0) and pttl or 0 else return 0 end"
)

Run = Callable[..., Any]


@pytest.fixture
async def desk(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[LockDesk]:
    rules = RULES.replace("    lock: {owner: value}", "    value: {max_bytes: 100}\n"
                          "    lock: {owner: value}")  # fmt: skip
    async with lock_desk(postgres_server, tmp_path, rules) as found:
        yield found


@pytest.fixture
def client(desk: LockDesk) -> Client:
    return desk.connect()


@pytest.fixture
def run(client: Client, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs what a script for all its keys does; libraries have their own words for it."""
    for does in (Does.ACQUIRE, Does.EXTEND, Does.RELEASE):
        digest = lock_scripts._digest(f"all {does.name}")
        monkeypatch.setitem(lock_scripts._FORMS, digest, Form(does, each=True))  # type: ignore[arg-type]

    async def ran(does: Does, keys: str, *words: str, by: Client = client) -> Any:
        names = keys.split()
        return await told(by, "EVAL", f"all {does.name}", str(len(names)), *names, *words)

    return ran


async def test_one_key_is_meant_where_one_is_compared(client: Client) -> None:
    """A script of KEYS[1] does nothing to others that are named behind it."""
    for key in ("mutex:a", "mutex:b"):
        assert await told(client, "SET", key, "me", "NX", "EX", "30") == b"OK"
    keys = ("2", "mutex:a", "mutex:b", "me")
    assert await told(client, "EVAL", EXTEND, *keys, "50000") == 1
    assert 40_000 < await told(client, "EVAL", LEFT, *keys) <= 50_000
    assert await told(client, "PTTL", "mutex:b") <= 30_000
    assert await told(client, "EVAL", RELEASE, *keys) == 1
    assert await told(client, "EVAL", RELEASE, *keys) == 0
    assert await told(client, "MGET", "mutex:a", "mutex:b") == [None, b"me"]


async def test_all_or_none(desk: LockDesk, client: Client, run: Run) -> None:
    """Several locks are taken and extended together, as many as keys, and released as they are."""
    assert await run(Does.ACQUIRE, "mutex:a mutex:b", "me", "30000") == 2
    assert 29_000 < await told(client, "PTTL", "mutex:b") <= 30_000
    assert await run(Does.ACQUIRE, "mutex:c mutex:b", "you", "30000") == 0
    assert await told(client, "EXISTS", "mutex:c") == 0
    assert await run(Does.ACQUIRE, "mutex:a mutex:b", "me", "30000") == 0
    assert await run(Does.EXTEND, "mutex:a mutex:b", "me", "50000") == 2
    assert await told(client, "PTTL", "mutex:a") > 40_000
    assert await run(Does.EXTEND, "mutex:a mutex:c", "me", "10000") == 0
    assert await told(client, "PTTL", "mutex:a") > 40_000
    assert await run(Does.RELEASE, "mutex:a mutex:b mutex:c", "you") == 0
    assert await told(client, "DEL", "mutex:a") == 1
    assert await run(Does.RELEASE, "mutex:a mutex:b mutex:c", "me", by=desk.connect()) == 1


async def test_a_limit_and_a_place(client: Client, run: Run) -> None:
    """Locks of a table are taken by what the value says, within one scope, up to the limit."""
    seats = " ".join(f"seat_lock:e1:s{number}" for number in range(1, 11))
    assert await run(Does.ACQUIRE, seats, held_by("u"), "30000") == 10
    more = "seat_lock:e1:s11 seat_lock:e1:s12"
    assert "holds as many locks" in str(await run(Does.ACQUIRE, more, held_by("u"), "30000"))
    apart = "seat_lock:e1:s11 seat_lock:e2:s1"
    assert str(await run(Does.ACQUIRE, apart, held_by("v"), "30000")).startswith("POLICY key")
    missing = "seat_lock:e1:s11 seat_lock:e1:none"
    assert str(await run(Does.ACQUIRE, missing, held_by("v"), "30000")).startswith("POLICY")
    assert await told(client, "EXISTS", "seat_lock:e1:s11") == 0


@pytest.mark.parametrize(
    ("keys", "words", "error"),
    [
        ("mutex:a", ("me", "x"), "ERR value is not an integer"),
        ("mutex:a", ("me", "0"), "ERR invalid expire time"),
        ("mutex:a", ("me", "9" * 18), "ERR invalid expire time"),
        ("mutex:a", ("me",), "POLICY command refused"),
        ("mutex:a", ("", "1000"), "POLICY value refused"),
        ("mutex:a", ("x" * 101, "1000"), "POLICY value refused by keyspace 'mutex': it has more"),
        ("mutex:a careful:a", ("me", "1000"), "POLICY command refused"),
        ("mutex:a plain", ("me", "1000"), "POLICY command refused"),
        (" ".join(f"mutex:{n}" for n in range(MOST + 1)), ("me", "1000"), "ERR too many locks"),
    ],
)  # fmt: skip
async def test_what_takes_nothing(
    client: Client, run: Run, keys: str, words: tuple[str, ...], error: str
) -> None:
    """No time, no owner, too much of anything and keys of several kinds are errors."""
    assert str(await run(Does.ACQUIRE, keys, *words)).startswith(error)
    assert await told(client, "EXISTS", "mutex:a") == 0


async def test_who_took_them_may_delete_them(desk: LockDesk, client: Client, run: Run) -> None:
    """Locks that a script has taken are its connection's, as after SET."""
    assert await run(Does.ACQUIRE, "mutex:a mutex:b", "me", "30000") == 2
    reply = await told(desk.connect(), "DEL", "mutex:a", "mutex:b")
    assert str(reply).startswith("LOCKOWNER")
    assert await told(client, "DEL", "mutex:a", "mutex:b") == 2
