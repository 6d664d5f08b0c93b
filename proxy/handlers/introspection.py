"""COMMAND and its sub-commands, from the command table.

Clients and redis-cli read it to learn arity, flags and key positions. It shows what this client may
send: what is not offered, or not to its role, does not exist for it.

Always true: GETKEYS answers what routing sees, because both ask the same finder of the data plane.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from proxy import errors, resp, wire
from proxy.commands import COMMANDS, Row, known
from proxy.handlers import Handler, Session
from proxy.handlers.glob import matches
from proxy.handlers.specifications import flags_of, key_range, specifications
from proxy.resp import Simple, array, bulk, distinct, encode, mapping, null
from proxy.wire.rules import KeyKind, Path
from proxy.wire.scripts import run_of


def command(session: Session, request: wire.Request) -> bytes:
    return array([_entry(row, session.protocol) for row in _visible(session)])


def count(session: Session, request: wire.Request) -> bytes:
    return resp.integer(sum(1 for _ in _visible(session)))


def info(session: Session, request: wire.Request) -> bytes:
    names = request.arguments[2:]
    if not names:
        return command(session, request)
    rows = {row.name: row for row in _rows(session)}
    found = [rows.get(name.lower()) for name in names]
    protocol = session.protocol
    return array([null(protocol) if row is None else _entry(row, protocol) for row in found])


def docs(session: Session, request: wire.Request) -> bytes:
    names = [name.lower() for name in request.arguments[2:]]
    rows = {row.name: row for row in _rows(session)}
    shown = [rows[name] for name in names if name in rows] if names else _visible(session)
    protocol = session.protocol
    return mapping(((bulk(row.name), _document(row, protocol)) for row in shown), protocol)


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
    found = _keys_of(session, request.arguments[2:])
    if isinstance(found, bytes):
        return found
    _, keys = found
    return array([bulk(key) for key in keys])


def getkeysandflags(session: Session, request: wire.Request) -> bytes:
    found = _keys_of(session, request.arguments[2:])
    if isinstance(found, bytes):
        return found
    row, keys = found
    words, protocol = request.arguments[2:], session.protocol
    told = (flags_of(row, words, index) for index in range(len(keys)))
    flags = [distinct([encode(Simple(flag), protocol) for flag in one], protocol) for one in told]
    return array([array([bulk(key), does]) for key, does in zip(keys, flags, strict=True)])


def _keys_of(session: Session, words: list[bytes]) -> tuple[Row, list[bytes]] | bytes:
    """Return the row of a command and its keys, or the error line."""
    index, row = find(session, words)
    if row is None:
        return errors.INVALID_COMMAND
    if row.keys.kind is KeyKind.NONE:
        return errors.COMMAND_WITHOUT_KEYS
    if not row.arity_fits(len(words)):
        return errors.INVALID_COMMAND_ARITY
    ruleset = session.server.router.ruleset
    words = list(run_of(ruleset.commands[index].script, words))
    positions = wire.find_keys(ruleset, index, wire.pack(words))
    if positions is None and not _keyless_script(row, words):
        return errors.INVALID_COMMAND_ARGUMENTS
    return row, [words[position] for position in positions or ()]


def _keyless_script(row: Row, words: list[bytes]) -> bool:
    """Return whether this is a script without keys, which only a script may be."""
    script = "scripting" in row.groups or row.keys.kind is KeyKind.RENDERED
    return script and words[row.keys.first] == b"0"


def find(session: Session, words: list[bytes]) -> tuple[int, Row | None]:
    """Return the row of a command's words, that of its sub-command where it has some."""
    rules = session.server.router.ruleset
    index = -1 if b"|" in words[0] else rules.find_command(words[0])
    if index >= 0 and rules.commands[index].path is Path.CONTAINER and len(words) > 1:
        index = rules.find_command(words[0] + b"|" + words[1])
    return index, None if index < 0 else known(rules.commands)[index]


def _visible(session: Session) -> Iterator[Row]:
    """Yield the top-level rows that this client may send."""
    return (row for row in _rows(session) if b"|" not in row.name)


def _rows(session: Session) -> Iterator[Row]:
    """Yield all rows that this client may send; a container shows while one of its words does."""
    ruleset = session.server.router.ruleset
    allowed = ruleset.roles[session.downstream.role].allowed
    names = _allowed_names(allowed)
    for index, row in enumerate(known(ruleset.commands)):
        if row.name in names if index < len(COMMANDS) else allowed[index]:
            alias = ruleset.commands[index].alias
            yield row._replace(name=alias) if alias else row


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
def _entry(row: Row, protocol: int) -> bytes:
    """Return one element of COMMAND: ten fields, the last of them the sub-commands."""
    first, last, step = key_range(row)
    flags = set(row.flags)
    if row.keys.kind not in (KeyKind.NONE, KeyKind.RANGE):
        flags.add("movablekeys")
    subcommands = [
        _entry(other, protocol)
        for other in COMMANDS
        if other.name.startswith(row.name + b"|") and other.offered
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
        specifications(row),
    ]
    return array([*(encode(field, protocol) for field in head), array(subcommands)])


@cache
def _document(row: Row, protocol: int) -> bytes:
    """Return what COMMAND DOCS says of one command: its group, and how it is treated here."""
    fields: list[tuple[bytes, bytes]] = [
        (bulk(b"summary"), bulk(_summary(row).encode())),
        (bulk(b"group"), bulk(_group(row).encode())),
        (bulk(b"arguments"), array([])),
    ]
    subcommands = [
        (bulk(other.name), _document(other, protocol))
        for other in COMMANDS
        if other.name.startswith(row.name + b"|") and other.offered
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


def _summary(row: Row) -> str:
    if row.keys.kind is KeyKind.RENDERED:
        return "A script of the policies, run where its keys live."
    return _SUMMARIES[row.path]


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
