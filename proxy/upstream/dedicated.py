"""Connections that one client has for itself: to wait on, or to watch keys with.

A `Pin` is one of them; `Pins` makes them when they are asked for, and `handlers.pinned` sends on
them. They are the same `UpstreamConnection`s as the shared ones, handshake and check of the node
included, but never opened a second time. Always true:
  * a pin is used again only after a clean end: everything on it was answered, and whoever had it
    says so. In any doubt it is closed;
  * at most as many are used as clients have claimed within the limit of that use, and one that
    nobody uses is closed within seconds;
  * a pin whose node has lost the slot, or cannot be reached, is closed within seconds, because a
    wait without an end would never hear of it. A node with waits is asked for a sign of life.
Where a command goes that a pin's node does not run is decided in `carrier`.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Protocol

from proxy import errors, wire
from proxy.tallies import PinMetrics
from proxy.upstream.connection import Endpoint, Loss, UpstreamConnection
from proxy.upstream.redirects import Hint

# How long a pin stays open after a clean end, in seconds: a worker that pops in a loop comes back
# within milliseconds, and nobody pays for a burst of them for long.
KEPT: Final = 5.0

# How many are kept, of all nodes together: they come on top of what clients may claim.
MOST_KEPT: Final = 32

# How often nodes are looked at on which clients wait, in seconds. A node that loses a slot says so
# itself within one: this is for those that can say nothing, so two looks in a row must agree.
ROUND: Final = 2.0

PING: Final = wire.pack([b"PING"])


class Missing(Enum):
    """Why there is no reply."""

    UNSENT = "the node has not been sent the command"
    UNKNOWN = "the node may have run it"


Reply = bytes | Missing


class Node(Protocol):
    """A member of a cluster, as this module sees it."""

    member: Any

    @property
    def down(self) -> bool: ...


class Cluster(Protocol):
    """The pool of one cluster, as this module sees it."""

    index: int

    def endpoint(self, member: Any) -> Endpoint: ...
    @property
    def refresher(self) -> Hint: ...
    def owner_of(self, slot: int) -> Node | None: ...


class Pin:
    """One connection. Not usable any more once it is `lost`."""

    def __init__(
        self, endpoint: Endpoint, protocol: int, upstream: wire.Upstream, pins: "Pins"
    ) -> None:
        self.endpoint = endpoint
        self.key = (endpoint.address, endpoint.node_id, protocol)
        self.lost = False
        self.doubtful = False  # how its node stood at the last look
        self.keeping: asyncio.TimerHandle | None = None
        self._pins = pins
        self._loop = asyncio.get_running_loop()
        self._sent = False
        self._connection = UpstreamConnection(endpoint, protocol, 0, upstream, self)
        # By this number another connection can end a wait. It is asked for with the first command.
        self.number = self.ask(wire.pack([b"CLIENT", b"ID"]), self._loop.time() + endpoint.timeout)

    @property
    def pending(self) -> int:
        return self._connection.upstream.pending

    @property
    def ready(self) -> bool:
        """Return whether the node has been sent what was asked."""
        return self._connection.ready

    def ask(self, command: bytes, deadline: float, replies: int = 1) -> asyncio.Future[Reply]:
        """Send a command, or several as one; the future is the last reply, and always ends.

        A deadline, in seconds of the loop's clock, may be infinite.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.lost:
            future.set_result(Missing.UNSENT)
            return future

        def deliver(reply: bytes) -> None:
            if not future.done():
                missing = Missing.UNKNOWN if self._sent else Missing.UNSENT
                future.set_result(reply or missing)

        # Time 0 keeps what a client waits for on purpose out of the slow log.
        self._connection.upstream.submit(command, replies, 0.0, deadline, deliver)
        return future

    def close(self) -> None:
        """End the connection for good; what is asked ends without a reply."""
        if not self.lost:
            self.lost = True
            if self.keeping is not None:
                self.keeping.cancel()
            self._pins.forget(self)
            self._connection.stop()

    # What the connection calls.

    def connected(self, connection: UpstreamConnection) -> None:
        """Nothing to do: what was asked leaves by itself."""

    def disconnected(self, connection: UpstreamConnection, loss: Loss) -> None:
        self.close()

    def orphaned(self, connection: UpstreamConnection, orphans: list[wire.Orphan]) -> None:
        for orphan in orphans:
            self._sent = orphan.sent
            # No node answers nothing.
            reply = errors.REPLY_TOO_LARGE if orphan.kind == "oversized" else b""
            orphan.answer(reply, self._loop.time())
        if any(orphan.kind == "overdue" for orphan in orphans):
            # The node may still be at it: nobody else must get this connection.
            self.close()


class Pins:
    """All connections of the process that single clients have for themselves."""

    def __init__(self, clusters: Sequence[Cluster], batch: wire.Batch, metrics: PinMetrics) -> None:
        self.room = sys.maxsize  # for how many the process has descriptors
        self._claimed: Counter[str] = Counter()
        self._in_use: Counter[str] = Counter()
        self._clusters = clusters
        self._batch = batch
        self._metrics = metrics
        # Waiting on purpose is no latency, so it is measured where nobody looks.
        self._latencies = wire.Latencies(len(clusters))
        self._used: dict[Pin, tuple[str, wire.Location]] = {}
        self._kept: dict[tuple[str, str | None, int], list[Pin]] = {}
        self._sides: dict[tuple[str, str | None, int], Pin] = {}
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None
        self._stopped = False

    def claim(self, use: str, count: int, most: int) -> bool:
        """Promise a client so many connections, unless that makes more than most."""
        if self._claimed[use] + count > most or self._claimed.total() + count > self.room:
            self._metrics.refused.count(use)
            return False
        self._claimed[use] += count
        return True

    def disclaim(self, use: str, count: int) -> None:
        self._claimed[use] -= count

    def acquire(
        self, use: str, place: wire.Location, protocol: int, node: Node | None = None
    ) -> Pin | None:
        """Return a connection to the owner of a slot, or to another node; None without an owner.

        It opens when something is asked. Uses are `tallies.PIN_USES`.
        """
        cluster = self._clusters[place.cluster]
        target = node or cluster.owner_of(place.slot)
        if target is None or self._stopped:
            return None
        endpoint = cluster.endpoint(target.member)
        kept = self._kept.get((endpoint.address, endpoint.node_id, protocol))
        if kept:
            pin = kept.pop()
            assert pin.keeping is not None
            pin.keeping.cancel()
        else:
            pin = self._pin(endpoint, protocol, cluster.index)
        pin.doubtful = False
        self._used[pin] = (use, place)
        self._count(use, 1)
        if self._looking is None:
            self._looking = self._loop.call_later(ROUND, self._look)
        return pin

    def give_back(self, pin: Pin, clean: bool) -> None:
        """Hear that a client is done with its connection, and whether nothing is left on it."""
        full = sum(map(len, self._kept.values())) >= MOST_KEPT
        if pin.lost or not clean or pin.pending or full:
            pin.close()
            return
        self._drop(pin)
        self._kept.setdefault(pin.key, []).append(pin)
        pin.keeping = self._loop.call_later(KEPT, pin.close)

    async def unblock(self, pin: Pin, how: bytes) -> bool:
        """Have the node end the wait on a connection; return whether there was one.

        How is TIMEOUT or ERROR. It is said on a connection beside it, one per node.
        """
        number = await pin.number
        if pin.lost or not isinstance(number, bytes) or number[:1] != b":":
            return False
        side = self._side(pin)
        words = [b"CLIENT", b"UNBLOCK", number[1:-2], how]
        reply = await side.ask(wire.pack(words), self._loop.time() + pin.endpoint.timeout)
        return reply == b":1\r\n"

    def forget(self, pin: Pin) -> None:
        """Hear that a connection has ended."""
        self._drop(pin)
        kept = self._kept.get(pin.key, [])
        if pin in kept:
            kept.remove(pin)
        if not kept:
            self._kept.pop(pin.key, None)
        if self._sides.get(pin.key) is pin:
            del self._sides[pin.key]

    def stop(self) -> None:
        """Close every connection, and open no more."""
        self._stopped = True
        if self._looking is not None:
            self._looking.cancel()
        kept = [pin for pins in self._kept.values() for pin in pins]
        for pin in [*self._used, *kept, *self._sides.values()]:
            pin.close()

    def _pin(self, endpoint: Endpoint, protocol: int, cluster: int) -> Pin:
        upstream = wire.Upstream(self._batch, self._latencies, cluster, endpoint.timeout)
        return Pin(endpoint, protocol, upstream, self)

    def _side(self, pin: Pin) -> Pin:
        """Return the connection beside a client's own, to the same node."""
        key = (*pin.key[:2], 2)
        side = self._sides.get(key)
        if side is None:
            side = self._sides[key] = self._pin(pin.endpoint, 2, 0)
        if side.keeping is not None:
            side.keeping.cancel()
        side.keeping = self._loop.call_later(KEPT + pin.endpoint.timeout, side.close)
        return side

    def _drop(self, pin: Pin) -> None:
        use, _ = self._used.pop(pin, ("", None))
        if use:
            self._count(use, -1)

    def _count(self, use: str, change: int) -> None:
        self._in_use[use] += change
        self._metrics.used.labels(use).set(self._in_use[use])

    def _probe(self, pin: Pin, cluster: Cluster) -> None:
        """Have the topology asked where a node does not answer: nobody else may talk to it."""
        deadline = self._loop.time() + pin.endpoint.timeout
        answer = self._side(pin).ask(PING, deadline)
        answer.add_done_callback(
            lambda reply: None if isinstance(reply.result(), bytes) else cluster.refresher.hint()
        )

    def _look(self) -> None:
        """Close what waits on a node that was wrong at the last look too."""
        self._looking = None
        nodes: dict[tuple[str, str | None], tuple[Pin, Cluster]] = {}
        for pin, (_, place) in list(self._used.items()):
            cluster = self._clusters[place.cluster]
            nodes[pin.key[:2]] = pin, cluster
            owner = cluster.owner_of(place.slot)
            before, pin.doubtful = pin.doubtful, (
                owner is None or owner.down or owner.member.address != pin.endpoint.address
            )  # fmt: skip
            if before and pin.doubtful:
                pin.close()
        for pin, cluster in nodes.values():
            self._probe(pin, cluster)
        if self._used:
            self._looking = self._loop.call_later(ROUND, self._look)
