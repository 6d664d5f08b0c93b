"""The demo as a user starts it: a process of its own, with real servers, ended in every way."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

# What `sidecache demo` does, without the rest of the command line.
PROGRAM = """
import argparse, sys
from proxy import demo
parser = argparse.ArgumentParser()
demo.add_arguments(parser)
sys.exit(demo.run(parser.parse_args()))
"""

# The demo is ready in 4 s on an idle machine; this one may be shared.
PATIENCE = 40.0  # seconds

pytestmark = pytest.mark.integration


class Play:
    """A demo that runs, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def hear(self, words: str) -> None:
        """Read until a line with words."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while not self.lines or words not in self.lines[-1]:
                line = await self.process.stdout.readline()
                assert line, f"the demo ended without saying {words!r}: {self.lines}"
                self.lines.append(line.decode().rstrip())

    async def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal if one is given; return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            self.lines += (await self.process.stdout.read()).decode().splitlines()
            return await self.process.wait()

    @property
    def directory(self) -> Path:
        return Path(next(line for line in self.lines if "working in" in line).split()[-1])

    @property
    def output(self) -> str:
        return "\n".join(self.lines)


async def start(*flags: str, environment: Mapping[str, str] = os.environ) -> Play:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment) | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return Play(process)


StartDemo = Callable[..., Awaitable[Play]]


@pytest.fixture
async def demo() -> AsyncIterator[StartDemo]:
    plays: list[Play] = []

    async def starter(*flags: str, environment: Mapping[str, str] = os.environ) -> Play:
        plays.append(await start(*flags, environment=environment))
        return plays[-1]

    yield starter
    for play in plays:
        if play.process.returncode is None:
            play.process.kill()
            await play.end()


def processes_in(directory: Path) -> list[str]:
    """The processes that work in a directory or name it, but those that have ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in f"{os.readlink(entry / 'cwd')} {command}" and command:
                found.append(f"{entry.name} {command}")
    return found


async def until_nothing_is_left(directory: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while directory.exists() or processes_in(directory):
            await asyncio.sleep(0.02)


async def test_ready_it_describes_itself_and_ends_without_a_trace(
    demo: StartDemo, tmp_path: Path
) -> None:
    """--json appears when all of it runs; SIGTERM ends every process and removes every file."""
    file = tmp_path / "demo.json"
    play = await demo("--json", str(file), "--seed", "3", "--cluster-port", "0")
    await play.hear("Ctrl-C stops everything")
    told = json.loads(file.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]
    assert Path(told["directory"]) == play.directory
    pids = [told["proxy"]["pid"], told["postgres"]["pid"]]
    for name in ("locks", "cache"):
        nodes = told[name]["nodes"]
        assert sorted(node["role"] for node in nodes) == ["primary"] * 3 + ["replica"] * 3
        assert len({node["id"] for node in nodes}) == 6
        pids += [node["pid"] for node in nodes]
        for node in nodes:
            socket.create_connection((node["host"], node["port"]), timeout=5).close()
    running = {int(line.split()[0]) for line in processes_in(play.directory)}
    assert set(pids) <= running
    assert f"redis-cli -p {told['proxy']['port']}" in play.output
    assert told["admin"]["url"] in play.output
    assert f"redis-cli -c -p {told['proxy']['cluster_port']}" in play.output
    port = told["proxy"]["cluster_port"]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"CLUSTER MYID\r\n")
        assert client.recv(100).startswith(b"$40\r\n")

    assert await play.end(signal.SIGTERM) == 0
    assert not file.exists()
    assert not play.directory.exists()
    assert processes_in(play.directory) == []


async def test_check_tries_the_port_and_says_what_is_right(demo: StartDemo) -> None:
    """--check exits with 0 after a demo that answers as it should, and leaves nothing."""
    play = await demo("--check")
    assert await play.end() == 0, play.output
    assert play.output.count("    ok  ") >= 12
    assert "FAILED" not in play.output
    assert not play.directory.exists()
    assert processes_in(play.directory) == []


async def test_an_outage_of_all_of_redis_costs_no_client_an_answer(demo: StartDemo) -> None:
    """All nodes are killed and started again under load: no error, 0, and nothing is left."""
    play = await demo("--outage", "10", "--replicas")
    assert await play.end() == 0, play.output
    directory = play.directory
    shared = re.search(r"([\d,]+) of these reads were the replica's", play.output)
    assert shared is not None
    assert int(shared[1].replace(",", "")) > 50, "the replica was not read from"
    down = [line for line in play.lines if "(0 of 6)  locks " in line]
    assert any("cache up" not in line for line in down), play.output
    acts = {line[:44].strip(): line[44:].split() for line in play.lines if line.startswith("  ")}
    assert acts["answers from"][:5] == ["redis", "origin", "gutter", "stale", "error"]
    both = [int(figure.replace(",", "")) for figure in acts["and of locks"][:6]]
    assert both[1] > 0, "PostgreSQL answered nothing"
    assert both[5] == 0, play.output
    assert "a row that changed while Redis was away is seen" in play.output
    assert "\x1b" not in play.output
    assert not directory.exists()
    assert processes_in(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_story_that_is_ended_in_the_middle_leaves_nothing(
    demo: StartDemo, number: signal.Signals
) -> None:
    """While nodes are gone and clients ask, a signal ends everything; even kill -9 does."""
    play = await demo("--outage", "10")
    await play.hear("kill -9 of all nodes of cache")
    assert await play.end(number) == (1 if number is signal.SIGINT else -signal.SIGKILL)
    await until_nothing_is_left(play.directory)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("PostgreSQL: /", signal.SIGTERM), ("PostgreSQL: /", signal.SIGKILL),
        ("takes connections", signal.SIGINT), ("takes connections", signal.SIGKILL),
        ("cluster_state:ok", signal.SIGTERM), ("cluster_state:ok", signal.SIGKILL),
    ],
)  # fmt: skip
async def test_ended_while_starting_it_leaves_nothing(
    demo: StartDemo, moment: str, number: signal.Signals
) -> None:
    """However far a start has come, a signal ends all that it had started; even kill -9 does."""
    play = await demo()
    await play.hear(moment)
    code = await play.end(number)
    assert code == (1 if number is not signal.SIGKILL else -signal.SIGKILL)
    if number is signal.SIGKILL:
        await until_nothing_is_left(play.directory)
    assert not play.directory.exists()
    assert processes_in(play.directory) == []


async def test_a_missing_server_is_an_error_that_says_so(demo: StartDemo) -> None:
    """Without a server the demo ends with 1, names the remedy and shows no traceback."""
    environment = dict(os.environ) | {"SIDECACHE_REDIS_BIN": "/nonexistent/redis-server"}
    play = await demo(environment=environment)
    assert await play.end() == 1
    assert "SIDECACHE_REDIS_BIN=/nonexistent/redis-server" in play.output
    assert "Traceback" not in play.output
    assert not play.directory.exists()


@pytest.mark.parametrize("flag", ["--port", "--admin-port", "--cluster-port"])
async def test_a_taken_port_is_refused_before_anything_starts(demo: StartDemo, flag: str) -> None:
    """The error names the flag, and no server was started for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        play = await demo(flag, str(port))
        assert await play.end() == 1
    assert f"port {port} is taken; choose another with {flag}" in play.output
    assert "working in" not in play.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--json {0}/none/demo.json", "--json {0}/none/demo.json: No such file or directory"),
        ("--json {0}/file/demo.json", "--json {0}/file/demo.json: Not a directory"),
        ("--json {0}", "--json {0}: it is there, and no file"),
        ("--keep {0}/file", "--keep {0}/file: File exists"),
        ("--keep {0}/file/kept", "--keep {0}/file/kept: Not a directory"),
        ("--keep /proc/kept", "--keep /proc/kept: No such file or directory"),
        ("--port {1} --admin-port {1}", "--port and --admin-port are both {1}"),
        ("--admin-port {1} --cluster-port {1}", "--admin-port and --cluster-port are both {1}"),
    ],
)
async def test_flags_that_cannot_be_followed_are_refused_before_anything_starts(
    demo: StartDemo, tmp_path: Path, flags: str, said: str
) -> None:
    """It is wrong usage, told in one line."""
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    play = await demo(*flags.format(tmp_path, port).split())
    assert await play.end() == 2
    assert play.lines == [f"sidecache demo: {said.format(tmp_path, port)}"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_a_json_file_may_lie_in_the_kept_directory(demo: StartDemo, tmp_path: Path) -> None:
    """The directory of --keep is made before it is seen whether the file can be written."""
    kept = tmp_path / "kept"
    play = await demo("--keep", str(kept), "--json", str(kept / "demo.json"))
    await play.hear("working in")
    assert await play.end(signal.SIGTERM) == 1


async def test_a_kept_directory_must_be_empty(demo: StartDemo, tmp_path: Path) -> None:
    """Nobody's files are mixed with those of a demo."""
    (tmp_path / "mine").touch()
    play = await demo("--keep", str(tmp_path))
    assert await play.end() == 2
    assert "is not empty" in play.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


async def test_a_kept_directory_stays_with_logs_and_configuration(
    demo: StartDemo, tmp_path: Path
) -> None:
    """--keep leaves what there is to look into, and no process."""
    play = await demo("--keep", str(tmp_path / "kept"))
    await play.hear("takes connections")
    assert await play.end(signal.SIGTERM) == 1
    assert (tmp_path / "kept" / "locks" / "locks-1" / "server.log").exists()
    assert (tmp_path / "kept" / "postgres" / "server.log").exists()
    assert processes_in(tmp_path) == []
