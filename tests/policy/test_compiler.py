"""Policies to the rows of a Ruleset: the data plane judges what the files say."""

import random

import pytest

from proxy import commands, errors, wire
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


def test_split_transactions(folder: Folder) -> None:
    """A keyspace says it for itself, the defaults for keys of none; otherwise they are single."""
    plain = folder.compile(RULES)
    assert not plain.split_unmatched
    assert not any(row.split_transactions for row in plain.keyspaces)
    rules = folder.compile("""
        keyspaces:
          loose: {key: "loose:{n}"}
          tight: {key: "tight:{n}", transactions: single}
        defaults: {transactions: split}
    """)
    assert rules.split_unmatched
    assert [row.split_transactions for row in rules.keyspaces] == [True, False]


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


def test_channels(folder: Folder) -> None:
    """A channel has its cluster, and a flag per role of who may do what."""
    rules = folder.compile(
        "roles: {a: {channels: [one]}, b: {}}\n"
        "channels:\n"
        "  one: {channel: 'one:{x}', cluster: locks, publish: [a, b]}\n"
        "  two: {channel: 'two', subscribe: [default, a]}\n"
    )
    assert [role.name for role in rules.roles] == ["default", "a", "b"]
    assert [role.other_channels for role in rules.roles] == [True, False, True]
    one, two = rules.channels
    assert (one.cluster, one.publishers, one.subscribers) == (0, b"\0\1\1", b"\1\1\1")
    assert (two.cluster, two.publishers, two.subscribers) == (1, b"\1\0\1", b"\1\0\0")
    assert two.pattern == (b"two",)


def test_what_may_be_flushed(folder: Folder) -> None:
    """What holds locks or state is never emptied unless it is named, and neither is `locks`."""
    assert folder.compile("keyspaces: {a: {key: a}}").flushable == (1,)
    state = 'keyspaces: {a: {key: "a:{x}", cluster: cache, kind: state}}'
    assert folder.compile(state).flushable == ()
    assert folder.compile(state + "\ncommands: {flush: [locks, cache]}").flushable == (0, 1)
    assert folder.compile("commands: {flush: []}").flushable == ()


def test_added_commands(folder: Folder) -> None:
    """Commands of modules stand behind those of Redis, and roles and keyspaces can name them."""
    rules = folder.compile(
        """
        commands: {add: [{name: JSON.SET}, {name: JSON.GET, write: no, arity: -2}]}
        keyspaces: {a: {key: "a:{x}", commands: {deny: [json.set]}}}
        roles:
          reader: {commands: {deny: ["@write"]}}
          plain: {commands: {deny: ["@module"]}}
        """
    )
    written, read = (rules.find_command(name) for name in (b"json.set", b"JSON.GET"))
    assert (written, read) == (len(ROWS), len(ROWS) + 1)
    assert not rules.commands[written].repeatable
    assert rules.commands[read].repeatable
    assert (rules.keyspaces[0].denied[written], rules.keyspaces[0].denied[read]) == (1, 0)
    rights = {role.name: (role.allowed[written], role.allowed[read]) for role in rules.roles}
    assert rights == {"default": (1, 1), "reader": (0, 1), "plain": (0, 0)}


REACH = """
keyspaces:
  seat: {key: "seat:{event}:{n:int}", hash_tag: event}
  other: {key: "other:{n}"}
roles:
  patterns: {keys: ["seat:{e}:{n}", "a:{x}", "a:{y}", "{{t}}{rest:path}"]}
  spaces: {keyspaces: [seat]}
  both: {keyspaces: [seat], keys: ["seat:1:{n}"]}
  nothing: {keys: []}
  short: {limits: {key_bytes: 8}}
  trusted: {keyspaces: [seat], commands: {allow: ["@all", eval]}}
"""
NO_KEY = b"-NOPERM No permissions to access a key\r\n"


def as_role(folder: Folder, role: str) -> wire.Downstream:
    side = client(folder.compile(REACH))
    side.assume(role)
    return side


@pytest.mark.parametrize(
    ("role", "taken", "refused"),
    [
        (
            "patterns",
            [b"seat:1:2", b"a:b", b"{t}x:y"],
            [b"a:", b"a:b:c", b"other:1", b"seat:1", b""],
        ),
        ("spaces", [b"seat:1:2"], [b"seat:1:x", b"other:1", b"free"]),
        ("both", [b"seat:1:2"], [b"seat:2:2", b"other:1"]),
        ("nothing", [], [b"seat:1:2", b"free"]),
        ("default", [b"seat:1:2", b"free"], []),
    ],
)
def test_keys_of_a_role(
    folder: Folder, role: str, taken: list[bytes], refused: list[bytes]
) -> None:
    """A role names the keys that fit a pattern and a keyspace of it, and no others."""
    side = as_role(folder, role)
    assert [refusal(side, key) for key in taken] == [None] * len(taken)
    assert [refusal(side, key) for key in refused] == [NO_KEY] * len(refused)


def test_every_key_of_a_command_is_judged(folder: Folder) -> None:
    """One key that the role may not name refuses the command, wherever it stands."""
    side = as_role(folder, "patterns")
    for line in (
        b"MGET a:1 b:1", b"DEL b:1", b"RENAME a:1 b:1", b"BITOP and b:1 a:1", b"XREAD STREAMS b 0",
        b"ZUNIONSTORE b:1 1 a:1", b"LMPOP 2 a:1 b:1 LEFT", b"MSETEX 1 b:1 x", b"OBJECT FREQ b:1",
        b"GEORADIUS a:1 1 1 1 m STORE b:1",
    ):  # fmt: skip
        assert side.receive_data(line + b"\r\n", 0.0) is None
        assert side.data_to_send() == NO_KEY, line


def test_what_names_no_key_is_closed_to_roles_of_some(folder: Folder) -> None:
    """Scripts of one's own and emptying a cluster reach every key: only their names open them."""
    roles = {role.name: role for role in folder.compile(REACH).roles}
    closed = [INDEX[name] for name in (b"eval", b"script|load", b"function|load", b"flushall")]
    for name in ("patterns", "spaces", "nothing"):
        assert not any(roles[name].allowed[row] for row in closed)
    assert [roles["trusted"].allowed[row] for row in closed] == [1, 0, 0, 0]
    assert all(roles["default"].allowed[row] for row in closed)
    assert roles["patterns"].allowed[INDEX[b"evalsha"]]


@pytest.mark.parametrize(
    "line",
    [
        b"CLIENT PAUSE 1", b"CLIENT UNPAUSE", b"FUNCTION DELETE a", b"FUNCTION FLUSH",
        b"FUNCTION LIST WITHCODE", b"FUNCTION DUMP", b"FUNCTION STATS", b"FUNCTION KILL",
        b"SCRIPT FLUSH", b"SCRIPT KILL",
    ],
)  # fmt: skip
def test_what_reaches_other_clients_is_closed_to_roles_of_some(folder: Folder, line: bytes) -> None:
    """Stopping others, and their scripts and libraries, is for roles of all keys."""
    side = as_role(folder, "patterns")
    assert side.receive_data(line + b"\r\n", 0.0) is None
    assert side.data_to_send().startswith(b"-NOPERM ")
    assert as_role(folder, "default").receive_data(line + b"\r\n", 0.0) is not None


def test_key_bytes_of_a_role(folder: Folder) -> None:
    """A role's keys may be shorter than those of its keyspaces."""
    side = as_role(folder, "short")
    assert refusal(side, b"12345678") is None
    assert refusal(side, b"123456789") == errors.DATA_PLANE.long_key


def test_who_listens_hears_of_missing_rights(folder: Folder) -> None:
    """The batch tells of a command or a key that was refused, and not of other mistakes."""
    rules = folder.compile(REACH + "  reader: {keys: ['a:{x}'], commands: {deny: [SET]}}\n")
    batch = wire.Batch(lambda: None)
    heard: list[tuple[str, bytes]] = []
    batch.on_denied = lambda owner, reason, name: heard.append((reason, name))
    side = wire.Downstream(wire.Router(rules, wire.SlotMap([], [])), batch, 0)
    side.assume("reader")
    for line in (b"SET a:1 x", b"GET b:1", b"GET b:" + b"x" * 1000, b"GET", b"GET a:1"):
        side.receive_data(line + b"\r\n", 0.0)
    side.locate(b"b:2", GET)
    side.locate(b"b:3", GET, False)
    shown = b"b:" + b"x" * 254
    assert heard == [("command", b"set"), ("key", b"b:1"), ("key", shown), ("key", b"b:2")]


def test_the_largest_numbers_that_are_taken_fit(folder: Folder) -> None:
    """What check has nothing against the data plane can hold."""
    ruleset = folder.compile(
        "keyspaces:\n"
        "  a:\n"
        "    key: a\n"
        "    type: list\n"
        "    ttl: {default: 3650d}\n"
        "    value: {max_bytes: 16384GiB}\n"
        "    collection: {max_items: 4294967295, max_member_bytes: 16384GiB}\n"
        "    commands: {bounds: {LRANGE span: 9223372036854775807}}\n"
        "    rate: [{per: client, limit: 1000000000/ms, burst: 1000000}]\n"
        "commands: {add: [{name: A.B, arity: 1048576}, {name: A.C, arity: -1048576}]}\n"
    )
    assert len(ruleset.keyspaces) == 1
