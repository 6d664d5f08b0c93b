"""Where the keys of a command are, for callers that are not in a hurry: COMMAND GETKEYS, explain.
And how clients name a key that a node names.

The data plane has its own finder, in C. Both follow the rules of the table's column `keys`, and
both are held against COMMAND GETKEYS of real servers.

Always true: where Redis might see other keys than we do, the answer is None, and a command of which
the keys are not certain is not sent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from proxy import wire
from proxy.commands import Row
from proxy.wire.rules import KeyKind

# Keys of the proxy itself begin so, in every cluster.
INTERNAL = b"sidecache:"


def find_keys(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    """Return the positions of the keys, or None where Redis might see others than we do.

    None is an answer, not a failure: what a node might read differently from us is not sent.
    """
    if not row.arity_fits(len(arguments)):
        return None
    return _FINDERS[row.keys.kind](row, arguments)


def _no_keys(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    return []


def _range(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    last = row.keys.last if row.keys.last >= 0 else len(arguments) + row.keys.last
    return list(range(row.keys.first, last + 1, row.keys.step))


def _numkeys(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    text = arguments[row.keys.first]
    # Redis reads some counts with atoi, which takes "2x" and " 2"; ours are plain digits. No
    # command has more words than ten digits can count.
    if not (text.isdigit() and len(text) <= 10) or (text[:1] == b"0" and text != b"0"):
        return None
    count, start = int(text), row.keys.first + 1
    end = start + count * row.keys.step
    if end > len(arguments) or (count == 0 and "scripting" not in row.groups):
        return None
    extra = [row.keys.last] if row.keys.last else []
    return extra + list(range(start, end, row.keys.step))


def _streams(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    options = _GROUP_OPTIONS if row.write else _STREAM_OPTIONS
    position = 1
    while position < len(arguments):
        word = arguments[position].upper()
        if word == b"STREAMS":
            break
        if word not in options:
            return None
        values = arguments[position + 1 : position + 1 + options[word]]
        # The command takes this STREAMS for an option's value, GETKEYS for the word before the
        # keys. Only behind GROUP it looks away.
        if word != b"GROUP" and b"STREAMS" in map(bytes.upper, values):
            return None
        position += 1 + options[word]
    # GETKEYS looks for STREAMS behind `GROUP group consumer`, wherever the options stand.
    if row.write and position < 4:
        return None
    names = len(arguments) - position - 1
    if names <= 0 or names % 2:
        return None
    return list(range(position + 1, position + 1 + names // 2))


_STREAM_OPTIONS = {b"COUNT": 1, b"BLOCK": 1}
_GROUP_OPTIONS = {**_STREAM_OPTIONS, b"GROUP": 2, b"NOACK": 0}


class _Stores(NamedTuple):
    """How a command is read that may store its result."""

    options: Mapping[bytes, int]  # other options with values, and how many
    stores: frozenset[bytes]
    reread: frozenset[bytes]  # options of which GETKEYS may take the value for an option,
    misread: frozenset[bytes]  # when it is one of these words


_SORT_OPTIONS = {b"LIMIT": 2, b"BY": 1, b"GET": 1}
_SORT = _Stores(
    _SORT_OPTIONS,
    stores=frozenset([b"STORE"]),
    reread=frozenset([b"STORE"]),
    misread=frozenset([b"STORE", *_SORT_OPTIONS]),
)
_GEO = _Stores(
    {b"COUNT": 1},
    stores=frozenset([b"STORE", b"STOREDIST"]),
    reread=frozenset([b"COUNT", b"STORE", b"STOREDIST"]),
    misread=frozenset([b"STORE", b"STOREDIST"]),
)


def _sort(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    return _stored(row, arguments, 2, _SORT)


def _georadius(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    # The options begin behind the words that the arity demands. GETKEYS begins at 5 for both
    # commands, where GEORADIUS has its unit.
    if row.arity == -6 and arguments[5].upper() in _GEO.stores:
        return None
    return _stored(row, arguments, -row.arity, _GEO)


def _stored(row: Row, arguments: Sequence[bytes], position: int, rule: _Stores) -> list[int] | None:
    """Return argument 1 and what STORE names, reading option by option as Redis does."""
    found: list[int] = []
    while position < len(arguments):
        word = arguments[position].upper()
        values = 1 if word in rule.stores else rule.options.get(word, 0)
        taken = {value.upper() for value in arguments[position + 1 : position + 1 + values]}
        if word in rule.reread and taken & rule.misread:
            return None
        if word in rule.stores:
            # Of several destinations the command takes the last, GETKEYS the first, or each.
            if "write" not in row.flags or not taken or found:
                return None
            found = [position + 1]
        position += 1 + values
    return [1, *found]


_FINDERS: Mapping[KeyKind, Callable[[Row, Sequence[bytes]], list[int] | None]] = {
    KeyKind.NONE: _no_keys,
    KeyKind.RANGE: _range,
    KeyKind.NUMKEYS: _numkeys,
    KeyKind.STREAMS: _streams,
    KeyKind.SORT: _sort,
    KeyKind.GEORADIUS: _georadius,
}


def client_name(ruleset: wire.Ruleset, name: bytes) -> bytes | None:
    """Return a client's name for a key as a node names it, or None for one that is not shown."""
    if name.startswith(INTERNAL):
        return None
    for plain in _untagged(name):
        # A keyspace that puts in a hash tag refuses names with braces of their own.
        if b"{" not in plain and b"}" not in plain and ruleset.upstream_name(plain) == name:
            return plain
    return name if ruleset.upstream_name(name) == name else None


def _untagged(name: bytes) -> tuple[bytes, ...]:
    """Return what the name may have been: before a word was put in front, or around a segment."""
    opened = name.find(b"{")
    closed = name.find(b"}", opened) if opened >= 0 else -1
    if closed < 0:
        return ()
    around = name[:opened] + name[opened + 1 : closed] + name[closed + 1 :]
    return (name[closed + 1 :], around) if opened == 0 else (around,)
