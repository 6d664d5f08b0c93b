"""What is taken away when a connection closes, and what is another's by then."""

import pytest

from proxy.handlers import bonds
from tests.handlers.bound_desk import KEY, BoundDesk, close


@pytest.fixture
async def desk() -> BoundDesk:
    return BoundDesk()


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
