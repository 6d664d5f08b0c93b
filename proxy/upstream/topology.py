"""Who is in a cluster and which node owns which slot: single node, Sentinel or Redis Cluster.

`Refresher` asks the topology of its cluster again whenever somebody brings evidence that the last
view is wrong, and hands every new view to the pool. Always true:
  * one refresh is under way at a time, and they are paced, however much evidence comes;
  * every await has a deadline;
  * a view is a value: who adopts it swaps it in as a whole.
Talking to nodes for this is control work, so redis-py does it, on connections of its own.
"""

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from proxy.config import Cluster
from proxy.errors import SidecacheError
from proxy.secret import Secret

SLOTS = 16384

# How many nodes are asked for their view. Three tell a node that was cut off from the majority
# from the others, and bound what a refresh costs in a cluster of a hundred.
VIEWS = 3

# Seconds between refreshes. Without evidence a minute is enough to learn of new nodes. With it,
# one per second: redirects during a resharding patch the slot map by themselves. While a node is
# missing the next view is what everybody waits for, and costs about a millisecond.
PERIOD = 60.0
PACE = 1.0
URGENT_PACE = 0.15
JITTER = 0.03


class TopologyError(SidecacheError):
    """No node could tell the topology."""


@dataclass(frozen=True)
class Member:
    """One node as its cluster names it."""

    host: str
    port: int
    node_id: str | None = None
    hostname: str | None = None  # what its certificate is checked against, if the cluster knows one

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class View:
    """A cluster at one moment. An owner is an index into members, -1 for nobody."""

    sharded: bool
    members: tuple[Member, ...]
    owners: Sequence[int]


class Topology(Protocol):
    """How a cluster is discovered."""

    async def fetch(self, known: Sequence[Member]) -> View:
        """Return the current view, asking known members first. Raises TopologyError."""


class SingleTopology:
    """One node that owns everything."""

    def __init__(self, config: Cluster) -> None:
        node = config.nodes[0]
        self._view = View(False, (Member(node.host, node.port),), [0])

    async def fetch(self, known: Sequence[Member]) -> View:
        return self._view


class SentinelTopology:
    """The primary that the Sentinels agree on."""

    def __init__(self, config: Cluster, tls: "ClientTLS") -> None:
        self._config = config
        self._tls = tls

    async def fetch(self, known: Sequence[Member]) -> View:
        config = self._config
        assert config.primary_name is not None
        first = config.nodes[0]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(node.host, node.port) for node in config.nodes],
            sentinel_kwargs={
                **_options(config.timeout, first.username, first.password),
                **self._tls.arguments(),
            },
        )
        try:
            async with asyncio.timeout(config.timeout * len(config.nodes)):
                host, port = await sentinel.discover_master(config.primary_name)
        except (RedisError, OSError, TimeoutError) as error:
            raise TopologyError(f"no Sentinel names a primary: {_reason(error)}") from error
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        return View(False, (Member(str(host), int(port)),), [0])


class ClusterTopology:
    """A Redis Cluster, seen through several of its nodes."""

    def __init__(self, config: Cluster, tls: "ClientTLS") -> None:
        self._config = config
        self._tls = tls

    async def fetch(self, known: Sequence[Member]) -> View:
        """Merge what up to three nodes say; for each slot the claim of the highest epoch wins."""
        seeds = [Member(node.host, node.port) for node in self._config.nodes]
        candidates = [*random.sample(list(known), len(known)), *seeds]
        addresses = list({member.address: member for member in candidates}.values())
        reports: list[dict[str, Any]] = []
        error: Exception | None = None
        while addresses and len(reports) < VIEWS:
            asked, addresses = addresses[: VIEWS - len(reports)], addresses[VIEWS - len(reports) :]
            for answer in await asyncio.gather(*map(self._ask, asked), return_exceptions=True):
                if isinstance(answer, dict):
                    reports.append(answer)
                elif isinstance(answer, Exception):
                    error = answer
                else:
                    raise answer
            if reports and error is not None and not known:
                break
        if not reports:
            raise TopologyError(f"no node tells the topology: {_reason(error)}")
        return merge(reports)

    async def _ask(self, member: Member) -> dict[str, Any]:
        config = self._config
        options = _options(config.timeout, config.username, config.password)
        client = Redis(
            host=member.host, port=member.port, **options,
            **self._tls.arguments(member.hostname or member.host),
        )  # fmt: skip
        try:
            async with asyncio.timeout(config.timeout):
                nodes: dict[str, dict[str, Any]] = await client.execute_command(  # type: ignore[no-untyped-call]
                    "CLUSTER NODES"
                )
        finally:
            await client.aclose()
        # A node that has met nobody yet does not know its own address and says ":port".
        return {
            f"{member.host}{address}" if address.startswith(":") else address: node
            for address, node in nodes.items()
        }


def merge(reports: Sequence[dict[str, Any]]) -> View:
    """Return one view of what several nodes report in CLUSTER NODES."""
    members: dict[str, int] = {}
    rows: list[Member] = []
    owners = [-1] * SLOTS
    epochs = [-1] * SLOTS
    for report in reports:
        for address, node in report.items():
            flags = node["flags"].split(",")
            if "noaddr" in flags or "handshake" in flags:
                continue
            if address not in members:
                host, _, port = address.rpartition(":")
                members[address] = len(rows)
                rows.append(Member(host, int(port), node["node_id"], node.get("hostname") or None))
            if "master" not in flags:
                continue
            epoch = int(node["epoch"])
            for first, last in ((int(span[0]), int(span[-1])) for span in node["slots"]):
                for slot in range(first, min(last, SLOTS - 1) + 1):
                    if epoch > epochs[slot]:
                        epochs[slot] = epoch
                        owners[slot] = members[address]
    if not rows:
        raise TopologyError("the nodes know no node with an address")
    return View(True, tuple(rows), owners)


class ClientTLS:
    """TLS towards the nodes of one cluster; none when its URLs are redis://."""

    def __init__(self, config: Cluster) -> None:
        self._config = config
        self.context: ssl.SSLContext | None = None
        if config.tls is not None:
            tls = config.tls
            self.context = ssl.create_default_context(cafile=tls.ca)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_2
            if tls.cert is not None:
                self.context.load_cert_chain(tls.cert, tls.key)

    def server_name(self, host: str) -> str | None:
        """Return the name that a node's certificate must carry."""
        tls = self._config.tls
        return None if tls is None else tls.server_name or host

    def arguments(self, host: str | None = None) -> dict[str, Any]:
        """Return redis-py's words for the same."""
        tls = self._config.tls
        if tls is None:
            return {}
        return {
            "ssl": True,
            "ssl_ca_certs": str(tls.ca) if tls.ca else None,
            "ssl_certfile": str(tls.cert) if tls.cert else None,
            "ssl_keyfile": str(tls.key) if tls.key else None,
            "ssl_check_hostname": tls.server_name is None or tls.server_name == host,
        }


def _options(timeout: float, username: str | None, password: Secret | None) -> dict[str, Any]:
    return {
        "username": username,
        "password": password.reveal() if password else None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        "decode_responses": True,
    }


def _reason(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__) if error is not None else "no address is known"


def topology_for(config: Cluster, tls: ClientTLS) -> Topology:
    if config.mode == "single":
        return SingleTopology(config)
    return (
        SentinelTopology(config, tls) if config.mode == "sentinel" else ClusterTopology(config, tls)
    )


class Refresher:
    """Asks a topology again on evidence, one at a time, at a bounded pace."""

    def __init__(
        self,
        topology: Topology,
        adopt: Callable[[View], bool],
        report: Callable[[str, str], None],
        urgent: Callable[[], bool],
    ) -> None:
        """adopt takes a view and says whether it changed anything; report hears the outcome."""
        self._topology = topology
        self._adopt = adopt
        self._report = report
        self._urgent = urgent
        self._evidence = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.known: tuple[Member, ...] = ()

    def hint(self) -> None:
        """Bring evidence that the last view is wrong."""
        self._evidence.set()

    async def refresh(self) -> bool:
        """Ask once; return whether there is a view."""
        try:
            view = await self._topology.fetch(self.known)
        except TopologyError as error:
            self._report("failed", str(error))
            return False
        self.known = view.members
        self._report("changed" if self._adopt(view) else "unchanged", "")
        return True

    async def run(self) -> None:
        """Refresh for ever."""
        failures = 0
        while True:
            self._evidence.clear()
            asked = self._loop.time()
            failures = 0 if await self.refresh() else failures + 1
            if failures:
                # Nobody answers at all: back off, up to the pace of an ordinary refresh.
                pace = min(PACE, URGENT_PACE * failures)
            elif self._urgent():
                pace = URGENT_PACE
            else:
                pace = PACE
                await self._wait_for_evidence()
            # The jitter keeps sidecars that heard of a failover together from asking together.
            pause = max(0.0, asked + pace - self._loop.time()) + random.uniform(0.0, JITTER)
            await asyncio.sleep(pause)

    async def _wait_for_evidence(self) -> None:
        try:
            async with asyncio.timeout(PERIOD * random.uniform(0.8, 1.2)):
                await self._evidence.wait()
        except TimeoutError:
            pass
