"""What is noted of a connection's writes, and what is taken away when it closes."""

import asyncio
import hashlib

import pytest

from proxy import errors, wire
from proxy.commands import FAMILIES, ROWS
from proxy.effects import BINDING
from proxy.handlers import bonds
from proxy.handlers.bonds import UNBIND
from proxy.wire import rules
from tests.handlers.desk import Client, Desk, Node

KEY = b"ws:1"


def unbinding(value: bytes) -> list[bytes]:
    """Return the errand that takes the key away while it has a value."""
    return [b"UNBIND", KEY, hashlib.sha1(value, usedforsecurity=False).hexdigest().encode()]


class BoundDesk(Desk):
    """A desk whose keys `ws:…` go with the connection that wrote them."""

    def __init__(self) -> None:
        super().__init__()
        router = self.server.router
        own = rules.Keyspace(
            name="ws", pattern=(b"ws:", rules.Segment("id", "text")), cluster=0, hash_tag=None,
            characters=None, max_key_bytes=512, denied=bytes(len(ROWS)), key_error=b"-POLICY\r\n",
            denied_error=b"-NOPERM\r\n", bound=True,
            duties=bytes(rules.Duty.ORIGIN * (row.name in BINDING) for row in ROWS),
        )  # fmt: skip
        router.ruleset = wire.Ruleset(
            commands=ROWS, keyspaces=[own], roles=router.ruleset.roles, families=[*FAMILIES],
            errors=errors.DATA_PLANE, default_cluster=0, reject_unmatched=False, max_key_bytes=1024,
        )  # fmt: skip

    @property
    def home(self) -> Node:
        """The node of ws:1."""
        return self.node(0 if wire.key_slot(KEY) < 8192 else 1)

    def wrote(self, client: Client, reply: bytes, *words: bytes) -> None:
        """Let a client write, and the node answer."""
        client.send(*words)
        assert self.home.commands() == [[*words]]
        self.home.answer(reply)
        self.settle()
        assert client.take() == reply

    async def errands(self) -> list[list[bytes]]:
        """Return all that is asked for a client that has gone, each answered as done."""
        found = []
        while self.server.tasks:
            await asyncio.sleep(0)
            self.settle()
            for words in self.home.commands():
                known = words[1] == UNBIND.digest
                found.append([b"UNBIND", *words[3:]] if known else words)
                self.home.answer(b":1\r\n")
        return found


def close(client: Client) -> None:
    client.session.connection_lost(None)


@pytest.fixture
async def desk() -> BoundDesk:
    return BoundDesk()


@pytest.mark.parametrize(
    ("words", "reply", "is_noted"),
    [
        ((b"SET", KEY, b"v"), b"+OK\r\n", True),
        ((b"SET", KEY, b"v", b"NX"), b"$-1\r\n", False),
        ((b"SET", KEY, b"v", b"GET"), b"$-1\r\n", True),
        ((b"SET", KEY, b"v", b"NX", b"GET"), b"$1\r\nw\r\n", False),
        ((b"SETEX", KEY, b"9", b"v"), b"+OK\r\n", True),
        ((b"SETNX", KEY, b"v"), b":0\r\n", False),
        ((b"GETSET", KEY, b"v"), b"$-1\r\n", True),
        ((b"MSET", KEY, b"v", KEY, b"v"), b"+OK\r\n", True),
        ((b"SET", KEY, b"v"), b"-OOM no\r\n", False),
        ((b"SET", KEY, b"v"), errors.UNKNOWN_WRITE, True),
    ],
)
async def test_what_a_reply_says_was_done_is_noted(
    desk: BoundDesk, words: tuple[bytes, ...], reply: bytes, is_noted: bool
) -> None:
    """A value that was set, or may have been, goes with its connection, and no other."""
    client = desk.connect()
    desk.wrote(client, reply, *words)
    close(client)
    assert await desk.errands() == ([unbinding(b"v")] if is_noted else [])


async def test_a_key_is_compared_with_what_was_written(desk: BoundDesk) -> None:
    """The node is given the digest of the newest value that the connection wrote."""
    client = desk.connect()
    desk.wrote(client, b"+OK\r\n", b"SET", KEY, b"old")
    desk.wrote(client, b"+OK\r\n", b"SET", KEY, b"new")
    close(client)
    assert await desk.errands() == [unbinding(b"new")]


async def test_what_was_taken_away_is_forgotten(desk: BoundDesk) -> None:
    """DEL and SREM, by whichever client of the proxy, leave nothing to do for the end."""
    one, other = desk.connect(), desk.connect()
    desk.wrote(one, b":2\r\n", b"SADD", KEY, b"a", b"b")
    desk.wrote(other, b":1\r\n", b"SREM", KEY, b"a")
    close(one)
    assert await desk.errands() == [[b"SREM", KEY, b"b"]]
    desk.wrote(other, b"+OK\r\n", b"SET", KEY, b"v")
    desk.wrote(other, b":1\r\n", b"DEL", KEY)
    close(other)
    assert await desk.errands() == []


async def test_members_belong_to_who_added_them_last(desk: BoundDesk) -> None:
    """A member that another client adds again is that one's; a stranger's is nobody's."""
    one, other = desk.connect(), desk.connect()
    desk.wrote(one, b":1\r\n", b"SADD", KEY, b"ours")
    desk.wrote(other, b":1\r\n", b"SADD", KEY, b"ours", b"stranger")
    close(one)
    assert await desk.errands() == []
    close(other)
    assert await desk.errands() == [[b"SREM", KEY, b"ours"]]


async def test_of_too_many_entries_the_oldest_stay(
    desk: BoundDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is remembered with so many entries; what it wrote before lives on."""
    monkeypatch.setattr(bonds, "MOST", 2)
    client = desk.connect()
    desk.wrote(client, b":3\r\n", b"SADD", KEY, b"a", b"b", b"c")
    close(client)
    assert await desk.errands() == [[b"SREM", KEY, b"b"], [b"SREM", KEY, b"c"]]


async def test_a_reset_is_an_end_too(desk: BoundDesk) -> None:
    """What returns to the state of a new connection has written nothing."""
    client = desk.connect()
    desk.wrote(client, b":1\r\n", b"SADD", KEY, b"a")
    client.send(b"RESET")
    assert await desk.errands() == [[b"SREM", KEY, b"a"]]


async def test_what_was_under_way_counts_as_done(desk: BoundDesk) -> None:
    """A write whose reply comes after its client has gone, or never, is taken away too."""
    client = desk.connect()
    client.send(b"SADD", KEY, b"a")
    assert desk.home.commands() == [[b"SADD", KEY, b"a"]]
    close(client)
    desk.home.answer(b":1\r\n")
    assert await desk.errands() == [[b"SREM", KEY, b"a"]]
