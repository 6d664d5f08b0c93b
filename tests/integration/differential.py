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
from tests.integration.forms import LIBRARY, SCRIPTS, TOLERANCE, UNORDERED
from tests.integration.grammar import TAGS, Case
from tests.replies import Incomplete, Malformed, frame_end, pack, parse

Exchange = tuple[list[bytes], bytes, bytes]  # a command, the proxy's reply, the plain server's

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
    # Unsorted, the members of a set come as the node keeps them.
    size = 1 if name == "SORT" and b"nosort" in words else UNORDERED.get(name)
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


def elements(frame: bytes) -> list[bytes]:
    """Return the replies that an array consists of, as they came."""
    position = frame.index(b"\n") + 1
    parts = []
    while position < len(frame):
        end = frame_end(frame, position)
        parts.append(frame[position:end])
        position = end
    return parts


def same(words: Sequence[bytes], ours: bytes, theirs: bytes) -> bool:
    """Return whether the two replies agree."""
    if ours == theirs:
        return True
    name = words[0].upper()
    if name == b"DUMP" and len(ours) == len(theirs) and b"\r\n\0" not in ours:
        # Not a string (type 0) after all: the order inside depends on the node's hash seed.
        return True
    if name == b"OBJECT" and words[1].upper() == b"REFCOUNT" and ours[:1] == theirs[:1] == b":":
        # A node holds a value once more for as long as it is being sent to somebody.
        return True
    tolerance = TOLERANCE.get(name.decode("latin-1"))
    if tolerance is not None and ours[:1] == theirs[:1] == b":":
        return abs(int(ours[1:-2]) - int(theirs[1:-2])) <= tolerance
    return normal(words, ours) == normal(words, theirs)


QUEUED = b"+QUEUED\r\n"

DENIED = "a cluster refuses it"
UNTOLD = "the keys cannot be told, so no node can"
FIRST_KEYS = "keys are found before the script or function is"
NESTED = "as Redis: it spoils no transaction, Valkey's does"
PARTING = (NESTED,)  # behind it, one side has a transaction that the other has not
AGE = "what a node is too old for, shows at EXEC"
KEYS_REFUSED = (b"-ERR value is not an integer", b"-ERR Number of keys")
NEVER_LOADED = re.compile(rb"-ERR (?:Error compiling|Unexpected|Could not find|Invalid) ")

# Refusals of the proxy's own in place of the node's: which, and why it cannot leave it to the node.
# They count only where the plain server refuses the command as well.
REFUSALS = {
    rb"-ERR syntax error\r\n": UNTOLD,
    rb"-ERR numkeys should be greater than 0\r\n": UNTOLD,
    # Where there are not as many keys as ids; newer nodes name the command.
    rb"-ERR Unbalanced XREAD list of streams: .*\r\n": UNTOLD,
    rb"-ERR unknown subcommand\. Try [A-Z]+ HELP\.\r\n": "a sub-command's name is not echoed",
    rb"-ERR unknown command '.*', with args beginning with: .*\r\n": "arguments are escaped",
    rb"-ERR unknown subcommand '.*\\.*'\. Try [A-Z]+ HELP\.\r\n": "arguments are escaped",
    rb"-ERR wrong number of arguments for 'mset(?:nx)?' command\r\n": UNTOLD,
    rb"-CROSSSLOT .*\r\n": "keys of several slots",
    rb"-ERR GET option of SORT denied .*\r\n": DENIED,
    rb"-ERR BY option of SORT denied .*\r\n": DENIED,
    rb"-ERR (?:Bad number|Number) of keys .*\r\n": FIRST_KEYS,
    rb"-ERR MULTI calls can not be nested\r\n": NESTED,
    rb"-ERR WATCH inside MULTI is not allowed\r\n": NESTED,
}


def slots(commands: Sequence[Sequence[bytes]], plain: Wire) -> set[int]:
    """Return the slots of all keys of these commands."""
    found = set()
    for words in commands:
        reply = plain.ask("COMMAND", "GETKEYS", *words)
        if reply[:1] == b"*":
            (_, keys), _ = parse(reply)  # type: ignore[misc]
            found |= {key_slot(key) for key in keys if isinstance(key, bytes)}
    return found


def explain(
    words: Sequence[bytes],
    ours: bytes,
    theirs: bytes,
    plain: Wire,
    bound: Sequence[Sequence[bytes]],
) -> str | None:
    """Return why a difference is meant, or None.

    A spoiled command may name keys of several slots, which any cluster refuses, and may put a
    value where a key is expected, which the proxy refuses when it holds control characters.
    """
    if ours == QUEUED and theirs.startswith(b"-ERR wrong number of arguments"):
        return AGE
    if theirs == QUEUED and ours[:1] == b"-":
        # A plain server finds out at EXEC what the proxy has to know in advance: where it goes.
        theirs = plain.ask(*words)
        if ours == theirs:
            return UNTOLD
    if ours[:1] == theirs[:1] == b"-":
        for pattern, reason in REFUSALS.items():
            if re.fullmatch(pattern, ours, re.DOTALL):
                return reason
    if theirs.startswith(b"-ERR unknown command") and ours[:1] in (QUEUED[:1], b"-"):
        return AGE
    if ours.startswith(b"-EXECABORT") and theirs.startswith(b"-EXECABORT"):
        return AGE
    if theirs.startswith(b"-NOSCRIPT") and ours.startswith(KEYS_REFUSED):
        return FIRST_KEYS
    if theirs.startswith(b"-NOSCRIPT") and NEVER_LOADED.match(ours):
        return "a script that no node takes is refused with the reason"
    if b"STORE" not in words and ours.startswith((b"-ERR GET option of", b"-ERR BY option of")):
        return DENIED
    if ours.startswith(b"-CROSSSLOT") and len(slots([*bound, words], plain)) > 1:
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
        self.queued: list[list[bytes]] = []  # commands of the transaction that is open
        self.watches: list[list[bytes]] = []
        self.bound: list[list[bytes]] = []  # those that say in which slot it is: WATCH as well
        plain_wire = Wire(plain)
        self.payloads = [b"", b"no payload"]
        for words in (("SET", "p", "payload"), ("SET", "p", "123"), ("RPUSH", "q", "1", "two")):
            plain_wire.ask(*words)
            (value, _) = parse(plain_wire.ask("DUMP", words[1]))
            assert isinstance(value, bytes)
            self.payloads.append(value)
        plain_wire.ask("DEL", "p", "q")
        self.aside = plain_wire  # asks the plain server while a case is in a transaction
        self.load()
        self.tick(500)

    def tick(self, hertz: int) -> None:
        """Let nodes look this often for waits that are over."""
        for port in (self.plain_port, *self.nodes):
            node = Wire(port)
            node.ask("CONFIG", "SET", "hz", hertz)
            node.close()

    def load(self) -> None:
        """Give both sides the same scripts and functions."""
        proxy = Wire(self.proxy_port)
        for wire in (proxy, self.aside):
            for words in (
                ("SCRIPT", "FLUSH"),
                ("FUNCTION", "FLUSH"),
                ("FUNCTION", "LOAD", LIBRARY),
            ):
                wire.ask(*words)
            for script in SCRIPTS:
                wire.ask("SCRIPT", "LOAD", script)
        proxy.close()

    def close(self) -> None:
        self.tick(10)
        self.aside.close()

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
            self.queued, self.watches = [], []
            while left > 0:
                depth = min(left, chance.choice((1, 2, 5, chance.randint(1, DEEPEST))))
                left -= depth
                pipeline = [case.command() for _ in range(depth)]
                if not self.compare(number, chance, pipeline, proxy, plain):
                    self.clean()
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
            if their == QUEUED:
                self.queued.append(words)
            replies = self.parts(words, our, their)
            judged = [self.judge(number, *reply) for reply in replies]
            if not all(judged):
                return False
        return True

    def parts(self, words: list[bytes], our: bytes, their: bytes) -> list[Exchange]:
        """Return a reply of EXEC as those of its commands, any other as it is."""
        name, queued = words[0].upper(), self.queued
        if name == b"WATCH" and their == b"+OK\r\n":
            self.watches.append(words)
        self.bound = [*self.watches, *queued]
        if name in (b"EXEC", b"DISCARD", b"RESET"):
            self.queued = []
        if name in (b"EXEC", b"DISCARD", b"RESET") or (name == b"UNWATCH" and their != QUEUED):
            self.watches = []
        if name == b"EXEC" and our[:1] == their[:1] == b"*":
            mine, plain = elements(our), elements(their)
            if len(mine) == len(plain) == len(queued):
                return list(zip(queued, mine, plain, strict=True))
        return [(words, our, their)]

    def judge(self, number: int, words: list[bytes], our: bytes, their: bytes) -> bool:
        """Count what a command came to; return whether both sides did the same."""
        if same(words, our, their):
            self.report.errors += our[:1] == b"-"
            return True
        reason = explain(words, our, their, self.aside, self.bound)
        if reason is None:
            self.report.differences.append(
                f"case {number}: {words!r:.300}\n  proxy {our!r:.300}\n  plain {their!r:.300}"
            )
            return False
        self.report.explained[reason] += 1
        # Where one side did something that the other refused, they hold different data.
        if reason in PARTING or their == QUEUED:
            return False
        return their[:1] == b"-" or reason == DENIED

    @staticmethod
    def read(proxy: Wire) -> bytes:
        try:
            return proxy.read()
        except (OSError, Malformed) as error:
            return f"({type(error).__name__}: {error})".encode()

    def clean(self) -> None:
        """Empty both sides, which do not hold the same any more.

        The case's own connections may be in a transaction, which would queue that.
        """
        self.aside.ask("FLUSHALL")
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
    run.close()
    print(report)
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
