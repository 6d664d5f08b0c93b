"""`sidecache demo`: real clusters, PostgreSQL with sample data and the proxy, on this machine.

Called by `__main__`. Everything lives in one directory and ends together.

Always true:
  * whatever ends the demo, at whatever moment, no process and no file of it stays: signals stop
    everything in order, a failure does the same, and kill -9 is looked after by `process`;
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
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from proxy.embedded import sample, smoke
from proxy.embedded.node import LONGEST_SOCKET_DIRECTORY, Node, NodeOptions
from proxy.embedded.postgres import Postgres, postgres_for
from proxy.embedded.process import EmbeddedError, port_is_free, temporary_directory
from proxy.embedded.redis import SLOTS, Cluster, cluster_for, together
from proxy.embedded.sidecar import Sidecar, configuration_for, free_address
from proxy.errors import SidecacheError

DATABASE = "sidecache"

# How often a running demo looks whether the proxy is still there.
WATCH_INTERVAL = 0.25  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the demo; scripts may rely on them."""
    parser.add_argument("--port", type=_port, default=0, help="port for clients (default: free)")
    parser.add_argument("--admin-port", type=_port, default=0, help="admin port (default: free)")
    parser.add_argument("--seed", type=int, default=1, help="which sample data (default: 1)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in DIR, new or empty, and leave it there"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write addresses and process ids when ready"
    )
    parser.add_argument(
        "--check", action="store_true", help="start, try it out, stop; exit 0 if all was right"
    )


def run(options: argparse.Namespace) -> int:
    """Play the demo until it is stopped; return the exit code."""
    try:
        return asyncio.run(_Demo(options).play())
    except SidecacheError as error:
        print(f"sidecache demo: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class _Stage:
    """Everything that runs."""

    directory: Path
    locks: Cluster
    cache: Cluster
    postgres: Postgres
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
        self._refuse_taken_ports()
        try:
            async with self._stage() as stage:
                self._ready = True
                with self._described(stage):
                    return await self._run(stage)
        except asyncio.CancelledError:
            print("stopped", flush=True)
            return 0 if self._ready and not self._options.check else 1

    async def _run(self, stage: _Stage) -> int:
        if self._options.check:
            return await _check(stage)
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
            for servers in (locks, cache, postgres):
                stack.push_async_callback(servers.stop)
            await together(
                [self._start_cluster(locks), self._start_cluster(cache), self._fill(postgres)]
            )
            stage = self._assemble(directory, locks, cache, postgres)
            await stack.enter_async_context(stage.sidecar)
            self._say("sidecache is ready")
            yield stage
            self._say("stopping")

    async def _start_cluster(self, cluster: Cluster) -> None:
        await cluster.start()
        count = f"{len(cluster.primaries)} primaries and {len(cluster.replicas)} replicas"
        self._say(f"{cluster.name}: {count}, cluster_state:ok on all")

    async def _fill(self, postgres: Postgres) -> None:
        await postgres.start()
        self._say("PostgreSQL takes connections")
        dsn = await postgres.create_database(DATABASE)
        rows = await sample.load(dsn, self._options.seed)
        seats, events = rows["seat_booking_state"], rows["events"]
        self._say(
            f"PostgreSQL: {seats:,} seats of {events} events loaded (--seed {self._options.seed})"
        )

    def _assemble(
        self, directory: Path, locks: Cluster, cache: Cluster, postgres: Postgres
    ) -> _Stage:
        options = self._options
        dsn = postgres.dsn_of(DATABASE)
        home = directory / "sidecache"
        listen = {"tcp": free_address(options.port)}
        if len(str(home)) <= LONGEST_SOCKET_DIRECTORY:
            listen["unix"] = str(home / "redis.sock")
        configuration = configuration_for(
            {"locks": locks, "cache": cache},
            listen=listen,
            admin=free_address(options.admin_port),
            database={"url": dsn},
            policies=str(files("proxy") / "policies"),
        )
        sidecar = Sidecar(configuration, home)
        return _Stage(directory, locks, cache, postgres, dsn, sidecar)

    def _refuse_taken_ports(self) -> None:
        for flag, port in (
            ("--port", self._options.port),
            ("--admin-port", self._options.admin_port),
        ):
            if port and not port_is_free(port):
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
            # Whoever waits for the file must not read half of it.
            unfinished.write_text(json.dumps(_description(stage), indent=2) + "\n")
            unfinished.replace(file)
            yield
        finally:
            unfinished.unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)


@contextlib.contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    """Yield the directory to work in: the user's own, or one that is gone afterwards."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        if any(kept.iterdir()):
            raise EmbeddedError(f"{kept} is not empty; --keep wants a new or an empty directory")
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
  clients      {url}{unix}
  admin        {admin}   (/livez /readyz /metrics)
  PostgreSQL   {dsn}

Five things to try:
{missing}
  1. A value through the proxy, on two real clusters:
       redis-cli -p {port} set greeting hello
       redis-cli -p {port} get greeting
  2. One command over all three primaries, which a cluster itself refuses:
       redis-cli -p {port} mset a 1 b 2 c 3
       redis-cli -p {port} mget a b c
  3. Kill the primary that holds the greeting; its replica takes over within seconds:
       {kill}
       redis-cli -p {port} get greeting
  4. What the proxy saw:
       curl -s {admin}/metrics | grep ^sidecache_
  5. The truth behind the cache:
       {psql} {dsn} -c "SELECT event_id, status, count(*)
         FROM seat_booking_state GROUP BY 1, 2 ORDER BY 1, 2"

Ctrl-C stops everything."""


def _introduction(stage: _Stage, holder: Node) -> str:
    return INTRODUCTION.format(
        url=stage.sidecar.url,
        unix=f"   unix://{stage.sidecar.unix}" if stage.sidecar.unix else "",
        admin=stage.sidecar.admin_url,
        port=stage.sidecar.port,
        dsn=stage.dsn,
        psql=stage.postgres.program.path / "psql",
        kill=f"kill -9 {holder.pid}" if holder.pid else f"(stop the node {holder.address})",
        missing="" if shutil.which("redis-cli") else "  (redis-cli: apt-get install redis-tools)\n",
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 (any free one) to 65535")
    return int(text)
