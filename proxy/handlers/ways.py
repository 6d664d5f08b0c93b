"""What a keyspace that PostgreSQL stands behind does with each command: one table.

`backed` reads it for commands that are not answered by the data plane alone. Which writes
PostgreSQL is told of is said by the policy: `through` and `told` have a row for each that they can
tell and refuse the others; for what is about the copy in Redis this table holds there too.
"""

from collections.abc import Mapping
from enum import Enum

from proxy import effects, wire
from proxy.commands import ROWS
from proxy.wire.rules import Command, KeyKind, Path


class Way(Enum):
    """How a command is answered."""

    LOOK_UP = "Redis first; PostgreSQL where it says that there is nothing"
    TIME = "as a look-up, without the window that clients do not know of"
    EACH = "key by key, each by the rule of its own keyspace"
    FETCH = "PostgreSQL fills what Redis lacks, then Redis answers"
    WHOLE = "Redis alone: it leaves nothing of what was there"
    SCRIPT = "Redis alone, and nobody knows what it reads; refused where PostgreSQL is written to"


_EACH = frozenset((b"mget", b"exists", b"del", b"unlink", b"mset"))

_WHOLE = frozenset((b"set", b"setex", b"psetex", b"msetex", b"restore"))

# What they name is said, not read.
_NO_DATA = frozenset((b"spublish", b"ssubscribe", b"sunsubscribe"))


def _way(row: Command) -> Way:
    if row.name in _EACH:
        return Way.EACH
    if row.looks_up:
        return Way.LOOK_UP
    if effects.tells_time(row.name):
        return Way.TIME
    if row.name in _WHOLE:
        return Way.WHOLE
    script = row.name.partition(b"_")[0] in (b"eval", b"evalsha", b"fcall")
    return Way.SCRIPT if script else Way.FETCH


WAYS: Mapping[bytes, Way] = {
    row.name: _way(row)
    for row in ROWS
    if row.keys.kind is not KeyKind.NONE
    and row.path is not Path.REFUSED
    and row.name not in _NO_DATA
}

# With them SET asks what was there.
_CONDITIONS = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL", b"IFEQ"))


def way_of(request: wire.Request) -> Way | None:
    """Return how a command is answered, None for one without data of keys."""
    if request.name == b"set":
        options = (word.upper() for word in request.arguments[3:])
        return Way.WHOLE if _CONDITIONS.isdisjoint(options) else Way.FETCH
    return WAYS.get(request.name)
