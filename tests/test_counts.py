"""Tables of counters are lines with a label for each of their places."""

from proxy.counts import BREACHES, REQUESTS, Counts
from proxy.wire.rules import Rule
from tests.wire.model import frame
from tests.wire.stage import Stage, keyspace, ruleset


def test_a_breach_is_a_line() -> None:
    """A rule that was broken is named by keyspace, reason and what was done about it."""
    rules = ruleset(keyspaces=(keyspace("cart", [b"cart"]),))
    assert Counts(BREACHES, rules).render([(0, Rule.TTL, 2, 4)]) == (
        'sidecache_policy_breaches_total{keyspace="cart",reason="ttl",outcome="refused"} 4\n'
    )


def test_counts_move_to_the_rules_that_follow() -> None:
    """What is counted by old rules stands under the same names of the new ones."""
    stage = Stage(ruleset(keyspaces=(keyspace("cart", [b"cart"]),)))
    old, client = stage.router.ruleset, stage.client()
    new = ruleset(keyspaces=(keyspace("other", [b"other"]), keyspace("cart", [b"cart"])))
    client.receive_data(frame([b"GET", b"cart"]), 1.0)
    before, after = Counts(REQUESTS, old), Counts(REQUESTS, new)
    before.go_on_as(after, before.places_in(after))
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+OK\r\n", 1.0)
    assert [row[0] for row in new.counters.requests()] == [1]
