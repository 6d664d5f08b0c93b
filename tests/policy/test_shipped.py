"""The policies that are shipped: the booking application's keys, each in its keyspace."""

from importlib import resources

import pytest

from proxy import wire
from proxy.commands import INDEX
from proxy.policy.model import Policies
from tests.policy.rulebook import CLUSTERS, SHIPPED, compiled, complaints, load

FINGERPRINT = b"9f86d081884c7d659a2feaa0c55ad015"

# Keyspace, a key of it, its cluster, its time to live in seconds.
EXAMPLES = [
    ("seat_lock", b"seat_lock:evt_abc:seat_1", "locks", 600),
    ("user_locks", b"user_locks:usr_abc123:evt_1", "locks", 900),
    ("event_availability", b"event_availability:evt_1", "locks", 30),
    ("lock_queue", b"lock_queue:evt_1:seat_2", "locks", 300),
    ("session", b"session:sess_ghi789", "locks", 3600),
    ("user_activity", b"user_activity:usr_1:daily:2024-12-31", "locks", 86400),
    ("user_prefs", b"user_prefs:usr_1", "cache", 1800),
    ("cart", b"cart:usr_1:evt_1", "locks", 1800),
    ("draft_booking", b"draft_booking:bkg_def456", "locks", 900),
    ("event", b"event:evt_1", "cache", 300),
    ("venue", b"venue:venue_abc123", "cache", 1800),
    ("events_search", b"events_search:" + FINGERPRINT, "cache", 600),
    ("org", b"org:org_def456", "cache", 900),
    ("user_perms", b"user_perms:usr_1", "cache", 1800),
    ("popular_events", b"popular_events", "cache", None),
    ("rate_user_booking_hourly", b"rate_limit:user:usr_1:booking:hourly", "cache", 3600),
    ("rate_user_booking_daily", b"rate_limit:user:usr_1:booking:daily", "cache", 86400),
    ("rate_user_api_minute", b"rate_limit:user:usr_1:api:minute", "cache", 60),
    ("rate_ip_booking_hourly", b"rate_limit:ip:192.168.1.100:booking:hourly", "cache", 3600),
    ("rate_ip_api_minute", b"rate_limit:ip:2001:db8::1:api:minute", "cache", 60),
    ("rate_event_booking_minute", b"rate_limit:event:evt_1:booking:minute", "cache", 60),
    ("rate_global_booking_second", b"rate_limit:global:booking:second", "cache", 1),
    ("user_risk", b"user_risk:usr_1", "cache", 3600),
    ("ip_reputation", b"ip_reputation:10.0.0.1", "cache", 7200),
    ("device", b"device:fp_xyz789", "cache", 86400),
    ("ws_connections", b"ws_connections:usr_1", "locks", 7200),
    ("event_subscribers", b"event_subscribers:evt_1:seat_updates", "locks", 3600),
    ("notifications", b"notifications:usr_1", "locks", 604800),
    ("payment_intent", b"payment_intent:pi_stripe_123", "cache", 900),
    ("checkout_session", b"checkout_session:cs_test_1", "cache", 900),
    ("user_payment_methods", b"user_payment_methods:usr_1", "cache", 3600),
    ("event_metrics", b"event_metrics:evt_1:daily:2024-12-31", "cache", 86400),
    ("org_dashboard", b"org_dashboard:org_1:daily:2024-12-31", "cache", 1800),
    ("system_metrics", b"system_metrics:current", "cache", 60),
    ("booking_events", b"booking_events:evt_1", "cache", None),
    ("health_check", b"health_check:1640995200000", "cache", 60),
    ("health_test", b"health_test", "cache", 10),
]

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
    b"event_subscribers:evt_1", b"event_subscribers:evt_1:booking", b"system_metrics:previous",
    b"health_check:now", b"health_check:-", b"health_test:1", b"ip_reputation:localhost",
    b"analytics_cache:1", b"session",
]  # fmt: skip

# What a role may not send.
BOOKING_DENIED = ("flushdb", "flushall", "keys", "config", "config|get", "config|set", "debug",
                  "eval", "shutdown")  # fmt: skip

UNTRUSTED_DENIED = (
    *(word for word in BOOKING_DENIED if word != "config"),
    *("evalsha", "randomkey", "dbsize", "client|list", "swapdb", "migrate", "restore", "pubsub"),
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


@pytest.mark.parametrize(("name", "key", "cluster", "ttl"), EXAMPLES)
def test_every_key_has_its_keyspace(
    rules: wire.Ruleset, policies: Policies, name: str, key: bytes, cluster: str, ttl: float | None
) -> None:
    """A key of the application is found in its keyspace, on its cluster, with its time to live."""
    assert name_of(rules, key) == name
    assert CLUSTERS[rules.keyspaces[rules.find_keyspace(key)].cluster] == cluster
    assert policies.effective[name].ttl.default == ttl


def test_every_keyspace_has_an_example(policies: Policies) -> None:
    """No keyspace is shipped that no key is tried for."""
    assert set(policies.keyspaces) == {name for name, *_ in EXAMPLES}


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
    """The default role is as Redis, booking lacks the dangerous seven, strangers get less."""
    roles = {role.name: role for role in rules.roles}
    assert next(iter(roles)) == "default"
    assert set(roles) == {"default", "booking", "untrusted"}
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


def test_editors_find_the_schema() -> None:
    """Each file names the schema in its first line."""
    for file in SHIPPED.glob("*.yaml"):
        first = file.read_text("utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=policy.schema.json", file.name


def test_they_are_in_the_package() -> None:
    """What is installed carries the policies, the schema and the sample's tables."""
    names = {entry.name for entry in resources.files("proxy.policies").iterdir()}
    assert {"defaults.yaml", "seats.yaml", "policy.schema.json", "schema.sql"} <= names
