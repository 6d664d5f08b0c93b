"""Who the client is and how it speaks: AUTH, HELLO, RESET, QUIT, SELECT, PING and their like.

AUTH, HELLO, RESET, QUIT and SELECT are barriers in the command table: nothing of the same client is
in flight while they run, so no command is judged under one identity, or in one database, and
answered under another.

A database is no name space of its own: its number chooses the cluster of keys that match no
keyspace, as sidecache.yaml says. Channels belong to none, as in Redis.

Always true: HELLO changes everything that it names or nothing; a password is compared as a digest
in constant time, and the way through the code is the same for a user that does not exist.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from proxy import errors, resp, wire
from proxy.config import User
from proxy.handlers import REDIS_VERSION, Handler, Session
from proxy.handlers.budget import Account
from proxy.handlers.subscriptions import subscriptions_of

# Databases that Redis has by default; a number beyond them is out of range, one within them that is
# not configured is what a cluster does not offer.
DATABASES = 16

# Longer than any name that a person or a library gives; kept for as long as the client stays.
LONGEST_NAME = 1024  # bytes

# What a user that does not exist is compared with; no password has this digest.
NOBODY = User("", (bytes(32),), "", False, False)


def ping(session: Session, request: wire.Request) -> bytes:
    words = request.arguments
    if len(words) > 2:
        return errors.wrong_arity(b"ping")
    return b"+PONG\r\n" if len(words) == 1 else resp.bulk(words[1])


def echo(session: Session, request: wire.Request) -> bytes:
    return resp.bulk(request.arguments[1])


def accept(session: Session, request: wire.Request) -> bytes:
    """READONLY, READWRITE, ASKING: they speak to one node of a cluster, and there is none here."""
    return resp.OK


def quit_(session: Session, request: wire.Request) -> bytes:
    session.closing = True
    return resp.OK


def reset(session: Session, request: wire.Request) -> bytes:
    silent = session.downstream.silence == 1
    session.reset()
    if not silent:
        return b"+RESET\r\n"
    # CLIENT REPLY OFF has silenced this command's own place before it was ended here.
    session.push(b"+RESET\r\n")
    return b""


def select(session: Session, request: wire.Request) -> bytes:
    number = integer(request.arguments[1])
    if number is None:
        return errors.NOT_AN_INTEGER
    if not 0 <= number < DATABASES:
        return errors.DB_OUT_OF_RANGE
    databases = session.server.config.databases
    if number and number not in databases:
        return errors.SELECT_REFUSED
    session.database = number
    session.downstream.default_cluster = databases.get(number, -1)
    return resp.OK


def changes_database(session: Session, request: wire.Request) -> bool:
    """Return whether a SELECT would take the client to another database."""
    number = integer(request.arguments[1])
    known = number == 0 or number in session.server.config.databases
    return known and number != session.database


def auth(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    words = request.arguments
    if len(words) > 3:
        return errors.SYNTAX
    name = words[1] if len(words) == 3 else b"default"
    if len(words) == 2 and _user(session, b"default").nopass:
        return errors.NO_PASSWORD_SET
    password = words[-1]

    def finish(user: User | None) -> bytes:
        if user is None:
            return errors.WRONGPASS
        session.authenticate(user.name)
        return resp.OK

    return _checked(session, request, name, password, finish)


def hello(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    options = _hello_options(request.arguments)
    if isinstance(options, bytes):
        return options
    if options.password is None:
        if session.downstream.role < 0:
            return errors.NOAUTH_HELLO
        return _greet(session, options)
    wanted = options

    def finish(user: User | None) -> bytes:
        if user is None:
            return errors.WRONGPASS
        session.authenticate(user.name)
        return _greet(session, wanted)

    return _checked(session, request, options.user, options.password, finish)


@dataclass
class _Hello:
    """What a HELLO asks for; None leaves a thing as it is."""

    protocol: int | None = None
    user: bytes = b""
    password: bytes | None = None
    name: bytes | None = None


def _hello_options(words: Sequence[bytes]) -> _Hello | bytes:
    """Return the options, which come in any order behind the version, or the error line."""
    options = _Hello()
    if len(words) > 1:
        options.protocol = integer(words[1])
        if options.protocol is None:
            return errors.PROTOCOL_NOT_AN_INTEGER
        if options.protocol not in (2, 3):
            return errors.NOPROTO
    position = 2
    while position < len(words):
        left = len(words) - 1 - position
        match words[position].upper():
            case b"AUTH" if left >= 2:
                options.user, options.password = words[position + 1 : position + 3]
                position += 3
            case b"SETNAME" if left >= 1:
                options.name = words[position + 1]
                refusal = bad_name(options.name)
                if refusal is not None:
                    return refusal
                position += 2
            case _:
                return errors.bad_hello_option(words[position])
    return options


def _greet(session: Session, options: _Hello) -> bytes:
    """Apply what was asked for and return the reply, in the protocol that was chosen."""
    if options.name is not None:
        session.name = options.name
    if options.protocol is not None and options.protocol != session.protocol:
        session.switch_protocol(options.protocol)
        held = subscriptions_of(session)
        if held is not None:
            held.settle()
    protocol = options.protocol or session.protocol
    return resp.encode(
        {
            "server": "redis",
            "version": REDIS_VERSION,
            "proto": protocol,
            "id": session.id,
            "mode": "cluster" if session.clustered else "standalone",
            "role": "master",
            "modules": [],
        },
        protocol,
    )


def _checked(
    session: Session,
    request: wire.Request,
    name: bytes,
    password: bytes,
    finish: Callable[[User | None], bytes],
) -> bytes | Awaitable[bytes]:
    """Compare a password, after a wait where its source has failed too often."""
    account = Account(session.peer.rpartition(":")[0], session.failed_auth)
    failures = session.server.failures

    def check() -> bytes:
        user = verified(session, name, password)
        if user is None:
            session.failed_auth = True
            _note(session, request, name)
        return finish(user)

    wait = failures.wait(account, request.received)
    if wait:
        # Nothing behind this command may be judged while it is not known who the client will be.
        session.downstream.hold()
        return _late(session, wait, check)
    reply = check()
    if reply is errors.WRONGPASS:
        failures.fail(account, request.received)
    return reply


def _note(session: Session, request: wire.Request, name: bytes) -> None:
    user = name.decode("latin-1")
    session.server.refusals.note(session, "auth", request.arguments[0], user)


async def _late(session: Session, wait: float, answer: Callable[[], bytes]) -> bytes:
    try:
        await asyncio.sleep(wait)
        return answer()
    finally:
        session.downstream.release()


def verified(session: Session, name: bytes, password: bytes) -> User | None:
    """Return the user whose password this is, or None, in a time that depends on neither."""
    user = _user(session, name)
    digest = hashlib.sha256(password).digest()
    right = False
    for known in user.passwords:
        right |= hmac.compare_digest(known, digest)
    return user if (right or user.nopass) and user.enabled else None


def _user(session: Session, name: bytes) -> User:
    found = NOBODY
    for user in session.server.config.users:
        if hmac.compare_digest(user.name.encode(), name):
            found = user
    return found


def bad_name(name: bytes) -> bytes | None:
    """Return the error line for a client name that CLIENT LIST could not show, or None."""
    if len(name) > LONGEST_NAME:
        return errors.LONG_CLIENT_NAME
    return None if printable(name) else errors.BAD_CLIENT_NAME


def printable(text: bytes) -> bool:
    """Return whether a text has neither spaces nor control characters nor bytes beyond ASCII."""
    return all(0x21 <= byte <= 0x7E for byte in text)


def integer(text: bytes) -> int | None:
    """Return a number as Redis reads it, or None: no plus, no leading zero, no space."""
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and text != b"0"):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


HANDLERS: dict[bytes, Handler] = {
    b"ping": ping,
    b"echo": echo,
    b"readonly": accept,
    b"readwrite": accept,
    b"asking": accept,
    b"quit": quit_,
    b"reset": reset,
    b"select": select,
    b"auth": auth,
    b"hello": hello,
}
