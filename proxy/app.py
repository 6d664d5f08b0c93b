"""The composition root: makes the rooms know each other, and starts, reloads, drains and stops.

Called by `__main__` for the verb serve. Order of start: rules, clusters (nobody waits for them:
clients are greeted while Redis is down), clients, admin port. Order of stop: readiness says so,
clients are drained, nodes are closed, the admin port last, so that a drain can be watched.
"""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from itertools import zip_longest

import uvloop

from proxy import commands, log, repairs, wire
from proxy.admin import Admin, Heartbeat
from proxy.backing import backing_for
from proxy.config import Config
from proxy.control.eviction import Eviction
from proxy.control.states import States
from proxy.errors import PolicyError, StartError
from proxy.explain import Explainer
from proxy.handlers import ClusterStatistics, pubsub
from proxy.handlers.table import HANDLERS
from proxy.lookout import Lookout
from proxy.metrics import Metrics
from proxy.plans import plans_in
from proxy.policy.draft import Draft, Order, drafted_here
from proxy.reload import Reloads
from proxy.server import Server, version
from proxy.trials import Trials
from proxy.upstream.connection import Flusher
from proxy.upstream.pool import Plumbing, Pools
from proxy.upstream.reservations import Reservations

# A file of some kilobytes; longer than a busy machine takes for it.
REREAD_SECONDS = 10.0


def load_rules(config: Config) -> wire.Ruleset:
    """Return the rules of the configured policies. Raises PolicyMistakes with all of them."""
    return first_rules(config)[1]


def first_rules(config: Config) -> tuple[Draft, wire.Ruleset]:
    draft, ruleset = drafted_here(order_of(config))
    check_users(config, ruleset)
    check_journal(config, ruleset)
    return draft, ruleset


def order_of(config: Config) -> Order:
    said = ((name, own.memory) for name, own in config.clusters.items())
    memory = tuple((name, size) for name, size in said if size is not None)
    return Order(config.policies, tuple(config.clusters), None, memory)


def check_users(config: Config, ruleset: wire.Ruleset) -> None:
    """Raise StartError for a user whose role the rules do not have."""
    known = {role.name for role in ruleset.roles}
    for user in config.users:
        if user.role not in known:
            raise StartError(
                f'user "{user.name}" has the role "{user.role}", which no policy describes; '
                f"there is: {', '.join(sorted(known))}"
            )


def check_journal(config: Config, ruleset: wire.Ruleset) -> None:
    """Raise StartError for writes that would be acknowledged and could be lost."""
    behind = [
        plan.name
        for plan in plans_in(ruleset).by_keyspace.values()
        if plan.writing is not None and plan.writing.mode == "behind"
    ]
    if behind and config.database is not None and config.journal is None:
        raise StartError(
            f"the keyspaces {', '.join(behind)} are written behind, which needs a journal: set "
            "`journal: {directory: …}` in sidecache.yaml or SIDECACHE_JOURNAL"
        )


class App:
    """One running proxy. Answers the admin port's questions, which come from other threads."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        loop = asyncio.get_running_loop()
        draft, ruleset = first_rules(config)
        latencies = wire.Latencies(len(config.clusters), len(commands.ROWS))
        self._config = config
        self._reread = reread or (lambda: config)
        self._flusher = Flusher(loop)
        self._heartbeat = Heartbeat()
        self._metrics = Metrics(version(), tuple(config.clusters), latencies, ruleset)
        self._router = wire.Router(ruleset, wire.SlotMap([], []))
        plumbing = Plumbing(self._flusher.batch, latencies, self._metrics, log.StateLog())
        self._pools = Pools(config.clusters.values(), self._router, plumbing)
        self._reservations = Reservations(self._router, plumbing, tuple(config.clusters))
        self._reservations.follow_rules()
        self._backing = backing_for(config, self._router, plumbing)
        self._pools.publish()
        self._server = Server(config, self._router, self._flusher.batch, self._metrics, HANDLERS)
        self._server.cluster_statistics = self._cluster_statistics
        self._server.pools = self._pools
        if self._backing is not None:
            self._pools.lacks = self._backing.lacks
            self._pools.moved = self._backing.moved
            self._server.postgres = self._backing.postgres
            self._server.reads = self._backing.reads
            self._server.grants = self._backing.grants
            self._server.behind = self._backing.behind
        self._states = States(
            self._pools, lambda: plans_in(self._router.ruleset),
            None if self._backing is None else self._backing.postgres,
            plumbing.states, self._metrics.states,
        )  # fmt: skip
        self._eviction = Eviction(self._pools)
        if self._backing is not None:
            self._backing.returned.changed = self._states.look_soon
        self._pools.pins.room = self._server.room_for_pins
        self._reloads = Reloads(order_of(config), draft, self._metrics, self._put_in_force)
        self._server.rule_statistics = lambda: self._reloads.state
        self._lookout = self._look_out(loop)
        self._admin = Admin(config.admin.host, config.admin.port, self)
        self._explainer: tuple[wire.Ruleset, Explainer] | None = None
        self._stopping = asyncio.Event()
        self._started = False
        self._failed = False
        self._loops: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Serve until somebody asks to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.ask)
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
            if self._backing is not None:
                await self._backing.stop()
            if self._lookout is not None:
                self._lookout.stop()
            self._reloads.stop()
            self._pools.stop()
            self._heartbeat.stop()
            self._admin.stop()
            self._server.sight.close()
        log.event(log.INFO, "stopped", complete=complete)
        return 0 if complete and not self._failed else 1

    async def _start(self) -> list[str]:
        self._heartbeat.start()
        for cluster in self._pools.clusters:
            self._spawn(cluster.refresher.run())
        if self._backing is not None:
            await self._backing.start()
            for task in self._backing.tasks:
                task.add_done_callback(self._notice_end)
            for loop in self._backing.loops():
                self._spawn(loop)
        self._spawn(self._server.watch())
        self._spawn(self._states.watch())
        self._spawn(self._eviction.watch())
        self._spawn(self._reservations.watch())
        self._spawn(Trials(self._router).watch())
        try:
            addresses = await self._server.listen()
        except OSError as error:
            raise StartError(
                f"cannot listen: {error.strerror or error}; choose another address with "
                "`listen:` in sidecache.yaml, SIDECACHE_LISTEN or SIDECACHE_UNIX"
            ) from error
        if self._lookout is not None:
            self._lookout.start()
        # What is there now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # What a request makes is gone when it is answered, and no cycle keeps it: to look after
        # every 700 new objects, as Python does, finds live ones alone.
        gc.set_threshold(10_000, 20)
        return addresses

    async def _finish(self) -> bool:
        log.event(log.INFO, "draining", clients=len(self._server.sessions))
        complete = await self._server.drain(self._config.drain_timeout)
        if self._backing is not None:
            await self._backing.drain(self._config.drain_timeout)
        return complete

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
        applied = () if self._backing is None else self._backing.statistics()
        return tuple(
            ClusterStatistics(
                cluster.config.name, cluster.available, self._states.said(cluster),
                len(cluster.nodes), self._eviction.said(cluster), invalidation,
            )
            for cluster, invalidation in zip_longest(self._pools.clusters, applied)
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
            f"{cluster.config.name}={self._states.said(cluster)}"
            for cluster in self._pools.clusters
        ]
        if self._server.behind is not None:
            states.append(f"behind={self._server.behind.state}")
        if self._backing is not None and self._backing.uninstalled():
            states.append("lock_functions=misfit")
        if self._reloads.state.mistakes:
            states.append("rules=refused")
        return True, " ".join(states)

    def startupz(self) -> tuple[bool, str]:
        return self._started, "started" if self._started else "starting"

    def render_metrics(self) -> Iterable[bytes]:
        self._metrics.loop_lag.set(self._heartbeat.lag)
        return self._metrics.render()

    def explainer(self) -> Explainer:
        """Return what explains by the rules in force, laid out once for each set of them."""
        ruleset = self._router.ruleset
        if self._explainer is None or self._explainer[0] is not ruleset:
            clusters = tuple(self._config.clusters)
            explainer = Explainer(self._reloads.policies, clusters, self._address_of)
            if explainer.keyspaces != ruleset.keyspaces:
                raise PolicyError("other rules are being put in force; ask again")
            self._explainer = ruleset, explainer
        return self._explainer[1]

    def _address_of(self, cluster: int, slot: int) -> str | None:
        """Return the node of a slot, for whoever explains a command."""
        pool = self._pools.clusters[cluster]
        node = pool.owner_of(slot % len(pool.owners))
        return None if node is None else node.member.address

    def page(self, path: str) -> str:
        if path == repairs.PATH:
            return repairs.page(self._backing)
        return self._server.sight.page(path)

    def sample(self, query: str) -> str:
        return self._server.sight.resample(query)

    def restore(self, query: str) -> str:
        return repairs.restore(self._backing, query)

    async def drift(self, query: str) -> str:
        return await repairs.drift(self._backing, query)

    def drain(self) -> None:
        """Begin to finish and exit; a second time changes nothing."""
        self._metrics.draining.set(1)
        self._states.drain()
        self._stopping.set()

    async def reload(self) -> str:
        return await self._reloads.reload()

    # New rules.

    def _look_out(self, loop: asyncio.AbstractEventLoop) -> Lookout | None:
        path = self._config.policies
        if path is None or not self._config.watch_policies:
            return None

        def tell() -> None:
            loop.call_soon_threadsafe(self._reloads.ask)

        return Lookout(path, lambda: self._reloads.looked, tell)

    async def _put_in_force(self, ruleset: wire.Ruleset | None) -> bool:
        """Take new rules, if there are any, users, certificates and what the access log says.

        All else of the configuration is what it was at the start. Return whether users or the
        access log are others.
        """
        there = await self._read_again()
        config = replace(self._config, users=there.users, access_log=there.access_log)
        check_users(config, ruleset or self._router.ruleset)
        check_journal(config, ruleset or self._router.ruleset)
        others = config.users != self._config.users
        changed = config != self._config
        for cluster in self._pools.clusters:
            cluster.tls.renew()
        former = self._server.sight.follow(config.access_log)
        # One step: no command is judged and no count is read in between.
        if ruleset is not None:
            ruleset.take_over(self._router.ruleset)
            self._metrics.adopt(ruleset)
            self._router.ruleset = ruleset
            self._server.sight.adopt(ruleset)
        self._config = config
        if others:
            self._server.adopt_users(config.users)
        self._reservations.follow_rules()
        await pubsub.follow_rules(self._server)
        await self._server.renew()
        if former is not None:
            await asyncio.to_thread(former)
        return changed

    async def _read_again(self) -> Config:
        """Return the configuration as it lies there, read in a thread: a file system may hang."""

        def read() -> Config:
            for cluster in self._pools.clusters:
                cluster.tls.check()
            return self._reread()

        try:
            return await asyncio.wait_for(asyncio.to_thread(read), REREAD_SECONDS)
        except TimeoutError as error:
            raise StartError(f"sidecache.yaml was not read within {REREAD_SECONDS} s") from error


def serve(config: Config, reread: Callable[[], Config]) -> int:
    """Run the proxy until it is asked to stop. Raises StartError and MistakesFound before that.

    At a reload reread gives the configuration anew; it may raise MistakesFound.
    """
    log.configure()
    for secret in _secrets(config):
        log.conceal(secret)

    async def run() -> int:
        return await App(config, reread).run()

    # uvloop is a safety requirement: at the descriptor limit the standard loop accepts, fails and
    # logs in a circle, with most of a core gone and a million lines written.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _secrets(config: Config) -> Iterable[str]:
    for cluster in config.clusters.values():
        if cluster.password is not None:
            yield cluster.password.reveal()
        yield from (node.password.reveal() for node in cluster.nodes if node.password is not None)
    if config.database is not None:
        yield from (url.reveal() for url in config.database.urls)
