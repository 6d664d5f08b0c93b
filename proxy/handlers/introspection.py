"""COMMAND and its sub-commands, from the command table.

Clients and redis-cli read it to learn arity, flags and key positions. It shows what this client may
send: what is not offered, or not to its role, does not exist for it.

Always true: GETKEYS and routing use key rules that are held against the same real servers.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from proxy import errors, resp, wire
from proxy.commands import COMMANDS, INDEX, Row
from proxy.handlers import Handler, Session
from proxy.handlers.glob import matches
from proxy.keys import find_keys
from proxy.resp import Simple, array, bulk, encode, mapping, null
from proxy.wire.rules import KeyKind, Path


def command(session: Session, request: wire.Request) -> bytes:
    return array([_entry(row.name, session.protocol) for row in _visible(session)])


def count(session: Session, request: wire.Request) -> bytes:
    return resp.integer(sum(1 for _ in _visible(session)))


def info(session: Session, request: wire.Request) -> bytes:
    names = request.arguments[2:]
    if not names:
        return command(session, request)
    visible = _visible_names(session)
    return array(
        [
            _entry(name.lower(), session.protocol)
            if name.lower() in visible
            else null(session.protocol)
            for name in names
        ]
    )


def docs(session: Session, request: wire.Request) -> bytes:
    names = [name.lower() for name in request.arguments[2:]]
    visible = _visible_names(session)
    shown = names or [row.name for row in _visible(session)]
    protocol = session.protocol
    return mapping(
        ((bulk(name), _document(name, protocol)) for name in shown if name in visible), protocol
    )


def command_list(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    fits: Callable[[Row], bool] = lambda row: True  # noqa: E731
    if words:
        if len(words) != 3 or words[0].upper() != b"FILTERBY":
            return errors.SYNTAX
        text = words[2].lower()
        match words[1].upper():
            case b"MODULE":
                fits = lambda row: False  # noqa: E731
            case b"ACLCAT":
                fits = lambda row: text.decode("latin-1") in row.categories  # noqa: E731
            case b"PATTERN":
                fits = lambda row: matches(text, row.name)  # noqa: E731
            case _:
                return errors.SYNTAX
    return array([bulk(row.name) for row in _visible(session) if fits(row)])


def getkeys(session: Session, request: wire.Request) -> bytes:
    found = _keys_of(request.arguments[2:])
    if isinstance(found, bytes):
        return found
    _, keys = found
    return array([bulk(key) for key in keys])


def getkeysandflags(session: Session, request: wire.Request) -> bytes:
    found = _keys_of(request.arguments[2:])
    if isinstance(found, bytes):
        return found
    row, keys = found
    flags = encode(frozenset([Simple("RW" if row.write else "RO")]), session.protocol)
    return array([array([bulk(key), flags]) for key in keys])


def _keys_of(words: list[bytes]) -> tuple[Row, list[bytes]] | bytes:
    """Return the row of a command and its keys, or the error line."""
    row = _find(words)
    if row is None:
        return errors.INVALID_COMMAND
    if row.keys.kind is KeyKind.NONE:
        return errors.COMMAND_WITHOUT_KEYS
    if not row.arity_fits(len(words)):
        return errors.INVALID_COMMAND_ARITY
    positions = find_keys(row, words)
    if positions is None:
        return errors.INVALID_COMMAND_ARGUMENTS
    return row, [words[position] for position in positions]


def _find(words: list[bytes]) -> Row | None:
    index = INDEX.get(words[0].lower())
    if index is not None and COMMANDS[index].path is Path.CONTAINER and len(words) > 1:
        index = INDEX.get(words[0].lower() + b"|" + words[1].lower())
    return None if index is None else COMMANDS[index]


def _visible(session: Session) -> Iterator[Row]:
    """Yield the top-level rows that this client may send."""
    visible = _visible_names(session)
    return (row for row in COMMANDS if b"|" not in row.name and row.name in visible)


def _visible_names(session: Session) -> frozenset[bytes]:
    """Return the names that this client may send; a container shows while one of its words does."""
    allowed = session.server.router.ruleset.roles[session.downstream.role].allowed
    return _allowed_names(allowed)


@cache
def _offered() -> frozenset[bytes]:
    names = {row.name for row in COMMANDS if row.offered and row.path is not Path.CONTAINER}
    return frozenset(names | {name.partition(b"|")[0] for name in names})


# A role is one value for as long as a ruleset lives, so the handful of roles is worth keeping.
_ALLOWED: dict[bytes, frozenset[bytes]] = {}
_MOST_ROLES = 64


def _allowed_names(allowed: bytes) -> frozenset[bytes]:
    names = _ALLOWED.get(allowed)
    if names is None:
        own = {row.name for index, row in enumerate(COMMANDS) if allowed[index]}
        names = frozenset(own & _offered())
        if len(_ALLOWED) >= _MOST_ROLES:
            _ALLOWED.clear()
        _ALLOWED[allowed] = names
    return names


@cache
def _entry(name: bytes, protocol: int) -> bytes:
    """Return one element of COMMAND: ten fields, the last of them the sub-commands."""
    row = COMMANDS[INDEX[name]]
    first, last, step = _range(row)
    flags = set(row.flags)
    if row.keys.kind not in (KeyKind.NONE, KeyKind.RANGE):
        flags.add("movablekeys")
    subcommands = [
        _entry(other.name, protocol)
        for other in COMMANDS
        if other.name.startswith(name + b"|") and other.offered
    ]
    head = [
        row.name,
        row.arity,
        {Simple(flag) for flag in flags},
        first,
        last,
        step,
        {Simple("@" + category) for category in row.categories},
        [],
        _key_specs(row),
    ]
    return array([*(encode(field, protocol) for field in head), array(subcommands)])


def _range(row: Row) -> tuple[int, int, int]:
    match row.keys.kind:
        case KeyKind.RANGE:
            return row.keys.first, row.keys.last, row.keys.step
        case KeyKind.SORT | KeyKind.GEORADIUS:
            return 1, 1, 1
        case KeyKind.NUMKEYS if row.keys.last:
            return row.keys.last, row.keys.last, 1
    return 0, 0, 0


def _key_specs(row: Row) -> list[object]:
    """Return the key specifications as Redis 7 publishes them: where to begin, how to go on."""
    first, last, step = _range(row)
    specs = []
    if first:
        span = last - first if last >= 0 else last
        specs.append(_spec(row, first, {"lastkey": span, "keystep": step, "limit": 0}, "range"))
    if row.keys.kind is KeyKind.NUMKEYS:
        rule = {"keynumidx": 0, "firstkey": 1, "keystep": 1}
        specs.append(_spec(row, row.keys.first, rule, "keynum"))
    if row.keys.kind in (KeyKind.STREAMS, KeyKind.SORT, KeyKind.GEORADIUS):
        specs.append(_spec(row, 0, {}, "unknown"))
    return specs


def _spec(row: Row, first: int, rule: Mapping[str, int], kind: str) -> object:
    begin: Mapping[str, object] = {"type": "index", "spec": {"index": first}}
    return {
        "flags": {Simple("RW" if row.write else "RO")},
        "begin_search": begin if first else {"type": "unknown", "spec": {}},
        "find_keys": {"type": kind, "spec": rule},
    }


@cache
def _document(name: bytes, protocol: int) -> bytes:
    """Return what COMMAND DOCS says of one command: its group, and how it is treated here."""
    row = COMMANDS[INDEX[name]]
    fields: list[tuple[bytes, bytes]] = [
        (bulk(b"summary"), bulk(_SUMMARIES[row.path].encode())),
        (bulk(b"group"), bulk(_group(row).encode())),
        (bulk(b"arguments"), array([])),
    ]
    subcommands = [
        (bulk(other.name), _document(other.name, protocol))
        for other in COMMANDS
        if other.name.startswith(name + b"|") and other.offered
    ]
    if subcommands:
        fields.append((bulk(b"subcommands"), mapping(subcommands, protocol)))
    return mapping(fields, protocol)


_SUMMARIES: Mapping[Path, str] = {
    Path.FORWARD: "Sent to the node that owns its keys.",
    Path.SPLIT: "Sent to the nodes that own its keys, one part per slot.",
    Path.LOCAL: "Answered by the proxy.",
    Path.BARRIER: "Answered by the proxy, after everything before it.",
    Path.CONTAINER: "A container of sub-commands.",
    Path.REFUSED: "Not offered.",
}

_GROUPS: Mapping[str, str] = {
    "sortedset": "sorted-set", "keyspace": "generic", "transaction": "transactions",
    "dangerous": "server",
}  # fmt: skip


def _group(row: Row) -> str:
    if not row.groups:
        return "generic" if row.keys.kind is not KeyKind.NONE else "server"
    return _GROUPS.get(row.groups[0], row.groups[0])


HANDLERS: dict[bytes, Handler] = {
    b"command": command,
    b"command|count": count,
    b"command|info": info,
    b"command|docs": docs,
    b"command|list": command_list,
    b"command|getkeys": getkeys,
    b"command|getkeysandflags": getkeysandflags,
}
