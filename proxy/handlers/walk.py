"""All keys of the clusters, page by page, with none left out while slots move and nodes fail.

SCAN and KEYS walk. What is walked over is slots, kept as bits of an integer, and not nodes:

 1. A visit goes to one node, for the slots of it that are not covered yet; keys of other slots are
    not shown, so what a node got from an earlier one is not shown twice.
 2. When the node's own cursor has come round, those slots are covered that it has had all the time
    and still has, by its own word. What left meanwhile is visited where it is then.
 3. A slot that is on its way has keys at both ends, and they go in one direction only: so the end
    where it arrives is visited right behind the one that it leaves, and then it is covered.
 4. A cursor is good for the process that gave it. Every page says from which node it is, and a page
    from another one, after a failover, is dropped and the visit begun again.

Always true: a key that is there from the first page to the last is shown at least once, and under
its client's name; a key that a client cannot ask for is never shown; a page is one node's SCAN.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import hiredis

from proxy import errors, resp, wire
from proxy.handlers import Session
from proxy.handlers.cursors import Position, Visit
from proxy.handlers.forward import ask
from proxy.handlers.names import reached

# How long to wait before looking again for slots that are nowhere to be found, and how often: a
# slot arrives within milliseconds, a failover takes a node timeout of 15 s or less.
PAUSE = 0.1  # seconds
MOST_ATTEMPTS = 150


@dataclass(frozen=True)
class Wanted:
    """Which keys are to be shown."""

    clusters: tuple[int, ...]
    slot: int | None  # the only one where they can be
    options: tuple[bytes, ...]  # what nodes are told: MATCH, TYPE
    pattern: re.Pattern[bytes] | None  # what is left to us, because nodes know other names


class Page(NamedTuple):
    names: list[bytes]
    position: Position | None  # None behind the last page


@dataclass(frozen=True)
class View:
    """A node's own word on who has what."""

    node: bytes
    owned: int
    leaving: dict[bytes, int]  # by the node they go to
    arriving: int
    others: dict[bytes, int]  # the slots of the other nodes


class Walk:
    """What one request needs to turn pages."""

    def __init__(self, session: Session, row: int, wanted: Wanted) -> None:
        self._session = session
        self._row = row
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()

    def start(self) -> Position | None:
        """Return where the walk begins; None where there is nothing to be found."""
        return self._enter(self._wanted.clusters)

    def _enter(self, clusters: tuple[int, ...]) -> Position | None:
        if not clusters:
            return None
        slot = self._wanted.slot
        return Position(clusters, 0 if slot is None else self._all(clusters[0]) & ~(1 << slot))

    def _all(self, cluster: int) -> int:
        return _bits(0, self._session.server.router.slots.slot_count(cluster) - 1)

    def _sharded(self, cluster: int) -> bool:
        return self._session.server.router.slots.slot_count(cluster) > 1

    async def page(self, position: Position, count: int) -> Page | bytes:
        """Return the next page, or an error line that leaves the position as it is."""
        try:
            if position.visit is None:
                if position.attempts:
                    await asyncio.sleep(PAUSE)
                found = await self._begin(position)
                if isinstance(found, bytes):
                    return found
                position = found
            if position.visit is None:
                return Page([], position)
            return await self._turn(position, position.visit, count)
        except (ValueError, IndexError, TypeError, hiredis.HiredisError):
            # A node that answers something else than these commands can.
            return errors.INTERNAL

    async def _begin(self, position: Position) -> Position | bytes:
        """Choose the node to visit and note what it is visited for."""
        cluster = position.clusters[0]
        left = self._all(cluster) & ~position.covered
        at = position.following if position.following >= 0 else _lowest(left)
        view = await self._view(cluster, at)
        if isinstance(view, bytes):
            return view
        slots = left & (view.owned | (position.arriving & view.arriving))
        if slots:
            return replace(position, visit=Visit(at, view.node, slots, b"0"))
        self._doubt(cluster)
        owner = next((node for node, owned in view.others.items() if owned & left), None)
        following = self._way_to(cluster, at, view.others[owner]) if owner is not None else -1
        return self._again(replace(position, following=following, arriving=0))

    def _again(self, position: Position) -> Position | bytes:
        if position.attempts >= MOST_ATTEMPTS:
            return errors.SLOTS_ARE_MOVING
        return replace(position, visit=None, attempts=position.attempts + 1)

    def _doubt(self, cluster: int) -> None:
        """Have the topology asked for again: a node does not have what it should."""
        self._session.server.pools.clusters[cluster].refresher.hint()

    async def _turn(self, position: Position, visit: Visit, count: int) -> Page | bytes:
        """Read one page of the node that is visited."""
        cluster = position.clusters[0]
        scan = [b"SCAN", visit.cursor, *self._wanted.options, b"COUNT", b"%d" % count]
        page = self._ask(cluster, visit.at, scan)
        identity = self._ask(cluster, visit.at, self._identity(cluster))
        reply = await page
        answered = await identity
        if reply[:1] == b"-":
            return reply
        if answered[:1] == b"-" or self._node(cluster, answered) != visit.node:
            return await self._astray(position, visit)
        cursor, found = _scanned(reply)
        names = list(self._shown(cluster, visit.slots, found))
        if cursor != b"0":
            return Page(names, replace(position, visit=replace(visit, cursor=cursor)))
        view = await self._view(cluster, visit.at)
        return view if isinstance(view, bytes) else self._finish(position, visit, view, names)

    async def _astray(self, position: Position, visit: Visit) -> Page | bytes:
        """Find another way to the node that is visited, or begin the visit again."""
        cluster = position.clusters[0]
        view = await self._view(cluster, visit.at)
        if isinstance(view, bytes):
            return view
        # The slot that led there has moved, and during a resharding the next will: the node's
        # cursor is still good, and a large node would never be read to its end without it.
        at = self._way_to(cluster, visit.at, view.others.get(visit.node, 0))
        if at < 0:
            return _page([], self._again(replace(position, following=-1, arriving=0)))
        return Page([], replace(position, visit=replace(visit, at=at)))

    def _finish(
        self, position: Position, visit: Visit, view: View, names: list[bytes]
    ) -> Page | bytes:
        """Cover what was visited for good, and choose where to go on."""
        cluster = position.clusters[0]
        if view.node != visit.node:
            return _page([], self._again(replace(position, following=-1, arriving=0)))
        leaving = {node: slots & visit.slots for node, slots in view.leaving.items()}
        kept = visit.slots & (view.owned | (position.arriving & view.arriving))
        for slots in leaving.values():
            kept &= ~slots
        covered = position.covered | kept
        if covered == self._all(cluster):
            return Page(names, self._enter(position.clusters[1:]))
        following, arriving = -1, 0
        for node, slots in leaving.items():
            if slots and node in view.others:
                following, arriving = self._way_to(cluster, visit.at, view.others[node]), slots
        onward = replace(
            position, covered=covered, visit=None, following=following, arriving=arriving
        )
        if kept:
            return Page(names, replace(onward, attempts=0))
        # A node that has no slot yet cannot be reached: its first one is looked for until it is
        # there.
        return _page(names, onward if following >= 0 else self._again(onward))

    def _way_to(self, cluster: int, at: int, owned: int) -> int:
        """Return a slot that leads to the node that owns these, and not to where `at` does.

        The highest, because tools that move slots begin with the lowest.
        """
        slots = self._session.server.router.slots
        here = slots.owner(cluster, at)
        while owned:
            slot = owned.bit_length() - 1
            if slots.owner(cluster, slot) != here:
                return slot
            owned &= ~(1 << slot)
        return -1

    def _shown(self, cluster: int, slots: int, found: list[bytes]) -> Iterator[bytes]:
        """Yield the clients' names of the keys that are to be shown."""
        session, row, pattern = self._session, self._row, self._wanted.pattern
        flags = slots.to_bytes(slots.bit_length() // 8 + 1, "little")
        size = len(flags) * 8
        for name in found:
            known = reached(session, row, cluster, name)
            if known is None or (pattern is not None and not pattern.fullmatch(known[0])):
                continue
            slot = known[1].slot
            if slot < size and flags[slot >> 3] >> (slot & 7) & 1:
                yield known[0]

    def _ask(self, cluster: int, at: int, words: list[bytes]) -> asyncio.Future[bytes]:
        # All of them count as the row that is walked for, a read that may be sent twice: sent to
        # another node than before, the reply says so.
        return ask(self._session, wire.Location(cluster, at), words, self._row, self._loop.time())

    def _identity(self, cluster: int) -> list[bytes]:
        return [b"CLUSTER", b"MYID"] if self._sharded(cluster) else [b"INFO", b"server"]

    def _node(self, cluster: int, reply: bytes) -> bytes:
        """Return what the node calls itself; a single one has a name per run of its process."""
        text = _text(reply)
        if self._sharded(cluster):
            return text
        return next(line for line in text.splitlines() if line.startswith(b"run_id:"))

    async def _view(self, cluster: int, at: int) -> View | bytes:
        if self._sharded(cluster):
            reply = await self._ask(cluster, at, [b"CLUSTER", b"NODES"])
            return reply if reply[:1] == b"-" else view_of(_text(reply))
        reply = await self._ask(cluster, at, self._identity(cluster))
        return reply if reply[:1] == b"-" else View(self._node(cluster, reply), 1, {}, 0, {})


def view_of(text: bytes) -> View:
    """Return what CLUSTER NODES says, by the node that said it. Raises ValueError."""
    others: dict[bytes, int] = {}
    leaving: dict[bytes, int] = {}
    owned = arriving = 0
    myself = b""
    for line in text.splitlines():
        name, _, flags, _, _, _, _, _, *ranges = line.split()
        slots = 0
        for words in ranges:
            if words.startswith(b"["):
                slot, way, other = re.split(b"-([<>])-", words.strip(b"[]"))
                if way == b">":
                    leaving[other] = leaving.get(other, 0) | 1 << int(slot)
                else:
                    arriving |= 1 << int(slot)
                continue
            first, _, last = words.partition(b"-")
            slots |= _bits(int(first), int(last or first))
        if b"myself" in flags.split(b","):
            myself, owned = name, slots
        else:
            others[name] = slots
    if not myself:
        raise ValueError("nobody says of itself that it answered")
    return View(myself, owned, leaving, arriving, others)


def _page(names: list[bytes], position: Position | bytes) -> Page | bytes:
    return position if isinstance(position, bytes) else Page(names, position)


def _bits(first: int, last: int) -> int:
    return ((1 << (last - first + 1)) - 1) << first


def _lowest(slots: int) -> int:
    return (slots & -slots).bit_length() - 1


def _text(reply: bytes) -> bytes:
    """Return a bulk string, or the text of a verbatim one."""
    start = reply.index(b"\r\n") + 2
    return reply[start + 4 if reply[:1] == b"=" else start : -2]


def _scanned(reply: bytes) -> tuple[bytes, list[bytes]]:
    cursor, names = resp.decode(reply)
    return bytes(cursor), list(names)
