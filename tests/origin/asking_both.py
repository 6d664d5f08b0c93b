"""Values and reads of them at random, and a real server beside the answers of ours."""

import random
import socket
from collections.abc import Iterator, Sequence

from proxy.origin.answers import answer
from proxy.origin.render import Value, fill_arguments
from tests.integration.differential import Wire, same
from tests.replies import pack

TEXTS = (b"", b"a", b"b", b"ab", b"0", b"-1", b"1e3", b"\x00\xff", b"\r\n", "é".encode(), b"x" * 99)
INTEGERS = (
    b"0",
    b"1",
    b"-1",
    b"2",
    b"-3",
    b"7",
    b"-100",
    b"9223372036854775807",
    b"-9223372036854775808",
)
NO_INTEGERS = (b"", b"x", b"1.5", b"+1", b"01", b" 1", b"-0", b"9223372036854775808")
SCORES = (b"0", b"-inf", b"+inf", b"inf", b"(1", b"1.5", b"(-2.25", b"1e3", b"(inf")
NO_SCORES = (b"x", b"nan", b"((1", b"1 ", b"", b"(", b" 1", b"1e", b"--1", b"infinit")
LEXICAL = (b"-", b"+", b"[a", b"(a", b"[", b"(", b"(b", b"[ab", b"[zz")
NO_LEXICAL = (b"a", b"", b"--", b"+a", b"-1")

WRITERS = {"string": b"SET", "hash": b"HSET", "list": b"RPUSH", "set": b"SADD", "zset": b"ZADD"}


class Dice(random.Random):
    """Values and commands at random."""

    def text(self) -> bytes:
        return self.choice(TEXTS)

    def number(self) -> float:
        choices = (
            float(self.randint(-5, 5)), self.randint(-500, 500) / 100, self.uniform(-1, 1) * 1e-5,
            self.uniform(-1, 1) * 10.0 ** self.randint(-300, 300), float("inf"), float("-inf"),
            float(self.randint(-(2**63), 2**63)), 1e17, 1e22, 123456.789e3, -0.0,
            1.7e9 + self.random(),
        )  # fmt: skip
        return self.choice(choices)

    def value(self) -> Value | None:
        size = self.choice((1, 2, 5, 12))
        match self.choice(("none", "string", "hash", "list", "set", "zset", "zset", "lexical")):
            case "string":
                return Value("string", self.text() * size)
            case "hash":
                return Value("hash", {self.text(): self.text() for _ in range(size)})
            case "list":
                return Value("list", [self.text() for _ in range(size)])
            case "set":
                return Value("set", frozenset(self.text() for _ in range(size)))
            case "zset" | "lexical" as kind:
                same_score = self.number() if kind == "lexical" else None
                scores = {
                    self.text(): (self.number() if same_score is None else same_score) + 0.0
                    for _ in range(size)
                }
                return Value("zset", sorted(scores.items(), key=lambda pair: (pair[1], pair[0])))
            case _:
                return None

    def word(self, good: Sequence[bytes], bad: Sequence[bytes]) -> bytes:
        return self.choice(bad) if self.random() < 0.06 else self.choice(good)

    def integer(self) -> bytes:
        return self.word(INTEGERS, NO_INTEGERS)

    def cased(self, word: bytes) -> bytes:
        return self.choice((word, word.lower()))

    def options(self, *names: bytes) -> list[bytes]:
        words: list[bytes] = []
        while self.random() < 0.55:
            name = self.word(names, (b"nonsense", b"REV", b"BYLEX", b"WITHSCORES"))
            words.append(self.cased(name))
            if name in (b"RANK", b"COUNT", b"MAXLEN"):
                words.append(self.integer())
            elif name == b"LIMIT":
                # What a negative offset means depends on how a node keeps the set.
                words += [self.word((b"0", b"1", b"3"), NO_INTEGERS), self.integer()]
        if words and self.random() < 0.03:
            words.pop()
        return words

    def command(self, key: bytes) -> list[bytes]:
        """Return a read that `answers` knows, mostly one without a mistake."""
        name = self.choice(COMMANDS)
        words = list(self._arguments(name))
        return [self.cased(name), key, *words]

    def _arguments(self, name: bytes) -> Iterator[bytes]:
        match name:
            case b"GETRANGE" | b"SUBSTR" | b"LRANGE":
                yield from (self.integer(), self.integer())
            case b"LINDEX":
                yield self.integer()
            case b"HMGET" | b"SMISMEMBER" | b"ZMSCORE":
                yield from (self.text() for _ in range(self.randint(1, 4)))
            case b"HGET" | b"HEXISTS" | b"HSTRLEN" | b"SISMEMBER" | b"ZSCORE":
                yield self.text()
            case b"LPOS":
                yield self.text()
                yield from self.options(b"RANK", b"COUNT", b"MAXLEN")
            case b"ZRANK" | b"ZREVRANK":
                yield self.text()
                if self.random() < 0.4:
                    yield self.word((b"WITHSCORE", b"withscore"), (b"WITHSCORES",))
            case b"ZCOUNT" | b"ZRANGEBYSCORE" | b"ZREVRANGEBYSCORE":
                yield from (self.word(SCORES, NO_SCORES), self.word(SCORES, NO_SCORES))
                if name != b"ZCOUNT":
                    yield from self.options(b"LIMIT", b"WITHSCORES")
            case b"ZLEXCOUNT" | b"ZRANGEBYLEX" | b"ZREVRANGEBYLEX":
                yield from (self.word(LEXICAL, NO_LEXICAL), self.word(LEXICAL, NO_LEXICAL))
                if name != b"ZLEXCOUNT":
                    yield from self.options(b"LIMIT")
            case b"ZRANGE" | b"ZREVRANGE":
                bounds = self.choice((INTEGERS, SCORES, LEXICAL))
                yield from (self.word(bounds, NO_SCORES), self.word(bounds, NO_SCORES))
                if bounds is not INTEGERS and name == b"ZRANGE":
                    yield b"BYSCORE" if bounds is SCORES else b"BYLEX"
                yield from self.options(b"REV", b"LIMIT", b"WITHSCORES", b"BYSCORE", b"BYLEX")


COMMANDS = (
    *b"EXISTS TOUCH TYPE TTL PTTL GET STRLEN GETRANGE SUBSTR".split(),
    *b"HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN".split(),
    *b"SMEMBERS SISMEMBER SMISMEMBER SCARD LRANGE LLEN LINDEX LPOS".split(),
    *b"ZRANGE ZREVRANGE ZRANGEBYSCORE ZREVRANGEBYSCORE ZRANGEBYLEX ZREVRANGEBYLEX".split(),
    *b"ZRANGE ZSCORE ZMSCORE ZRANK ZREVRANK ZCARD ZCOUNT ZLEXCOUNT".split(),
)


class Both:
    """A server that is filled with values and asked, and ours beside it."""

    def __init__(self, port: int, protocol: int) -> None:
        self._wire = Wire(port)
        self._wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol = protocol
        self._wire.ask("HELLO", str(protocol))
        self.asked = 0
        self.differences: list[str] = []

    def close(self) -> None:
        self._wire.close()

    def compare(
        self, value: Value | None, commands: Sequence[list[bytes]], ttl_ms: int = 0
    ) -> None:
        """Fill the key that the commands name, and compare all replies."""
        key = commands[0][1]
        frames = [pack(b"DEL", key)]
        if value is not None:
            kind, _, *members = fill_arguments(value, ttl_ms)
            frames.append(pack(WRITERS[kind.decode()], key, *members))
            if ttl_ms:
                frames.append(pack(b"PEXPIRE", key, str(ttl_ms)))
        self._wire.send(b"".join((*frames, *(pack(*words) for words in commands))))
        for _ in frames:
            reply = self._wire.read()
            assert reply[:1] != b"-", reply
        for words in commands:
            theirs, ours = self._wire.read(), answer(value, words, self._protocol, ttl_ms)
            self.asked += 1
            if ours is not None and not same(words, ours, theirs):
                self.differences.append(f"{words} of {value}: {ours!r}, and a node {theirs!r}")
