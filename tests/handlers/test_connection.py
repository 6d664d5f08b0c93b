"""Who the client is and how it speaks."""

import hashlib
from dataclasses import replace

import pytest

from proxy import errors
from proxy.config import User
from proxy.handlers.budget import BURST, INTERVAL, Account
from proxy.handlers.connection import integer
from tests.handlers.desk import Client, Desk


def _user(name: str, *passwords: str, enabled: bool = True, nopass: bool = False) -> User:
    digests = tuple(hashlib.sha256(word.encode()).digest() for word in passwords)
    return User(name, digests, "default", enabled, nopass)


def _strangers() -> Client:
    users = [_user("app", "old", "new"), _user("gone", "pw", enabled=False), _user("default", "d")]
    return Desk(users).connect()


@pytest.mark.parametrize("words", [b"AUTH app old", b"AUTH app new", b"AUTH d", b"AUTH default d"])
async def test_the_right_password_opens(words: bytes) -> None:
    """Every password of a user counts, and one word means the default user."""
    client = _strangers()
    assert client.ask(b"PING") == errors.NOAUTH
    assert client.ask(*words.split()) == b"+OK\r\n"
    assert client.ask(b"PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "words", [b"AUTH app wrong", b"AUTH nobody old", b"AUTH gone pw", b"AUTH x", b"AUTH app d"]
)
async def test_everything_else_stays_closed(words: bytes) -> None:
    """Wrong password, unknown user and disabled user are one answer."""
    client = _strangers()
    assert client.ask(*words.split()) == errors.WRONGPASS
    assert client.ask(b"PING") == errors.NOAUTH


async def test_a_failed_auth_keeps_who_one_was() -> None:
    """As in Redis, a wrong password takes nothing away."""
    client = _strangers()
    client.ask(b"AUTH", b"app", b"old")
    assert client.ask(b"AUTH", b"app", b"wrong") == errors.WRONGPASS
    assert client.ask(b"ACL", b"WHOAMI") == b"$3\r\napp\r\n"


async def test_hello_is_all_or_nothing() -> None:
    """A HELLO that fails changes neither name nor protocol nor user."""
    client = _strangers()
    words = (b"HELLO", b"3", b"SETNAME", b"me", b"AUTH", b"app")
    assert client.ask(*words, b"wrong") == errors.WRONGPASS
    assert (client.session.name, client.session.protocol) == (b"", 2)
    assert client.ask(b"HELLO", b"3") == errors.NOAUTH_HELLO
    assert client.session.protocol == 2
    assert client.ask(*words, b"old").startswith(b"%7\r\n")
    assert client.session.name == b"me"
    assert client.session.protocol == 3
    assert client.session.user == "app"


async def test_hello_without_a_version_keeps_the_protocol() -> None:
    """HELLO alone only describes, in the protocol that is spoken."""
    client = Desk().connect()
    client.ask(b"HELLO", b"3")
    assert client.value(b"HELLO")[b"proto"] == 3
    assert client.session.protocol == 3


@pytest.mark.parametrize("options", [b"AUTH app old SETNAME x", b"SETNAME x AUTH app old"])
async def test_hello_takes_options_in_any_order(options: bytes) -> None:
    """AUTH before SETNAME or behind it is the same."""
    client = _strangers()
    assert client.ask(b"HELLO", b"2", *options.split()).startswith(b"*14\r\n")
    assert client.session.name == b"x"


async def test_reset_returns_to_a_new_connection() -> None:
    """Name, protocol and user go, the library's name and version stay."""
    client = _strangers()
    client.ask(b"HELLO", b"3", b"AUTH", b"app", b"old", b"SETNAME", b"x")
    client.ask(b"CLIENT", b"SETINFO", b"LIB-NAME", b"redis-py")
    assert client.ask(b"RESET") == b"+RESET\r\n"
    assert client.ask(b"PING") == errors.NOAUTH
    assert (client.session.name, client.session.protocol) == (b"", 2)
    assert client.session.library == (b"redis-py", b"")


async def test_quit_finishes_what_was_asked() -> None:
    """Earlier commands are answered before the connection closes, later ones are not taken."""
    desk = Desk()
    client = desk.connect()
    client.send(b"GET", b"a")
    client.send(b"QUIT")
    client.send(b"PING")
    assert not client.transport.closed
    desk.node(1).answer(b"$1\r\nv\r\n")
    desk.settle()
    assert client.take() == b"$1\r\nv\r\n+OK\r\n"
    assert client.transport.closed


async def test_guessing_is_slowed_down() -> None:
    """Who has failed too often waits, and nothing of it runs meanwhile; nobody else does."""
    desk = Desk([_user("app", "pw"), _user("default", nopass=True)])
    client = desk.connect("10.0.0.9")
    for _ in range(1 + int(BURST / INTERVAL)):
        assert client.ask(b"AUTH", b"app", b"wrong") == errors.WRONGPASS
    # Two more from elsewhere, so that the clock's last digit does not matter.
    for _ in range(2):
        desk.server.failures.fail(Account("10.0.0.9", failed=True), client.session.active)
    client.send(b"AUTH", b"app", b"pw")
    client.send(b"ACL", b"WHOAMI")
    assert client.take() == b""
    for source in ("10.0.0.9", "10.0.0.10"):
        assert desk.connect(source).ask(b"AUTH", b"app", b"pw") == b"+OK\r\n"
    received = await client.reply()
    # What was sent behind the waiting AUTH is judged as the user whom it made.
    desk.settle()
    assert received + client.take() == b"+OK\r\n$3\r\napp\r\n"


@pytest.mark.parametrize(("number", "line"), [(b"0", b"+OK\r\n"), (b"3", errors.SELECT_REFUSED)])
async def test_one_database(number: bytes, line: bytes) -> None:
    """Database 0 is there, the others are refused in a cluster's words."""
    assert Desk().connect().ask(b"SELECT", number) == line


async def test_a_number_chooses_the_cluster() -> None:
    """Keys of no keyspace go to the cluster of the database; those of a keyspace stay."""
    desk = Desk()
    desk.server.config = replace(desk.server.config, databases={2: 1})
    client = desk.connect()
    assert client.ask(b"SELECT", b"2") == b"+OK\r\n"
    client.send(b"GET", b"a")
    assert desk.node(3).commands() == [[b"GET", b"a"]]
    # Nothing is judged in one database while something of another is under way.
    client.send(b"SELECT", b"0")
    client.send(b"GET", b"a")
    assert not desk.node(1).sent
    desk.node(3).answer(b"$-1\r\n")
    desk.settle()
    assert desk.node(1).commands() == [[b"GET", b"a"]]


@pytest.mark.parametrize("word", [b"READONLY", b"READWRITE", b"ASKING"])
async def test_words_for_one_node_are_accepted(word: bytes) -> None:
    """Clients that speak to a cluster may say what they would say to a node."""
    assert Desk().connect().ask(word) == b"+OK\r\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"0", 0), (b"12", 12), (b"-1", -1), (b"", None), (b"-", None), (b"+1", None),
        (b"01", None), (b"-0", None), (b" 1", None), (b"1_0", None), (b"1.0", None),
        (b"9223372036854775807", 2**63 - 1), (b"9223372036854775808", None),
        (b"9" * 5000, None), ("\u0661".encode(), None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_redis_reads_them(text: bytes, number: int | None) -> None:
    """Python's int() takes more than Redis does; ours takes exactly that."""
    assert integer(text) == number
