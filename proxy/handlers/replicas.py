"""WAIT and WAITAOF: how many replicas have what this client was told is written.

A node answers them for the last write of the connection that asks, and a client's writes travel on
shared ones. So each primary of the clusters that it has written to is asked on a connection of its
own, behind a write there that is younger than everything the client was acknowledged, and the least
of the answers is the reply. Of a client that has written nothing the default cluster is asked. To
which shards the client wrote is not known: one without replicas counts as well.

Always true: the number is never higher than what a node said about a later write than the client's.
"""

import asyncio
import math
from collections.abc import Awaitable

from proxy import errors, wire
from proxy.handlers import Handler, Session
from proxy.handlers.blocked import Blocked, crowded
from proxy.handlers.connection import integer
from proxy.upstream.carrier import carry, in_words, not_run
from proxy.upstream.dedicated import Missing, Pin, Reply

# What is written before the question: gone at once, and hidden from clients like every key that
# begins with this word.
BARRIER = b"sidecache:barrier:%d"

# A node that owns a single slot is found within some ten times as many names as there are slots.
MOST_NAMES = 200_000


class Waiting(Blocked):
    """A client that waits for replicas."""

    def __init__(self, session: Session, request: wire.Request, connections: int) -> None:
        super().__init__(session, connections)
        self.words = request.arguments
        milliseconds = integer(self.words[-1]) or 0
        self.deadline = math.inf
        if milliseconds > 0:
            self.deadline = request.received + milliseconds / 1000

    async def run(self, places: list[wire.Location]) -> bytes:
        clusters = self.session.server.pools.clusters
        try:
            asked = (carry(self.pins, clusters[p.cluster], Shard(self, p)) for p in places)
            return least(await asyncio.gather(*asked))
        finally:
            self.end()


class Shard:
    """The question to one primary."""

    use = "blocked"
    protocol = 2
    repeatable = True  # it changes nothing that anybody sees

    def __init__(self, waiting: Waiting, place: wire.Location) -> None:
        self.place = place
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()

    @property
    def called_off(self) -> bool:
        return self._waiting.called_off

    def until(self, since: float) -> float:
        clusters = self._waiting.session.server.pools.clusters
        return since + clusters[self.place.cluster].config.timeout

    async def ask(self, pin: Pin) -> Reply:
        now, timeout = self._loop.time(), pin.endpoint.timeout
        written = await pin.ask(
            wire.pack([b"SET", self.place.name, b"", b"PX", b"1"]), now + timeout
        )
        if written != b"+OK\r\n":
            self._waiting.pins.give_back(pin, clean=True)
            return written
        words = [*self._waiting.words]
        deadline = self._waiting.deadline
        if deadline < math.inf:
            words[-1] = b"%d" % max(1, round((deadline - self._loop.time()) * 1000))
        return await self._waiting.wait_on(pin, wire.pack(words), max(deadline, now) + 2 * timeout)

    async def pause(self, seconds: float) -> None:
        await self._waiting.pause(seconds)


def least(replies: list[Reply]) -> bytes:
    """Return the first error, or the smallest number, element by element in arrays."""
    for reply in replies:
        if not_run(reply) or reply is Missing.UNKNOWN:
            return errors.TIMEOUT if reply is Missing.UNKNOWN else in_words(reply)
    lines = [reply for reply in replies if isinstance(reply, bytes)]
    for line in lines:
        if line[:1] not in b":*":
            return line
    columns = zip(*(line.split(b"\r\n")[:-1] for line in lines), strict=True)
    parts = [
        b":%d" % min(int(part[1:]) for part in column) if column[0][:1] == b":" else column[0]
        for column in columns
    ]
    return b"\r\n".join(parts) + b"\r\n"


def shards(slots: wire.SlotMap, cluster: int, sharded: bool) -> list[wire.Location]:
    """Return one place per primary of a cluster, each with a key of ours that lives there."""
    wanted = {slots.owner(cluster, place.slot) for place in slots.places(cluster)}
    found: list[wire.Location] = []
    for number in range(MOST_NAMES):
        if not wanted:
            break
        name = BARRIER % number
        slot = wire.key_slot(name) if sharded else 0
        owner = slots.owner(cluster, slot)
        if owner in wanted:
            wanted.discard(owner)
            found.append(wire.Location(cluster, slot, name))
    return found


def wait(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    slots, side = session.server.router.slots, session.downstream
    clusters = session.server.pools.clusters
    written = [each for each in clusters if side.has_written(each.index)]
    asked = written or [clusters[session.default_cluster]]
    places = [place for each in asked for place in shards(slots, each.index, each.sharded)]
    if not places:
        return errors.CLUSTERDOWN
    if crowded(session, len(places)):
        return errors.MAX_BLOCKED
    return Waiting(session, request, len(places)).run(places)


HANDLERS: dict[bytes, Handler] = {b"wait": wait, b"waitaof": wait}
