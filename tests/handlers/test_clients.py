"""CLIENT."""

import hashlib

import pytest

from proxy import errors
from proxy.config import User
from tests.handlers.desk import Client, Desk

SECRET = (hashlib.sha256(b"pw").digest(),)
USERS = [User(name, SECRET, "default", True, False) for name in ("app", "other")]
USERS.append(User("boss", SECRET, "admin", True, False))

# The fields of Redis 7.2, in its order.
FIELDS = (
    b"id addr laddr fd name age idle flags db sub psub ssub multi watch qbuf qbuf-free argv-mem "
    b"multi-mem rbs rbp obl oll omem tot-mem events cmd user redir resp lib-name lib-ver"
)


def _connect(desk: Desk, user: bytes) -> Client:
    client = desk.connect()
    assert client.ask(b"AUTH", user, b"pw") == b"+OK\r\n"
    return client


async def test_ids_are_unique() -> None:
    """Each connection has a number of its own."""
    desk = Desk()
    assert desk.connect().value(b"CLIENT", b"ID") != desk.connect().value(b"CLIENT", b"ID")


async def test_name_is_kept() -> None:
    """SETNAME is what GETNAME gives back, an empty name is none."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"SETNAME", b"worker-1") == b"+OK\r\n"
    assert client.ask(b"CLIENT", b"GETNAME") == b"$8\r\nworker-1\r\n"
    assert client.ask(b"CLIENT", b"SETNAME", b"") == b"+OK\r\n"
    assert client.value(b"CLIENT", b"GETNAME") is None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (b"a b", errors.BAD_CLIENT_NAME),
        (b"a\nid=1", errors.BAD_CLIENT_NAME),
        (b"\xff", errors.BAD_CLIENT_NAME),
        (b"x" * 1025, errors.LONG_CLIENT_NAME),
    ],
)
async def test_names_cannot_forge_an_entry(name: bytes, line: bytes) -> None:
    """A name with a space or a line end would be another client in the list."""
    assert Desk().connect().ask(b"CLIENT", b"SETNAME", name) == line


async def test_library_is_shown() -> None:
    """SETINFO takes LIB-NAME and LIB-VER and nothing else."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"SETINFO", b"lib-name", b"redis-py") == b"+OK\r\n"
    assert client.ask(b"CLIENT", b"SETINFO", b"LIB-VER", b"8.1.0") == b"+OK\r\n"
    assert b"lib-name=redis-py lib-ver=8.1.0" in client.ask(b"CLIENT", b"INFO")
    assert client.ask(b"CLIENT", b"SETINFO", b"FOO", b"x") == errors.unrecognized_option(b"FOO")
    refusal = client.ask(b"CLIENT", b"SETINFO", b"LIB-VER", b"a b")
    assert refusal == errors.bad_client_info(b"LIB-VER")


async def test_the_list_shows_ones_own_user_only() -> None:
    """Connections of another user are not there, neither listed nor counted nor closed."""
    desk = Desk(USERS)
    mine, also_mine, foreign = (_connect(desk, name) for name in (b"app", b"app", b"other"))
    text = mine.value(b"CLIENT", b"LIST")
    assert text.count(b"\n") == 2
    assert b"user=other" not in text
    number = b"%d" % foreign.session.id
    assert mine.value(b"CLIENT", b"LIST", b"ID", number) == b""
    assert mine.value(b"CLIENT", b"KILL", b"ID", number) == 0
    assert mine.ask(b"CLIENT", b"KILL", foreign.session.peer.encode()) == errors.NO_SUCH_CLIENT
    assert mine.ask(b"CLIENT", b"KILL", b"USER", b"other") == errors.no_such_user(b"other")
    assert not foreign.transport.closed
    assert mine.value(b"CLIENT", b"KILL", b"USER", b"app") == 1
    assert also_mine.transport.closed
    assert not mine.transport.closed


async def test_an_admin_sees_and_closes_everybody() -> None:
    """The role admin is told of the connections of every user, and may end them."""
    desk = Desk(USERS)
    boss, app = _connect(desk, b"boss"), _connect(desk, b"app")
    assert b"user=app" in boss.value(b"CLIENT", b"LIST")
    assert boss.value(b"CLIENT", b"KILL", b"USER", b"app") == 1
    assert app.transport.closed
    assert boss.ask(b"CLIENT", b"KILL", b"USER", b"nobody") == errors.no_such_user(b"nobody")


async def test_the_fields_are_those_of_redis() -> None:
    """A line has every field of Redis 7, in its order, for tools that read it by position."""
    client = Desk().connect()
    client.send(b"GET", b"foo")
    line = client.desk.connect().value(b"CLIENT", b"LIST").split(b"\n")[0]
    fields = dict(field.split(b"=", 1) for field in line.split(b" "))
    assert list(fields) == FIELDS.split()
    assert (fields[b"cmd"], fields[b"oll"], fields[b"flags"]) == (b"get", b"1", b"N")
    assert (fields[b"multi"], fields[b"watch"], fields[b"redir"]) == (b"-1", b"0", b"-1")


async def test_the_command_is_the_last_one_with_its_word() -> None:
    """A sub-command is shown by its full name; a client that sent nothing has none."""
    desk = Desk()
    client, other = desk.connect(), desk.connect()
    lines = client.value(b"CLIENT", b"LIST").split(b"\n")
    assert [b" cmd=client|list " in lines[0], b" cmd=NULL " in lines[1]] == [True, True]
    other.ask(b"NOSUCH")
    assert b" cmd=NULL " in client.value(b"CLIENT", b"LIST").split(b"\n")[1]


async def test_nothing_is_tracked() -> None:
    """GETREDIR says that no other client gets invalidations."""
    assert Desk().connect().value(b"CLIENT", b"GETREDIR") == -1


@pytest.mark.parametrize(
    ("filters", "killed"),
    [
        (b"ADDR 10.0.0.1:40002", 1),
        (b"LADDR 127.0.0.1:6379", 1),
        (b"TYPE normal", 1),
        (b"TYPE normal SKIPME no", 2),
        (b"TYPE pubsub", 0),
        (b"MAXAGE 1000", 0),
        (b"ADDR 10.0.0.1:40002 TYPE pubsub", 0),
    ],
)
async def test_filters_are_taken_together(filters: bytes, killed: int) -> None:
    """A client is closed when every filter fits; oneself only without SKIPME."""
    desk = Desk()
    client, other = desk.connect(), desk.connect()
    assert client.value(b"CLIENT", b"KILL", *filters.split()) == killed
    assert other.transport.closed is (killed > 0)
    assert client.transport.closed is (killed == 2)


async def test_a_client_may_close_itself() -> None:
    """Who asks to be closed hears of it first."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"KILL", client.session.peer.encode()) == b"+OK\r\n"
    assert client.transport.closed


async def test_what_is_not_offered_keeps_the_connection() -> None:
    """Clients probe with sub-commands that no server has; they get an error and go on."""
    client = Desk().connect()
    assert client.ask(b"CLIENT", b"MAINT_NOTIFICATIONS", b"ON").startswith(b"-ERR unknown subcomm")
    assert client.ask(b"CLIENT", b"TRACKING", b"ON").startswith(b"-ERR unknown subcommand")
    assert client.ask(b"PING") == b"+PONG\r\n"
