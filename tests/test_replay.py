"""What changes for recorded commands from one set of rules to another."""

import gc
import io
import os
from pathlib import Path

import pytest

from proxy import recording, replay
from proxy.replay import Change, Replay
from tests.policy.rulebook import CLUSTERS, Folder

OLD = """\
keyspaces:
  seat:
    key: seat:{event}:{seat}
    cluster: locks
    hash_tag: event
    kind: state
    type: string
    ttl: {default: 600s, max: 900s}
    value: {max_bytes: 8B}
  page: {key: "page:{id}", type: hash}
  many: {key: "many:{id}", ttl: {default: 10s, jitter: 50%}}
roles:
  reader: {commands: {allow: ["@read"]}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def replayed(folder: Folder, new: str, *lines: str, old: str = OLD) -> Replay:
    before, after = folder.load(old), folder.load(new)
    found = Replay(before, after, CLUSTERS)
    roles = {None: "default", "reader": "reader"}
    text = "\n".join(lines).encode()
    found.run(recording.read(io.BytesIO(text)), lambda user: roles.get(user))
    return found


@pytest.mark.parametrize(
    ("was", "becomes", "line", "change"),
    [
        ("8B", "4B", "SET seat:1:2 12345",
         Change("seat", "value", "forwarded", "refused by value")),
        ("8B", "4B, mode: enforce 10%", "SET seat:1:2 12345",
         Change("seat", "value", "forwarded", "forwarded, though value is broken "
                "(mode enforce 10%)")),
        ("type: hash", "type: string", "HGET page:1 f",
         Change("page", "type", "forwarded", "refused by type")),
        ("type: hash", "type: string", "GET page:1",
         Change("page", "type", "refused by type", "forwarded")),
        ("type: hash", "type: hash, commands: {deny: [DEL]}", "DEL page:1",
         Change("page", "commands", "forwarded", "refused by commands")),
        ("type: hash", "key_grammar: {max_bytes: 8}", "DEL page:12345",
         Change("page", "key_grammar", "forwarded", "refused by key_grammar")),
        ("type: hash", "commands: {bounds: {LRANGE span: 2}}, type: list", "LRANGE page:1 0 9",
         Change("page", "bounds", "refused by type", "refused by bounds")),
        ("type: hash", "type: hash, commands: {deny: [EVAL]}", "EVAL x 1 page:1",
         Change("page", "commands", "run", "refused by commands")),
        ("type: hash", "ttl: {missing: reject}", "COPY {1} page:{1}b",
         Change("none", "ttl", "forwarded", "refused by ttl")),
        ("type: hash", "ttl: {default: 9s}", "COPY {1} page:{1}b",
         Change("none", "node gets", "what was sent", "also PEXPIRE 9000 NX")),
        ("type: hash", "type: list", "BLPOP page:1 0",
         Change("page", "type", "refused by type", "pinned")),
        ('"@read"', '"@write"', "user=reader GET x",
         Change("none", "rights", "forwarded", "refused with NOPERM")),
        ("default: 600s", "default: 300s", "SET seat:1:2 x",
         Change("seat", "node gets", "also PX 600000", "also PX 300000")),
        ("max: 900s", "max: 700s", "SET seat:1:2 x EX 800",
         Change("seat", "node gets", "what was sent", "also PX 700000")),
        ("max: 900s", "max: 700s", "RESTORE seat:1:2 9999999999999 x ABSTTL",
         Change("seat", "node gets", "also 900s-from-now", "also 700s-from-now")),
        ("default: 10s", "default: 20s", "MSET many:1 a b c many:2 d",
         Change("many", "node gets", "also PEXPIRE 10000 NX", "also PEXPIRE 20000 NX")),
        ("cluster: locks", "cluster: cache", "GET seat:1:2",
         Change("seat", "cluster", "locks", "cache")),
        ("hash_tag: event", "hash_tag: seat", "GET seat:1:2",
         Change("seat", "hash_tag", "slot of event", "slot of seat")),
        ('"page:{id}"', '"page{id}"', "HGET page:1 f",
         Change("none", "keyspace", "page", "none")),
    ],
)  # fmt: skip
def test_what_changes(folder: Folder, was: str, becomes: str, line: str, change: Change) -> None:
    """Rights, grammar, type, value, times, bounds and places are compared as commands meet them."""
    assert OLD.count(was) == 1
    found = replayed(folder, OLD.replace(was, becomes), "GET a", line, "PING", line)
    assert list(found.changes) == [change]
    assert found.changes[change].commands == found.changed == 2
    assert found.changes[change].lines == [2, 4]
    assert found.differs


def test_the_same_rules_change_nothing(folder: Folder) -> None:
    """Neither chance nor what came before makes a difference where the rules are the same."""
    limited = OLD.replace("type: hash", "rate: [{per: user, limit: 1/h}], mode: enforce 50%, "
                          "value: {max_bytes: 2B}")  # fmt: skip
    lines = ["SET page:1 xyz", "SET many:1 x", "MSET many:1 a many:2 b", "GET", "nope"] * 50
    found = replayed(folder, limited, *lines, old=limited)
    assert (found.commands, found.changed, found.differs) == (250, 0, False)
    assert list(replay.lines(found)) == ["250 commands, 0 judged otherwise; 0 not read"]


def test_rates_are_compared_as_rules(folder: Folder) -> None:
    """A rate limit depends on what else is sent: that it differs is told, and counts."""
    found = replayed(folder, OLD.replace("type: hash", "type: hash, rate: [{per: user, "
                                         "limit: 5/s}]"), "HGET page:1 f")  # fmt: skip
    assert not found.changed
    assert found.differs
    [line, _] = replay.lines(found)
    assert line.startswith("not judged, because it depends on what else is sent: keyspace page: ")


def test_what_is_told(folder: Folder) -> None:
    """The most frequent change stands first; lines that were not read are named."""
    found = replayed(
        folder, OLD.replace("8B", "4B").replace("type: hash", "type: list"),
        *["SET seat:1:2 12345"] * 2, *["HGET page:1 f"] * 4, 'SET "', "user=ghost GET a",
    )  # fmt: skip
    assert list(replay.lines(found)) == [
        "keyspace page: type: forwarded -> refused by type  (4 commands: line 3, 4, 5, …)",
        "keyspace seat: value: forwarded -> refused by value  (2 commands: line 1, 2)",
        "not read: quotes that do not go together  (1 line: line 7)",
        "not read: a user that is not there  (1 line: line 8)",
        "6 commands, 6 judged otherwise; 2 not read",
    ]


def test_memory_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more kinds of change than there is room for the rest is counted together."""
    monkeypatch.setattr(replay, "MOST_CHANGES", 1)
    new = OLD.replace("8B", "4B").replace("type: hash", "type: list")
    found = replayed(folder, new, "SET seat:1:2 12345", "HGET page:1 f", "HGET page:1 f")
    assert len(found.changes) == 1
    assert found.rest.commands == 2
    assert "and other changes  (2 commands: line 2, 3)" in replay.lines(found)


def test_what_was_judged_is_forgotten(folder: Folder) -> None:
    """Some hundred commands take no more memory than a hundred."""
    judge = replay.Judge(folder.load(OLD), CLUSTERS)
    words = [b"SET", b"a", bytes(100_000)]
    for _ in range(100):
        judge.judge(words, "default")
    before = resident()
    for _ in range(400):
        judge.judge(words, "default")
    gc.collect()
    assert resident() - before < 20_000_000


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
