"""Which keys PostgreSQL stands behind, and what stands beside them in Redis."""

import pytest

from proxy import wire
from proxy.handlers.targets import target_of
from tests.handlers.backed_desk import BackedDesk, plan


async def test_a_key_has_its_lease_and_marker_in_its_slot() -> None:
    """Scripts about a key and what stands beside it run on one node."""
    rules = BackedDesk(plan()).server.router.ruleset
    target = target_of(rules, b"user:1")
    assert target is not None
    assert target.keys == (b"sidecache:lease:{user:1}", b"user:1", b"sidecache:none:{user:1}")
    assert len({wire.key_slot(key) for key in target.keys}) == 1
    assert target_of(rules, b"other:1") is None


async def test_a_key_of_odd_braces_has_nothing_beside_it() -> None:
    """Where no companion has the slot of a key, nobody pretends that one had."""
    target = target_of(BackedDesk(plan()).server.router.ruleset, b"user:}1{")
    assert target is not None
    assert target.lease is None
    with pytest.raises(AssertionError):
        _ = target.keys
