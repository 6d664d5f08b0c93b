"""How a cluster is discovered, how views are merged, and at which pace they are asked for."""

import asyncio
import contextlib
import itertools
import resource
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis._parsers.helpers import parse_cluster_nodes

from proxy.config import TLS
from proxy.embedded.node import NodeOptions, TLSFiles
from proxy.embedded.process import temporary_directory
from proxy.embedded.programs import Program
from proxy.embedded.sentinel import Monitored
from proxy.upstream.tls import ClientTLS
from proxy.upstream.topology import (
    PACE,
    PERIOD,
    SLOTS,
    URGENT_PACE,
    ClusterTopology,
    Member,
    Refresher,
    TopologyError,
    View,
    merge,
    read_nodes,
    topology_for,
)
from tests.conftest import Clusters, StartCluster
from tests.fakenode import Answer, FakeCluster, FakeNode
from tests.integration.rig import wait_for
from tests.quiet import Stopwatch
from tests.replies import pack
from tests.upstream.stand import (
    Client,
    Stand,
    cluster_config,
    fake_cluster,
    key_of,
    secret,
    standing,
)

pytestmark = pytest.mark.integration

A, B, C = "a" * 40, "b" * 40, "c" * 40


def told(*lines: str, asked: str = "10.0.0.9") -> Any:
    """Return what is read from the lines of CLUSTER NODES."""
    return read_nodes(parse_cluster_nodes("\n".join(lines)), asked)


def addresses(view: View) -> list[str | None]:
    """Return the owners of the first, middle and last slot."""
    return [
        view.members[owner].address if (owner := view.owners[slot]) >= 0 else None
        for slot in (0, SLOTS // 2, SLOTS - 1)
    ]


def test_a_view_of_one_node() -> None:
    """Primaries own what they list, replicas and migrations own nothing."""
    view = merge([
        told(
            f"{A} 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8191 [5-<-{B}]",
            f"{B} 10.0.0.2:7000@17000,redis-b.internal master - 0 0 2 connected 8192 8193-16383 "
            f"[9000->-{A}]",
            f"{C} 10.0.0.3:7000@17000 slave {A} 0 0 1 connected",
        )
    ])  # fmt: skip
    assert view.sharded
    assert [(m.address, m.node_id, m.hostname) for m in view.members] == [
        ("10.0.0.1:7000", A, None),
        ("10.0.0.2:7000", B, "redis-b.internal"),
        ("10.0.0.3:7000", C, None),
    ]
    assert addresses(view) == ["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.2:7000"]
    assert view.owners.count(-1) == 0


def test_the_younger_claim_wins_in_any_order() -> None:
    """A node that was cut off and still claims its slots is outvoted by epoch, not by number."""
    old = told(f"{A} 10.0.0.1:7000@1 master - 0 0 3 connected 0-16383")
    new = told(
        f"{A} 10.0.0.1:7000@1 master,fail - 0 0 3 disconnected",
        f"{B} 10.0.0.2:7000@1 myself,master - 0 0 4 connected 0-16383",
    )
    for views in ([old, new], [new, old], [old, new, old], [old, old, new]):
        assert addresses(merge(views)) == ["10.0.0.2:7000"] * 3


def test_of_equal_claims_the_first_is_taken() -> None:
    """Two nodes of one epoch that claim one slot are a moment's disagreement."""
    one = told(f"{A} 10.0.0.1:7000@1 master - 0 0 3 connected 0-16383")
    two = told(f"{B} 10.0.0.2:7000@1 master - 0 0 3 connected 0-16383")
    assert addresses(merge([one, two])) == ["10.0.0.1:7000"] * 3


def test_failed_nodes_stay_and_unreachable_ones_do_not() -> None:
    """A failed primary keeps its slots until another claims them; without an address it is none."""
    view = merge([
        told(
            f"{A} 10.0.0.1:7000@1 master,fail - 0 0 1 disconnected 0-8191",
            f"{B} :0@0 master,noaddr - 0 0 2 disconnected 8192-16383",
            f"{C} 10.0.0.3:7000@1 handshake - 0 0 0 disconnected",
        )
    ])  # fmt: skip
    assert [member.node_id for member in view.members] == [A]
    assert addresses(view) == ["10.0.0.1:7000", None, None]
    with pytest.raises(TopologyError):
        merge([told(f"{B} :0@0 master,noaddr - 0 0 2 disconnected 0-16383")])


def test_a_node_that_does_not_know_its_address() -> None:
    """An empty host is the one that was asked, and an IPv6 address is not an empty host."""
    (own,) = told(f"{A} :7000@17000 myself,master - 0 0 0 connected 0-1")
    assert own.member.address == "10.0.0.9:7000"
    (six,) = told(f"{A} ::1:7000@17000 myself,master - 0 0 0 connected 0-1")
    assert (six.member.host, six.member.port) == ("::1", 7000)


def test_names_and_ids_at_one_address() -> None:
    """A name is kept when only some know it; of two ids the younger epoch's lives there."""
    nameless = told(f"{A} 10.0.0.1:7000@1 master - 0 0 1 connected 0-16383")
    named = told(f"{A} 10.0.0.1:7000@1,redis-a master - 0 0 1 connected 0-16383")
    later = told(f"{B} 10.0.0.1:7000@1 master - 0 0 2 connected 0-16383")
    for views in ([nameless, named], [named, nameless]):
        assert merge(views).members == (Member("10.0.0.1", 7000, A, "redis-a"),)
    for views in ([named, later], [later, named]):
        assert [member.node_id for member in merge(views).members] == [B]


@pytest.mark.parametrize("mode", ["cluster", "sentinel"])
@pytest.mark.parametrize(
    "error", [RuntimeError("the handler is closed"), AttributeError("no attribute"), KeyError("x")]
)
async def test_what_the_library_lets_through_is_no_view(
    mode: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever redis-py raises ends one refresh and not the refresher."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("redis.asyncio.Redis.execute_command", fail)
    async with fake_cluster(1) as cluster:
        config = cluster_config(cluster.nodes, mode, primary_name="main")
        topology = topology_for(config, ClientTLS(config))
        with pytest.raises(TopologyError):
            await topology.fetch(())


@pytest.mark.parametrize(
    "line",
    [
        f"{A} 10.0.0.1:port@1 master - 0 0 1 connected 0-1",
        f"{A} 10.0.0.1:7000@1 master - 0 0 x connected 0-1",
        f"{A} 10.0.0.1:7000@1 master - 0 0 1 connected 0-16384",
        f"{A} 10.0.0.1:7000@1 master - 0 0 1 connected 9-1",
        f"{A} 10.0.0.1:7000@1 master - 0 0 1 connected x",
        f"{A} 10.0.0.1",
    ],
)
async def test_nonsense_is_no_view(line: str) -> None:
    """A node that talks nonsense is passed over, and alone it is an error with a reason."""
    with pytest.raises((ValueError, LookupError)):
        told(line)
    liar, honest = FakeNode(), FakeCluster(1)
    liar.answers["CLUSTER"] = b"$%d\r\n%b\r\n" % (len(line), line.encode())
    await liar.start()
    await honest.start()
    config = cluster_config([liar, *honest.nodes])
    view = await ClusterTopology(config, ClientTLS(config)).fetch(())
    assert [member.port for member in view.members] == [honest.nodes[0].port]
    config = cluster_config([liar])
    with pytest.raises(TopologyError, match="no node tells"):
        await ClusterTopology(config, ClientTLS(config)).fetch(())
    await liar.stop()
    await honest.stop()


async def test_dead_and_frozen_nodes_hold_up_nobody() -> None:
    """One refused and one frozen node of three cost a fraction of the timeout."""
    cluster = FakeCluster(3)
    await cluster.start()
    config = cluster_config(cluster.nodes, timeout=5.0, username="app", password=secret("pw"))
    dead = Member("127.0.0.1", cluster.nodes[0].port)
    cluster.nodes[1].script = lambda *_: Answer(b"", 60.0)
    await cluster.nodes[0].stop()
    watch = Stopwatch()
    view = await ClusterTopology(config, ClientTLS(config)).fetch((dead,))
    assert watch.spent < 1.0
    assert len(view.members) == 3
    assert cluster.nodes[2].received("AUTH") == [[b"AUTH", b"app", b"pw"]]
    assert len(cluster.nodes[2].connections) == 1
    await wait_for(lambda: not cluster.nodes[2].connections[0].open, "the end")
    await cluster.stop()


async def test_seeds_are_asked_when_everybody_known_is_gone() -> None:
    """A cluster that was replaced as a whole is found again through the configured nodes."""
    cluster = FakeCluster(2)
    await cluster.start()
    gone = [Member("127.0.0.1", 1, "x" * 40), Member("127.0.0.1", 2), Member("127.0.0.1", 3)]
    config = cluster_config(cluster.nodes)
    view = await ClusterTopology(config, ClientTLS(config)).fetch(gone)
    assert {member.port for member in view.members} == {node.port for node in cluster.nodes}
    await cluster.stop()


PRIMARY, REPLICA = 3, 4  # where they stand among the nodes of `Watched`


class Watched:
    """Three scripted Sentinels, a primary and a replica."""

    def __init__(self) -> None:
        self.nodes = [FakeNode() for _ in range(5)]
        self.sentinels = self.nodes[:3]
        self.config = cluster_config(
            self.sentinels, "sentinel", timeout=5.0, primary_name="main",
            username="app", password=secret("pw"),
        )  # fmt: skip

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()
        self.config = replace(self.config, nodes=cluster_config(self.sentinels).nodes)
        self.nodes[REPLICA].answers["HELLO"] = pack("role", "replica")
        for sentinel in self.sentinels:
            self.names(sentinel, PRIMARY)

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    def names(self, sentinel: FakeNode, index: int, epoch: int = 1, flags: str = "master") -> None:
        """Let a Sentinel take a node for the primary."""
        port = self.nodes[index].port
        sentinel.answers["SENTINEL"] = b"*1\r\n" + pack(
            "name", "main", "ip", "127.0.0.1", "port", port, "flags", flags, "config-epoch", epoch
        )

    async def found(self) -> int:
        """Return which node becomes the topology."""
        view = await topology_for(self.config, ClientTLS(self.config)).fetch(())
        (member,) = view.members
        return [node.port for node in self.nodes].index(member.port)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    servers = Watched()
    await servers.start()
    yield servers
    await servers.stop()


@pytest.mark.parametrize(
    "answer",
    [b"-NOPERM no\r\n", b"*0\r\n", b"+nonsense\r\n", Answer(b"", close="reset"), Answer(b"", 60.0)],
)
async def test_one_sentinel_that_is_of_no_use(watched: Watched, answer: bytes | Answer) -> None:
    """Refusing, ignorant, lying, lost or hung, it takes nothing away but its vote, and no time."""
    watched.sentinels[0].answers["SENTINEL"] = answer
    watch = Stopwatch()
    assert await watched.found() == PRIMARY
    assert watch.spent < 2.0


async def test_most_sentinels_are_believed(watched: Watched) -> None:
    """One that is stale is outvoted, wherever it stands and whatever its epoch; a node that is down
    is named by nobody."""
    for stale in watched.sentinels:
        watched.names(stale, REPLICA, epoch=9)
        assert await watched.found() == PRIMARY
        watched.names(stale, PRIMARY)
    watched.names(watched.sentinels[0], REPLICA, flags="master,s_down")
    watched.names(watched.sentinels[1], REPLICA, flags="master,o_down")
    assert await watched.found() == PRIMARY


async def test_as_many_sentinels_name_one_as_another(watched: Watched) -> None:
    """The later failover is believed, and of equals the Sentinel that is configured first."""
    watched.sentinels[2].answers["SENTINEL"] = b"-NOPERM no\r\n"
    watched.nodes[REPLICA].answers.clear()
    watched.names(watched.sentinels[1], REPLICA)
    assert await watched.found() == PRIMARY
    watched.names(watched.sentinels[1], REPLICA, epoch=2)
    assert await watched.found() == REPLICA


async def test_no_sentinel_names_a_primary(watched: Watched) -> None:
    """The reason tells of each Sentinel why."""
    first, second, third = watched.sentinels
    first.answers["SENTINEL"] = b"-NOPERM no rights\r\n"
    second.answers["SENTINEL"] = b"*0\r\n"
    watched.names(third, PRIMARY, flags="master,s_down")
    with pytest.raises(TopologyError) as raised:
        await watched.found()
    assert str(raised.value) == (
        f"no Sentinel names a primary: 127.0.0.1:{first.port}: no rights; "
        f"127.0.0.1:{second.port}: it does not know main; "
        f"127.0.0.1:{third.port}: main is down"
    )


async def test_a_primary_by_its_own_word(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """What says that it is none does not replace what is known, with one log line, until it is."""
    named = watched.nodes[REPLICA]
    async with standing(watched.config) as stand:
        known = list(stand.cluster.nodes)
        for sentinel in watched.sentinels:
            watched.names(sentinel, REPLICA)
        stand.cluster.refresher.hint()
        await wait_for(lambda: len(named.received("HELLO")) >= 3, "three attempts", 5.0)
        assert named.received("AUTH")[0] == [b"AUTH", b"app", b"pw"]
        assert list(stand.cluster.nodes) == known
        assert await stand.client().ask(b"SET", b"k", b"v") == b"OK"
        named.answers.clear()
        await wait_for(lambda: list(stand.cluster.nodes) != known, "the promotion", 5.0)
        assert await stand.client().ask(b"SET", b"k", b"w") == b"OK"
    assert named.values == {b"k": b"w"}
    assert caplog.text.count("topology_unknown") == 1


async def test_a_primary_that_does_not_answer(watched: Watched) -> None:
    """It is not the topology, and the reason names it."""
    await watched.nodes[PRIMARY].stop()
    with pytest.raises(TopologyError, match=f"{watched.nodes[PRIMARY].port}, which Sentinels name"):
        await watched.found()


class Script:
    """A topology that says what a test wants."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.error: TopologyError | None = None

    async def fetch(self, known: Sequence[Member]) -> View:
        self.times.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return View(False, (Member("h", 1),), [0])


class Pacing:
    """A refresher that runs, and what it did."""

    def __init__(self, patience: Callable[[], float]) -> None:
        self.script = Script()
        self.reports: list[tuple[str, str]] = []
        self.refresher = Refresher(
            self.script, lambda view: len(self.reports) == 0,
            lambda *report: self.reports.append(report), patience,
        )  # fmt: skip
        self.task = asyncio.create_task(self.refresher.run())

    async def asked(self, times: int, patience: float = 5.0) -> list[float]:
        await wait_for(lambda: len(self.script.times) >= times, f"{times} refreshes", patience)
        return self.script.times

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> float:
    """A pace of less than the second of the product, for tests that wait for it."""
    assert PACE == 1.0
    pace = 2.5 * URGENT_PACE
    monkeypatch.setattr("proxy.upstream.topology.PACE", pace)
    return pace


async def test_a_storm_of_evidence_is_one_refresh_a_pace(pace: float) -> None:
    """Redirects by the thousand ask the topology again once per second, and none not at all."""
    pacing = Pacing(lambda: PERIOD)
    await pacing.asked(1)
    begun = time.monotonic()
    while (lasted := time.monotonic() - begun) < 2 * pace:
        for _ in range(100):
            pacing.refresher.hint()
        await asyncio.sleep(0.005)
    times = pacing.script.times
    # The loop counts in milliseconds, and a machine that was held up asks later.
    assert 2 <= len(times) <= 2 + lasted / pace
    assert all(later - earlier >= pace - 0.002 for earlier, later in itertools.pairwise(times))
    assert pacing.reports[:2] == [("changed", ""), ("unchanged", "")]
    await pacing.stop()


async def test_evidence_after_a_quiet_time_is_followed_at_once(pace: float) -> None:
    """The pace limits a series, not the first."""
    pacing = Pacing(lambda: PERIOD)
    (first,) = await pacing.asked(1)
    await wait_for(lambda: asyncio.get_running_loop().time() > first + pace, "quiet")
    watch = Stopwatch()
    pacing.refresher.hint()
    await pacing.asked(2)
    assert watch.spent <= 0.1
    await pacing.stop()


async def test_a_loss_is_followed_closely_even_inside_a_pace() -> None:
    """A node that dies just after a refresh does not wait out the second."""
    patience = PERIOD
    pacing = Pacing(lambda: patience)
    await pacing.asked(1)
    pacing.refresher.hint()
    watch = Stopwatch()
    patience = URGENT_PACE
    pacing.refresher.hurry()
    times = await pacing.asked(4)
    assert watch.spent <= 3 * (URGENT_PACE + 0.1)
    # uvloop's clock counts milliseconds: a timer may seem to be one early.
    assert times[2] - times[1] >= URGENT_PACE - 0.001
    await pacing.stop()


async def test_missing_slots_are_asked_for_without_evidence(pace: float) -> None:
    """A cluster that has no owner for a slot is looked at once per second."""
    pacing = Pacing(lambda: pace)
    watch = Stopwatch()
    first, second, *_ = await pacing.asked(2)
    assert pace <= second - first
    assert watch.spent <= pace + 0.15
    await pacing.stop()


async def test_nobody_answers() -> None:
    """Failures back off to one attempt per second, and success is noticed by itself."""
    pacing = Pacing(lambda: PERIOD)
    pacing.script.error = TopologyError("nobody")
    watch = Stopwatch()
    times = await pacing.asked(2)
    assert watch.spent <= URGENT_PACE + 0.15
    await pacing.asked(4)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= URGENT_PACE
    assert set(pacing.reports) == {("failed", "nobody")}
    pacing.script.error = None
    await wait_for(lambda: ("unchanged", "") in pacing.reports, "success", 2.0)
    await pacing.stop()


async def test_everything_down_then_up_without_a_restart() -> None:
    """Commands fail at once while nobody is there, and run soon after somebody is."""
    async with fake_cluster(3) as cluster:
        await cluster.stop()
        stand = Stand(cluster_config(cluster.nodes))
        refreshing = asyncio.create_task(stand.cluster.refresher.run())
        try:
            client = stand.client()
            assert str(await client.ask(b"GET", b"k")).startswith("CLUSTERDOWN")
            await cluster.start()
            await wait_for(lambda: stand.cluster.available, "the cluster", 3.0)
            assert await client.ask(b"SET", key_of(cluster, 1), b"v") == b"OK"
            await cluster.stop()
            await wait_for(lambda: not stand.cluster.available, "the loss")
            # The goal is 5 % of a core for the proxy; the waiting of the test itself counts here,
            # and a busy machine makes both dearer. Trying without a pause takes a whole core.
            assert await _cpu_share(1.0) <= 0.25
            await cluster.start()
            await wait_for(lambda: stand.cluster.available, "the cluster", 3.0)
            assert await client.ask(b"SET", key_of(cluster, 2), b"v") == b"OK"
        finally:
            refreshing.cancel()
            await asyncio.gather(refreshing, return_exceptions=True)
            await stand.stop()


async def _cpu_share(seconds: float) -> float:
    """Return which share of a core this process takes for some time."""
    start, before = time.monotonic(), _cpu()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)
    return (_cpu() - before) / (time.monotonic() - start)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def test_the_first_view_after_a_failover_is_enough() -> None:
    """A slot whose owner died is served by its successor as soon as the cluster says so."""
    async with (
        fake_cluster(3) as cluster,
        standing(cluster_config(cluster.nodes, timeout=2.0)) as stand,
    ):
        key = key_of(cluster, 0)
        assert await stand.client().ask(b"SET", key, b"v") == b"OK"
        await cluster.nodes[0].stop()
        await wait_for(lambda: not stand.cluster.available, "the loss")
        cluster.owners = [1 if owner == 0 else owner for owner in cluster.owners]
        watch = Stopwatch()
        await wait_for(lambda: stand.cluster.available, "the new owner")
        assert watch.spent <= URGENT_PACE + 0.2
        assert await stand.client().ask(b"SET", key, b"w") == b"OK"


async def test_a_real_cluster(clusters: Clusters) -> None:
    """All members, and an owner for each slot, from any one node."""
    config = cluster_config([])
    for node in (clusters.cache.primaries[0], clusters.cache.replicas[0]):
        config = cluster_config([FakeNode(port=node.port)])
        view = await topology_for(config, ClientTLS(config)).fetch(())
        assert len(view.members) == 6
        assert -1 not in view.owners
        assert {view.members[owner].port for owner in set(view.owners)} == {
            primary.port for primary in clusters.cache.primaries
        }


async def test_real_sentinels(redis_binary: Program) -> None:
    """The primary that Sentinels name is served, and after a failover the one that follows it."""
    with temporary_directory("sidecache-test-") as directory:
        async with Monitored("watched", redis_binary, directory) as servers:
            sentinels = [FakeNode(port=sentinel.port) for sentinel in servers.sentinels]
            config = cluster_config(sentinels, "sentinel", timeout=2.0, primary_name="mymaster")
            async with standing(config) as stand:
                client = stand.client()
                assert await client.ask(b"SET", b"k", b"v") == b"OK"
                first = "{}:{}".format(*await servers.primary_address())
                assert list(stand.cluster.nodes) == [first]
                await servers.sentinels[0].ask("SENTINEL", "FAILOVER", "mymaster")
                await wait_for(lambda: list(stand.cluster.nodes) != [first], "the failover", 30.0)
                await wait_for(lambda: _writes(client), "the new primary", 5.0)


async def _writes(client: Client) -> bool:
    return bool(await client.ask(b"SET", b"k", b"w") == b"OK")


@pytest.mark.debian
async def test_tls_to_nodes_learned_from_the_topology(
    start_cluster: StartCluster, debian_redis: Program, certificates: TLSFiles
) -> None:
    """Every node of a cluster behind TLS and a password is reached, the learned ones too."""
    options = NodeOptions(tls=certificates, password="secret")
    cluster = await start_cluster(options, None, debian_redis)
    seed = FakeNode(port=cluster.primaries[0].port)
    for server_name in (None, "redis.internal"):
        config = cluster_config(
            [seed], tls=TLS(certificates.ca, server_name, None, None), password=secret("secret"),
            timeout=2.0,
        )  # fmt: skip
        async with standing(config) as stand:
            client = stand.client()
            for key in (b"key:%d" % number for number in range(60)):
                assert await client.ask(b"SET", key, b"v") == b"OK"
            nodes = stand.cluster.nodes.values()
            assert sum(node.connections[0][0].ready for node in nodes) == 3
