"""What an operator sees of traffic: lines, slow commands, hot keys and big keys."""

import dataclasses
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from proxy import config, log, sight
from proxy.errors import ConfigError, StartError
from tests.handlers.desk import Client, Desk


class Seen:
    """A desk, and what the access log says about it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Any = None, **access: Any) -> None:
        self.out = io.StringIO()
        monkeypatch.setattr("sys.stdout", self.out)
        self.desk = Desk()
        server = self.desk.server
        server.config = dataclasses.replace(
            server.config,
            access_log=config.AccessLog(**{"sample": 1.0, **access}),
            hot_keys=config.HotKeys(1.0, access.get("keys", "hashed")),
            slow_log=config.SlowLog(3600.0, keys=access.get("keys", "hashed")),
        )
        server.sight = sight.Sight(server.config, server.router, self.desk.batch, server.metrics)
        if clock is not None:
            server.sight._lines = log.Lines(self.out, server.sight._lose, clock)

    def lines(self) -> list[dict[str, Any]]:
        self.desk.server.sight.close()
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


def answered(client: Client, reply: bytes, *words: bytes) -> None:
    """Send a command and let the node that it went to answer it."""
    client.send(*words)
    for pair in client.desk.nodes:
        for node in pair:
            if node.upstream.pending:
                node.upstream.receive_data(reply, client.session.active + 0.001)
    client.desk.settle()
    client.take()


async def test_a_line_tells_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says who asked what, how it was answered and where the time went; keys are hashes."""
    seen = Seen(monkeypatch)
    client = seen.desk.connect()
    answered(client, b"+OK\r\n", b"SET", b"seat_lock:evt:1", b"hello", b"EX", b"60")
    answered(client, b"-WRONGTYPE no\r\n", b"GET", b"foo")
    client.ask(b"GET")
    first, second, third = seen.lines()
    key = seen.desk.server.sight.hash_of(b"seat_lock:evt:1")
    assert first["command"] == ["SET", key, "*****", "EX", "60"]
    assert (first["user"], first["client"], first["name"]) == ("default", 1, "set")
    assert (first["keyspace"], first["keys"], first["outcome"]) == ("seat_lock", [key], "ok")
    assert (first["in"], first["out"]) == (62, 5)
    assert first["upstream_us"] <= 1000
    assert {"policy_us", "queue_us", "write_us", "time"} <= set(first)
    assert (second["outcome"], second["error"], second["keyspace"]) == (
        "error",
        "WRONGTYPE",
        "none",
    )
    assert (third["outcome"], third["error"]) == ("refused", "ERR")


async def test_names_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain keys a line can be asked of the rules again: user, and the words that decide."""
    seen = Seen(monkeypatch, keys="plain")
    client = seen.desk.connect()
    answered(client, b"+OK\r\n", b"SET", b"seat_lock:evt:1", b"9" * 300)
    answered(client, b":1\r\n", b"DEL", b"seat_lock:\xff:2")
    first, second = seen.lines()
    assert first["command"] == ["SET", "seat_lock:evt:1", "*" * 64]
    assert first["lengths"] == {"2": 300}
    assert second["command"] == ["DEL", "seat_lock:\\xff:2"]


async def test_hostile_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 commands of any bytes every line parses, without a control byte or a secret."""
    seen = Seen(monkeypatch, clock=lambda: seen_clock(), keys="plain", values="plain")
    client = seen.desk.connect()
    chance = random.Random(5)
    log.conceal("hunter22")
    for _ in range(500):
        key = chance.randbytes(chance.randrange(300)).replace(b"{", b"").replace(b"}", b"")
        answered(client, b"+OK\r\n", b"SET", b"seat_lock:1:" + key, chance.randbytes(400))
        client.ask(chance.randbytes(9), b"hunter22", b"\x1b[31m")
    text = seen.out.getvalue()
    rows = seen.lines()
    assert len(rows) == 1000
    assert all(character == "\n" or " " <= character <= "~" for character in text)
    assert "hunter22" not in text
    assert all(len(word) <= 256 for row in rows for word in row["command"])


_moment = 0.0


def seen_clock() -> float:
    """Return a clock that is far ahead at every look, so that no line is dropped."""
    global _moment
    _moment += 1000.0
    return _moment


async def test_lines_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a hundred lines leave in a second; the others are counted."""
    seen = Seen(monkeypatch, clock=lambda: 1.0)
    client = seen.desk.connect()
    for _ in range(200):
        client.ask(b"PING")
    page = b"".join(seen.desk.server.metrics.render()).decode()
    assert len(seen.lines()) == log.LINES_PER_SECOND
    assert 'sidecache_access_log_lines_total{outcome="dropped"} 150.0' in page
    assert 'sidecache_access_log_lines_total{outcome="written"} 50.0' in page


async def test_the_share_can_be_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The share that is written about follows the admin port; a bad one changes nothing."""
    file = tmp_path / "access.log"
    seen = Seen(monkeypatch, sample=0.0, file=file)
    it = seen.desk.server.sight
    client = seen.desk.connect()
    client.ask(b"PING")
    assert not file.exists()
    assert it.resample("sample=100%25") == "100% of the commands"
    client.ask(b"ECHO", b"x")
    for bad in ("sample=101%", "sample=x", "", "other=1%", "sample=1%&other=1"):
        with pytest.raises(ConfigError):
            it.resample(bad)
    assert it.resample("sample=0%") == "0% of the commands"
    client.ask(b"PING")
    it.close()
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["echo"]
    it._lines = None
    it._access = config.AccessLog(file=tmp_path)
    with pytest.raises(StartError, match="Is a directory"):
        it.sample(0.5)


async def test_settings_are_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other settings hold from the next line, and what cannot be opened changes nothing."""
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    seen = Seen(monkeypatch, file=old)
    client, it = seen.desk.connect(), seen.desk.server.sight
    answered(client, b"+OK\r\n", b"SET", b"a", b"1")
    with pytest.raises(StartError, match="cannot write the access log"):
        it.follow(config.AccessLog(1.0, tmp_path))
    answered(client, b"+OK\r\n", b"SET", b"b", b"2")
    end = it.follow(config.AccessLog(1.0, new, keys="plain"))
    assert end is not None
    end()
    answered(client, b"+OK\r\n", b"SET", b"c", b"3")
    it.resample("sample=0%25")
    assert it.follow(config.AccessLog(1.0, new, keys="plain")) is None
    answered(client, b"+OK\r\n", b"SET", b"d", b"4")
    it.close()
    assert len(old.read_text().splitlines()) == 2
    [line] = map(json.loads, new.read_text().splitlines())
    assert line["command"][1] == "c"


async def test_a_full_disk_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that cannot be written are counted, and commands go on."""
    seen = Seen(monkeypatch, file=Path("/dev/full"))
    client = seen.desk.connect()
    for _ in range(3):
        assert client.ask(b"PING") == b"+PONG\r\n"
    seen.desk.server.sight.close()
    page = b"".join(seen.desk.server.metrics.render()).decode()
    assert 'sidecache_access_log_lines_total{outcome="dropped"} 3.0' in page


async def test_the_slow_log_has_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow command shows with its parts and hashed keys on the page, plainly in SLOWLOG."""
    seen = Seen(monkeypatch, sample=0.0)
    client = seen.desk.connect()
    seen.desk.batch.slow_after = 0.0005
    answered(client, b"+OK\r\n", b"SET", b"seat_lock:evt:1", b"secret")
    ((_, _, took, words, _, _),) = client.value(b"SLOWLOG", b"GET")
    assert words == [b"SET", b"seat_lock:evt:1", b"secret"]
    (line,) = seen.desk.server.sight.slow_page().splitlines()
    entry = json.loads(line)
    assert entry["command"] == ["SET", seen.desk.server.sight.hash_of(b"seat_lock:evt:1"), "******"]
    assert took == sum(entry[f"{part}_us"] for part in ("policy", "queue", "upstream", "write"))


async def test_waits_are_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler answers late is slow, unless its client waited on purpose; secrets stay."""
    seen = Seen(monkeypatch, sample=0.0)
    client = seen.desk.connect()
    seen.desk.batch.slow_after = 0.0
    client.ask(b"WAIT", b"0", b"0")
    client.ask(b"AUTH", b"default", b"hunter22")
    client.ask(b"ECHO", b"x")
    entries = seen.desk.server.slowlog.entries
    assert [entry.words for entry in entries] == [[b"ECHO", b"x"], [b"AUTH", b"(redacted)"]]


async def test_slow_commands_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow command is a line of the log, with its parts and without names of keys."""
    caplog.set_level("INFO", logger="sidecache")
    seen = Seen(monkeypatch, sample=0.0)
    client = seen.desk.connect()
    seen.desk.batch.slow_after = 0.0005
    answered(client, b"$-1\r\n", b"GET", b"foo")
    (record,) = [r for r in caplog.records if r.msg == "slow_command"]
    fields = record.__dict__["fields"]
    assert fields["command"] == f"GET {seen.desk.server.sight.hash_of(b'foo')}"
    assert {"policy_us", "queue_us", "upstream_us", "write_us"} <= set(fields)


async def test_a_storm_of_slow_commands_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page or a line would tell of a slow command is worked out when somebody reads it."""
    seen = Seen(monkeypatch, sample=0.0)
    it = seen.desk.server.sight
    client = seen.desk.connect()
    told: list[sight.Seen] = []
    work = it._told
    monkeypatch.setattr(it, "_told", lambda one, *how: told.append(one) or work(one, *how))
    log.configure(io.StringIO(), clock=lambda: 0.0)
    seen.desk.batch.slow_after = 0.0
    for _ in range(1000):
        client.ask(b"PING")
    log.close()
    assert len(told) == log.CLASS_BURST
    assert len(it.slow_page().splitlines()) == it.slowlog.entries.maxlen


async def test_pages_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hot keys show with their rate and its error, big ones with their size; names if wanted."""
    for keys in ("hashed", "plain"):
        seen = Seen(monkeypatch, sample=0.0, keys=keys)
        it = seen.desk.server.sight
        client = seen.desk.connect()
        for _ in range(5):
            answered(client, b"$20000\r\n" + b"v" * 20_000 + b"\r\n", b"GET", b"seat_lock:1:2")
        answered(client, b"$-1\r\n", b"GET", b"foo")
        name = it.hash_of(b"seat_lock:1:2") if keys == "hashed" else "seat_lock:1:2"
        hot = json.loads(it.hot_page())
        assert (hot["keys"][0]["key"], hot["keys"][0]["keyspace"]) == (name, "seat_lock")
        assert hot["keys"][0]["per_second"] > hot["keys"][1]["per_second"] > 0
        assert hot["keys"][0]["error"] > 0
        (big,) = json.loads(it.big_page())["keys"]
        assert (big["key"], big["bytes"], big["of"]) == (name, 20_010, "reply")


async def test_rates_follow_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate is that of the last minutes: ageing lets counts and seconds count half alike."""
    seen = Seen(monkeypatch, sample=0.0)
    it = seen.desk.server.sight
    it.sketches.add(b"k", -1)
    now = it._aged
    rates = []
    for seconds in (10.0, 59.9, 61.0, 61.0):
        monkeypatch.setattr(sight.time, "monotonic", lambda at=now + seconds: at)
        it.age()
        rates.append(json.loads(it.hot_page())["keys"][0]["per_second"])
    assert rates == [0.1, 0.017, 0.016, 0.016]


async def test_other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of keys stays with their keyspace's name when rules change."""
    seen = Seen(monkeypatch, sample=0.0)
    it = seen.desk.server.sight
    it.sketches.see(b"seat_lock:1:2", 0, 20_000, False, 1.0)
    it.adopt(seen.desk.server.router.ruleset)
    assert json.loads(it.big_page())["keys"][0]["keyspace"] == "seat_lock"
