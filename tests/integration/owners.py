"""What one owner may, and nobody else: limits, other people's seats, and other people's clocks."""

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

from proxy.embedded.sidecar import Sidecar, free_address
from tests.histories import Operation
from tests.integration.chaos import Chaos
from tests.integration.crowd import Plan
from tests.integration.hall import Hall
from tests.integration.rig import Caller, is_error, wait_for
from tests.integration.tickets import COMMANDS, Seat, ask, ask_plainly, booking
from tests.replies import pack
from tests.wallclock import WallClock

AT_ONCE = 30

# How long somebody is waited for who says nothing, in the policies of a hall with a queue. An
# outage of PostgreSQL must be shorter.
QUEUE_SECONDS = 20.0
QUEUE = {"heartbeat": f"{QUEUE_SECONDS:.0f}s", "offer": "10s"}

WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND datname = current_database()"""

# How most lock libraries give back what is theirs.
COMPARED = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"""


async def granted_at_once(made: Hall, plan: Plan, times: int) -> Counter[int]:
    """Let one owner ask for thirty seats at once, again and again; count how many it was given."""
    lines = [await Caller.open(made.sidecars[n % 3].port) for n in range(AT_ONCE)]
    seats, granted = plan.seats_of(0)[:AT_ONCE], Counter[int]()
    for number in range(times):
        owner = f"usr_{number % plan.clients}"
        asked = [ask(line, "acquire", seat, owner, hold=plan.hold)
                 for line, seat in zip(lines, seats, strict=True)]  # fmt: skip
        told = await asyncio.gather(*asked)
        assert {each.outcome for each in told} <= {"acquired", "limit"}, told
        held = [(line, seat, each) for line, seat, each in zip(lines, seats, told, strict=True)
                if each.grants]  # fmt: skip
        granted[len(held)] += 1
        for line, seat, each in held:
            gone = await ask(line, "release", seat, owner, hold=plan.hold, token=each.token)
            assert gone.outcome == "released", gone
    for line in lines:
        line.close()
    return granted


async def stolen(made: Hall, plan: Plan, attempts: int) -> list[str]:
    """Let others extend, release, confirm and delete what one owner holds; return what succeeded.

    They know everything: seat, owner's name as it is shown, and the token, which is as good as a
    lock; so with the right token they come under their own name, and under the owner's name with
    another token.
    """
    owner, dice = "usr_0", random.Random(plan.seed)
    seats = plan.seats_of(1)[: plan.limit]
    line = await Caller.open(made.sidecars[0].port)
    thieves = [await Caller.open(each.port) for each in made.sidecars]
    found: list[str] = []
    for number in range(attempts):
        seat = seats[number % len(seats)]
        mine = await ask(line, "acquire", seat, owner, hold=plan.hold)
        assert mine.grants, mine
        assert mine.token is not None
        found += await _attempt(dice.choice(thieves), seat, (owner, mine.token), dice)
        seen = await ask(line, "status", seat, owner, hold=plan.hold)
        if seen.holder != owner:
            found.append(f"{seen} after attempt {number}")
    for each in (line, *thieves):
        each.close()
    return found


async def _attempt(
    thief: Caller, seat: Seat, grant: tuple[str, int], dice: random.Random
) -> list[str]:
    """Try one way to get at a seat; return what was told where it was not a no."""
    owner, token = grant
    kind = dice.choice(("extend", "release", "confirm", "DEL", "UNLINK", "EXPIRE", "SET", "EVAL"))
    if kind in COMMANDS:
        thieves = [("usr_1", token), ("usr_1", token + 1)]
        if "token" in COMMANDS[kind][1]:
            thieves.append((owner, token - 1))
        name, wrong = dice.choice(thieves)
        told = await ask(thief, kind, seat, name, hold=1.0, token=wrong, seconds=1)
        return [str(told)] if told.outcome != "refused" else []
    other = json.dumps({"user_id": "usr_1"})
    words = {
        "DEL": ("DEL", seat.key), "UNLINK": ("UNLINK", seat.key), "EXPIRE": ("EXPIRE", seat.key, 1),
        "SET": ("SET", seat.key, other, "NX", "EX", 5),
        "EVAL": ("EVAL", COMPARED, 1, seat.key, other),
    }  # fmt: skip
    reply = await thief.call(*words[kind])
    return [] if reply in (None, 0) or is_error(reply) else [f"{words[kind]}: {reply}"]


async def left_by_who_has_gone(made: Hall, plan: Plan) -> tuple[str | None, str | None]:
    """Let two clients go away while their requests for seats wait for PostgreSQL.

    Return who has the seat that its owner held before and asked for again, and who has the other.
    """
    held, free = plan.seats_of(3)[:2]
    line = await Caller.open(made.sidecars[0].port)
    mine = await ask(line, "acquire", held, "usr_0", hold=plan.hold)
    assert mine.grants, mine
    for seat in (held, free):
        await _ask_and_go(made, seat)
    seen: dict[Seat, str | None] = {}

    async def given_up() -> bool:
        for seat in (held, free):
            seen[seat] = (await ask(line, "status", seat, "usr_0", hold=plan.hold)).holder
        return seen[free] is None

    await wait_for(given_up, "a lock that nobody was told of to be given up", plan.hold / 2)
    line.close()
    return seen[held], seen[free]


async def _ask_and_go(made: Hall, seat: Seat) -> None:
    """Ask for a seat while its row is locked, and close the connection before it is granted."""
    async with made.database() as database, made.database() as observer:
        leaver = await Caller.open(made.sidecars[0].port)
        transaction = database.transaction()
        await transaction.start()
        await database.execute(
            "SELECT FROM seat_booking_state WHERE event_id = $1 AND seat_id = $2 FOR UPDATE", *seat
        )
        words = (seat.event, seat.name, "usr_0", booking("usr_0", seat.event), "session")
        leaver.writer.write(pack("SEAT.ACQUIRE", *words))

        async def waits() -> bool:
            return bool(await observer.fetchval(WAITING))

        await wait_for(waits, "the request to wait")
        leaver.close()
        await transaction.rollback()


async def queued(made: Hall, plan: Plan, chaos: Chaos) -> list[list[str]]:
    """Let five wait for a seat while servers end and come back, and the holder give it up.

    Return who waits, in order: at first, after the troubles, when the first has taken the seat, and
    when nothing was heard of the others for longer than they are waited for.
    """
    seat = plan.seats_of(3)[2]
    lines = [await Caller.open(made.sidecars[n % 3].port) for n in range(6)]
    waiters = [f"usr_{number}" for number in range(1, 6)]
    held = await ask(lines[0], "acquire", seat, "usr_0", hold=plan.hold)

    async def wait() -> None:
        for line, owner in zip(lines[1:], waiters, strict=True):
            await line.call("SEAT.QUEUE", *seat, owner)

    await wait()
    seen = [await _queue_of(made, seat)]
    await asyncio.gather(chaos.restart(), chaos.kill())
    # Whoever waits tells so now and then; the outage was shorter than they are waited for.
    await wait()
    seen.append(await _queue_of(made, seat))
    await ask(lines[0], "release", seat, "usr_0", hold=plan.hold, token=held.token)
    later = await ask(lines[2], "acquire", seat, "usr_2", hold=plan.hold)
    assert later.outcome in ("queued", "held"), later
    first = await ask(lines[1], "acquire", seat, "usr_1", hold=plan.hold)
    assert first.grants, first
    seen.append(await _queue_of(made, seat))
    async with made.database() as database:

        async def silent() -> bool:
            return not await database.fetchval("SELECT count(*) FROM sidecache_lock_queue")

        await wait_for(silent, "those to leave of whom nothing is heard", QUEUE_SECONDS + 5.0)
    seen.append(await _queue_of(made, seat))
    for line in lines:
        line.close()
    return seen


async def _queue_of(made: Hall, seat: Seat) -> list[str]:
    """Return who waits for a seat by PostgreSQL, when every sidecar tells the same."""
    key, rows = f"lock_queue:{seat.event}:{seat.name}", "SELECT owner FROM sidecache_lock_queue"
    lines = [await Caller.open(sidecar.port) for sidecar in made.sidecars]
    owners: list[str] = []
    async with made.database() as database:

        async def alike() -> bool:
            owners[:] = [row[0] for row in await database.fetch(f"{rows} ORDER BY pos")]
            told = [await line.call("LRANGE", key, 0, -1) for line in lines]
            return all(
                not is_error(items) and [json.loads(item)["user_id"] for item in items] == owners
                for items in told
            )

        await wait_for(alike, "all to tell the same queue", 20.0)
    for line in lines:
        line.close()
    return owners


async def freed_after_a_jump(
    made: Hall, plan: Plan, seconds: int, folder: Path
) -> tuple[float, float]:
    """Let the wall clock of a sidecar jump while seats are held through it.

    Return by how much the first was free after it could be, and the last after it had to be.
    """
    sidecar = Sidecar(
        {**made.sidecars[0].configuration, "listen": {"tcp": free_address()},
         "admin": free_address(), "journal": {"directory": str(folder / f"journal{seconds}")}},
        folder / f"jumping{seconds}",
    )  # fmt: skip
    clock = WallClock(sidecar, folder)
    await sidecar.start(timeout=60.0)
    try:
        line = await Caller.open(sidecar.port)
        # Each jump has its own: who took the seats of the last one may hold them still.
        first = plan.limit if seconds < 0 else 0
        seats = plan.seats_of(2)[first : first + plan.limit]
        held = [await ask(line, "acquire", seat, "usr_0", hold=plan.hold) for seat in seats[::2]]
        held += [await ask_plainly(line, "acquire", seat, "usr_0", hold=plan.hold)
                 for seat in seats[1::2]]  # fmt: skip
        assert all(told.grants for told in held)
        clock.set_ahead(seconds)
        left = await line.call("PTTL", seats[0].key)
        assert 0 < left <= plan.hold * 1000, left
        taken = await asyncio.gather(
            *(_taken(made, sidecar, seat, plan) for seat in (*seats[::2], *seats[1::2]))
        )
        line.close()
    finally:
        await sidecar.stop()
    early = [after.told - (before.sent + before.seconds)
             for before, after in zip(held, taken, strict=True)]  # fmt: skip
    late = [after.sent - (before.told + before.seconds)
            for before, after in zip(held, taken, strict=True)]  # fmt: skip
    return min(early), max(late)


async def _taken(made: Hall, sidecar: Sidecar, seat: Seat, plan: Plan) -> Operation:
    """Ask for a seat until it is granted; return the grant."""
    line = await Caller.open(sidecar.port)
    granted: list[Operation] = []

    async def got() -> bool:
        told = await ask(line, "acquire", seat, "usr_1", hold=plan.hold)
        if told.grants:
            granted.append(told)
        return told.grants

    await wait_for(got, f"{seat} to be free, {time.monotonic()}", plan.hold + 10.0)
    line.close()
    return granted[0]
