"""What was refused, as ACL LOG keeps it."""

from proxy.config import User
from proxy.handlers.refusals import MOST_ENTRIES
from tests.handlers.desk import Client, Desk
from tests.handlers.test_acl import DIGEST

USERS = [
    User("app", (DIGEST,), "default", True, False),
    User("other", (DIGEST,), "default", True, False),
    User("boss", (DIGEST,), "admin", True, False),
]


def _client(desk: Desk, user: bytes) -> Client:
    client = desk.connect()
    client.ask(b"AUTH", user, b"pw")
    return client


async def test_a_bounded_number_is_kept() -> None:
    """Whoever provokes refusals pushes out old ones and takes no more memory."""
    desk = Desk(USERS)
    client = _client(desk, b"app")
    for number in range(MOST_ENTRIES + 20):
        desk.server.refusals.note(client.session, "key", b"%d" % number)
    found = desk.server.refusals.entries(client.session, 1000)
    assert len(found) == MOST_ENTRIES
    assert found[0]["object"] == b"%d" % (MOST_ENTRIES + 19)


async def test_the_same_again_is_counted_and_comes_first() -> None:
    """What happens again soon is one entry, moved to the front, with its first time kept."""
    desk = Desk(USERS)
    client = _client(desk, b"app")
    refusals = desk.server.refusals
    for name in (b"a", b"b", b"a"):
        refusals.note(client.session, "key", name)
    first, second = refusals.entries(client.session, 10)
    assert (first["object"], first["count"], first["entry-id"]) == (b"a", 2, 0)
    assert (second["object"], second["count"], second["entry-id"]) == (b"b", 1, 1)


async def test_long_names_are_cut() -> None:
    """Of a name as long as a client likes, a bounded part is kept."""
    desk = Desk(USERS, [b"get"])
    client = _client(desk, b"app")
    desk.server.refusals.note(client.session, "key", b"x" * 100_000, "y" * 100_000)
    [entry] = desk.server.refusals.entries(client.session, 10)
    assert len(str(entry)) < 2000


async def test_others_hear_nothing() -> None:
    """A user hears of itself, the role admin of all; each forgets what it hears of."""
    desk = Desk(USERS, [b"get"])
    app, other, boss = (_client(desk, name) for name in (b"app", b"other", b"boss"))
    app.ask(b"GET", b"a")
    other.ask(b"GET", b"a")
    assert len(app.value(b"ACL", b"LOG")) == len(other.value(b"ACL", b"LOG")) == 1
    assert len(boss.value(b"ACL", b"LOG")) == 2
    app.ask(b"ACL", b"LOG", b"RESET")
    assert [len(side.value(b"ACL", b"LOG")) for side in (app, other, boss)] == [0, 1, 1]


async def test_age_is_a_double_in_resp3() -> None:
    """The age of an entry is in seconds, a double where the protocol has some."""
    desk = Desk(USERS, [b"get"])
    client = _client(desk, b"app")
    client.ask(b"HELLO", b"3")
    client.ask(b"GET", b"a")
    reply = client.ask(b"ACL", b"LOG")
    assert reply.startswith(b"*1\r\n%10\r\n")
    assert b"age-seconds\r\n," in reply
