"""A key that PostgreSQL stands behind, with all that a handler asks of it.

Used by the handlers of such keys; one is made per Request, from the rules that judged it.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from proxy import errors, wire
from proxy.handlers.ageing import lengthened
from proxy.origin.batching import spelled
from proxy.plans import ABSENT, LEASE, Plan, companion, plans_in

_SPELLING = "a segment is not written as PostgreSQL prints it"


class Target(NamedTuple):
    """One key, and what stands beside it in its slot."""

    plan: Plan
    key: bytes  # as clients name it
    name: bytes  # as nodes do
    lease: bytes | None  # None: nothing can be put beside it, so nobody fills it
    marker: bytes | None

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Return lease, key and marker as the scripts of lua/ take them."""
        assert self.lease is not None
        assert self.marker is not None
        return (self.lease, self.name, self.marker)


def written_by(request: wire.Request) -> dict[bytes, Target]:
    """Return the targets of a write, by key; none of a command that writes nothing."""
    return targets_of(request) if writes(request) else {}


def writes(request: wire.Request) -> bool:
    return request.row >= 0 and request.ruleset.commands[request.row].write


def window_of(targets: Iterable[Target]) -> int:
    """Return by how many milliseconds keys live longer in Redis than clients say."""
    return max((target.plan.age.window_ms for target in targets), default=0)


def ending(targets: Iterable[Target]) -> list[bytes]:
    """Return the commands of one slot that end every fetch of such keys: one, or none.

    Whoever writes a key sends them along, so that what was read before is not put in its place.
    """
    beside = [key for target in targets if target.lease for key in (target.lease, target.marker)]
    return [wire.pack([b"UNLINK", *(key for key in beside if key)])] if beside else []


def followed(
    ruleset: wire.Ruleset, frames: Iterable[bytes], targets: Collection[Target]
) -> list[bytes]:
    """Return what rules send behind a write of such keys, as long in Redis as copies live.

    Behind it comes what ends every fetch of them.
    """
    window = window_of(targets)
    return [lengthened(ruleset, frame, window) for frame in frames] + ending(targets)


def target_of(ruleset: wire.Ruleset, key: bytes) -> Target | None:
    """Return what rules say of a key, or None where PostgreSQL has nothing to do with it."""
    plan = plans_in(ruleset).by_keyspace.get(ruleset.find_keyspace(key))
    if plan is None:
        return None
    name = ruleset.upstream_name(key)
    return Target(plan, key, name, companion(LEASE, name), companion(ABSENT, name))


def targets_of(request: wire.Request) -> dict[bytes, Target]:
    """Return the targets among the keys of a Request, by key, in the order of the command."""
    keys = request.keys if plans_in(request.ruleset).by_keyspace else ()
    if not keys:
        return {}
    words, found = request.arguments, {}
    for position in keys:
        target = target_of(request.ruleset, words[position])
        if target is not None:
            found[target.key] = target
    return found


def misspelled(targets: Iterable[Target]) -> bytes | None:
    """Return the error line for a key that no change of its row would ever reach."""
    for target in targets:
        if not spelled(target.plan, target.key):
            return errors.key_refused(target.plan.name, _SPELLING)
    return None
