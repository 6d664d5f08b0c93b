"""For how long a lock is asked for."""

import time
from pathlib import Path

import pytest

from proxy import errors
from proxy.handlers.terms import LONGEST, bounded, time_of
from proxy.wire import rules
from tests.handlers.backed_desk import plan
from tests.policy.rulebook import Folder


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("NX", 60.0), ("NX EX 5", 5.0), ("px 1500 nx", 1.5), ("NX PX 1", 0.001),
        ("NX PXAT 1", 0.001),
    ],
)  # fmt: skip
def test_a_time(options: str, seconds: float) -> None:
    """Said in one of four ways, or that of the policy; what is over already is a moment."""
    assert time_of(options.encode().split(), plan()) == seconds
    until = b"%d" % (time.time() + 100)
    found = time_of([b"EXAT", until, b"NX"], plan())
    assert isinstance(found, float)
    assert 98 < found < 101


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("EX 5", errors.lock_refused("user", "command")),
        ("NX GET", errors.lock_refused("user", "command")),
        ("NX EX", errors.SYNTAX), ("NX EX 5 PX 5", errors.SYNTAX),
        ("NX EX x", errors.NOT_AN_INTEGER), ("NX EX 0", errors.invalid_expire("set")),
        (f"NX EX {round(LONGEST) + 1}", errors.invalid_expire("set")),
    ],
)  # fmt: skip
def test_no_time(options: str, line: bytes) -> None:
    """What takes no lock, or for no time, is an error."""
    assert time_of(options.encode().split(), plan()) == line


def test_the_policy_bounds_it(tmp_path: Path) -> None:
    """At least and at most as long as it says."""
    text = "keyspaces:\n  k: {key: k, kind: lock, ttl: {min: 2s, default: 5s, max: 9s}}\n"
    ruleset = Folder(tmp_path).compile(text)
    assert isinstance(ruleset.keyspaces[0], rules.Keyspace)
    found = [bounded(ruleset, plan(), seconds) for seconds in (1.0, 7.0, 99.0)]
    assert found == [2.0, 7.0, 9.0]
