"""Plans as plain values."""

from pathlib import Path

from proxy import wire
from proxy.plans import LEASE, NONE, Age, beside_which, companion, plans_in
from proxy.policy import compiler

SHIPPED = Path(__file__).parents[1] / "policies"


def test_a_key_is_made_of_its_segments() -> None:
    """What a row says gives the client's key back."""
    ruleset, _ = compiler.from_files(SHIPPED, ("locks", "cache"))
    plans = plans_in(ruleset).by_keyspace.values()
    draft = next(plan for plan in plans if plan.name == "draft_booking")
    assert draft.key_of({"booking_id": "bkg_1"}) == b"draft_booking:bkg_1"


def test_redis_keeps_an_entry_for_the_longer_of_both_windows() -> None:
    """Stale while it is fetched and stale while PostgreSQL is away share one time."""
    assert Age(stale_ms=30_000, error_ms=600_000).window_ms == 600_000
    assert Age().window_ms == 0


def test_rules_without_plans_have_none() -> None:
    """A ruleset that was made by hand says nothing about PostgreSQL."""
    ruleset, _ = compiler.from_files(None, ("cache",))
    assert isinstance(ruleset, wire.Ruleset)
    assert plans_in(ruleset).by_keyspace == NONE.by_keyspace


def test_a_companion_has_the_slot_of_its_key() -> None:
    """Beside a key with a hash tag under the same tag, else the whole name is the tag."""
    for name, lease in {
        b"event:1": b"sidecache:lease:{event:1}",
        b"seats:{a}:all": b"sidecache:lease:seats:{a}:all",
        b"a}b": None,
        b"{}b": None,
        b"a{b": b"sidecache:lease:{a{b}",
    }.items():
        found = companion(LEASE, name)
        assert found == lease
        if found is not None:
            assert wire.key_slot(found) == wire.key_slot(name)
            assert beside_which(found) == name
    assert beside_which(b"sidecache:none:{event:1}") == b"event:1"
    assert beside_which(b"event:1") == b"event:1"
