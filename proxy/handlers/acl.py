"""ACL: who the users are and what they may send, as the configuration and the policies say.

Always true: nothing is changed here, because files are the source; of a password no more is shown
than its digest, as in Redis; of other users a client learns nothing, unless its role is `admin`.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy import commands, errors, resp, wire
from proxy.commands import Row
from proxy.config import User
from proxy.handlers import Handler, Session
from proxy.handlers.channels import channels_of, glob_of
from proxy.handlers.connection import integer
from proxy.handlers.introspection import find
from proxy.handlers.tenants import visible_users
from proxy.keys import find_keys
from proxy.wire.rules import Command, Path, Role

# Redis' limit for ACL GENPASS, in bits.
MOST_GENPASS_BITS = 4096

# Entries that ACL LOG shows unless it is asked for another number, as in Redis.
LOGGED = 10


def whoami(session: Session, request: wire.Request) -> bytes:
    return resp.encode(session.user, session.protocol)


def users(session: Session, request: wire.Request) -> bytes:
    return resp.encode(sorted(user.name for user in visible_users(session)), session.protocol)


def acl_list(session: Session, request: wire.Request) -> bytes:
    lines = [
        " ".join(["user", user.name, *_flags(user), *_secrets(user, "#"), *_words(session, user)])
        for user in sorted(visible_users(session), key=lambda user: user.name)
    ]
    return resp.encode(lines, session.protocol)


def getuser(session: Session, request: wire.Request) -> bytes:
    user = _find(session, request.arguments[2])
    if user is None:
        return resp.null(session.protocol)
    protocol, reach = session.protocol, _reach(session, user)
    fields = {
        "flags": resp.distinct([resp.bulk(flag.encode()) for flag in _flags(user)], protocol),
        "passwords": resp.encode(_secrets(user), protocol),
        **{name: resp.bulk(text.encode()) for name, text in reach._asdict().items()},
        "selectors": resp.array([]),
    }
    pairs = ((resp.bulk(name.encode()), value) for name, value in fields.items())
    return resp.mapping(pairs, protocol)


def _find(session: Session, name: bytes) -> User | None:
    return next((u for u in visible_users(session) if u.name.encode() == name), None)


def _flags(user: User) -> list[str]:
    return ["on" if user.enabled else "off", *(["nopass"] if user.nopass else [])]


def _secrets(user: User, mark: str = "") -> list[str]:
    return [mark + digest.hex() for digest in user.passwords]


class Reach(NamedTuple):
    """What a user may reach, in the words of ACL SETUSER."""

    commands: str
    keys: str
    channels: str


def _words(session: Session, user: User) -> list[str]:
    """Return a user's reach as ACL LIST has it: channels that are not all are said from none on."""
    reach = _reach(session, user)
    channels = reach.channels if reach.channels == "&*" else f"resetchannels {reach.channels}"
    return [word for word in (reach.keys, channels.strip(), reach.commands) if word]


def _reach(session: Session, user: User) -> Reach:
    ruleset = session.server.router.ruleset
    index, role = _role(session, user)
    if role is None:
        return Reach("-@all", "", "")
    patterns: Iterable[bytes] = [b"*"]
    if role.keys is not None:
        patterns = map(glob_of, role.keys)
    elif role.keyspaces is not None:
        patterns = [
            glob_of(space.pattern)
            for space, open_ in zip(ruleset.keyspaces, role.keyspaces, strict=False)
            if open_
        ]
    channels = [b"*"] if role.other_channels else [
        glob_of(own.pattern)
        for own in ruleset.channels
        if own.publishers[index] or own.subscribers[index]
    ]  # fmt: skip
    return Reach(
        rights(ruleset.commands, role.allowed),
        " ".join("~" + pattern.decode("utf-8", "replace") for pattern in patterns),
        " ".join("&" + pattern.decode("utf-8", "replace") for pattern in channels),
    )


def _role(session: Session, user: User) -> tuple[int, Role | None]:
    """Return the role of a user and its index, or None where new rules do not know it."""
    roles = session.server.router.ruleset.roles
    return next(((i, role) for i, role in enumerate(roles) if role.name == user.role), (-1, None))


def rights(rows: Sequence[Command], allowed: bytes) -> str:
    """Return the shorter of two lists: all commands but some, or some only."""
    offered = [
        (row.name.decode(), open_)
        for row, open_ in zip(rows, allowed, strict=True)
        if row.path not in (Path.CONTAINER, Path.REFUSED)
    ]
    denied = [name for name, open_ in offered if not open_]
    if 2 * len(denied) <= len(offered):
        return " ".join(["+@all", *(f"-{name}" for name in denied)])
    return " ".join(["-@all", *(f"+{name}" for name, open_ in offered if open_)])


def dryrun(session: Session, request: wire.Request) -> bytes:
    """Say whether a user may send a command, without sending it."""
    name, words = request.arguments[2], request.arguments[3:]
    user = _find(session, name)
    if user is None:
        return errors.user_not_found(name)
    index, row = find(session, words)
    if row is None:
        return errors.command_not_found(words[0])
    if not row.arity_fits(len(words)):
        return errors.wrong_arity(row.name)
    refusal = _refusal(session, user, index, row, words)
    return resp.OK if refusal is None else resp.bulk(refusal)


def _refusal(
    session: Session, user: User, index: int, row: Row, words: list[bytes]
) -> bytes | None:
    """Return what a user lacks for a command, in the words of Valkey."""
    who = b"User %b has no permissions to " % user.name.encode()
    role_index, role = _role(session, user)
    if role is None or not role.allowed[index]:
        return who + b"run the '%b' command" % row.name
    side = wire.Downstream(session.server.router, wire.Batch(lambda: None), 0)
    side.assume(user.role)
    # What the table calls keys of a command about channels says only to which node it goes.
    keys = None if "pubsub" in row.flags else find_keys(row, words)
    for position in keys or ():
        place = side.locate(words[position], index)
        if place == errors.DATA_PLANE.no_key:
            return who + b"access the '%b' key" % words[position]
        if isinstance(place, bytes):
            return place[1:-2]
    server = session.server
    channels = channels_of(server.router.ruleset, len(server.config.clusters))
    channel = channels.denied(role_index, row.name, words)
    return None if channel is None else who + b"access the '%b' channel" % channel


def log(session: Session, request: wire.Request) -> bytes:
    """Answer what was refused lately; `refusals` keeps it."""
    words = request.arguments[2:]
    if len(words) > 1:
        return errors.unknown_or_arity(*request.arguments[:2])
    refusals = session.server.refusals
    if words and words[0].upper() == b"RESET":
        refusals.forget(session)
        return resp.OK
    count = integer(words[0]) if words else LOGGED
    if count is None:
        return errors.NOT_AN_INTEGER
    return resp.encode(refusals.entries(session, max(count, 0)), session.protocol)


def categories(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    if not words:
        return resp.encode(sorted(commands.CATEGORIES), session.protocol)
    if len(words) > 1:
        return errors.unknown_or_arity(*request.arguments[:2])
    # Where Redis lists a container's name it means all its sub-commands; ours are all named.
    found = commands.CATEGORIES.get(words[0].lower().decode("latin-1"))
    if found is None:
        return errors.unknown_category(words[0])
    return resp.encode(sorted(found), session.protocol)


def genpass(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    if len(words) > 1:
        return errors.unknown_or_arity(*request.arguments[:2])
    bits = integer(words[0]) if words else 256
    if bits is None:
        return errors.NOT_AN_INTEGER
    if not 0 < bits <= MOST_GENPASS_BITS:
        return errors.GENPASS_BITS
    digits = (bits + 3) // 4
    return resp.encode(secrets.token_hex((digits + 1) // 2)[:digits], session.protocol)


HANDLERS: dict[bytes, Handler] = {
    b"acl|whoami": whoami,
    b"acl|users": users,
    b"acl|list": acl_list,
    b"acl|getuser": getuser,
    b"acl|dryrun": dryrun,
    b"acl|log": log,
    b"acl|cat": categories,
    b"acl|genpass": genpass,
}
