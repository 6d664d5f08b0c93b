"""Where channels live, who may use them, and what notifications say."""

from pathlib import Path

import pytest

from proxy.handlers.channels import Channels, channels_of
from proxy.upstream.link import CHANNEL, PATTERN, SHARD
from tests.policy.rulebook import Folder
from tests.upstream.listening import push

LOCKS, CACHE = 0, 1
BOTH = (LOCKS, CACHE)

RULES = """
defaults: {cluster: cache}
keyspaces:
  seat_lock: {key: "seat_lock:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
channels:
  orders: {channel: "orders:{id}", cluster: locks, publish: [shop], subscribe: [shop, default]}
  news: {channel: "news:{topic}"}
  audit: {channel: "audit:{what}", subscribe: [shop]}
roles:
  shop: {}
  press: {channels: [news]}
"""
DEFAULT, SHOP, PRESS = 0, 1, 2
NAMES = [b"orders:1", b"news:x", b"audit:x", b"other"]


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Channels:
    return channels_of(Folder(tmp_path_factory.mktemp("rules")).compile(RULES), 2)


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        (b"orders:1", LOCKS), (b"news:x", CACHE), (b"seat_lock:e1:s1", LOCKS), (b"other", CACHE),
        (b"orders:", CACHE), (b"orders:1:2", CACHE),
    ],
)  # fmt: skip
def test_the_cluster_of_a_channel(channels: Channels, name: bytes, cluster: int) -> None:
    """That of its rule, else of the keyspace that its name fits, else the default one."""
    assert channels.cluster_of(name) == cluster
    assert channels.route(CHANNEL, name) == ((cluster,), name, False, None)
    assert channels.route(SHARD, name) == ((cluster,), name, False, None)


@pytest.mark.parametrize(
    ("role", "published", "subscribed"),
    [
        (DEFAULT, [b"news:x", b"audit:x", b"other"], [b"orders:1", b"news:x", b"other"]),
        (SHOP, NAMES, NAMES),
        (PRESS, [b"news:x"], [b"news:x"]),
    ],
)  # fmt: skip
def test_rights(
    channels: Channels, role: int, published: list[bytes], subscribed: list[bytes]
) -> None:
    """A channel's rule names roles, and a role names channels; both must agree."""
    assert [name for name in NAMES if channels.may_publish(role, name)] == published
    for kind in (CHANNEL, SHARD):
        allowed = [name for name in NAMES if channels.may_subscribe(role, kind, name)]
        assert allowed == subscribed


@pytest.mark.parametrize(
    ("role", "pattern", "allowed"),
    [
        (SHOP, b"*", True), (SHOP, b"a*", True), (DEFAULT, b"*", False), (DEFAULT, b"a*", False),
        (DEFAULT, b"audit:*", False), (DEFAULT, b"\\audit:*", False), (DEFAULT, b"?", False),
        (DEFAULT, b"b*", True), (DEFAULT, b"__keyevent@*", True), (DEFAULT, b"audition*", True),
        (DEFAULT, b"orders:*", True), (PRESS, b"news:*", True), (PRESS, b"news:x*", False),
        (PRESS, b"b*", False),
    ],
)  # fmt: skip
def test_patterns_open_no_way_around(
    channels: Channels, role: int, pattern: bytes, allowed: bool
) -> None:
    """What might match somebody else's channel is refused, but for a rule's own words."""
    assert channels.may_subscribe(role, PATTERN, pattern) is allowed


def test_notifications_name_keys(tmp_path: Path) -> None:
    """A role of some keys hears no notifications, by no pattern, unless a rule names them."""
    rules = Folder(tmp_path).compile("""
        keyspaces: {seat: {key: "seat:{id}"}}
        channels: {own: {channel: "__keyspace@0__:seat:{id}"}}
        roles: {few: {keys: ["seat:{id}"]}, one: {keyspaces: [seat]}}
    """)
    channels = channels_of(rules, 1)
    told = [(CHANNEL, b"__keyspace@0__:a"), (CHANNEL, b"__keyevent@0__:set"), (PATTERN, b"*"),
            (PATTERN, b"__key*")]  # fmt: skip
    assert all(channels.may_subscribe(0, kind, name) for kind, name in told)
    for role in (1, 2):
        assert not any(channels.may_subscribe(role, kind, name) for kind, name in told)
        assert channels.may_subscribe(role, CHANNEL, b"__keyspace@0__:seat:1")
        assert channels.may_subscribe(role, CHANNEL, b"other")
        assert channels.may_subscribe(role, PATTERN, b"news:*")


def test_patterns_are_subscribed_to_in_every_cluster(channels: Channels) -> None:
    """Any channel may fit, and each counts only where it lives."""
    route = channels.route(PATTERN, b"o*")
    assert route[:3] == (BOTH, b"o*", False)
    frame = push(b"pmessage", b"o*", b"orders:1", b"x")
    assert route.render is not None
    assert route.render(LOCKS, frame) == frame
    assert route.render(CACHE, frame) is None


@pytest.mark.parametrize(
    "pattern", [b"*", b"_*", b"__key*", b"__keyspace@0__:*", b"[_]_key*", b"?"]
)
def test_patterns_that_may_be_about_notifications(channels: Channels, pattern: bytes) -> None:
    """They are subscribed to at every primary."""
    assert channels.route(PATTERN, pattern).everywhere


def test_one_cluster_needs_no_look_at_messages(channels: Channels) -> None:
    """Where all channels live in one cluster, patterns pass as the node has them."""
    alone = Channels(channels._rules, 1)
    assert alone.route(PATTERN, b"o*") == ((0,), b"o*", False, None)


def test_notifications_of_a_key(channels: Channels) -> None:
    """The channel has the node's name for the key towards nodes, the client's towards clients."""
    name, shown = b"__keyspace@0__:seat_lock:e1:s1", b"__keyspace@0__:seat_lock:{e1}:s1"
    route = channels.route(CHANNEL, name)
    assert route[:3] == ((LOCKS,), shown, True)
    assert route.render is not None
    assert route.render(LOCKS, push(b"message", shown, b"set")) == push(b"message", name, b"set")
    pattern = b"__keyspace@0__:seat_lock:e1:*"
    route = channels.route(PATTERN, pattern)
    assert route[:3] == (BOTH, b"__keyspace@0__:*", True)
    assert route.render is not None
    frame = push(b"pmessage", b"__keyspace@0__:*", shown, b"set")
    assert route.render(LOCKS, frame) == push(b"pmessage", pattern, name, b"set")
    other = push(b"pmessage", b"__keyspace@0__:*", b"__keyspace@0__:seat_lock:{e2}:s1", b"set")
    assert route.render(LOCKS, other) is None


def test_notifications_of_an_event(channels: Channels) -> None:
    """The message is a key: the client's name for it, nothing for a key that is not a client's."""
    name = b"__keyevent@0__:expired"
    route = channels.route(CHANNEL, name)
    assert route[:3] == (BOTH, name, True)
    assert route.render is not None
    told = {key: route.render(LOCKS, push(b"message", name, key)) for key in (
        b"seat_lock:{e1}:s1", b"sidecache:lease", b"plain",
    )}  # fmt: skip
    assert told == {
        b"seat_lock:{e1}:s1": push(b"message", name, b"seat_lock:e1:s1"),
        b"sidecache:lease": None,
        b"plain": None,  # it lives in the other cluster
    }
