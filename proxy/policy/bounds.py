"""Bounds on arguments, as policies name them, to what the data plane looks at.

`commands: bounds` of a keyspace or a role; the compiler and `duties` ask. What each bound counts is
said in `blocks.BOUNDS`. A bound of a keyspace concerns commands that name a key of it, so those of
SCAN and KEYS have a meaning for roles only.
"""

from collections.abc import Iterable, Mapping

from proxy import errors
from proxy.policy.blocks import CommandRights
from proxy.wire.rules import Bound, BoundKind, Command

_Place = tuple[BoundKind, int]

_OPTIONS = {b"scan": 2, b"hscan": 3, b"sscan": 3, b"zscan": 3}


def _among_options(kind: BoundKind) -> Mapping[bytes, _Place]:
    return {name: (kind, at) for name, at in _OPTIONS.items()}


# The commands of each bound: what is looked at, and where.
_TABLE: Mapping[str, Mapping[bytes, _Place]] = {
    "SCAN COUNT": _among_options(BoundKind.COUNT),
    "SCAN MATCH": {
        **_among_options(BoundKind.MATCH_BYTES),
        b"keys": (BoundKind.WORD_BYTES, 1),
    },
    "MATCH stars": {
        **_among_options(BoundKind.MATCH_STARS),
        b"keys": (BoundKind.WORD_STARS, 1),
    },
    "LRANGE span": {b"lrange": (BoundKind.SPAN, 2)},
    "ZRANGE span": {
        b"zrange": (BoundKind.RANGE, 2),
        b"zrangestore": (BoundKind.RANGE, 3),
        b"zrevrange": (BoundKind.SPAN, 2),
        b"zrangebyscore": (BoundKind.LIMITED, 2),
        b"zrevrangebyscore": (BoundKind.LIMITED, 2),
        b"zrangebylex": (BoundKind.LIMITED, 2),
        b"zrevrangebylex": (BoundKind.LIMITED, 2),
    },
    "SETRANGE offset": {b"setrange": (BoundKind.NUMBER, 2)},
    "SETBIT offset": {b"setbit": (BoundKind.NUMBER, 2)},
    "BITFIELD offset": {b"bitfield": (BoundKind.BITS, 2), b"bitfield_ro": (BoundKind.BITS, 2)},
    "SRANDMEMBER count": {b"srandmember": (BoundKind.MAGNITUDE, 2)},
    "HRANDFIELD count": {b"hrandfield": (BoundKind.MAGNITUDE, 2)},
    "ZRANDMEMBER count": {b"zrandmember": (BoundKind.MAGNITUDE, 2)},
    "LPOS count": {b"lpos": (BoundKind.POSITIONS, 3)},
}


def of(rights: CommandRights, owner: str, indexes: Mapping[bytes, int]) -> tuple[Bound, ...]:
    """Return the bounds of a keyspace or a role, which owner calls by its name.

    indexes are those of the rows of commands, by name.
    """
    return tuple(
        Bound(indexes[command], kind, at, limit, errors.over_bound(owner, name, limit))
        for name, limit in rights.bounds.items()
        for command, (kind, at) in _TABLE[name].items()
        if command in indexes
    )


def bounded(bounds: Iterable[str], row: Command) -> bool:
    """Return whether a command has one of the bounds."""
    return any(row.name in _TABLE[name] for name in bounds)
