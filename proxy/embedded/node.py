"""One Redis or Valkey process: its configuration file, its life and a way to ask it.

Used by `redis`, which makes clusters and monitored primaries of nodes.

Always true:
  * secrets are in the node's configuration file (mode 0600), never in its arguments;
  * `start` returns when *this* process answers, and takes other ports when its own are taken;
  * a restarted node keeps its ports, its directory and so its identity in the cluster.
"""

import asyncio
import signal
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hiredis

from proxy.embedded.container import child_for
from proxy.embedded.process import (
    Child,
    EmbeddedError,
    Launch,
    ServerFailed,
    release_port,
    reserve_port,
    wait_until,
)
from proxy.embedded.programs import Program

# First PING after 15-90 ms on an idle machine; a busy one gets a hundred times that.
START_TIMEOUT = 10.0  # seconds

# A node on loopback answers within a millisecond unless it is frozen, and then we want to know.
ASK_TIMEOUT = 2.0  # seconds

# Two starters that race for a port meet once in thousands of starts; five in a row is no race.
PORT_ATTEMPTS = 5

# A path of a unix socket has 107 bytes (sun_path); the rest is the name of the socket.
LONGEST_SOCKET_DIRECTORY = 90

READ_BYTES = 65536


class NodeError(EmbeddedError):
    """A node answered with an error, which is the text."""


@dataclass(frozen=True)
class TLSFiles:
    """Certificates in PEM: the authority that everybody trusts, and the node's own."""

    ca: Path
    cert: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        """Return how to connect to a node with these certificates."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False  # certificates for tests name hosts, not 127.0.0.1
        return context


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What all nodes of one cluster have in common."""

    user: str = ""  # an ACL user; without one, password is requirepass
    password: str = field(default="", repr=False)
    tls: TLSFiles | None = None  # needs a server built with TLS: Program.tls
    unix: bool = False  # listen on a unix socket too
    maxmemory_policy: str = "noeviction"
    node_timeout: float = 2.0  # seconds until a cluster takes a silent node for failed
    settings: Mapping[str, str] = field(default_factory=dict)  # further lines of redis.conf


class Node:
    """One server. Of an existing cluster that we did not start, only its address is known."""

    host: str = "127.0.0.1"

    def __init__(self, name: str, program: Program, directory: Path, options: NodeOptions) -> None:
        self.name = name
        self.program = program
        self.directory = directory
        self.options = options
        self.settings: dict[str, str] = {}  # of this node alone, over those of the options
        self.port = 0
        self.bus_port = 0  # 0: no cluster mode
        self.id = ""  # in its cluster
        self.role = "primary"  # or "replica", as last seen
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        if self._child is None:
            raise EmbeddedError(f"{self.name} was not started here")
        return self._child

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def unix(self) -> Path | None:
        """The unix socket, where one was asked for and its path is short enough."""
        fits = len(str(self.directory)) <= LONGEST_SOCKET_DIRECTORY
        return self.directory / "redis.sock" if self.options.unix and fits else None

    @property
    def url(self) -> str:
        options = self.options
        secret = f":{quote(options.password, safe='')}@" if options.password else ""
        scheme = "rediss" if options.tls else "redis"
        return f"{scheme}://{quote(options.user, safe='') if secret else ''}{secret}{self.address}"

    async def start(self, *, clustered: bool = False) -> None:
        """Start the process and return when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = reserve_port()
            self.bus_port = reserve_port() if clustered else 0
            self._write_configuration()
            try:
                await self._spawn()
            except ServerFailed:
                self.release()
                if attempt == PORT_ATTEMPTS or "in use" not in self.child.log_tail():
                    raise
            else:
                return

    async def restart(self) -> None:
        """Start an ended node again, at the same address."""
        if self.running:
            raise EmbeddedError(f"{self.name} is running")
        await self._spawn()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the node with a signal, and by force if it does not end."""
        await self.child.stop(number)

    def kill(self) -> None:
        """End the node as kill -9 does."""
        self.child.kill()

    def pause(self) -> None:
        """Freeze the node: its connections stay open and silent."""
        self.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.child.send(signal.SIGCONT)

    def release(self) -> None:
        """Give the ports back; the node is not started again."""
        release_port(self.port)
        release_port(self.bus_port)

    async def ask(self, *words: str | int, timeout: float = ASK_TIMEOUT) -> Any:
        """Return the node's answer to one command, on a connection of its own.

        Raises NodeError for an error, OSError or TimeoutError when there is no answer.
        """
        context = self.options.tls.client_context() if self.options.tls else None
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
            try:
                answers = await self._converse(reader, writer, words)
            finally:
                writer.transport.abort()
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise NodeError(f"{self.name} ({self.address}): {answer}")
        return answers[-1]

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        words: tuple[str | int, ...],
    ) -> list[Any]:
        commands: list[tuple[str | int, ...]] = [words]
        if self.options.password:
            name = (self.options.user,) if self.options.user else ()
            commands.insert(0, ("AUTH", *name, self.options.password))
        writer.write(b"".join(packed(command) for command in commands))
        replies = hiredis.Reader(encoding="utf-8", errors="surrogateescape")
        answers: list[Any] = []
        while len(answers) < len(commands):
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError(f"{self.name} closed the connection")
            replies.feed(data)
            while (answer := replies.gets()) is not False:
                answers.append(answer)
        return answers

    async def _spawn(self) -> None:
        self._child = child_for(
            self.name,
            Launch(
                arguments=self._arguments(),
                directory=self.directory,
                log=self.directory / "server.log",
                image=self.program.image,
            ),
        )
        self._child.start()
        try:
            await wait_until(self._silent, START_TIMEOUT, [self._child])
        except BaseException:
            self._child.kill()
            raise

    def _arguments(self) -> tuple[str, ...]:
        server = "valkey-server" if self.program.image else str(self.program.path)
        return (server, str(self.directory / "node.conf"))

    async def _silent(self) -> str | None:
        """Return why the node cannot be used yet.

        The process id is compared because another server may answer on a port that ours has just
        failed to get.
        """
        try:
            info = await self.info("server")
        except (OSError, TimeoutError, NodeError) as error:
            return f"{self.name} at {self.address} does not answer: {error or 'no reply in time'}"
        if not self.program.image and int(info["process_id"]) != self.child.pid:
            return f"{self.name}: another server answers at {self.address}"
        return None

    async def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO as a mapping."""
        text: str = await self.ask("INFO", section)
        return parse_fields(text)

    def _write_configuration(self) -> None:
        options = self.options
        lines = [f"{name} {quoted(value)}" for name, value in self._settings().items()]
        if options.user:
            lines.append("user default off")
            lines.append(f"user {options.user} on {quoted('>' + options.password)} ~* &* +@all")
        self._save_configuration([*self._listener_lines(), *lines])

    def _save_configuration(self, lines: Sequence[str]) -> None:
        path = self.directory / "node.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{line}\n" for line in lines))

    def _listener_lines(self) -> list[str]:
        """Return where to listen and work; of a sentinel the same."""
        lines = [f"bind {self.host}", f"dir {quoted(str(self.directory))}"]
        if (files := self.options.tls) is None:
            return [*lines, f"port {self.port}"]
        return [
            *lines,
            "port 0",
            f"tls-port {self.port}",
            f"tls-cert-file {quoted(str(files.cert))}",
            f"tls-key-file {quoted(str(files.key))}",
            f"tls-ca-cert-file {quoted(str(files.ca))}",
            "tls-auth-clients optional",
            "tls-replication yes",
            "tls-cluster yes",
        ]

    def _settings(self) -> dict[str, str]:
        options = self.options
        settings = {
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": options.maxmemory_policy,
            "repl-diskless-sync-delay": "0",  # seconds that a first replica waits for others
            "shutdown-timeout": "0",  # seconds that a primary waits for slow replicas
        }
        if options.user:
            settings["masteruser"] = options.user
        elif options.password:
            settings["requirepass"] = options.password
        if options.password:
            settings["masterauth"] = options.password
        if self.unix:
            settings |= {"unixsocket": str(self.unix), "unixsocketperm": "700"}
        if self.bus_port:
            settings |= self._cluster_settings()
        return settings | dict(options.settings) | self.settings

    def _cluster_settings(self) -> dict[str, str]:
        return {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),  # else port + 10000, which may be anybody's
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(int(self.options.node_timeout * 1000)),
            # A replica stays where it was put, so that a test knows who takes over from whom.
            "cluster-allow-replica-migration": "no",
        }


def parse_fields(text: str) -> dict[str, str]:
    """Return the name:value lines of INFO and CLUSTER INFO."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def packed(words: Sequence[str | int]) -> bytes:
    encoded = [str(word).encode(errors="surrogateescape") for word in words]
    frames = (b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
    return b"*%d\r\n%b" % (len(encoded), b"".join(frames))


def quoted(value: str) -> str:
    """Return a value as one word of redis.conf."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
