"""Real servers for every test that asks for them, started once and only when asked for.

A test that uses one of these fixtures is marked `integration`. The clusters are shared: a test
that kills, freezes or reconfigures nodes starts its own with `start_cluster`.
"""

import asyncio
import contextlib
import gc
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import trustme
import uvloop

from proxy.embedded.node import Node, NodeOptions, TLSFiles
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.process import EmbeddedError, temporary_directory
from proxy.embedded.programs import Program, find_redis
from proxy.embedded.redis import Cluster, Servers, Shape, Single, cluster_for, together
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.origin.activity import TABLES, execute
from tests.origin.bench import Connection, connected, database
from tests.toolchain import Toolchain

# Where Debian and its derivatives put the server whose TLS and age the suite needs.
DEBIAN_REDIS = Path("/usr/bin/redis-server")

_DATABASES = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=["redis-apt"],
        help="fail where tests would be skipped for want of this",
    )


TOOLCHAIN = pytest.StashKey[Toolchain]()


def pytest_collection() -> None:
    """Collect without the collector: nearly all that is made then stays."""
    gc.disable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ask the tools last, as they run beside the other tests, or first, in a worker of several.

    Tests with servers are grouped by module: a worker does them one after the other, on servers
    that it starts once and keeps for the next such group.
    """
    items.sort(key=needs_tools, reverse=is_worker(config))
    for item in items:
        if item.get_closest_marker("integration") is not None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def needs_tools(item: pytest.Item) -> bool:
    return "toolchain" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    tools = session.config.stash[TOOLCHAIN] = Toolchain()
    # All workers collect all tests: the tools wait for the one that is given the tests of them.
    here = not (session.config.option.collectonly or is_worker(session.config))
    if here and any(map(needs_tools, session.items)):
        tools.start()
    # What was imported and collected stays to the end: no collection need look at it again.
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    cache = getattr(session.config, "cache", None)
    if not is_worker(session.config) and cache is not None:
        # For who has it from make, which has one status for all.
        cache.set("sidecache/status", int(exitstatus))
    if (tools := session.config.stash.get(TOOLCHAIN, None)) is not None:
        tools.stop()


@pytest.fixture(scope="session")
def toolchain(request: pytest.FixtureRequest) -> Toolchain:
    """The tools that were started when tests were collected."""
    return request.config.stash[TOOLCHAIN]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test under the loop that the product runs under."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A short path, for unix sockets, that PostgreSQL's user can enter."""
    with temporary_directory("sidecache-tests-") as directory:
        yield directory


@pytest.fixture(scope="session")
def redis_binary() -> Program:
    """The server under test; SIDECACHE_REDIS_BIN chooses another."""
    return find_redis()


@pytest.fixture(scope="session")
def debian_redis(request: pytest.FixtureRequest) -> Program:
    """A Redis of the oldest supported version that was built with TLS."""
    program = None
    with contextlib.suppress(EmbeddedError):
        program = find_redis({"SIDECACHE_REDIS_BIN": str(DEBIAN_REDIS)})
    if program is not None and program.tls:
        return program
    reason = f"{DEBIAN_REDIS} with TLS is missing: apt-get install redis-server"
    if "redis-apt" in request.config.getoption("--require"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_cli(request: pytest.FixtureRequest) -> str:
    """The command line of Redis, which no wheel brings along."""
    if (found := shutil.which("redis-cli")) is not None:
        return found
    reason = "redis-cli is missing: apt-get install redis-tools"
    if "redis-apt" in request.config.getoption("--require"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def certificates(server_directory: Path) -> TLSFiles:
    """An authority, and a node's certificate for redis.internal and 127.0.0.1."""
    authority = trustme.CA()
    issued = authority.issue_cert("redis.internal", "localhost", "127.0.0.1")
    files = TLSFiles(*(server_directory / f"{name}.pem" for name in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(str(files.ca))
    issued.cert_chain_pems[0].write_to_path(str(files.cert))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


@dataclass(frozen=True)
class Clusters:
    """The two that the proxy stands in front of."""

    locks: Cluster
    cache: Cluster


@pytest.fixture(scope="session")
async def clusters(server_directory: Path) -> AsyncIterator[Clusters]:
    """Both clusters, 3 + 3 each, started side by side."""
    locks = cluster_for("locks", server_directory / "locks")
    policy = NodeOptions(maxmemory_policy="allkeys-lfu")
    cache = cluster_for("cache", server_directory / "cache", policy)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(locks.stop)
        stack.push_async_callback(cache.stop)
        await together([locks.start(), cache.start()])
        yield Clusters(locks, cache)


@pytest.fixture(scope="session")
def locks_cluster(clusters: Clusters) -> Cluster:
    return clusters.locks


@pytest.fixture(scope="session")
def cache_cluster(clusters: Clusters) -> Cluster:
    return clusters.cache


@pytest.fixture
async def empty_clusters(clusters: Clusters) -> Clusters:
    """The shared clusters without the keys of other tests."""
    await together([clusters.locks.flush(), clusters.cache.flush()])
    return clusters


@pytest.fixture(scope="session")
async def plain_redis(redis_binary: Program, server_directory: Path) -> AsyncIterator[Node]:
    """One node without cluster mode, to compare with."""
    async with Single("plain", redis_binary, server_directory) as servers:
        yield servers.node


class StartCluster(Protocol):
    """Starts a cluster of the test's own."""

    def __call__(
        self,
        options: NodeOptions | None = None,
        shape: Shape | None = None,
        program: Program | None = None,
    ) -> Awaitable[Cluster]: ...


@pytest.fixture
async def start_cluster(redis_binary: Program) -> AsyncIterator[StartCluster]:
    """Clusters that a test may kill; ended with it."""
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory("sidecache-test-"))
        names = (f"own{number}" for number in range(1, 100))

        async def start(
            options: NodeOptions | None = None,
            shape: Shape | None = None,
            program: Program | None = None,
        ) -> Cluster:
            cluster = Cluster(next(names), program or redis_binary, directory, options, shape)
            return await stack.enter_async_context(cluster)

        yield start


@pytest.fixture(scope="session")
async def postgres_server(server_directory: Path) -> AsyncIterator[Postgres]:
    async with postgres_for(server_directory / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
async def postgres(postgres_server: Postgres) -> str:
    """The address of an empty database."""
    return await postgres_server.create_database("tests")


@pytest.fixture
async def url(postgres_server: Postgres) -> AsyncIterator[str]:
    """The address of a database of the test's own, with tables whose changes are noted."""
    async with database(postgres_server) as url:
        yield url


@pytest.fixture
async def writer(url: str) -> AsyncIterator[Connection]:
    """A connection to it, for who changes rows."""
    async with connected(url) as connection:
        yield connection


@pytest.fixture
async def activity(postgres_server: Postgres) -> AsyncIterator[str]:
    """The address of a database of the test's own, with a table that is written behind."""
    name = f"activity{next(_DATABASES)}"
    dsn = await postgres_server.create_database(name)
    await execute(dsn, TABLES)
    yield dsn
    await postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def both_clusters(clusters: Clusters) -> dict[str, Servers]:
    """The shared clusters by the names that sidecache.yaml gives them."""
    return {"locks": clusters.locks, "cache": clusters.cache}


class StartProxy(Protocol):
    """Starts a proxy; blocks of sidecache.yaml replace those of the default.

    It is back when the proxy has reached its clusters; with degraded, as soon as it serves.
    """

    def __call__(
        self,
        clusters: Mapping[str, Servers] | None = None,
        *,
        degraded: bool = False,
        **blocks: Any,
    ) -> Awaitable[Sidecar]: ...


@pytest.fixture
async def proxy_process(both_clusters: dict[str, Servers]) -> AsyncIterator[StartProxy]:
    """Proxies as processes of their own, on free ports; ended with the test.

    In front of the shared clusters unless the test names others: {"cache": cluster, …}.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory("sidecache-test-"))
        names = (f"proxy{number}" for number in range(1, 100))

        async def start(
            clusters: Mapping[str, Servers] | None = None, *, degraded: bool = False, **blocks: Any
        ) -> Sidecar:
            configuration = configuration_for(clusters or both_clusters, **blocks)
            sidecar = Sidecar(configuration, directory / next(names))
            stack.push_async_callback(sidecar.stop)
            await sidecar.start(degraded=degraded)
            return sidecar

        yield start


@pytest.fixture(scope="session")
async def proxy(
    both_clusters: dict[str, Servers], server_directory: Path
) -> AsyncIterator[Sidecar]:
    """One proxy in front of the shared clusters, for tests that leave it as it is."""
    configuration = configuration_for(both_clusters)
    async with Sidecar(configuration, server_directory / "proxy") as sidecar:
        yield sidecar
