"""SCAN: its words, its cursors for clients, and what a pattern means for nodes."""

import pytest

from proxy import errors, wire
from proxy.handlers.scan import (
    LONGEST_PATTERN,
    MOST_PER_PAGE,
    Question,
    escaped,
    read_question,
    tagged_slot,
)
from tests.handlers.desk import Client, Desk, parsed
from tests.handlers.keeper import Keeper, answered, keepers


async def scanned(client: Client, found: list[Keeper], *words: bytes) -> list[bytes]:
    """Return all keys that a scan shows, sorted."""
    cursor, seen = b"0", list[bytes]()
    while True:
        reply = parsed(await answered(client, found, b"SCAN", cursor, *words))
        cursor, names = reply
        seen += names
        if cursor == b"0":
            return sorted(seen)


def told(found: list[Keeper]) -> set[tuple[bytes, ...]]:
    """Return what nodes were told besides cursor and COUNT."""
    return {tuple(words[2:-2]) for one in found for words in one.asked if words[0] == b"SCAN"}


@pytest.mark.parametrize("cursor", [b"", b"x", b"-1", b" 1", b"+1", b"1", b"9" * 30, b"1" * 5000])
async def test_bad_cursors(cursor: bytes) -> None:
    """What is no cursor of ours is refused in Redis' words, and no node hears of it."""
    assert Desk().connect().ask(b"SCAN", cursor) == errors.INVALID_CURSOR


async def test_a_cursor_is_bound_to_its_question() -> None:
    """Another MATCH or TYPE cannot go on with a cursor; another COUNT can."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[0].keys = [b"b%d" % number for number in range(50)]
    cursor, _ = parsed(await answered(client, found, b"SCAN", b"0"))
    for words in ((b"MATCH", b"b*"), (b"TYPE", b"string")):
        assert client.ask(b"SCAN", cursor, *words) == errors.INVALID_CURSOR
    following, _ = parsed(await answered(client, found, b"SCAN", cursor, b"COUNT", b"20"))
    assert following not in (b"0", cursor)


async def test_a_cursor_of_another_connection() -> None:
    """The same user goes on with a scan on another connection, as pools of clients do."""
    desk = Desk()
    found = keepers(desk)
    found[0].keys = [b"b%d" % number for number in range(50)]
    cursor, _ = parsed(await answered(desk.connect(), found, b"SCAN", b"0"))
    following, _ = parsed(await answered(desk.connect(), found, b"SCAN", cursor))
    assert following not in (b"0", cursor)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (b"", Question(b"*", 10, ())),
        (b"match a* count 5 type HASH", Question(b"a*", 5, (b"TYPE", b"hash"))),
        (b"COUNT 1000000", Question(b"*", MOST_PER_PAGE, ())),
        (b"MATCH a MATCH b", Question(b"b", 10, ())),
        (b"NOVALUES", Question(b"*", 10, (b"NOVALUES",))),
        (b"COUNT 0", errors.SYNTAX),
        (b"COUNT -3", errors.SYNTAX),
        (b"COUNT x", errors.NOT_AN_INTEGER),
        (b"MATCH", errors.SYNTAX),
    ],
)
def test_options(words: bytes, expected: Question | bytes) -> None:
    """Options come in any order, and what is not known here is left to the nodes."""
    assert read_question(words.split()) == expected


def test_escaped() -> None:
    """Text becomes the pattern of itself."""
    assert escaped(b"a*b?[c]\\") == b"a\\*b\\?\\[c]\\\\"


def test_tags() -> None:
    """Only a whole tag says where all keys are."""
    assert tagged_slot(b"a:{b}:") == wire.key_slot(b"b")
    assert tagged_slot(b"a:{b") is None
    assert tagged_slot(b"a:{}:") is None
    assert tagged_slot(b"a:") is None


async def test_patterns_are_those_of_clients_names() -> None:
    """MATCH sees names as clients know them, and nodes are told how names at nodes begin."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[0].keys = [b"b"]
    found[2].keys = [b"seat_lock:{b}:1"]
    found[3].keys = [b"seat_lock:{a}:1", b"seat_lock:{a}:2"]
    shown = await scanned(client, found, b"MATCH", b"seat_lock:a:*")
    assert shown == [b"seat_lock:a:1", b"seat_lock:a:2"]
    assert told(found) == {(b"MATCH", b"seat_lock:*")}
    assert await scanned(client, found, b"MATCH", b"*:1") == [b"seat_lock:a:1", b"seat_lock:b:1"]
    assert await scanned(client, found, b"MATCH", b"seat_lock:{*") == []


async def test_patterns_of_names_that_are_not_changed_go_to_the_nodes() -> None:
    """Where no key that fits has another name at its node, the nodes judge."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    await scanned(client, found, b"MATCH", b"user:*", b"TYPE", b"string")
    assert told(found) == {(b"MATCH", b"user:*", b"TYPE", b"string")}
    # And a cluster is not asked where none can be.
    assert not found[2].asked


async def test_a_tag_in_the_pattern_is_one_node() -> None:
    """All keys of one hash tag live at one node, and no other is asked."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[0].keys = [b"{b}1", b"{b}2"]
    assert await scanned(client, found, b"MATCH", b"{b}*") == [b"{b}1", b"{b}2"]
    assert not found[1].asked


async def test_a_pattern_without_a_star_is_one_key() -> None:
    """Only its node is asked, by the name that the node knows."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    found[3].keys = [b"seat_lock:{a}:1"]
    assert await scanned(client, found, b"MATCH", b"seat_lock:a:1") == [b"seat_lock:a:1"]
    assert told(found) == {(b"MATCH", b"seat_lock:{a}:1")}
    assert not any(one.asked for one in found[:3])


async def test_a_pattern_that_is_too_long() -> None:
    """A pattern that we would have to judge ourselves has a limit; another is the nodes'."""
    desk = Desk()
    found, client = keepers(desk), desk.connect()
    long = b"*" + b"a" * LONGEST_PATTERN
    assert client.ask(b"SCAN", b"0", b"MATCH", long) == errors.LONG_PATTERN
    assert await scanned(client, found, b"MATCH", b"u" + long) == []
