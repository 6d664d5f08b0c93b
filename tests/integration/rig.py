"""What the runs against real servers share: clients, relays around a cluster, figures of a process.

Nothing here judges: tests do. Everything waits for conditions under a deadline.
"""

import asyncio
import contextlib
import copy
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import hiredis

from proxy.embedded.node import Node
from proxy.embedded.process import Child, ServerFailed
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.checker import Plan, Tally
from tests.fakenode import SLOTS, key_slot
from tests.faults import Relay
from tests.quiet import Stopwatch
from tests.replies import pack

ROOT = Path(__file__).parent.parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")

# A reply that is not there after this time does not come: beyond every deadline of the proxy.
PATIENCE = 10.0  # seconds

Word = bytes | str | int


class StartProxy(Protocol):
    """The fixture `proxy_process`."""

    def __call__(self, clusters: Any = None, **blocks: Any) -> Awaitable[Sidecar]: ...


class Caller:
    """One connection that sends pipelines and returns values; errors are values too."""

    opened: ClassVar[set["Caller"]] = set()

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened.add(self)
        self.reader = reader
        self.writer = writer
        self.replies = hiredis.Reader()

    @classmethod
    async def open(cls, port: int, source: str | None = None) -> "Caller":
        """Connect, from an address of ours (all of 127.0.0.0/8 are) if one is given."""
        here = None if source is None else (source, 0)
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=here))

    async def pipeline(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        self.writer.write(b"".join(pack(*words) for words in commands))
        return [await self.next() for _ in commands]

    async def call(self, *words: Word) -> Any:
        return (await self.pipeline([words]))[0]

    async def next(self, patience: float = PATIENCE) -> Any:
        while (value := self.replies.gets()) is False:
            data = await asyncio.wait_for(self.reader.read(65536), patience)
            if not data:
                raise ConnectionResetError("closed by the other side")
            self.replies.feed(data)
        return value

    async def rest(self, patience: float = PATIENCE) -> list[Any]:
        """Return every reply until the other side closes."""
        values = []
        with contextlib.suppress(ConnectionError):
            while True:
                values.append(await self.next(patience))
        return values

    def close(self) -> None:
        self.opened.discard(self)
        self.writer.transport.abort()


def is_error(value: Any) -> bool:
    return isinstance(value, hiredis.ReplyError)


async def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> float:
    """Wait until a condition (plain or awaitable) holds; return the seconds that took.

    Seconds for which other programs had our processor count in neither.
    """
    watch = Stopwatch()
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return watch.spent
        if watch.elapsed > patience and watch.spent > patience:
            raise AssertionError(f"{what} did not happen within {patience} s")
        await asyncio.sleep(0.005)


async def check(plan: Plan) -> Tally:
    """Run the checker in a process of its own, so that it does not share our loop."""
    flags = []
    for spec in dataclasses.fields(plan):
        value, flag = getattr(plan, spec.name), "--" + spec.name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not False and value != spec.default:
            flags += [flag, str(value)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.checker", *flags, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return Tally(**json.loads(out))


@contextlib.asynccontextmanager
async def relayed(cluster: Cluster, seed: int) -> AsyncIterator[list[Relay]]:
    """Put a relay before every node, and let the nodes announce their relays' ports.

    So the topology itself leads through the relays. A cluster with replicas would replicate
    through them as well; use one without.
    """
    relays = []
    for index, node in enumerate(cluster.nodes):
        relay = Relay((node.host, node.port), seed=seed + index)
        await relay.start()
        relays.append(relay)
        await node.ask("CONFIG", "SET", "cluster-announce-port", relay.port)

    async def announced() -> bool:
        ports = {relay.port for relay in relays}
        for node in cluster.nodes:
            lines = (await node.ask("CLUSTER", "NODES")).splitlines()
            seen = {int(line.split()[1].partition("@")[0].rpartition(":")[2]) for line in lines}
            if seen != ports:
                return False
        return True

    await wait_for(announced, "all nodes to announce their relays")
    try:
        yield relays
    finally:
        for relay in relays:
            await relay.stop()


def cluster_of(relays: Sequence[Relay], **settings: Any) -> dict[str, Any]:
    """Return the block of sidecache.yaml for a cluster behind relays."""
    nodes = [f"redis://127.0.0.1:{relay.port}" for relay in relays]
    return {"mode": "cluster", "nodes": nodes, **settings}


def front_of(clusters: Mapping[str, Any], folder: Path, **blocks: Any) -> Sidecar:
    """Return a proxy, not started, in front of clusters given as blocks of sidecache.yaml."""
    # Copied one by one: two names for one block would be written as a YAML alias.
    separate = {name: copy.deepcopy(block) for name, block in clusters.items()}
    return Sidecar(configuration_for({}, **blocks) | {"clusters": separate}, folder)


def resident_bytes(pid: int | None) -> int:
    """Return how much memory a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def descriptors(pid: int | None) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def start_unready(sidecar: Sidecar) -> None:
    """Start a proxy whose clusters are down: it listens, and is not ready."""
    with contextlib.suppress(ServerFailed):
        await sidecar.start(timeout=0.1)
    if not sidecar.child.running:
        sidecar.child.start()

    async def listening() -> bool:
        try:
            caller = await Caller.open(sidecar.port)
        except OSError:
            return False
        caller.close()
        return True

    await wait_for(listening, "the proxy to listen")


def run_from(sidecar: Sidecar, tree: Path) -> None:
    """Let a proxy that is not started yet run the code of another tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    launch = dataclasses.replace(sidecar.child.launch, environment=environment)
    sidecar.child = Child(sidecar.child.name, launch)


def limit_descriptors(sidecar: Sidecar, count: int) -> None:
    """Let a proxy that is not started yet have only so many descriptors."""
    launch = sidecar.child.launch
    arguments = ("prlimit", f"--nofile={count}:{count}", *launch.arguments)
    sidecar.child = Child(sidecar.child.name, dataclasses.replace(launch, arguments=arguments))


async def direct(cluster: Cluster, *words: Word) -> Any:
    """Send a command with a key past the proxy, to whichever node has it."""
    for node in cluster.primaries:
        caller = await Caller.open(node.port)
        try:
            value = await caller.call(*words)
        finally:
            caller.close()
        if not (is_error(value) and str(value).startswith("MOVED")):
            return value
    raise AssertionError(f"no node has the key of {words}")


async def keys_on(cluster: Cluster, node: Node, count: int) -> list[str]:
    """Return count keys that live on one primary of a cluster."""
    ranges = (await cluster.members())[node.id].ranges
    keys: list[str] = []
    number = 0
    while len(keys) < count:
        key = f"on:{number}"
        number += 1
        slot = key_slot(key.encode())
        if any(first <= slot <= last for first, last in ranges):
            keys.append(key)
    return keys


class Mover:
    """Moves slots between the primaries of a cluster as `redis-cli --cluster reshard` does."""

    CHANNEL = "settle"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.links: dict[str, Caller] = {}
        self.ears: dict[str, Caller] = {}

    async def open(self) -> None:
        for node in self.cluster.primaries:
            self.links[node.id] = await Caller.open(node.port)
            self.ears[node.id] = await Caller.open(node.port)
            await self.ears[node.id].call("SUBSCRIBE", self.CHANNEL)

    async def owners(self) -> list[Node]:
        """Return the primary of every slot."""
        members = await self.cluster.members()
        table: list[Node | None] = [None] * SLOTS
        for node in self.cluster.primaries:
            for first, last in members[node.id].ranges:
                table[first : last + 1] = [node] * (last - first + 1)
        return [node for node in table if node is not None]

    async def ask(self, node: Node, *words: Word) -> Any:
        value = await self.links[node.id].call(*words)
        if is_error(value):
            raise AssertionError(f"{node.name}: {words}: {value}")
        return value

    async def settle(self) -> None:
        """Wait until no message of before is on its way, and all nodes agree on epochs and slots.

        A node that takes its first slot gives itself a new epoch, above those it has heard of. If
        it had not heard of the latest, two claims would carry the same epoch, and a node could
        lose slots with the keys in them. So a new target begins only when everybody agrees.
        """
        await self._hear_out()

        async def agreed() -> bool:
            views = set()
            for node in self.cluster.primaries:
                lines = str((await self.ask(node, "CLUSTER", "NODES")).decode()).splitlines()
                rows = (line.split() for line in lines)
                views.add(tuple(sorted((row[0], row[6], *row[8:]) for row in rows)))
            return len(views) == 1

        await wait_for(agreed, "agreement of all nodes")

    async def _hear_out(self) -> None:
        """Wait until every node has read what the others had sent it so far.

        Agreement does not tell that: nodes learn of a move from us, before they learn of it from
        each other. A target that reads a message its source had sent before the slot was the
        source's own takes the slot at once, without its keys. What a node publishes goes the same
        way as its messages, behind those that it had sent.
        """
        nodes = self.cluster.primaries
        for node in nodes:
            await self.ask(node, "PUBLISH", self.CHANNEL, node.id)
        for node in nodes:
            heard = {(await self.ears[node.id].next())[2] for _ in nodes}
            assert len(heard) == len(nodes), f"{node.name} heard {heard}"

    async def move(self, slot: int, source: Node, target: Node) -> int:
        """Move one slot with its keys and return how many keys there were."""
        await self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        await self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        moved = 0
        while keys := await self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            await self.ask(source, "MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        for node in (target, source, *self.cluster.primaries):
            await self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target.id)
        return moved

    def close(self) -> None:
        for link in (*self.links.values(), *self.ears.values()):
            link.close()
