"""The composition root: makes the rooms know each other, and starts, reloads, drains and stops.

Called by `__main__` for the verb serve. Order of start: rules, clusters (nobody waits for them:
clients are greeted while Redis is down), clients, admin port. Order of stop: readiness says so,
clients are drained, nodes are closed, the admin port last, so that a drain can be watched.
"""

import asyncio
import gc
import signal
from collections.abc import Coroutine, Iterable

import uvloop

from proxy import log, wire
from proxy.admin import Admin, Heartbeat
from proxy.config import Config
from proxy.documents import MistakesFound
from proxy.errors import StartError
from proxy.handlers import ClusterStatistics
from proxy.handlers.table import HANDLERS
from proxy.metrics import Metrics
from proxy.policy import compiler
from proxy.server import Server, version
from proxy.upstream.connection import Flusher
from proxy.upstream.pool import Plumbing, Pools

# What every cluster of the house is expected to run with, shown by INFO to clients that look for
# it: job queues refuse to start where their keys may be evicted.
EVICTION = {"locks": "noeviction"}
OTHER_EVICTION = "allkeys-lfu"


def load_rules(config: Config) -> wire.Ruleset:
    """Return the rules of the configured policies. Raises PolicyMistakes with all of them."""
    ruleset, _ = compiler.from_files(config.policies, tuple(config.clusters))
    known = {role.name for role in ruleset.roles}
    for user in config.users:
        if user.role not in known:
            raise StartError(
                f'user "{user.name}" has the role "{user.role}", which no policy describes; '
                f"there is: {', '.join(sorted(known))}"
            )
    return ruleset


class App:
    """One running proxy. Answers the admin port's questions, which come from other threads."""

    def __init__(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        ruleset = load_rules(config)
        latencies = wire.Latencies(len(config.clusters))
        self._config = config
        self._flusher = Flusher(loop)
        self._heartbeat = Heartbeat()
        self._metrics = Metrics(version(), tuple(config.clusters), latencies, ruleset)
        self._router = wire.Router(ruleset, wire.SlotMap([], []))
        self._pools = Pools(
            config.clusters.values(),
            self._router,
            Plumbing(self._flusher.batch, latencies, self._metrics, log.StateLog()),
        )
        self._pools.publish()
        self._server = Server(config, self._router, self._flusher.batch, self._metrics, HANDLERS)
        self._server.cluster_statistics = self._cluster_statistics
        self._admin = Admin(config.admin.host, config.admin.port, self)
        self._stopping = asyncio.Event()
        self._started = False
        self._failed = False
        self._loops: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Serve until somebody asks to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        loop.add_signal_handler(signal.SIGHUP, self._reload_and_log)
        self._admin.start()
        try:
            addresses = await self._start()
            self._started = True
            log.event(log.INFO, "serving", addresses=", ".join(addresses),
                      admin="{}:{}".format(*self._admin.address), version=version())  # fmt: skip
            await self._stopping.wait()
            complete = await self._finish()
        finally:
            for task in self._loops:
                task.cancel()
            await asyncio.gather(*self._loops, return_exceptions=True)
            self._pools.stop()
            self._heartbeat.stop()
            self._admin.stop()
        log.event(log.INFO, "stopped", complete=complete)
        return 0 if complete and not self._failed else 1

    async def _start(self) -> list[str]:
        self._heartbeat.start()
        for cluster in self._pools.clusters:
            self._spawn(cluster.refresher.run())
        self._spawn(self._server.watch())
        try:
            addresses = await self._server.listen()
        except OSError as error:
            raise StartError(
                f"cannot listen: {error.strerror or error}; choose another address with "
                "`listen:` in sidecache.yaml, SIDECACHE_LISTEN or SIDECACHE_UNIX"
            ) from error
        # What is there now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        return addresses

    async def _finish(self) -> bool:
        log.event(log.INFO, "draining", clients=len(self._server.sessions))
        return await self._server.drain(self._config.drain_timeout)

    def _spawn(self, loop: Coroutine[None, None, None]) -> None:
        """Run something that never ends by itself."""
        task = asyncio.create_task(loop)
        task.add_done_callback(self._notice_end)
        self._loops.append(task)

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        """Finish when a loop has failed: whoever restarts us gets a proxy that is whole."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.event(log.ERROR, "task_failed", error=error)
            self._failed = True
            self.drain()

    def _cluster_statistics(self) -> tuple[ClusterStatistics, ...]:
        return tuple(
            ClusterStatistics(
                cluster.config.name, cluster.available, len(cluster.nodes),
                EVICTION.get(cluster.config.name, OTHER_EVICTION),
            )
            for cluster in self._pools.clusters
        )  # fmt: skip

    # The admin port's questions and verbs.

    def livez(self) -> tuple[bool, str]:
        return self._heartbeat.livez()

    def readyz(self) -> tuple[bool, str]:
        """Say whether clients are served. A cluster that is down makes answers worse, not none."""
        if not self._started:
            return False, "starting"
        if self._stopping.is_set():
            return False, "draining"
        states = [
            f"{cluster.name}={'up' if cluster.available else 'down'}"
            for cluster in self._cluster_statistics()
        ]
        return True, " ".join(states)

    def startupz(self) -> tuple[bool, str]:
        return self._started, "started" if self._started else "starting"

    def render_metrics(self) -> Iterable[bytes]:
        self._metrics.loop_lag.set(self._heartbeat.lag)
        return self._metrics.render()

    def drain(self) -> None:
        """Begin to finish and exit; a second time changes nothing."""
        self._metrics.draining.set(1)
        self._stopping.set()

    def reload(self) -> str:
        """Read the rules again; with any mistake the old ones stay in force."""
        before = self._router.ruleset
        try:
            ruleset = load_rules(self._config)
        except (MistakesFound, StartError):
            self._metrics.reloads.count("failed")
            raise
        self._metrics.adopt(ruleset)
        self._router.ruleset = ruleset
        changed = (before.keyspaces, before.roles) != (ruleset.keyspaces, ruleset.roles)
        outcome = "changed" if changed else "unchanged"
        self._metrics.reloads.count(outcome)
        self._metrics.reloaded.set_to_current_time()
        log.event(log.INFO, "reloaded", outcome=outcome, keyspaces=len(ruleset.keyspaces))
        return f"{outcome}: {len(ruleset.keyspaces)} keyspaces"

    def _reload_and_log(self) -> None:
        try:
            self.reload()
        except MistakesFound as mistakes:
            for mistake in mistakes.mistakes:
                log.event(log.ERROR, "reload_failed", mistake=str(mistake))
        except StartError as error:
            log.event(log.ERROR, "reload_failed", mistake=str(error))


def serve(config: Config) -> int:
    """Run the proxy until it is asked to stop. Raises StartError and MistakesFound before that."""
    log.configure()
    for secret in _secrets(config):
        log.conceal(secret)

    async def run() -> int:
        return await App(config).run()

    # uvloop is a safety requirement: at the descriptor limit the standard loop accepts, fails and
    # logs in a circle, with most of a core gone and a million lines written.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _secrets(config: Config) -> Iterable[str]:
    for cluster in config.clusters.values():
        if cluster.password is not None:
            yield cluster.password.reveal()
        yield from (node.password.reveal() for node in cluster.nodes if node.password is not None)
    if config.database_url is not None:
        yield config.database_url.reveal()
