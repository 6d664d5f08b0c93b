"""On what terms locks are asked for: how many, for how long, and how much they may say.

Used by `locks`, `lock_runs` and `seats`.

For how long a lock is held PostgreSQL measures, by its clock. A date (EXAT, PXAT, EXPIREAT) is read
by the clock of this host, and EXPIRETIME tells one by it. That is meant: the application works it
out by the clock of the pod that it shares with the sidecar, so the difference is what it asks for,
however wrong both are.
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


# Options of SET without a word behind them, those of newer nodes with one, and what are conditions
# of both. To a lock only NX means something.
_PLAIN = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL"))
_COMPARING = frozenset((b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"))
_CONDITIONS = _COMPARING | {b"NX", b"XX"}

# What EXPIRE may depend on, which means nothing to a lock.
_LIMITS = frozenset((b"NX", b"XX", b"GT", b"LT"))


def time_of(options: Sequence[bytes], plan: Plan) -> float | bytes:
    """Return for how many seconds SET takes a lock, or the error line of a SET that takes none.

    What Redis would refuse is refused in its words, before what only a lock does not take.
    """
    given = _options(options)
    if given is None:
        return errors.SYNTAX
    times = [(name, word) for name, word in given if name in OPTIONS]
    seconds = plan.ttl_ms / 1000
    if times:
        name, word = times[-1]
        number = integer(word)
        if number is None:
            return errors.NOT_AN_INTEGER
        unit, date = OPTIONS[name]
        seconds = number * unit / 1000 - (time.time() if date else 0)
        if number <= 0 or seconds > LONGEST:
            return errors.invalid_expire("set")
    if {name for name, _ in given} - OPTIONS.keys() != {b"NX"} or len(times) > 1:
        return errors.lock_refused(plan.name, "command")
    return max(seconds, 0.001)


def _options(options: Sequence[bytes]) -> list[tuple[bytes, bytes]] | None:
    """Return the options of SET, each with the word behind it; None where they are none."""
    given: list[tuple[bytes, bytes]] = []
    words = iter(options)
    for option in words:
        name = option.upper()
        word = b"" if name in _PLAIN else next(words, None)
        if word is None or not (name in _PLAIN or name in OPTIONS or name in _COMPARING):
            return None
        given.append((name, word))
    names = {name for name, _ in given}
    if len(names & {*OPTIONS, b"KEEPTTL"}) > 1 or len(names & _CONDITIONS) > 1:
        return None
    return given


def kept_for(words: Sequence[bytes], plan: Plan) -> float | bytes:
    """Return for how many seconds EXPIRE and its kin keep a lock, or the error line, as above."""
    name, limits = words[0].lower(), {word.upper() for word in words[3:]}
    unknown = next((word for word in words[3:] if word.upper() not in _LIMITS), None)
    if unknown is not None:
        return errors.unsupported_option(unknown)
    if b"NX" in limits and len(limits) > 1:
        return errors.NX_AND_OTHERS
    if {b"GT", b"LT"} <= limits:
        return errors.GT_AND_LT
    number = integer(words[2])
    if number is None:
        return errors.NOT_AN_INTEGER
    seconds = number * (0.001 if name.startswith(b"p") else 1.0)
    if seconds > LONGEST:
        return errors.invalid_expire(name.decode())
    if limits:
        return errors.lock_refused(plan.name, "command")
    return seconds - time.time() if name.endswith(b"at") else seconds


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
