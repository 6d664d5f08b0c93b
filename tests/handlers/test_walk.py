"""Walks over all keys while slots move and nodes change."""

from array import array

import pytest

from proxy import errors, wire
from proxy.handlers.walk import view_of
from tests.handlers.desk import Client, Desk, parsed
from tests.handlers.keeper import Keeper, answered, keepers, owner

SLOT_OF_K = 7629


class Walker:
    """A client that scans the default cluster page by page."""

    def __init__(self, count: int = 2) -> None:
        self.desk = Desk()
        self.keepers = keepers(self.desk)
        self.client: Client = self.desk.connect()
        self.count = count
        self.cursor = b"0"
        self.seen: list[bytes] = []

    def put(self, *keys: bytes) -> None:
        for key in keys:
            self.keepers[owner(key)].keys.append(key)

    async def turn(self) -> None:
        words = (b"SCAN", self.cursor, b"COUNT", b"%d" % self.count)
        self.cursor, names = parsed(await answered(self.client, self.keepers, *words))
        self.seen += names

    async def rest(self) -> None:
        while True:
            await self.turn()
            if self.cursor == b"0":
                return


def lower(count: int) -> list[bytes]:
    """Return keys of the lower half of the slots."""
    return [key for number in range(4 * count) if not owner(key := b"k%d" % number)][:count]


def upper(count: int) -> list[bytes]:
    return [key for number in range(4 * count) if owner(key := b"k%d" % number)][:count]


async def test_every_key_once() -> None:
    """Where nothing moves, every key of every node is shown once."""
    walker = Walker()
    keys = lower(7) + upper(6)
    walker.put(*keys)
    await walker.rest()
    assert sorted(walker.seen) == sorted(keys)


async def test_keys_that_no_client_can_reach_are_not_shown() -> None:
    """Keys of the proxy, of another cluster, and under names that mean others, are not shown."""
    walker = Walker(10)
    walker.keepers[0].keys = [b"sidecache:lease", b"seat_lock:a:1", b"seat_lock:{a}:1"]
    walker.keepers[2].keys = [b"plain", b"seat_lock:{b}:1"]  # b has slot 3300
    walker.keepers[3].keys = [b"seat_lock:a:1", b"seat_lock:{a}:1"]
    await walker.rest()
    assert sorted(walker.seen) == [b"seat_lock:a:1", b"seat_lock:b:1"]


async def test_a_slot_that_moves_to_a_node_that_was_visited() -> None:
    """Its keys are fetched there, and those that were shown are not shown again."""
    walker = Walker()
    stays, moves = lower(5), upper(5)
    walker.put(*stays, *moves)
    first, second = walker.keepers[:2]
    while len(walker.seen) < len(stays):
        await walker.turn()
    first.keys, second.keys = first.keys + second.keys, []
    first.ranges, second.ranges = [(0, 16383)], []
    await walker.rest()
    assert sorted(walker.seen) == sorted(stays + moves)


async def test_a_slot_that_leaves_amid_the_visit() -> None:
    """What left the node while it was visited is visited where it is then."""
    walker = Walker()
    keys = lower(6)
    walker.put(*keys)
    first, second = walker.keepers[:2]
    await walker.turn()
    first.keys, second.keys = first.keys[:2], first.keys[2:]
    first.ranges, second.ranges = [], [(0, 16383)]
    await walker.rest()
    assert set(walker.seen) == set(keys)


async def test_a_slot_on_its_way_is_visited_at_both_ends() -> None:
    """Of keys that moved before their node was asked, none is missed while the slot is open."""
    walker = Walker()
    keys = [b"{k}%d" % number for number in range(6)]
    source, target = walker.keepers[owner(keys[0])], walker.keepers[1 - owner(keys[0])]
    walker.put(*keys)
    source.notes = [b"[%d->-%s]" % (SLOT_OF_K, target.id)]
    target.notes = [b"[%d-<-%s]" % (SLOT_OF_K, source.id)]
    await walker.turn()
    source.keys, target.keys = keys[:2], keys[2:]
    await walker.rest()
    assert sorted(walker.seen) == sorted(keys)


async def test_a_slot_on_its_way_to_a_node_without_any() -> None:
    """The first slot of a new node is waited for, since nothing leads to that node before."""
    walker = Walker(100)
    keys = [b"{k}%d" % number for number in range(6)]
    source, target = walker.keepers[:2]
    nodes = walker.desk.server.router.slots.nodes
    rest = (True, array("h", [2] * 8192 + [3] * 8192))
    everything = array("h", [0] * 16384)
    walker.desk.server.router.slots = wire.SlotMap([(True, everything), rest], nodes)
    source.ranges, target.ranges = [(0, 16383)], []
    source.notes = [b"[%d->-%s]" % (SLOT_OF_K, target.id)]
    target.notes = [b"[%d-<-%s]" % (SLOT_OF_K, source.id)]
    source.keys, target.keys = keys[:2], keys[2:]
    for _ in range(4):
        await walker.turn()
        assert walker.cursor != b"0"
    assert set(walker.seen) == set(keys[:2])
    source.notes, target.notes = [], []
    source.ranges = [(0, SLOT_OF_K - 1), (SLOT_OF_K + 1, 16383)]
    target.ranges = [(SLOT_OF_K, SLOT_OF_K)]
    source.keys, target.keys = [], keys
    moved = everything[:]
    moved[SLOT_OF_K] = 1
    walker.desk.server.router.slots = wire.SlotMap([(True, moved), rest], nodes)
    await walker.rest()
    assert set(walker.seen) == set(keys)


async def test_a_page_of_another_node_is_dropped() -> None:
    """After a failover the visit begins again: the new primary's cursors are its own."""
    walker = Walker()
    keys = lower(6)
    walker.put(*keys)
    await walker.turn()
    promoted = walker.keepers[0]
    promoted.id = b"%040d" % 9
    promoted.keys.reverse()
    await walker.rest()
    assert set(walker.seen) == set(keys)
    fresh = [words for words in promoted.asked if words[:2] == [b"SCAN", b"0"]]
    assert len(fresh) == 2


async def test_a_page_of_another_node_in_between() -> None:
    """Also where the first node is back behind it, what that page skipped is not missed."""
    walker = Walker()
    keys = lower(6)
    walker.put(*keys)
    await walker.turn()
    first = walker.keepers[0]
    own, first.id = first.id, b"%040d" % 9
    first.keys = keys[4:] + keys[:4]
    await walker.turn()
    first.id, first.keys = own, keys
    await walker.rest()
    assert set(walker.seen) == set(keys)


async def test_the_slot_that_led_to_the_node_moves() -> None:
    """The visit goes on by another slot: it does not begin anew with every slot that moves."""
    walker = Walker()
    keys = lower(9)
    walker.put(*keys)
    await walker.turn()
    first, second = walker.keepers[:2]
    first.ranges, second.ranges = [(1, 8191)], [(0, 0), (8192, 16383)]
    nodes = walker.desk.server.router.slots.nodes
    owners = [[1] + [0] * 8191 + [1] * 8192, [2] * 8192 + [3] * 8192]
    walker.desk.server.router.slots = wire.SlotMap(
        [(True, array("h", numbers)) for numbers in owners], nodes
    )
    await walker.rest()
    assert sorted(walker.seen) == sorted(keys)
    assert [words[1] for words in first.asked if words[0] == b"SCAN"].count(b"0") == 1


async def test_an_error_leaves_the_cursor_as_it_is() -> None:
    """A page that failed can be asked for again."""
    walker = Walker()
    keys = lower(6)
    walker.put(*keys)
    await walker.turn()
    lost = walker.keepers[0].node.upstream
    lost.available = False
    reply = await answered(walker.client, walker.keepers, b"SCAN", walker.cursor)
    assert reply == errors.CLUSTERDOWN
    lost.available = True
    await walker.rest()
    assert sorted(walker.seen) == sorted(keys)


async def test_words_that_no_node_says() -> None:
    """A node that answers something else is an internal error, and the client gets a reply."""
    walker = Walker()
    walker.keepers[0].nodes = lambda: b"nobody"  # type: ignore[method-assign]
    reply = await answered(walker.client, walker.keepers, b"SCAN", b"0")
    assert reply == errors.INTERNAL


def test_view() -> None:
    """Slots, those on their way and the other nodes are read from the words of one node."""
    text = (
        b"a h:1@2,name myself,master - 0 0 1 connected 0-2 5 [1->-b] [7-<-b]\n"
        b"b h:2@3 master - 0 0 2 connected 3-4\n"
        b"c h:3@4 slave a 0 0 1 connected\n"
    )
    view = view_of(text)
    assert (view.node, view.owned, view.arriving) == (b"a", 0b100111, 1 << 7)
    assert view.leaving == {b"b": 0b10}
    assert view.others == {b"b": 0b11000, b"c": 0}


@pytest.mark.parametrize("text", [b"", b"a b c", b"b h:2@3 master - 0 0 2 connected 3-4"])
def test_bad_views(text: bytes) -> None:
    """What does not say who answered is refused."""
    with pytest.raises(ValueError, match=r"."):
        view_of(text)


async def test_the_keepers_are_a_cluster() -> None:
    """What stands behind the desk's nodes tells of itself as nodes do."""
    found: list[Keeper] = keepers(Desk())
    view = view_of(found[0].nodes())
    assert view.node == found[0].id
    assert view.owned == (1 << 8192) - 1
