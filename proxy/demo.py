"""`sidecache demo`: real clusters, PostgreSQL with sample data and the proxy, on this machine.

Called by `__main__`. Everything lives in one directory and ends together.

Always true:
  * whatever ends the demo, at whatever moment, no process and no file of it stays: signals stop
    everything in order, a failure does the same, and kill -9 is looked after by `process`;
  * flags that cannot be followed are refused before anything is started, with exit code 2;
  * nothing listens but on loopback, and on no port that was not free.
"""

import argparse
import asyncio
import binascii
import contextlib
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from proxy.embedded import outage, rush, sample, smoke
from proxy.embedded.board import Board
from proxy.embedded.node import LONGEST_SOCKET_DIRECTORY, Node, NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.process import EmbeddedError, port_is_free, temporary_directory
from proxy.embedded.redis import SLOTS, Cluster, cluster_for, together
from proxy.embedded.sidecar import Sidecar, configuration_for, free_address
from proxy.embedded.standby import Standby, standby_for
from proxy.errors import ConfigError, SidecacheError
from proxy.origin import installing
from proxy.plans import Plan, Watch
from proxy.policy import compiler, planning

DATABASE = "sidecache"

POLICIES = Path(str(files("proxy") / "policies"))

# How often a running demo looks whether the proxy is still there.
WATCH_INTERVAL = 0.25  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the demo; scripts may rely on them."""
    parser.add_argument("--port", type=_port, default=0, help="port for clients (default: free)")
    parser.add_argument("--admin-port", type=_port, default=0, help="admin port (default: free)")
    parser.add_argument(
        "--cluster-port", type=_port, metavar="PORT",
        help="also a port for clients that insist on Redis Cluster; 0 takes any free one",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="which sample data (default: 1)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in DIR, new or empty, and leave it there"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write addresses and process ids when ready"
    )
    parser.add_argument(
        "--replicas",
        action="store_true",
        help="also a replica of PostgreSQL, for reads while Redis is away",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="start, try it out, stop; exit 0 if all was right"
    )
    what.add_argument(
        "--outage", nargs="?", const=outage.SECONDS, type=_seconds, metavar="SECONDS",
        help="kill all of Redis under load and show who answers; exit 0 if no client had an error",
    )  # fmt: skip
    what.add_argument(
        "--rush", nargs="?", const=rush.SECONDS, type=_seconds, metavar="SECONDS",
        help="sell the seats of an event to a crowd; exit 0 if none was held or sold twice",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Play the demo until it is stopped; return the exit code."""
    try:
        return asyncio.run(_Demo(options).play())
    except SidecacheError as error:
        print(f"sidecache demo: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


@dataclass(frozen=True)
class _Stage:
    """Everything that runs."""

    directory: Path
    locks: Cluster
    cache: Cluster
    postgres: Postgres
    replica: Standby | None
    dsn: str
    sidecar: Sidecar


class _Demo:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = time.monotonic()
        self._ready = False

    async def play(self) -> int:
        """Start, run and stop everything.

        A signal cancels this task, so it unwinds from wherever it is through the same exits as a
        failure does. A second signal cancels an exit that waits, which then ends by force.
        """
        task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)  # type: ignore[union-attr]
        self._refuse_ports()
        if self._options.keep is not None:
            _make_directory(self._options.keep)
        if self._options.json is not None:
            _refuse_unwritable(self._options.json)
        try:
            async with self._stage() as stage:
                self._ready = True
                with self._described(stage):
                    return await self._run(stage)
        except asyncio.CancelledError:
            print("stopped", flush=True)
            proving = self._options.check or self._options.outage or self._options.rush
            return 0 if self._ready and not proving else 1

    async def _run(self, stage: _Stage) -> int:
        if self._options.check:
            return await _check(stage)
        if self._options.outage:
            replica = None if stage.replica is None else stage.replica.dsn_of(DATABASE)
            clusters = (stage.cache, stage.locks)
            scene = outage.Scene(stage.sidecar, clusters, stage.dsn, replica)
            well = await outage.play(scene, Board(sys.stdout), self._options.outage)
            return 0 if well else 1
        if self._options.rush:
            hall = rush.Hall(stage.sidecar, stage.locks, stage.dsn)
            return 0 if await rush.play(hall, Board(sys.stdout), self._options.rush) else 1
        holder = await stage.cache.owner(binascii.crc_hqx(b"greeting", 0) % SLOTS)
        print(_introduction(stage, holder), flush=True)
        await stage.sidecar.child.wait_exit(math.inf, WATCH_INTERVAL)
        raise EmbeddedError(
            f"the proxy ended with {stage.sidecar.child.exit_code}\n"
            f"{stage.sidecar.child.log_tail()}"
        )

    @contextlib.asynccontextmanager
    async def _stage(self) -> AsyncIterator[_Stage]:
        """Start the servers side by side and the proxy behind them; stop all at the end."""
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(_directory(self._options.keep))
            self._say(f"working in {directory}")
            locks = cluster_for("locks", directory / "locks", NodeOptions(unix=True))
            policy = NodeOptions(unix=True, maxmemory_policy="allkeys-lfu")
            cache = cluster_for("cache", directory / "cache", policy)
            postgres = postgres_for(directory / "postgres")
            self._say(f"Redis: {locks.program}")
            self._say(f"PostgreSQL: {postgres.program}")
            for stop in (locks.stop, cache.stop, postgres.stop):
                stack.push_async_callback(stop)
            replica = None
            if self._options.replicas:
                replica = standby_for(postgres, directory / "replica")
                stack.push_async_callback(replica.stop)
            await together(
                [
                    self._start_cluster(locks),
                    self._start_cluster(cache),
                    self._start_postgres(postgres, replica),
                ]
            )
            dsn = postgres.dsn_of(DATABASE)
            sidecar = self._sidecar(directory, {"locks": locks, "cache": cache}, postgres, replica)
            stage = _Stage(directory, locks, cache, postgres, replica, dsn, sidecar)
            await stack.enter_async_context(stage.sidecar)
            self._say("sidecache is ready")
            yield stage
            self._say("stopping")

    async def _start_cluster(self, cluster: Cluster) -> None:
        await cluster.start()
        count = f"{len(cluster.primaries)} primaries and {len(cluster.replicas)} replicas"
        self._say(f"{cluster.name}: {count}, cluster_state:ok on all")

    async def _start_postgres(self, postgres: Postgres, replica: Standby | None) -> None:
        """Start PostgreSQL with the sample, and with what sidecache needs there itself."""
        (watches, locks), _ = await asyncio.gather(asyncio.to_thread(_installed), postgres.start())
        self._say("PostgreSQL takes connections")
        dsn = await postgres.create_database(DATABASE)
        rows = await sample.load(dsn, self._options.seed)
        seats, events = rows["seat_booking_state"], rows["events"]
        self._say(
            f"PostgreSQL: {seats:,} seats of {events} events loaded (--seed {self._options.seed})"
        )
        await installing.run(dsn, watches, apply=True, remove=False, locks=locks)
        if replica is not None:
            await replica.start()
            self._say("PostgreSQL: a replica follows")

    def _sidecar(
        self,
        directory: Path,
        clusters: Mapping[str, Cluster],
        postgres: Postgres,
        replica: Standby | None,
    ) -> Sidecar:
        options = self._options
        replicas = [] if replica is None else [replica.dsn_of(DATABASE)]
        home = directory / "sidecache"
        listen = {"tcp": free_address(options.port)}
        if len(str(home)) <= LONGEST_SOCKET_DIRECTORY:
            listen["unix"] = str(home / "redis.sock")
        if options.cluster_port is not None:
            listen["cluster"] = free_address(options.cluster_port)
        configuration = configuration_for(
            clusters,
            listen=listen,
            admin=free_address(options.admin_port),
            database={"url": postgres.dsn_of(DATABASE), "replicas": replicas},
            journal={"directory": str(home / "journal")},
            policies=str(POLICIES),
        )
        return Sidecar(configuration, home)

    def _refuse_ports(self) -> None:
        users: dict[int, str] = {}
        for flag, port in (
            ("--port", self._options.port),
            ("--admin-port", self._options.admin_port),
            ("--cluster-port", self._options.cluster_port),
        ):
            if not port:
                continue
            if port in users:
                raise ConfigError(f"{users[port]} and {flag} are both {port}")
            users[port] = flag
            if not port_is_free(port):
                raise EmbeddedError(f"port {port} is taken; choose another with {flag}, or 0")

    @contextlib.contextmanager
    def _described(self, stage: _Stage) -> Iterator[None]:
        """Have the addresses in the file of --json while the demo runs."""
        file: Path | None = self._options.json
        if file is None:
            yield
            return
        unfinished = file.with_name(f"{file.name}.part")
        try:
            try:
                # Whoever waits for the file must not read half of it.
                unfinished.write_text(json.dumps(_description(stage), indent=2) + "\n")
                unfinished.replace(file)
            except OSError as error:
                raise EmbeddedError(f"--json {file}: {error.strerror}") from error
            yield
        finally:
            unfinished.unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)


def _installed() -> tuple[tuple[Watch, ...], tuple[Plan, ...]]:
    """Return which tables the shipped policies want to hear of, and which locks they have."""
    policies = compiler.read(POLICIES, None)
    return planning.watches_of(policies), planning.locks_of(policies)


def _make_directory(kept: Path) -> None:
    """Make the directory of --keep, or take one that is empty."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        full = any(kept.iterdir())
        tempfile.TemporaryFile(dir=kept).close()
    except OSError as error:
        raise ConfigError(f"--keep {kept}: {error.strerror}") from error
    if full:
        raise ConfigError(f"{kept} is not empty; --keep wants a new or an empty directory")


def _refuse_unwritable(file: Path) -> None:
    """Refuse what the file of --json cannot be, while nothing depends on it yet."""
    if file.exists() and not file.is_file():
        raise ConfigError(f"--json {file}: it is there, and no file")
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ConfigError(f"--json {file}: {error.strerror}") from error


@contextlib.contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    """Yield the directory to work in: the user's own, or one that is gone afterwards."""
    if kept is not None:
        yield kept.resolve()
        return
    with temporary_directory("sidecache-demo-") as directory:
        yield directory


async def _check(stage: _Stage) -> int:
    failures = 0
    async for finding in smoke.check(smoke.Target(stage.sidecar, stage.cache, stage.dsn)):
        failures += bool(finding.problem)
        print(f"{'FAILED' if finding.problem else '    ok'}  {finding.title}", flush=True)
        if finding.problem:
            print(f"        {finding.problem}", flush=True)
    if failures:
        print(f"{failures} checks failed; the end of the proxy's log:", flush=True)
        print(stage.sidecar.child.log_tail(), flush=True)
    return 1 if failures else 0


def _description(stage: _Stage) -> dict[str, Any]:
    sidecar = stage.sidecar
    return {
        "proxy": {
            "url": sidecar.url,
            "host": sidecar.host,
            "port": sidecar.port,
            "unix": str(sidecar.unix) if sidecar.unix else None,
            "cluster_port": sidecar.cluster_port,
            "pid": sidecar.pid,
            "config": str(sidecar.file),
        },
        "admin": {
            "url": sidecar.admin_url,
            "host": sidecar.admin_host,
            "port": sidecar.admin_port,
        },
        "locks": {"nodes": [_describe_node(node) for node in stage.locks.nodes]},
        "cache": {"nodes": [_describe_node(node) for node in stage.cache.nodes]},
        "postgres": {"dsn": stage.dsn, "pid": stage.postgres.pid},
        "replicas": [
            {"dsn": replica.dsn_of(DATABASE), "pid": replica.pid}
            for replica in filter(None, [stage.replica])
        ],
        "directory": str(stage.directory),
    }


def _describe_node(node: Node) -> dict[str, Any]:
    return {
        "host": node.host,
        "port": node.port,
        "pid": node.pid,
        "role": node.role,
        "id": node.id,
    }


INTRODUCTION = """
  clients      {url}{unix}{cluster}
  admin        {admin}   (/livez /readyz /metrics)
  PostgreSQL   {dsn}

Five things to try:
{missing}
  1. Values through the proxy, on two real clusters; MSET over all three primaries:
       redis-cli -p {port} set greeting hello
       redis-cli -p {port} mset a 1 b 2 c 3
  2. A row of PostgreSQL that Redis does not have; change it there and ask again:
       redis-cli -p {port} get venue:venue_1
       {psql} {dsn} -c "UPDATE venues SET name = 'The New Name' WHERE id = 'venue_1'"
       redis-cli -p {port} get venue:venue_1
  3. A count that PostgreSQL hears of within five seconds:
       redis-cli -p {port} hincrby user_activity:usr_1:daily:{today} page_views 1
       {psql} {dsn} -c "TABLE user_activity_log"
  4. Kill the primary that holds the greeting; its replica takes over within seconds:
       {kill}
       redis-cli -p {port} get greeting
  5. What the proxy saw, and where answers about rows came from:
       curl -s {admin}/metrics | grep ^sidecache_origin_answers

`sidecache demo --outage` kills all of Redis under load and shows who answers.
Ctrl-C stops everything."""


def _introduction(stage: _Stage, holder: Node) -> str:
    return INTRODUCTION.format(
        url=stage.sidecar.url,
        unix=f"   unix://{stage.sidecar.unix}" if stage.sidecar.unix else "",
        cluster=_cluster_line(stage.sidecar),
        admin=stage.sidecar.admin_url,
        port=stage.sidecar.port,
        dsn=stage.dsn,
        psql=stage.postgres.program.path / "psql",
        kill=f"kill -9 {holder.pid}" if holder.pid else f"(stop the node {holder.address})",
        today=f"{datetime.now(UTC):%Y-%m-%d}",
        missing="" if shutil.which("redis-cli") else "  (redis-cli: apt-get install redis-tools)\n",
    )


def _cluster_line(sidecar: Sidecar) -> str:
    port = sidecar.cluster_port
    return "" if port is None else f"   redis-cli -c -p {port} (as one node of a Redis Cluster)"


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 (any free one) to 65535")
    return int(text)


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or not 10 <= int(text) <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no length of a story: 10 to 3600 seconds")
    return float(text)
