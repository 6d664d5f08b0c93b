"""Seats by name with the shipped policies: who buys them, who waits, and what follows from it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster, Shape
from proxy.wire import key_slot
from tests.conftest import Clusters, StartCluster
from tests.integration.rig import Caller, StartProxy, Word, is_error, wait_for
from tests.integration.seats import Seats, seats

pytestmark = pytest.mark.integration

SCRIPTS = Path(__file__).parents[2] / "lua"

# As fast as is promised of what follows from a lock, and some for a machine that is busy.
WITHIN = 3.0


class Box:
    """A box office: an event of the sample with free seats, and clients."""

    def __init__(self, stage: Seats, event: str, free: list[str]) -> None:
        self.stage = stage
        self.event = event
        self.free = free

    async def caller(self, protocol: int = 2) -> Caller:
        caller = await Caller.open(self.stage.proxy.port)
        await caller.call("HELLO", protocol)
        return caller

    async def row(self, seat: str) -> Mapping[str, Any]:
        row = await self.stage.database.fetchrow(
            "SELECT * FROM seat_booking_state WHERE event_id = $1 AND seat_id = $2",
            self.event, seat,
        )  # fmt: skip
        return dict(row or {})

    async def tell(self, caller: Caller, operation: str, *words: Word) -> dict[str, Any]:
        """Return what is told of an operation in this event."""
        reply = await caller.call(f"SEAT.{operation}", self.event, *words)
        assert not is_error(reply), reply
        return fields(reply)


def fields(reply: Any) -> dict[str, Any]:
    """Return a reply, flat or a map, with texts for bytes."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): v.decode() if isinstance(v, bytes) else v for name, v in pairs}


async def box_of(stage: Seats) -> Box:
    row = await stage.database.fetchrow(
        "SELECT event_id, array_agg(seat_id ORDER BY length(seat_id), seat_id) AS free"
        " FROM seat_booking_state WHERE status = 'available' GROUP BY event_id"
        " ORDER BY count(*) DESC LIMIT 1"
    )
    return Box(stage, row["event_id"], row["free"])


@pytest.fixture
async def box(
    postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> AsyncIterator[Box]:
    clusters = {"locks": empty_clusters.locks, "cache": empty_clusters.cache}
    async with seats(postgres_server, clusters, proxy_process, tmp_path) as stage:
        yield await box_of(stage)


async def buy(box: Box, caller: Caller, seat: str, other: str, user: str) -> None:
    """Go through everything that a buyer does with two seats."""
    tell, acquired = box.tell, (seat, user, "bkg_1", "sess_1")
    taken = await tell(caller, "ACQUIRE", *acquired)
    assert (taken["outcome"], taken["token"] > 0) == ("acquired", True)
    assert 590_000 < taken["expires_in_ms"] <= 600_000
    assert (await tell(caller, "ACQUIRE", *acquired))["token"] == taken["token"]
    refused = await tell(caller, "ACQUIRE", other, "rival", "b", "s", seat)
    assert refused["outcome"] == "held"
    assert (await tell(caller, "STATUS", other))["outcome"] == "available"
    status = await tell(caller, "STATUS", seat)
    assert (status["outcome"], status["owner"], status["token"]) == ("locked", user, taken["token"])
    longer = await tell(caller, "EXTEND", seat, user, 900)
    assert (longer["outcome"], longer["token"]) == ("extended", taken["token"])
    assert longer["expires_in_ms"] > 890_000
    pair = await tell(caller, "ACQUIRE", seat, user, "bkg_1", "sess_1", other)
    assert pair["tokens"][0] == taken["token"]
    mine = await caller.call("SEAT.MINE", box.event, user)
    assert {name.decode(): token for name, token, _ in mine} == dict(
        zip((seat, other), pair["tokens"], strict=True)
    )
    assert (await tell(caller, "RELEASE", other, user, taken["token"]))["outcome"] == "lost"
    assert (await tell(caller, "RELEASE", other, user, pair["tokens"][1]))["outcome"] == "released"
    proof = (seat, user, taken["token"], "bkg_1")
    assert await tell(caller, "CONFIRM", *proof) == {"outcome": "confirmed"}
    assert await tell(caller, "CONFIRM", *proof) == {"outcome": "confirmed"}
    assert await tell(caller, "STATUS", seat) == {"outcome": "booked"}
    assert (await tell(caller, "ACQUIRE", seat, "rival", "b", "s"))["outcome"] == "booked"
    row = await box.row(seat)
    assert (row["status"], row["locked_by"], row["booking_id"]) == ("booked", user, "bkg_1")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_from_a_lock_to_a_sale(box: Box, protocol: int) -> None:
    """Acquired, extended, told, released, sold: flat in RESP2, maps in RESP3."""
    caller = await box.caller(protocol)
    reply = await caller.call("SEAT.STATUS", box.event, box.free[0])
    assert isinstance(reply, dict) == (protocol == 3)
    await buy(box, caller, box.free[0], box.free[1], "usr_7")


async def test_scripts_by_their_digest_take_the_same_path(box: Box) -> None:
    """EVALSHA and EVAL of a shipped file are decided by PostgreSQL; EVAL_RO may not write."""
    caller = await box.caller()
    body = (SCRIPTS / "seat_acquire.lua").read_bytes()
    digest = hashlib.sha1(body).hexdigest()

    async def acquired(name: str, script: str | bytes, seat: str, user: str) -> Any:
        keys = (
            f"seat_lock:{box.event}:{seat}", f"user_locks:{user}:{box.event}",
            f"event_availability:{box.event}", f"lock_queue:{box.event}:{seat}",
        )  # fmt: skip
        return await caller.call(name, script, len(keys), *keys, box.event, seat, user, "b", "s")

    for number, (name, script) in enumerate((("EVALSHA", digest), ("EVAL", body))):
        seat, user = box.free[number], f"usr_{number}"
        reply = await acquired(name, script, seat, user)
        assert not is_error(reply), reply
        row = await box.row(seat)
        assert (row["status"], row["locked_by"]) == ("locked", user)
        assert fields(reply)["token"] == row["lock_token"]
    assert is_error(await acquired("EVAL_RO", body, box.free[2], "usr_2"))
    assert (await box.row(box.free[2]))["status"] == "available"


async def test_a_queue_is_served_in_order(box: Box) -> None:
    """Who is next is offered the seat; silent, it loses it to the one behind, and it to nobody."""
    caller, seat = await box.caller(), box.free[0]
    taken = await box.tell(caller, "ACQUIRE", seat, "u1", "b", "s")
    for place, user in enumerate(("u2", "u3"), 1):
        waiting = await box.tell(caller, "QUEUE", seat, user)
        assert (waiting["outcome"], waiting["position"]) == ("waiting", place)
    await queue_is(box, caller, seat, [("u2", False), ("u3", False)])
    await box.tell(caller, "RELEASE", seat, "u1", taken["token"])
    assert (await box.tell(caller, "QUEUE", seat, "u2"))["outcome"] == "offered"
    await queue_is(box, caller, seat, [("u2", True), ("u3", False)])
    assert (await box.tell(caller, "ACQUIRE", seat, "u3", "b", "s"))["outcome"] == "queue"
    # Its moment passes: the sweeper hands the seat on, and nobody need ask.
    await box.stage.database.execute(
        "UPDATE sidecache_lock_queue SET offered_until = clock_timestamp() WHERE owner = 'u2'"
    )
    await queue_is(box, caller, seat, [("u3", True)])
    assert (await box.tell(caller, "QUEUE", seat, "u2"))["position"] == 2
    assert (await box.tell(caller, "ACQUIRE", seat, "u2", "b", "s"))["outcome"] == "queue"
    assert (await box.tell(caller, "ACQUIRE", seat, "u3", "b", "s"))["outcome"] == "acquired"
    assert (await box.tell(caller, "QUEUE", seat, "u2", "leave"))["outcome"] == "left"
    await queue_is(box, caller, seat, [])


async def queue_is(box: Box, caller: Caller, seat: str, expected: list[tuple[str, bool]]) -> None:
    """Wait until lock_queue shows who waits, and who of them is offered the seat."""

    async def shown() -> bool:
        entries = await caller.call("LRANGE", f"lock_queue:{box.event}:{seat}", 0, -1)
        found = [json.loads(entry) for entry in entries]
        return [(entry["user_id"], entry["offered"]) for entry in found] == expected

    await wait_for(shown, f"the queue to be {expected}", WITHIN)


async def test_what_follows_from_a_lock(box: Box) -> None:
    """The user's list, the event's seats and its counts follow a lock, a sale and an expiry."""
    caller, seat = await box.caller(), box.free[0]
    mine, event = f"user_locks:usr_7:{box.event}", f"event_availability:{box.event}"
    before = fields(await caller.call("HGETALL", event))
    free, held = int(before["available_count"]), int(before["locked_count"])
    assert await caller.call("LRANGE", mine, 0, -1) == []

    async def follows(status: str, owned: list[bytes], counts: tuple[int, int]) -> None:
        async def followed() -> bool:
            names = await caller.call("LRANGE", mine, 0, -1)
            found = await caller.call("HMGET", event, seat, "available_count", "locked_count")
            return [names, *found] == [
                owned, status.encode(), b"%d" % counts[0], b"%d" % counts[1],
            ]  # fmt: skip

        await wait_for(followed, f"{seat} to be {status} everywhere", WITHIN)

    taken = await box.tell(caller, "ACQUIRE", seat, "usr_7", "b", "s")
    await follows("locked", [seat.encode()], (free - 1, held + 1))
    await box.stage.database.execute(
        "UPDATE seat_booking_state SET locked_until = clock_timestamp()"
        " WHERE event_id = $1 AND seat_id = $2", box.event, seat,
    )  # fmt: skip
    await follows("available", [], (free, held))
    again = await box.tell(caller, "ACQUIRE", seat, "usr_7", "b", "s")
    assert again["token"] > taken["token"]
    await box.tell(caller, "CONFIRM", seat, "usr_7", again["token"], "b")
    await follows("booked", [], (free - 1, held))
    for words in (("LPUSH", mine, "x"), ("DEL", mine), ("LPUSH", f"lock_queue:{box.event}:s", "x")):
        assert is_error(await caller.call(*words)), words


async def test_a_party_is_sold_together(box: Box) -> None:
    """Several seats are confirmed all or none, each by its own token, and given up as held."""
    caller, (one, two, three) = await box.caller(), box.free[:3]
    first = (await box.tell(caller, "ACQUIRE", one, "u", "", ""))["token"]
    tokens = (await box.tell(caller, "ACQUIRE", two, "u", "", "", three))["tokens"]
    proof = ("u", first, "party", two, tokens[0], three)
    assert await box.tell(caller, "CONFIRM", one, *proof, tokens[1] + 1) == {"outcome": "lost"}
    assert (await box.row(one))["status"] == (await box.row(two))["status"] == "locked"
    again = await box.tell(caller, "RELEASE", three, "u", tokens[1], one, first + 1)
    assert again == {"outcome": "lost", "released": 1}
    assert (await box.row(three))["status"] == "available"
    last = (await box.tell(caller, "ACQUIRE", three, "u", "", ""))["token"]
    assert await box.tell(caller, "CONFIRM", one, *proof, last) == {"outcome": "confirmed"}
    rows = [await box.row(seat) for seat in (one, two, three)]
    assert {(row["status"], row["booking_id"]) for row in rows} == {("booked", "party")}


async def test_words_that_make_no_pairs(box: Box) -> None:
    """A seat without a token, a token that is no number, a seat twice: nothing is done."""
    caller, (one, two) = await box.caller(), box.free[:2]
    token = (await box.tell(caller, "ACQUIRE", one, "u", "", ""))["token"]
    for words, error in (
        ((two,), "syntax"), ((two, "x"), "integer"), ((two, 1, two, 1), "syntax"),
        ((one, token), "syntax"),
    ):  # fmt: skip
        reply = await caller.call("SEAT.RELEASE", box.event, one, "u", token, *words)
        assert error in str(reply)
        assert is_error(reply)
    assert (await box.row(one))["status"] == "locked"


async def test_nobody_waits_for_what_is_not_there(box: Box) -> None:
    """A seat that the venue does not have has no queue."""
    caller = await box.caller()
    assert await box.tell(caller, "QUEUE", "nosuch", "u") == {"outcome": "missing"}
    assert await box.stage.database.fetchval("SELECT count(*) FROM sidecache_lock_queue") == 0


async def test_what_is_locked_for_ever(box: Box, locks_cluster: Cluster) -> None:
    """A seat that SQL has locked until 'infinity' is held like any other, and disturbs no other."""
    caller, (seat, other) = await box.caller(), box.free[:2]
    await box.stage.database.execute(
        "UPDATE seat_booking_state SET status = 'locked', locked_by = 'maintenance',"
        " locked_until = 'infinity' WHERE event_id = $1 AND seat_id = $2", box.event, seat,
    )  # fmt: skip
    key = f"seat_lock:{box.event}:{seat}"
    assert (await box.tell(caller, "ACQUIRE", seat, "u", "b", "s"))["outcome"] == "held"
    assert (await box.tell(caller, "ACQUIRE", other, "u", "b", "s", seat))["outcome"] == "held"
    assert (await box.tell(caller, "QUEUE", seat, "u"))["outcome"] == "waiting"
    assert (await box.tell(caller, "STATUS", seat))["owner"] == "maintenance"
    assert len(await caller.call("SEAT.MINE", box.event, "maintenance")) == 1
    assert json.loads(await caller.call("GET", key))["user_id"] == "maintenance"
    assert await caller.call("TTL", key) > 3_000_000_000
    await box.tell(caller, "ACQUIRE", other, "u", "b", "s")
    await locks_cluster.flush()
    name = f"seat_lock:{{{box.event}}}:{other}"

    async def restored() -> bool:
        owner = await locks_cluster.owner(key_slot(name.encode()))
        return await owner.ask("EXISTS", name) == 1

    await wait_for(restored, "the other lock shows in Redis again", 20.0)


async def test_a_limit_of_ten(box: Box) -> None:
    """The eleventh seat of an event is refused, and another user may have it."""
    caller = await box.caller()
    first, *others = box.free[:10]
    taken = await box.tell(caller, "ACQUIRE", first, "usr_7", "b", "s", *others)
    assert len(taken["tokens"]) == 10
    eleventh = (box.free[10], "usr_7", "b", "s")
    assert await box.tell(caller, "ACQUIRE", *eleventh) == {"outcome": "limit", "held": 10}
    assert (await box.tell(caller, "ACQUIRE", box.free[10], "usr_8", "b", "s"))[
        "outcome"
    ] == "acquired"


async def test_seats_are_sold_without_redis(
    postgres_server: Postgres, start_cluster: StartCluster, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """With every node of both clusters killed buyers buy, wait and look as before."""
    shape = Shape(3, 0)
    both = {"locks": await start_cluster(shape=shape), "cache": await start_cluster(shape=shape)}
    async with seats(postgres_server, both, proxy_process, tmp_path) as stage:
        box = await box_of(stage)
        caller = await box.caller()
        await buy(box, caller, box.free[0], box.free[1], "usr_7")
        kill(both)
        await buy(box, caller, box.free[2], box.free[3], "usr_8")
        taken = await box.tell(caller, "ACQUIRE", box.free[4], "u1", "b", "s")
        assert (await box.tell(caller, "QUEUE", box.free[4], "u2"))["outcome"] == "waiting"
        await box.tell(caller, "RELEASE", box.free[4], "u1", taken["token"])
        assert (await box.tell(caller, "QUEUE", box.free[4], "u2"))["outcome"] == "offered"
        queue = await caller.call("LRANGE", f"lock_queue:{box.event}:{box.free[4]}", 0, -1)
        assert [json.loads(entry)["user_id"] for entry in queue] == ["u2"]
        key = f"event_availability:{box.event}"
        assert await caller.call("HGET", key, box.free[2]) == b"booked"


def kill(clusters: Mapping[str, Cluster]) -> None:
    for cluster in clusters.values():
        for node in cluster.nodes:
            node.kill()


async def test_without_postgresql_nothing_is_sold(box: Box, postgres_server: Postgres) -> None:
    """Every operation fails closed while PostgreSQL does not answer, and goes on when it does."""
    caller, seat = await box.caller(), box.free[0]
    taken = await box.tell(caller, "ACQUIRE", seat, "usr_7", "b", "s")
    orders: list[tuple[Word, ...]] = [
        ("ACQUIRE", box.free[1], "usr_7", "b", "s"), ("EXTEND", seat, "usr_7", 60),
        ("RELEASE", seat, "usr_7", 1), ("CONFIRM", seat, "usr_7", 1, "b"), ("STATUS", seat),
        ("QUEUE", seat, "usr_8"),
    ]  # fmt: skip
    callers = [await box.caller() for _ in orders]
    postgres_server.pause()
    try:
        replies = await asyncio.gather(
            *(
                each.call(f"SEAT.{name}", box.event, *words)
                for each, (name, *words) in zip(callers, orders, strict=True)
            )
        )
    finally:
        postgres_server.resume()
    assert all(map(is_error, replies)), replies
    assert {str(reply).split()[0] for reply in replies} <= {"PGDOWN", "ERR", "TRYAGAIN"}

    async def back() -> bool:
        return not is_error(await caller.call("SEAT.STATUS", box.event, seat))

    await wait_for(back, "PostgreSQL to be back")
    status = await box.tell(caller, "STATUS", seat)
    assert (status["owner"], status["token"]) == ("usr_7", taken["token"])
