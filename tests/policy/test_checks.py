"""How the parts of the policies go together: what cannot be safe is refused."""

from dataclasses import replace

import pytest

from proxy.policy import checks
from tests.policy.rulebook import VOCABULARY, Folder, complaints

READ = 'origin: {read: "SELECT 1 FROM t WHERE x = :x AND y = :y"}\n'
BEHIND = "write: {mode: behind, sql: UPDATE t}"
LOCK = "kind: lock\nttl: {default: 600s}\n"


@pytest.mark.parametrize(
    ("fields", "place", "told"),
    [
        # Locks and state.
        (LOCK + "evict: lru", "6:12", "never evicted; allowed: never"),
        (LOCK + "reads: replica", "6:12", "allowed: primary"),
        (LOCK + "transactions: split", "6:19", "done whole or not at all; allowed: single"),
        ("kind: state\ntransactions: split", "5:19", "done whole or not at all"),
        (LOCK + "near: {ttl: 1s}", "6:11", "leave near out"),
        (LOCK + "fallback: {reads: stale}", "6:23", "never served stale"),
        ("kind: state\nevict: ttl", "5:12", "of kind state is never evicted"),
        ("kind: state\n" + READ + "freshness: {stale_if_error: 1s}", "6:33", "never served stale"),
        (
            "security: true\n" + READ + "freshness: {stale_if_error: 1s}",
            "6:33",
            "with security: true",
        ),
        ("kind: rate_limit", "3:5", "its window never ends"),
        # Times.
        ("ttl: {default: 10s, max: 5s}", "4:20", "ttl.default is longer than ttl.max"),
        ("ttl: {min: 10s, max: 5s}", "4:16", "ttl.min is longer than ttl.max"),
        ("ttl: {missing: apply}", "4:20", "apply needs ttl.default"),
        ("ttl: {refresh: on_read}", "4:20", "on_read needs ttl.default"),
        ("ttl: {jitter: 10%}", "4:19", "which is not given"),
        ("type: hash\nttl: {missing: reject}", "5:20", "so all are refused; allowed: apply, allow"),
        (
            "type: stream\ncollection: {max_items: 1, keep: oldest}",
            "5:38",
            "cannot be kept of type stream; allowed: newest",
        ),
        # What goes with a connection.
        ("bound: connection\ntype: set", "4:12", "a sidecar that is killed takes nothing away"),
        ("bound: connection\ntype: hash\nttl: {default: 1h}", "4:12", "string, json, set"),
        (
            "bound: connection\ntype: json\nttl: {default: 1h}\n" + READ,
            "4:12",
            "what PostgreSQL has does not go with a connection",
        ),
        # Names.
        ("hash_tag: event_id", "4:15", '"event_id" is no segment of a:{x}:{y}; allowed: x, y'),
        ("hash_tag: yy", "4:15", 'did you mean "y"?'),
        ("cluster: lock", "4:14", 'allowed: locks, cache; did you mean "locks"?'),
        ("key_grammar: {characters: a-z}", "3:10", 'can never match: ":" is not among'),
        ("key_grammar: {max_bytes: 4}", "3:10", "can never match: it has at least 5 bytes"),
        ("rate: [{per: z, limit: 1/s}]", "4:18", "is no segment of the key"),
        ("rate: [{per: x, limit: 2000/s, algorithm: window}]", "4:28", "exact up to 1000"),
        (
            "rate: [{per: x, limit: 1/s, algorithm: window, burst: 1}]",
            "4:59",
            "window has no burst",
        ),
        ("commands: {deny: [GET, SETT]}", "4:28", "is no command of Redis"),
        ("commands: {allow: ['@raed']}", "4:24", 'did you mean "@read"?'),
        # Types.
        ("type: string\ncollection: {max_items: 1}", "5:17", "a string has no members"),
        (
            "type: list\ncollection: {max_items: 1, keep: highest}",
            "5:38",
            "allowed: newest, oldest",
        ),
        (
            "type: zset\ncollection: {max_items: 1, exact: off}",
            "5:39",
            "only a stream is trimmed roughly",
        ),
        ("type: counter\nvalue: {json: on}", "5:12", "a counter is written by counting"),
        (
            "type: set\nwrite: {mode: behind, merge: add, sql: UPDATE t}",
            "5:34",
            "cannot be added up",
        ),
        # PostgreSQL.
        ("freshness: {negative: 5s}", "4:27", "needs an origin to fetch from"),
        ("fallback: {reads: origin}", "4:23", "origin needs the block origin"),
        ("drift: {rate: 5/s}", "4:12", "needs an origin to compare with"),
        ("on_loss: refill", "4:14", "refill needs an origin"),
        ("on_loss: restore", "4:14", "restore needs the block restore"),
        ("restore: {sql: SELECT 1}", "4:5", "on_loss is not restore"),
        (
            "on_loss: restore\nrestore: {sql: DELETE FROM t}",
            "5:20",
            "one statement that only reads",
        ),
        (
            'origin: {read: "SELECT 1 WHERE a = :z"}',
            "4:20",
            "the parameter :z is no segment of a:{x}:{y}; allowed: x, y",
        ),
        ("origin: {read: DELETE FROM t}", "4:20", "must only read"),
        ('origin: {read: "SELECT 1; DROP TABLE t"}', "4:20", "must be one statement"),
        ("type: list\n" + BEHIND, "5:19", "behind is for type hash, string, json, counter"),
        (
            "invalidate: [{table: t, key: {x: x}}]",
            "4:34",
            "the key cannot be derived: the segment y",
        ),
        (
            "invalidate: [{table: t, key: {x: x, y: y}, also: {kk: {}}}]",
            "4:59",
            'there is no keyspace "kk"; did you mean "k"?',
        ),
        (
            "kind: state\ninvalidate: [{table: t, key: {x: x, y: y}}]",
            "5:18",
            "which nothing can bring back",
        ),
    ],
)
def test_what_cannot_be(folder: Folder, fields: str, place: str, told: str) -> None:
    """Each combination that is unsafe or means nothing is told once, where it was written."""
    found = folder.keyspace(fields)
    assert len(found) == 1, found
    assert told in found[0]
    assert found[0].startswith(f"a.yaml:{place}:"), found


@pytest.mark.parametrize(
    "fields",
    [
        READ + "freshness: {stale_if_error: 60s, negative: 5s}\nfallback: {reads: origin}",
        "type: zset\ncollection: {max_items: 100, keep: highest}",
        "hash_tag: {literal: word}",
    ],
)
def test_what_can_be(folder: Folder, fields: str) -> None:
    """What is safe is not complained of."""
    assert folder.keyspace(fields) == []


def test_a_brace_before_the_tag_is_refused(folder: Folder) -> None:
    """Redis takes the first braces of a name, so a key that has its own cannot be tagged."""
    assert "a brace before this segment" in folder.keyspace("hash_tag: x", "'a:{{:{x}'")[0]
    assert folder.keyspace("hash_tag: {literal: w}", "'a:{x}'") == []


def test_ambiguous_patterns_are_told_with_both_places(folder: Folder) -> None:
    """Two keyspaces for one key are a mistake that names where the other one stands."""
    folder.write("keyspaces:\n  one: {key: 'a:{x}:b'}\n", "1.yaml")
    folder.write("keyspaces:\n  two: {key: 'a:{id}:b'}\n", "2.yaml")
    found = complaints(folder.path)
    assert len(found) == 1
    assert found[0].startswith('2.yaml:2:14: key: can match the same keys as "a:{x}:b"')
    assert 'keyspace "one" at 1.yaml:2,' in found[0]


def test_more_literal_text_decides(folder: Folder) -> None:
    """Patterns that overlap are fine where literal text or a narrower type decides."""
    rules = folder.compile(
        "keyspaces:\n"
        "  any: {key: 'a:{x}'}\n"
        "  number: {key: 'a:{n:int}'}\n"
        "  one: {key: 'a:popular'}\n"
        "  all: {key: 'a:{rest:path}'}\n"
    )
    names = [
        rules.keyspaces[rules.find_keyspace(k)].name
        for k in (b"a:x", b"a:7", b"a:popular", b"a:popular:x")
    ]
    assert names == ["any", "number", "one", "all"]


def test_names_of_roles_and_defaults_are_checked(folder: Folder) -> None:
    """Clusters, commands and keyspaces that do not exist are found in every part of a file."""
    found = folder.complaints(
        "keyspaces: {k: {key: a}}\n"
        "defaults: {cluster: cahce, commands: {deny: [GETT]}}\n"
        "commands: {deny: [FLUSH], rename: {SETT: x}}\n"
        "roles: {r: {keyspaces: [kk], commands: {allow: ['@nothing']}}}\n"
        "channels: {c: {channel: 'c:{x}', cluster: cachee}}\n"
    )
    assert [line.split(":")[1] for line in found] == ["2", "2", "3", "3", "4", "4", "5"]


def test_channels_are_checked(folder: Folder) -> None:
    """Roles and channels that do not exist, and channels that cannot be told apart, are found."""
    found = folder.complaints(
        "roles:\n"
        "  reader: {channels: [news, new]}\n"
        "channels:\n"
        "  news: {channel: 'news:{x}', publish: [redaer]}\n"
        "  twin: {channel: 'news:{y}', subscribe: [default, nobody]}\n"
    )
    assert [line.split(":")[1] for line in found] == ["2", "4", "5", "5"]
    assert 'did you mean "news"' in found[0]
    assert 'did you mean "reader"' in found[1]


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("{name: GET}", '"GET" is a command already'),
        ("{name: swapdb}", '"swapdb" is a command already'),
        ("{name: A.B}, {name: a.b}", '"a.b" is a command already'),
        ("{name: A.B, keys: 0}", "expects the place of the key"),
        ("{name: A.B, keys: '2:1'}", "expects the place of the key"),
        ("{name: A.B, keys: n1}", "expects the place of the key"),
        ("{name: A.B, keys: '1:-2', arity: 2}", "its keys need 3 words"),
        ("{name: A.B, keys: 2, arity: -2}", "its keys need 3 words"),
        ("{name: A.B, arity: 1048577}", "no command has more than 1048576 words"),
        ("{name: 'A B'}", "name"),
        ("{keys: 1}", "name"),
    ],
)
def test_commands_that_cannot_be_added(folder: Folder, added: str, told: str) -> None:
    """A command has a new name and at least one key, or the rules are refused."""
    (found,) = folder.complaints(f"commands: {{add: [{added}]}}")
    assert told in found


def test_added_commands_are_words(folder: Folder) -> None:
    """Roles and keyspaces may name what is added, and flush what is configured."""
    assert not folder.complaints(
        "commands: {add: [{name: JSON.SET}], deny: [JSON.SET], flush: [cache]}"
    )
    (found,) = folder.complaints("commands: {flush: [cash]}")
    assert 'did you mean "cache"' in found


@pytest.mark.parametrize(
    ("memory", "clusters", "names"),
    [
        ({}, ("locks", "cache"), []),
        ({"cache": 300}, ("locks", "cache"), []),
        ({"cache": 299}, ("locks", "cache"), ["c"]),
        ({"cache": 99}, ("locks", "cache"), ["a"]),
        ({"cache": 150, "locks": 50}, ("locks", "cache"), ["b", "c"]),
        ({"one": 150}, ("one",), ["b"]),
        ({"cache": 99}, None, ["a"]),
    ],
)
def test_budgets(
    folder: Folder, memory: dict[str, int], clusters: tuple[str, ...] | None, names: list[str]
) -> None:
    """Once for each cluster it is told where budgets go over its memory; the whole may be used."""
    policies = folder.load(
        "keyspaces:\n"
        "  a: {key: a, memory: {budget: 100B}}\n"
        "  b: {key: b, cluster: locks, memory: {budget: 60B}}\n"
        "  c: {key: c, memory: {budget: 200B}}\n"
        "  d: {key: d, memory: {items: 5}}\n"
    )
    vocabulary = replace(VOCABULARY, clusters=clusters, memory=memory)
    found = list(checks.check_budgets(policies, vocabulary))
    assert sorted(str(complaint.location[1]) for complaint in found) == names
