"""Where things are on this machine: file, environment and flags become one frozen `Config`.

Read once at start by `__main__`; everything else receives the value. Flags win over the
environment, the environment over the file, the file over the defaults. Every mistake of all three
is reported in one run.

Always true: a secret is a `Secret`, which never prints itself; passwords of users are kept as
digests only; each secret can come from a file; nothing here opens a connection.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy import settings
from proxy.database import Database
from proxy.documents import Mistake, MistakesFound, Node, plain_overlaid, read
from proxy.environment import Locator, overlay
from proxy.errors import ConfigError
from proxy.secret import Secret
from proxy.validation import Broken, Location, validate

__all__ = [
    "TLS", "AccessLog", "Admin", "Cluster", "Config", "Database", "HotKeys", "Limits", "Listen",
    "NodeURL", "Secret", "SlowLog", "User", "load",
]  # fmt: skip

# What is read when nobody names a file.
DEFAULT_FILE = Path("sidecache.yaml")

# Redis' port, on loopback: a sidecar's clients are on the same machine.
DEFAULT_TCP = ("127.0.0.1", 6379)


@dataclass(frozen=True)
class Listen:
    """Where clients connect. At least one of tcp, unix and cluster is set."""

    tcp: tuple[str, int] | None
    unix: Path | None
    unix_mode: int
    cluster: tuple[str, int] | None = None  # shows one node that owns every slot
    announced: tuple[str, int] | None = None  # where that node says it is


@dataclass(frozen=True)
class Admin:
    """Where health, metrics and the writing verbs are served."""

    host: str
    port: int


@dataclass(frozen=True)
class NodeURL:
    """A node, or a Sentinel, as the operator wrote it."""

    host: str
    port: int
    username: str | None
    password: Secret | None
    tls: bool


@dataclass(frozen=True)
class TLS:
    """How nodes prove who they are, and how we do. No CA means those of the system."""

    ca: Path | None
    server_name: str | None
    cert: Path | None
    key: Path | None


@dataclass(frozen=True)
class Cluster:
    """One upstream: a Redis Cluster, a single node, or a primary that Sentinels watch.

    `username` and `password` are for nodes that the topology names; the URLs of nodes carry their
    own. Without Sentinels they are those of the first URL unless given.
    """

    name: str
    mode: str  # "cluster" "single" "sentinel"
    nodes: tuple[NodeURL, ...]
    primary_name: str | None
    tls: TLS | None
    timeout: float
    connections: int  # shared connections per node and protocol
    username: str | None = None
    password: Secret | None = None
    gap: str = "silent"  # or "disconnect": what subscribers see of messages that may be lost
    memory: int | None = None  # bytes that its primaries have together


@dataclass(frozen=True)
class User:
    """Somebody who may connect. A user without passwords and without nopass cannot."""

    name: str
    passwords: tuple[bytes, ...] = field(repr=False)  # SHA-256 digests
    role: str
    enabled: bool
    nopass: bool


@dataclass(frozen=True)
class Limits:
    """What clients may take; see `settings.LimitsBlock` for the reasons."""

    clients: int
    idle: float  # seconds; 0 never closes
    unauthenticated: float
    output_bytes: int  # of one client
    output_total_bytes: int  # of all clients
    output_seconds: float  # how long a client above a limit may read nothing
    input_total_bytes: int  # of all clients
    input_seconds: float  # how long a request may stop in its midst
    blocked: int  # clients that wait, each on a connection of its own
    watching: int
    watch_idle: float
    subscriptions: int  # of one client
    subscriptions_total: int


@dataclass(frozen=True)
class AccessLog:
    """Which commands a line is written about, and where."""

    sample: float = 0.0  # share of 1
    file: Path | None = None  # None is standard output
    keys: str = "hashed"  # or "plain"
    values: str = "hidden"  # or "plain"


@dataclass(frozen=True)
class SlowLog:
    """Which commands are slow, and what is shown of them apart from SLOWLOG."""

    slower_than: float = 0.010  # seconds
    entries: int = 128
    keys: str = "hashed"


@dataclass(frozen=True)
class HotKeys:
    """Of which commands keys are counted."""

    sample: float = 1 / 64  # share of 1
    keys: str = "hashed"


@dataclass(frozen=True)
class Config:
    """Everything that belongs to this machine and not to the data."""

    listen: Listen
    admin: Admin
    clusters: dict[str, Cluster]
    database: Database | None
    policies: Path | None  # a folder or one file; None forwards everything
    users: tuple[User, ...]
    limits: Limits
    drain_timeout: float
    watch_policies: bool = True  # new files come into force without a word
    databases: Mapping[int, int] = field(default_factory=dict)  # number to index of a cluster
    access_log: AccessLog = AccessLog()
    slow_log: SlowLog = SlowLog()
    hot_keys: HotKeys = HotKeys()
    journal: Path | None = None  # directory of write-behind


class ConfigMistakes(MistakesFound, ConfigError):
    """Every mistake of file, environment and flags, and what is left without what is wrong."""

    def __init__(self, mistakes: Iterable[Mistake], readable: Config | None = None) -> None:
        super().__init__(mistakes)
        self.readable = readable


# Redis' own start: one user for everybody, without a password, until somebody is configured.
OPEN_DEFAULT_USER = User("default", (), "default", True, True)


def load(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration, or raise ConfigMistakes with everything that is wrong.

    Without a path, SIDECACHE_CONFIG names the file, else `sidecache.yaml` is read if it is there.
    """
    environment = environment or {}
    mistakes: list[Mistake] = []
    if path is None and "SIDECACHE_CONFIG" in environment:
        path = Path(environment["SIDECACHE_CONFIG"])
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    root: Node | None = Node({}, 0, 0)
    if path is not None:
        root, mistakes = read(path)
        if root is not None and not isinstance(root.value, dict):
            mistakes.append(Mistake(str(path), 1, 1, "expects a mapping ({listen: …})"))
            root = None
    unread = root is None
    root = root or Node({}, 0, 0)
    names = root.value["clusters"].node.value if "clusters" in root.value else {}
    sources = overlay(environment, flags or {}, set(names) if isinstance(names, dict) else set())
    mistakes += sources.mistakes
    locate = Locator(path, root, sources)
    plain = plain_overlaid(root, sources.values)
    document, found, broken = validate(settings.Document, plain, locate)
    if unread:
        # Nothing is missing from a file that could not be read.
        broken = Broken(broken | {("clusters",)})
    mistakes += found
    config = None
    if document is not None:
        config = _Builder(document, path, mistakes, locate, broken).config()
        if not mistakes:
            return config
    raise ConfigMistakes(mistakes, config)


class _Builder:
    """Turns the document into values, reading the files that it names."""

    def __init__(
        self, document: settings.Document, path: Path | None, mistakes: list[Mistake],
        locate: Locator, broken: frozenset[Location],
    ) -> None:  # fmt: skip
        self._document = document
        # Paths are relative to the file that names them, so a folder can be moved as a whole.
        self._folder = path.parent if path else Path()
        self._mistakes = mistakes
        self._locate = locate
        self._broken = broken

    def config(self) -> Config:
        document = self._document
        limits = document.limits
        clusters = {name: self._cluster(name, block) for name, block in document.clusters.items()}
        if not clusters and ("clusters",) not in self._broken:
            self._complain((), "no cluster is named: set SIDECACHE_CACHE_URL, or clusters: in the "
                           "file")  # fmt: skip
        users = tuple(self._user(name, block) for name, block in document.users.items())
        return Config(
            listen=self._listen(document.listen),
            admin=Admin(*document.admin),
            clusters=clusters,
            database=self._database(document.database),
            policies=self._path(document.policies.path),
            watch_policies=document.policies.watch,
            users=users if document.users else (OPEN_DEFAULT_USER,),
            limits=Limits(**limits.model_dump()),
            drain_timeout=document.drain.timeout,
            databases=self._databases(document.databases, list(clusters)),
            access_log=self._access_log(document.access_log),
            slow_log=SlowLog(**document.slow_log.model_dump()),
            hot_keys=HotKeys(**document.hot_keys.model_dump()),
            journal=self._path(document.journal.directory),
        )

    def _database(self, block: settings.DatabaseBlock) -> Database | None:
        at: Location = ("database",)
        url = self._secret(at, "url", block.url, block.url_file)
        direct = self._secret(at, "direct_url", block.direct_url, block.direct_url_file)
        files = (
            self._read((*at, "replicas_file", index), file)
            for index, file in enumerate(block.replicas_file)
        )
        replicas = (*block.replicas, *(Secret(text) for text in files if text is not None))
        # One more of each sidecar is that of a leader, or of who would be one; two are those of
        # write-behind.
        flushing = 2 if self._document.journal.directory is not None else 0
        needed = block.sidecars * (block.connections + 1 + flushing)
        if block.budget is not None and needed > block.budget:
            self._complain((*at, "budget"), f"{block.sidecars} sidecars may take {needed} "
                           "connections; lower connections or raise it")  # fmt: skip
        if url is None:
            said = block.model_fields_set - {"url", "url_file"}
            if said and not {(*at, "url"), (*at, "url_file")} & self._broken:
                self._complain(at, "no url; write url_file: FILE or set SIDECACHE_DATABASE_URL")
            return None
        return Database(
            url, direct or url, replicas, block.prepared, block.connections, block.queue,
            block.patience, block.timeout, block.lock_timeout, block.connect_timeout,
            block.invalidation,
        )  # fmt: skip

    def _databases(
        self, blocks: Mapping[int, settings.NumberBlock], clusters: list[str]
    ) -> Mapping[int, int]:
        found = {}
        for number, block in blocks.items():
            if block.cluster in clusters:
                found[number] = clusters.index(block.cluster)
            else:
                at: Location = ("databases", str(number), "cluster")
                self._complain(at, f'there is no cluster "{block.cluster}"')
        return found

    def _listen(self, block: settings.ListenBlock) -> Listen:
        unix = self._path(block.unix)
        if unix is not None:
            try:
                settings.check_socket_path(unix)
            except ValueError as error:
                self._complain(("listen", "unix"), str(error))
        cluster, announced = block.cluster, block.cluster_announce
        if announced is not None and (cluster is None or not announced[1]):
            at: Location = ("listen", "cluster_announce")
            self._complain(at, "names the port of listen: cluster: for clients; set both")
        named = block.tcp is not None or unix is not None or cluster is not None
        tcp = block.tcp if named else DEFAULT_TCP
        return Listen(tcp, unix, block.unix_mode, cluster, announced)

    def _access_log(self, block: settings.AccessLogBlock) -> AccessLog:
        return AccessLog(block.sample, self._path(block.file), block.keys, block.values)

    def _cluster(self, name: str, block: settings.ClusterBlock) -> Cluster:
        at: Location = ("clusters", name)
        urls = block.nodes
        if block.nodes_file is not None:
            text = self._read(((*at, "nodes_file")), block.nodes_file)
            try:
                urls = settings.parse_urls(text) if text is not None else ()
            except ValueError as error:
                self._complain((*at, "nodes_file"), str(error))
        if not urls and block.nodes_file is None and (*at, "nodes") not in self._broken:
            self._complain(at, "no nodes; write nodes: [redis://host:port]")
        if urls and block.nodes_file is not None and block.nodes:
            self._complain((*at, "nodes_file"), "nodes and nodes_file are both set; keep one")
        nodes = tuple(
            NodeURL(url.host, url.port or (26379 if block.mode == "sentinel" else 6379),
                    url.username, url.password, url.tls or block.tls is not None)
            for url in urls
        )  # fmt: skip
        if len({node.tls for node in nodes}) > 1:
            self._complain((*at, "nodes"), "redis:// and rediss:// are mixed; use one for all")
        if (block.mode == "sentinel") != (block.primary is not None) and at not in self._broken:
            self._complain(at, "mode: sentinel and primary: NAME belong together")
        password = self._secret(at, "password", block.password, block.password_file)
        username = block.username
        if password is None and block.mode != "sentinel" and nodes:
            username, password = nodes[0].username, nodes[0].password
        return Cluster(
            name, block.mode, nodes, block.primary, self._tls(at, block.tls, nodes),
            block.timeout, block.connections, username, password, block.gap,
            block.memory,
        )  # fmt: skip

    def _tls(
        self, at: Location, block: settings.TLSBlock | None, nodes: tuple[NodeURL, ...]
    ) -> TLS | None:
        if block is None:
            return TLS(None, None, None, None) if any(node.tls for node in nodes) else None
        for name in ("ca", "cert", "key"):
            file = self._path(getattr(block, name))
            if file is not None and not file.is_file():
                self._complain((*at, "tls", name), "there is no such file")
        return TLS(
            self._path(block.ca), block.server_name, self._path(block.cert), self._path(block.key)
        )

    def _user(self, name: str, block: settings.UserBlock) -> User:
        at: Location = ("users", name)
        digests = [hashlib.sha256(secret.reveal().encode()).digest() for secret in block.password]
        digests += [bytes.fromhex(digest) for digest in block.password_sha256]
        for index, file in enumerate(block.password_file):
            text = self._read((*at, "password_file", index), file)
            if text is not None:
                digests.append(hashlib.sha256(text.encode()).digest())
        locked = not digests and not block.nopass and not block.password_file
        if locked and block.enabled and at not in self._broken:
            self._complain(at, "nobody can log in as this user: set password_file, password_sha256,"
                           " password, nopass: on or enabled: off")  # fmt: skip
        return User(name, tuple(digests), block.role, block.enabled, block.nopass)

    def _secret(
        self, at: Location, name: str, value: Secret | None, file: Path | None
    ) -> Secret | None:
        """Return a secret that stands in the document or in a file that it names."""
        if file is None:
            return value
        if value is not None:
            self._complain((*at, f"{name}_file"), f"{name} and {name}_file are both set; keep one")
            return None
        text = self._read((*at, f"{name}_file"), file)
        return Secret(text) if text is not None else None

    def _read(self, at: Location, file: Path) -> str | None:
        """Return the content of a file with a secret, without the end of its line."""
        try:
            # A secret is a line; what is longer is the wrong file.
            with (self._folder / file).open(encoding="utf-8") as stream:
                text = stream.read(settings.MAX_SECRET + 1).rstrip("\r\n")
        except OSError as error:
            self._complain(at, f"cannot be read: {error.strerror}")
            return None
        except UnicodeDecodeError:
            self._complain(at, "is not UTF-8 text")
            return None
        if not text or len(text) > settings.MAX_SECRET:
            self._complain(at, f"must hold between 1 and {settings.MAX_SECRET} characters")
            return None
        return text

    def _path(self, path: Path | None) -> Path | None:
        return None if path is None else self._folder / path

    def _complain(self, at: Location, message: str) -> None:
        self._mistakes.append(Mistake(*self._locate(at, False), message))
