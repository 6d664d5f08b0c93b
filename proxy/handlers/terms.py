"""On what terms locks are asked for: how many, for how long, and how much they may say.

Used by `locks`, `lock_runs` and `seats`.
"""

import time
from collections.abc import Sequence

from proxy import errors, wire
from proxy.handlers.ageing import OPTIONS
from proxy.handlers.connection import integer
from proxy.origin.render import CENTURY
from proxy.plans import Plan
from proxy.wire.rules import Rule

# Most locks that one command takes.
MOST = 100

# The longest that a lock is asked for.
LONGEST = CENTURY


def time_of(options: Sequence[bytes], plan: Plan) -> float | bytes:
    """Return for how many seconds SET takes a lock, or the error line of a SET that takes none."""
    words, seconds, conditional, timed = iter(options), plan.ttl_ms / 1000, False, False
    for word in words:
        name = word.upper()
        if name == b"NX":
            conditional = True
            continue
        if name not in OPTIONS:
            return errors.lock_refused(plan.name, "command")
        word = next(words, b"")
        if timed or not word:
            return errors.SYNTAX
        timed, number = True, integer(word)
        if number is None:
            return errors.NOT_AN_INTEGER
        unit, date = OPTIONS[name]
        seconds = number * unit / 1000 - (time.time() if date else 0)
        if number <= 0 or seconds > LONGEST:
            return errors.invalid_expire("set")
    if not conditional:
        return errors.lock_refused(plan.name, "command")
    return max(seconds, 0.001)


def bounded(ruleset: wire.Ruleset, plan: Plan, seconds: float) -> float:
    """Return how long a lock is held that is asked for so long: as the policy bounds times."""
    lifetime = ruleset.keyspaces[plan.keyspace].lifetime
    wanted = max(seconds, lifetime.shortest / 1000)
    return min(wanted, lifetime.longest / 1000 if lifetime.longest else LONGEST)


def oversized(ruleset: wire.Ruleset, plan: Plan, size: int) -> bytes | None:
    """Return the error line for a value of so many bytes that no command has named as one.

    What commands write plainly the data plane has judged.
    """
    rule = ruleset.keyspaces[plan.keyspace]
    if not 0 < rule.max_value_bytes < size:
        return None
    return rule.value_error if ruleset.breach(plan.keyspace, Rule.VALUE) else None
