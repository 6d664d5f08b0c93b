"""The scanners under a fuzzer, with the address sanitizer: what `make fuzz` runs.

Compiles the data plane with clang into a temporary directory, and runs one target after the other
in a process of its own. Each run feeds the same bytes whole and cut in three, to fresh state: what
comes of them must not depend on the cut, and no input may crash, hang or cost memory for good.

    python tests/wire/fuzz.py [request|reply|json ...] [--runs N] [--seconds S] [--seed N]
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(path.stem for path in (ROOT / "proxy" / "wire").glob("*.pyx"))
FLAGS = ["-O1", "-g", "-fPIC", "-shared", "-w", "-fsanitize=fuzzer-no-link,address"]
MILLION = 1_000_000
# Inputs of a few frames: longer ones find nothing new in a scanner, and cost speed.
MAX_BYTES = 256

WORDS = [
    b"*1\r\n$4\r\nPING\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*-1\r\n", b"*0\r\n",
    b"$-1\r\n", b"$0\r\n\r\n", b"$536870912\r\n", b"*2147483647\r\n", b"*1\r\n", b"$1\r\n",
    b"GET k\r\n", b'SET a "\\x41\\r\\n"\r\n', b"XREAD", b"STREAMS", b"STORE", b"EVALSHA",
    b"ZUNIONSTORE", b"DEL", b"OBJECT", b"ENCODING", b"HELLO", b"seat:1:2", b"user:1",
]  # fmt: skip
REPLIES = [
    b"+OK\r\n", b"-ERR no\r\n", b"-MOVED 3999 127.0.0.1:7000\r\n", b"-ASK 1 a:1\r\n",
    b"-TRYAGAIN\r\n", b"-CLUSTERDOWN\r\n", b":1\r\n", b"$3\r\nabc\r\n", b"$-1\r\n", b"*-1\r\n",
    b"*2\r\n", b"%1\r\n", b"~1\r\n", b">2\r\n", b"|1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n",
    b"(1\r\n", b"=7\r\ntxt:abc\r\n", b"!3\r\nERR\r\n", b"*1000000000\r\n", b"-READONLY\r\n",
]  # fmt: skip
VALUES = [
    b'{"a":1}', b"[1,2]", b'"\\u0061"', b'"\\ud83d\\ude00"', b"true", b"false", b"null", b"-0.5e+9",
    b'{"__proto__":1}', b'{"constructor":{}}', b'"\xc3\xa9"', b'"\xf0\x9f\x98\x80"', b"[" * 130,
    b'{"a":{"b":1},"a":2}', b"\\n", b"\\ud800", b"\xef\xbb\xbf",
]  # fmt: skip
SEEDS = {"request": WORDS, "reply": REPLIES, "json": VALUES}


def build(directory: Path) -> None:
    """Compile the data plane for the fuzzer."""
    built = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "proxy", directory / "proxy", ignore=built)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = f"-I{sysconfig.get_path('include')}"
    for name in MODULES:
        source = f"proxy/wire/{name}"
        cython = [sys.executable, "-m", "cython", "-3", f"{source}.pyx"]
        subprocess.run(cython, cwd=directory, check=True)
        compile = ["clang", *FLAGS, include, f"{source}.c", "-o", f"{source}{suffix}"]
        subprocess.run(compile, cwd=directory, check=True)


def run(target: str, directory: Path, options: argparse.Namespace) -> int:
    """Run one target in a process of its own; return its exit code."""
    import atheris  # type: ignore[import-not-found, unused-ignore]

    words = directory / "words"
    corpus = directory / target
    corpus.mkdir()
    for i, word in enumerate(SEEDS[target]):
        (corpus / str(i)).write_bytes(b"\x07\x03" + word)
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in SEEDS[target])
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": str(Path(atheris.path()) / "asan_with_fuzzer.so"),
        # CPython keeps what it allocates at start. The quarantine is bounded, or it would be all
        # of the memory that grows; short stacks, because most of the time went into taking them.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=4:malloc_context_size=0:"
        "max_malloc_fill_size=0",
        "PYTHONPATH": f"{directory}:{ROOT}",
    }
    command = [
        sys.executable, __file__, "--child", target, f"-runs={options.runs}",
        f"-seed={options.seed}", f"-max_total_time={options.seconds}", f"-max_len={MAX_BYTES}",
        f"-dict={words}", "-timeout=60", "-rss_limit_mb=1024", "-verbosity=0",
        f"-artifact_prefix={options.artifacts}/{target}-", str(corpus),
    ]  # fmt: skip
    print(f"{target}: seed {options.seed}, up to {options.runs} runs or {options.seconds} s")
    sys.stdout.flush()
    return subprocess.run(command, env=environment, cwd=directory, check=False).returncode


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Counts runs and says, each million, how fast they are and what they hold."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.count = 0
        self.started = time.monotonic()
        self.first = 0

    def tick(self) -> None:
        self.count += 1
        if self.count % MILLION == 0:
            self.report()

    def report(self) -> None:
        now = resident()
        self.first = self.first or now
        speed = self.count / (time.monotonic() - self.started)
        grown = (now - self.first) / 2**20
        print(
            f"{self.target}: {self.count} runs, {speed:.0f}/s, {now / 2**20:.1f} MiB resident, "
            f"{grown:+.1f} MiB since the first million",
            flush=True,
        )


# Input lies at the very end of this: larger than what Python's own allocator serves, so the
# sanitizer guards its end, where a scanner that reads too far is caught.
ROOM = bytearray(4096)


def guarded(data: bytes) -> memoryview:
    view = memoryview(ROOM)[len(ROOM) - len(data) :]
    view[:] = data
    return view


def pieces(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the input whole and cut in three; its first two bytes say where."""
    body = data[2:]
    one, two = sorted((data[0] % (len(body) + 1), data[1] % (len(body) + 1)))
    return [body], [body[:one], body[one:two], body[two:]]


def request_target() -> Callable[[list[bytes]], Any]:
    """Return a function that plays a client's bytes to the end."""
    from proxy.wire.rules import Limits, Segment
    from tests.wire.stage import Stage, keyspace, role, ruleset

    seat = [b"seat:", Segment("event", "text"), b":", Segment("seat", "int")]
    spaces = (
        keyspace("seat", seat, hash_tag=1),
        keyspace("user", [b"user:", Segment("user", "int")], hash_tag=b"u"),
    )
    limits = Limits(arguments=32, argument_bytes=100, inline_bytes=80)
    stage = Stage(ruleset(keyspaces=spaces, roles=(role(limits),)))
    (node,) = stage.upstreams

    def play(parts: list[bytes]) -> Any:
        client = stage.client()
        seen = []
        sent = b""
        for part in parts:
            request = client.receive_data(guarded(part), 1.0)
            while request is not None or client.blocked:
                if request is not None:
                    seen.append((request.command, request.keys))
                    client.answer(request, b"+OK\r\n")
                if client.blocked:
                    sent += node.data_to_send(1.0)
                    node.receive_data(b"+OK\r\n" * node.pending, 1.0)
                request = client.receive_data(b"", 1.0)
        sent += node.data_to_send(1.0)
        node.receive_data(b"+OK\r\n" * node.pending, 1.0)
        stage.batch.take_ready()
        stage.batch.take_touched()
        assert not client.pending, "a command without a reply"
        assert node.fault is None
        outcome = (seen, sent, client.data_to_send(), client.closing, client.held_bytes)
        client.connection_lost()
        return outcome

    return play


def reply_target() -> Callable[[list[bytes]], Any]:
    """Return a function that plays a node's bytes to commands of which one's client has gone."""
    from proxy import wire
    from tests.wire.stage import Stage

    stage = Stage()
    (node,) = stage.upstreams
    commands = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" * 6

    def play(parts: list[bytes]) -> Any:
        client = stage.client()
        gone = stage.client()
        client.receive_data(commands, 1.0)
        gone.receive_data(commands[: len(commands) // 6], 1.0)
        client.receive_data(commands[: len(commands) // 6], 1.0)
        gone.connection_lost()
        node.data_to_send(1.0)
        elsewhere = []
        for part in parts:
            for orphan in node.receive_data(guarded(part), 1.0) or ():
                elsewhere.append((orphan.kind, orphan.address, orphan.redirect_slot, orphan.reply))
                orphan.answer(b"-ERR elsewhere\r\n", 1.0)
        fault = node.fault
        for orphan in node.connection_lost():
            orphan.answer(b"-ERR lost\r\n", 1.0)
        stage.batch.take_ready()
        stage.batch.take_touched()
        assert not client.pending, "a command without a reply"
        outcome = (elsewhere, fault, client.data_to_send())
        client.connection_lost()
        return outcome

    def checked(parts: list[bytes]) -> Any:
        data = b"".join(parts)
        try:
            end = wire.frame_end(data, 0)
        except ValueError:
            end = -2
        assert -2 <= end <= len(data)
        return play(parts), end

    return checked


def json_target() -> Callable[[list[bytes]], Any]:
    """Return a function that judges a value after parts of it; Python's json reads what passes."""
    from proxy import wire

    def play(parts: list[bytes]) -> Any:
        data = b"".join(parts)
        for part in parts:
            wire.json_fault(guarded(part))
        found = wire.json_fault(guarded(data))
        if found is None:
            json.loads(data.decode(), parse_int=str)
        else:
            assert 0 < found[0] < len(wire.JSON_FAULTS)
            assert 0 <= found[1] <= len(data)
        assert wire.json_fault(data + b" ") == found or found is not None
        return found

    return play


TARGETS = {"request": request_target, "reply": reply_target, "json": json_target}


def child(target: str, arguments: list[str]) -> None:
    """Be the process that fuzzes."""
    import atheris
    import proxy.wire.frames

    assert str(ROOT) not in proxy.wire.frames.__file__, "the plain build is under test"
    play = TARGETS[target]()
    meter = Meter(target)

    def one_input(data: bytes) -> None:
        meter.tick()
        if len(data) > 2:
            whole, cut = pieces(data)
            first, second = play(whole), play(cut)
            assert first == second, f"the cut matters: {first!r} {second!r}"
        if meter.count == last:
            meter.report()

    last = next(int(text[6:]) for text in arguments if text.startswith("-runs="))
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--runs", type=int, default=10 * MILLION, help="of each target")
    parser.add_argument("--seconds", type=int, default=1800, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--artifacts", type=Path, default=Path.cwd(), help="where a crash is kept")
    options = parser.parse_args()
    missing = [
        f"{what} is missing: {remedy}"
        for what, remedy, found in (
            ("clang", "apt-get install clang libclang-rt-14-dev", shutil.which("clang")),
            ("atheris", f"{sys.executable} -m pip install -e '.[fuzz]'", find_spec("atheris")),
        )
        if found is None
    ]
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sidecache-fuzz-") as text:
        build(Path(text))
        return max(run(target, Path(text), options) for target in options.targets)


if __name__ == "__main__":
    sys.exit(main())
