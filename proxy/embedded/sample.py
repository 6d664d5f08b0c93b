"""A small booking business that hangs together, for the demo and the tests.

The same seed gives the same organizations, people, bookings and seats; times are relative to
the moment of loading, because a lock that ended last year shows nothing.

Always true:
  * every seat that is booked belongs to one confirmed booking, and the sums are right;
  * every locked seat is held for an open booking whose end is the lock's end; a few locks have
    run out without anybody having released them, as in real life;
  * an event has as many seats as its capacity says.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import asyncpg

USERS = 200
LOCK_TIME = timedelta(minutes=10)

# A table row in the order of its columns; tables in the order in which they may be filled.
Row = tuple[Any, ...]

COLUMNS: dict[str, str] = {
    "organizations": "id name slug stripe_account_id payout_enabled fee_percentage",
    "venues": "id organization_id name slug address capacity mongo_layout_id"
    " accessibility_features parking_info",
    "events": "id organization_id venue_id title event_date doors_open sales_start sales_end"
    " status capacity price_min_cents price_max_cents mongo_layout_id layout_hash layout_cdn_url",
    "users": "id email name role global_permissions",
    "user_preferences": "user_id favorite_venues notification_settings payment_methods"
    " booking_limits accessibility_needs",
    "organization_members": "organization_id user_id role permissions venues",
    "bookings": "booking_id user_id event_id status total_amount_cents fee_amount_cents"
    " stripe_payment_intent_id created_at expires_at confirmed_at cancelled_at",
    "seat_booking_state": "event_id seat_id status section seat_row seat_number category"
    " price_cents locked_by locked_at locked_until lock_token booking_id session_id",
    "booking_seats": "booking_id event_id seat_id price_cents",
    "user_activity_log": "user_id date login_count booking_attempts successful_bookings page_views"
    " api_calls session_duration unique_events_viewed last_activity",
}

_ORGANIZATIONS = ("Harbour Arts Trust", "Northern Stages", "Lantern Live")

# name, seats, city, organization
_VENUES = (
    ("Harbour Hall", 1200, "Bristol", 1),
    ("The Old Ropeworks", 480, "Bristol", 1),
    ("Mill Theatre", 640, "Leeds", 2),
    ("Lantern Rooms", 240, "London", 3),
)

# title, venue, days from now, status, share of seats that is sold
_EVENTS = (
    ("Opening Night", 1, 12, "published", 0.35),
    ("Brass and Strings", 1, 40, "published", 0.08),
    ("Winter Comedy", 2, 5, "published", 0.7),
    ("The Weavers", 3, 20, "published", 0.2),
    ("The Weavers, Matinee", 3, 21, "published", 0.0),
    ("Late Jazz", 4, 2, "sold_out", 1.0),
    ("Spring Preview", 3, 90, "draft", 0.0),
    ("Last Week's Gala", 2, -6, "completed", 0.9),
)

# section, share of the seats, category, factor of the lowest price
_SECTIONS = (
    ("stalls", 0.5, "premium", 3.0),
    ("circle", 0.3, "standard", 1.6),
    ("balcony", 0.2, "economy", 1.0),
)
_SEATS_PER_ROW = 20

_FIRST_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jun")
_LAST_NAMES = ("Abbott", "Baker", "Costa", "Dhillon", "Evans", "Fischer", "Green", "Hall")


@dataclass
class Seat:
    """A seat of one event while its story is being made up."""

    event: str
    id: str
    section: str
    row: str
    number: int
    category: str
    price: int
    status: str = "available"
    owner: str | None = None
    locked_at: datetime | None = None
    locked_until: datetime | None = None
    token: int | None = None
    booking: str | None = None
    session: str | None = None

    def as_row(self) -> Row:
        return (
            *(self.event, self.id, self.status, self.section, self.row, self.number),
            *(self.category, self.price, self.owner, self.locked_at, self.locked_until),
            *(self.token, self.booking, self.session),
        )


@dataclass
class Sample:
    """All rows by table, in the order of COLUMNS, and the last lock token given out."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    last_token: int = 0

    def add(self, table: str, *values: Any) -> None:
        self.rows[table].append(values)


def generate(seed: int, now: datetime) -> Sample:
    """Return the sample of a seed, as it looks at a moment."""
    return _Story(seed, now).tell()


async def load(dsn: str, seed: int) -> dict[str, int]:
    """Create the schema in an empty database and fill it; return the rows per table."""
    schema = (files("proxy") / "policies" / "schema.sql").read_text()
    sample = generate(seed, datetime.now(UTC))
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        async with connection.transaction():
            await connection.execute(schema)
            for table, columns in COLUMNS.items():
                await connection.copy_records_to_table(
                    table, records=sample.rows[table], columns=columns.split()
                )
            await connection.execute("SELECT setval('seat_lock_token', $1)", sample.last_token)
        await connection.execute("ANALYZE")
    finally:
        await connection.close(timeout=10)
    return {table: len(rows) for table, rows in sample.rows.items()}


class _Story:
    """Makes up one sample, table by table."""

    def __init__(self, seed: int, now: datetime) -> None:
        self._random = random.Random(seed)
        self._now = now.replace(microsecond=0)
        self._sample = Sample()
        self._users = [f"usr_{number}" for number in range(1, USERS + 1)]
        self._bookings = 0

    def tell(self) -> Sample:
        for number, name in enumerate(_ORGANIZATIONS, 1):
            self._organization(number, name)
        for number, venue in enumerate(_VENUES, 1):
            self._venue(number, *venue)
        for number in range(1, USERS + 1):
            self._user(number)
        self._members()
        for number, event in enumerate(_EVENTS, 1):
            self._event(number, *event)
        self._activity()
        return self._sample

    def _organization(self, number: int, name: str) -> None:
        slug, fee = _slug(name), self._random.choice((8, 10, 12))
        self._sample.add(
            "organizations", f"org_{number}", name, slug, f"acct_sample_{number}", number != 3, fee
        )

    def _venue(self, number: int, name: str, capacity: int, city: str, organization: int) -> None:
        address = json.dumps({"street": f"{number * 7} Quay Street", "city": city, "country": "GB"})
        parking = json.dumps({"spaces": capacity // 10, "step_free": True})
        features = ["wheelchair", "audio_loop"] if capacity > 300 else ["wheelchair"]
        self._sample.add(
            *("venues", f"venue_{number}", f"org_{organization}", name, _slug(name), address),
            *(capacity, f"{_slug(name)}-main", features, parking),
        )

    def _user(self, number: int) -> None:
        user = f"usr_{number}"
        first, last = self._random.choice(_FIRST_NAMES), self._random.choice(_LAST_NAMES)
        role = "admin" if number <= 3 else "staff" if number <= 9 else "customer"
        permissions = ["user.create"] if number == 1 else []
        email = f"{first}.{last}.{number}@example.com".lower()
        self._sample.add("users", user, email, f"{first} {last}", role, permissions)
        if self._random.random() < 0.6:
            venues = self._random.sample([f"venue_{n}" for n in range(1, len(_VENUES) + 1)], 2)
            notify = json.dumps({"email": True, "sms": self._random.random() < 0.3})
            limits = json.dumps({"max_per_event": 10, "max_pending": 5})
            needs = ["wheelchair"] if self._random.random() < 0.05 else []
            self._sample.add(
                "user_preferences", user, venues, notify, [f"pm_sample_{number}"], limits, needs
            )

    def _members(self) -> None:
        permissions = {
            "admin": ["org.update", "venue.create", "event.create"],
            "staff": ["event.view", "booking.view"],
        }
        for number in range(1, 10):
            role = "admin" if number <= 3 else "staff"
            organization = (number - 1) % 3 + 1
            venues = [
                f"venue_{n}" for n, venue in enumerate(_VENUES, 1) if venue[3] == organization
            ]
            self._sample.add(
                "organization_members",
                *(f"org_{organization}", f"usr_{number}", role, permissions[role], venues),
            )

    def _event(
        self, number: int, title: str, venue: int, days: int, status: str, sold: float
    ) -> None:
        event, (name, capacity, _, organization) = f"evt_{number}", _VENUES[venue - 1]
        begin = self._now.replace(hour=19, minute=30, second=0) + timedelta(days=days)
        lowest = self._random.randrange(1500, 3000, 100)
        highest = int(lowest * _SECTIONS[0][3])
        layout = f"{self._random.getrandbits(64):016x}"
        self._sample.add(
            *("events", event, f"org_{organization}", f"venue_{venue}", title, begin),
            *(begin - timedelta(hours=1), begin - timedelta(days=60), begin - timedelta(hours=2)),
            *(status, capacity, lowest, highest, f"{_slug(name)}-main", layout),
            f"https://cdn.example.com/layouts/{layout}.json",
        )
        seats = list(_seats(event, capacity, lowest))
        self._fill(event, seats, status, sold)
        for seat in seats:
            self._sample.add("seat_booking_state", *seat.as_row())

    def _fill(self, event: str, seats: list[Seat], status: str, sold: float) -> None:
        """Give the seats of an event their owners."""
        if status == "draft":
            for seat in seats:
                seat.status = "blocked"  # nothing is on sale yet
            return
        if sold < 1:
            self._set_apart(seats)
        target = int(len(seats) * sold)
        while target > 0:
            target -= self._book(event, seats, target)
        if status == "published":
            for age in (1, 3, 5, 8, 12, 25):  # minutes; the last two have run out
                self._hold(event, seats, timedelta(minutes=age))

    def _set_apart(self, seats: list[Seat]) -> None:
        for seat in self._random.sample(seats, len(seats) // 40):
            seat.status = "reserved"
        for seat in self._random.sample([s for s in seats if s.status == "available"], 4):
            seat.status = "blocked"

    def _book(self, event: str, seats: list[Seat], most: int) -> int:
        """Sell neighbouring seats to one user; return how many."""
        taken = self._neighbours(seats, min(most, self._random.randint(1, 8)))
        booking, user = self._next_booking(), self._random.choice(self._users)
        made = self._now - timedelta(days=self._random.randint(8, 40))
        for seat in taken:
            seat.status, seat.booking = "booked", booking
        self._add_booking(booking, user, event, "confirmed", taken, made, made + LOCK_TIME)
        for seat in taken:
            self._sample.add("booking_seats", booking, event, seat.id, seat.price)
        return len(taken)

    def _hold(self, event: str, seats: list[Seat], age: timedelta) -> None:
        """Lock seats for a booking that began age ago."""
        taken = self._neighbours(seats, self._random.randint(1, 4))
        booking, user = self._next_booking(), self._random.choice(self._users)
        begin = self._now - age
        session = f"sess_{self._random.getrandbits(48):012x}"
        for seat in taken:
            self._sample.last_token += 1
            seat.status, seat.owner, seat.booking = "locked", user, booking
            seat.locked_at, seat.locked_until = begin, begin + LOCK_TIME
            seat.token, seat.session = self._sample.last_token, session
        status = "pending_payment" if age > timedelta(minutes=4) else "draft"
        self._add_booking(booking, user, event, status, taken, begin, begin + LOCK_TIME)

    def _neighbours(self, seats: list[Seat], count: int) -> list[Seat]:
        """Return free seats beside each other, or as near as there are."""
        free = [seat for seat in seats if seat.status == "available"]
        start = self._random.randrange(max(1, len(free) - count))
        return free[start : start + count]

    def _next_booking(self) -> str:
        self._bookings += 1
        return f"bkg_{self._bookings}"

    def _add_booking(
        self, booking: str, user: str, event: str, status: str, seats: list[Seat],
        made: datetime, expires: datetime,
    ) -> None:  # fmt: skip
        total = sum(seat.price for seat in seats)
        confirmed = made + timedelta(minutes=3) if status == "confirmed" else None
        intent = None if status == "draft" else f"pi_sample_{booking}"
        self._sample.add(
            *("bookings", booking, user, event, status, total, total // 10),
            *(intent, made, expires, confirmed, None),
        )

    def _activity(self) -> None:
        for user in self._random.sample(self._users, USERS // 2):
            views = self._random.randint(1, 60)
            last = self._now - timedelta(minutes=self._random.randint(0, 600))
            attempts = self._random.randint(0, 4)
            self._sample.add(
                *("user_activity_log", user, last.date(), self._random.randint(1, 4), attempts),
                *(self._random.randint(0, attempts), views, views * 3, views * 40),
                *(min(views, 8), last),
            )


def _seats(event: str, capacity: int, lowest: int) -> Iterator[Seat]:
    number = 0
    for index, (section, share, category, factor) in enumerate(_SECTIONS):
        last = index == len(_SECTIONS) - 1
        count = capacity - number if last else int(capacity * share)
        for position in range(count):
            number += 1
            row = chr(ord("A") + position // _SEATS_PER_ROW % 26) * (1 + position // 520)
            place = position % _SEATS_PER_ROW + 1
            yield Seat(event, f"seat_{number}", section, row, place, category, int(lowest * factor))


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-").replace("'", "")
