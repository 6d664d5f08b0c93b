"""The scripts about seats where Redis decides: they run on the nodes of a real cluster."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.redis import Cluster
from proxy.wire import key_slot
from tests.integration.rig import Caller, StartProxy, is_error, wait_for
from tests.integration.test_seats_by_name import fields

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

# The shipped ones, but for `lock:`, which says that PostgreSQL decides.
_SHIPPED = (ROOT / "policies" / "seats.yaml").read_text().partition("scripts:")[2]
SCRIPTS = "scripts:" + re.sub(r"\n    (lock|on_unavailable): \w+", "", _SHIPPED)

# The keyspaces as Redis alone keeps them.
KEYSPACES = """
keyspaces:
  seat_lock:
    key: seat_lock:{event_id}:{seat_id}
    cluster: locks
    hash_tag: event_id
    kind: lock
    ttl: {default: 600s, max: 900s, missing: allow}
    lock: {authority: redis, owner: $.user_id}
  user_locks: {key: "user_locks:{user_id}:{event_id}", cluster: locks, hash_tag: event_id}
  event_availability: {key: "event_availability:{event_id}", cluster: locks, hash_tag: event_id}
  lock_queue: {key: "lock_queue:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
"""

SEATS = [f"s{number}" for number in range(1, 13)]
EVENT = "evt_1"
AVAILABILITY = f"event_availability:{EVENT}"


class Hall:
    """A client, and the nodes behind the proxy."""

    def __init__(self, caller: Caller, cluster: Cluster) -> None:
        self.caller = caller
        self.cluster = cluster

    async def tell(self, operation: str, *words: str | int) -> dict[str, Any]:
        reply = await self.caller.call(f"SEAT.{operation}", EVENT, *words)
        assert not is_error(reply), reply
        return fields(reply)

    async def acquire(self, seat: str, owner: str) -> dict[str, Any]:
        return await self.tell("ACQUIRE", seat, owner, "b1", "x1")

    async def counts(self, seat: str) -> list[str]:
        """Return the state of a seat and how many are available, locked and booked."""
        names = ("available_count", "locked_count", "booked_count")
        found = await self.caller.call("HMGET", AVAILABILITY, seat, *names)
        return [value.decode() for value in found]

    async def direct(self, *words: str) -> Any:
        """Ask the node that has a key, past the proxy."""
        owner = await self.cluster.owner(key_slot(words[1].encode()))
        return await owner.ask(*words)

    async def end(self, seat: str) -> None:
        """Let the lock of a seat be over."""
        key = f"seat_lock:{{{EVENT}}}:{seat}"
        await self.direct("PEXPIRE", key, "1")

        async def gone() -> bool:
            return not int(await self.direct("EXISTS", key))

        await wait_for(gone, "the lock to be over")


@pytest.fixture
async def hall(locks_cluster: Cluster, proxy_process: StartProxy, tmp_path: Path) -> Hall:
    """Seats of which Redis has the availability, and no database."""
    (tmp_path / "seats.yaml").write_text(KEYSPACES + SCRIPTS)
    shutil.copytree(ROOT / "lua", tmp_path / "lua")
    await locks_cluster.flush()
    proxy = await proxy_process({"locks": locks_cluster}, policies=str(tmp_path))
    caller = await Caller.open(proxy.port)
    pairs = [word for seat in SEATS for word in (seat, "available")]
    counts = ("available_count", len(SEATS), "locked_count", 0, "booked_count", 0)
    await caller.call("HSET", AVAILABILITY, *pairs, *counts)
    return Hall(caller, locks_cluster)


async def test_acquire(hall: Hall) -> None:
    """Granted to one, kept by the same, refused to another; the counters move once."""
    taken = await hall.acquire("s1", "u1")
    assert (taken["outcome"], taken["expires_in_ms"]) == ("acquired", 600_000)
    assert await hall.counts("s1") == ["locked", "11", "1", "0"]
    again = await hall.acquire("s1", "u1")
    assert (again["outcome"], again["token"]) == ("extended", taken["token"])
    assert await hall.counts("s1") == ["locked", "11", "1", "0"]
    refused = await hall.acquire("s1", "u2")
    assert (refused["outcome"], "token" in refused) == ("held", False)
    assert 590_000 < refused["expires_in_ms"] <= 600_000
    await hall.end("s1")
    later = await hall.acquire("s1", "u2")
    assert later["outcome"] == "acquired"
    assert later["token"] > taken["token"]


async def test_limit(hall: Hall) -> None:
    """The eleventh seat is refused, and what is over does not count."""
    for seat in SEATS[:10]:
        assert (await hall.acquire(seat, "u1"))["outcome"] == "acquired"
    assert await hall.acquire("s11", "u1") == {"outcome": "limit", "held": 10}
    assert (await hall.acquire("s1", "u1"))["outcome"] == "extended"
    assert (await hall.acquire("s11", "u2"))["outcome"] == "acquired"
    await hall.end("s3")
    name = f"user_locks:u1:{{{EVENT}}}"
    for member in await hall.direct("ZRANGE", name, "0", "-1"):
        if member.startswith("s3:"):
            await hall.direct("ZADD", name, "1", member)
    assert (await hall.acquire("s12", "u1"))["outcome"] == "acquired"


async def test_extend(hall: Hall) -> None:
    """The holder keeps it for so long and at most a quarter of an hour; nobody else does."""
    assert await hall.tell("EXTEND", "s1", "u1", 30) == {"outcome": "lost"}
    taken = await hall.acquire("s1", "u1")
    assert await hall.tell("EXTEND", "s1", "u1", 30) == {
        "outcome": "extended", "token": taken["token"], "expires_in_ms": 30_000,
    }  # fmt: skip
    assert 29_000 < await hall.caller.call("PTTL", f"seat_lock:{EVENT}:s1") <= 30_000
    assert (await hall.tell("EXTEND", "s1", "u1", 5000))["expires_in_ms"] == 900_000
    assert (await hall.tell("EXTEND", "s1", "u2", 30))["outcome"] == "held"


async def test_release(hall: Hall) -> None:
    """By owner and token, once; the seat is available again for anybody."""
    taken = await hall.acquire("s1", "u1")
    assert isinstance(taken["token"], int)
    for owner, token in (("u2", taken["token"]), ("u1", "1")):
        assert await hall.tell("RELEASE", "s1", owner, token) == {"outcome": "lost"}
    assert await hall.tell("RELEASE", "s1", "u1", taken["token"]) == {"outcome": "released"}
    assert await hall.counts("s1") == ["available", "12", "0", "0"]
    assert await hall.tell("RELEASE", "s1", "u1", taken["token"]) == {"outcome": "lost"}
    assert (await hall.acquire("s1", "u2"))["outcome"] == "acquired"


async def test_confirm(hall: Hall) -> None:
    """What is sold stays sold, without end, and is no lock of its owner any more."""
    taken = await hall.acquire("s1", "u1")
    assert await hall.tell("CONFIRM", "s1", "u1", "1", "b1") == {"outcome": "lost"}
    assert await hall.tell("CONFIRM", "s1", "u1", taken["token"], "b1") == {"outcome": "confirmed"}
    assert await hall.counts("s1") == ["booked", "11", "0", "1"]
    assert int(await hall.direct("PTTL", f"seat_lock:{{{EVENT}}}:s1")) == -1
    assert await hall.tell("STATUS", "s1") == {"outcome": "booked"}
    assert await hall.caller.call("SEAT.MINE", EVENT, "u1") == []
    proof = ("s1", "u1", taken["token"])
    assert await hall.tell("CONFIRM", *proof, "b1") == {"outcome": "confirmed"}
    assert await hall.tell("CONFIRM", *proof, "b2") == {"outcome": "lost"}
    assert await hall.tell("RELEASE", *proof) == {"outcome": "lost"}
    for owner in ("u1", "u2"):
        assert await hall.acquire("s1", owner) == {"outcome": "booked"}
        assert await hall.tell("EXTEND", "s1", owner, 30) == {"outcome": "booked"}
        assert await hall.tell("QUEUE", "s1", owner) == {"outcome": "booked"}
    assert await hall.counts("s1") == ["booked", "11", "0", "1"]


@pytest.mark.parametrize("name", [AVAILABILITY, f"user_locks:u1:{EVENT}"])
async def test_a_key_of_another_type_changes_nothing(hall: Hall, name: str) -> None:
    """Who meets one hears of it, and the seat is as it was."""
    caller, seat = hall.caller, f"seat_lock:{EVENT}:s1"

    async def refused(operation: str, *words: str | int) -> bool:
        before = await caller.call("GET", seat)
        await caller.call("SET", name, "x")
        reply = await caller.call(f"SEAT.{operation}", EVENT, "s1", "u1", *words)
        after = await caller.call("GET", seat)
        await caller.call("DEL", name)
        return str(reply).startswith("WRONGTYPE") and after == before

    assert await refused("ACQUIRE", "b1", "x1")
    token = (await hall.acquire("s1", "u1"))["token"]
    if name != AVAILABILITY:
        assert await refused("EXTEND", 60)
    assert await refused("CONFIRM", token, "b1")
    assert await refused("RELEASE", token)
    assert await hall.tell("RELEASE", "s1", "u1", token) == {"outcome": "released"}


async def test_status(hall: Hall) -> None:
    """Available, or locked with owner, token and time."""
    assert await hall.tell("STATUS", "s1") == {"outcome": "available"}
    taken = await hall.acquire("s1", "u1")
    status = await hall.tell("STATUS", "s1")
    assert 590_000 < status.pop("expires_in_ms") <= 600_000
    assert status == {"outcome": "locked", "owner": "u1", "token": taken["token"]}


async def test_queue(hall: Hall) -> None:
    """In order of arrival; the first is offered a free seat, who leaves hands its place on."""
    taken = await hall.acquire("s1", "u1")
    assert await hall.tell("QUEUE", "s1", "u1") == {"outcome": "holder"}
    for place, owner in ((1, "u2"), (2, "u3"), (1, "u2")):
        waiting = await hall.tell("QUEUE", "s1", owner)
        assert (waiting["outcome"], waiting["position"]) == ("waiting", place)
        assert waiting["wait_ms"] > 590_000
    await hall.tell("RELEASE", "s1", "u1", taken["token"])
    third, second = await hall.tell("QUEUE", "s1", "u3"), await hall.tell("QUEUE", "s1", "u2")
    assert (third["outcome"], second["outcome"]) == ("waiting", "offered")
    assert 0 < second["offered_ms"] <= 10_000
    assert await hall.tell("QUEUE", "s1", "u2", "leave") == {"outcome": "left"}
    assert (await hall.tell("QUEUE", "s1", "u3"))["outcome"] == "offered"


async def test_what_is_free_has_no_queue(hall: Hall) -> None:
    """Anybody may take it; who lets an offer pass is behind all others."""
    assert await hall.tell("QUEUE", "s1", "u1") == {"outcome": "available"}
    taken = await hall.acquire("s1", "u1")
    await hall.tell("QUEUE", "s1", "u2")
    await hall.tell("RELEASE", "s1", "u1", taken["token"])
    assert (await hall.tell("QUEUE", "s1", "u2"))["outcome"] == "offered"
    await hall.direct("DEL", f"lock_queue:{{{EVENT}}}:s1")
    assert await hall.tell("QUEUE", "s1", "u2") == {"outcome": "available"}
    assert (await hall.acquire("s1", "u3"))["outcome"] == "acquired"


async def test_who_waits_goes_first(hall: Hall) -> None:
    """A seat that becomes free is kept for the first of its queue, and for nobody it has left."""
    taken = await hall.acquire("s1", "u1")
    for owner in ("u2", "u3"):
        await hall.tell("QUEUE", "s1", owner)
    await hall.tell("RELEASE", "s1", "u1", taken["token"])
    for owner in ("u3", "u4"):
        refused = await hall.acquire("s1", owner)
        assert refused["outcome"] == "queue"
        assert 0 < refused["expires_in_ms"] <= 10_000
    assert (await hall.acquire("s1", "u2"))["outcome"] == "acquired"
    assert (await hall.tell("QUEUE", "s1", "u3"))["position"] == 1


@pytest.mark.parametrize("value", ["plain", "7", '"text"', "[1]", '{"a":1}', "null"])
async def test_what_is_no_lock_of_ours_is_held(hall: Hall, value: str) -> None:
    """A value that some client has put there is somebody's, and no error of a script."""
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s1", value, "NX", "EX", 60)
    assert (await hall.acquire("s1", "u1"))["outcome"] == "held"
    assert (await hall.tell("EXTEND", "s1", "u1", 30))["outcome"] == "held"
    assert (await hall.tell("STATUS", "s1"))["outcome"] == "locked"
    assert (await hall.tell("QUEUE", "s1", "u1"))["outcome"] == "waiting"
    assert (await hall.tell("RELEASE", "s1", "u1", "1")) == {"outcome": "lost"}
    assert (await hall.tell("CONFIRM", "s1", "u1", "1", "b")) == {"outcome": "lost"}


@pytest.mark.parametrize("seconds", ["0", "-5", "1.5", "nan", "inf", "abc"])
async def test_a_time_is_a_number_of_seconds(hall: Hall, seconds: str) -> None:
    """Any other is an error, and the lock lasts as long as before; taken again, no shorter."""
    await hall.acquire("s1", "u1")
    await hall.tell("EXTEND", "s1", "u1", 900)
    assert is_error(await hall.caller.call("SEAT.EXTEND", EVENT, "s1", "u1", seconds))
    assert (await hall.acquire("s1", "u1"))["expires_in_ms"] > 890_000


async def test_mine(hall: Hall) -> None:
    """The seats that somebody holds, with token and time as from PostgreSQL; of a stranger none."""
    tokens = {seat.encode(): (await hall.acquire(seat, "u1"))["token"] for seat in ("s2", "s1")}
    mine = await hall.caller.call("SEAT.MINE", EVENT, "u1")
    assert {name: token for name, token, _ in mine} == tokens
    assert all(590_000 < left <= 600_000 for _, _, left in mine)
    assert await hall.caller.call("SEAT.MINE", EVENT, "u2") == []
