"""The nodes of the clusters, their connections, and the slot map that is made of them.

`app` makes one `Pools`; each cluster in it is a `ClusterPool`, which is the owner of its
connections. Always true:
  * commands go only to nodes that the cluster itself names, and a connection checks that it
    reached the node it was meant to;
  * the router's slot map is replaced as a whole, never changed;
  * a node that leaves its cluster leaves its commands to the others.
Where one orphan goes is decided in `redirects`, when the topology is asked in `topology`.
"""

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy import log, wire
from proxy.config import Cluster
from proxy.metrics import Metrics, NodeMetrics
from proxy.upstream.breaker import Breaker
from proxy.upstream.broker import Broker
from proxy.upstream.connection import Endpoint, Loss, UpstreamConnection
from proxy.upstream.dedicated import Pins
from proxy.upstream.redirects import Redirector
from proxy.upstream.tls import ClientTLS
from proxy.upstream.topology import (
    PACE,
    PERIOD,
    SLOTS,
    URGENT_PACE,
    Member,
    Refresher,
    View,
    topology_for,
)

PROTOCOLS = (2, 3)

# Slots that move one by one during a resharding are published together: each new map makes every
# client drain its pipeline once.
PUBLISH_DELAY = 0.005  # seconds

# How long after the loss of a node its cluster is watched closely, in seconds. A failover takes
# one node timeout (15 s by default) and an election; what takes longer waits for a person.
WATCHED = 60.0

# What becomes of commands that says something against their node: it cannot serve, or it owes them.
FAILURES = frozenset(("unavailable", "overdue"))

# What is asked of a node that may be back. LOADING and MASTERDOWN answer either.
STATE = wire.pack([b"CLUSTER", b"INFO"])
PING = wire.pack([b"PING"])


@dataclass(frozen=True)
class Plumbing:
    """What all connections of the process share."""

    batch: wire.Batch
    latencies: wire.Latencies
    metrics: Metrics
    states: log.StateLog


class Node:
    """One member of a cluster with its connections by protocol and lane."""

    def __init__(
        self,
        member: Member,
        index: int,
        connections: tuple[tuple[UpstreamConnection, ...], ...],
        metrics: NodeMetrics,
        cluster: "ClusterPool",
    ) -> None:
        self.member = member
        self.index = index
        self._question = STATE if cluster.sharded else PING
        self.breaker = Breaker(
            self._admit, self._ask, lambda: cluster.trusts(self), cluster.changed
        )
        self.connections = connections
        self.upstreams = tuple(tuple(c.upstream for c in lanes) for lanes in connections)
        self.metrics = metrics
        metrics.connections = lambda: sum(c.ready for c in self.all())
        metrics.in_flight = lambda: sum(c.upstream.pending for c in self.all())

    def all(self) -> Iterable[UpstreamConnection]:
        return (connection for lanes in self.connections for connection in lanes)

    @property
    def down(self) -> bool:
        return self.metrics.state == "down"

    @property
    def answered(self) -> int:
        """How many commands it has answered."""
        return sum(connection.upstream.answered for connection in self.all())

    @property
    def late(self) -> int:
        """How many of those took it long."""
        return sum(connection.upstream.late for connection in self.all())

    def _admit(self, share: int) -> None:
        for connection in self.all():
            connection.upstream.share = share

    def _ask(self, seconds: float, judge: Callable[[bool], None]) -> None:
        """Ask whether it serves."""
        connection = next((each for each in self.all() if each.ready), None)
        if connection is None:
            return

        def heard(reply: bytes) -> None:
            # An ACL may forbid the question: whoever says so is there.
            well = reply[:1] != b"-" or reply.startswith(b"-NOPERM")
            judge(well and b"cluster_state:fail" not in reply)

        now = asyncio.get_running_loop().time()
        connection.upstream.submit(self._question, 1, now, now + seconds, heard)

    def connection_like(self, other: UpstreamConnection) -> UpstreamConnection:
        """Return the connection of the same protocol and lane: order holds along a lane."""
        return self.connections[other.protocol - 2][other.lane]


class Pools:
    """All clusters, in the order of their indexes in the ruleset."""

    def __init__(self, configs: Iterable[Cluster], router: wire.Router, plumbing: Plumbing) -> None:
        self.router = router
        self.plumbing = plumbing
        self._nodes: list[Node | None] = []
        self._publishing: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        # Set by who knows it: whether the shard with this first slot, which has served since then,
        # holds what it should not; and who wants to hear that a node is lost, is back or has
        # become another's, and which slots of a cluster have another owner.
        self.lacks: Callable[[int, int, float], bool] = lambda cluster, slot, since: False
        self.changed: Callable[[], None] = lambda: None
        self.moved: Callable[[int, Iterable[int]], None] = lambda cluster, slots: None
        self.clusters = [ClusterPool(i, config, self) for i, config in enumerate(configs)]
        self.pins = Pins(self.clusters, plumbing.batch, plumbing.metrics.pins)
        self.broker = Broker(self.clusters, plumbing)

    def add(self, cluster: "ClusterPool", member: Member) -> Node:
        """Make a node and give it a place in the slot map."""
        index = self._nodes.index(None) if None in self._nodes else len(self._nodes)
        node = Node(member, index, cluster.connections(member),
                    self.plumbing.metrics.node(cluster.config.name, member.address),
                    cluster)  # fmt: skip
        if index == len(self._nodes):
            self._nodes.append(node)
        else:
            self._nodes[index] = node
        return node

    def remove(self, node: Node) -> None:
        node.breaker.stop()
        self._nodes[node.index] = None

    def node(self, index: int) -> Node | None:
        return self._nodes[index] if index >= 0 else None

    def publish_soon(self) -> None:
        if self._publishing is None:
            self._publishing = self._loop.call_later(PUBLISH_DELAY, self.publish)

    def publish(self) -> None:
        """Hand the router a slot map of how things are."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self.router.slots = wire.SlotMap(
            [(cluster.sharded, cluster.owners) for cluster in self.clusters],
            [node.upstreams if node is not None else ((), ()) for node in self._nodes],
        )
        self.broker.refresh()

    def stop(self) -> None:
        """Close every connection; what is unanswered is answered with an error."""
        if self._publishing is not None:
            self._publishing.cancel()
        self.pins.stop()
        self.broker.stop()
        for cluster in self.clusters:
            cluster.stop()


class ClusterPool:
    """One cluster: its nodes, who owns which slot, and what to do when either changes."""

    def __init__(self, index: int, config: Cluster, pools: Pools) -> None:
        self.index = index
        self.config = config
        self.sharded = config.mode == "cluster"
        self.owners = array("h", [-1] * (SLOTS if self.sharded else 1))
        self.nodes: dict[str, Node] = {}
        self._names: dict[str, Node] = {}  # by host name and port, where a node has a host name
        self._owned = Counter(self.owners)  # slots by owner
        self._pools = pools
        self._plumbing = pools.plumbing
        self.tls = ClientTLS(config)
        self._loop = asyncio.get_running_loop()
        self._watched_until = 0.0
        self._redirector = Redirector(self)
        self.refresher = Refresher(
            topology_for(config, self.tls), self._adopt, self._report, self._patience
        )

    @property
    def available(self) -> bool:
        """Return whether every slot has an owner that is not down."""
        return all(
            (node := self._pools.node(index)) is not None and not node.down
            for index, slots in self._owned.items()
            if slots
        )

    def primaries(self) -> list[Node]:
        """Return the nodes that own slots."""
        owners = (self._pools.node(index) for index, slots in self._owned.items() if slots)
        return [owner for owner in owners if owner is not None]

    @property
    def shards(self) -> list[Node | None]:
        """Return who owns slots; None stands for nobody."""
        return [self._pools.node(index) for index, slots in [*self._owned.items()] if slots]

    def trusts(self, node: Node) -> bool:
        """Return whether a node holds what it should, as far as is known."""
        if not self._owned[node.index]:
            return True
        slot = self.owners.index(node.index)
        return not self._pools.lacks(self.index, slot, node.breaker.since)

    def changed(self) -> None:
        self._pools.changed()

    def owner_of(self, slot: int) -> Node | None:
        return self._pools.node(self.owners[slot])

    def named(self, address: str) -> Node | None:
        """Return the node that goes by this host and port, if it is one of the cluster's."""
        return self.nodes.get(address) or self._names.get(address)

    def move_slot(self, slot: int, node: Node) -> None:
        """Believe a redirect: the slot lives at this node."""
        if self.owners[slot] != node.index:
            self._owned[self.owners[slot]] -= 1
            self._owned[node.index] += 1
            self.owners[slot] = node.index
            self._pools.moved(self.index, (slot,))
            if self._owned[node.index] == 1:
                self._take_over(node.index)
            self._pools.publish_soon()

    def endpoint(self, member: Member) -> Endpoint:
        """Return how a member is reached."""
        config = self.config
        return Endpoint(
            member.host, member.port, config.username, config.password, self.tls.context,
            self.tls.server_name(member.hostname or member.host), member.node_id, config.timeout,
        )  # fmt: skip

    def connections(self, member: Member) -> tuple[tuple[UpstreamConnection, ...], ...]:
        """Make the closed connections of a new member."""
        config, endpoint = self.config, self.endpoint(member)
        batch, latencies = self._plumbing.batch, self._plumbing.latencies
        return tuple(
            tuple(
                UpstreamConnection(
                    endpoint, protocol, lane,
                    wire.Upstream(batch, latencies, self.index, config.timeout), self,
                )
                for lane in range(config.connections)
            )
            for protocol in PROTOCOLS
        )  # fmt: skip

    def stop(self) -> None:
        for node in self.nodes.values():
            node.breaker.stop()
            for connection in node.all():
                connection.stop()
        self._redirector.stop()

    # What the refresher calls.

    def _adopt(self, view: View) -> bool:
        """Take a view of the topology; return whether it changed anything."""
        wanted = {member.address: member for member in view.members}
        gone = [
            self.nodes.pop(address)
            for address, node in list(self.nodes.items())
            if address not in wanted or _is_another(wanted[address], node.member)
        ]
        new = [member for address, member in wanted.items() if address not in self.nodes]
        for member in new:
            self.nodes[member.address] = self._pools.add(self, member)
        self._names = {
            f"{node.member.hostname}:{node.member.port}": node
            for node in self.nodes.values()
            if node.member.hostname
        }
        # The last place is that of owner -1. One look-up per slot: 16,384 of them hold up traffic,
        # and while a primary is awaited that is done many times a second.
        places = [*(self.nodes[member.address].index for member in view.members), -1]
        owners = array("h", [places[owner] for owner in view.owners])
        changed = bool(gone or new) or owners != self.owners
        before, self._owned = self._owned, Counter(owners)
        former, self.owners = self.owners, owners
        self._plumbing.metrics.keep_nodes(self.config.name, self.nodes)
        if changed:
            self._pools.publish()
            self._settle(gone)
            # At the first look nobody knows who has taken over from whom.
            if before[-1] < len(owners):
                for index in self._owned:
                    if index >= 0 and not before[index]:
                        self._take_over(index)
                pairs = enumerate(zip(former, owners, strict=True))
                self._pools.moved(self.index, [slot for slot, (a, b) in pairs if a != b])
            self.changed()
        return changed

    def _settle(self, gone: list[Node]) -> None:
        """Let commands that wait for a connection follow their slots, and open what is needed."""
        for node in gone:
            for connection in node.all():
                connection.retire()
            self._pools.remove(node)
        for node in self.nodes.values():
            for connection in node.all():
                if not connection.ready and connection.upstream.pending:
                    self.orphaned(connection, connection.upstream.connection_lost())
        for index in self._owned:
            owner = self._pools.node(index)
            if owner is not None:
                for connection in owner.connections[0]:
                    connection.open()

    def _take_over(self, index: int) -> None:
        if (node := self._pools.node(index)) is not None:
            node.breaker.took_over()

    def _report(self, outcome: str, reason: str) -> None:
        self._plumbing.metrics.topology_refreshes.count(self.config.name, outcome)
        subject = f"topology {self.config.name}"
        if outcome == "failed":
            self._plumbing.states.change(
                log.ERROR, subject, "unknown", "topology_unknown",
                cluster=self.config.name, reason=reason,
            )  # fmt: skip
        else:
            self._plumbing.states.change(
                log.INFO, subject, "known", "topology_known",
                cluster=self.config.name, nodes=len(self.nodes),
            )  # fmt: skip

    def _patience(self) -> float:
        """Return how long this view may stay without further evidence."""
        if self.available:
            return PERIOD
        # Clients of a slot without an owner are told so at once, and bring no evidence.
        return URGENT_PACE if self._loop.time() < self._watched_until else PACE

    # What connections call.

    def connected(self, connection: UpstreamConnection) -> None:
        self._change(connection, log.INFO, "up", "node_up")
        if (node := self.nodes.get(connection.endpoint.address)) is not None:
            node.breaker.reached()

    def disconnected(self, connection: UpstreamConnection, loss: Loss) -> None:
        node = self.nodes.get(connection.endpoint.address)
        if node is not None:
            node.metrics.error(loss.kind)
            # Attempts to reach it again are no news.
            if not node.down:
                self._watched_until = self._loop.time() + WATCHED
                self.refresher.hurry()
        # An idle connection that the node closes opens again at once; only a failure to open, or
        # a node that does not answer, makes the node one that is down.
        if not connection.upstream.available or loss.kind == "timeout":
            self._change(connection, log.WARNING, "down", "node_down", reason=loss.text)
            if node is not None:
                node.breaker.lost()
        self.refresher.hint()

    def _change(
        self, connection: UpstreamConnection, level: int, state: str, event: str, reason: str = ""
    ) -> None:
        address = connection.endpoint.address
        node = self.nodes.get(address)
        if node is None:
            return
        node.metrics.state = state
        fields = {"reason": reason} if reason else {}
        self._plumbing.states.change(
            level, f"node {self.config.name} {address}", state, event,
            cluster=self.config.name, node=address, **fields,
        )  # fmt: skip

    def orphaned(self, connection: UpstreamConnection, orphans: list[wire.Orphan]) -> None:
        node = self.nodes.get(connection.endpoint.address)
        failures = [orphan for orphan in orphans if orphan.kind in FAILURES]
        if node is not None and failures:
            if any(orphan.kind == "unavailable" for orphan in failures):
                # It says so itself, and has not heard of changes when it serves again.
                node.breaker.lost()
            else:
                node.breaker.failed(node.answered, len(failures))
            if any(orphan.kind == "overdue" and orphan.sent for orphan in failures):
                self._listen(node, connection)
        self._redirector.place(connection, orphans)

    def _listen(self, node: Node, connection: UpstreamConnection) -> None:
        """Take a node for lost that says nothing, before it owes anything for the whole timeout."""
        if self._loop.time() - connection.heard >= wire.LOOKUP_SECONDS:
            node.breaker.lost()
            self.refresher.hint()


def _is_another(member: Member, known: Member) -> bool:
    """Return whether the node at an address is not the one that is known, or has got a name."""
    renamed = member.hostname is not None and member.hostname != known.hostname
    return renamed or member.node_id != known.node_id
