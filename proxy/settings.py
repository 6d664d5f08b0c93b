"""The language of `sidecache.yaml` as types; `config` turns it into values.

Every field says what it means: the descriptions are the reference of the file. Secrets can be
written here for a test and come from files everywhere else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StringConstraints

from proxy.secret import Secret
from proxy.units import Duration, Percentage, PositiveDuration, PositiveSize, Switch
from proxy.validation import Strict

# Room for a few dozen node URLs with long passwords; a longer file is not a secret.
MAX_SECRET = 8192  # characters

# Linux: sun_path holds 108 bytes with the final zero.
MAX_UNIX_PATH = 107  # bytes


class URL(NamedTuple):
    """A node's address as written: without a port where none was given."""

    host: str
    port: int | None
    username: str | None
    password: Secret | None
    tls: bool


def parse_address(value: object) -> tuple[str, int]:
    """Return host and port of `host:port`; port 0 lets the system choose."""
    expects = "expects host:port, such as 127.0.0.1:6379 or [::1]:6379"
    if isinstance(value, tuple) and len(value) == 2:
        return value
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise ValueError(expects)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{expects}: an IPv6 address stands in brackets")
    if int(port) > 65535:
        raise ValueError("a port is at most 65535")
    return host, int(port)


def parse_url(value: object) -> URL:
    """Return the parts of redis://user:password@host:port. Messages never show the URL."""
    expects = "expects redis://user:password@host:port or rediss://… for TLS"
    if isinstance(value, URL):
        return value
    if not isinstance(value, str):
        raise ValueError(expects)
    try:
        parts = urlsplit(value.strip())
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(f"{expects}; write @ : / ? # [ ] % of a password as %40 and so on"
                         ) from None  # fmt: skip
    if parts.scheme not in ("redis", "rediss"):
        # What stands in the place of the scheme may be half of a password.
        raise ValueError(f"{expects}; it begins with something else")
    if not host:
        raise ValueError(f"{expects}; the host is missing")
    if port == 0:
        raise ValueError("port 0 is nowhere to connect to")
    if parts.path not in ("", "/", "/0") or parts.query or parts.fragment:
        raise ValueError(f"{expects}; nothing may follow the port but /0: clusters have one "
                         "database")  # fmt: skip
    password = unquote(parts.password) if parts.password else None
    return URL(
        host, port, unquote(parts.username) if parts.username else None,
        Secret(password) if password else None, parts.scheme == "rediss",
    )  # fmt: skip


def parse_urls(text: str) -> tuple[URL, ...]:
    """Return the nodes of a text with one or several URLs, apart by commas or white space."""
    return tuple(parse_url(part) for part in re.split(r"[,\s]+", text.strip()) if part)


def _split_nodes(value: object) -> object:
    if value is None:
        return ()
    return re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value


def _as_list(value: object) -> object:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else [value]


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("expects text that is not empty; put numbers in quotes")
    return Secret(value)


def _octal(value: object) -> int:
    text = str(value)
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError('expects three octal digits, such as "0660"')
    return int(text, 8)


def check_socket_path(path: Path) -> Path:
    """Return a path that the system takes for a socket."""
    if len(str(path).encode()) > MAX_UNIX_PATH:
        raise ValueError(f"the path of a socket has at most {MAX_UNIX_PATH} bytes")
    return path


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError("expects 64 hexadecimal digits: printf %s PASSWORD | sha256sum")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", text):
        raise ValueError("a name is a lower-case letter and up to 31 of a-z 0-9 _ -")
    return text


def _user_name(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,64}", text):
        raise ValueError("a user's name is 1 to 64 printable ASCII characters without blanks")
    return text


def _database(value: object) -> int:
    if not re.fullmatch(r"[1-9]|1[0-5]", str(value)):
        raise ValueError("databases have the numbers 1 to 15; 0 is the default of the policies")
    return int(str(value))


SecretText = Annotated[Secret, PlainValidator(_secret)]
Address = Annotated[tuple[str, int], BeforeValidator(parse_address)]
Node = Annotated[URL, PlainValidator(parse_url)]
ClusterName = Annotated[str, AfterValidator(_name)]
UserName = Annotated[str, AfterValidator(_user_name)]
Digest = Annotated[str, AfterValidator(_digest)]


Names = Literal["hashed", "plain"]
KEYS_SHOWN = (
    "Keys as hashes that only this process can make, the same in every report, or by their names."
)


class ListenBlock(Strict):
    tcp: Address | None = Field(
        None, description="Address for clients. 127.0.0.1:6379 when no listener is named."
    )
    unix: Annotated[Path, AfterValidator(check_socket_path)] | None = Field(
        None, description="Unix socket for clients, beside TCP or alone."
    )
    unix_mode: Annotated[int, PlainValidator(_octal)] = Field(
        0o660, description="Permissions of the socket file, in octal digits."
    )
    cluster: Address | None = Field(
        None,
        description="Another address, for clients that insist on Redis Cluster: they find one node "
        "that owns every slot.",
    )
    cluster_announce: Address | None = Field(
        None,
        description="Where such clients are told to connect; the address by which they came when "
        "not given. Needed behind a port mapping.",
    )


class TLSBlock(Strict):
    ca: Path | None = Field(None, description="CA certificates; those of the system if not given.")
    server_name: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None,
        description="Name in the nodes' certificates, also of nodes learned from the topology, "
        "which are announced by address.",
    )
    cert: Path | None = Field(None, description="Our certificate, where nodes ask for one.")
    key: Path | None = Field(None, description="The key of our certificate.")


class ClusterBlock(Strict):
    mode: Literal["cluster", "single", "sentinel"] = Field(
        "cluster", description="Redis Cluster, one plain node, or a primary watched by Sentinels."
    )
    nodes: Annotated[tuple[Node, ...], BeforeValidator(_split_nodes)] = Field(
        (),
        description="URLs of nodes to start from (of the Sentinels in that mode). Others are "
        "learned; naming two or three keeps one dead node from stopping a start.",
    )
    nodes_file: Path | None = Field(
        None, description="File with those URLs, apart by commas or lines, where they are secret."
    )
    primary: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None, description="Name under which Sentinels know the primary."
    )
    username: str | None = Field(
        None, description="User of the nodes that the topology names; else that of the first URL."
    )
    password: SecretText | None = Field(None, description="Its password; rather use the file.")
    password_file: Path | None = Field(None, description="File with that password.")
    tls: TLSBlock | None = Field(None, description="TLS towards the nodes; rediss:// asks for it.")
    timeout: PositiveDuration = Field(
        1.0,
        description="How long a node may take to answer one command before the client gets an "
        "error and the connection is given up.",
    )
    connections: int = Field(
        1, ge=1, le=64, description="Shared connections per node and protocol version."
    )
    memory: PositiveSize | None = Field(
        None,
        description="What its primaries have together, as maxmemory says it to each: budgets of "
        "keyspaces must not come to more.",
    )
    gap: Literal["silent", "disconnect"] = Field(
        "silent",
        description="What subscribers see when the node that they are subscribed at is lost, and "
        "messages with it: nothing, as other nodes are listened to at once, or a disconnect, so "
        "that they know.",
    )


class Pace(Strict):
    """How changes of rows come to Redis, in seconds."""

    poll: PositiveDuration = Field(
        0.075, description="How often the one sidecar that leads looks for changed rows."
    )
    retention: PositiveDuration = Field(
        24 * 3600.0,
        description="How long changes are kept for a shard that is away. One that comes back later "
        "has the keys taken away that may be stale.",
    )
    replay: PositiveDuration = Field(
        300.0,
        description="How far back changes are applied again where it is not known which were, as "
        "after a failover of PostgreSQL.",
    )


class DatabaseBlock(Strict):
    url: SecretText | None = Field(None, description="postgresql://user:password@host/name")
    url_file: Path | None = Field(None, description="File with that URL.")
    direct_url: SecretText | None = Field(
        None,
        description="The same server past PgBouncer, for what needs a session of its own; the URL "
        "when not given.",
    )
    direct_url_file: Path | None = Field(None, description="File with that URL.")
    replicas: Annotated[tuple[SecretText, ...], BeforeValidator(_as_list)] = Field(
        (), description="URLs of standbys that reads may go to."
    )
    replicas_file: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = Field(
        (), description="Files with those URLs, one each."
    )
    prepared: Switch = Field(
        True,
        description="Whether statements stay prepared on a connection; off behind PgBouncer in "
        "transaction mode, where statement_timeout and lock_timeout belong to the role.",
    )
    connections: int = Field(
        8, ge=1, le=500, description="Statements at a time, and connections to each server at most."
    )
    queue: int = Field(64, ge=0, le=100_000, description="Statements that may wait for their turn.")
    patience: PositiveDuration = Field(0.1, description="How long one waits for its turn.")
    timeout: PositiveDuration = Field(
        1.0, description="How long a statement may take; PostgreSQL gives it up a little earlier."
    )
    lock_timeout: PositiveDuration = Field(
        0.25, description="How long a statement waits for a lock of another."
    )
    connect_timeout: PositiveDuration = Field(
        1.0, description="How long a connection may take to be made."
    )
    budget: int | None = Field(
        None, ge=1, description="Connections that PostgreSQL has for all sidecars together."
    )
    sidecars: int = Field(1, ge=1, description="How many sidecars share that budget.")
    invalidation: Pace = Field(Pace(), description="How changes of rows come to Redis.")


class JournalBlock(Strict):
    directory: Path | None = Field(
        None,
        description="Where writes of keyspaces with write: {mode: behind} are kept until they are "
        "in PostgreSQL: a directory for this sidecar alone, that outlives its process.",
    )


class NumberBlock(Strict):
    cluster: ClusterName = Field(description="Where keys of no keyspace live after SELECT.")


class UserBlock(Strict):
    password: Annotated[tuple[SecretText, ...], BeforeValidator(_as_list)] = Field(
        (), description="Password, or several while one replaces the other. For tests."
    )
    password_file: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = Field(
        (), description="File with the password, or several."
    )
    password_sha256: Annotated[tuple[Digest, ...], BeforeValidator(_as_list)] = Field(
        (), description="SHA-256 of the password in hexadecimal digits, or several."
    )
    role: str = Field("default", description="Role of the policies: what the user may do.")
    enabled: Switch = Field(True, description="off refuses every login without losing the entry.")
    nopass: Switch = Field(False, description="on accepts any password, as in Redis.")


class LimitsBlock(Strict):
    clients: int = Field(10_000, ge=1, le=1_000_000, description="Connections, as maxclients.")
    idle: Duration = Field(
        0.0, description="A connection without traffic is closed after this; 0s never, as Redis."
    )
    unauthenticated: PositiveDuration = Field(
        5.0, description="How long a stranger may stay without AUTH, where AUTH is needed."
    )
    output_bytes: PositiveSize = Field(8 << 20, description="Replies one client may leave unread.")
    output_total_bytes: PositiveSize = Field(
        96 << 20, description="Replies that all clients together may leave unread; over it, who "
        "reads nothing is closed, and at once who leaves most beside four who leave more.",
    )  # fmt: skip
    output_seconds: PositiveDuration = Field(
        10.0, description="How long a client above output_bytes or the total may read nothing."
    )
    input_total_bytes: PositiveSize = Field(
        640 << 20, description="Requests that are not whole or wait for EXEC, of all clients, each "
        "beyond 64 KiB; over it, the largest is closed. More than the longest value that passes.",
    )  # fmt: skip
    input_seconds: PositiveDuration = Field(
        60.0, description="How long a request of more than 64 KiB may stop in its midst."
    )
    blocked: int = Field(
        1000, ge=0, description="Clients that wait in BLPOP, XREAD BLOCK and the like; each has a "
        "connection to a node for itself, and WAIT one to every primary."
    )  # fmt: skip
    watching: int = Field(100, ge=0, description="Clients that WATCH, on connections of their own.")
    watch_idle: PositiveDuration = Field(
        60.0, description="How long after its WATCH a transaction may come; then EXEC answers null."
    )
    subscriptions: int = Field(
        10_000, ge=1, description="Channels and patterns that one client may be subscribed to."
    )
    subscriptions_total: int = Field(
        500_000, ge=1, description="The same of all clients together; each costs some 500 bytes."
    )


class PoliciesBlock(Strict):
    path: Path | None = Field(
        None,
        description="Folder or file with the rules; none forwards everything to cache. Relative "
        "paths start at the folder of this file.",
    )
    watch: Switch = Field(
        True, description="Whether new rules come into force when the files change."
    )


def _policies(value: object) -> object:
    """Take a path for the block that says nothing else."""
    if value is None:
        return {}
    return value if isinstance(value, Mapping) else {"path": value}


class DrainBlock(Strict):
    timeout: PositiveDuration = Field(
        10.0, description="How long a stop waits for replies under way before it closes."
    )


class AccessLogBlock(Strict):
    sample: Percentage = Field(
        0.0,
        description="Share of the commands that a line is written about, such as 0.1%; none unless "
        "set. POST /-/access-log?sample=1% changes it until the next start.",
    )
    file: Path | None = Field(
        None, description="File that lines are added to; standard output when not given."
    )
    keys: Names = Field("hashed", description=KEYS_SHOWN)
    values: Literal["hidden", "plain"] = Field(
        "hidden",
        description="Data of commands: only its length and kind, or as it is, up to 256 bytes of "
        "each word.",
    )


class SlowLogBlock(Strict):
    slower_than: Duration = Field(
        0.010, description="How long a command takes that is noted, as slowlog-log-slower-than."
    )
    entries: int = Field(128, ge=1, le=10_000, description="How many are kept, as slowlog-max-len.")
    keys: Names = Field("hashed", description=f"On the admin port and in the log. {KEYS_SHOWN}")


class HotKeysBlock(Strict):
    sample: Percentage = Field(
        1 / 64, description="Share of the commands whose keys are counted; 0% counts none."
    )
    keys: Names = Field("hashed", description=KEYS_SHOWN)


class Document(Strict):
    """The whole file."""

    listen: ListenBlock = Field(ListenBlock(), description="Where clients connect.")
    admin: Address = Field(
        ("127.0.0.1", 9121), description="Address of health, metrics and the writing verbs."
    )
    clusters: dict[ClusterName, ClusterBlock] = Field(
        {}, description="The upstreams by the names that policies use: locks and cache."
    )
    databases: dict[Annotated[int, PlainValidator(_database)], NumberBlock] = Field(
        {},
        description="Numbers that clients may SELECT beside 0, as in {1: {cluster: cache}}. They "
        "choose the cluster of keys that match no keyspace; a keyspace keeps its own.",
    )
    database: DatabaseBlock = Field(DatabaseBlock(), description="PostgreSQL, the origin.")
    journal: JournalBlock = Field(JournalBlock(), description="What waits for PostgreSQL.")
    policies: Annotated[PoliciesBlock, BeforeValidator(_policies)] = Field(
        PoliciesBlock(),
        description="The rules: a path, or {path: …, watch: off}.",
    )
    users: dict[UserName, UserBlock] = Field(
        {},
        description="Who may connect. Without any, everybody may, as on a new Redis; with some, "
        "only those.",
    )
    limits: LimitsBlock = Field(LimitsBlock(), description="What clients may take.")
    drain: DrainBlock = Field(DrainBlock(), description="How a stop goes.")
    access_log: AccessLogBlock = Field(
        AccessLogBlock(), description="A line about one of many commands."
    )
    slow_log: SlowLogBlock = Field(SlowLogBlock(), description="Commands that took long.")
    hot_keys: HotKeysBlock = Field(
        HotKeysBlock(), description="Which keys are asked for most, and which are large."
    )
