"""ACL."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from proxy import errors
from proxy.config import User
from tests.handlers.desk import Client, Desk
from tests.policy.rulebook import Folder

DIGEST = hashlib.sha256(b"pw").digest()
SHOWN = DIGEST.hex().encode()
USERS = [
    User("app", (DIGEST,), "default", True, False),
    User("boss", (DIGEST,), "admin", True, False),
    User("gone", (DIGEST,), "default", False, False),
]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def _connect(user: bytes, denied: list[bytes] | None = None) -> Client:
    client = Desk(USERS, denied or []).connect()
    assert client.ask(b"AUTH", user, b"pw") == b"+OK\r\n"
    return client


@pytest.mark.parametrize(("bits", "digits"), [(b"1", 1), (b"5", 2), (b"256", 64), (b"4096", 1024)])
async def test_passwords_are_as_long_as_asked(bits: bytes, digits: int) -> None:
    """GENPASS gives four bits a digit, rounded up, and never the same twice."""
    client = Desk().connect()
    first = client.value(b"ACL", b"GENPASS", bits)
    assert len(first) == digits
    assert bits == b"1" or bits == b"5" or first != client.value(b"ACL", b"GENPASS", bits)


async def test_categories() -> None:
    """CAT names the categories, and the commands of one."""
    client = Desk().connect()
    assert {b"read", b"write", b"dangerous"} <= set(client.value(b"ACL", b"CAT"))
    assert b"geoadd" in client.value(b"ACL", b"CAT", b"geo")


async def test_a_user_hears_of_itself_only() -> None:
    """Other users do not exist for a client, in none of the answers."""
    client = _connect(b"app")
    assert client.value(b"ACL", b"USERS") == [b"app"]
    assert client.value(b"ACL", b"LIST") == [b"user app on #%b ~* &* +@all" % SHOWN]
    assert client.value(b"ACL", b"GETUSER", b"boss") is None
    assert client.ask(b"ACL", b"DRYRUN", b"boss", b"PING") == errors.user_not_found(b"boss")


async def test_an_admin_hears_of_all() -> None:
    """The role admin sees every user, those that are switched off too."""
    client = _connect(b"boss")
    assert client.value(b"ACL", b"USERS") == [b"app", b"boss", b"gone"]
    assert client.value(b"ACL", b"LIST")[2] == b"user gone off #%b ~* &* +@all" % SHOWN
    assert client.ask(b"ACL", b"DRYRUN", b"app", b"PING") == b"+OK\r\n"


@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_of_a_password_the_digest_is_shown(protocol: bytes) -> None:
    """GETUSER tells what the password's SHA-256 is, to those who may ask about the user."""
    client = _connect(b"boss")
    client.ask(b"HELLO", protocol)
    assert SHOWN in client.ask(b"ACL", b"GETUSER", b"app")
    other = _connect(b"app")
    assert SHOWN not in other.ask(b"ACL", b"GETUSER", b"boss")


async def test_rights_are_those_of_the_policies() -> None:
    """What a role may not send is named, in the shorter of the two ways to say it."""
    client = _connect(b"app", [b"get", b"config|set", b"config|get"])
    assert client.value(b"ACL", b"LIST") == [
        b"user app on #%b ~* &* +@all -get -config|get" % SHOWN
    ]


async def test_dryrun_judges_without_sending() -> None:
    """Rights and rules for keys are told in the words of Redis, and nothing reaches a node."""
    client = _connect(b"app", [b"get"])
    ask = lambda *words: client.value(b"ACL", b"DRYRUN", b"app", *words)  # noqa: E731
    assert ask(b"SET", b"a", b"b") == b"OK"
    assert ask(b"GET", b"a") == b"User app has no permissions to run the 'get' command"
    assert ask(b"TOUCH", b"seat_lock:1:2").startswith(b"NOPERM")
    assert str(ask(b"SET", b"a")) == "ERR wrong number of arguments for 'set' command"
    assert str(ask(b"NOSUCH")) == "ERR Command 'NOSUCH' not found"
    assert not any(node.commands() for pair in client.desk.nodes for node in pair)


RULES = """
keyspaces:
  seat: {key: "seat:{event}:{n:int}"}
  other: {key: "other:{n}"}
channels:
  news: {channel: "news:{topic}"}
roles:
  limited:
    keys: ["seat:{e}:{n}", "a:{x}"]
    channels: [news]
    commands: {allow: [GET, MGET, "@pubsub", ACL, MULTI, EXEC]}
  spaces: {keyspaces: [seat], channels: []}
"""


def _limited(folder: Folder, role: str = "limited") -> Client:
    desk = Desk([User("app", (DIGEST,), role, True, False)])
    desk.server.router.ruleset = folder.compile(RULES)
    client = desk.connect()
    assert client.ask(b"AUTH", b"app", b"pw") == b"+OK\r\n"
    return client


async def test_patterns_are_told_as_globs(folder: Folder) -> None:
    """Keys and channels of a role stand where Redis has its patterns."""
    client = _limited(folder)
    [line] = client.value(b"ACL", b"LIST")
    assert b" ~seat:*:* ~a:* resetchannels &news:* -@all " in line
    told = client.value(b"ACL", b"GETUSER", b"app")
    fields = dict(zip(told[::2], told[1::2], strict=True))
    assert (fields[b"keys"], fields[b"channels"]) == (b"~seat:*:* ~a:*", b"&news:*")
    assert fields[b"commands"].startswith(b"-@all +")
    assert fields[b"passwords"] == [SHOWN]


async def test_keyspaces_are_told_as_globs(folder: Folder) -> None:
    """A role of keyspaces has their patterns, and none of the channels where it names none."""
    [line] = _limited(folder, "spaces").value(b"ACL", b"LIST")
    assert b" ~seat:*:* resetchannels +@all -" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (b"GET seat:1:2", b"OK"),
        (b"GET b:1", b"User app has no permissions to access the 'b:1' key"),
        (b"MGET a:1 b:1", b"User app has no permissions to access the 'b:1' key"),
        (b"SET b:1 x", b"User app has no permissions to run the 'set' command"),
        (b"PUBLISH news:a x", b"OK"),
        (b"PUBLISH other x", b"User app has no permissions to access the 'other' channel"),
        (b"SUBSCRIBE news:a other", b"User app has no permissions to access the 'other' channel"),
        (b"PSUBSCRIBE *", b"User app has no permissions to access the '*' channel"),
        (b"PSUBSCRIBE news:*", b"OK"),
        (b"UNSUBSCRIBE x", b"OK"),
        (b"SPUBLISH news:a x", b"OK"),
        (b"SPUBLISH other x", b"User app has no permissions to access the 'other' channel"),
        (b"SSUBSCRIBE news:a", b"OK"),
        (b"SUNSUBSCRIBE x", b"OK"),
        (b"ACL|WHOAMI", b"ERR Command 'ACL|WHOAMI' not found"),
    ],
)
async def test_dryrun_of_a_limited_role(folder: Folder, words: bytes, told: bytes) -> None:
    """DRYRUN judges commands, keys and channels by the role of the user that is named."""
    answer = _limited(folder).value(b"ACL", b"DRYRUN", b"app", *words.split())
    assert (answer if isinstance(answer, bytes) else str(answer).encode()) == told


async def test_the_log_tells_what_was_refused(folder: Folder) -> None:
    """Commands, keys, channels and logins that were refused are kept, the newest first."""
    client = _limited(folder)
    client.ask(b"SET", b"a:1", b"x")
    for _ in range(3):
        assert client.ask(b"GET", b"b:1") == b"-NOPERM No permissions to access a key\r\n"
    client.ask(b"MULTI")
    client.ask(b"GET", b"b:1")
    client.ask(b"EXEC")
    client.ask(b"AUTH", b"app", b"wrong")
    found = [_entry(told) for told in client.value(b"ACL", b"LOG")]
    assert [(e[b"reason"], e[b"context"], e[b"object"], e[b"count"]) for e in found] == [
        (b"auth", b"toplevel", b"AUTH", 1),
        (b"key", b"multi", b"b:1", 1),
        (b"key", b"toplevel", b"b:1", 3),
        (b"command", b"toplevel", b"set", 1),
    ]
    assert {entry[b"username"] for entry in found} == {b"app"}
    assert len(client.value(b"ACL", b"LOG", b"2")) == 2
    assert client.value(b"ACL", b"LOG", b"0") == []
    assert client.ask(b"ACL", b"LOG", b"reset") == b"+OK\r\n"
    assert client.value(b"ACL", b"LOG") == []


def _entry(told: list[bytes]) -> dict[bytes, Any]:
    return dict(zip(told[::2], told[1::2], strict=True))
