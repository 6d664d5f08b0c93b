"""The blocks about times to live and the size of collections, on their way to the data plane."""

import pytest

from proxy.policy.lifetimes import TTL
from proxy.wire.rules import Duty, Growth, Lifetime, Missing, Refresh
from tests.policy.rulebook import Folder
from tests.policy.test_duties import flags


@pytest.mark.parametrize(
    ("block", "absent"),
    [({}, "allow"), ({"default": "5s"}, "apply"), ({"default": "5s", "missing": "allow"}, "allow"),
     ({"missing": "reject"}, "reject"), ({"max": "5s"}, "allow")],
)  # fmt: skip
def test_what_happens_to_a_key_without_a_time(block: dict[str, str], absent: str) -> None:
    """A default is applied unless something else is said; without one keys may live for ever."""
    assert TTL.model_validate(block).absent == absent


def test_times_are_compiled_to_milliseconds(folder: Folder) -> None:
    """What the file says in any unit is whole milliseconds in the row; nothing said is 0."""
    rules = folder.compile("""
keyspaces:
  a: {key: "a:{x}", ttl: {default: 1m, min: 10ms, max: 1h, jitter: 10%, refresh: on_read}}
  b: {key: "b:{x}", type: list, collection: {max_items: 5, keep: oldest}}
""")
    assert rules.keyspaces[0].lifetime == Lifetime(
        60_000, 10, 3_600_000, 0.1, Missing.APPLY, Refresh.ON_READ
    )
    assert rules.keyspaces[1].lifetime == Lifetime()
    assert rules.keyspaces[1].growth == Growth(5, True, True)


def test_only_what_can_say_or_miss_a_time_is_looked_at() -> None:
    """Reads cost nothing unless they slide the time, nor writes in a keyspace that only bounds."""
    assert flags(b"set", ttl={"default": "5s"}) == Duty.TTL
    assert flags(b"hset", ttl={"default": "5s"}) == Duty.TTL
    assert flags(b"get", ttl={"default": "5s"}) == 0
    assert flags(b"get", ttl={"default": "5s", "refresh": "on_read"}) == Duty.TTL
    assert flags(b"get", ttl={"default": "5s", "refresh": "on_write"}) == 0
    assert flags(b"ttl", ttl={"default": "5s", "refresh": "on_read"}) == 0
    assert flags(b"hset", ttl={"max": "5s"}) == 0
    assert flags(b"expire", ttl={"max": "5s"}) == Duty.TTL
    assert flags(b"zadd", collection={"max_items": 5}) == Duty.COLLECTION
    assert flags(b"zrem", collection={"max_items": 5}) == 0
