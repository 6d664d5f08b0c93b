"""The functions that decide who holds a lock, in a real database and for many at a time."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded.postgres import Postgres
from proxy.origin import installing, locking
from tests.integration.holds import TABLES
from tests.origin.ticketing import EVENT, Asker, Ticketing, ticketing

pytestmark = pytest.mark.integration

OURS = """
SELECT relname::text AS name FROM pg_class WHERE relname LIKE 'sidecache%'
 UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'sidecache%' ORDER BY 1"""


@pytest.fixture
async def office(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[Ticketing]:
    async with ticketing(postgres_server, tmp_path) as found:
        yield found


@pytest.fixture
async def seats(office: Ticketing) -> Asker:
    return await office.asker()


@pytest.fixture
async def mutexes(office: Ticketing) -> Asker:
    return await office.asker("mutex")


async def test_all_or_nothing(seats: Asker) -> None:
    """Of several seats, one that another holds keeps all from being taken."""
    assert (await seats.take("u1", "s2")).outcome == "acquired"
    refused = await seats.take("u2", "s1", "s2", "s3")
    assert (refused.outcome, refused.holder, refused.tokens) == ("held", "u1", None)
    assert refused.lefts is not None
    assert 59 < refused.lefts[0] <= 60
    for name in ("s1", "s3"):
        assert (await seats.seat(name))["status"] == "available"
    taken = await seats.take("u2", "s5", "s4")
    assert (taken.outcome, taken.holder) == ("acquired", "u2")
    assert taken.tokens == [(await seats.seat(name))["lock_token"] for name in ("s5", "s4")]


async def test_what_is_not_there_is_not_locked(seats: Asker) -> None:
    """One name without a row is told as missing, and the seats beside it stay free."""
    assert (await seats.take("u1", "s1", "nowhere")).outcome == "missing"
    assert (await seats.seat("s1"))["status"] == "available"


async def test_the_state_of_the_row_is_told(seats: Asker) -> None:
    """Neither sold nor blocked seats are taken, and the answer says which of them it is."""
    for name, status in (("s1", "booked"), ("s2", "blocked")):
        await seats.connection.execute(
            "UPDATE seats SET status = $3 WHERE event = $1 AND seat = $2", EVENT, name, status
        )
        assert (await seats.take("u1", name)).outcome == status


@pytest.mark.parametrize("word", ["acquired", "held", "queue", "limit", "missing"])
async def test_a_state_that_is_a_word_of_ours(seats: Asker, word: str) -> None:
    """What the application calls like an outcome is told as unknown: nobody takes it for one."""
    await seats.connection.execute("UPDATE seats SET status = $1 WHERE seat = 's1'", word)
    refused = await seats.take("u1", "s1")
    assert (refused.outcome, refused.tokens) == ("unknown", None)
    assert await seats.queue("u1", "s1") == ("unknown", 0)


@pytest.mark.parametrize(
    ("status", "owner", "until", "told"),
    [
        ("locked", None, "clock_timestamp() + interval '1 hour'", "held"),
        ("locked", "u1", None, "held"),
        ("locked", None, None, "held"),
        ("locked", "u0", "infinity", "held"),
        (None, None, None, "unknown"),
        (None, "u1", "infinity", "unknown"),
    ],
)
async def test_what_is_not_said_grants_nothing(
    seats: Asker, office: Ticketing, status: str | None, owner: str | None, until: str | None,
    told: str,
) -> None:  # fmt: skip
    """A row without owner, deadline or status is nobody's to take, alone or with others."""
    await seats.connection.execute("ALTER TABLE seats ALTER status DROP NOT NULL")
    moment = "NULL" if until is None else f"'{until}'" if until == "infinity" else until
    await seats.connection.execute(
        f"UPDATE seats SET status = $1, locked_by = $2, locked_until = {moment} WHERE seat = 's1'",
        status, owner,
    )  # fmt: skip
    before = await seats.seat("s1")
    for names in (("s1",), ("s1", "s2"), ("s2", "s1")):
        assert (await seats.take("u1", *names)).outcome == told
        assert (await seats.take("u1", *names, mine=True)).outcome in (told, "lost")
    assert await seats.grab({"u1": "s1", "u2": "s3"}) == ["u2"]
    await seats.queue("u3", "s1")
    await seats.queue("u3", "s1", leaving=True)
    await seats.sweep()
    assert await seats.seat("s1") == before
    assert (await seats.seat("s2"))["status"] == "available"


async def test_a_lock_without_owner_ends_too(seats: Asker) -> None:
    """Its deadline is what counts: after it the seat is anybody's, and the sweep gives it back."""
    await seats.connection.execute("UPDATE seats SET status = 'locked' WHERE seat IN ('s1', 's2')")
    await seats.expire("s1", "s2")
    assert (await seats.take("u1", "s1")).outcome == "acquired"
    assert [name for name, _ in await seats.sweep()] == [[EVENT, "s2"]]


async def test_two_rows_are_no_lock(seats: Asker) -> None:
    """Where a table has two rows for one seat, none is granted and the database says why."""
    await seats.connection.execute(
        "ALTER TABLE seats DROP CONSTRAINT seats_pkey; CREATE INDEX ON seats (event, seat);"
        " INSERT INTO seats (event, seat) VALUES ('e1', 's1')"
    )
    with pytest.raises(asyncpg.RaiseError, match="one row"):
        await seats.take("u1", "s1")


async def test_the_same_owner_holds_on(seats: Asker) -> None:
    """Taken again a lock keeps token, beginning and what was said, and lasts longer."""
    first = await seats.take("u1", "s1", hold=10, booking="b1")
    before = await seats.seat("s1")
    again = await seats.take("u1", "s1", hold=50)
    after = await seats.seat("s1")
    assert (first.outcome, again.outcome) == ("acquired", "extended")
    assert again.tokens == first.tokens
    assert (after["locked_at"], after["booking_id"]) == (before["locked_at"], "b1")
    assert after["locked_until"] > before["locked_until"]


async def test_taken_again_it_is_not_shorter(seats: Asker) -> None:
    """Who takes what it holds for less keeps what it has; who extends says how long, also less."""
    await seats.take("u1", "s1", hold=90)
    before = (await seats.seat("s1"))["locked_until"]
    assert (await seats.take("u1", "s1", hold=1)).outcome == "extended"
    assert (await seats.seat("s1"))["locked_until"] == before
    assert await seats.grab({"u1": "s1"}) == ["u1"]
    assert (await seats.seat("s1"))["locked_until"] == before
    lefts = (await seats.take("u1", "s1", hold=1, mine=True)).lefts
    assert lefts is not None
    assert lefts[0] <= 1


async def test_one_value_for_all_is_one_holder(mutexes: Asker) -> None:
    """Where the owner is no proof of who asks, who holds a lock is refused like any other."""
    outcomes = []
    for session in ("mine", "yours", "mine", None):
        taken = await mutexes.take("1", "mutex:a", same=False, session=session, hold=50)
        outcomes.append((taken.outcome, taken.holder))
    assert outcomes == [("acquired", "1"), ("held", "1"), ("extended", "1"), ("held", "1")]
    assert await mutexes.grab({"1": "mutex:a", "2": "mutex:b"}, same=False) == ["2"]
    assert (await mutexes.take("1", "mutex:a", hold=1)).outcome == "extended"


async def test_longer_needs_a_lock(seats: Asker) -> None:
    """Only the holder extends: `lost` where nobody holds it, `held` where another does."""
    assert (await seats.take("u1", "s1", mine=True)).outcome == "lost"
    await seats.take("u1", "s1")
    assert (await seats.take("u2", "s1", mine=True)).outcome == "held"
    assert (await seats.take("u1", "s1", mine=True)).outcome == "extended"
    await seats.expire("s1")
    assert (await seats.take("u1", "s1", mine=True)).outcome == "lost"
    assert (await seats.take("u1", "s1", "s2", mine=True)).outcome == "lost"


async def test_an_expired_lock_is_free_without_a_sweep(seats: Asker, office: Ticketing) -> None:
    """Nobody sweeps, and the next who asks is granted it with a greater token."""
    first = await seats.take("u1", "s1")
    await seats.expire("s1")
    second = await (await office.asker()).take("u2", "s1")
    assert second.outcome == "acquired"
    assert first.tokens
    assert second.tokens
    assert second.tokens[0] > first.tokens[0]
    assert await seats.release("u1", "s1") == (None, None)
    assert (await seats.seat("s1"))["locked_by"] == "u2"


async def test_a_later_token_is_always_greater(seats: Asker) -> None:
    """Also than one that the application has written itself, and after the row was given back."""
    await seats.connection.execute("UPDATE seats SET lock_token = 1000000 WHERE seat = 's1'")
    tokens = []
    for number in range(20):
        taken = await seats.take(f"u{number}", "s1")
        assert taken.tokens is not None
        tokens += taken.tokens
        await (seats.expire("s1") if number % 2 else seats.release(f"u{number}", "s1"))
    assert tokens[0] > 1_000_000
    assert all(a < b for a, b in itertools.pairwise(tokens))


async def test_a_hold_ends_however_often_it_is_extended(seats: Asker) -> None:
    """With `max_hold` two minutes from the grant are the end."""
    await seats.take("u1", "s1", hold=60)
    await seats.connection.execute(
        "UPDATE seats SET locked_at = locked_at - interval '100 s',"
        " locked_until = locked_until - interval '50 s' WHERE seat = 's1'"
    )
    taken = await seats.take("u1", "s1", hold=60, mine=True)
    assert taken.lefts is not None
    assert 15 < taken.lefts[0] <= 20


@pytest.mark.parametrize("rounds", [5])
async def test_a_limit_is_exact(office: Ticketing, rounds: int) -> None:
    """Of 30 sessions in which one owner asks for a seat each, ten are granted one."""
    askers = [await office.asker() for _ in range(30)]
    for number in range(rounds):
        owner = f"u{number}"
        taken = await asyncio.gather(
            *(each.take(owner, f"s{number * 30 + n}") for n, each in enumerate(askers, 1))
        )
        outcomes = [each.outcome for each in taken]
        assert (outcomes.count("acquired"), outcomes.count("limit")) == (10, 20)
    assert (await askers[0].take("u0", "s190")).has == 10


async def test_what_is_over_does_not_count(seats: Asker) -> None:
    """An owner of ten may extend them, and take another when one of them has expired."""
    names = [f"s{n}" for n in range(1, 11)]
    assert (await seats.take("u1", *names)).outcome == "acquired"
    assert (await seats.take("u1", *names)).outcome == "extended"
    assert (await seats.take("u1", "s11")).outcome == "limit"
    await seats.expire("s3")
    assert (await seats.take("u1", "s11", "s12")).outcome == "limit"
    assert (await seats.take("u1", "s11")).outcome == "acquired"


async def test_one_of_many_is_granted(office: Ticketing) -> None:
    """Of 30 sessions that ask for one seat at a time one is granted it, a hundred times over."""
    askers = [await office.asker() for _ in range(30)]
    for number in range(1, 101):
        taken = await asyncio.gather(
            *(each.take(f"u{n} of {number}", f"s{number}") for n, each in enumerate(askers))
        )
        assert sorted(each.outcome for each in taken) == ["acquired", *["held"] * 29]


async def test_opposite_order_is_no_deadlock(office: Ticketing) -> None:
    """Two who want the same two seats, each in the order of its own, never wait for each other."""
    one, other = await office.asker(), await office.asker()
    before = await one.connection.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    for _ in range(200):
        taken = await asyncio.gather(one.take("u1", "s1", "s2"), other.take("u2", "s2", "s1"))
        assert sorted(each.outcome for each in taken) == ["acquired", "held"]
        await asyncio.gather(one.release("u1", "s2", "s1"), other.release("u2", "s1", "s2"))
    await one.connection.fetchval("SELECT pg_stat_force_next_flush()")
    assert before == await one.connection.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )


async def test_who_is_refused_waits_for_nobody(office: Ticketing) -> None:
    """A seat that is held is refused even while somebody has its row locked."""
    seats, other = await office.asker(), await office.asker()
    await seats.take("u1", "s1")
    async with other.connection.transaction():
        await other.connection.execute("SELECT FROM seats WHERE seat = 's1' FOR UPDATE")
        async with asyncio.timeout(5):
            assert (await seats.take("u2", "s1")).outcome == "held"


async def test_release_needs_what_is_held(seats: Asker) -> None:
    """By owner, by token where it is said, and only once; the places of what was held are told."""
    taken = await seats.take("u1", "s1", "s3")
    assert taken.tokens is not None
    assert await seats.release("u2", "s1") == (None, None)
    assert await seats.release("u1", "s1", token=taken.tokens[0] + 1) == (None, None)
    assert await seats.release("u1", "s1", "s2", "s3") == ([1, 3], list(taken.tokens))
    assert await seats.release("u1", "s1", "s2", "s3") == (None, None)
    row = await seats.seat("s1")
    assert (row["status"], row["locked_by"], row["locked_until"]) == ("available", None, None)
    assert row["lock_token"] == taken.tokens[0]


async def test_confirming_twice_is_confirming_once(seats: Asker) -> None:
    """All seats become bookings by owner and tokens; asked again for the same booking it is so."""
    taken = await seats.take("u1", "s1", "s2")
    assert taken.tokens is not None
    tokens = list(taken.tokens)
    assert await seats.confirm("u2", ["s1", "s2"], tokens, "b1") == "lost"
    assert await seats.confirm("u1", ["s1", "s2"], [tokens[0], tokens[0] - 1], "b1") == "lost"
    assert await seats.confirm("u1", ["s1", "s2"], tokens, "b1") == "confirmed"
    assert await seats.confirm("u1", ["s1", "s2"], tokens, "b1") == "confirmed"
    assert await seats.confirm("u1", ["s1", "s2"], tokens, "b2") == "lost"
    for name in ("s1", "s2"):
        row = await seats.seat(name)
        assert (row["status"], row["locked_by"], row["booking_id"]) == ("booked", "u1", "b1")


async def test_a_sale_by_sql_is_confirmed_to_nobody(seats: Asker) -> None:
    """Who sells a row may leave in it what the lock has said, and that confirms nothing."""
    taken = await seats.take("u1", "s1", booking="b1")
    await seats.connection.execute("UPDATE seats SET status = 'booked' WHERE seat = 's1'")
    assert await seats.confirm("u1", ["s1"], taken.tokens or [], "b1") == "lost"


async def test_an_older_snapshot_grants_nothing(seats: Asker) -> None:
    """Where a session reads as of its beginning, a limit cannot be counted, so there is no lock."""
    await seats.connection.execute("SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(asyncpg.RaiseError, match="read committed"):
        await seats.take("u1", "s1")
    with pytest.raises(asyncpg.RaiseError, match="read committed"):
        await seats.grab({"u1": "s1"})


async def test_what_has_expired_is_not_confirmed(seats: Asker) -> None:
    """One of two that is over makes both lost, whoever has taken it since."""
    taken = await seats.take("u1", "s1", "s2")
    assert taken.tokens is not None
    await seats.expire("s2")
    assert await seats.confirm("u1", ["s1", "s2"], taken.tokens, "b1") == "lost"
    await seats.take("u2", "s2")
    assert await seats.confirm("u1", ["s1", "s2"], taken.tokens, "b1") == "lost"
    assert (await seats.seat("s1"))["status"] == "locked"


async def test_who_waits_goes_first(seats: Asker) -> None:
    """A free seat goes to the head of its queue, and who comes by is told for whom it is kept."""
    await seats.take("u1", "s1")
    assert await seats.queue("u1", "s1") == ("holder", 0)
    assert await seats.queue("u2", "s1") == ("waiting", 1)
    assert await seats.queue("u3", "s1") == ("waiting", 2)
    await seats.release("u1", "s1")
    stranger, third = await seats.take("u9", "s1"), await seats.take("u3", "s1")
    assert (stranger.outcome, stranger.holder) == ("queue", "u2")
    assert (third.outcome, third.holder) == ("queue", "u2")
    assert await seats.queue("u2", "s1") == ("offered", 1)
    assert await seats.queue("u3", "s1") == ("waiting", 2)
    assert (await seats.take("u2", "s1")).outcome == "acquired"
    assert await seats.queue("u3", "s1") == ("waiting", 1)


async def test_an_offer_lapses_to_the_next(seats: Asker) -> None:
    """Who lets its moment pass is behind everybody else, and the next has a moment of its own."""
    await seats.take("u1", "s1")
    for owner in ("u2", "u3"):
        await seats.queue(owner, "s1")
    await seats.release("u1", "s1")
    assert await seats.queue("u2", "s1") == ("offered", 1)
    await seats.lapse("u2")
    assert await seats.queue("u3", "s1") == ("offered", 1)
    assert await seats.queue("u2", "s1") == ("waiting", 2)
    assert (await seats.take("u2", "s1")).outcome == "queue"
    assert (await seats.take("u3", "s1")).outcome == "acquired"


OFFERED = "SELECT owner, name[2] AS seat FROM sidecache_lock_queue WHERE offered_until > now()"


async def test_a_free_seat_has_no_queue(seats: Asker) -> None:
    """Who would wait for what anybody may take is told so, and keeps it from nobody."""
    assert await seats.queue("u1", "s1") == ("available", 0)
    assert (await seats.take("u2", "s1")).outcome == "acquired"
    assert await seats.queue("u1", "s1") == ("waiting", 1)
    await seats.expire("s1")
    assert await seats.queue("u1", "s1") == ("offered", 1)
    await seats.lapse("u1")
    for _ in range(2):
        assert await seats.queue("u1", "s1") == ("available", 0)
    assert (await seats.take("u3", "s1")).outcome == "acquired"


async def test_offers_count_like_locks(seats: Asker) -> None:
    """Who has nine is offered one of three, and no other seat; those go to others at once."""
    await seats.take("u1", *(f"s{n}" for n in range(1, 10)))
    for name in ("s11", "s12", "s13"):
        await seats.take("u2", name)
        await seats.queue("u1", name)
    await seats.queue("u3", "s12")
    await seats.release("u2", "s11", "s12", "s13")
    rows = await seats.connection.fetch(OFFERED)
    assert {(row["owner"], row["seat"]) for row in rows} == {("u1", "s11"), ("u3", "s12")}
    assert (await seats.take("u9", "s13")).outcome == "acquired"
    assert await seats.grab({"u1": "s20"}) == []
    assert (await seats.take("u1", "s20")).outcome == "limit"
    assert (await seats.take("u1", "s11")).outcome == "acquired"
    assert (await seats.take("u3", "s12")).outcome == "acquired"


async def test_offers_beyond_the_limit_keep_nobody_waiting(seats: Asker) -> None:
    """Of two made at once one is taken, and the other goes to the next at the first try."""
    await seats.take("me", *(f"s{n}" for n in range(1, seats.locking.most)))
    await seats.take("you", "s20", "s21")
    for owner, name in (("me", "s20"), ("me", "s21"), ("next", "s21")):
        assert (await seats.queue(owner, name))[0] == "waiting"
    await seats.connection.execute(
        "UPDATE sidecache_lock_queue SET offered_until = clock_timestamp() + interval '1 minute'"
        " WHERE owner = 'me'"
    )
    await seats.release("you", "s20", "s21")
    assert (await seats.take("me", "s20")).outcome == "acquired"
    assert (await seats.take("next", "s21")).outcome == "queue"
    assert (await seats.take("me", "s21")).outcome == "limit"
    assert (await seats.take("next", "s21")).outcome == "acquired"


async def test_room_that_comes_brings_the_offer(seats: Asker) -> None:
    """Who was passed over for its limit is next again when it has given something up."""
    names = [f"s{n}" for n in range(1, 11)]
    await seats.take("u1", *names)
    await seats.take("u2", "s11")
    await seats.queue("u1", "s11")
    await seats.release("u2", "s11")
    assert await seats.queue("u1", "s11") == ("waiting", 1)
    await seats.release("u1", "s1")
    await seats.sweep()
    assert await seats.queue("u1", "s11") == ("offered", 1)


async def test_what_has_expired_goes_to_who_waits(seats: Asker) -> None:
    """Before any sweep: who comes by first is told that the seat is kept for the head."""
    await seats.take("u1", "s1")
    await seats.queue("u2", "s1")
    await seats.expire("s1")
    passing = await seats.take("u3", "s1")
    assert (passing.outcome, passing.holder) == ("queue", "u2")
    assert passing.lefts is not None
    assert 0 < passing.lefts[0] < 1.1
    assert (await seats.take("u2", "s1")).outcome == "acquired"


async def test_who_leaves_waits_for_nobody(office: Ticketing) -> None:
    """Not even for others who are leaving the queue of the same free seat."""
    seats, other = await office.asker(), await office.asker()
    await seats.take("u0", "s1")
    for owner in ("u1", "u2"):
        await seats.queue(owner, "s1")
    await seats.expire("s1")
    async with other.connection.transaction():
        await other.queue("u1", "s1", leaving=True)
        async with asyncio.timeout(5):
            assert await seats.queue("u2", "s1", leaving=True) == ("left", 0)


async def test_a_sweep_offers_to_the_next(seats: Asker) -> None:
    """Also where nobody asks: a lapsed offer goes on, and what expires is offered."""
    await seats.take("u1", "s1")
    await seats.queue("u2", "s1")
    await seats.queue("u3", "s1")
    await seats.expire("s1")
    await seats.sweep()
    offered = "SELECT owner FROM sidecache_lock_queue WHERE offered_until > clock_timestamp()"
    assert [row["owner"] for row in await seats.connection.fetch(offered)] == ["u2"]
    await seats.lapse("u2")
    await seats.sweep()
    assert [row["owner"] for row in await seats.connection.fetch(offered)] == ["u3"]


async def test_what_is_being_taken_is_not_offered(office: Ticketing) -> None:
    """A sweep leaves a seat alone that somebody has in hand, and one that was just taken."""
    seats, other = await office.asker(), await office.asker()
    await seats.take("u1", "s1")
    await seats.queue("u2", "s1")
    await seats.connection.execute("UPDATE seats SET status = 'available' WHERE seat = 's1'")
    transaction = other.connection.transaction()
    await transaction.start()
    await other.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'app', locked_at = clock_timestamp(),"
        " locked_until = clock_timestamp() + interval '30 s' WHERE event = 'e1' AND seat = 's1'"
    )
    await seats.sweep()
    assert await seats.connection.fetch(OFFERED) == []
    await transaction.commit()
    await seats.sweep()
    assert await seats.connection.fetch(OFFERED) == []
    assert await seats.queue("u2", "s1") == ("waiting", 1)


@pytest.mark.parametrize("swept", [True, False])
async def test_an_offer_of_what_another_took_is_none(seats: Asker, swept: bool) -> None:
    """Whoever it was kept for waits on in its place, and the offer does not count for it."""
    await seats.take("u1", "s1")
    for owner in ("u2", "u3"):
        await seats.queue(owner, "s1")
    await seats.release("u1", "s1")
    await seats.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'app',"
        " locked_until = clock_timestamp() + interval '30 s' WHERE event = 'e1' AND seat = 's1'"
    )
    if swept:
        await seats.sweep()
        assert await seats.connection.fetch(OFFERED) == []
    assert await seats.queue("u2", "s1") == ("waiting", 1)
    assert await seats.queue("u3", "s1") == ("waiting", 2)


async def test_a_sweep_looks_at_every_queue(seats: Asker) -> None:
    """Of several seats with waiters, those that somebody else has freed are offered."""
    names = [f"s{number}" for number in range(1, 8)]
    await seats.take("u1", *names)
    for number, name in enumerate(names):
        for waiter in range(3):
            await seats.queue(f"w{number}-{waiter}", name)
    free = names[1::2]
    await seats.connection.execute(
        "UPDATE seats SET status = 'available', locked_by = NULL WHERE seat = ANY ($1)", free
    )
    await seats.sweep()
    offered = (
        "SELECT name[2], owner FROM sidecache_lock_queue WHERE offered_until > clock_timestamp()"
        " ORDER BY name"
    )
    found = [tuple(row) for row in await seats.connection.fetch(offered)]
    assert found == [(name, f"w{names.index(name)}-0") for name in free]


async def test_a_place_is_kept_by_who_is_heard_of(seats: Asker) -> None:
    """Joining again keeps it; who is silent for longer than the heartbeat begins at the end."""
    await seats.take("u1", "s1")
    for owner in ("u2", "u3"):
        await seats.queue(owner, "s1")
    assert await seats.queue("u2", "s1") == ("waiting", 1)
    await seats.lapse("u2", "expires_at")
    assert await seats.queue("u3", "s1") == ("waiting", 1)
    assert await seats.queue("u2", "s1") == ("waiting", 2)


async def test_leaving_hands_the_offer_on(seats: Asker) -> None:
    """Who leaves is gone, and what was kept for it is kept for the next at once."""
    await seats.take("u1", "s1")
    for owner in ("u2", "u3"):
        await seats.queue(owner, "s1")
    await seats.release("u1", "s1")
    assert await seats.queue("u2", "s1", leaving=True) == ("left", 0)
    offered = "SELECT owner FROM sidecache_lock_queue WHERE offered_until > clock_timestamp()"
    assert [row["owner"] for row in await seats.connection.fetch(offered)] == ["u3"]


async def test_a_queue_has_an_end(seats: Asker) -> None:
    """Who comes behind the longest queue is told that it is full; who is in it keeps its place."""
    await seats.take("u1", "s1")
    await seats.queue("u2", "s1")
    await seats.connection.execute(
        "INSERT INTO sidecache_lock_queue (keyspace, name, owner, expires_at)"
        " SELECT 'seat_lock', ARRAY['e1', 's1'], 'w' || n, 'infinity'"
        " FROM generate_series(2, $1) n", locking.LONGEST_QUEUE,
    )  # fmt: skip
    assert await seats.queue("u3", "s1") == ("full", 0)
    assert await seats.queue("u2", "s1") == ("waiting", 1)


async def test_nobody_waits_for_what_is_sold(seats: Asker) -> None:
    """A queue for a booked seat says so instead."""
    await seats.connection.execute("UPDATE seats SET status = 'booked' WHERE seat = 's1'")
    assert await seats.queue("u1", "s1") == ("booked", 0)


async def test_a_sweep_gives_back_what_is_over(seats: Asker) -> None:
    """Expired locks, also those without a token, become available; others stay as they are."""
    taken = await seats.take("u1", "s1", "s2")
    assert taken.tokens is not None
    await seats.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'app', lock_token = NULL,"
        " locked_until = clock_timestamp() - interval '1 s' WHERE event = 'e1' AND seat = 's3'"
    )
    await seats.expire("s1")
    found = sorted(await seats.sweep())
    assert found == [([EVENT, "s1"], taken.tokens[0]), ([EVENT, "s3"], 0)]
    assert await seats.sweep() == []
    states = [(await seats.seat(name))["status"] for name in ("s1", "s2", "s3")]
    assert states == ["available", "locked", "available"]


async def test_a_sweep_of_partitions(postgres_server: Postgres, tmp_path: Path) -> None:
    """Of rows that have the same place in their partitions the one that is over is given back."""
    key = "PRIMARY KEY (event, seat))"
    parts = "".join(
        f"CREATE TABLE s{n} PARTITION OF seats FOR VALUES IN ('e{n}');" for n in (1, 2, 3)
    )
    tables = TABLES.replace(f"{key};", f"{key} PARTITION BY LIST (event); {parts}")
    async with ticketing(postgres_server, tmp_path, tables=tables) as office:
        seats = await office.asker()
        taken = await seats.take("u1", "s1")
        await seats.expire("s1")
        # As often as the first, for their rows to have its place.
        for status, event in (("locked", "e2"), ("booked", "e3")) * 2:
            await seats.connection.execute(
                "UPDATE seats SET status = $1, locked_by = 'u2',"
                " locked_until = clock_timestamp() + interval '60 s'"
                " WHERE event = $2 AND seat = 's1'", status, event,
            )  # fmt: skip
        places = "SELECT count(DISTINCT ctid), count(*) FROM seats WHERE seat = 's1'"
        assert tuple(await seats.connection.fetchrow(places) or ()) == (1, 3)
        assert await seats.sweep() == [([EVENT, "s1"], (taken.tokens or ())[0])]
        states = "SELECT status, locked_by FROM seats WHERE seat = 's1' ORDER BY event"
        assert [tuple(row) for row in await seats.connection.fetch(states)] == [
            ("available", None), ("locked", "u2"), ("booked", "u2"),
        ]  # fmt: skip


async def test_a_lock_that_the_application_took(seats: Asker) -> None:
    """One without a token is given back as 0, and has a token as soon as its owner asks here."""
    await seats.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'u1', locked_at = clock_timestamp(),"
        " locked_until = clock_timestamp() + interval '30 s' WHERE seat IN ('s1', 's2')"
    )
    assert await seats.release("u1", "s1") == ([1], [0])
    taken = await seats.take("u1", "s2")
    assert taken.outcome == "extended"
    assert taken.tokens
    assert await seats.confirm("u1", ["s2"], taken.tokens, "b1") == "confirmed"


async def test_a_lock_without_a_beginning(seats: Asker) -> None:
    """What the application has locked without saying since when ends, however it is extended."""
    await seats.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'u1', locked_at = NULL,"
        " locked_until = clock_timestamp() + interval '30 s' WHERE event = 'e1' AND seat = 's1'"
    )
    longest = seats.locking.longest
    for _ in range(2):
        taken = await seats.take("u1", "s1", hold=10 * longest, mine=True)
        assert taken.outcome == "extended"
        assert longest - 1 < (taken.lefts or [0.0])[0] <= longest


async def test_what_is_kept_is_never_over(seats: Asker) -> None:
    """A hold that is longer than rules allow now lasts, is not kept longer, and is no other's."""
    await seats.connection.execute(
        "UPDATE seats SET status = 'locked', locked_by = 'u1', lock_token = 1,"
        " locked_at = clock_timestamp() - interval '2 h',"
        " locked_until = clock_timestamp() + interval '1 h' WHERE event = 'e1' AND seat = 's1'"
    )
    for mine in (False, True):
        taken = await seats.take("u1", "s1", hold=7200.0, mine=mine)
        assert taken.outcome == "extended"
        assert 3590 < (taken.lefts or [0.0])[0] <= 3600
    assert (await seats.take("u2", "s1")).outcome == "held"


async def test_locks_without_a_table(mutexes: Asker) -> None:
    """Their rows are made as they are asked for, keep the value, and several are all or none."""
    taken = await mutexes.take("me", "mutex:a", "mutex:b", value="me")
    assert taken.outcome == "acquired"
    assert (await mutexes.take("you", "mutex:c", "mutex:b", value="you")).outcome == "held"
    assert (await mutexes.take("you", "mutex:c", value="you")).outcome == "acquired"
    rows = await mutexes.connection.fetch(
        "SELECT name, locked_by, value FROM sidecache_locks WHERE status = 'locked' ORDER BY name"
    )
    assert [tuple(row) for row in rows] == [
        ("mutex:a", "me", "me"), ("mutex:b", "me", "me"), ("mutex:c", "you", "you"),
    ]  # fmt: skip
    assert await mutexes.release("me", "mutex:a", "mutex:c") == ([1], [(taken.tokens or ())[0]])
    # What one has said of a lock is nothing that the next says.
    await mutexes.take("you", "mutex:a")
    said = "SELECT value FROM sidecache_locks WHERE name = 'mutex:a'"
    assert await mutexes.connection.fetchval(said) is None


async def test_rows_that_nobody_uses_go(mutexes: Asker) -> None:
    """A lock that has been free for a minute has no row, and its next token is greater still."""
    first = await mutexes.take("me", "mutex:a")
    await mutexes.release("me", "mutex:a")
    await mutexes.take("me", "mutex:b")
    await mutexes.connection.execute(
        "UPDATE sidecache_locks SET updated_at = updated_at - interval '2 min'"
    )
    await mutexes.sweep()
    rows = await mutexes.connection.fetch("SELECT name FROM sidecache_locks")
    assert [row["name"] for row in rows] == ["mutex:b"]
    second = await mutexes.take("me", "mutex:a")
    assert (second.tokens or [0]) > (first.tokens or [0])


async def test_many_make_one_row(office: Ticketing) -> None:
    """Of 20 who ask for a lock that has no row yet one is granted it."""
    askers = [await office.asker("mutex") for _ in range(20)]
    for number in range(20):
        taken = await asyncio.gather(
            *(each.take(f"u{n}", f"mutex:{number}") for n, each in enumerate(askers))
        )
        assert sorted(each.outcome for each in taken) == ["acquired", *["held"] * 19]


async def test_keyspaces_are_apart(office: Ticketing, mutexes: Asker) -> None:
    """Locks of one name in two keyspaces of one table are two locks."""
    careful = await office.asker("careful")
    assert (await mutexes.take("me", "x")).outcome == "acquired"
    assert (await careful.take("you", "x")).outcome == "acquired"
    assert await careful.release("me", "x") == (None, None)


async def test_installing_again_keeps_what_is_held(office: Ticketing, seats: Asker) -> None:
    """Twice is as once: who holds or waits still does. Removed, nothing is left of it."""
    taken = await seats.take("u1", "s1")
    await seats.queue("u2", "s1")
    plans = tuple(office.plans.values())
    before = await seats.connection.fetch(OURS)
    await installing.run(office.url, (), apply=True, remove=False, locks=plans)
    assert await seats.connection.fetch(OURS) == before
    again = await office.asker()
    assert (await again.take("u1", "s1")).tokens == taken.tokens
    assert await again.queue("u3", "s1") == ("waiting", 2)
    await installing.run(office.url, (), apply=True, remove=True, locks=plans)
    assert await again.connection.fetch(OURS) == []
    await installing.run(office.url, (), apply=True, remove=True, locks=plans)


async def test_locks_of_other_policies_stay(office: Ticketing, mutexes: Asker) -> None:
    """Who takes one keyspace away leaves what another needs."""
    plans = [plan for name, plan in office.plans.items() if name == "seat_lock"]
    await installing.run(office.url, (), apply=True, remove=True, locks=plans)
    assert (await mutexes.take("me", "mutex:a")).outcome == "acquired"
