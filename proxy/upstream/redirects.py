"""Where a command goes that its connection will not answer.

Called by `ClusterPool` with orphans in the order in which the node would have answered them.
Always true:
  * a command is sent again only where it is proven not to have run, or where running it twice is
    the same as once (plain reads); the client of any other is told that the outcome is unknown;
  * every orphan is resubmitted or answered, at the latest at its deadline;
  * orphans of one client keep their order: they are handled in order and travel along one lane.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from proxy import errors, wire
from proxy.upstream.connection import UpstreamConnection

# A command that was sent on five times is chased in a circle by nodes that disagree; Redis' own
# cluster clients give up at the same number.
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
    @property
    def refresher(self) -> Hint: ...
    def owner_of(self, slot: int) -> Any | None: ...
    def move_slot(self, slot: int, node: Any) -> None: ...


class Redirector:
    """Places the orphans of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._parked: list[tuple[wire.Orphan, UpstreamConnection]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._places: dict[str, Callable[[wire.Orphan, UpstreamConnection], None]] = {
            "moved": self._moved,
            "ask": self._ask,
            "tryagain": self._park,
            "unavailable": self._later,
            "readonly": self._later,
            "lost": self._lost,
            "overdue": self._give_up,
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
        """Answer what is parked."""
        if self._timer is not None:
            self._timer.cancel()
        for orphan, source in self._parked:
            self._give_up(orphan, source)
        self._parked = []

    def _moved(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        node = self._target(orphan, source)
        if node is None:
            self._later(orphan, source)
            return
        self._cluster.refresher.hint()
        self._cluster.move_slot(orphan.redirect_slot, node)
        orphan.resubmit(node.connection_like(source).upstream, False)

    def _ask(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        node = self._target(orphan, source)
        if node is None:
            self._later(orphan, source)
            return
        # The slot still belongs to the node that sent us on: the map stays as it is.
        orphan.resubmit(node.connection_like(source).upstream, True)

    def _target(self, orphan: wire.Orphan, source: UpstreamConnection) -> Any | None:
        """Return the node that a redirect names, if it is one of this cluster's."""
        if orphan.hops >= MOST_HOPS or not self._cluster.sharded:
            return None
        address = orphan.address
        if address.startswith(":"):
            # A node that does not know its own address means the one it was reached by.
            address = source.endpoint.host + address
        return self._cluster.nodes.get(address)

    def _later(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        """Try again when the topology has been asked."""
        self._cluster.refresher.hint()
        if orphan.hops >= MOST_HOPS and orphan.kind in ("moved", "ask"):
            self._give_up(orphan, source)
        else:
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
        upstream = node.connection_like(source).upstream
        if not upstream.available or upstream.overloaded:
            return False
        orphan.resubmit(upstream, False)
        return True

    def _park(self, orphan: wire.Orphan, source: UpstreamConnection) -> None:
        """Keep it, and keep its client from sending more, until somebody can take it."""
        orphan.park()
        self._parked.append((orphan, source))
        if self._timer is None:
            self._timer = self._loop.call_later(PAUSE, self._unpark)

    def _unpark(self) -> None:
        self._timer = None
        parked, self._parked = self._parked, []
        now = self._loop.time()
        for orphan, source in parked:
            if not orphan.wanted:
                continue
            if now >= orphan.deadline:
                self._give_up(orphan, source)
            elif not self._resubmit(orphan, source):
                self._park(orphan, source)

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
