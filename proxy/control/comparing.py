"""Whether a key in Redis is what PostgreSQL says, and what is wrong with it where it is not.

Used by `drift`. Both sides become the same kind of value (`origin.render`), and equal values are
equal to every reader.

Always true:
  * what cannot be compared now is no drift: a key that is gone, that somebody fetches, that has
    writes which PostgreSQL has not got, or of which PostgreSQL says nothing;
  * the row is read from the primary, so what is found is not how far a replica is behind;
  * what is found may be a change that is still on its way to Redis: it is drift only where it is
    there when everything that the row can show is applied, which is what `as_of` is for.
"""

from collections.abc import Callable
from typing import NamedTuple

from proxy import plans, resp, wire
from proxy.errors import OriginMisfit, OriginRefused
from proxy.origin.budget import BACKGROUND
from proxy.origin.render import Value, held
from proxy.origin.rows import Origin, clock, read_arguments, read_value
from proxy.plans import Plan, plans_in
from proxy.upstream.errands import Errands, Script
from proxy.wire.rules import Lifetime

HELD = Script("held")

# What can be wrong: another value, a row that is gone, another type, no time or one too long.
KINDS = ("stale", "orphan", "type", "ttl")

# Two clocks, and the way of an answer, in milliseconds.
SLACK_MS = 1000


class Held(NamedTuple):
    """What a key holds in Redis."""

    type: str
    left_ms: int = -1
    value: Value | None = None  # None for a type that no row makes


class Verdict(NamedTuple):
    """What a comparison came to."""

    kind: str | None  # one of KINDS; None: nothing is wrong
    held: Held
    # Milliseconds of the database's clock, behind everything that the row shows; 0 where nothing
    # is wrong, or no change of the row is told.
    as_of: int = 0

    def settled(self, reached: int) -> bool:
        """Return whether all that the row shows is in Redis, where all before a moment is."""
        return self.as_of == 0 or self.as_of < reached


# Tells of a keyspace and a key whether it has writes that PostgreSQL has not got.
Dirty = Callable[[Plan, bytes], bool]


class Comparer:
    """Between all clusters and PostgreSQL."""

    def __init__(self, router: wire.Router, errands: Errands, origin: Origin, dirty: Dirty) -> None:
        self._router = router
        self._errands = errands
        self._origin = origin
        self._dirty = dirty

    async def judge(self, plan: Plan, key: bytes) -> Verdict | None:
        """Return what is wrong with a key, given as clients name it; None: no telling now.

        Raises OriginBusy or OriginDown where PostgreSQL cannot be asked.
        """
        if self._dirty(plan, key) or plan.read is None:
            return None
        there = await self._look(plan, key)
        if there is None:
            return None
        try:
            arguments = read_arguments(plan, key)
            value = await read_value(self._origin, plan, arguments, BACKGROUND, primary=True)
        except (ValueError, OriginRefused, OriginMisfit):
            # What PostgreSQL cannot be asked about is nothing that it says.
            return None
        ruleset = self._router.ruleset
        told = any(
            ruleset.keyspaces[row.keyspace].name == plan.name
            for rows in plans_in(ruleset).by_table.values() for row in rows
        )  # fmt: skip
        lifetime = ruleset.keyspaces[ruleset.find_keyspace(key)].lifetime
        wrong = what_is_wrong(plan, lifetime, there, value, told=told)
        as_of = await clock(self._origin, BACKGROUND) if wrong and told else 0
        return Verdict(wrong, there, as_of)

    async def _look(self, plan: Plan, key: bytes) -> Held | None:
        name = self._router.ruleset.upstream_name(key)
        lease = plans.companion(plans.LEASE, name)
        keys = [name] if lease is None else [name, lease]
        reply = await self._errands.ask(HELD, plan.cluster, keys)
        if reply[:1] != b"*":
            return None
        kind, *rest = resp.decode(reply)
        word = bytes(kind).decode()
        if word in ("busy", "none"):
            return None
        if not rest:
            return Held(word)
        left, elements = rest
        return Held(word, int(left), held(word, [bytes(each) for each in elements]))


def what_is_wrong(
    plan: Plan, lifetime: Lifetime, there: Held, value: Value | None, *, told: bool
) -> str | None:
    """Return one of KINDS, or None. `told`: a change of its rows makes the key stale at once.

    Where it does not, keys differ from their rows until their time is over, as the policy allows.
    """
    if told and value is None:
        return "orphan"
    if value is not None and there.type != value.type:
        return "type"
    if told and there.value != value:
        return "stale"
    # Without a longest time a client may have asked for any, where it writes to Redis alone.
    longest = lifetime.longest or (plan.ttl_ms if plan.writing is not None else 0)
    if plan.ttl_ms and there.left_ms == -1:
        return "ttl"
    if longest and there.left_ms > longest + plan.age.window_ms + SLACK_MS:
        return "ttl"
    return None
