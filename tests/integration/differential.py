"""Sends the same random commands to the proxy and to a plain server and compares raw bytes.

    python -m tests.integration.differential --proxy 6379 --plain 7000 --commands 500000 --seed 3

Commands come in random pipelines, cut at random bytes on their way to the proxy. A reply must be
the same byte for byte; `grammar.UNORDERED` and `grammar.TOLERANCE` name the replies that cannot
be, and `explain` the few differences that are meant. Everything comes from the seed and the number
of the case, so one case can be played again alone (--only).
"""

import argparse
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.fakenode import key_slot
from tests.integration.grammar import TAGS, TOLERANCE, UNORDERED, Case
from tests.replies import Incomplete, Malformed, frame_end, pack, parse

COMMANDS_PER_CASE = 200
DEEPEST = 40  # commands in one pipeline

# Far beyond every deadline of the proxy: a reply that is not there by then does not come.
TIMEOUT = 15.0  # seconds


class Wire:
    """A raw connection that sends in pieces and reads whole replies."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def send(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        start = 0
        for cut in (*cuts, len(data)):
            self.socket.sendall(data[start:cut])
            start = cut

    def read(self) -> bytes:
        """Return the next whole reply as it came."""
        while True:
            try:
                end = frame_end(self.buffer)
            except Incomplete:
                data = self.socket.recv(262_144)
                if not data:
                    raise ConnectionResetError(
                        f"closed after {bytes(self.buffer[:100])!r}"
                    ) from None
                self.buffer += data
                continue
            frame = bytes(self.buffer[:end])
            del self.buffer[:end]
            return frame

    def ask(self, *words: bytes | str | int) -> bytes:
        self.send(pack(*words))
        return self.read()

    def close(self) -> None:
        self.socket.close()


@dataclass(slots=True)
class Report:
    """What a differential run found."""

    seed: int
    commands: int = 0
    cases: int = 0
    errors: int = 0  # replies that were errors on both sides
    explained: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        text = (
            f"seed {self.seed}: {self.commands} commands in {self.cases} cases, {self.errors} "
            f"errors on both sides, {self.seconds:.0f} s; explained {dict(self.explained)}; "
            f"{len(self.differences)} differences"
        )
        return "\n".join([text, *self.differences[:20]])


def normal(words: Sequence[bytes], frame: bytes) -> object:
    """Return a reply in the form in which the two sides must agree."""
    name = words[0].decode("latin-1").upper()
    if frame[:1] == b"-":
        return frame
    size = UNORDERED.get(name)
    if size is not None and frame[:1] in b"*~%":
        return _multiset(name, words, frame, size)
    return frame


def _multiset(name: str, words: Sequence[bytes], frame: bytes, size: int) -> object:
    (kind, items), _ = parse(frame)  # type: ignore[misc]
    if not isinstance(items, list):
        return frame
    if name.endswith("SCAN"):
        cursor, (inner, members) = items
        pairs = 2 if name in ("HSCAN", "ZSCAN") else 1
        return kind, cursor, inner, _groups(members, pairs)
    if any(word.upper() in (b"WITHVALUES", b"WITHSCORES") for word in words) and items:
        # RESP3 nests the pairs, RESP2 does not.
        size = 1 if isinstance(items[0], tuple) and isinstance(items[0][1], list) else 2
    return kind, _groups(items, size)


def _groups(items: list[object], size: int) -> list[str]:
    return sorted(repr(items[at : at + size]) for at in range(0, len(items), size))


def same(words: Sequence[bytes], ours: bytes, theirs: bytes) -> bool:
    """Return whether the two replies agree."""
    if ours == theirs:
        return True
    name = words[0].upper()
    if name == b"DUMP" and len(ours) == len(theirs) and b"\r\n\0" not in ours:
        # Not a string (type 0) after all: the order inside depends on the node's hash seed.
        return True
    tolerance = TOLERANCE.get(name.decode("latin-1"))
    if tolerance is not None and ours[:1] == theirs[:1] == b":":
        return abs(int(ours[1:-2]) - int(theirs[1:-2])) <= tolerance
    return normal(words, ours) == normal(words, theirs)


# Refusals of the proxy's own in place of the node's: which, and why it cannot leave it to the node.
# They count only where the plain server refuses the command as well.
REFUSALS = {
    rb"-ERR syntax error\r\n": "the keys cannot be told, so no node can",
    rb"-ERR numkeys should be greater than 0\r\n": "the keys cannot be told, so no node can",
    rb"-ERR unknown subcommand\. Try [A-Z]+ HELP\.\r\n": "a sub-command's name is not echoed",
    rb"-ERR unknown command '.*', with args beginning with: .*\r\n": "arguments are escaped",
    rb"-CROSSSLOT .*\r\n": "keys of several slots",
    rb"-ERR GET option of SORT denied .*\r\n": "a cluster refuses it",
    rb"-ERR BY option of SORT denied .*\r\n": "a cluster refuses it",
}


def explain(words: Sequence[bytes], ours: bytes, theirs: bytes, plain: Wire) -> str | None:
    """Return why a difference is meant, or None.

    A spoiled command may name keys of several slots, which any cluster refuses, and may put a
    value where a key is expected, which the proxy refuses when it holds control characters.
    """
    if ours[:1] == theirs[:1] == b"-":
        for pattern, reason in REFUSALS.items():
            if re.fullmatch(pattern, ours, re.DOTALL):
                return reason
    if ours.startswith(b"-CROSSSLOT"):
        reply = plain.ask("COMMAND", "GETKEYS", *words)
        if reply[:1] == b"*":
            (_, keys), _ = parse(reply)  # type: ignore[misc]
            if isinstance(keys, list) and len({key_slot(key) for key in keys}) > 1:
                return "keys of several slots"
    if ours.startswith(b"-POLICY") and any(
        byte < 32 or byte == 127 for word in words[1:] for byte in word
    ):
        return "control characters in a key"
    return None


class Differential:
    """One run: the two sides and what was found."""

    def __init__(self, proxy: int, plain: int, nodes: Sequence[int], seed: int) -> None:
        self.proxy_port = proxy
        self.plain_port = plain
        self.nodes = nodes  # primaries of the cluster behind the proxy, for cleaning up
        self.report = Report(seed)
        plain_wire = Wire(plain)
        self.payloads = [b"", b"no payload"]
        for words in (("SET", "p", "payload"), ("SET", "p", "123"), ("RPUSH", "q", "1", "two")):
            plain_wire.ask(*words)
            (value, _) = parse(plain_wire.ask("DUMP", words[1]))
            assert isinstance(value, bytes)
            self.payloads.append(value)
        plain_wire.ask("DEL", "p", "q")
        plain_wire.close()

    def run(self, commands: int, seconds: float = 3600.0, only: int | None = None) -> Report:
        start, report = time.monotonic(), self.report
        number = 0 if only is None else only
        while report.commands < commands and time.monotonic() - start < seconds:
            self.play(number)
            number += 1
            if only is not None or len(report.differences) >= 20:
                break
        report.seconds = time.monotonic() - start
        return report

    def play(self, number: int) -> None:
        """Play one case; it ends early at a difference, behind which the two sides disagree."""
        chance = random.Random(f"{self.report.seed}:{number}")
        tags = [b"t%d-%d" % (number, index) for index in range(TAGS)]
        case = Case(chance, tags, self.payloads)
        proxy, plain = Wire(self.proxy_port), Wire(self.plain_port)
        self.report.cases += 1
        try:
            if number % 2:
                proxy.ask("HELLO", 3)
                plain.ask("HELLO", 3)
            left = COMMANDS_PER_CASE
            while left > 0:
                depth = min(left, chance.choice((1, 2, 5, chance.randint(1, DEEPEST))))
                left -= depth
                pipeline = [case.command() for _ in range(depth)]
                if not self.compare(number, chance, pipeline, proxy, plain):
                    self.clean(plain)
                    return
            for wire in (proxy, plain):
                wire.ask("UNLINK", *case.keys)
        finally:
            proxy.close()
            plain.close()

    def compare(
        self,
        number: int,
        chance: random.Random,
        pipeline: list[list[bytes]],
        proxy: Wire,
        plain: Wire,
    ) -> bool:
        """Send one pipeline to both sides and return whether they still agree."""
        data = b"".join(pack(*words) for words in pipeline)
        cuts = sorted(chance.randrange(len(data)) for _ in range(chance.choice((0, 0, 1, 3, 8))))
        proxy.send(data, cuts)
        plain.send(data)
        theirs = [plain.read() for _ in pipeline]
        ours = [self.read(proxy) for _ in pipeline]
        for words, our, their in zip(pipeline, ours, theirs, strict=True):
            self.report.commands += 1
            if same(words, our, their):
                self.report.errors += our[:1] == b"-"
                continue
            reason = explain(words, our, their, plain)
            if reason is None:
                self.report.differences.append(
                    f"case {number}: {words!r:.300}\n  proxy {our!r:.300}\n  plain {their!r:.300}"
                )
                return False
            self.report.explained[reason] += 1
            # Where one side did something that the other refused, they hold different data.
            if their[:1] != b"-":
                return False
        return True

    @staticmethod
    def read(proxy: Wire) -> bytes:
        try:
            return proxy.read()
        except (OSError, Malformed) as error:
            return f"({type(error).__name__}: {error})".encode()

    def clean(self, plain: Wire) -> None:
        """Empty both sides, which do not hold the same any more."""
        plain.ask("FLUSHALL")
        for port in self.nodes:
            node = Wire(port)
            node.ask("FLUSHALL")
            node.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--proxy", type=int, required=True)
    parser.add_argument("--plain", type=int, required=True)
    parser.add_argument("--nodes", default="", help="ports of the primaries behind the proxy")
    parser.add_argument("--commands", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--only", type=int, help="play this case alone")
    options = parser.parse_args()
    nodes = [int(port) for port in options.nodes.split(",") if port]
    run = Differential(options.proxy, options.plain, nodes, options.seed)
    report = run.run(options.commands, only=options.only)
    print(report)
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
