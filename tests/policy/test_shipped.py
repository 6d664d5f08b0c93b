"""The policies that are shipped: the booking application's keys, each in its keyspace."""

import re
from importlib import resources
from typing import NamedTuple

import asyncpg
import pytest

from proxy import wire
from proxy.commands import INDEX
from proxy.embedded import sample
from proxy.embedded.postgres import Postgres
from proxy.origin import installing
from proxy.policy import planning, sql
from proxy.policy.model import Policies
from tests.policy.rulebook import CLUSTERS, SHIPPED, compiled, complaints, load
from tests.wire.stage import Stage

FINGERPRINT = b"9f86d081884c7d659a2feaa0c55ad015"

COUNTED = ("cache", "rate_limit", "counter")

# Of lists the elements are JSON where the plan draws objects in them.
JSON_LISTS = {"notifications"}

# What follows from who holds a seat and who waits for it: clients read it and never write it.
FOLLOWING = {"user_locks", "lock_queue"}


class Row(NamedTuple):
    """One key pattern of the application's plan, and what it must come to."""

    keyspace: str
    key: bytes
    cluster: str
    kind: str
    type: str
    seconds: float | None  # its time to live
    line: int  # of the plan, where it is drawn or, if it is drawn nowhere, used


ROWS = [
    Row("seat_lock", b"seat_lock:evt_abc:seat_1", "locks", "lock", "json", 600, 57),
    Row("user_locks", b"user_locks:usr_abc123:evt_1", "locks", "cache", "list", 30, 68),
    Row("event_availability", b"event_availability:evt_1", "locks", "cache", "hash", 30, 76),
    Row("lock_queue", b"lock_queue:evt_1:seat_2", "locks", "cache", "list", 1, 89),
    Row("session", b"session:sess_ghi789", "locks", "state", "hash", 3600, 160),
    Row("user_activity", b"user_activity:usr_1:daily:2024-12-31", "locks", "state", "hash", 86400,
        175),
    Row("user_prefs", b"user_prefs:usr_1", "cache", "cache", "json", 1800, 188),
    Row("cart", b"cart:usr_1:evt_1", "locks", "state", "json", 1800, 202),
    Row("draft_booking", b"draft_booking:bkg_def456", "locks", "state", "json", 900, 222),
    Row("event", b"event:evt_1", "cache", "cache", "hash", 300, 241),
    Row("venue", b"venue:venue_abc123", "cache", "cache", "json", 1800, 261),
    Row("events_search", b"events_search:" + FINGERPRINT, "cache", "cache", "json", 600, 275),
    Row("org", b"org:org_def456", "cache", "cache", "json", 900, 293),
    Row("user_perms", b"user_perms:usr_1", "cache", "cache", "json", 1800, 307),
    Row("rate_user_booking_hourly", b"rate_limit:user:usr_1:booking:hourly", *COUNTED, 3600, 326),
    Row("rate_user_booking_daily", b"rate_limit:user:usr_1:booking:daily", *COUNTED, 86400, 329),
    Row("rate_user_api_minute", b"rate_limit:user:usr_1:api:minute", *COUNTED, 60, 332),
    Row("rate_ip_booking_hourly", b"rate_limit:ip:192.168.1.100:booking:hourly", *COUNTED, 3600,
        336),
    Row("rate_ip_api_minute", b"rate_limit:ip:2001:db8::1:api:minute", *COUNTED, 60, 339),
    Row("rate_event_booking_minute", b"rate_limit:event:evt_1:booking:minute", *COUNTED, 60, 343),
    Row("rate_global_booking_second", b"rate_limit:global:booking:second", *COUNTED, 1, 347),
    Row("user_risk", b"user_risk:usr_1", "cache", "cache", "json", 3600, 354),
    Row("ip_reputation", b"ip_reputation:10.0.0.1", "cache", "cache", "json", 7200, 368),
    Row("device", b"device:fp_xyz789", "cache", "cache", "json", 86400, 381),
    Row("ws_connections", b"ws_connections:usr_1", "locks", "state", "json", 7200, 398),
    Row("event_subscribers", b"event_subscribers:evt_1:seat_updates", "locks", "state", "set", 3600,
        410),
    Row("notifications", b"notifications:usr_1", "locks", "state", "list", 604800, 416),
    Row("payment_intent", b"payment_intent:pi_stripe_123", "cache", "cache", "json", 900, 457),
    Row("checkout_session", b"checkout_session:cs_test_1", "cache", "cache", "json", 900, 470),
    Row("user_payment_methods", b"user_payment_methods:usr_1", "cache", "cache", "json", 3600, 483),
    Row("event_metrics", b"event_metrics:evt_1:daily:2024-12-31", "cache", "cache", "hash", 86400,
        502),
    Row("org_dashboard", b"org_dashboard:org_1:daily:2024-12-31", "cache", "cache", "json", 1800,
        517),
    Row("system_metrics", b"system_metrics:current", "cache", "cache", "hash", 60, 532),
    Row("event_followers", b"event_subscribers:evt_1", "locks", "state", "set", 3600, 1000),
    Row("popular_events", b"popular_events", "cache", "cache", "zset", None, 1006),
    Row("booking_events", b"booking_events:evt_1", "cache", "cache", "stream", None, 1012),
    Row("health_check", b"health_check:1640995200000", "cache", "cache", "string", 60, 1083),
    Row("health_test", b"health_test", "cache", "cache", "string", 10, 1223),
]  # fmt: skip

# Limit and period of each rate limit, the segment that shares it, and its line of the plan.
LIMITS = {
    "rate_user_booking_hourly": (5, 3600, "user_id", 326),
    "rate_user_booking_daily": (20, 86400, "user_id", 329),
    "rate_user_api_minute": (60, 60, "user_id", 332),
    "rate_ip_booking_hourly": (50, 3600, "ip_address", 336),
    "rate_ip_api_minute": (300, 60, "ip_address", 339),
    "rate_event_booking_minute": (100, 60, "event_id", 343),
    "rate_global_booking_second": (50, 1, "global", 347),
}

# Memory and number of keys, and its line of the plan (868-900).
BUDGETS = {
    "seat_lock": (500_000_000, 100_000, 874),
    "session": (200_000_000, 50_000, 882),
    "event": (300_000_000, 10_000, 890),
    "event_metrics": (150_000_000, 5_000, 898),
}

NEAR_MISSES = [
    b"", b":", b"seat_lock", b"seat_lock:", b"seat_lock:e", b"seat_lock:e:", b"seat_lock::s",
    b"seat_lock:evt_1:seat_2:x", b"seat_lock:evt_1:seat_2:", b"SEAT_LOCK:evt_1:seat_2",
    b" seat_lock:evt_1:seat_2", b"xseat_lock:evt_1:seat_2", b"seat_locks:evt_1:seat_2",
    b"event", b"event:", b"events:evt_1", b"event:evt_1:x", b"user_activity:usr_1:daily:today",
    b"user_activity:usr_1:daily:2024-12-311", b"user_activity:usr_1:weekly:2024-12-31",
    b"event_metrics:evt_1:daily:20241231", b"popular_events:", b"popular_event", b"popular_eventss",
    b"rate_limit:ip:host.example:api:minute", b"rate_limit:ip::api:minute",
    b"rate_limit:ip:10.0.0.1:api:hourly", b"rate_limit:user:usr_1:api:minute:",
    b"rate_limit:global:booking:minute", b"rate_limit:user:a:b:api:minute",
    b"event_subscribers", b"event_subscribers:evt_1:booking", b"system_metrics:previous",
    b"health_check:now", b"health_check:-", b"health_test:1", b"ip_reputation:localhost",
    b"analytics_cache:1", b"session",
]  # fmt: skip

# What a role may not send.
BOOKING_DENIED = ("flushdb", "flushall", "keys", "config", "config|get", "config|set", "debug",
                  "eval", "shutdown", "eval_ro", "function|load", "function|restore")  # fmt: skip

UNTRUSTED_DENIED = (
    *(word for word in BOOKING_DENIED if word != "config"),
    *("evalsha", "randomkey", "dbsize", "client|list", "swapdb", "migrate", "restore", "pubsub"),
    *("wait", "waitaof", "script|load"),
)


@pytest.fixture(scope="module")
def policies() -> Policies:
    return load(SHIPPED)


@pytest.fixture(scope="module")
def rules(policies: Policies) -> wire.Ruleset:
    return compiled(policies)


def name_of(rules: wire.Ruleset, key: bytes) -> str | None:
    index = rules.find_keyspace(key)
    return rules.keyspaces[index].name if index >= 0 else None


def test_they_load() -> None:
    """The shipped policies have no mistake."""
    assert complaints(SHIPPED) == []


@pytest.mark.parametrize("row", ROWS, ids=[row.keyspace for row in ROWS])
def test_every_key_has_its_keyspace(rules: wire.Ruleset, policies: Policies, row: Row) -> None:
    """A key of the application is found in its keyspace, with the cluster, kind, type and time."""
    assert name_of(rules, row.key) == row.keyspace
    compiled = rules.keyspaces[rules.find_keyspace(row.key)]
    own = policies.effective[row.keyspace]
    assert CLUSTERS[compiled.cluster] == own.cluster == row.cluster
    assert (own.kind, own.type, own.ttl.default) == (row.kind, row.type, row.seconds)
    assert own.evict is not None
    assert own.on_loss is not None
    assert own.value.max_bytes is not None
    assert own.value.is_json == (row.type == "json" or row.keyspace in JSON_LISTS)


def test_every_keyspace_has_a_row(policies: Policies) -> None:
    """No keyspace is shipped that no key is tried for."""
    assert set(policies.keyspaces) == {row.keyspace for row in ROWS}


def test_the_seven_rate_limits(policies: Policies) -> None:
    """Each limit of the plan is exact, and counted by all sidecars together."""
    assert {name for name, own in policies.keyspaces.items() if own.rate} == set(LIMITS)
    for name, (amount, seconds, per, _) in LIMITS.items():
        own = policies.effective[name]
        (limit,) = own.rate
        assert limit.limit == (amount, seconds)
        assert own.ttl.max == own.ttl.default == seconds
        assert (limit.per, limit.algorithm, limit.scope) == (per, "window", "shared")
        assert limit.commands == ("INCR", "INCRBY")


def test_the_budgets(policies: Policies) -> None:
    """The four classes of the plan's memory have their figures, and no value breaks them."""
    held = {name: own.memory for name, own in policies.effective.items() if own.memory.budget}
    assert set(held) == set(BUDGETS)
    for name, (size, items, _) in BUDGETS.items():
        assert (held[name].budget, held[name].items) == (size, items)
        assert (policies.effective[name].value.max_bytes or 0) <= size / items


def test_collections_are_bounded(policies: Policies) -> None:
    """The top hundred, the last thousand roughly, and every list that strangers can make grow."""
    held = {name: own.collection for name, own in policies.effective.items()}
    assert (held["popular_events"].max_items, held["popular_events"].keep) == (100, "highest")
    booked = held["booking_events"]
    assert (booked.max_items, booked.keep, booked.exact) == (1000, "newest", False)
    for name, own in policies.effective.items():
        if own.type in ("list", "zset", "stream") and name not in FOLLOWING:
            assert own.collection.max_items is not None, name


def test_the_shares_of_postgres_are_not_given_twice(policies: Policies) -> None:
    """While Redis is away the keyspaces that read PostgreSQL have all of its budget, not more."""
    shares = [own.fallback.share or 0 for own in policies.effective.values()]
    assert sum(shares) == pytest.approx(1)
    for name, own in policies.effective.items():
        assert (own.fallback.share is not None) == (own.fallback.reads == "origin"), name
        assert not own.security or own.freshness.stale_if_error is None, name


@pytest.mark.parametrize("key", NEAR_MISSES)
def test_near_misses_have_no_keyspace(rules: wire.Ruleset, key: bytes) -> None:
    """A key that is nearly one of the application's has no keyspace and keeps its name."""
    assert name_of(rules, key) is None
    assert rules.upstream_name(key) == key


def test_keys_of_an_event_share_a_slot(rules: wire.Ruleset) -> None:
    """All that one script touches carries the event in braces, so that a cluster runs it."""
    for key in (b"seat_lock:evt_1:seat_2", b"lock_queue:evt_1:seat_2", b"user_locks:usr_1:evt_1",
                b"event_availability:evt_1"):  # fmt: skip
        assert rules.upstream_name(key) == key.replace(b"evt_1", b"{evt_1}")
    assert rules.upstream_name(b"event:evt_1") == b"event:evt_1"


def test_what_must_not_be_lost_is_not_evicted(policies: Policies) -> None:
    """Locks and state live on the nodes that evict nothing, and the governor leaves them."""
    durable = {name: own for name, own in policies.effective.items() if own.durable}
    assert {"seat_lock", "session", "user_activity", "cart"} <= set(durable)
    for name, own in durable.items():
        assert (own.cluster, own.evict, own.reads) == ("locks", "never", "primary"), name


def test_the_grammar_is_the_applications(policies: Policies) -> None:
    """Every keyspace takes 512 bytes of the same characters."""
    for own in policies.effective.values():
        assert own.key_grammar.max_bytes == 512
        assert own.key_grammar.characters == "A-Za-z0-9:_-"


def test_roles(rules: wire.Ruleset) -> None:
    """The default role is as Redis, booking lacks the dangerous ones, strangers get less."""
    roles = {role.name: role for role in rules.roles}
    assert next(iter(roles)) == "default"
    assert set(roles) == {"default", "admin", "booking", "untrusted"}
    assert roles["default"].allowed == b"\1" * len(rules.commands)
    for word in BOOKING_DENIED:
        assert not roles["booking"].allowed[INDEX[word.encode()]], word
    # CONFIG HELP, which tells nothing, keeps the word CONFIG open.
    for word in UNTRUSTED_DENIED:
        assert not roles["untrusted"].allowed[INDEX[word.encode()]], word
    for word in ("get", "set", "hgetall", "xadd", "auth", "hello", "ping"):
        assert all(role.allowed[INDEX[word.encode()]] for role in rules.roles), word
    limits = roles["untrusted"].limits
    assert (limits.arguments, limits.argument_bytes, limits.inline_bytes) == (1024, 1 << 20, 4096)
    assert limits.key_bytes == 512
    assert not roles["untrusted"].other_channels


# Few bytes that make a node allocate much or keep it busy.
EXPENSIVE = [
    b"SETRANGE k 536870911 x", b"SETBIT b 4294967295 1", b"SRANDMEMBER s -20000000",
    b"HRANDFIELD h -20000000 WITHVALUES", b"ZRANDMEMBER z -20000000", b"LRANGE l 0 -1",
    b"ZRANGE z 0 -1", b"ZRANGEBYSCORE z -inf +inf", b"HSCAN h 0 COUNT 100000",
    b"SSCAN s 0 MATCH *a*b*c*d*e", b"BITFIELD b SET u8 #536870911 1", b"LPOS l v COUNT 0",
    b"ZUNION 1 z", b"SUNION s s", b"SINTERCARD 2 s s", b"SDIFFSTORE d s s",
    b"BITOP AND d k k", b"LCS a b", b"SORT l", b"KEYS *", b"GET " + b"k" * 513,
]  # fmt: skip


@pytest.mark.parametrize("line", EXPENSIVE)
def test_strangers_cannot_ask_for_much(rules: wire.Ruleset, line: bytes) -> None:
    """The role untrusted is refused what costs a node much, and default is not."""
    for role, refused in (("untrusted", True), ("default", False)):
        side = Stage(rules).client(role)
        side.receive_data(line + b"\r\n", 0.0)
        assert side.data_to_send().startswith((b"-POLICY", b"-NOPERM")) == refused


def numbered(text: str) -> tuple[str, list[str]]:
    """Return a statement with $1 for each parameter that has a name, and the names."""
    names = sql.parameters(text)
    for number, name in enumerate(names, 1):
        text = re.sub(rf"(?<!:):{name}\b", f"${number}", text)
    return text, names


# A value for each segment by which rows are read.
SEGMENTS = {"event_id": "evt_1", "venue_id": "venue_1", "org_id": "org_1", "user_id": "usr_1",
            "seat_id": "seat_1"}  # fmt: skip

# What a copy of a row holds, as the plan draws it; of an event as its code writes it.
FIELDS = {
    "event_availability": "field value",
    "user_locks": "value",
    "lock_queue": "value",
    "user_prefs": "favorite_venues notification_settings payment_methods booking_limits "
    "accessibility_needs last_updated",
    "event": "title venue_id organization_id event_date doors_open sales_start sales_end status "
    "capacity available_seats price_min price_max mongo_layout_id layout_hash layout_cdn_url "
    "last_updated",
    "venue": "name slug organization_id address capacity mongo_layout_id accessibility_features "
    "parking_info last_updated",
    "org": "name slug stripe_account_id payout_enabled fee_percentage venues active_events "
    "monthly_revenue last_updated",
    "user_perms": "organizations global_permissions last_updated",
}


@pytest.mark.integration
async def test_the_statements_fit_the_tables(postgres_server: Postgres, policies: Policies) -> None:
    """Every statement is understood by the sample's database, and reads what the plan draws."""
    dsn = await postgres_server.create_database("shipped")
    await sample.load(dsn, 1)
    await installing.run(dsn, (), apply=True, remove=False, locks=planning.locks_of(policies))
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        # Somebody who holds a seat, and somebody who waits for it.
        await connection.execute(
            "UPDATE seat_booking_state SET status = 'locked', locked_by = 'usr_1', locked_until ="
            " now() + interval '1 hour' WHERE event_id = 'evt_1' AND seat_id = 'seat_1';"
            "INSERT INTO sidecache_lock_queue (keyspace, name, owner, expires_at)"
            " VALUES ('seat_lock', ARRAY['evt_1', 'seat_1'], 'usr_2', 'infinity')"
        )
        for name, own in policies.effective.items():
            if own.write.sql is not None:
                await connection.prepare(numbered(own.write.sql)[0])
            if own.restore is not None:
                (first, *_) = await connection.fetch(own.restore.sql)
                assert set(first.keys()) - {"value", "ttl"} == set(own.key.names), name
                assert first["value"]
            if own.origin is not None:
                text, parameters = numbered(own.origin.read)
                rows = await connection.fetch(text, *(SEGMENTS[part] for part in parameters))
                assert list(rows[0].keys()) == FIELDS[name].split()
                assert len(rows) == 1 or own.origin.max_rows > 1
                assert await connection.fetch(text, *("nobody" for _ in parameters)) == []
            tables = [(rule.table, rule.key) for rule in own.invalidate]
            if own.lock is not None and own.lock.table is not None:
                tables.append((own.lock.table, own.lock.key))
            for table, columns in tables:
                await connection.prepare(f"SELECT {', '.join(columns.values())} FROM {table}")
    finally:
        await connection.close(timeout=5)
    await postgres_server.drop_database("shipped")
    assert {name for name, own in policies.effective.items() if own.origin} == set(FIELDS)


def test_editors_find_the_schema() -> None:
    """Each file names the schema in its first line."""
    for file in SHIPPED.glob("*.yaml"):
        first = file.read_text("utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=policy.schema.json", file.name


def test_they_are_in_the_package() -> None:
    """What is installed carries the policies, the schema and the sample's tables."""
    names = {entry.name for entry in resources.files("proxy.policies").iterdir()}
    assert {"defaults.yaml", "seats.yaml", "policy.schema.json", "schema.sql"} <= names
