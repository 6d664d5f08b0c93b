"""Environment variables and flags as values to put over the configuration file.

Used by `config`. One table says which variable sets which field; a variable with our prefix that
no table knows is a mistake, because a misspelt setting that is silently ignored is found at night.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.documents import Mistake, Node, suggest
from proxy.validation import Location

PREFIX = "SIDECACHE_"

_FIELDS: dict[str, tuple[str, ...]] = {
    "SIDECACHE_LISTEN": ("listen", "tcp"),
    "SIDECACHE_CLUSTER_LISTEN": ("listen", "cluster"),
    "SIDECACHE_CLUSTER_ANNOUNCE": ("listen", "cluster_announce"),
    "SIDECACHE_UNIX": ("listen", "unix"),
    "SIDECACHE_UNIX_MODE": ("listen", "unix_mode"),
    "SIDECACHE_ADMIN": ("admin",),
    "SIDECACHE_POLICIES": ("policies", "path"),
    "SIDECACHE_JOURNAL": ("journal", "directory"),
    "SIDECACHE_DRAIN_TIMEOUT": ("drain", "timeout"),
    "SIDECACHE_PASSWORD": ("users", "default", "password"),
    "SIDECACHE_PASSWORD_FILE": ("users", "default", "password_file"),
    "DATABASE_URL": ("database", "url"),
    "DATABASE_URL_FILE": ("database", "url_file"),
}

# For each cluster: SIDECACHE_LOCKS_URL and so on.
_CLUSTER_FIELDS = {
    "URL": "nodes",
    "URL_FILE": "nodes_file",
    "MODE": "mode",
    "PRIMARY": "primary",
    "USERNAME": "username",
    "PASSWORD": "password",
    "PASSWORD_FILE": "password_file",
}

# Clusters that can be set without any file: those that the shipped policies name.
_KNOWN_CLUSTERS = frozenset({"locks", "cache"})

FLAGS: dict[str, tuple[str, ...]] = {
    "--listen": ("listen", "tcp"),
    "--unix": ("listen", "unix"),
    "--admin": ("admin",),
    "--policies": ("policies", "path"),
    "--database": ("database", "url"),
    "--locks-url": ("clusters", "locks", "nodes"),
    "--cache-url": ("clusters", "cache", "nodes"),
}

# Fields that can come from a file, which a field of the same name and _file names.
_SECRETS = frozenset({"url", "nodes", "password"})

# Where a path of the environment or of a flag starts: here, and not at the configuration file.
_PATHS = frozenset({"unix", "path", "directory", "url_file", "nodes_file", "password_file"})

# The file itself, the servers that demo and tests start, and what a Kubernetes service named
# "sidecache" puts into every pod of its namespace.
_OTHERS = (
    "SIDECACHE_CONFIG", "SIDECACHE_REDIS_BIN", "SIDECACHE_PG_BIN",
    "SIDECACHE_SERVICE_", "SIDECACHE_PORT",
)  # fmt: skip


@dataclass
class Sources:
    """Values by location, where each comes from, and what is wrong."""

    values: dict[tuple[str, ...], object] = field(default_factory=dict)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def overlay(
    environment: Mapping[str, str], flags: Mapping[str, str], clusters: set[str]
) -> Sources:
    """Return what environment and flags set; clusters are the names that the file knows."""
    table = dict(_variables(clusters))
    sources = Sources()
    for name, text in environment.items():
        if name in table:
            if text:
                _put(sources, table[name], name, text)
        elif name.startswith(PREFIX) and not name.startswith(_OTHERS):
            hint = suggest(name, table)
            sources.mistakes.append(Mistake(name, 0, 0, f"no such setting{hint}"))
    _pair_files(sources)
    for name, text in flags.items():
        location = FLAGS[name]
        _put(sources, location, name, text)
        if location[-1] in _SECRETS:
            sources.values[_twin(location)] = None
    return sources


def _variables(clusters: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _FIELDS.items()
    for cluster in sorted(clusters | _KNOWN_CLUSTERS):
        prefix = PREFIX + cluster.upper().replace("-", "_")
        for suffix, field_name in _CLUSTER_FIELDS.items():
            yield f"{prefix}_{suffix}", ("clusters", cluster, field_name)


def _put(sources: Sources, location: tuple[str, ...], name: str, text: str) -> None:
    value = str(Path.cwd() / text) if location[-1] in _PATHS else text
    sources.values[location] = value
    sources.origins[location] = name


def _pair_files(sources: Sources) -> None:
    """Let a secret of the environment replace the file's, however each of them is given."""
    for location, name in list(sources.origins.items()):
        if location[-1].removesuffix("_file") not in _SECRETS:
            continue
        twin = _twin(location)
        if location[-1].endswith("_file") and twin in sources.origins:
            message = f"{sources.origins[twin]} is set as well; keep one"
            sources.mistakes.append(Mistake(name, 0, 0, message))
            sources.values[location] = None
        sources.values.setdefault(twin, None)


def _twin(location: tuple[str, ...]) -> tuple[str, ...]:
    """Return the field that names the file of a secret, or holds the secret of a file."""
    *above, name = location
    other = name.removesuffix("_file") if name.endswith("_file") else f"{name}_file"
    return (*above, other)


class Locator:
    """Tells the place of a location: a variable, a flag, or a line of the file."""

    def __init__(self, path: Path | None, root: Node, sources: Sources) -> None:
        self._path = str(path) if path else "configuration"
        self._root = root
        self._sources = sources

    def __call__(self, location: Location, key: bool) -> tuple[str, int, int]:
        for length in range(len(location), 0, -1):
            source = self._sources.origins.get(tuple(map(str, location[:length])))
            if source is not None:
                return source, 0, 0
        line, column = self._root.place(location, key=key)
        return self._path, line, column
