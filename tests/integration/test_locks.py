"""Locks about which PostgreSQL decides, as clients see them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.exceptions import LockError

from proxy import effects
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster, Shape
from proxy.handlers import locks
from tests.conftest import StartCluster
from tests.integration.holds import Hall, hall, held_by
from tests.integration.rig import Caller, is_error, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

KEY = "seat_lock:e1:s1"
RELEASE = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) "
    "else return 0 end"
)


@pytest.fixture(scope="module")
async def house(
    postgres_server: Postgres, locks_cluster: Cluster, server_directory: Path
) -> AsyncIterator[Hall]:
    folder = server_directory / "house"
    folder.mkdir()
    async with hall(postgres_server, locks_cluster, folder) as made:
        yield made


@pytest.fixture
async def stage(house: Hall) -> Hall:
    """A hall in which nobody holds anything."""
    await house.clear()
    return house


async def test_one_of_many_takes_a_seat(stage: Hall) -> None:
    """SET NX says OK to one and nil to all others, and the row says who that is."""
    callers = [await stage.caller() for _ in range(20)]
    replies = await asyncio.gather(
        *(c.call("SET", KEY, held_by(f"u{n}"), "NX", "EX", 30) for n, c in enumerate(callers))
    )
    assert sorted(replies, key=str) == [None] * 19 + [b"OK"]
    row = await stage.row("s1")
    assert row["locked_by"] == f"u{replies.index(b'OK')}"
    assert row["live"]


async def test_the_owner_may_ask_again(stage: Hall) -> None:
    """Who lost the answer of SET NX sends it again and holds what it held, with the same token."""
    caller = await stage.caller()
    assert await caller.call("SET", KEY, held_by("u", booking_id="b"), "NX", "EX", 30) == b"OK"
    first = await stage.row("s1")
    assert await caller.call("SET", KEY, held_by("u"), "NX", "PX", 50000) == b"OK"
    second = await stage.row("s1")
    assert (second["lock_token"], second["locked_at"]) == (first["lock_token"], first["locked_at"])
    assert second["locked_until"] > first["locked_until"]
    assert second["booking_id"] == "b"


async def test_it_reads_like_a_string(stage: Hall) -> None:
    """GET EXISTS TTL PTTL TYPE and MGET tell what PostgreSQL has, for any client."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u", booking_id="b"), "NX", "EX", 30)
    assert json.loads(await other.call("GET", KEY)) == {"user_id": "u", "booking_id": "b"}
    assert await other.call("EXISTS", KEY, KEY, "seat_lock:e1:s2") == 2
    assert await other.call("TTL", KEY) in (29, 30)
    assert 29_000 < await other.call("PTTL", KEY) <= 30_000
    assert await other.call("TYPE", KEY) in (b"string", "string")
    values = await other.call("MGET", KEY, "seat_lock:e1:s2", KEY)
    assert values[1] is None
    assert values[0] == values[2] is not None
    await stage.expire("s1")
    assert await other.call("GET", KEY) is None
    assert await other.call("TTL", KEY) == -2


async def test_only_the_connection_that_took_it_releases_blindly(stage: Hall) -> None:
    """DEL and EXPIRE of others are LOCKOWNER errors while it is held, 0 when it is not."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    for words in (("DEL", KEY), ("UNLINK", KEY), ("EXPIRE", KEY, 5), ("PEXPIRE", KEY, 1)):
        assert str(await other.call(*words)).startswith("LOCKOWNER")
    assert await one.call("EXPIRE", KEY, 60) == 1
    assert await one.call("TTL", KEY) in (59, 60)
    assert await one.call("DEL", KEY) == 1
    assert await one.call("DEL", KEY) == 0
    assert await other.call("EXPIRE", KEY, 5) == 0
    assert (await stage.row("s1"))["status"] == "available"


async def overtaken(stage: Hall, owner: str) -> tuple[Caller, Caller]:
    """Return who held a lock of `u` until it was over, and who holds the next, of an owner."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    await stage.expire("s1")
    assert await other.call("SET", KEY, held_by(owner), "NX", "EX", 60) == b"OK"
    return one, other


async def test_a_late_del_does_not_end_the_lock_of_the_next(stage: Hall) -> None:
    """What a connection holds is one grant: when that is over, DEL releases nothing, however often.

    Another that never held it hears that it is not the owner.
    """
    one, _ = await overtaken(stage, "v")
    for words in (("EXPIRE", KEY, 30), ("DEL", KEY), ("DEL", KEY), ("EXPIRE", KEY, 30)):
        assert await one.call(*words) == 0
    assert str(await (await stage.caller()).call("DEL", KEY)).startswith("LOCKOWNER")
    assert (await stage.row("s1"))["locked_by"] == "v"


async def test_a_late_expire_changes_no_later_grant(stage: Hall) -> None:
    """Not even of the same owner: it names the grant of its connection."""
    one, other = await overtaken(stage, "u")
    assert await one.call("PEXPIRE", KEY, 500) == 0
    assert await other.call("PTTL", KEY) > 50_000
    assert await other.call("EXPIRE", KEY, 0) == 1
    assert await other.call("EXISTS", KEY) == 0


async def test_no_blind_end_where_the_policy_says_never(stage: Hall) -> None:
    """Neither DEL nor an EXPIRE into the past releases such a lock, not even for its connection."""
    caller = await stage.caller()
    assert await caller.call("SET", "careful:x", "me", "NX") == b"OK"
    for words in (("DEL", "careful:x"), ("EXPIRE", "careful:x", 0)):
        assert str(await caller.call(*words)).startswith("LOCKOWNER")
    assert await caller.call("EXISTS", "careful:x") == 1


async def test_tokens_grow_with_every_grant(stage: Hall) -> None:
    """Every new holder of a seat has a greater token than all before, whatever the table had."""
    caller, tokens = await stage.caller(), []
    await stage.database.execute("UPDATE seats SET lock_token = 1000 WHERE seat = 's1'")
    for number in range(5):
        assert await caller.call("SET", KEY, held_by(f"u{number}"), "NX", "EX", 30) == b"OK"
        tokens.append((await stage.row("s1"))["lock_token"])
        await caller.call("DEL", KEY)
    assert tokens == sorted(set(tokens))
    assert tokens[0] > 1000


async def test_a_hold_has_an_end(stage: Hall) -> None:
    """However often it is extended, a lock lasts no longer than max_hold from its grant."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "EX", 90)
    await stage.database.execute(
        "UPDATE seats SET locked_at = locked_at - interval '100 s',"
        " locked_until = locked_until - interval '80 s' WHERE seat = 's1'"
    )
    assert await caller.call("EXPIRE", KEY, 90) == 1
    assert await caller.call("TTL", KEY) <= 20


@pytest.mark.parametrize("rounds", [10])
async def test_a_limit_is_exact(stage: Hall, rounds: int) -> None:
    """Of 30 requests of one owner at a time exactly ten are granted, and the others say why not."""
    callers = [await stage.caller() for _ in range(30)]

    async def asked(caller: Caller, seat: int, owner: str) -> object:
        while True:
            words = ("SET", f"seat_lock:e2:s{seat}", held_by(owner), "NX", "EX", 30)
            reply = await caller.call(*words)
            # One after the other within a quarter of a second: where that is too little, again.
            if not str(reply).startswith("TRYAGAIN"):
                return reply

    for number in range(rounds):
        replies = await asyncio.gather(
            *(asked(caller, seat, f"u{number}") for seat, caller in enumerate(callers, 1))
        )
        assert replies.count(b"OK") == 10
        assert sum("holds as many locks" in str(reply) for reply in replies) == 20
        await stage.database.execute(
            "UPDATE seats SET status = 'available', locked_by = NULL WHERE event = 'e2'"
        )
        await stage.cluster.flush()


async def test_what_makes_no_sense_is_refused(stage: Hall) -> None:
    """Neither overwritten nor appended to, nor part of a transaction; no row is no nil."""
    caller = await stage.caller()
    for words in (
        ("SET", KEY, held_by("u")), ("SET", KEY, held_by("u"), "XX", "EX", 5), ("PERSIST", KEY),
        ("INCR", "mutex:a"), ("APPEND", "mutex:a", "x"), ("RENAME", "mutex:a", "mutex:b"),
        ("EVAL", "return redis.call('del', KEYS[1])", 1, KEY), ("WATCH", KEY),
        ("SET", KEY, "{}", "NX"), ("SET", "seat_lock:e1:none", held_by("u"), "NX"),
    ):  # fmt: skip
        assert is_error(reply := await caller.call(*words)), (words, reply)
    await caller.call("MULTI")
    assert is_error(await caller.call("SET", KEY, held_by("u"), "NX"))
    assert str(await caller.call("EXEC")).startswith("EXECABORT")
    assert (await stage.row("s1"))["status"] == "available"


async def test_a_booked_seat_is_not_locked(stage: Hall) -> None:
    """Whatever the row says that is not available or expired is a nil."""
    await stage.database.execute("UPDATE seats SET status = 'booked' WHERE seat = 's9'")
    caller, key = await stage.caller(), "seat_lock:e1:s9"
    assert await caller.call("SET", key, held_by("u"), "NX", "EX", 5) is None
    assert await caller.call("GET", key) is None


async def test_scripts_of_libraries_release(stage: Hall) -> None:
    """Compare-and-delete is done by owner, also by its digest; other scripts are refused."""
    one, other = await stage.caller(), await stage.caller()
    mine, theirs = held_by("u"), held_by("v")
    await one.call("SET", KEY, mine, "NX", "EX", 30)
    assert await other.call("EVAL", RELEASE, 1, KEY, theirs) == 0
    sha = await other.call("SCRIPT", "LOAD", RELEASE)
    beside = await other.call("EVAL", RELEASE, 2, KEY, f"{{{KEY}}}", mine)
    assert is_error(beside), beside
    assert await other.call("EVALSHA", sha, 1, KEY, mine) == 1
    await one.call("SET", KEY, mine, "NX", "EX", 30)
    assert await other.call("EVAL", RELEASE, 2, KEY, KEY, mine) == 1
    assert str(await other.call("EVALSHA", "f" * 40, 1, KEY, mine)).startswith("NOSCRIPT")
    assert (await stage.row("s1"))["status"] == "available"


async def test_the_mirror_follows(stage: Hall) -> None:
    """Redis shows who holds a lock and for how long, and no longer than that."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    name = "seat_lock:{e1}:s1"

    async def shown() -> bool:
        return json.loads(await stage.direct("GET", name) or "{}").get("user_id") == "u"

    await wait_for(shown, "the lock shows in Redis")
    assert 0 < int(await stage.direct("PTTL", name)) <= 30_000
    await caller.call("DEL", KEY)
    assert await stage.direct("GET", name) is None


async def test_the_gate_refuses_and_opens_at_once(stage: Hall) -> None:
    """A crowd is refused by Redis; who asks after a release is granted."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    for _ in range(50):
        assert await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) is None
    _, page = await stage.proxy.get("/metrics")
    refused = next(line for line in page.splitlines() if 'outcome="gate"' in line)
    assert float(refused.split()[-1]) > 30
    await one.call("DEL", KEY)
    assert await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) == b"OK"


async def test_a_ghost_in_the_mirror_costs_a_second(stage: Hall) -> None:
    """A lock that only Redis has keeps others away no longer than the gate is believed."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    assert await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) is None
    await stage.database.execute("UPDATE seats SET status = 'available' WHERE seat = 's1'")

    async def granted() -> bool:
        return bool(await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) == b"OK")

    await wait_for(granted, "the ghost is seen through", 3.0)


async def test_expired_locks_come_back_by_themselves(stage: Hall) -> None:
    """Nobody asks, and within a second the row is available and Redis shows nothing."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "PX", 200)
    await caller.call("SET", "mutex:a", "me", "NX", "PX", 200)

    async def back() -> bool:
        return (await stage.row("s1"))["status"] == "available"

    await wait_for(back, "the seat is available", 1.5)
    count = "SELECT count(*) FROM sidecache_locks WHERE status = 'locked'"

    async def none() -> bool:
        return not await stage.database.fetchval(count)

    await wait_for(none, "the mutex is free", 1.5)


async def test_locks_go_on_without_redis(
    postgres_server: Postgres, start_cluster: StartCluster, tmp_path: Path
) -> None:
    """With every node of Redis killed, locks are granted, refused, read and released as before."""
    cluster = await start_cluster(shape=Shape(3, 0))
    async with hall(postgres_server, cluster, tmp_path) as stage:
        one, other = await stage.caller(), await stage.caller()
        assert await one.call("SET", KEY, held_by("u"), "NX", "EX", 30) == b"OK"
        for node in cluster.nodes:
            node.kill()
        assert await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) is None
        assert json.loads(await other.call("GET", KEY))["user_id"] == "u"
        assert await one.call("DEL", KEY) == 1
        assert await other.call("SET", KEY, held_by("v"), "NX", "EX", 30) == b"OK"
        assert await other.call("EVAL", RELEASE, 1, KEY, held_by("v")) == 1


async def test_without_postgresql_nothing_is_granted(
    stage: Hall, postgres_server: Postgres
) -> None:
    """Locks fail closed: PGDOWN, and never a nil."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    postgres_server.pause()
    try:
        for words in (("SET", KEY, held_by("v"), "NX", "EX", 30), ("GET", KEY), ("DEL", KEY)):
            assert is_error(await caller.call(*words))
    finally:
        postgres_server.resume()


async def test_who_was_told_that_nobody_knows_may_ask_again(
    stage: Hall, postgres_server: Postgres
) -> None:
    """A lock that was granted behind such an answer is granted to the same word, and once."""
    caller, words = await stage.caller(), ("SET", "mutex:lost", "token", "NX", "EX", 30)
    assert await caller.call("SET", "mutex:warm", "x", "NX") == b"OK"
    postgres_server.pause()
    try:
        assert "unknown" in str(await caller.call(*words))
    finally:
        postgres_server.resume()

    async def granted() -> bool:
        return bool(await stage.database.fetchval(
            "SELECT count(*) FROM sidecache_locks WHERE locked_by = 'token'"
        ))  # fmt: skip

    await wait_for(granted, "the lost call to be done", 5.0)
    again, third = await stage.caller(), await stage.caller()

    async def told() -> bool:
        reply = await again.call(*words)
        assert reply is not None
        return bool(reply == b"OK")

    await wait_for(told, "PostgreSQL to answer", 5.0)
    assert await third.call(*words) is None
    assert await again.call("DEL", "mutex:lost") == 1


async def test_who_holds_a_word_is_not_everybody(stage: Hall) -> None:
    """Where an answer is lost, who asks for what another holds by the same word is not believed."""
    holder, other = await stage.caller(), await stage.caller()
    assert await holder.call("SETNX", "careful:word", "1") == 1
    for number in range(20):
        asking = asyncio.create_task(other.call("SETNX", "careful:word", "1"))
        await asyncio.sleep(0.0005 * (number % 8))
        await stage.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert await asking != 1
    assert await holder.call("EVAL", RELEASE, 1, "careful:word", "1") == 1


async def decided(stage: Hall) -> float:
    """Return how many wishes were granted, or refused because of the limit."""
    _, page = await stage.proxy.get("/metrics")
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
    names = (f'sidecache_locks_total{{outcome="{each}"}}' for each in ("acquired", "limit"))
    return sum(float(lines[name]) for name in names)


async def test_a_client_that_has_gone_holds_nothing(stage: Hall) -> None:
    """Of requests whose clients close at once, no lock stays."""
    before = await decided(stage)
    for number in range(20):
        words = ("SET", f"seat_lock:e3:s{number + 1}", held_by("u"), "NX", "EX", 60)
        with socket.create_connection(("127.0.0.1", stage.proxy.port)) as client:
            # What is to have more behind it goes out with the end: nobody answers in between.
            client.send(pack(*words), socket.MSG_MORE)

    async def none() -> bool:
        count = "SELECT count(*) FROM seats WHERE event = 'e3' AND status = 'locked'"
        return await decided(stage) == before + 20 and not await stage.database.fetchval(count)

    await wait_for(none, "no seat is held", 3.0)


async def test_the_lock_of_redis_py(stage: Hall) -> None:
    """`Lock` takes, extends, reacquires, releases and is refused as on a plain Redis."""
    async with redis.asyncio.Redis(port=stage.proxy.port) as client:
        lock = client.lock("mutex:job", timeout=10)
        assert await lock.acquire(blocking=False)
        rival = client.lock("mutex:job", timeout=10)
        assert not await rival.acquire(blocking=False)
        assert await lock.owned()
        assert not await rival.owned()
        assert await lock.extend(20)
        assert await client.pttl("mutex:job") > 20_000
        assert await lock.reacquire()
        assert await client.pttl("mutex:job") <= 10_000
        await lock.release()
        with pytest.raises(LockError):
            await rival.release()
        async with client.lock("mutex:job", timeout=10, blocking_timeout=2):
            assert await lock.locked()


async def test_a_policy_may_forbid_blind_deletes(stage: Hall) -> None:
    """With blind_del: never, only whoever names the owner releases."""
    caller = await stage.caller()
    assert await caller.call("SET", "careful:a", "me", "NX") == b"OK"
    assert str(await caller.call("DEL", "careful:a")).startswith("LOCKOWNER")
    assert await caller.call("EVAL", RELEASE, 1, "careful:a", "me") == 1


async def test_setnx_and_expire(stage: Hall) -> None:
    """The old pair of commands takes a lock for the policy's time and then for its own."""
    caller = await stage.caller()
    assert await caller.call("SETNX", "mutex:old", "me") == 1
    assert 50 < await caller.call("TTL", "mutex:old") <= 60
    assert await caller.call("EXPIRE", "mutex:old", 5) == 1
    assert await caller.call("TTL", "mutex:old") <= 5
    assert await caller.call("GET", "mutex:old") == b"me"
    assert await caller.call("SETNX", "mutex:old", "you") == 0


async def test_locks_and_other_keys_are_not_mixed(stage: Hall) -> None:
    """One command is about locks alone, or refused whole: nothing is done to the other keys."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    await caller.call("SET", "plain", "x")
    for words in (("MGET", KEY, "plain"), ("EXISTS", KEY, "plain"), ("DEL", KEY, "plain"),
                  ("UNLINK", "plain", KEY), ("DEL", "plain", "mutex:a")):  # fmt: skip
        assert is_error(reply := await caller.call(*words)), (words, reply)
    assert await caller.call("GET", "plain") == b"x"
    assert (await stage.row("s1"))["live"]


async def test_del_of_several_is_all_or_nothing(stage: Hall) -> None:
    """Where one lock is another's, none is given up, in whatever order they come."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    await other.call("SET", "seat_lock:e1:s2", held_by("v"), "NX", "EX", 30)
    assert str(await one.call("DEL", KEY, "seat_lock:e1:s2")).startswith("LOCKOWNER")
    assert (await stage.row("s1"))["live"]
    await one.call("SET", "seat_lock:e1:s3", held_by("u"), "NX", "EX", 30)
    assert await one.call("DEL", KEY, "seat_lock:e1:s3", "seat_lock:e1:s4") == 2


@pytest.mark.parametrize(
    "options", [("NX", "EX", "5", "PX", "100"), ("NX", "EX"), ("EX", "5", "EX")]
)
async def test_options_that_make_no_set(stage: Hall, options: tuple[str, ...]) -> None:
    """Two times, or a time without its number, are what Redis calls a syntax error."""
    caller = await stage.caller()
    assert "syntax" in str(await caller.call("SET", KEY, held_by("u"), *options))
    assert (await stage.row("s1"))["status"] == "available"


@pytest.mark.parametrize("number", ["0", "-1", "abc", "9" * 30, "9" * 5000, "1.5", "9" * 18])
async def test_times_that_cannot_be(stage: Hall, number: str) -> None:
    """Redis' own words, and the lock stays as it was: no number of a client's is a mystery."""
    caller = await stage.caller()
    words = ("is not an integer or out of range", "invalid expire time")
    reply = str(await caller.call("SET", KEY, held_by("u"), "NX", "EX", number))
    assert any(word in reply for word in words)
    assert await caller.call("SET", KEY, held_by("u"), "NX", "EX", 30) == b"OK"
    if number not in ("0", "-1"):
        reply = str(await caller.call("EXPIRE", KEY, number))
        assert any(word in reply for word in words)
        assert 29 <= await caller.call("TTL", KEY) <= 30


async def test_scripts_are_bound_by_the_policy(stage: Hall) -> None:
    """Neither longer than the policy's longest, nor for owners that are no text."""
    caller = await stage.caller()
    await caller.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    extend = RELEASE.replace("'del', KEYS[1]", "'pexpire', KEYS[1], ARGV[2]")
    assert await caller.call("EVAL", extend, 1, KEY, held_by("u"), 500_000) == 1
    assert 80 < await caller.call("TTL", KEY) <= 90
    assert await caller.call("EVAL", extend, 1, KEY, held_by("u"), "9" * 400) == 0
    for owner in ("\\ud800", "\\u0000"):
        value = f'{{"user_id":"{owner}"}}'
        assert await caller.call("EVAL", RELEASE, 1, KEY, value) == 0
        assert is_error(await caller.call("SET", "seat_lock:e1:s5", value, "NX", "EX", 5))
    assert await caller.call("EVAL", extend, 1, KEY, held_by("u"), 0) == 1
    assert (await stage.row("s1"))["status"] == "available"


async def test_a_crowd_hears_of_its_own_mistakes(stage: Hall) -> None:
    """What takes no lock is an error also while the lock is refused without a question."""
    one, other = await stage.caller(), await stage.caller()
    await one.call("SET", KEY, held_by("u"), "NX", "EX", 30)
    wish = ("SET", KEY, held_by("v"), "NX", "EX", 30)
    wrong = [("SET", KEY, held_by("v")), ("SET", KEY, held_by("v"), "NX", "EX", 0)]
    replies = await other.pipeline([wish, wish, wish, wrong[0], wish, wrong[1]])
    assert [is_error(reply) for reply in replies] == [False, False, False, True, False, True]


def test_one_list_of_commands() -> None:
    """What explain takes for a command about locks is what there is a handler for."""
    assert frozenset(locks._HANDLERS) == effects.LOCKING
