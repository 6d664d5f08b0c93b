"""Server processes that end with the program that started them, and the ports and the
directory that they use.

Used by `node`, `postgres` and `sidecar`. A Child is started from the thread that lives longest:
Linux ends it when the *thread* that forked it ends.

Always true:
  * every wait has a deadline and fails with the last lines of the server's log;
  * a Child has a session of its own, so Ctrl-C in a terminal reaches only the program that
    started it, which then stops its servers in order.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import StartError

# How often a condition is looked at while waiting: short beside the 2 s that a cluster needs,
# long beside the tenth of a millisecond that one look costs.
POLL_INTERVAL = 0.02  # seconds

# A server that has nothing to save ends in 0.1 s; a busy machine gets fifty times that.
STOP_TIMEOUT = 5.0  # seconds

# Enough to see why a server refused to start, short enough to read.
LOG_LINES = 15

# Below are ports that a distribution gives to services (6379, 8080, 9121).
LOWEST_PORT = 10240

# Linux' default lower end of the ports of outgoing connections, for where it cannot be asked.
EPHEMERAL_START = 32768

# Removing a directory is tried again while a server that was killed is still writing.
REMOVE_ATTEMPTS = 20
REMOVE_INTERVAL = 0.1  # seconds

# Removes a directory when we end, however that happens: its input is a pipe that we hold.
SWEEPER = f"""read -r _
attempts={REMOVE_ATTEMPTS}
while [ $attempts -gt 0 ]; do
    rm -rf -- "$0" 2>/dev/null
    [ -e "$0" ] || exit 0
    sleep {REMOVE_INTERVAL}
    attempts=$((attempts - 1))
done"""

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h

_reserved: dict[int, int] = {}  # port -> descriptor of what claims it


class EmbeddedError(StartError):
    """A server could not be had; the text says what to do."""


class ServerMissing(EmbeddedError):
    """No usable server program on this machine."""


class ServerFailed(EmbeddedError):
    """A server did not start, or not become what was waited for."""


def reserve_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on and that no other caller on this machine holds.

    Taken from below the range of outgoing connections: the port of a server that is down for a
    moment would otherwise be taken by the next client's connection, and could not be had again.
    """
    candidates = range(LOWEST_PORT, _first_ephemeral_port())
    for _ in range(200):
        port = random.choice(candidates)
        claim = _claim(port)
        if claim is not None and port_is_free(port, host):
            _reserved[port] = claim
            return port
        if claim is not None:
            os.close(claim)
    raise ServerFailed(f"no free port between {candidates.start} and {candidates.stop}")


def _claim(port: int) -> int | None:
    """Return a descriptor that tells other processes of ours that the port is taken.

    None: somebody has it.

    A name in the abstract space: seen by everybody who sees the port, without a file, and gone
    with the process however it ends. A server that is being restarted does not hold its port.
    """
    if port in _reserved:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            if sys.platform == "linux":  # elsewhere there is no such space: this process only
                claim.bind(f"\0sidecache-port-{port}")
        except OSError:
            return None
        return claim.detach()


def release_port(port: int) -> None:
    """Give a reserved port back."""
    claim = _reserved.pop(port, None)
    if claim is not None:
        os.close(claim)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection in TIME_WAIT does not keep them from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _first_ephemeral_port() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return EPHEMERAL_START
    # A machine whose outgoing connections start very low leaves no room below them.
    return low if low >= LOWEST_PORT + 1000 else EPHEMERAL_START


@dataclass(frozen=True)
class Account:
    """The user that a server runs as when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a process is started."""

    arguments: tuple[str, ...]
    directory: Path
    log: Path
    environment: Mapping[str, str] | None = None  # None: ours
    account: Account | None = None  # None: ours
    # What the kernel sends when we die without having stopped the child.
    death_signal: signal.Signals = signal.SIGKILL
    image: str = ""  # run in a container of this image instead


class Child:
    """One server process."""

    def __init__(self, name: str, launch: Launch) -> None:
        self.name = name
        self.launch = launch
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; what it prints goes to the end of its log."""
        launch = self.launch
        account = launch.account
        with launch.log.open("ab") as log, warnings.catch_warnings():
            # Python warns of forking with threads; prepare() takes no lock that one could hold.
            warnings.filterwarnings(
                "ignore", message=".*multi-threaded", category=DeprecationWarning
            )
            try:
                self._process = subprocess.Popen(
                    launch.arguments,
                    cwd=launch.directory,
                    env=launch.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                    preexec_fn=_ending_with_parent(launch.death_signal),
                )
            except OSError as error:
                raise ServerFailed(f"cannot start {launch.arguments[0]}: {error}") from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    async def wait_exit(self, timeout: float, interval: float = POLL_INTERVAL) -> bool:
        """Return whether the process has ended within timeout, looking once per interval."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(interval)
        return True

    async def stop(
        self, number: signal.Signals = signal.SIGTERM, timeout: float = STOP_TIMEOUT
    ) -> None:
        """End the process: kindly, then by force. Cancelled in between, it is ended by force."""
        if not self.running:
            return
        try:
            self.send(signal.SIGCONT)  # a frozen process does not hear the next signal
            self.send(number)
            await self.wait_exit(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and what it started at once, and collect it."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """Return the end of the log."""
        try:
            text = self.launch.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _ending_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before its program: tie its life to ours. Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # we died between fork and prctl
            os._exit(1)

    return prepare


async def wait_until(
    missing: Callable[[], Awaitable[str | None]], timeout: float, children: Sequence[Child]
) -> None:
    """Wait until missing() returns None; until then it returns what is still missing.

    Fails at once when one of the children ends, and after timeout.
    """
    deadline = time.monotonic() + timeout
    while (reason := await missing()) is not None:
        for child in children:
            if not child.running:
                raise ServerFailed(f"{child.name} ended with {child.exit_code}{_quoted(child)}")
        if time.monotonic() > deadline:
            logs = "".join(_quoted(child) for child in children[:3])
            raise ServerFailed(f"not ready after {timeout:g} s: {reason}{logs}")
        await asyncio.sleep(POLL_INTERVAL)


def _quoted(child: Child) -> str:
    return f"\n--- end of {child.launch.log}\n{child.log_tail()}"


async def stop_all(children: Sequence[Child]) -> None:
    """Stop children side by side; every one is tried, whatever happens to another."""
    await asyncio.gather(*(child.stop() for child in children), return_exceptions=True)


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Yield a directory for servers that is gone afterwards, even if we are killed meanwhile."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    sweeper = subprocess.Popen(
        ["sh", "-c", SWEEPER, str(directory)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        directory.chmod(0o711)  # PostgreSQL may run as another user, who must get through
        yield directory
    finally:
        for _ in range(REMOVE_ATTEMPTS):
            shutil.rmtree(directory, ignore_errors=True)
            if not directory.exists():
                break
            time.sleep(REMOVE_INTERVAL)
        sweeper.communicate()
