"""Operations on locks by name, in front of a real database: replies, refusals and their limits."""

import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.postgres import Postgres
from proxy.handlers.held import known
from proxy.handlers.locks import grant
from proxy.handlers.seats import MOST, Order, _acquire
from proxy.handlers.targets import target_of
from proxy.wire import LONGEST_NAME
from tests.handlers.desk import Client
from tests.handlers.lock_desk import LockDesk, lock_desk, told
from tests.integration.holds import RULES, held_by

pytestmark = pytest.mark.integration

# Arguments behind the event and the seat, and what further words mean.
OPERATIONS = {
    "acquire": ("owner, seconds, booking, session", "seats"),
    "extend": ("owner, seconds", "seats"),
    "release": ("owner, token", None),
    "confirm": ("owner, token, booking", None),
    "status": ("", None),
    "queue": ("owner", "leave"),
}


def scripts() -> str:
    lines = ["scripts:"]
    for name, (arguments, more) in OPERATIONS.items():
        lines.append(
            f"  {name}: {{name: SEAT.{name.upper()}, file: any.lua, lock: {name}, "
            f'keys: ["seat_lock:{{event}}:{{seat}}"], reply: map, '
            f"arguments: [{', '.join(filter(None, ('event, seat', arguments)))}]"
            + (f", more: {more}}}" if more else "}")
        )
    lines.append(
        '  mine: {name: SEAT.MINE, file: any.lua, lock: mine, keys: ["held:{owner}:{event}"],'
        " arguments: [event, owner], reads: true}"
    )
    rules = RULES.replace("{json: true}", "{json: true, max_bytes: 2KiB}")
    return rules + "\n".join(lines) + "\n"


@pytest.fixture
async def desk(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[LockDesk]:
    (tmp_path / "lua").mkdir()
    # It never runs: a node that was asked would not answer.
    (tmp_path / "lua" / "any.lua").write_text("return 1\n")
    async with lock_desk(postgres_server, tmp_path, scripts()) as found:
        yield found


@pytest.fixture
def client(desk: LockDesk) -> Client:
    return desk.connect()


async def seat(client: Client, operation: str, *words: str | int) -> dict[str, Any]:
    """Return what is told of an operation on a seat of e1; RESP2 has it flat."""
    reply = await told(client, f"SEAT.{operation}", "e1", *map(str, words))
    assert isinstance(reply, list), reply
    pairs = zip(reply[::2], reply[1::2], strict=True)
    fields = {name.decode(): value for name, value in pairs}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in fields.items()}


async def test_from_a_lock_to_a_sale(client: Client) -> None:
    """Acquired, extended, told, confirmed; each answer says the outcome first."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b1", "x1")
    assert list(taken) == ["outcome", "token", "expires_in_ms"]
    assert taken["outcome"] == "acquired"
    assert 29_000 < taken["expires_in_ms"] <= 30_000
    longer = await seat(client, "EXTEND", "s1", "u1", 50)
    assert (longer["outcome"], longer["token"]) == ("extended", taken["token"])
    status = await seat(client, "STATUS", "s1")
    assert (status["outcome"], status["owner"], status["token"]) == ("locked", "u1", taken["token"])
    assert await seat(client, "CONFIRM", "s1", "u1", taken["token"], "b1") == {
        "outcome": "confirmed"
    }
    assert await seat(client, "STATUS", "s1") == {"outcome": "booked"}
    assert await seat(client, "ACQUIRE", "s1", "u2", 30, "b", "x") == {"outcome": "booked"}
    assert await seat(client, "STATUS", "nowhere") == {"outcome": "missing"}


async def test_who_has_no_proof_is_lost(client: Client) -> None:
    """Another owner, another token, or what is no token at all changes nothing."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b1", "x1")
    right = taken["token"]
    for owner, token in (
        ("u2", right), ("u1", right + 1), ("u1", "-1"),
    ):  # fmt: skip
        assert await seat(client, "RELEASE", "s1", owner, token) == {"outcome": "lost"}
        assert await seat(client, "CONFIRM", "s1", owner, token, "b") == {"outcome": "lost"}
    for token in ("", "x", "9" * 30):
        assert "integer" in str(await told(client, "SEAT.RELEASE", "e1", "s1", "u1", token))
    assert await seat(client, "RELEASE", "s1", "u1", right) == {"outcome": "released"}
    assert await seat(client, "RELEASE", "s1", "u1", right) == {"outcome": "lost"}


async def test_several_seats_are_one_answer(client: Client) -> None:
    """All or none, a seat that is named twice once, with a token for each."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b", "x", "s2", "s1", "s3")
    assert list(taken) == ["outcome", "tokens", "expires_in_ms"]
    assert len(taken["tokens"]) == 3
    refused = await seat(client, "ACQUIRE", "s9", "u2", 30, "b", "x", "s3")
    assert refused["outcome"] == "held"
    assert await seat(client, "STATUS", "s9") == {"outcome": "available"}
    assert (await seat(client, "EXTEND", "s1", "u1", 40, "s3"))["outcome"] == "extended"
    assert (await seat(client, "EXTEND", "s1", "u1", 40, "s9"))["outcome"] == "lost"
    mine = await told(client, "SEAT.MINE", "e1", "u1")
    assert [(name, token) for name, token, _ in mine] == [
        (name, token) for name, token in zip((b"s1", b"s2", b"s3"), taken["tokens"], strict=True)
    ]
    many = [f"s{number}" for number in range(2, MOST + 2)]
    reply = await told(client, "SEAT.ACQUIRE", "e1", "s1", "u1", "30", "b", "x", *many)
    assert str(reply).startswith("ERR too many locks")


async def test_the_limit_is_told(client: Client) -> None:
    """Who has as many as the policy allows is told how many that are."""
    names = [f"s{number}" for number in range(2, 11)]
    assert (await seat(client, "ACQUIRE", "s1", "u1", 30, "b", "x", *names))[
        "outcome"
    ] == "acquired"
    refused = await seat(client, "ACQUIRE", "s11", "u1", 30, "b", "x")
    assert refused == {"outcome": "limit", "held": 10}


@pytest.mark.parametrize(
    ("asked", "given"), [("30", 30), ("9999", 90), ("0", 0), ("", 0), ("x", 0), ("9" * 20, 0)]
)
async def test_a_time_is_within_the_policy(client: Client, asked: str, given: int) -> None:
    """At most as long as `max`; what is no time is an error, and takes nothing."""
    if given:
        taken = await seat(client, "ACQUIRE", "s1", "u1", asked, "b", "x")
        assert given * 1000 - 2000 < taken["expires_in_ms"] <= given * 1000
    else:
        reply = await told(client, "SEAT.ACQUIRE", "e1", "s1", "u1", asked, "b", "x")
        assert "integer" in str(reply) or "invalid expire time" in str(reply)
        assert (await seat(client, "STATUS", "s1"))["outcome"] == "available"


async def test_waiting(client: Client) -> None:
    """Holder, place, offer and leaving, with the time that it looks like; who is not next waits."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b", "x")
    assert await seat(client, "QUEUE", "s1", "u1") == {"outcome": "holder"}
    first, second = await seat(client, "QUEUE", "s1", "u2"), await seat(client, "QUEUE", "s1", "u3")
    assert (first["outcome"], first["position"], second["position"]) == ("waiting", 1, 2)
    assert 29_000 < first["wait_ms"] <= 30_000 < second["wait_ms"] <= 31_000
    await seat(client, "RELEASE", "s1", "u1", taken["token"])
    offered = await seat(client, "QUEUE", "s1", "u2")
    assert offered["outcome"] == "offered"
    assert 0 < offered["offered_ms"] <= 1000
    refused = await seat(client, "ACQUIRE", "s1", "u3", 30, "b", "x")
    assert refused["outcome"] == "queue"
    assert 0 < refused["expires_in_ms"] <= offered["offered_ms"]
    assert await seat(client, "QUEUE", "s1", "u2", "LEAVE") == {"outcome": "left"}
    assert (await seat(client, "QUEUE", "s1", "u3"))["outcome"] == "offered"
    assert (await seat(client, "ACQUIRE", "s1", "u3", 30, "b", "x"))["outcome"] == "acquired"
    assert str(await told(client, "SEAT.QUEUE", "e1", "s1", "u2", "stay")).startswith("ERR syntax")


async def test_names_that_are_none(client: Client) -> None:
    """An owner that is empty, no text or holds a zero byte, and a seat that is no name of a key."""
    for owner in (b"", b"\xff", b"a\0b"):
        client.send(b"SEAT.ACQUIRE", b"e1", b"s1", owner, b"30", b"b", b"x")
        assert (await client.reply()).startswith(b"-")
    for other in ("a:b", "\x01", ""):
        for names in (("s1", other), (other, "s1")):
            first, second = names
            reply = await told(client, "SEAT.ACQUIRE", "e1", first, "u1", "30", "b", "x", second)
            assert str(reply).startswith("POLICY"), names
    assert await seat(client, "STATUS", "s1") == {"outcome": "available"}


async def test_a_sale_has_a_booking(client: Client) -> None:
    """Without one nothing is sold, and the lock is held as before."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b", "x")
    reply = await told(client, "SEAT.CONFIRM", "e1", "s1", "u1", str(taken["token"]), "")
    assert str(reply).startswith("ERR an owner, a lock and a booking are text, not empty")
    assert (await seat(client, "STATUS", "s1"))["outcome"] == "locked"


@pytest.mark.parametrize("shut", [False, True])
async def test_names_that_are_too_long(desk: LockDesk, client: Client, shut: bool) -> None:
    """What no index of PostgreSQL takes is refused before PostgreSQL is asked, held or not."""
    long = "x" * (LONGEST_NAME + 1)
    for key, path in ((b"seat_lock:e1:s1", ("user_id",)), (b"mutex:a", ())):
        if shut:
            desk.server.router.refusals.close(key, "held", math.inf, "u1", path)
    for words in (
        ("SEAT.ACQUIRE", "e1", "s1", long, "30", "b", "x"), ("SEAT.QUEUE", "e1", "s1", long),
        ("SET", "seat_lock:e1:s1", f'{{"user_id":"{long}"}}', "NX"), ("SETNX", "mutex:a", long),
        ("SETNX", f"mutex:{long}", "me"), ("GET", f"mutex:{long}"),
    ):  # fmt: skip
        assert "too long" in str(reply := await told(client, *words)), (words[0], reply)
    assert await told(client, "SETNX", "mutex:a", long[1:]) == (not shut)


async def test_what_a_lock_says_has_a_size(client: Client) -> None:
    """What would be more than the largest value is refused, as of SET, and nothing is changed.

    That is what its value would be, or the booking of a sale.
    """
    refused = "POLICY value refused by keyspace 'seat_lock': it has more than 2048 bytes"
    half, more = "x" * 1000, "x" * 2049
    for booking, session in ((more, "x"), ("b", more), (half, half)):
        words = ("SEAT.ACQUIRE", "e1", "s1", "u1", "30", booking, session)
        assert str(await told(client, *words)) == refused
    value = held_by("u1", booking_id=half, session_id=half)
    assert str(await told(client, "SET", "seat_lock:e1:s1", value, "NX")) == refused
    assert await seat(client, "STATUS", "s1") == {"outcome": "available"}
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, half, "x")
    words = ("SEAT.CONFIRM", "e1", "s1", "u1", str(taken["token"]), more)
    assert str(await told(client, *words)) == refused
    assert (await seat(client, "STATUS", "s1"))["outcome"] == "locked"


async def test_names_that_are_no_text(client: Client) -> None:
    """What PostgreSQL has no letters for is refused, whatever is asked, also of a table's lock."""
    for name in ("mutex:\udcff", "seat_lock:e1:\udcff"):
        for words in (("GET", name), ("DEL", name), ("TTL", name), ("SETNX", name, held_by("u"))):
            reply = await told(client, *words)
            assert "is text" in str(reply), (words, reply)


async def test_maps_for_who_speaks_of_maps(client: Client) -> None:
    """With RESP3 the same fields are a map."""
    client.ask(b"HELLO", b"3")
    assert await told(client, "SEAT.STATUS", "e1", "s1") == {b"outcome": b"available"}


async def test_what_was_acquired_is_held_by_the_connection(desk: LockDesk, client: Client) -> None:
    """A bare DEL releases it there and nowhere else, and after a release by name nothing."""
    taken = await seat(client, "ACQUIRE", "s1", "u1", 30, "b", "x")
    reply = await told(desk.connect(), "DEL", "seat_lock:e1:s1")
    assert str(reply).startswith("LOCKOWNER")
    await seat(client, "RELEASE", "s1", "u1", taken["token"])
    await seat(desk.connect(), "ACQUIRE", "s1", "u2", 30, "b", "x")
    assert str(await told(client, "DEL", "seat_lock:e1:s1")).startswith("LOCKOWNER")


async def test_who_has_gone_holds_nothing(desk: LockDesk, client: Client) -> None:
    """What is granted to a connection that has ended is given up, and not its own any more."""
    grants, ruleset = desk.grants, desk.server.router.ruleset
    plan, key = desk.plan("seat_lock"), b"seat_lock:e1:s1"
    client.session.connection_lost(None)
    values = {"owner": "u1"}
    await _acquire(Order(client.session, ruleset, grants, plan, [key], values, []))
    target = target_of(ruleset, key)
    assert target is not None
    await grant(client.session, grants, [target], held_by("u2").encode(), 30)
    assert await grants.held(plan, key) is None
    assert known(client.session, key) is None


# Locks of no table, with names that end in something else than what varies.
DESKS = """
keyspaces:
  desk:
    key: desk:{floor}:{desk}:hold
    cluster: locks
    hash_tag: floor
    kind: lock
    ttl: {default: 60s}
    lock: {owner: value, COUNTED}
scripts:
  acquire: {name: SEAT.ACQUIRE, file: any.lua, lock: acquire, keys: ["desk:{floor}:{desk}:hold"],
            arguments: [floor, desk, owner], more: desks, reply: map}
  release: {name: SEAT.RELEASE, file: any.lua, lock: release, keys: ["desk:{floor}:{desk}:hold"],
            arguments: [floor, desk, owner, token], more: pairs, reply: map}
  status: {name: SEAT.STATUS, file: any.lua, lock: status, keys: ["desk:{floor}:{desk}:hold"],
           arguments: [floor, desk], reply: map}
  queue: {name: SEAT.QUEUE, file: any.lua, lock: queue, keys: ["desk:{floor}:{desk}:hold"],
          arguments: [floor, desk, owner], reply: map}
  mine: {name: SEAT.MINE, file: any.lua, lock: mine, keys: ["desks:{owner}"], arguments: [OWNED]}
"""


@contextlib.asynccontextmanager
async def desks(server: Postgres, folder: Path, counted: str, owned: str) -> AsyncIterator[Client]:
    """A client that takes desks of floors."""
    (folder / "lua").mkdir()
    (folder / "lua" / "any.lua").write_text("return 1\n")
    rules = DESKS.replace("COUNTED", counted).replace("OWNED", owned)
    async with lock_desk(server, folder, rules) as found:
        yield found.connect()


async def test_desks_that_are_counted(postgres_server: Postgres, tmp_path: Path) -> None:
    """Further names are put where the first has its own; what an owner has is that of a floor."""
    counted = "per_owner: {scope: floor, max: 3}, queue: {heartbeat: 9s, offer: 9s}"
    async with desks(postgres_server, tmp_path, counted, "floor, owner") as client:
        assert await seat(client, "STATUS", "d1") == {"outcome": "available"}
        assert await seat(client, "QUEUE", "d1", "u1") == {"outcome": "available"}
        taken = await seat(client, "ACQUIRE", "d1", "u1", "d2")
        assert (taken["outcome"], len(taken["tokens"])) == ("acquired", 2)
        assert (await seat(client, "STATUS", "d2"))["outcome"] == "locked"
        assert await told(client, "EXISTS", "desk:e1:d1:hold", "desk:e1:d2:hold") == 2
        await told(client, "SEAT.ACQUIRE", "e2", "d3", "u1")
        mine = await told(client, "SEAT.MINE", "e1", "u1")
        assert [name for name, _, _ in mine] == [b"d1", b"d2"]
        first, second = taken["tokens"]
        freed = await seat(client, "RELEASE", "d1", "u1", first, "d2", second)
        assert freed == {"outcome": "released", "released": 2}
        assert await seat(client, "STATUS", "d1") == {"outcome": "available"}


async def test_desks_that_nobody_counts(postgres_server: Postgres, tmp_path: Path) -> None:
    """What an owner has is that of all floors, told by whole names."""
    async with desks(postgres_server, tmp_path, "gate: on", "owner") as client:
        for floor in ("f1", "f2"):
            await told(client, "SEAT.ACQUIRE", floor, "d1", "u1")
        mine = await told(client, "SEAT.MINE", "u1")
        assert [name for name, _, _ in mine] == [b"desk:f1:d1:hold", b"desk:f2:d1:hold"]
