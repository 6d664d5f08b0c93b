"""The side of the clients: listeners, the sessions that they made, and what all of them share.

Made by `app`, which starts, drains and stops it. Sessions and handlers see it as `Server`.
Always true:
  * at most `capacity` clients are connected, and that number leaves descriptors for nodes, the
    admin port and files, so running out of them cannot happen;
  * what clients do not read, or only begin to send, is bounded in sum (`memory`);
  * draining answers every request that was received before a connection closes.
"""

import asyncio
import errno
import os
import resource
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from proxy import errors, log, wire
from proxy.config import Config, Limits, User
from proxy.handlers import ClusterStatistics, Handler, RuleStatistics, Statistics
from proxy.handlers.blocked import TIMEOUT, blocked_by
from proxy.handlers.bonds import Bonds
from proxy.handlers.budget import LONGEST_WAIT, FailureBudget
from proxy.handlers.cursors import Scans
from proxy.handlers.flow import Pauses
from proxy.handlers.glimpse import SlowLog
from proxy.handlers.grants import Grants
from proxy.handlers.monitor import Monitors
from proxy.handlers.reading import Reads
from proxy.handlers.refusals import Refusals
from proxy.handlers.shelf import LIBRARY_BYTES, MOST_LIBRARIES, Shelf
from proxy.memory import Begun, Unread
from proxy.metrics import Metrics
from proxy.origin.behind import WriteBehind
from proxy.origin.postgres import Postgres
from proxy.session import Session
from proxy.sight import Sight
from proxy.upstream.arriving import Arriving
from proxy.upstream.pool import Pools

# Descriptors that are never given to clients: nodes and their spares, PostgreSQL, admin visitors,
# the files of a reload.
RESERVED_DESCRIPTORS = 128

# A full backlog makes clients wait a second for their next attempt, so it is as deep as Linux'
# own limit usually allows.
BACKLOG = 1024

# How often connections are looked at for their deadlines, in seconds. Idle deadlines are minutes,
# the shortest one (unread output) is ten seconds.
ROUND = 0.5

# A client that has been quiet for this long at a request boundary has read its replies and has no
# request on the way, on any network where a sidecar makes sense.
QUIET = 0.05

# How often a drain looks for clients that are quiet, in seconds.
DRAIN_ROUND = 0.01

# A client that has stopped for this long in the middle of a request will not finish it: on a
# loopback even the largest request arrives without such a gap.
STALLED = 1.0  # seconds

# Who is not quiet for this long while we drain is let go between two requests: longer than the
# pieces of a pipeline are apart. In seconds.
BUSY = 0.5

# Clients that are given new tables in one turn of the loop: some 100 µs.
RENEWED_PER_TURN = 200


class Server:
    """All clients of the process."""

    def __init__(
        self,
        config: Config,
        router: wire.Router,
        batch: wire.Batch,
        metrics: Metrics,
        handlers: Mapping[bytes, Handler],
    ) -> None:
        self.config = config
        self.router = router
        self.batch = batch
        self.metrics = metrics
        self.handlers = handlers
        self.started = time.time()
        self.run_id = secrets.token_hex(20)
        self.behind: WriteBehind | None = None
        self.postgres: Postgres | None = None
        self.failures = FailureBudget()
        self.refusals = Refusals()
        batch.on_denied = self.refusals.note
        self.monitors = Monitors(batch)
        self.pauses = Pauses(router)
        self.sight = Sight(config, router, batch, metrics)
        self.scripts = Shelf()
        self.libraries = Shelf(MOST_LIBRARIES, LIBRARY_BYTES)
        self.scans = Scans()
        self.sessions: dict[int, Session] = {}
        self.tasks: set[asyncio.Future[Any]] = set()
        self.bonds = Bonds(router, batch, self.tasks)
        self.capacity, self.room_for_pins = shares(
            config.limits, descriptors() - RESERVED_DESCRIPTORS
        )
        self.draining = False
        self.reads: Reads | None = None
        self.grants: Grants | None = None
        self.pools: Pools
        self.cluster_statistics: Callable[[], tuple[ClusterStatistics, ...]] = tuple
        self.rule_statistics: Callable[[], RuleStatistics] = RuleStatistics
        self._loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.Server] = []
        self._users = {user.name: user for user in config.users}
        self._number = 0
        self._received = self._rejected = 0
        self._forgotten = Counter[str]()  # what was counted when statistics were last reset
        self.unread = Unread(config.limits)
        self.begun = Begun(config.limits)
        self.arriving = Arriving(config.limits)
        batch.on_arriving = self.arriving.count
        self._unix_inode = 0
        self._strangers: set[Session] = set()

    # Start and end.

    async def listen(self) -> list[str]:
        """Open the listeners; return their addresses. Raises OSError."""
        listen = self.config.listen
        if listen.tcp is not None:
            host, port = listen.tcp
            self._listeners.append(
                await self._loop.create_server(self._connect, host, port, backlog=BACKLOG)
            )
        if listen.cluster is not None:
            host, port = listen.cluster
            self._listeners.append(
                await self._loop.create_server(self._connect_clustered, host, port, backlog=BACKLOG)
            )
        if listen.unix is not None:
            self._listeners.append(await self._listen_unix(listen.unix, listen.unix_mode))
        if self.capacity < self.config.limits.clients:
            log.event(
                log.WARNING, "clients_limited", clients=self.capacity,
                configured=self.config.limits.clients, reason="open files limit",
            )  # fmt: skip
        return [
            str(listener.getsockname()) for server in self._listeners for listener in server.sockets
        ]

    async def _listen_unix(self, path: Path, mode: int) -> asyncio.Server:
        """Open the socket file, in the place of what a dead process left there."""
        try:
            _make_room(path)
            # The mask is narrow while the socket appears, so nobody connects before its mode is
            # set.
            before = os.umask(0o177)
            try:
                server = await self._loop.create_unix_server(
                    self._connect, str(path), backlog=BACKLOG
                )
            finally:
                os.umask(before)
            path.chmod(mode)  # noqa: ASYNC240 - once, at start
        except OSError as error:
            raise OSError(error.errno, f"{path}: {error.strerror or error}") from error
        self._unix_inode = path.stat().st_ino  # noqa: ASYNC240
        return server

    def _connect(self) -> Session:
        self._number += 1
        return Session(self._number, self, self._loop)

    def _connect_clustered(self) -> Session:
        session = self._connect()
        session.clustered = True
        return session

    async def watch(self) -> None:
        """Hold clients to their deadlines, for ever."""
        while True:
            await asyncio.sleep(ROUND)
            self._hold_to_deadlines(self._loop.time())
            self.sight.age()

    def _hold_to_deadlines(self, now: float) -> None:
        limits = self.config.limits
        for session in list(self._strangers):
            if session.downstream.role_name is not None:
                self._strangers.discard(session)
            else:
                # Who has asked in time has the time that its answer is held back, too.
                held_back = LONGEST_WAIT if session.downstream.pending else 0.0
                if now - session.stranger_since > limits.unauthenticated + held_back:
                    session.close("unauthenticated")
        self.unread.look(now)
        self.begun.look(now)
        self.arriving.look(now)
        for session in list(self.sessions.values()):
            # Of who has sent too much behind its wait nothing is read, its end neither.
            if (wait := blocked_by(session)) is not None and session.gone:
                wait.leave_soon()
        if limits.idle:
            for session in list(self.sessions.values()):
                # Who listens need not say anything, as in Redis.
                listens = "subscriptions" in session.holdings
                if session.idle and not listens and now - session.active > limits.idle:
                    session.finish("idle")

    async def drain(self, timeout: float) -> bool:
        """Take no more clients, answer everything received, close; return whether all went."""
        self.draining = True
        self.pauses.end()
        # What waits in the backlog was let in by the kernel already: one more round takes it.
        await asyncio.sleep(DRAIN_ROUND)
        # A successor takes the path as soon as nobody answers there.
        self._unlink()
        for listener in self._listeners:
            listener.close()
        began = self._loop.time()
        deadline = began + timeout
        while self.sessions and self._loop.time() < deadline:
            self._end_waits()
            self._let_go(self._loop.time(), began + BUSY, began + timeout / 2)
            await asyncio.sleep(DRAIN_ROUND)
        complete = not self.sessions
        for session in list(self.sessions.values()):
            session.close("drain")
        await self._finish_tasks(deadline)
        return complete

    def _let_go(self, now: float, busy: float, late: float) -> None:
        """Let clients go that are quiet; after a while those too that never are."""
        for session in list(self.sessions.values()):
            quiet = STALLED if session.amid_request else QUIET
            if session.closing and session.idle and now >= late + STALLED:
                session.close("drain")  # it has every answer, and does not go
            elif session.idle and now - session.active >= quiet:
                session.finish("drain")
            elif now >= busy:
                session.leave(deaf=now >= late)

    def _end_waits(self) -> None:
        """End the waits of blocked clients, as if their time were over."""
        for session in list(self.sessions.values()):
            if (wait := blocked_by(session)) is not None:
                wait.call_off(TIMEOUT)
                if not session.amid_request:
                    # It would only ask again, for as long as we are here.
                    session.finish("drain")

    async def _finish_tasks(self, deadline: float) -> None:
        """Let handlers end whose clients are gone: what they write may be half done."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=max(0.0, deadline - self._loop.time()))
        left = list(self.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _unlink(self) -> None:
        """Remove our socket file, unless it is another's by now.

        While we listen there no other file can have the number of ours.
        """
        path = self.config.listen.unix
        if path is not None and path.exists() and path.stat().st_ino == self._unix_inode:
            path.unlink()

    async def renew(self) -> None:
        """Let clients that are silent take the tables in force, so that former ones can go."""
        for number, session in enumerate(list(self.sessions.values())):
            session.downstream.adopt()
            if number % RENEWED_PER_TURN == RENEWED_PER_TURN - 1:
                await asyncio.sleep(0)

    # What sessions and handlers call.

    def admit(self, session: Session) -> bytes | None:
        """Take a new session in, or return the error line with which it is turned away."""
        self._received += 1
        self.metrics.connections_received.count()
        if len(self.sessions) >= self.capacity:
            self._rejected += 1
            self.metrics.connections_refused.count("clients")
            return errors.MAX_CLIENTS
        self.sessions[session.id] = session
        self.metrics.clients.set(len(self.sessions))
        return None

    def estrange(self, session: Session) -> None:
        self._strangers.add(session)

    def dismiss(self, session: Session, reason: str) -> None:
        self.sessions.pop(session.id, None)
        self._strangers.discard(session)
        self.unread.count(session, 0)
        self.begun.count(session, 0)
        self.metrics.clients.set(len(self.sessions))
        self.metrics.connections_closed.count(reason)

    def role_of(self, user: str) -> str | None:
        found = self._users.get(user)
        return found.role if found is not None and found.enabled else None

    def adopt_users(self, users: tuple[User, ...]) -> None:
        """Let other users be those who may connect.

        Who is not among them, is switched off or has none of its secrets left is disconnected; who
        has another role has its rights from the next command on.
        """
        before, self._users = self._users, {user.name: user for user in users}
        self.config = replace(self.config, users=users)
        for session in list(self.sessions.values()):
            old, new = before.get(session.user), self._users.get(session.user)
            if old is None:
                continue
            if new is None or not new.enabled or not _same_secret(old, new):
                session.close("rights")
            elif new.role != old.role:
                # What is queued was judged by other rights.
                session.downstream.spoiled = True
                session.authenticate(session.user)

    def first_user(self) -> str | None:
        """Return whom a client counts as before AUTH, if it may do anything then."""
        default = self._users.get("default")
        return default.name if default is not None and default.enabled and default.nopass else None

    @property
    def slowlog(self) -> SlowLog:
        return self.sight.slowlog

    @property
    def latencies(self) -> wire.Latencies:
        return self.metrics.latencies

    def statistics(self) -> Statistics:
        # Never below zero: a keyspace that new rules do not have takes its counts along.
        counted = self._counted() - self._forgotten
        clusters = self.cluster_statistics()
        return Statistics(
            version=version(),
            clients=len(self.sessions),
            connections_received=counted["received"],
            connections_rejected=counted["rejected"],
            commands_processed=sum(counted[outcome] for outcome in wire.OUTCOMES),
            errors=counted["error"],
            refusals=counted["refused"],
            maxmemory_policy=clusters[self.router.ruleset.default_cluster].maxmemory_policy,
            clusters=clusters,
            rules=self.rule_statistics(),
            postgres=_word_of(self.postgres),
            behind="" if self.behind is None else self.behind.state,
        )

    def reset_statistics(self) -> None:
        """Let INFO count afresh; metrics only ever grow."""
        self._forgotten = self._counted()
        self.latencies.forget_commands()

    def _counted(self) -> Counter[str]:
        """Return what was counted since the start: connections, and commands by outcome."""
        counted = Counter({"received": self._received, "rejected": self._rejected})
        for _, _, outcome, count in self.router.ruleset.counters.requests():
            counted[wire.OUTCOMES[outcome]] += count
        return counted


def _make_room(path: Path) -> None:
    """Remove what a dead process left in the place of a socket. Raises OSError."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, "the file exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        # It never waits: where the backlog is full, somebody is there too.
        probe.setblocking(False)
        failure = probe.connect_ex(str(path))
    if failure == errno.EACCES:
        raise PermissionError(
            failure, "it may not be asked who listens here; remove it if nobody does"
        )
    if failure not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(errno.EADDRINUSE, "another process listens here; stop it first")
    path.unlink(missing_ok=True)


def version() -> str:
    """Return the version of the distribution, written once in pyproject.toml."""
    return metadata.version("sidecache")


def _word_of(postgres: Postgres | None) -> str:
    if postgres is None:
        return ""
    return "up" if postgres.up else "down"


def _same_secret(old: User, new: User) -> bool:
    """Return whether a way to log in as a user is still one."""
    return new.nopass or not set(old.passwords).isdisjoint(new.passwords)


def shares(limits: Limits, room: int) -> tuple[int, int]:
    """Return how many clients there may be, and connections that single clients have to nodes.

    Where there are too few descriptors for both, either gets half, or what the other leaves.
    """
    pins = limits.blocked + limits.watching
    clients = min(limits.clients, max(room - pins, room // 2))
    return clients, min(pins, room - clients)


def descriptors() -> int:
    """Return how many descriptors the process may have, raised to what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
