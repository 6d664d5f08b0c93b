"""Processes, ports and directories, with `sh` and `sleep` in place of servers."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.embedded import process
from proxy.embedded.process import Child, Launch, ServerFailed, stop_all, wait_until

pytestmark = pytest.mark.integration

# Far above what anything here takes, so that a slow machine does not fail a right answer.
PATIENCE = 10.0  # seconds


def child(directory: Path, script: str) -> Child:
    arguments = ("sh", "-c", script)
    return Child("child", Launch(arguments=arguments, directory=directory, log=directory / "log"))


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[[str], Child]]:
    started: list[Child] = []

    def starter(script: str) -> Child:
        started.append(child(tmp_path, script))
        started[-1].start()
        return started[-1]

    yield starter
    await stop_all(started)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def said(log: Path, words: int = 1) -> Callable[[], bool]:
    return lambda: log.exists() and len(log.read_text().split()) >= words


def test_reserved_ports_are_free_different_and_not_those_of_outgoing_connections() -> None:
    """No port is handed out twice, and none that a client's connection could take meanwhile."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [process.reserve_port() for _ in range(50)]
    try:
        assert len(set(ports)) == 50
        assert all(process.LOWEST_PORT <= port < low for port in ports)
        assert all(process.port_is_free(port) for port in ports)
    finally:
        for port in ports:
            process.release_port(port)


def test_a_port_that_another_process_holds_for_a_server_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is down for a moment finds its port free again, whoever starts others."""
    holding = tmp_path / "holding.py"
    holding.write_text(
        "from proxy.embedded.process import reserve_port\n"
        "print(reserve_port(), flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, str(holding)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        held = int(holder.stdout.readline())
        another = process.reserve_port()
        process.release_port(another)
        offered = [another, held]
        monkeypatch.setattr(process.random, "choice", lambda _: offered.pop())
        try:
            assert process.port_is_free(held)
            assert process.reserve_port() == another
        finally:
            process.release_port(another)
            holder.communicate("\n")


def test_a_port_with_a_listener_is_not_free() -> None:
    """What another server listens on is seen as taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not process.port_is_free(server.getsockname()[1])


async def test_a_child_is_stopped_kindly(tmp_path: Path, start: Callable[[str], Child]) -> None:
    """A process that heeds the signal ends with its own exit code."""
    stopping = start("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
    await until(said(tmp_path / "log"))
    await stopping.stop()
    assert stopping.exit_code == 7
    assert not stopping.running


async def test_a_child_that_does_not_heed_the_signal_is_ended_with_all_it_started(
    tmp_path: Path, start: Callable[[str], Child]
) -> None:
    """After the time for a kind end, the whole group of processes is killed."""
    stubborn = start("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done")
    await until(said(tmp_path / "log"))
    grandchild = int((tmp_path / "log").read_text())
    await stubborn.stop(timeout=0.1)
    assert stubborn.exit_code == -signal.SIGKILL
    await until(lambda: not alive(grandchild))


async def test_a_frozen_child_can_be_stopped(tmp_path: Path, start: Callable[[str], Child]) -> None:
    """A process under SIGSTOP is woken to hear that it shall end."""
    frozen = start("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
    await until(said(tmp_path / "log"))
    frozen.send(signal.SIGSTOP)
    await frozen.stop()
    assert frozen.exit_code == 7


async def test_waiting_fails_at_once_with_the_log_when_a_child_ends(
    start: Callable[[str], Child],
) -> None:
    """Nobody waits for the deadline when the server has already given up, and its words show."""
    failing = start("echo cannot open the door; exit 3")

    async def missing() -> str | None:
        return "the door"

    begin = time.monotonic()
    with pytest.raises(ServerFailed, match=r"(?s)child ended with 3.*cannot open the door"):
        await wait_until(missing, PATIENCE, [failing])
    assert time.monotonic() - begin < PATIENCE


async def test_waiting_ends_at_its_deadline_and_says_what_was_missing(
    start: Callable[[str], Child],
) -> None:
    """A wait that is in vain names the last reason."""
    idle = start("exec sleep 1000")

    async def missing() -> str | None:
        return "the moon is not full"

    with pytest.raises(ServerFailed, match=r"not ready after 0.05 s: the moon is not full"):
        await wait_until(missing, 0.05, [idle])


def test_a_program_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A missing program is reported as such."""
    launch = Launch(arguments=("/nonexistent/server",), directory=tmp_path, log=tmp_path / "log")
    with pytest.raises(ServerFailed, match="cannot start /nonexistent/server"):
        Child("server", launch).start()


OWNER = """
import sys
from pathlib import Path
from proxy.embedded.process import Child, Launch, temporary_directory
with temporary_directory("sidecache-unit-") as directory:
    (directory / "file").write_text("x")
    launch = Launch(arguments=("sleep", "1000"), directory=directory, log=directory / "log")
    child = Child("child", launch)
    child.start()
    print(child.pid, directory, flush=True)
    sys.stdin.read()
"""


async def test_nothing_stays_when_the_owner_is_killed() -> None:
    """After kill -9 of the program, its servers end and its directory goes."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        pid, directory = (await asyncio.to_thread(owner.stdout.readline)).split()
        assert alive(int(pid))
        assert Path(directory, "file").exists()
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    await until(lambda: not alive(int(pid)) and not Path(directory).exists())


def test_a_temporary_directory_is_gone_after_a_failure() -> None:
    """An exception in the block leaves no file."""
    seen = []

    def fail() -> None:
        with process.temporary_directory("sidecache-unit-") as path:
            seen.append(path)
            (path / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not seen[0].exists()
