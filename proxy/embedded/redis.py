"""Redis as applications meet it: a cluster or a single node. (`sentinel` has the third kind.)

Used by the demo, the tests and the benchmarks, as `async with Cluster(...) as cluster:`.

Always true:
  * a started cluster is ready on *every* node: state ok, all slots, all nodes and replicas known
    to each other, all replicas in sync. A client may ask any of them;
  * one that fails or is cancelled half-way has ended the nodes that it had started.

It takes 2.1 s however many start side by side: a primary refuses writes for two seconds after
its first look at the cluster, and nothing shortens that.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from proxy.embedded.node import Node, NodeError, NodeOptions, parse_fields
from proxy.embedded.process import EmbeddedError, stop_all, wait_until
from proxy.embedded.programs import Program, find_redis

SLOTS = 16384

# Seven times what a cluster needs on an idle machine.
READY_TIMEOUT = 15.0  # seconds

# Where tests find a cluster that they may write to and empty.
EXISTING_CLUSTER = "SIDECACHE_TEST_REDIS_URL"


class Servers:
    """A group of nodes that start and stop together."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and wait until it can be used."""
        try:
            await self._form()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all nodes."""
        ours = [node for node in self.nodes if node.pid is not None]
        await stop_all([node.child for node in ours])
        for node in ours:
            node.release()

    async def _form(self) -> None:
        raise NotImplementedError

    @property
    def primaries(self) -> list[Node]:
        """The primaries that run; a killed one keeps its role until somebody replaces it."""
        return [node for node in self._running() if node.role == "primary"]

    @property
    def replicas(self) -> list[Node]:
        return [node for node in self._running() if node.role == "replica"]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    async def flush(self) -> None:
        """Remove every key and function library."""
        for node in self.primaries:
            await node.ask("FLUSHALL")
            await node.ask("FUNCTION", "FLUSH")

    def _running(self) -> list[Node]:
        return [node for node in self.nodes if node.running or node.pid is None]

    async def _wait(self, missing: Callable[[], Awaitable[str | None]], timeout: float) -> None:
        children = [node.child for node in self.nodes if node.running]
        await wait_until(missing, timeout, children)


@dataclass(frozen=True)
class Shape:
    """How many nodes a cluster has; replicas are dealt out to the primaries in turn."""

    primaries: int = 3
    replicas: int = 3


class Cluster(Servers):
    """A Redis Cluster."""

    def __init__(
        self,
        name: str,
        program: Program,
        directory: Path,
        options: NodeOptions | None = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(name, directory)
        self.program = program
        self.options = options or NodeOptions()
        self.shape = shape or Shape()

    async def _form(self) -> None:
        """Start the nodes and make one cluster of them.

        The order matters: slots and epochs are set before the nodes meet, so that they agree on
        the first exchange instead of settling conflicts; replicas follow when everybody knows
        everybody.
        """
        count = self.shape.primaries + self.shape.replicas
        self.nodes = [self._node(number) for number in range(1, count + 1)]
        await together(node.start(clustered=True) for node in self.nodes)
        primaries = self.nodes[: self.shape.primaries]
        await together(self._own_slots(index, node) for index, node in enumerate(primaries))
        first = self.nodes[0]
        for node in self.nodes:  # a single node meets itself, without which 7.0 stays down
            await first.ask("CLUSTER", "MEET", node.host, node.port, node.bus_port)
        await self._wait(self._strangers, READY_TIMEOUT)
        for index, node in enumerate(self.nodes[self.shape.primaries :]):
            await self._replicate(node, primaries[index % len(primaries)])
        await self.wait_ready()

    def _node(self, number: int) -> Node:
        name = f"{self.name}-{number}"
        return Node(name, self.program, self.directory / name, self.options)

    async def _own_slots(self, index: int, node: Node) -> None:
        count = self.shape.primaries
        first, last = SLOTS * index // count, SLOTS * (index + 1) // count - 1
        await node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        await node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)

    async def _strangers(self) -> str | None:
        for node in self.nodes:
            node.id = await node.ask("CLUSTER", "MYID")
            known = parse_fields(await node.ask("CLUSTER", "INFO"))["cluster_known_nodes"]
            lines = await node.ask("CLUSTER", "NODES")
            if int(known) < len(self.nodes) or "handshake" in lines:
                return f"{node.name} knows {known} of {len(self.nodes)} nodes"
        return None

    async def _replicate(self, node: Node, primary: Node) -> None:
        """Make node a replica; it refuses until it has heard that the other is a primary."""

        async def refused() -> str | None:
            try:
                await node.ask("CLUSTER", "REPLICATE", primary.id)
            except NodeError as error:
                return str(error)
            node.role = "replica"
            return None

        await self._wait(refused, READY_TIMEOUT)

    async def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every running node says that the cluster is whole, then note the roles.

        Nodes that were killed are left out, so this also waits for a failover to be over.
        """
        await self._wait(self._unready, timeout)
        await self.refresh()

    async def _unready(self) -> str | None:
        running = self._running()
        for node in running:
            try:
                reason = await self._unready_node(node, [other.id for other in running])
            except (OSError, TimeoutError, NodeError) as error:
                reason = f"no answer: {error}"
            if reason is not None:
                return f"{node.name} ({node.address}): {reason}"
        return None

    async def _unready_node(self, node: Node, ids: Sequence[str]) -> str | None:
        state = parse_fields(await node.ask("CLUSTER", "INFO"))
        if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != str(SLOTS):
            return f"cluster_state:{state['cluster_state']} slots:{state['cluster_slots_ok']}"
        members = _parse_members(await node.ask("CLUSTER", "NODES"))
        alive = [members[id] for id in ids if id in members and not members[id].failing]
        if len(alive) < len(ids):
            return f"sees {len(alive)} of {len(ids)} nodes"
        if (
            sum(member.role == "primary" and member.slots > 0 for member in alive)
            < self.shape.primaries
        ):
            return "does not know all primaries"
        if any(member.role == "primary" and not member.slots for member in alive):
            return "has not heard yet who is a replica"
        replication = await node.info("replication")
        if replication["role"] == "slave" and replication["master_link_status"] != "up":
            return "is not in step with its primary"
        return None

    async def refresh(self) -> None:
        """Note who is primary and who is replica, as a running node sees it."""
        members = await self.members()
        for node in self.nodes:
            if (member := members.get(node.id)) is not None:
                node.role = member.role

    async def members(self) -> Mapping[str, "Member"]:
        """Return the cluster's members by node id, as the first answering node sees them."""
        for node in self._running():
            try:
                return _parse_members(await node.ask("CLUSTER", "NODES"))
            except (OSError, TimeoutError, NodeError):
                continue
        raise EmbeddedError(f"no node of {self.name} answers")

    async def owner(self, slot: int) -> Node:
        """Return the primary of a slot."""
        members = await self.members()
        for node in self.nodes:
            member = members.get(node.id)
            if member is not None and any(first <= slot <= last for first, last in member.ranges):
                return node
        raise EmbeddedError(f"nobody of {self.name} owns slot {slot}")

    async def replicas_of(self, primary: Node) -> list[Node]:
        """Return the nodes that follow a primary."""
        members = await self.members()
        return [
            node
            for node in self.nodes
            if node.id in members and members[node.id].follows == primary.id
        ]


@dataclass(frozen=True)
class Member:
    """A line of CLUSTER NODES."""

    id: str
    host: str
    port: int
    role: str  # "primary" or "replica"
    follows: str  # the id of its primary, "-" for a primary
    failing: bool
    ranges: tuple[tuple[int, int], ...]

    @property
    def slots(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)


def _parse_members(text: str) -> dict[str, Member]:
    return {member.id: member for member in map(_parse_member, text.splitlines())}


def _parse_member(line: str) -> Member:
    id, address, flags, follows, _, _, _, link, *slots = line.split()
    host, _, port = address.partition(",")[0].partition("@")[0].rpartition(":")
    words = flags.split(",")
    ranges = []
    for word in slots:
        if not word.startswith("["):  # a slot on its way is listed as [slot->-id] as well
            first, _, last = word.partition("-")
            ranges.append((int(first), int(last or first)))
    role = "replica" if "slave" in words else "primary"
    failing = "fail" in words or "fail?" in words or link != "connected"
    return Member(id, host, int(port), role, follows, failing, tuple(ranges))


class ExistingCluster(Cluster):
    """A cluster that somebody else runs: used, never stopped; its nodes cannot be killed."""

    def __init__(self, name: str, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        options = NodeOptions(
            user=unquote(parts.username or ""), password=unquote(parts.password or "")
        )
        program = Program(Path(), "", f"named by {EXISTING_CLUSTER}")
        super().__init__(name, program, directory, options)
        self._seed = (parts.hostname or "127.0.0.1", parts.port or 6379)

    async def _form(self) -> None:
        seed = self._node(0)
        seed.host, seed.port = self._seed
        members = _parse_members(await seed.ask("CLUSTER", "NODES")).values()
        for number, member in enumerate(members, 1):
            node = self._node(number)
            node.host, node.port = member.host or seed.host, member.port
            node.id, node.role = member.id, member.role
            self.nodes.append(node)
        self.shape = Shape(len(self.primaries), len(self.replicas))
        await self.wait_ready()


class Single(Servers):
    """One node without cluster mode."""

    def __init__(
        self, name: str, program: Program, directory: Path, options: NodeOptions | None = None
    ) -> None:
        super().__init__(name, directory)
        self.node = Node(name, program, directory / name, options or NodeOptions())

    async def _form(self) -> None:
        self.nodes = [self.node]
        await self.node.start()


def cluster_for(name: str, directory: Path, options: NodeOptions | None = None) -> Cluster:
    """Return the cluster to use here, not started: the existing one, or one of our own nodes."""
    if url := os.environ.get(EXISTING_CLUSTER):
        return ExistingCluster(name, url, directory)
    return Cluster(name, find_redis(), directory, options)


async def together(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side; when one fails the others are cancelled, and it is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
