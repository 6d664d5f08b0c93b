"""What PostgreSQL says when all is over: who holds what, what was granted, and who can tell."""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tests.histories import GRANTS, Operation
from tests.integration.hall import Hall
from tests.integration.rig import Caller, is_error, wait_for
from tests.integration.tickets import Seat, pairs

# How long an expired lock may be written as locked: the sweep of whoever leads.
SWEPT_WITHIN = 2.0  # seconds

# What an outage has delayed is done a while after it is over, on a busy machine too.
SETTLED_WITHIN = 30.0  # seconds

DOUBLE = """
SELECT event_id, seat_id, was_owner, was_token, owner, token FROM audit
 WHERE status = 'locked' AND was = 'locked' AND was_until > at AND was_owner <> owner"""
BACKWARDS = """
SELECT event_id, seat_id, was_token, token FROM audit
 WHERE was_token IS NOT NULL AND token < was_token"""
GRANTED = """
SELECT event_id, seat_id, status, owner, token, extract(epoch FROM at)::float AS begin,
       extract(epoch FROM least(until, lead(at) OVER seat))::float AS ended
  FROM audit
 WINDOW seat AS (PARTITION BY event_id, seat_id ORDER BY id)"""
OVERDUE = """
SELECT count(*) FROM seat_booking_state
 WHERE status = 'locked' AND locked_until < clock_timestamp() - make_interval(secs => $1)"""
LIVE = """
SELECT event_id, seat_id, locked_by FROM seat_booking_state
 WHERE status = 'locked' AND locked_until > clock_timestamp()"""
HOARDED = """
SELECT event_id, locked_by, count(*) FROM seat_booking_state
 WHERE status = 'locked' AND locked_until > clock_timestamp()
 GROUP BY event_id, locked_by HAVING count(*) > $1"""
COUNTS = """
SELECT event_id, count(*) AS total, count(*) FILTER (WHERE status = 'available' OR
       (status = 'locked' AND locked_until <= clock_timestamp())) AS available
  FROM seat_booking_state GROUP BY event_id"""


async def granted_wrongly(hall: Hall) -> list[str]:
    """Return what PostgreSQL itself granted while another held it, or with an older token."""
    async with hall.database() as database:
        rows = [*await database.fetch(DOUBLE), *await database.fetch(BACKWARDS)]
    return [str(dict(row)) for row in rows]


async def orphans(hall: Hall, history: Iterable[Operation], age: float = 1.0) -> list[str]:
    """Return the grants in PostgreSQL that lasted, and of which no client was told or in doubt.

    Who was told nothing, or an unknown outcome, is in doubt; who was told an error that says that
    nothing was done, or a no, is not, from then on: a lock whose owner waits for it is no orphan.
    """
    told: set[tuple[str, int]] = set()
    doubtful: set[tuple[str, str]] = set()
    waits: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for each in history:
        if each.outcome in GRANTS and each.token is not None:
            told.add((each.lock, each.token))
        elif each.kind == "acquire" and (each.outcome in GRANTS or each.outcome == "unknown"):
            doubtful.add((each.lock, each.owner))
        elif each.kind == "acquire":
            waits[each.lock, each.owner].append(each)
    async with hall.database() as database:
        rows = await database.fetch(
            f"SELECT DISTINCT ON (token) * FROM ({GRANTED}) AS grants"
            " WHERE status = 'locked' AND token IS NOT NULL ORDER BY token, ended - begin DESC"
        )
        # History and database are of one machine, and have clocks of their own.
        ahead = await database.fetchval("SELECT extract(epoch FROM clock_timestamp())::float")
        ahead -= time.monotonic()
    found = []
    for row in rows:
        lock, owner = str(Seat(row["event_id"], row["seat_id"])), row["owner"]
        if (lock, row["token"]) in told or (lock, owner) in doubtful:
            continue
        begin, ended = row["begin"] - ahead, row["ended"] - ahead
        asked = [each for each in waits[lock, owner] if each.sent <= begin <= each.told]
        lasted = ended - max([begin, *(each.told for each in asked)])
        if lasted > age:
            said = "; ".join(map(str, asked)) or "who did not ask"
            found.append(f"{lock} of {owner} #{row['token']} for {lasted:.2f} s: {said}")
    return found


async def unknown_to_postgres(hall: Hall, history: Iterable[Operation]) -> list[str]:
    """Return the grants that clients were told of and PostgreSQL has never made."""
    async with hall.database() as database:
        rows = await database.fetch("SELECT event_id, seat_id, owner, token FROM audit")
    made = {(str(Seat(row[0], row[1])), row[2], row[3]) for row in rows}
    return [
        str(each)
        for each in history
        if each.outcome == "acquired" and (each.lock, each.owner, each.token) not in made
    ]


async def sold(hall: Hall, history: Iterable[Operation]) -> list[str]:
    """Return the confirmations told whose seat PostgreSQL has not as sold to who was told."""
    async with hall.database() as database:
        rows = await database.fetch(
            "SELECT event_id, seat_id, locked_by, booking_id FROM seat_booking_state"
            " WHERE status = 'booked'"
        )
    bookings = {str(Seat(row[0], row[1])): str(row[3]) for row in rows}
    return [
        f"{each}, and the booking is {bookings.get(each.lock)}"
        for each in history
        if each.kind == "confirm" and each.outcome == "confirmed"
        and not bookings.get(each.lock, "").startswith(f"bkg_{each.owner}_")
    ]  # fmt: skip


async def hoarded(hall: Hall, limit: int) -> list[str]:
    """Return who holds more locks of an event than the limit."""
    async with hall.database() as database:
        return [str(dict(row)) for row in await database.fetch(HOARDED, limit)]


async def settled(hall: Hall) -> float:
    """Wait until no expired lock is still written as locked; return the seconds that took."""
    async with hall.database() as database:

        async def swept() -> bool:
            return not await database.fetchval(OVERDUE, SWEPT_WITHIN)

        return await wait_for(swept, "the sweep of expired locks", SETTLED_WITHIN)


async def mirrored(hall: Hall) -> list[str]:
    """Return how the keys at the nodes differ from the live locks."""
    async with hall.database() as database:
        live = {
            f"seat_lock:{{{row[0]}}}:{row[1]}": str(row[2]) for row in await database.fetch(LIVE)
        }
    seen: dict[str, str] = {}
    await hall.cluster.refresh()
    for node in hall.cluster.primaries:
        caller = await Caller.open(node.port)
        keys: list[bytes] = await caller.call("KEYS", "seat_lock:*")
        for key, value in zip(keys, await caller.pipeline([("GET", k) for k in keys]), strict=True):
            if value is not None:
                owner = "?" if is_error(value) else json.loads(value).get("user_id", "?")
                seen[key.decode()] = owner
        caller.close()
    return [
        f"{key}: PostgreSQL says {live.get(key)}, Redis {seen.get(key)}"
        for key in live.keys() | seen.keys()
        if live.get(key) != seen.get(key)
    ]


async def available(hall: Hall) -> list[str]:
    """Return the events whose availability through a sidecar is not that of PostgreSQL."""
    async with hall.database() as database:
        rows = await database.fetch(COUNTS)
    wrong = []
    for sidecar in hall.sidecars:
        caller = await Caller.open(sidecar.port)
        told = await caller.pipeline(
            [("HGETALL", f"event_availability:{row['event_id']}") for row in rows]
        )
        caller.close()
        for row, reply in zip(rows, told, strict=True):
            fields = {} if is_error(reply) else pairs(reply)
            seen = (fields.get(b"total_capacity"), fields.get(b"available_count"))
            if seen != (b"%d" % row["total"], b"%d" % row["available"]):
                wrong.append(f"{dict(row)}: sidecar {sidecar.port} says {seen or reply}")
    return wrong


async def agree(what: Any, hall: Hall) -> list[str]:
    """Wait until a comparison finds nothing; return what it finds in the end."""
    found: Sequence[str] = []

    async def alike() -> bool:
        nonlocal found
        found = await what(hall)
        return not found

    try:
        await wait_for(alike, "agreement", SETTLED_WITHIN)
    except (AssertionError, TimeoutError):
        return list(found)
    return []
