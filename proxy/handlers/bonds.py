"""What connections have written that goes when they close, and how it is taken away.

Made by the server, one for all clients; `bound` tells it what each client wrote. Nothing here
outlives the process: below all of it is the time to live of the keys.

Always true:
  * a key is taken away only while it holds what the connection wrote, compared and deleted in one
    step; what another client of this sidecar has written since belongs to that one;
  * a connection is remembered with at most `MOST` entries, of values only a digest.
"""

import asyncio
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from proxy import log, wire
from proxy.upstream.errands import Errands, Script

UNBIND = Script("unbind")

# Entries of one connection; of more the oldest are left to their time to live. Some 3 MB.
MOST = 10_000

# So many errands at a time, so that a large connection's end does not hold up the living.
STRIDE = 100

# For how long nodes that are away are asked again, and how often, in seconds: a promotion takes
# less, and what is left behind by a longer outage ends by itself.
PATIENCE = 60.0
PAUSE = 0.5


class Entry(NamedTuple):
    """A key, or a member of a set."""

    cluster: int
    name: bytes  # as nodes know it
    member: bytes | None


class Bond:
    """What one connection has written: a `Holding`."""

    flag = ""
    counts: Mapping[str, int] = {}

    def __init__(self, bonds: "Bonds") -> None:
        self.entries: dict[Entry, bytes] = {}  # the digest of a value, oldest first
        self.unsure = 0.0  # seconds until nodes have done, or never will, what was under way
        self._bonds = bonds

    def release(self) -> None:
        self._bonds.end(self)


class Bonds:
    """The entries of all connections, each with the one that wrote it last."""

    def __init__(
        self, router: wire.Router, batch: wire.Batch, tasks: set[asyncio.Future[Any]]
    ) -> None:
        self._router = router
        self._errands = Errands(router, batch)
        self._tasks = tasks  # which the process waits for before it ends
        self._owners: dict[Entry, Bond] = {}

    def add(self, bond: Bond, entry: Entry, digest: bytes) -> None:
        """Note that a connection wrote an entry, last of all."""
        bond.entries.pop(entry, None)
        if len(bond.entries) >= MOST:
            self._forget(bond, [next(iter(bond.entries))])
        bond.entries[entry] = digest
        self._owners[entry] = bond

    def drop(self, entry: Entry) -> None:
        """Note that an entry was taken away, by whomever."""
        owner = self._owners.pop(entry, None)
        if owner is not None:
            owner.entries.pop(entry, None)

    def knows(self, entry: Entry) -> bool:
        """Return whether a client of ours wrote an entry that is still there, as far as we know."""
        return entry in self._owners

    def end(self, bond: Bond) -> None:
        """Begin to take away what a connection wrote, now that it has closed."""
        if bond.entries:
            task = asyncio.get_running_loop().create_task(self._take_away(bond))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take_away(self, bond: Bond) -> None:
        await asyncio.sleep(bond.unsure)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        await self._round(bond)
        while bond.entries and loop.time() < deadline:
            await asyncio.sleep(PAUSE)
            await self._round(bond)
        if bond.entries:
            log.event(log.WARNING, "bound_entries_left", entries=len(bond.entries))
            self._forget(bond, list(bond.entries))

    async def _round(self, bond: Bond) -> None:
        """Try every entry once; those that are done, or another's by now, are left out then."""
        waiting = iter(list(bond.entries))
        while stride := list(islice(waiting, STRIDE)):
            own = [entry for entry in stride if self._owners.get(entry) is bond]
            done = await asyncio.gather(*(self._unbind(each, bond.entries[each]) for each in own))
            left = {entry for entry, is_done in zip(own, done, strict=True) if not is_done}
            self._forget(bond, [entry for entry in stride if entry not in left])

    async def _unbind(self, entry: Entry, digest: bytes) -> bool:
        """Take one entry away; return whether there is nothing left to do."""
        if entry.member is None:
            reply = await self._errands.ask(UNBIND, entry.cluster, [entry.name], [digest])
        elif entry.cluster < self._router.slots.clusters:
            place = self._router.slots.place_of(entry.cluster, entry.name)
            reply = await self._errands.tell(place, [b"SREM", entry.name, entry.member])
        else:
            return False
        return not reply.startswith(b"-") or reply.startswith(b"-WRONGTYPE")

    def _forget(self, bond: Bond, entries: Iterable[Entry]) -> None:
        for entry in entries:
            bond.entries.pop(entry, None)
            if self._owners.get(entry) is bond:
                del self._owners[entry]
