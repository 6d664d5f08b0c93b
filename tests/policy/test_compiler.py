"""Policies to the rows of a Ruleset: the data plane judges what the files say."""

import random

import pytest

from proxy import commands, wire
from proxy.commands import INDEX, ROWS
from proxy.policy import compiler
from proxy.policy.loader import PolicyMistakes
from proxy.policy.model import EMPTY
from proxy.wire.rules import Limits
from tests.policy.rulebook import Folder, compiled

GET, SET, FLUSHALL = INDEX[b"get"], INDEX[b"set"], INDEX[b"flushall"]

RULES = """
defaults: {cluster: cache, key_grammar: {max_bytes: 512, characters: "A-Za-z0-9:_-"}}
keyspaces:
  seat_lock: {key: "seat_lock:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
  word: {key: "w:{x}", hash_tag: {literal: jobs}}
  address: {key: "ip:{address:ip}:api"}
  plain: {key: "plain:{x}", commands: {deny: [SET]}}
  free: {key: "free:{x}", key_grammar: {max_bytes: 10, characters: "!-~"}}
"""


def client(rules: wire.Ruleset) -> wire.Downstream:
    router = wire.Router(rules, wire.SlotMap([], []))
    downstream = wire.Downstream(router, wire.Batch(lambda: None), 0)
    downstream.assume("default")
    return downstream


def refusal(client: wire.Downstream, key: bytes, row: int = GET) -> bytes | None:
    """Return the error line for a key, or None where it is taken."""
    place = client.locate(key, row)
    return place if isinstance(place, bytes) else None


def test_nothing_becomes_the_plain_rules() -> None:
    """Without policies there is one role that may do all, within Redis' own limits."""
    rules = compiled(EMPTY)
    assert [role.name for role in rules.roles] == ["default"]
    assert rules.roles[0].allowed == b"\1" * len(ROWS)
    assert rules.roles[0].limits == Limits()
    assert not rules.keyspaces
    assert not rules.reject_unmatched
    assert rules.max_key_bytes == 512 << 20


def test_fields_of_a_keyspace(folder: Folder) -> None:
    """Cluster, tag, grammar and rights arrive as the data plane wants them."""
    rules = folder.compile(RULES)
    rows = {row.name: row for row in rules.keyspaces}
    assert list(rows) == ["seat_lock", "word", "address", "plain", "free"]
    assert (rows["seat_lock"].cluster, rows["seat_lock"].hash_tag) == (0, 1)
    assert (rows["word"].cluster, rows["word"].hash_tag) == (1, b"jobs")
    assert rows["plain"].denied[SET] == 1
    assert rows["plain"].denied[GET] == 0
    assert b"'plain'" in rows["plain"].denied_error
    assert rows["free"].max_key_bytes == 10
    assert rules.default_cluster == 1


def test_names_for_nodes(folder: Folder) -> None:
    """Nodes see the tag in braces, or the word before the name; other keys as they are."""
    rules = folder.compile(RULES)
    for key, name in {
        b"seat_lock:evt_1:seat_2": b"seat_lock:{evt_1}:seat_2",
        b"w:1": b"{jobs}w:1",
        b"plain:1": b"plain:1",
        b"of:nobody": b"of:nobody",
    }.items():
        assert rules.upstream_name(key) == name


KEYS_REFUSED = [
    b"plain:a\n",
    b"plain:\na",
    b"plain:a\0",
    b"plain:a\0b",
    b"plain:a b",
    b"plain:a\r",
    b"plain:a\t",
    "plain:é".encode(),
    b"plain:\xff",
    b"plain:\x7f",
    b"plain:{a}",
    b"plain:a}",
    b"plain:a*",
    b"plain:a.b",
    b"plain:" + b"x" * 507,
    b"plain:a/b",
    b'plain:"',
    b"seat_lock:{e}:s",
    b"seat_lock:e:s\n",
    b"seat_lock:e:" + "ß".encode(),
    b"ip:1.2.3.4\n:api",
    b"free:x12345",
    b"free:\n",
    b"free: ",
]


@pytest.mark.parametrize("key", KEYS_REFUSED)
def test_keys_that_break_the_grammar(folder: Folder, key: bytes) -> None:
    """A newline at the end, NUL, UTF-8, braces and the 513th byte are refused, the key not told."""
    asking = client(folder.compile(RULES))
    told = refusal(asking, key)
    assert told is not None
    assert told.startswith(b"-POLICY key refused by ")
    assert told.endswith(b"\r\n")
    assert told.count(b"\n") == 1
    assert key not in told


@pytest.mark.parametrize(
    "key",
    [
        b"plain:A-Za-z0-9_-",
        b"plain:" + b"x" * 506,
        b"seat_lock:evt_1:seat_2",
        b"free:x1234",
        b"free:{}",
        b"ip:10.0.0.1:api",
        b"ip:2001:db8::1:api",
        b"other:\xff.{x}",
        b"x" * 5000,
    ],
)
def test_keys_within_the_grammar(folder: Folder, key: bytes) -> None:
    """512 bytes of the set are taken, addresses in typed segments, and any key of no keyspace."""
    assert refusal(client(folder.compile(RULES)), key) is None


def test_the_grammar_is_exact(folder: Folder) -> None:
    """Of 256 bytes, the 65 of the set are taken, at each place of the key, and no other."""
    asking = client(folder.compile(RULES))
    allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
    for byte in range(256):
        for key in (b"plain:%cb", b"plain:a%c", b"plain:a%cb"):
            if byte != ord(":"):  # another segment, so another key
                assert (refusal(asking, key % byte) is None) is (byte in allowed), key % byte


def test_hostile_keys_are_refused(folder: Folder) -> None:
    """Of 10,000 keys with one byte that the set has not, none is taken."""
    asking = client(folder.compile(RULES))
    random.seed(4)
    wrong = [
        byte
        for byte in range(256)
        if not chr(byte).isascii() or not (chr(byte).isalnum() or chr(byte) in ":_-")
    ]
    for _ in range(10_000):
        key = bytearray(b"plain:" + b"x" * random.randint(1, 506))
        key[random.randint(6, len(key) - 1)] = random.choice(wrong)
        assert refusal(asking, bytes(key)) is not None, key


def test_a_denied_command_is_refused_in_its_keyspace_only(folder: Folder) -> None:
    """The keyspace that denies SET says so by name; others take it."""
    asking = client(folder.compile(RULES))
    assert (refusal(asking, b"plain:a", SET) or b"").startswith(b"-NOPERM ")
    assert refusal(asking, b"plain:a", GET) is None
    assert refusal(asking, b"free:a", SET) is None


def test_keys_of_no_keyspace_may_be_refused(folder: Folder) -> None:
    """unmatched: reject takes only keys that have a keyspace; a length of its own holds too."""
    asking = client(folder.compile("defaults: {unmatched: reject}\nkeyspaces: {k: {key: 'k:{x}'}}"))
    assert refusal(asking, b"k:1") is None
    assert (refusal(asking, b"z") or b"").startswith(b"-POLICY ")
    asking = client(folder.compile("defaults: {unmatched_max_bytes: 3}"))
    assert refusal(asking, b"abc") is None
    assert refusal(asking, b"abcd") is not None


def test_roles(folder: Folder) -> None:
    """The default role is first and open; others have their rights, and what all are denied."""
    rules = folder.compile(
        "roles:\n"
        "  a: {commands: {deny: [FLUSHALL]}, limits: {arguments: 10, inline_bytes: 1KiB}}\n"
        "  default: {}\n"
        "commands: {deny: [SHUTDOWN]}\n"
    )
    assert [role.name for role in rules.roles] == ["default", "a"]
    default, a = rules.roles
    assert (default.allowed[FLUSHALL], a.allowed[FLUSHALL]) == (1, 0)
    assert not default.allowed[INDEX[b"shutdown"]] + a.allowed[INDEX[b"shutdown"]]
    assert a.limits == Limits(arguments=10, inline_bytes=1024)


def test_backtracking(folder: Folder) -> None:
    """What was tried and does not fit is taken back: a longer literal, then a narrower type."""
    rules = folder.compile(
        "keyspaces:\n"
        "  literal: {key: 'user:me:cart'}\n"
        "  number: {key: 'user:{id:int}:cart'}\n"
        "  day: {key: 'user:{day:date}:cart:x'}\n"
        "  text: {key: 'user:{id}:cart'}\n"
        "  pair: {key: 'user:{a}:{b}'}\n"
        "  rest: {key: 'user:{rest:path}'}\n"
        "  uuid: {key: 'o:{id:uuid}'}\n"
        "  digest: {key: 'o:{id:hex}'}\n"
    )
    names = {
        b"user:me:cart": "literal", b"user:mee:cart": "text", b"user:7:cart": "number",
        b"user:-7:cart": "number", b"user:7-:cart": "text", b"user:2024-12-31:cart": "text",
        b"user:2024-12-31:cart:x": "day", b"user:2024-1-31:cart:x": "rest", b"user:me:cars": "pair",
        b"user:me:cart:x": "rest", b"user:me": "rest", b"user:": None, b"user": None,
        b"o:0a1b": "digest", b"o:00000000-0000-0000-0000-00000000000f": "uuid", b"o:xyz": None,
    }  # fmt: skip
    for key, name in names.items():
        index = rules.find_keyspace(key)
        assert (rules.keyspaces[index].name if index >= 0 else None) == name, key


def test_the_same_input_gives_the_same_rows(folder: Folder) -> None:
    """A reload of unchanged files can be told from a change."""
    one, other = folder.compile(RULES), folder.compile(RULES)
    assert one.keyspaces == other.keyspaces
    assert one.roles == other.roles


def test_a_single_cluster_is_meant_by_whoever_names_none(folder: Folder) -> None:
    """Where a configuration has one cluster only, a policy need not name it."""
    policies = folder.load("keyspaces: {k: {key: a}}")
    rules = compiler.compile(
        policies, commands.ROWS, commands.FAMILIES, commands.CATEGORIES, ("main",)
    )
    assert rules.keyspaces[0].cluster == 0
    assert rules.default_cluster == 0
    with pytest.raises(PolicyMistakes, match='no cluster "cache" is configured; there is: a, b'):
        compiler.compile(
            policies, commands.ROWS, commands.FAMILIES, commands.CATEGORIES, ("a", "b")
        )
