"""Which rules of a keyspace a command has to do with: one byte of flags per command.

The compiler asks for it, the data plane looks at nothing else before it lets a command pass. A
command without a flag costs no more than in a keyspace without rules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from proxy.effects import ANY, BINDING, TYPE_BITS
from proxy.policy.blocks import MODES, Trial
from proxy.policy.bounds import bounded
from proxy.policy.model import Keyspace
from proxy.wire.rules import Command, Duty, Grows, KeyKind, Leaves, Makes, Rule, Time

# Which field of a keyspace says how seriously a rule is taken.
_BLOCKS: Mapping[Rule, str] = {
    Rule.KEY_GRAMMAR: "key_grammar",
    Rule.COMMANDS: "commands",
    Rule.TYPE: "type",
    Rule.BOUNDS: "commands",
    Rule.VALUE: "value",
    Rule.TTL: "ttl",
    Rule.COLLECTION: "collection",
}


def trials(own: Keyspace) -> list[Trial]:
    """Return how seriously each rule is taken, in the order of `wire.rules.Rule`.

    Of `rate`, each limit says it for itself.
    """
    return [own.trial(_BLOCKS[rule]) if rule in _BLOCKS else MODES["enforce"] for rule in Rule]


class _Said(NamedTuple):
    """All that a keyspace says of which commands its rules concern; many say the same."""

    in_force: tuple[Duty, ...]
    type: str | None
    absent: str  # what becomes of a key without a time
    refresh: str
    bounds: frozenset[str]
    bound: bool  # writes go with their connections


class Duties:
    """The flags of keyspaces, worked out once for all that say the same."""

    def __init__(self, rows: Sequence[Command]) -> None:
        self._rows = rows
        self._known: dict[_Said, bytes] = {}

    def of(self, own: Keyspace) -> bytes:
        """Return the flags of a keyspace, one byte per command of the table."""
        in_force = tuple(duty for duty, applies in _IN_FORCE.items() if applies(own))
        said = _Said(
            in_force,
            own.type,
            own.ttl.absent,
            own.ttl.refresh,
            frozenset(own.commands.bounds),
            own.bound is not None,
        )
        if said not in self._known:
            self._known[said] = bytes(
                sum(duty for duty in in_force if _WHEN[duty](said, row)) for row in self._rows
            )
        return self._known[said]


def _of_another_type(said: _Said, row: Command) -> bool:
    bit = TYPE_BITS[said.type] if said.type is not None else ANY
    # Of what is carried the keyspace that it comes from says the type.
    return row.makes is Makes.CARRIED or not (bit & row.types[0] and bit & row.types[1])


def _carries_a_value(said: _Said, row: Command) -> bool:
    return (
        row.values.first != 0 or row.members.first != 0
        or row.leaves != Leaves.WHOLE or row.makes in (Makes.FIRST, Makes.SECOND, Makes.CARRIED)
    )  # fmt: skip


def _has_to_do_with_time(said: _Said, row: Command) -> bool:
    # What is carried brings a time along, which may be too long.
    makes = row.makes is Makes.CARRIED or (
        row.makes is not Makes.NOTHING and said.absent != "allow"
    )
    return makes or row.time is not Time.UNSAID or _starts_anew(said, row)


def _starts_anew(said: _Said, row: Command) -> bool:
    refresh = said.refresh
    return row.touches and (refresh == "on_read" or (refresh == "on_write" and row.write))


def _bounds_times(own: Keyspace) -> bool:
    ttl = own.ttl
    return bool(ttl.default or ttl.min or ttl.max or ttl.absent == "reject")


def _adds(said: _Said, row: Command) -> bool:
    return row.grows is not Grows.NOTHING


def _is_bounded(said: _Said, row: Command) -> bool:
    return bounded(said.bounds, row)


def _is_handed_over(said: _Said, row: Command) -> bool:
    return row.name in BINDING if said.bound else row.keys.kind is not KeyKind.NONE


_IN_FORCE: Mapping[Duty, Callable[[Keyspace], bool]] = {
    Duty.BOUNDS: lambda own: bool(own.commands.bounds),
    Duty.TYPE: lambda own: own.type is not None,
    Duty.VALUE: lambda own: bool(
        own.value.max_bytes or own.collection.max_member_bytes or own.judged
    ),
    Duty.RATE: lambda own: bool(own.rate),
    Duty.TTL: _bounds_times,
    Duty.COLLECTION: lambda own: own.collection.max_items is not None,
    Duty.ORIGIN: lambda own: own.backed or own.bound is not None,
}

_WHEN: Mapping[Duty, Callable[[_Said, Command], bool]] = {
    Duty.BOUNDS: _is_bounded,
    Duty.TYPE: _of_another_type,
    Duty.VALUE: _carries_a_value,
    # Which commands count is said by each limit for itself.
    Duty.RATE: lambda said, row: True,
    Duty.TTL: _has_to_do_with_time,
    Duty.COLLECTION: _adds,
    Duty.ORIGIN: _is_handed_over,
}
