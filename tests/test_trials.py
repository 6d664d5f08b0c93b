"""Rules that warn tell of what they let through, once per look."""

import pytest

from proxy import wire
from proxy.trials import Trials
from proxy.wire.rules import RULES, Rule
from tests.wire.stage import keyspace, ruleset
from tests.wire.test_limits import row


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    told: list[dict[str, object]] = []
    monkeypatch.setattr("proxy.log.event", lambda level, name, **fields: told.append(fields))
    return told


def router(noted: bool) -> wire.Router:
    flags = bytes([noted] * len(RULES))
    return wire.Router(
        ruleset(keyspaces=(keyspace("cart", [b"cart"], noted=flags),)), wire.SlotMap([], [])
    )


def test_each_look_tells_what_came_since(lines: list[dict[str, object]]) -> None:
    """A line says how often a rule of a keyspace was broken since the last one."""
    place = router(noted=True)
    trials = Trials(place)
    place.ruleset.breaches.add(0, Rule.VALUE, 0, 3)
    trials.look()
    trials.look()
    place.ruleset.breaches.add(0, Rule.VALUE, 0, 2)
    trials.look()
    assert lines == [
        {"keyspace": "cart", "rule": "value", "commands": 3},
        {"keyspace": "cart", "rule": "value", "commands": 2},
    ]


def test_counts_that_new_rules_take_over_are_told_once(lines: list[dict[str, object]]) -> None:
    """A reload does not tell again what was told, and what came in between is told."""
    place = router(noted=True)
    trials = Trials(place)
    place.ruleset.breaches.add(0, Rule.VALUE, 0, 3)
    trials.look()
    fresh = router(noted=True).ruleset
    place.ruleset.breaches.follow(fresh.breaches, [0])
    place.ruleset = fresh
    fresh.breaches.add(0, Rule.VALUE, 0, 2)
    trials.look()
    assert [line["commands"] for line in lines] == [3, 2]


def test_what_only_counts_is_not_told(lines: list[dict[str, object]]) -> None:
    """A rule that observes, and what was refused, write no line."""
    place = router(noted=False)
    place.ruleset.breaches.add(0, Rule.VALUE, 0, 3)
    Trials(place).look()
    place = router(noted=True)
    place.ruleset.breaches.add(0, Rule.VALUE, wire.OUTCOMES.index("refused"), 3)
    Trials(place).look()
    assert lines == []


def test_a_limit_is_told_of_by_itself(lines: list[dict[str, object]]) -> None:
    """A rate limit that warns tells how many commands were beyond it, and whose limit it is."""
    limit = row(enforced=0, noted=True)
    quiet = row(enforced=0, owner="role app")
    space = keyspace("k", [b"k"], rates=(limit, quiet))
    place = wire.Router(ruleset(keyspaces=(space,)), wire.SlotMap([], []))
    trials = Trials(place)
    for rate in place.ruleset.rates:
        for _ in range(7):
            rate.take(b"a", 1.0)
    trials.look()
    trials.look()
    assert lines == [{"keyspace": "k", "rule": "rate", "limit": "5/min per key", "commands": 2}]
