"""The scripts about seats where Redis decides: they run on the nodes of a real cluster."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from proxy.wire import key_slot
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, is_error, wait_for
from tests.integration.seats import seats
from tests.integration.test_seats_by_name import box_of, fields

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
    await hall.direct("HSET", f"user_locks:u1:{{{EVENT}}}", "s3", "1 1")
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
    """What somebody holds, by name, with token and time as from PostgreSQL; of a stranger none."""
    tokens = {seat.encode(): (await hall.acquire(seat, "u1"))["token"] for seat in ("s2", "s1")}
    mine = await hall.caller.call("SEAT.MINE", EVENT, "u1")
    assert [[name, token] for name, token, _ in mine] == sorted(map(list, tokens.items()))
    assert all(590_000 < left <= 600_000 for _, _, left in mine)
    assert await hall.caller.call("SEAT.MINE", EVENT, "u2") == []


async def test_one_seat_at_a_time(hall: Hall) -> None:
    """Whoever names several hears an error, and all of them are as they were."""
    token = (await hall.acquire("s1", "u1"))["token"]
    await hall.acquire("s2", "u1")
    for operation, *words in (
        ("ACQUIRE", "b1", "x1", "s2"), ("EXTEND", 30, "s2"), ("EXTEND", 30, "s3"),
        ("RELEASE", token, "s2", token), ("CONFIRM", token, "b1", "s2", token),
    ):  # fmt: skip
        reply = await hall.caller.call(f"SEAT.{operation}", EVENT, "s1", "u1", *words)
        assert "one seat" in str(reply), operation
        assert is_error(reply)
    for seat in ("s1", "s2"):
        assert (await hall.tell("STATUS", seat))["expires_in_ms"] > 590_000


async def test_what_a_bare_del_has_ended(hall: Hall) -> None:
    """It is off its owner's list once the owner asks for the seat, whatever it asks and hears."""
    for number, (operation, *words) in enumerate(
        (("EXTEND", 30), ("RELEASE", 1), ("CONFIRM", 1, "b1"), ("ACQUIRE", "b1", "x1")), 1
    ):
        for other in (False, True):
            seat, owner = f"s{number}", f"u{number}{other}"
            await hall.acquire(seat, owner)
            await hall.caller.call("DEL", f"seat_lock:{EVENT}:{seat}")
            if other:
                await hall.acquire(seat, "rival")
            told = await hall.tell(operation, seat, owner, *words)
            taken = [[seat.encode(), told["token"]]] if told["outcome"] == "acquired" else []
            mine = await hall.caller.call("SEAT.MINE", EVENT, owner)
            assert [[name, token] for name, token, _ in mine] == taken, (operation, other)
            await hall.caller.call("DEL", f"seat_lock:{EVENT}:{seat}")


async def test_a_late_word_leaves_the_list_alone(hall: Hall) -> None:
    """A release by an earlier token, while its owner holds the seat again, ends nothing."""
    early = (await hall.acquire("s1", "u1"))["token"]
    await hall.tell("RELEASE", "s1", "u1", early)
    token = (await hall.acquire("s1", "u1"))["token"]
    assert await hall.tell("RELEASE", "s1", "u1", early) == {"outcome": "lost"}
    mine = await hall.caller.call("SEAT.MINE", EVENT, "u1")
    assert [each[:2] for each in mine] == [[b"s1", token]]


@pytest.mark.parametrize("operation", ["ACQUIRE", "EXTEND"])
async def test_twenty_minutes_at_most(hall: Hall, operation: str) -> None:
    """However often it is taken again or extended, nobody holds a seat longer from its grant."""
    await hall.acquire("s1", "u1")
    key = f"seat_lock:{{{EVENT}}}:s1"
    lock = json.loads(await hall.direct("GET", key))
    lock["locked_at"] -= 1190
    await hall.direct("SET", key, json.dumps(lock), "KEEPTTL")
    words = ("b1", "x1") if operation == "ACQUIRE" else (900,)
    told = await hall.tell(operation, "s1", "u1", *words)
    assert told["outcome"] == "extended"
    assert 0 < told["expires_in_ms"] <= 10_000
    assert 0 < await hall.caller.call("PTTL", f"seat_lock:{EVENT}:s1") <= 10_000


async def test_what_is_not_said_again(hall: Hall) -> None:
    """Who takes its seat again without a booking or a session keeps those that it has."""
    for words in (("b1", "x1"), ("", ""), ("b2", "")):
        await hall.tell("ACQUIRE", "s1", "u1", *words)
    lock = json.loads(await hall.caller.call("GET", f"seat_lock:{EVENT}:s1"))
    assert (lock["booking_id"], lock["session_id"]) == ("b2", "x1")


@pytest.mark.parametrize("token", ['"abc"', "1.5", "null", "{}"])
async def test_a_lock_without_a_token(hall: Hall, token: str) -> None:
    """What a client has written in an owner's name is kept longer by nobody, and told of whole."""
    value = f'{{"user_id":"u1","token":{token}}}'
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s1", value, "NX", "EX", 60)
    assert list(await hall.tell("EXTEND", "s1", "u1", 30)) == ["outcome", "expires_in_ms"]
    assert (await hall.tell("STATUS", "s1"))["owner"] == "u1"


STRANGE = [
    "notjson", "7", "null", "[]", "{}", '{"joined":"1","ends":"x","offered":0}',
    '{"joined":1,"ends":9e12,"offered":0}', '{"joined":"1","ends":9e12,"offered":null}',
    '{"joined":"1","ends":1e999,"offered":0}', '{"joined":"1","ends":9e12,"offered":1e300}',
    '{"joined":"1","ends":9e12,"offered":-5}',
]  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
async def test_what_is_nobodys_place_in_a_queue(hall: Hall, own: bool) -> None:
    """Whatever a client has put among those who wait, nobody waits with it, nor fails by it."""
    for number, strange in enumerate(STRANGE, 1):
        seat, owner = f"s{number}", f"u{number}"
        await hall.caller.call("HSET", f"lock_queue:{EVENT}:{seat}", owner if own else "x", strange)
        assert (await hall.acquire(seat, owner))["outcome"] == "acquired", strange
        await hall.caller.call("HSET", f"lock_queue:{EVENT}:{seat}", "u0" if own else "x", strange)
        waiting = await hall.tell("QUEUE", seat, "u0")
        assert (waiting["outcome"], waiting["position"]) == ("waiting", 1), strange
        assert len(await hall.caller.call("HGETALL", f"lock_queue:{EVENT}:{seat}")) == 2


async def test_only_true_is_a_sale(hall: Hall) -> None:
    """Null, as a client may write it, is a lock as any other."""
    value = '{"user_id":"u1","token":"7","booked":null}'
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s1", value, "NX", "EX", 60)
    assert (await hall.tell("STATUS", "s1"))["outcome"] == "locked"
    assert (await hall.tell("QUEUE", "s1", "u2"))["outcome"] == "waiting"
    assert (await hall.tell("EXTEND", "s1", "u1", 30))["outcome"] == "extended"
    assert (await hall.acquire("s1", "u1"))["outcome"] == "extended"
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s2", value, "NX", "EX", 60)
    assert await hall.tell("RELEASE", "s2", "u1", 7) == {"outcome": "released"}
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s3", value, "NX", "EX", 60)
    assert await hall.tell("CONFIRM", "s3", "u1", 7, "b1") == {"outcome": "confirmed"}
    assert await hall.tell("CONFIRM", "s3", "u1", 7, "b2") == {"outcome": "lost"}


@pytest.mark.parametrize("since", ["-5", "5", "1e300", "1e999", "1790000000000", "null", '"x"'])
async def test_a_time_of_a_grant_that_is_none(hall: Hall, since: str) -> None:
    """A lock that says it was granted then is kept as one that was granted now, and no longer."""
    value = f'{{"user_id":"u1","token":"7","locked_at":{since}}}'
    for seat, operation, words, left in (
        ("s1", "ACQUIRE", ("b1", "x1"), 600_000), ("s2", "EXTEND", (900,), 900_000),
    ):  # fmt: skip
        key = f"seat_lock:{EVENT}:{seat}"
        await hall.caller.call("SET", key, value, "NX", "EX", 60)
        told = await hall.tell(operation, seat, "u1", *words)
        assert (told["outcome"], told["token"], told["expires_in_ms"]) == ("extended", 7, left)
        lock = json.loads(await hall.caller.call("GET", key))
        assert left / 1000 - 2 <= lock["expires_at"] - lock["locked_at"] <= left / 1000 + 2


async def test_a_token_that_is_too_large(hall: Hall) -> None:
    """What a reply cannot say is no token: a lock has none, or another by its next grant."""
    value = f'{{"user_id":"u1","token":"{"9" * 26}"}}'
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s1", value, "NX", "EX", 60)
    assert (await hall.tell("STATUS", "s1"))["token"] == 0
    assert (await hall.tell("EXTEND", "s1", "u1", 30))["outcome"] == "held"
    token = (await hall.acquire("s1", "u1"))["token"]
    assert 10**15 < token < 2**53
    listed = f"user_locks:u1:{EVENT}"
    await hall.caller.call("HSET", listed, "s2", f"{'9' * 26} 7", "s3", f"9000000000000 {'9' * 26}")
    mine = await hall.caller.call("SEAT.MINE", EVENT, "u1")
    assert [each[:2] for each in mine] == [[b"s1", token]]


async def test_nobody_is_told_as_the_owner_of_a_strange_lock(hall: Hall) -> None:
    """Of a lock whose owner is no text none is told."""
    await hall.caller.call("SET", f"seat_lock:{EVENT}:s1", '{"user_id":null}', "NX", "EX", 60)
    assert list(await hall.tell("STATUS", "s1")) == ["outcome", "token", "expires_in_ms"]


WAITS = "position wait_ms offered_ms"
NO_NUMBER = "ERR value is not an integer or out of range"
NO_TEXT = "ERR an owner, a lock and a booking are text, not empty, and an owner not too long"
NO_NAME = (
    "POLICY argument refused by script 'seat.acquire': "
    "what is part of a key is not empty and has no colon"
)
NO_TIME = "ERR invalid expire time in 'seat.extend' command"

# What is said of the seat A, one after the other, and what is told: the outcome and the other
# fields. T is the token of its latest grant, - an empty word.
STEPS = f"""
STATUS A           | available
EXTEND A u1 30     | lost
RELEASE A u1 1     | lost
CONFIRM A u1 1 b1  | lost
QUEUE A u1         | available
QUEUE A u1 leave   | left
ACQUIRE A - b1 x1  | {NO_NAME}
ACQUIRE A u1 b1 x1 | acquired token expires_in_ms
ACQUIRE A u1 - -   | extended token expires_in_ms
ACQUIRE A u2 b2 x2 | held expires_in_ms
STATUS A           | locked owner token expires_in_ms
EXTEND A u1 60     | extended token expires_in_ms
EXTEND A u1 99999  | extended token expires_in_ms
EXTEND A u2 60     | held expires_in_ms
EXTEND A u1 0      | {NO_TIME}
EXTEND A u1 -5     | {NO_TIME}
EXTEND A u1 1.5    | {NO_NUMBER}
EXTEND A u2 x      | {NO_NUMBER}
EXTEND A u1 -      | {NO_NUMBER}
RELEASE A u1 x     | {NO_NUMBER}
RELEASE A u1 99    | lost
RELEASE A u2 T     | lost
CONFIRM A u1 x b1  | {NO_NUMBER}
CONFIRM A u1 T -   | {NO_TEXT}
CONFIRM A u1 99 b1 | lost
CONFIRM A u2 T b1  | lost
QUEUE A u1         | holder
QUEUE A u2         | waiting {WAITS}
QUEUE A u2 bogus   | ERR syntax error
QUEUE A u2 leave x | ERR syntax error
QUEUE A u2 -       | ERR syntax error
QUEUE A u2         | waiting {WAITS}
QUEUE A u2 LEAVE   | left
QUEUE A u3         | waiting {WAITS}
QUEUE A u2         | waiting {WAITS}
RELEASE A u1 T     | released
ACQUIRE A u2 b2 x2 | queue expires_in_ms
QUEUE A u3         | offered {WAITS}
ACQUIRE A u3 b3 x3 | acquired token expires_in_ms
CONFIRM A u3 T b3  | confirmed
CONFIRM A u3 T b3  | confirmed
CONFIRM A u3 T b4  | lost
STATUS A           | booked
ACQUIRE A u3 b3 x3 | booked
EXTEND A u3 30     | booked
QUEUE A u2         | booked
RELEASE A u3 T     | lost
"""


async def told_of(caller: Caller, event: str, seat: str) -> list[str]:
    """Return the lines of STEPS as they come out for a free seat."""
    lines, words = [], {"A": seat, "T": "1", "-": ""}
    for line in STEPS.strip().splitlines():
        said = line.partition("|")[0]
        operation, *rest = said.split()
        reply = await caller.call(
            f"SEAT.{operation}", event, *(words.get(word, word) for word in rest)
        )
        if is_error(reply):
            lines.append(f"{said}| {reply}")
            continue
        outcome, *names = (told := fields(reply))
        words["T"] = str(told.get("token", words["T"]))
        lines.append(f"{said}| " + " ".join([told[outcome], *names]))
    return lines


async def test_redis_and_postgresql_tell_the_same(
    hall: Hall, postgres_server: Postgres, empty_clusters: Clusters, proxy_process: StartProxy,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Outcomes, fields and errors of one seat have the same words, whoever decides."""
    expected = STEPS.strip().splitlines()
    assert await told_of(hall.caller, EVENT, "s1") == expected
    clusters = {"locks": empty_clusters.locks, "cache": empty_clusters.cache}
    async with seats(postgres_server, clusters, proxy_process, tmp_path) as stage:
        box = await box_of(stage)
        caller = await box.caller()
        assert await told_of(caller, box.event, box.free[0]) == expected
        mine = await caller.call("SEAT.MINE", box.event, "u3")
    assert mine == await hall.caller.call("SEAT.MINE", EVENT, "u3") == []
