"""The sample data: the same for a seed, and honest."""

from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from proxy.embedded import sample
from proxy.embedded.postgres import Postgres

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)


def rows(made: sample.Sample, table: str) -> list[dict[str, Any]]:
    return [dict(zip(sample.COLUMNS[table].split(), row, strict=True)) for row in made.rows[table]]


def test_a_seed_gives_the_same_rows_and_another_seed_others() -> None:
    """A script can rely on what a seed makes."""
    assert sample.generate(7, NOW) == sample.generate(7, NOW)
    assert sample.generate(7, NOW) != sample.generate(8, NOW)


@pytest.mark.parametrize("seed", range(5))
def test_every_seat_has_a_status_that_its_booking_confirms(seed: int) -> None:
    """Sold seats are in confirmed bookings, held ones in open bookings that end with the lock."""
    made = sample.generate(seed, NOW)
    bookings = {row["booking_id"]: row for row in rows(made, "bookings")}
    sold = Counter((row["event_id"], row["seat_id"]) for row in rows(made, "booking_seats"))
    held = 0
    for seat in rows(made, "seat_booking_state"):
        booking = bookings.get(seat["booking_id"])
        place = (seat["event_id"], seat["seat_id"])
        assert sold[place] == (seat["status"] == "booked")
        assert (booking is not None) == (seat["status"] in ("booked", "locked"))
        if seat["status"] == "booked":
            assert booking is not None
            assert booking["status"] == "confirmed"
        if seat["status"] == "locked":
            assert booking is not None
            assert booking["status"] in ("draft", "pending_payment")
            assert seat["locked_by"] == booking["user_id"]
            assert seat["locked_until"] == booking["expires_at"]
            held += seat["locked_until"] > NOW
    assert held > 0


def test_amounts_and_capacities_add_up() -> None:
    """A booking costs what its seats cost, an event has a seat for every place."""
    made = sample.generate(1, NOW)
    totals: dict[str, int] = defaultdict(int)
    for row in rows(made, "booking_seats"):
        totals[row["booking_id"]] += row["price_cents"]
    for row in rows(made, "bookings"):
        if row["status"] == "confirmed":
            assert row["total_amount_cents"] == totals[row["booking_id"]]
    seats = Counter(row["event_id"] for row in rows(made, "seat_booking_state"))
    assert seats == {row["id"]: row["capacity"] for row in rows(made, "events")}
    assert 2000 < sum(seats.values()) < 10000


def test_lock_tokens_are_different_and_end_at_the_last() -> None:
    """The sequence goes on where the sample ended."""
    made = sample.generate(1, NOW)
    tokens = [row["lock_token"] for row in rows(made, "seat_booking_state") if row["lock_token"]]
    assert sorted(tokens) == list(range(1, made.last_token + 1))


@pytest.mark.integration
async def test_the_schema_takes_the_sample_and_refuses_to_sell_a_seat_twice(
    postgres_server: Postgres,
) -> None:
    """Loaded into a real database, keys and constraints hold."""
    dsn = await postgres_server.create_database("sampled")
    counts = await sample.load(dsn, 1)
    assert counts["seat_booking_state"] == 5520
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        assert await connection.fetchval("SELECT count(*) FROM bookings") == counts["bookings"]
        greatest = await connection.fetchval("SELECT max(lock_token) FROM seat_booking_state")
        assert await connection.fetchval("SELECT nextval('seat_lock_token')") == greatest + 1
        again = """INSERT INTO booking_seats (booking_id, event_id, seat_id, price_cents)
            SELECT 'bkg_2', event_id, seat_id, 0 FROM booking_seats WHERE booking_id = 'bkg_1'"""
        with pytest.raises(asyncpg.UniqueViolationError, match="booking_seats_sold_once"):
            await connection.execute(again)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                "UPDATE seat_booking_state SET status = 'locked', locked_by = NULL"
            )
    finally:
        await connection.close(timeout=5)
    await postgres_server.drop_database("sampled")


# The statements of applications that have these tables; `$1` and so on are text or jsonb.
STATEMENTS = (
    "UPDATE seat_booking_state SET status = $1, updated_at = NOW()"
    " WHERE event_id = $2 AND seat_id = $3",
    "SELECT status, count(*) FROM seat_booking_state WHERE event_id = $1 GROUP BY status",
    "SELECT booking_id, user_id, event_id, expires_at FROM bookings"
    " WHERE status IN ('draft', 'pending_payment') AND expires_at > NOW()",
    "SELECT event_id, seat_id, locked_by, locked_until FROM seat_booking_state"
    " WHERE status = 'locked' AND locked_until > NOW()",
    "SELECT * FROM events WHERE id = $1",
    "UPDATE events SET title = $2, updated_at = NOW() WHERE id = $1 RETURNING *",
    "UPDATE seat_booking_state SET status = 'locked', locked_by = $1,"
    " locked_until = NOW() + INTERVAL '10 minutes'"
    " WHERE event_id = $2 AND seat_id = $3 AND status = 'available'",
    "INSERT INTO user_activity_log (user_id, date, page_views) VALUES ($1, current_date, 1)"
    " ON CONFLICT (user_id, date) DO UPDATE"
    " SET page_views = user_activity_log.page_views + excluded.page_views",
)


@pytest.mark.integration
async def test_the_statements_of_a_booking_application_fit_the_schema(
    postgres_server: Postgres,
) -> None:
    """What such an application sends is understood by the tables as they are."""
    dsn = await postgres_server.create_database("prepared")
    await sample.load(dsn, 1)
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        for statement in STATEMENTS:
            await connection.prepare(statement)
    finally:
        await connection.close(timeout=5)
    await postgres_server.drop_database("prepared")
