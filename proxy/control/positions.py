"""How far the keys of each shard are invalidated, said in the shard itself.

1. A shard is a primary with its slots. Its position lies in a slot of its own, the first, under
   a tag that has that slot. Redis replicates in order: a replica that has a position has all
   invalidations before it, because the position is written when they are acknowledged. So after
   a failover that lost its tail the position is one of before, and reading again from there
   repairs exactly what was lost.
2. Data and position can be lost together; then the mark beside it is missing too.
3. Slots move, and a position moves with its slot. A key may then be in one shard and the position
   of before in another. Nothing depends on which: a position says "everything before this, in
   all shards", no position moves while any key of the cluster is owed, and whoever starts does
   so from the oldest of them. So only one that is too old can be met, which costs misses.
4. A shard that gets another first slot gets another tag. Its former position is taken away: found
   by a later reader it would have him read a day again.
"""

import asyncio
from collections.abc import Iterable
from functools import cache
from itertools import count
from typing import NamedTuple, Self

from proxy import plans, resp, wire
from proxy.upstream.errands import Errands, Script

INVALIDATE = Script("invalidate")
POSITION = Script("position")

# By cluster, whom it belongs to: a number at random that sidecars in front of it agree upon.
IDENTITY = (b"sidecache:identity:{sidecache}", b"sidecache:identity:mark:{sidecache}")


@cache
def tag_of(slot: int) -> bytes:
    """Return the tag of a slot, the same in all sidecars; some 16,000 hashes are tried for it."""
    return next(tag for n in count() if wire.key_slot(tag := b"%d" % n) == slot)


def keys_of(tag: bytes) -> tuple[bytes, bytes]:
    """Return the position's key and the mark's."""
    return b"sidecache:position:{%b}" % tag, b"sidecache:generation:{%b}" % tag


def beside(name: bytes) -> list[bytes]:
    """Return the lease, the key itself and the marker that there is none, in this order."""
    lease, absent = plans.companion(plans.LEASE, name), plans.companion(plans.ABSENT, name)
    return [key for key in (lease, name, absent) if key is not None]


class Position(NamedTuple):
    """Everything before a transaction is invalidated."""

    xid: int
    # Milliseconds since the epoch, by the database's clock: what was committed by then is
    # invalidated too, also where an older transaction is still open.
    at: int
    history: str  # of which database, and which of its histories

    def text(self) -> bytes:
        return f"{self.xid} {self.at} {self.history}".encode()

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """Return the position, or None for what is none."""
        xid, _, rest = text.decode("ascii", "replace").partition(" ")
        at, _, history = rest.partition(" ")
        if not (xid.isdecimal() and at.isdecimal() and history):
            return None
        return cls(int(xid), int(at), history)


class Found(NamedTuple):
    """What a shard has, which is not what was expected."""

    tag: bytes
    position: Position | None
    marked: bool
    new: bool  # a place that has become the shard's while this reader reads

    @property
    def lost(self) -> bool:
        """Return whether the data went with the position."""
        return self.position is None and not self.marked and not self.new

    @property
    def unfinished(self) -> bool:
        """Return whether the data was lost, and somebody has begun to bring it back."""
        return self.position is not None and not self.marked


class Positions:
    """Those of one cluster, as one leader knows them."""

    def __init__(self, router: wire.Router, errands: Errands, cluster: int) -> None:
        self._router = router
        self._errands = errands
        self._cluster = cluster
        self._known: dict[bytes, bytes] = {}  # by tag: what is expected there
        self._first = router.slots, frozenset[bytes]()  # at the first look, with its tags
        # Tags of shards that are not marked yet: what they lost is being brought back.
        self.withheld: set[bytes] = set()

    def tags(self) -> Iterable[bytes]:
        """Return the tag of each shard."""
        slots = self._router.slots
        if self._cluster >= slots.clusters:
            return []
        return [self._tag(place.slot) for place in slots.places(self._cluster)]

    def _tag(self, slot: int) -> bytes:
        """Return the tag of the shard with this first slot."""
        return tag_of(slot) if self._router.slots.slot_count(self._cluster) > 1 else b"0"

    async def identity(self, proposal: bytes) -> bytes | None:
        """Return what the sidecars of this cluster know it by, None while it cannot be asked."""
        found = await self._ask(IDENTITY, b"", proposal, proposal)
        return None if found is None else found[0] or proposal

    async def look(self) -> list[Found]:
        """Return what each shard that can be asked has, and expect that from here on."""
        self._known.clear()
        self._first = self._router.slots, frozenset(self.tags())
        return await self.write(None)

    async def write(self, position: Position | None) -> list[Found]:
        """Write to every shard where the position is as expected; return those where it is not.

        What was found is expected from then on. A shard that cannot be asked is left out.
        """
        tags = list(self.tags())
        text = b"" if position is None else position.text()
        differing = []
        for tag in tags:
            expected = self._known.get(tag)
            # One that nobody has looked at is not written to before somebody has.
            new = b"" if expected is None else text
            mark = b"" if tag in self.withheld else new
            reply = await self._ask(keys_of(tag), expected or b"", new, mark)
            if reply is None:
                continue
            found, marked = reply
            if found == expected:
                self._known[tag] = text or found
                continue
            self._known[tag] = found
            moved = expected is None and self._is_new(tag)
            differing.append(Found(tag, Position.parse(found), bool(marked), moved))
        for tag in self._known.keys() - set(tags):
            await self._errands.ask(INVALIDATE, self._cluster, keys_of(tag))
            del self._known[tag]
        return differing

    async def of(self, slot: int) -> bytes | None:
        """Return the position of the shard with this first slot, None where it cannot be asked."""
        said = await self._ask(keys_of(self._tag(slot)), b"", b"", b"")
        return None if said is None else said[0]

    async def unmarked(self) -> frozenset[bytes]:
        """Return the tags of shards that say of themselves that they lack what they should have."""
        return frozenset(tag for tag, (_, mark) in (await self._said()).items() if not mark)

    async def reached(self) -> int:
        """Return up to when all changes are in Redis (`Position.at`), 0 where nobody can tell.

        Of all shards that answer, the oldest: one that lost its tail in a failover lacks more than
        the others, and what a change that reached it left behind may be lost with it.
        """
        found = [Position.parse(position) for position, _ in (await self._said()).values()]
        return min((0 if each is None else each.at for each in found), default=0)

    async def _said(self) -> dict[bytes, tuple[bytes, bytes]]:
        """Return position and mark of each shard that answers, by its tag; write nothing."""
        tags = list(self.tags())
        replies = await asyncio.gather(*(self._ask(keys_of(tag), b"", b"", b"") for tag in tags))
        return {tag: said for tag, said in zip(tags, replies, strict=True) if said is not None}

    def _is_new(self, tag: bytes) -> bool:
        """Return whether a tag's slot was another's when this reader began, and not the first."""
        slots, tags = self._first
        return tag not in tags and slots.owner(self._cluster, wire.key_slot(tag)) >= 0

    async def _ask(
        self, keys: tuple[bytes, bytes], expected: bytes, text: bytes, set_mark: bytes
    ) -> tuple[bytes, bytes] | None:
        reply = await self._errands.ask(POSITION, self._cluster, keys, [expected, text, set_mark])
        if reply[:1] != b"*":
            return None
        position, mark = resp.decode(reply)
        return bytes(position), bytes(mark)
