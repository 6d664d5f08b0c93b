"""Where a command goes that its connection will not answer.

Called by `ClusterPool` with orphans in the order in which the node would have answered them.
Always true:
  * a command is sent again only where it is proven not to have run, or where running it twice is
    the same as once (plain reads); the client of any other is told that the outcome is unknown;
  * every orphan is resubmitted or answered, at the latest at its deadline;
  * orphans of one client in one slot keep their order (a `Train`): all that are under way are in
    one queue, and who would go elsewhere waits until those before him are answered or refused.
Order is kept per slot, as in any Redis Cluster: over two slots nodes share no clock. What a node
was sent before its first refusal was known it runs or refuses by itself, TRYAGAIN included.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from proxy import errors, wire
from proxy.upstream.connection import UpstreamConnection

# A command that was sent on five times may be chased in a circle by nodes that disagree. From there
# on it pauses before each hop, until its deadline: it may as well have waited for a migration that
# has just ended, and then the next hop is the right one.
MOST_HOPS = 5

# Pause before a command that nobody can run yet is tried again, in seconds: a fraction of the
# migration of one key with many elements, and small against the time of a failover.
PAUSE = 0.02


class Hint(Protocol):
    """Somebody who asks the topology again."""

    def hint(self) -> None: ...


class Cluster(Protocol):
    """The pool of one cluster, as this module sees it. A node of it is opaque here."""

    sharded: bool

    @property
    def nodes(self) -> Mapping[str, Any]: ...
    def named(self, address: str) -> Any | None:
        """Return the node that goes by this host and port, if it is one of the cluster's."""

    @property
    def refresher(self) -> Hint: ...
    def owner_of(self, slot: int) -> Any | None: ...
    def move_slot(self, slot: int, node: Any) -> None: ...


class Parked(NamedTuple):
    """A command that waits, where it came from, and who is to be asked with ASKING, if anybody."""

    orphan: wire.Orphan
    source: UpstreamConnection
    asked: UpstreamConnection | None


class Redirector:
    """Places the orphans of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._parked: list[Parked] = []
        self._trains: dict[tuple[Any, int], wire.Train] = {}  # by client and slot
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._places: dict[str, Callable[[wire.Orphan, UpstreamConnection], None]] = {
            "moved": self._moved,
            "ask": self._ask,
            "tryagain": self._try_again,
            "unavailable": self._later,
            "readonly": self._later,
            "lost": self._lost,
            "overdue": self._give_up,
            "oversized": self._refuse,
        }

    def place(self, source: UpstreamConnection, orphans: list[wire.Orphan]) -> None:
        """Resubmit, park or answer each of them."""
        node = self._cluster.nodes.get(source.endpoint.address)
        for orphan in orphans:
            if node is not None:
                node.metrics.redirect(orphan.kind)
            if orphan.wanted:
                self._places[orphan.kind](orphan, source)

    def stop(self) -> None:
        """Answer what is parked, and from here on whatever cannot be placed."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for parked in self._parked:
            self._give_up(parked.orphan, parked.source)
        self._parked = []

    def _moved(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        self._cluster.refresher.hint()
        node = self._target(orphan, source)
        if node is not None:
            self._cluster.move_slot(orphan.redirect_slot, node)
        if node is None or not self._hop(orphan, node.connection_like(source), False):
            self._park(orphan, source)

    def _ask(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        # The slot still belongs to the node that sent us on: the map stays as it is.
        node = self._target(orphan, source)
        if node is None:
            self._later(orphan, source)
            return
        target = node.connection_like(source)
        if not self._hop(orphan, target, True):
            self._park(orphan, source, target)

    def _try_again(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        """Wait for the keys of a migrating slot to come together.

        A node that does not own the slot was asked with ASKING, and is asked like that again.
        """
        owner = self._cluster.owner_of(orphan.slot)
        owned = owner is None or owner.connection_like(source) is source
        self._park(orphan, source, None if owned else source)

    def _hop(self, orphan: wire.Orphan, target: UpstreamConnection, asking: bool) -> bool:
        """Send it on at once, unless it has to pause first."""
        if orphan.hops >= MOST_HOPS or not target.upstream.available:
            return False
        return self._send(orphan, target, asking)

    def _send(self, orphan: wire.Orphan, target: UpstreamConnection, asking: bool) -> bool:
        """Queue it, unless one before it in its client's order is parked or queued elsewhere.

        Nor behind one that comes after it: that one will be refused as well, and then follow it.
        """
        train = self._train_of(orphan)
        behind = train.upstream is target.upstream and train.newest < orphan.ticket
        if train.waiting or (train.under_way and not behind):
            return False
        target.resubmit(orphan, asking, train)
        self._look_later()
        return True

    def _train_of(self, orphan: wire.Orphan) -> wire.Train:
        return self._trains.setdefault((orphan.client, orphan.slot), wire.Train())

    def _target(self, orphan: wire.Orphan, source: UpstreamConnection) -> Any | None:
        """Return the node that a redirect names, if it is one of this cluster's."""
        if not self._cluster.sharded:
            return None
        host, _, port = orphan.address.rpartition(":")
        # A node that does not know its own address means the one it was reached by.
        return self._cluster.named(f"{host or source.endpoint.host}:{port}")

    def _later(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        """Try again when the topology has been asked."""
        self._cluster.refresher.hint()
        self._park(orphan, source)

    def _lost(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        if orphan.sent and not orphan.repeatable:
            orphan.answer(errors.UNKNOWN_OUTCOME, self._loop.time())
        elif self._loop.time() >= orphan.deadline:
            self._give_up(orphan, source)
        elif not self._resubmit(orphan, source):
            self._park(orphan, source)

    def _resubmit(self, orphan: wire.Orphan, source: UpstreamConnection) -> bool:
        """Queue it at the owner of its slot, if there is one that can take it."""
        node = self._cluster.owner_of(orphan.slot)
        if node is None:
            return False
        target = node.connection_like(source)
        if not target.upstream.available or target.upstream.overloaded:
            return False
        return self._send(orphan, target, False)

    def _park(
        self,
        orphan: wire.Orphan,
        source: UpstreamConnection,
        asked: UpstreamConnection | None = None,
    ) -> None:
        """Keep it, and keep its client from sending more, until somebody can take it."""
        if self._stopped or self._loop.time() >= orphan.deadline:
            self._give_up(orphan, source)
            return
        if orphan.detours:
            # PostgreSQL answers sooner than a replica is promoted.
            orphan.answer(errors.CLUSTERDOWN, self._loop.time())
            return
        orphan.park()
        self._parked.append(Parked(orphan, source, asked))
        self._train_of(orphan).waiting = True
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(PAUSE, self._look)

    def _look(self) -> None:
        """Send on what can be, and forget the trains that have arrived."""
        self._timer = None
        for train in self._trains.values():
            train.waiting = False
        self._unpark()
        self._trains = {
            whose: train
            for whose, train in self._trains.items()
            if train.waiting or train.under_way
        }
        if self._trains:
            self._look_later()

    def _unpark(self) -> None:
        # Of two in one slot the earlier may have come here later, from one node more.
        parked = sorted(self._parked, key=lambda parked: parked.orphan.ticket)
        self._parked = []
        now = self._loop.time()
        for orphan, source, asked in parked:
            if not orphan.wanted:
                continue
            if now >= orphan.deadline:
                self._give_up(orphan, source)
            elif asked is not None and asked.upstream.available:
                if not self._send(orphan, asked, True):
                    self._park(orphan, source, asked)
            elif not self._resubmit(orphan, source):
                self._park(orphan, source)

    def _refuse(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        # Sent again it would have the same reply.
        orphan.answer(errors.REPLY_TOO_LARGE, self._loop.time())

    def _give_up(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        """Answer in the node's own words, or in ours where it said nothing."""
        if orphan.kind == "overdue" or orphan.kind == "lost":
            unknown = orphan.sent and not orphan.repeatable
            reply = errors.UNKNOWN_OUTCOME if unknown else errors.TIMEOUT
        elif orphan.kind in ("moved", "ask") or orphan.reply is None:
            # Clients of a proxy must never see a redirect: they could not follow it.
            reply = errors.CLUSTERDOWN
        else:
            reply = orphan.reply
        orphan.answer(reply, self._loop.time())
