"""What changes from one set of policies to another, line by line."""

import time
from pathlib import Path

import pytest

from proxy.policy.differences import MAX_LINES, differences
from proxy.policy.model import EMPTY
from tests.policy.rulebook import SHIPPED, load

BEFORE = """\
keyspaces:
  lock:
    key: lock:{event_id}:{seat_id}
    cluster: locks
    kind: state
    ttl: {default: 600s, max: 900s}
  page:
    key: page:{id}
    commands: {deny: [KEYS, del], bounds: {SCAN COUNT: 10}}
    value: {max_bytes: 1MiB, json: on}
    rate: [{per: user, limit: 10/s}]
roles:
  app: {commands: {deny: [FLUSHALL, KEYS]}, keyspaces: [lock, page]}
channels:
  news: {channel: 'news:{id}', publish: [app]}
commands: {deny: [DEBUG], rename: {CONFIG: CONFIG2}}
"""


class Pair:
    """Two folders of policies, of which the second is edited."""

    def __init__(self, path: Path) -> None:
        self.old, self.new = path / "old", path / "new"
        for folder in (self.old, self.new):
            folder.mkdir()

    def lines(self, before: str, after: str) -> list[str]:
        (self.old / "a.yaml").write_text(before)
        (self.new / "a.yaml").write_text(after)
        found = differences(load(self.old), load(self.new))
        return [line.replace(f"{self.new}/", "").replace(f"{self.old}/", "") for line in found]

    def edited(self, *edits: tuple[str, str]) -> list[str]:
        after = BEFORE
        for old, new in edits:
            assert after.count(old) == 1
            after = after.replace(old, new)
        return self.lines(BEFORE, after)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max: 900s", "max: 700s", "keyspace lock: ttl.max 900s -> 700s (a.yaml:6)"),
        (", max: 900s", "", "keyspace lock: ttl.max 900s -> none (a.yaml:6)"),
        ("max: 900s", "max: 900s, jitter: 10%",
         "keyspace lock: ttl.jitter none -> 10% (a.yaml:6)"),
        ("page:{id}", "page:{id:int}", "keyspace page: key page:{id} -> page:{id:int} (a.yaml:8)"),
        ("KEYS, del", "SET, KEYS", "keyspace page: commands.deny - del, + SET (a.yaml:9)"),
        ("COUNT: 10", "COUNT: 9",
         "keyspace page: commands.bounds.SCAN COUNT 10 -> 9 (a.yaml:9)"),
        ("1MiB", "1MB", "keyspace page: value.max_bytes 1MiB -> 1MB (a.yaml:10)"),
        ("json: on", "json: off", "keyspace page: value.json on -> off (a.yaml:10)"),
        ("limit: 10/s", "limit: 9/s, burst: 2",
         "keyspace page: rate - {per: user, limit: 10/s}, + {per: user, limit: 9/s, burst: 2} "
         "(a.yaml:11)"),
        ("keyspaces: [lock, page]", "keyspaces: [page]",
         "role app: keyspaces - lock (a.yaml:13)"),
        ("publish: [app]", "subscribe: [app]", "channel news: publish [app] -> none (a.yaml:15)\n"
         "channel news: subscribe none -> [app] (a.yaml:15)"),
        ("CONFIG2", "CONFIG3", "commands: rename.CONFIG CONFIG2 -> CONFIG3 (a.yaml:16)"),
        ("[DEBUG]", "[DEBUG, KEYS]", "commands: deny + KEYS (a.yaml:16)"),
        ("commands: {deny: [DEBUG]", "defaults: {unmatched: reject}\ncommands: {deny: [DEBUG]",
         "defaults: unmatched forward -> reject (a.yaml:16)"),
        ("  app: {", "  other: {}\n  app: {", "role other: new (a.yaml:13)"),
    ],
)  # fmt: skip
def test_a_difference(pair: Pair, old: str, new: str, told: str) -> None:
    """A field that changes is one line: whose it is, from what to what, and where it stands."""
    assert pair.edited((old, new)) == told.splitlines()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("600s", "10m"),
        ("{id}\n", "{id:text}\n"),
        ("[KEYS, del]", "[DEL, keys]"),
        ("1MiB", "1024KiB"),
        ("[lock, page]", "[page, lock]"),
        ("max: 900s", "max: 900s, missing: apply"),
        ("kind: state", "kind: state\n    evict: never"),
        ("roles:\n", "# A word\nroles:\n  default: {}\n"),
        ("10/s", "10/sec"),
    ],
)
def test_another_spelling_is_no_difference(pair: Pair, old: str, new: str) -> None:
    """What means the same is no difference: units, order of sets, what follows by itself."""
    assert pair.edited((old, new)) == []


def test_what_comes_and_goes(pair: Pair) -> None:
    """Things that are new or gone are one line each, with the place where they stand or stood."""
    after = "keyspaces:\n  page: {key: 'p:{id}'}\n  more: {key: m}\n"
    found = pair.lines("keyspaces:\n  lock: {key: l}\n  page: {key: 'p:{id}'}\n", after)
    assert found == ["keyspace lock: gone (a.yaml:2)", "keyspace more: new (a.yaml:3)"]


def test_a_default_that_changes_is_told_once(pair: Pair) -> None:
    """What many keyspaces inherit is one line, without those that say their own."""
    spaces = "".join(f"  k{i}: {{key: 'k{i}'}}\n" for i in range(5))
    own = "  own: {key: own, ttl: {max: 50s}}\n"
    text = "defaults:\n  ttl: {max: %s}\nkeyspaces:\n" + spaces + own
    assert pair.lines(text % "60s", text % "90s") == [
        "defaults: ttl.max 60s -> 90s (a.yaml:2)",
        "keyspaces k0, k1, k2 and 2 more: ttl.max 60s -> 90s (a.yaml:2)",
    ]


def test_a_keyspace_that_stops_inheriting(pair: Pair) -> None:
    """A keyspace that says for itself what it inherited has changed only if the value has."""
    text = "defaults: {ttl: {max: 60s}}\nkeyspaces:\n  a: {key: a%s}\n"
    assert pair.lines(text % "", text % ", ttl: {max: 60s}") == []
    assert pair.lines(text % "", text % ", ttl: {max: 50s}") == [
        "keyspace a: ttl.max 60s -> 50s (a.yaml:3)"
    ]


def test_long_and_strange_texts(pair: Pair) -> None:
    """SQL that is long is told by its place, and no line holds a control character."""
    text = (
        "keyspaces:\n  a:\n    key: 'a:{b}'\n    origin: {read: \"SELECT '%s' WHERE :b = '1'\"}\n"
    )
    found = pair.lines(text % ("x" * 90 + "1"), text % ("x" * 90 + "2"))
    assert found == ["keyspace a: origin.read is another text (a.yaml:4)"]
    found = pair.lines(text % "\\e[31m", text % "2")
    assert len(found) == 1
    assert found[0].isprintable()


def test_a_block_that_is_new(pair: Pair) -> None:
    """A block that was not there is shown as one value, without what follows by itself."""
    text = "keyspaces:\n  a:\n    key: 'a:{b}'\n    cluster: cache\n"
    assert pair.lines(text, text + "    near: {ttl: 5s}\n") == [
        "keyspace a: near none -> {ttl: 5s} (a.yaml:5)"
    ]


def test_the_shipped_policies_do_not_differ_from_themselves() -> None:
    """Two loads of the same files have no difference; from nothing, each thing is one line."""
    shipped = load(SHIPPED)
    assert differences(shipped, load(SHIPPED)) == []
    found = differences(EMPTY, shipped)
    assert sum(line.startswith("keyspace ") for line in found) == len(shipped.keyspaces)


def test_the_lines_are_bounded(pair: Pair) -> None:
    """Two thousand differences are found in a second, and told by the first and a number."""
    rows = [f"  k{i}: {{key: 'k{i}', ttl: {{max: 60s}}}}\n" for i in range(1000)]
    before = "keyspaces:\n" + "".join(rows)
    after = before.replace("60s", "90s").replace("key: 'k", "key: 'n")
    (pair.old / "a.yaml").write_text(before)
    (pair.new / "a.yaml").write_text(after)
    old, new = load(pair.old), load(pair.new)
    started = time.process_time()
    found = differences(old, new)
    assert time.process_time() - started < 1
    assert len(found) == MAX_LINES + 1
    assert found[-1] == f"and {2000 - MAX_LINES} differences more"


def test_another_text_of_a_script(pair: Pair) -> None:
    """A script that says something else is told, though its entry is the same."""
    script = "scripts: {take: {name: TAKE, file: take.lua, keys: ['a:{b}'], arguments: [b]}}\n"
    for folder, body in ((pair.old, "return 1"), (pair.new, "return 2")):
        (folder / "lua").mkdir()
        (folder / "lua" / "take.lua").write_text(body)
    assert pair.lines(script, script) == ["script take: file has another text (a.yaml:1)"]
