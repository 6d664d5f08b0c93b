"""What is wrong with a key beside its row."""

import pytest

from proxy.control.comparing import Held, what_is_wrong
from proxy.origin.render import Value
from proxy.plans import Age, Detour, Plan, Statement, Writing
from proxy.wire.rules import Lifetime

ROW = Value("string", b"a")


def plan(ttl_ms: int = 1000, *, written: bool = False) -> Plan:
    statement = Statement("k read", "SELECT 1", ())
    writing = Writing("through", statement, "replace", 1.0, 1, 0) if written else None
    return Plan(
        0, "k", (b"k:",), 0, "cache", "string", ttl_ms, 0.0, statement, (), 1,
        Age(stale_ms=500), writing, Detour(), None, None, 1.0, security=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("there", "value", "kind"),
    [
        (Held("string", 900, ROW), ROW, None),
        (Held("string", 900, Value("string", b"b")), ROW, "stale"),
        (Held("string", 900, ROW), None, "orphan"),
        (Held("hash", 900, Value("hash", {b"a": b"b"})), ROW, "type"),
        (Held("stream"), ROW, "type"),
        (Held("string", -1, ROW), ROW, "ttl"),
    ],
)
def test_what_is_wrong(there: Held, value: Value | None, kind: str | None) -> None:
    """The value, the row, the type or the time, in this order of what weighs more."""
    assert what_is_wrong(plan(), Lifetime(), there, value, told=True) == kind


def test_a_key_that_no_change_reaches_may_differ() -> None:
    """Until its time is over, which it must have; another type is wrong all the same."""
    other = Held("string", 900, Value("string", b"b"))
    assert what_is_wrong(plan(), Lifetime(), other, ROW, told=False) is None
    assert what_is_wrong(plan(), Lifetime(), other, None, told=False) is None
    forever = other._replace(left_ms=-1)
    assert what_is_wrong(plan(), Lifetime(), forever, ROW, told=False) == "ttl"
    assert what_is_wrong(plan(), Lifetime(), Held("list", 9), ROW, told=False) == "type"


def test_a_time_is_as_long_as_anybody_may_ask_for() -> None:
    """The policy's longest and the window; without one only where clients write no times."""
    long = Held("string", 5000, ROW)
    for lifetime, written, kind in [
        (Lifetime(longest=4000), False, None),
        (Lifetime(longest=3000), False, "ttl"),
        (Lifetime(), False, None),
        (Lifetime(), True, "ttl"),
    ]:
        found = what_is_wrong(plan(written=written), lifetime, long, ROW, told=True)
        assert found == kind
    without = plan(ttl_ms=0)
    assert what_is_wrong(without, Lifetime(), Held("string", -1, ROW), ROW, told=True) is None
