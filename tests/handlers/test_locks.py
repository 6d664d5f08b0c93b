"""What clients send about locks, word by word."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import errors
from proxy.embedded.postgres import Postgres
from proxy.handlers.claims import Claim
from proxy.handlers.locks import LOOKED_AT, SLICE, claim_of
from tests.handlers.desk import Client, parsed
from tests.handlers.lock_desk import LockDesk, lock_desk, told
from tests.integration.holds import held_by
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration

KEY = "seat_lock:e1:s1"


@pytest.fixture
async def desk(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[LockDesk]:
    async with lock_desk(postgres_server, tmp_path) as found:
        yield found


@pytest.fixture
def client(desk: LockDesk) -> Client:
    return desk.connect()


@pytest.mark.parametrize(
    ("option", "least", "most"),
    [
        (("EX", "30"), 29, 30), (("PX", "30500"), 30, 31), ((), 59, 60),
        (("EXAT", "in 30"), 28, 31), (("PXAT", "in 30"), 28, 31),
    ],
)  # fmt: skip
async def test_every_way_to_say_how_long(
    client: Client, option: tuple[str, ...], least: int, most: int
) -> None:
    """EX PX EXAT PXAT and nothing, before NX and behind it."""
    if option and option[1].startswith("in"):
        unit = 1000 if option[0] == "PXAT" else 1
        option = (option[0], str(round((time.time() + 30) * unit)))
    for number, words in enumerate((("NX", *option), (*option, "nx"))):
        key = f"mutex:{number}"
        assert await told(client, "SET", key, "me", *words) == b"OK"
        assert least <= await told(client, "TTL", key) <= most
        assert least * 1000 <= await told(client, "PEXPIRETIME", key) - time.time() * 1000


@pytest.mark.parametrize(
    "words",
    [
        ("SET", KEY, held_by("u")), ("SET", KEY, held_by("u"), "XX"),
        ("SET", KEY, held_by("u"), "NX", "GET"), ("SET", KEY, held_by("u"), "NX", "KEEPTTL"),
        ("APPEND", KEY, "x"), ("GETDEL", KEY), ("INCR", KEY), ("RENAME", KEY, "seat_lock:e1:s2"),
        ("PERSIST", KEY), ("EXPIRE", KEY, "5", "GT"), ("SET", KEY, "{}", "NX"),
        ("SET", KEY, held_by(""), "NX"), ("SET", KEY, '{"user_id":true}', "NX"),
        ("SET", KEY, '{"user_id":{"x":1}}', "NX"),
        ("MSETNX", KEY, held_by("u"), "seat_lock:e1:s2", held_by("u")),
        ("MGET", KEY, "plain"), ("EVAL", "return 1", "1", KEY),
    ],
)  # fmt: skip
async def test_what_means_nothing_to_a_lock(client: Client, words: tuple[str, ...]) -> None:
    """It is refused, and nobody holds anything after it."""
    assert str(await told(client, *words)).split()[0] in ("POLICY", "WRONGTYPE", "NOPERM", "ERR")
    assert await told(client, "EXISTS", KEY) == 0


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        ("SET mutex:1 me NX XX", "ERR syntax error"),
        ("SET mutex:1 me NX EX 5 FOO", "ERR syntax error"),
        ("EXPIRE mutex:1 10 FOO", "ERR Unsupported option FOO"),
        ("EXPIRE mutex:1 10 NX XX",
         "ERR NX and XX, GT or LT options at the same time are not compatible"),
    ],
)  # fmt: skip
async def test_what_redis_would_refuse(client: Client, words: str, told_of: str) -> None:
    """Words that are wrong for any key are refused as by Redis, not as no words for a lock."""
    assert str(await told(client, *words.split())) == told_of


async def test_what_a_value_says_arrives(desk: LockDesk, client: Client) -> None:
    """Owner, booking and session are in the row; a number is an owner as its digits."""
    value = json.dumps({"user_id": 7, "booking_id": "b1", "session_id": "x1"})
    assert await told(client, "SET", KEY, value, "NX") == b"OK"
    row = await (await desk.tickets.asker()).seat("s1")
    assert (row["locked_by"], row["booking_id"], row["session_id"]) == ("7", "b1", "x1")
    assert json.loads(await told(client, "GET", KEY))["user_id"] == "7"


async def test_several_keys(client: Client) -> None:
    """MGET, EXISTS and DEL answer for each key, also for one that is named twice."""
    for name in ("a", "b"):
        assert await told(client, "SET", f"mutex:{name}", name, "NX") == b"OK"
    keys = ("mutex:a", "mutex:none", "mutex:b", "mutex:a")
    assert await told(client, "MGET", *keys) == [b"a", None, b"b", b"a"]
    assert await told(client, "EXISTS", *keys) == 3
    assert await told(client, "TYPE", "mutex:a") == b"string"
    assert await told(client, "DEL", *keys) == 2
    assert await told(client, "TYPE", "mutex:a") == b"none"
    assert await told(client, "TTL", "mutex:a") == -2


@pytest.mark.parametrize("name", [b"MGET", b"EXISTS", b"DEL"])
async def test_too_many_keys_are_refused_at_once(client: Client, name: bytes) -> None:
    """A command about thousands of locks asks PostgreSQL for none of them."""
    client.send(name, *(b"mutex:%d" % number for number in range(LOOKED_AT + 1)))
    assert await client.reply() == errors.TOO_MANY_LOCKS


async def test_many_keys_are_looked_up_side_by_side(desk: LockDesk, client: Client) -> None:
    """A few at a time, so that a command of many neither takes long nor all the room there is."""
    asker, watcher = await desk.tickets.asker(), await desk.tickets.asker()
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    keys = [f"mutex:{number}" for number in range(3 * SLICE)]
    for name, reply in (("MGET", [None] * len(keys)), ("EXISTS", 0), ("DEL", 0)):
        async with asker.connection.transaction():
            await asker.connection.execute("LOCK TABLE sidecache_locks")
            client.send(name.encode(), *(key.encode() for key in keys))

            async def all_wait() -> bool:
                return bool(await watcher.connection.fetchval(waiting) == SLICE)

            await wait_for(all_wait, "so many look-ups to wait")
        assert parsed(await client.reply()) == reply


async def test_one_word_for_all_shares_its_calls(desk: LockDesk) -> None:
    """Wishes and releases of the same owner at once are few transactions, where it is not counted.

    Where it is counted each grant has its own.
    """
    crowd = [desk.connect() for _ in range(40)]
    connection = (await desk.tickets.asker()).connection

    async def all_told(*words: str) -> list[object]:
        return await asyncio.gather(
            *(told(client, words[0], words[1] % number, *words[2:])
              for number, client in enumerate(crowd, 1))
        )  # fmt: skip

    async def transactions(table: str) -> int:
        return int(await connection.fetchval(
            f"SELECT count(DISTINCT xmin::text) FROM {table} WHERE lock_token IS NOT NULL"
        ))  # fmt: skip

    for words in (("SETNX", "mutex:%d", "1"), ("DEL", "mutex:%d")):
        assert await all_told(*words) == [1] * 40
        assert await transactions("sidecache_locks") <= 5
    del crowd[10:]
    assert await all_told("SET", "seat_lock:e1:s%d", held_by("u"), "NX") == [b"OK"] * 10
    assert await transactions("seats") == 10


async def test_another_connection_is_no_owner(desk: LockDesk, client: Client) -> None:
    """DEL, UNLINK and EXPIRE of a lock of somebody else are errors, and of a free one 0."""
    assert await told(client, "SETNX", "mutex:a", "me") == 1
    other = desk.connect()
    for words in (("DEL",), ("UNLINK",), ("EXPIRE", "9"), ("PEXPIRE", "9")):
        reply = await told(other, words[0], "mutex:a", *words[1:])
        assert str(reply).startswith("LOCKOWNER")
        assert await told(other, words[0], "mutex:free", *words[1:]) == 0
    assert await told(client, "EXPIRE", "mutex:a", "9") == 1
    assert await told(client, "EXPIRE", "mutex:a", "0") == 1
    assert await told(client, "EXISTS", "mutex:a") == 0


async def test_a_lock_of_the_application_is_released_by_its_owner(
    desk: LockDesk, client: Client
) -> None:
    """One that SQL has taken, without a token, is not this connection's but ends by its value."""
    asker = await desk.tickets.asker()
    await asker.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'u1', locked_at = clock_timestamp(),"
        " locked_until = clock_timestamp() + interval '30 s' WHERE seat = 's1'"
    )
    assert str(await told(client, "DEL", KEY)).startswith("LOCKOWNER")
    release = (
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1])"
        " else return 0 end"
    )
    assert await told(client, "EVAL", release, "1", KEY, held_by("u2")) == 0
    assert await told(client, "EVAL", release, "1", KEY, held_by("u1")) == 1
    assert (await asker.seat("s1"))["status"] == "available"


async def test_a_row_that_is_being_changed(desk: LockDesk, client: Client) -> None:
    """Who cannot wait for another transaction hears that this is why, and may ask again soon."""
    asker = await desk.tickets.asker()
    async with asker.connection.transaction():
        await asker.connection.execute("SELECT FROM seats WHERE seat = 's1' FOR UPDATE")
        reply = await told(client, "SET", KEY, held_by("u1"), "NX")
    assert str(reply) == "TRYAGAIN Another transaction of PostgreSQL is changing the row"

    async def granted() -> bool:
        return bool(await told(client, "SET", KEY, held_by("u1"), "NX") == b"OK")

    await wait_for(granted, "the lock to be asked for again")


async def test_without_a_database_nothing_is_granted(desk: LockDesk, client: Client) -> None:
    """Every command and script about a lock says that PostgreSQL is away."""
    desk.server.grants = None
    for words in (
        ("SET", KEY, held_by("u"), "NX"), ("GET", KEY), ("DEL", KEY), ("TTL", KEY),
        ("EVAL", "return 1", "1", KEY),
    ):  # fmt: skip
        assert str(await told(client, *words)).startswith("PGDOWN"), words


async def test_one_word_for_all_is_no_proof(desk: LockDesk, client: Client) -> None:
    """Where a value is the owner, the second SET NX or SETNX of it is refused, as by Redis.

    Not that of who was told that nobody knows, on whatever connection; and that once.
    """
    other = desk.connect()
    assert await told(client, "SETNX", "mutex:a", "1") == 1
    for each in (other, client):
        assert await told(each, "SETNX", "mutex:a", "1") == 0
        assert await told(each, "SET", "mutex:a", "1", "NX", "PX", "1") is None
    assert await told(client, "PTTL", "mutex:a") > 50_000
    desk.grants.doubts.note(b"mutex:a", Claim("1", 30, session="another's"))
    assert await told(other, "SET", "mutex:a", "1", "NX") is None
    row = await desk.grants.row(desk.plan("mutex"), b"mutex:a")
    assert row is not None
    desk.grants.doubts.note(b"mutex:a", Claim("1", 30, session=row.session))
    assert await told(other, "SET", "mutex:a", "1", "NX") == b"OK"
    assert await told(other, "SET", "mutex:a", "1", "NX") is None
    assert await told(other, "DEL", "mutex:a") == 1


async def test_a_doubt_is_settled_by_one_of_a_crowd(desk: LockDesk, client: Client) -> None:
    """Of all who ask at once with the same word, after one heard that nobody knows, one has it."""
    assert await told(client, "SETNX", "mutex:a", "1") == 1
    row = await desk.grants.row(desk.plan("mutex"), b"mutex:a")
    assert row is not None
    desk.grants.doubts.note(b"mutex:a", Claim("1", 30, session=row.session))
    crowd = [desk.connect() for _ in range(8)]
    heard = await asyncio.gather(*(told(each, "SETNX", "mutex:a", "1") for each in crowd))
    assert sorted(heard) == [0] * 7 + [1]


async def test_who_a_value_names(desk: LockDesk) -> None:
    """All of it, or a member; nobody where that is no text, empty, or holds a zero byte."""
    mutex, seat = desk.plan("mutex"), desk.plan("seat_lock")
    claim = claim_of(mutex, b"me", 5)
    assert claim is not None
    assert (claim.owner, claim.seconds, claim.value) == ("me", 5, "me")
    for value in (b"", b"\xff", b"a\0b"):
        assert claim_of(mutex, value, 5) is None
    for value in (b"me", b"[1]", b'{"user_id":null}', b'{"user_id":"a\\u0000"}', b"[" * 5000):
        assert claim_of(seat, value, 5) is None
