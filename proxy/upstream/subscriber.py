"""The subscriptions of one cluster: which node is listened to for what.

The `Broker` wants and drops subscriptions; this class places them. Always true:
  * what is published is passed on to all nodes of a cluster, so one of its primaries, the home, is
    listened to for it, and what other links hear of it is dropped;
  * keyspace notifications stay on their node, so all primaries are listened to for them;
  * a shard channel is listened to where its slot lives;
  * a lost home is replaced at once by another node. One that leaves the cluster, or is demoted,
    stays home until the next one has acknowledged everything.
What is published while nobody listens is lost: that is counted, logged and told to the broker.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from proxy import log, wire
from proxy.config import Cluster as ClusterConfig
from proxy.metrics import Metrics
from proxy.upstream.connection import FIRST_PAUSE, LONGEST_PAUSE, Loss, UpstreamConnection
from proxy.upstream.link import EVENTS, SHARD, Key, Link

# How often a quiet link is asked for a sign of life, in seconds. A peer that has gone without a
# word is noticed after this and the node's timeout; half of Redis' repl-ping period.
TICK = 5.0

# Pause before a shard channel is asked for again where no node takes it yet, in seconds: as the
# redirector waits for a slot that is on its way.
PAUSE = 0.05


class Hint(Protocol):
    def hint(self) -> None: ...


class Cluster(Protocol):
    """The pool of one cluster, as this module sees it. A node of it is opaque here."""

    index: int
    config: ClusterConfig
    sharded: bool

    @property
    def nodes(self) -> Mapping[str, Any]: ...
    @property
    def refresher(self) -> Hint: ...
    def primaries(self) -> list[Any]: ...
    def named(self, address: str) -> Any | None: ...
    def owner_of(self, slot: int) -> Any | None: ...
    def move_slot(self, slot: int, node: Any) -> None: ...


class Plumbing(Protocol):
    @property
    def metrics(self) -> Metrics: ...
    @property
    def states(self) -> log.StateLog: ...


class Audience(Protocol):
    """The broker, as a subscriber sees it."""

    def message(self, cluster: int, key: Key, frame: bytes) -> None: ...
    def interrupted(self, cluster: int, keys: list[Key]) -> None:
        """Hear that messages of these subscriptions may have been missed."""


class Want:
    """A subscription, and which links have acknowledged it."""

    __slots__ = ("everywhere", "key", "links", "refusal", "slot", "waiters")

    def __init__(self, key: Key, everywhere: bool, slot: int) -> None:
        self.key = key
        self.everywhere = everywhere
        self.slot = slot  # of a shard channel, else -1
        self.links: dict[Link, bool] = {}
        self.refusal: bytes | None = None  # the node's own words
        self.waiters: set[asyncio.Future[None]] = set()

    @property
    def heard(self) -> bool:
        """Return whether some node has acknowledged it."""
        return any(self.links.values())

    @property
    def ready(self) -> bool:
        """Return whether every node has that must."""
        return self.heard and (not self.everywhere or all(self.links.values()))

    def wait(self) -> asyncio.Future[None]:
        """Return a future that ends when it is ready or refused; who gives it up discards it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.add(future)
        return future

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, set()
        for future in waiters:
            if not future.done():
                future.set_result(None)


class Subscriber:
    """All links to the nodes of one cluster."""

    def __init__(self, cluster: Cluster, plumbing: Plumbing, audience: Audience) -> None:
        self.timeout = cluster.config.timeout
        self._cluster = cluster
        self._plumbing = plumbing
        self._audience = audience
        self._loop = asyncio.get_running_loop()
        self._wants: dict[Key, Want] = {}
        self._links: dict[str, Link] = {}
        self._primaries: frozenset[str] = frozenset()
        self._home: Link | None = None  # whose broadcasts count
        self._target = ""  # the address of who is to be home
        self._gaps: set[Key] = set()  # interrupted and not back yet
        self._again: set[Key] = set()
        self._touched: set[Link] = set()
        self._pause = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._moving: asyncio.TimerHandle | None = None
        self._stopped = False

    # What the broker calls.

    def want(self, key: Key, everywhere: bool) -> Want:
        """Subscribe, if nobody has yet; a want is shared and belongs to the broker."""
        slot = -1
        if key.kind == SHARD:
            slot = wire.key_slot(key.name) if self._cluster.sharded else 0
        want = self._wants[key] = Want(key, everywhere, slot)
        if self._target not in self._links:
            # Nobody followed the topology while there was nothing to listen to.
            self.refresh()
        self._place(want)
        if self._ticking is None and not self._stopped:
            self._ticking = self._loop.call_later(TICK, self._tick)
        return want

    def drop(self, want: Want) -> None:
        """Unsubscribe: nobody listens any more."""
        self._wants.pop(want.key, None)
        self._again.discard(want.key)
        self._close_gap(want.key)
        for link in want.links:
            link.end(want.key)
            self._touch(link)
        want.links.clear()
        want.wake()

    def refresh(self) -> None:
        """Follow a change of the topology."""
        if not self._wants:
            return
        for address, link in list(self._links.items()):
            node = self._cluster.nodes.get(address)
            if node is None or _endpoint(node) is not link.owner.endpoint:
                self._forget(link, "the node has left the cluster")
        primaries = frozenset(node.member.address for node in self._cluster.primaries())
        if primaries and (primaries != self._primaries or self._target not in self._links):
            self._primaries = primaries
            if self._target not in primaries:
                self._target = self._choose("")
            self._place_all(self._wants.values())
        else:
            self._place_all(want for want in self._wants.values() if want.key.kind == SHARD)

    def stop(self) -> None:
        self._stopped = True
        for timer in (self._ticking, self._asking, self._moving):
            if timer is not None:
                timer.cancel()
        for link in self._links.values():
            link.owner.stop()
        for want in self._wants.values():
            want.wake()

    # Where a subscription belongs.

    def _choose(self, avoided: str) -> str:
        """Return the address of a primary to listen to; any, so that sidecars spread over them."""
        nodes = self._cluster.primaries()
        good = [n for n in nodes if not n.down and n.member.address != avoided]
        chosen = random.choice(good or nodes) if nodes else None
        return chosen.member.address if chosen is not None else avoided

    def _places(self, want: Want) -> set[str]:
        if want.slot >= 0:
            owner = self._cluster.owner_of(want.slot)
            return (
                {link.address for link in want.links} if owner is None else {owner.member.address}
            )
        places = {self._target} if self._target else set()
        if want.everywhere:
            places |= self._primaries
        if self._home is not None:
            places.add(self._home.address)
        return places

    def _place_all(self, wants: Iterable[Want]) -> None:
        for want in list(wants):
            self._place(want)
        for link in list(self._links.values()):
            if link.empty and not link.connected and link.address != self._target:
                self._forget(link, "")

    def _place(self, want: Want) -> None:
        """Ask the links that must have it, and end it on others."""
        if self._stopped:
            return
        places = self._places(want)
        for link in [link for link in want.links if link.address not in places]:
            del want.links[link]
            link.end(want.key)
            self._touch(link)
        for address in places:
            opened = self._links.get(address) or self._open(address)
            if opened is not None and opened not in want.links:
                want.links[opened] = False
                opened.begin(want.key)
                self._touch(opened)
        self._notice(want)

    def _open(self, address: str) -> Link | None:
        node = self._cluster.nodes.get(address)
        if node is None:
            return None
        link = self._links[address] = Link(address, self.timeout, self)
        # A link has what a connection asks of its queue, and nobody resubmits commands to it.
        connection = UpstreamConnection(_endpoint(node), 3, 0, cast(wire.Upstream, link), self)
        connection.open()
        if self._home is None and address == self._target:
            self._home = link
        return link

    def _forget(self, link: Link, reason: str) -> None:
        """Close a link for good."""
        self._links.pop(link.address, None)
        self._touched.discard(link)
        self._lose(link, reason)
        for want in self._wants.values():
            want.links.pop(link, None)
        if self._home is link:
            self._home = self._links.get(self._target)
        link.owner.stop()

    def _touch(self, link: Link) -> None:
        if not self._touched:
            self._loop.call_soon(self._flush)
        self._touched.add(link)

    def _flush(self) -> None:
        touched, self._touched = self._touched, set()
        now = self._loop.time()
        for link in touched:
            link.owner.flush(now)

    # What links say.

    def message(self, link: Link, key: Key, channel: bytes, frame: bytes) -> None:
        if link is self._home or key.kind == SHARD or channel.startswith(EVENTS):
            self._audience.message(self._cluster.index, key, frame)

    def acked(self, link: Link, key: Key) -> None:
        want = self._wants.get(key)
        if want is not None:
            want.links[link] = True
            want.refusal = None
            self._notice(want)
        self._settle_home(link)

    def _settle_home(self, link: Link) -> None:
        """Let a link that has been told everything be home, if it is to be."""
        if link.complete and link.address == self._target:
            self._pause = 0.0
            if self._home is not link:
                self._home = link
                self._place_all(self._wants.values())

    def refused(self, link: Link, key: Key, line: bytes) -> None:
        self._settle_home(link)
        want = self._wants.get(key)
        if want is None:
            return
        want.links.pop(link, None)
        code, *words = line[1:-2].split()
        if code == b"MOVED" and len(words) == 2:
            host, _, port = words[1].decode("ascii", "replace").rpartition(":")
            node = self._cluster.named(f"{host or link.owner.endpoint.host}:{port}")
            self._cluster.refresher.hint()
            if node is not None and node.member.address != link.address:
                self._cluster.move_slot(want.slot, node)
                self._place(want)
                return
        elif code not in (b"MOVED", b"ASK", b"CLUSTERDOWN", b"LOADING", b"TRYAGAIN", b"MASTERDOWN"):
            # Its own reasons, such as an ACL: whoever waits is told, and the tick asks again.
            want.refusal = line
            want.wake()
            return
        self._ask_again(key)

    def ended(self, link: Link, key: Key) -> None:
        """Follow a shard channel to the new owner of its slot, which the old one names."""
        want = self._wants.get(key)
        if want is not None:
            want.links.pop(link, None)
            self._interrupt([want], link.address, "the slot has moved")
            self._place(want)

    def _ask_again(self, key: Key) -> None:
        self._again.add(key)
        if self._asking is None and not self._stopped:
            self._asking = self._loop.call_later(PAUSE, self._place_again)

    def _place_again(self) -> None:
        self._asking = None
        again, self._again = self._again, set()
        self._place_all(self._wants[key] for key in again if key in self._wants)

    # What connections say.

    def connected(self, connection: UpstreamConnection) -> None:
        link = self._links.get(connection.endpoint.address)
        if link is not None:
            link.greeted()
            self._settle_home(link)

    def disconnected(self, connection: UpstreamConnection, loss: Loss) -> None:
        link = self._links.get(connection.endpoint.address)
        if link is None or link.owner is not connection:
            return
        self._lose(link, loss.text)
        self._cluster.refresher.hint()
        if link is self._home or link.address == self._target:
            self._move_soon()

    def orphaned(self, connection: UpstreamConnection, orphans: list[wire.Orphan]) -> None:
        """A link has no commands of clients."""

    def _lose(self, link: Link, reason: str) -> None:
        """Note which subscriptions nobody hears any more."""
        wants = [self._wants[key] for key in link.acknowledged() if key in self._wants]
        link.connection_lost()
        for want in wants:
            want.links[link] = False
        self._interrupt([want for want in wants if not want.ready], link.address, reason)

    def _move_soon(self) -> None:
        """Look for another home: at once the first time, at a pace where that fails too."""
        if self._moving is None and not self._stopped:
            self._moving = self._loop.call_later(self._pause, self._move)
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)

    def _move(self) -> None:
        self._moving = None
        lost = self._links.get(self._target)
        if lost is not None and not lost.connected:
            self._target = self._choose(self._target)
        if self._home is not None and not self._home.connected:
            self._home = self._links.get(self._target)
        self._place_all(self._wants.values())

    def _interrupt(self, wants: list[Want], address: str, reason: str) -> None:
        if not wants:
            return
        keys = [want.key for want in wants]
        self._gaps.update(keys)
        name = self._cluster.config.name
        self._plumbing.metrics.pubsub.gaps.count(name, amount=len(keys))
        self._plumbing.states.change(
            log.WARNING, f"subscriptions {name}", "interrupted", "subscriptions_interrupted",
            cluster=name, node=address, subscriptions=len(keys), reason=reason,
        )  # fmt: skip
        self._audience.interrupted(self._cluster.index, keys)

    def _notice(self, want: Want) -> None:
        if want.ready:
            want.wake()
            self._close_gap(want.key)

    def _close_gap(self, key: Key) -> None:
        if key in self._gaps:
            self._gaps.discard(key)
            if not self._gaps:
                name = self._cluster.config.name
                self._plumbing.states.change(
                    log.INFO, f"subscriptions {name}", "restored", "subscriptions_restored",
                    cluster=name,
                )  # fmt: skip

    def _tick(self) -> None:
        """Look after links that say nothing, and what no node has taken."""
        self._ticking = None
        for link in list(self._links.values()):
            if link.empty:
                self._forget(link, "")
            else:
                link.probe()
                self._touch(link)
        self._place_all([want for want in self._wants.values() if not want.ready])
        if self._links or self._wants:
            self._ticking = self._loop.call_later(TICK, self._tick)


def _endpoint(node: Any) -> Any:
    """Return how a node is reached, as its other connections know it."""
    return node.connections[0][0].endpoint
