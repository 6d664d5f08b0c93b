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
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from proxy.config import Cluster, NodeURL
from proxy.errors import SidecacheError
from proxy.secret import Secret
from proxy.upstream.tls import ClientTLS

Answer = TypeVar("Answer")

SLOTS = 16384

# How many nodes are asked for their view. Three tell a node that was cut off from the majority
# from the others, and bound what a refresh costs in a cluster of a hundred.
VIEWS = 3

# Once one view is there, how long the other nodes that are asked may take, in seconds: a node that
# hangs must not hold up the view that takes its slots away from it.
GRACE = 0.1

# Seconds between refreshes. Without evidence a minute is enough to learn of new nodes. With it,
# one per second: redirects during a resharding patch the slot map by themselves. For a while after
# a loss the next view is what everybody waits for, and costs a few milliseconds: with the time of
# one fetch and of a connection to the new primary, service is back within 250 ms of its promotion.
PERIOD = 60.0
PACE = 1.0
URGENT_PACE = 0.08
JITTER = 0.02


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


class Vote(NamedTuple):
    """Whom one Sentinel takes for the primary."""

    member: Member
    epoch: int  # of the failover that made it the primary


class SentinelTopology:
    """The node that most Sentinels name, where it says itself that it is a primary."""

    def __init__(self, config: Cluster, tls: ClientTLS) -> None:
        self._config = config
        self._tls = tls

    async def fetch(self, known: Sequence[Member]) -> View:
        """Ask all Sentinels at the same time; one that is late or refuses has no vote."""
        answers = await self._ask_all()
        votes = [answer for answer in answers if isinstance(answer, Vote)]
        if not votes:
            raise TopologyError(f"no Sentinel names a primary: {'; '.join(map(str, answers))}")
        member = elect(votes)
        await self._check(member)
        return View(False, (member,), [0])

    async def _ask_all(self) -> list[Vote | TopologyError]:
        """Return answers in the order of the Sentinels; once more than half agree, no others."""
        counts = Counter[Member]()
        async with _together(self._ask(node) for node in self._config.nodes) as tasks:
            for next_answer in asyncio.as_completed(tasks):
                answer = await next_answer
                if isinstance(answer, Vote):
                    counts[answer.member] += 1
                    if 2 * counts[answer.member] > len(tasks):
                        break
        return [task.result() for task in tasks if not task.cancelled()]

    async def _ask(self, node: NodeURL) -> Vote | TopologyError:
        """Return whom one Sentinel names, or why it names nobody."""
        name, timeout = self._config.primary_name, self._config.timeout
        first = self._config.nodes[0]
        options = _options(timeout, first.username, first.password)
        client = self._tls.client(node.host, node.port, options)
        try:
            async with _asking(client, timeout):
                primaries: Any = await client.sentinel_masters()
                state = primaries.get(name)
                if state is None:
                    raise TopologyError(f"it does not know {name}")
                if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
                    raise TopologyError(f"{name} is down")
                member = Member(str(state["ip"]), int(state["port"]))
                return Vote(member, int(state.get("config-epoch", 0)))
        except TopologyError as error:
            return TopologyError(f"{node.host}:{node.port}: {error}")

    async def _check(self, member: Member) -> None:
        """Raise TopologyError unless a node says that it is a primary."""
        config = self._config
        options = _options(config.timeout, config.username, config.password)
        client = self._tls.client(member.host, member.port, options)
        try:
            async with _asking(client, config.timeout):
                # HELLO tells the role to everybody; for ROLE a user needs a dangerous right.
                told: list[Any] = await client.execute_command("HELLO")  # type: ignore[no-untyped-call]
                role = told[told.index("role") + 1]
        except TopologyError as error:
            raise TopologyError(f"{member.address}, which Sentinels name: {error}") from error
        if role != "master":
            raise TopologyError(
                f"{member.address}, which Sentinels name, is a {role} by its own word"
            )


def elect(votes: Sequence[Vote]) -> Member:
    """Return whom most name; of several the one of the highest epoch, then the first named."""
    counts = Counter(vote.member for vote in votes)
    return max(votes, key=lambda vote: (counts[vote.member], vote.epoch)).member


@asynccontextmanager
async def _asking(client: Redis, timeout: float) -> AsyncIterator[None]:
    """Talk to a node through redis-py; whatever goes wrong in it is a TopologyError.

    The library lets through what its parsers and the event loop raise: AttributeError amid a
    failover, RuntimeError where uvloop has closed the socket. None of it may end a refresher.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except Exception as error:
        raise TopologyError(_reason(error)) from error
    finally:
        with suppress(RedisError, OSError, RuntimeError):
            await client.aclose()


@asynccontextmanager
async def _together(
    questions: Iterable[Coroutine[None, None, Answer]],
) -> AsyncIterator[list[asyncio.Task[Answer]]]:
    """Ask at the same time; what is still unanswered at the end is given up."""
    tasks = [asyncio.create_task(question) for question in questions]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Report(NamedTuple):
    """What one node says about one node."""

    member: Member
    epoch: int
    spans: tuple[tuple[int, int], ...]  # slots, both ends included


class ClusterTopology:
    """A Redis Cluster, seen through several of its nodes."""

    def __init__(self, config: Cluster, tls: ClientTLS) -> None:
        self._config = config
        self._tls = tls

    async def fetch(self, known: Sequence[Member]) -> View:
        """Merge what up to three nodes say; for each slot the claim of the highest epoch wins."""
        seeds = [Member(node.host, node.port) for node in self._config.nodes]
        candidates = [*random.sample(list(known), len(known)), *seeds]
        addresses = list({member.address: member for member in reversed(candidates)}.values())[::-1]
        views: list[Sequence[Report]] = []
        error: Exception | None = None
        while addresses and len(views) < VIEWS:
            asked, addresses = addresses[: VIEWS - len(views)], addresses[VIEWS - len(views) :]
            for answer in await self._ask_all(asked, bool(views)):
                if isinstance(answer, Exception):
                    error = answer
                else:
                    views.append(answer)
        if not views:
            raise TopologyError(f"no node tells the topology: {_reason(error)}")
        return merge(views)

    async def _ask_all(
        self, asked: Sequence[Member], hurry: bool
    ) -> list[Sequence[Report] | Exception]:
        """Return the views that come in time, and why others do not."""
        async with _together(self._ask(member) for member in asked) as tasks:
            waiting = set(tasks)
            done = {tasks[0]}
            while waiting and done:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=GRACE if hurry else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                hurry = hurry or any(not isinstance(task.result(), Exception) for task in done)
        return [task.result() for task in tasks if task not in waiting]

    async def _ask(self, member: Member) -> Sequence[Report] | Exception:
        """Return one node's view, or why there is none."""
        config = self._config
        options = _options(config.timeout, config.username, config.password)
        client = self._tls.client(member.host, member.port, options, member.hostname)
        try:
            async with _asking(client, config.timeout):
                nodes: dict[str, dict[str, Any]] = await client.execute_command(  # type: ignore[no-untyped-call]
                    "CLUSTER NODES"
                )
                reports = read_nodes(nodes, member.host)
        except TopologyError as error:
            return error
        return reports


def read_nodes(nodes: Mapping[str, Mapping[str, Any]], asked: str) -> list[Report]:
    """Return the members in a parsed CLUSTER NODES that have an address, as one node sees them."""
    reports = []
    for address, node in nodes.items():
        flags = node["flags"].split(",")
        if "noaddr" in flags or "handshake" in flags:
            continue
        host, _, port = address.rpartition(":")
        # A node that has met nobody yet does not know its own address and says ":port".
        member = Member(host or asked, int(port), node["node_id"], node.get("hostname") or None)
        spans = tuple((int(span[0]), int(span[-1])) for span in node["slots"] if any(span))
        if not all(0 <= first <= last < SLOTS for first, last in spans):
            raise ValueError(f"{address} claims slots that do not exist")
        reports.append(Report(member, int(node["epoch"]), spans if "master" in flags else ()))
    return reports


def merge(views: Sequence[Sequence[Report]]) -> View:
    """Return one view of what several nodes report."""
    members: dict[str, Member] = {}
    ranks: dict[str, tuple[int, bool]] = {}
    claims: list[tuple[int, str, tuple[tuple[int, int], ...]]] = []
    for member, epoch, spans in (report for view in views for report in view):
        # Of two nodes that are said to live at one address the one of the younger epoch does, and
        # a name spreads later than its address.
        rank = (epoch, member.hostname is not None)
        if rank > ranks.get(member.address, (-1, False)):
            members[member.address], ranks[member.address] = member, rank
        claims.append((epoch, member.address, spans))
    if not members:
        raise TopologyError("the nodes know no node with an address")
    places = {address: index for index, address in enumerate(members)}
    owners = [-1] * SLOTS
    # The stronger claim is written last; of equal ones the first that was heard.
    claims.reverse()
    for _, address, spans in sorted(claims, key=lambda claim: claim[0]):
        for first, last in spans:
            owners[first : last + 1] = [places[address]] * (last - first + 1)
    return View(True, tuple(members.values()), owners)


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
        patience: Callable[[], float],
    ) -> None:
        """adopt takes a view and says whether it changed anything; report hears the outcome.

        patience says how long the view may stay as it is without evidence: a pace or the period.
        """
        self._topology = topology
        self._adopt = adopt
        self._report = report
        self._patience = patience
        self._evidence = asyncio.Event()
        self._loss = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.known: tuple[Member, ...] = ()

    def hint(self) -> None:
        """Bring evidence that the last view is wrong."""
        self._evidence.set()

    def hurry(self) -> None:
        """Bring word that a node was lost."""
        self._evidence.set()
        self._loss.set()

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
            self._loss.clear()
            asked = self._loop.time()
            failures = 0 if await self.refresh() else failures + 1
            # While nobody answers at all, it backs off up to the pace of an ordinary refresh.
            patience = min(PACE, URGENT_PACE * failures) if failures else self._patience()
            if patience > PACE:
                await _happens(self._evidence, asked + patience * random.uniform(0.8, 1.2))
                patience = PACE
            if patience > URGENT_PACE:
                await _happens(self._loss, asked + patience)
                patience = URGENT_PACE
            # The jitter keeps sidecars that heard of a failover together from asking together.
            pause = max(0.0, asked + patience - self._loop.time()) + random.uniform(0.0, JITTER)
            await asyncio.sleep(pause)


async def _happens(event: asyncio.Event, until: float) -> None:
    """Wait for an event, but not longer than until a moment."""
    try:
        async with asyncio.timeout_at(until):
            await event.wait()
    except TimeoutError:
        pass
