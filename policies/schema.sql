-- The booking database that the shipped policies read and write: PostgreSQL 13 or newer.
--
-- `sidecache demo` loads it into a database of its own; an application that has these tables
-- needs nothing from here. Ids are text, as clients use them in keys (evt_1, usr_1). Times are
-- timestamptz and judged by the database's clock alone.

CREATE TABLE organizations (
    id                text PRIMARY KEY,
    name              text NOT NULL,
    slug              text NOT NULL UNIQUE,
    stripe_account_id text,
    payout_enabled    boolean NOT NULL DEFAULT false,
    fee_percentage    numeric(5, 2) NOT NULL DEFAULT 10.00
                      CHECK (fee_percentage BETWEEN 0 AND 100),
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE venues (
    id                     text PRIMARY KEY,
    organization_id        text NOT NULL REFERENCES organizations,
    name                   text NOT NULL,
    slug                   text NOT NULL UNIQUE,
    address                jsonb NOT NULL DEFAULT '{}',
    capacity               integer NOT NULL CHECK (capacity > 0),
    mongo_layout_id        text,
    accessibility_features text[] NOT NULL DEFAULT '{}',
    parking_info           jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX venues_of_organization ON venues (organization_id);

CREATE TABLE events (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    venue_id        text NOT NULL REFERENCES venues,
    title           text NOT NULL,
    event_date      timestamptz NOT NULL,
    doors_open      timestamptz NOT NULL,
    sales_start     timestamptz NOT NULL,
    sales_end       timestamptz NOT NULL,
    status          text NOT NULL DEFAULT 'draft'
                    CHECK (status IN ('draft', 'published', 'sold_out', 'cancelled', 'completed')),
    capacity        integer NOT NULL CHECK (capacity > 0),
    price_min_cents integer NOT NULL CHECK (price_min_cents >= 0),
    price_max_cents integer NOT NULL,
    currency        text NOT NULL DEFAULT 'GBP' CHECK (currency ~ '^[A-Z]{3}$'),
    mongo_layout_id text,
    layout_hash     text,
    layout_cdn_url  text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK (price_max_cents >= price_min_cents),
    CHECK (doors_open <= event_date),
    CHECK (sales_start < sales_end AND sales_end <= event_date)
);
CREATE INDEX events_of_organization ON events (organization_id);
CREATE INDEX events_of_venue ON events (venue_id);
CREATE INDEX events_on_sale ON events (event_date) WHERE status = 'published';

CREATE TABLE users (
    id                 text PRIMARY KEY,
    email              text NOT NULL UNIQUE,
    name               text NOT NULL,
    role               text NOT NULL DEFAULT 'customer'
                       CHECK (role IN ('customer', 'staff', 'admin')),
    global_permissions text[] NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE user_preferences (
    user_id               text PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    favorite_venues       text[] NOT NULL DEFAULT '{}',
    notification_settings jsonb NOT NULL DEFAULT '{}',
    payment_methods       text[] NOT NULL DEFAULT '{}',
    booking_limits        jsonb NOT NULL DEFAULT '{}',
    accessibility_needs   text[] NOT NULL DEFAULT '{}',
    updated_at            timestamptz NOT NULL DEFAULT now()
);

-- What a user may do in an organization, and in which of its venues.
CREATE TABLE organization_members (
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    user_id         text NOT NULL REFERENCES users ON DELETE CASCADE,
    role            text NOT NULL CHECK (role IN ('admin', 'manager', 'staff')),
    permissions     text[] NOT NULL DEFAULT '{}',
    venues          text[] NOT NULL DEFAULT '{}',
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX memberships_of_user ON organization_members (user_id);

CREATE TABLE bookings (
    booking_id               text PRIMARY KEY,
    user_id                  text NOT NULL REFERENCES users,
    event_id                 text NOT NULL REFERENCES events,
    status                   text NOT NULL DEFAULT 'draft'
                             CHECK (status IN ('draft', 'pending_payment', 'confirmed', 'cancelled',
                                               'expired', 'refunded')),
    total_amount_cents       integer NOT NULL CHECK (total_amount_cents >= 0),
    fee_amount_cents         integer NOT NULL DEFAULT 0 CHECK (fee_amount_cents >= 0),
    currency                 text NOT NULL DEFAULT 'GBP',
    stripe_payment_intent_id text UNIQUE,
    stripe_checkout_url      text,
    created_at               timestamptz NOT NULL DEFAULT now(),
    expires_at               timestamptz,
    confirmed_at             timestamptz,
    cancelled_at             timestamptz,
    updated_at               timestamptz NOT NULL DEFAULT now(),
    CHECK (status NOT IN ('draft', 'pending_payment') OR expires_at IS NOT NULL),
    CHECK (status <> 'confirmed' OR confirmed_at IS NOT NULL)
);
CREATE INDEX bookings_of_user ON bookings (user_id);
CREATE INDEX bookings_of_event ON bookings (event_id);
CREATE INDEX bookings_open ON bookings (expires_at) WHERE status IN ('draft', 'pending_payment');

-- Sold seats. The partial index is the last line against selling one twice: it holds even if
-- every lock above it were wrong.
CREATE TABLE booking_seats (
    booking_id   text NOT NULL REFERENCES bookings ON DELETE CASCADE,
    event_id     text NOT NULL,
    seat_id      text NOT NULL,
    price_cents  integer NOT NULL CHECK (price_cents >= 0),
    cancelled_at timestamptz,
    PRIMARY KEY (booking_id, event_id, seat_id)
);
CREATE UNIQUE INDEX booking_seats_sold_once ON booking_seats (event_id, seat_id)
    WHERE cancelled_at IS NULL;

-- Fencing tokens for grants that the application makes itself: a later one is greater. Those that
-- sidecache makes have a sequence of their own, and are greater than the row's last all the same.
CREATE SEQUENCE seat_lock_token AS bigint;

-- One row per seat of an event. locked_by and booking_id have no foreign key: a seat is held for
-- a draft that lives in Redis alone, and every grant would have to lock a row of users.
CREATE TABLE seat_booking_state (
    event_id     text NOT NULL REFERENCES events,
    seat_id      text NOT NULL,
    status       text NOT NULL DEFAULT 'available'
                 CHECK (status IN ('available', 'locked', 'booked', 'reserved', 'blocked')),
    section      text NOT NULL DEFAULT 'stalls',
    seat_row     text NOT NULL DEFAULT 'A',
    seat_number  integer NOT NULL DEFAULT 1,
    category     text NOT NULL DEFAULT 'standard',
    price_cents  integer NOT NULL DEFAULT 0 CHECK (price_cents >= 0),
    locked_by    text,
    locked_at    timestamptz,
    locked_until timestamptz,
    lock_token   bigint,
    lock_type    text NOT NULL DEFAULT 'booking'
                 CHECK (lock_type IN ('booking', 'admin', 'maintenance')),
    booking_id   text,
    session_id   text,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, seat_id),
    -- A lock without an owner or an end could never be released.
    CHECK (status <> 'locked' OR (locked_by IS NOT NULL AND locked_until IS NOT NULL))
)
-- Grants change rows often: room in each page keeps the new version of a row beside the old one.
WITH (fillfactor = 70);
ALTER TABLE booking_seats
    ADD FOREIGN KEY (event_id, seat_id) REFERENCES seat_booking_state (event_id, seat_id);
CREATE INDEX seats_by_status ON seat_booking_state (event_id, status);
CREATE INDEX seats_held_by ON seat_booking_state (event_id, locked_by) WHERE status = 'locked';
CREATE INDEX seats_expiring ON seat_booking_state (locked_until) WHERE status = 'locked';

-- Written behind the cache, in batches, added up per user and day.
CREATE TABLE user_activity_log (
    user_id              text NOT NULL,
    date                 date NOT NULL,
    login_count          integer NOT NULL DEFAULT 0,
    booking_attempts     integer NOT NULL DEFAULT 0,
    successful_bookings  integer NOT NULL DEFAULT 0,
    page_views           integer NOT NULL DEFAULT 0,
    api_calls            integer NOT NULL DEFAULT 0,
    session_duration     integer NOT NULL DEFAULT 0,
    unique_events_viewed integer NOT NULL DEFAULT 0,
    last_activity        timestamptz,
    updated_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, date)
);
