"""Where the keys of a command are, for callers that are not in a hurry: COMMAND GETKEYS, explain.

The data plane has its own finder, in C. Both follow the rules of the table's column `keys`, and
both are held against COMMAND GETKEYS of real servers.

Always true: where Redis might see other keys than we do, the answer is None, and a command of which
the keys are not certain is not sent.
"""

from collections.abc import Callable, Mapping, Sequence

from proxy.commands import Row
from proxy.wire.rules import KeyKind


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
    if start + count > len(arguments) or (count == 0 and "scripting" not in row.groups):
        return None
    extra = [row.keys.last] if row.keys.last else []
    return extra + list(range(start, start + count))


def _streams(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    position = 1
    while position < len(arguments):
        word = arguments[position].upper()
        if word == b"STREAMS":
            break
        # GETKEYS takes the first STREAMS it sees, the command takes it for an option's value.
        values = _STREAM_OPTIONS.get(word)
        if values is None:
            return None
        if word != b"GROUP" and b"STREAMS" in map(bytes.upper, arguments[position + 1 :][:values]):
            return None
        position += 1 + values
    names = len(arguments) - position - 1
    if names <= 0 or names % 2:
        return None
    return list(range(position + 1, position + 1 + names // 2))


_STREAM_OPTIONS = {b"COUNT": 1, b"BLOCK": 1, b"GROUP": 2, b"NOACK": 0}


def _sort(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    return _stored(row, arguments, 2, {b"LIMIT": 2, b"BY": 1, b"GET": 1}, {b"STORE"})


def _georadius(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    # The options begin behind the words that the arity demands; GETKEYS begins at 5.
    if arguments[5:6] and arguments[5].upper() in _GEO_STORES and row.arity == -6:
        return None
    return _stored(row, arguments, -row.arity, {b"COUNT": 1}, _GEO_STORES)


_GEO_STORES = {b"STORE", b"STOREDIST"}


def _stored(
    row: Row,
    arguments: Sequence[bytes],
    position: int,
    options: Mapping[bytes, int],
    stores: set[bytes],
) -> list[int] | None:
    """Return argument 1 and what the last STORE names, reading option by option as Redis does."""
    found: list[int] = []
    while position < len(arguments):
        word = arguments[position].upper()
        values = 1 if word in stores else options.get(word, 0)
        for value in arguments[position + 1 : position + 1 + values]:
            # An option's value that spells an option: GETKEYS and the command read on differently.
            if value.upper() in stores or (word in stores and value.upper() in options):
                return None
        if word in stores and position + 1 < len(arguments):
            if "write" not in row.flags:
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
