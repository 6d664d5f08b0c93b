"""Values of keyspaces that say `value: {json: true}` or `{schema: file}`, in the data plane."""

import json
from collections.abc import Callable

import pytest

from proxy import wire
from tests.policy.rulebook import Folder
from tests.wire.stage import Stage

RULES = """
keyspaces:
  doc: {key: "doc:{id}", value: {json: true}}
  list: {key: "list:{id}", type: list, value: {json: true}}
  hash: {key: "hash:{id}", type: hash, value: {json: true, max_bytes: 100}}
  tried: {key: "tried:{id}", value: {json: true, mode: observe}}
  seat: {key: "seat:{id}", value: {schema: seat.json}}
"""
SEAT = {
    "type": "object",
    "required": ["owner"],
    "properties": {"owner": {"type": "string"}, "count": {"type": "integer", "maximum": 9}},
}
WHOLE = "this command does not carry it whole"

Answer = Callable[..., bytes]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> wire.Ruleset:
    path = tmp_path_factory.mktemp("policies")
    (path / "seat.json").write_text(json.dumps(SEAT))
    return Folder(path).compile(RULES)


@pytest.fixture
def stage(rules: wire.Ruleset) -> Stage:
    return Stage(rules)


@pytest.fixture
def answer(stage: Stage) -> Answer:
    """What a client is told at once: nothing for a command that goes to a node."""

    def ask(*words: str) -> bytes:
        client = stage.client()
        client.receive_data(wire.pack([word.encode() for word in words]), 1.0)
        return client.data_to_send()

    return ask


def refusal(keyspace: str, rule: str) -> bytes:
    return f"-POLICY value refused by keyspace '{keyspace}': {rule}".encode()


NO_JSON = "it is no valid JSON (syntax at byte 1)"


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "doc:1", "VALUE"), ("SET", "doc:1", "VALUE", "EX", "5", "NX"),
        ("SETEX", "doc:1", "5", "VALUE"), ("PSETEX", "doc:1", "5", "VALUE"),
        ("SETNX", "doc:1", "VALUE"), ("GETSET", "doc:1", "VALUE"),
        ("MSET", "doc:1", "{}", "doc:1", "VALUE"), ("MSETNX", "doc:1", "VALUE"),
        ("LPUSH", "list:1", "1", "VALUE"), ("RPUSHX", "list:1", "VALUE"),
        ("LSET", "list:1", "0", "VALUE"), ("LINSERT", "list:1", "BEFORE", "x", "VALUE"),
        ("HSET", "hash:1", "a", "1", "b", "VALUE"), ("HMSET", "hash:1", "a", "VALUE"),
        ("HSETNX", "hash:1", "a", "VALUE"), ("hset", "hash:1", "no json", "VALUE"),
    ],
)  # fmt: skip
def test_each_value_is_judged(answer: Answer, command: tuple[str, ...]) -> None:
    """Each value of each command that carries some is judged, wherever it stands; names are not."""
    told = answer(*[word.replace("VALUE", "{x") for word in command])
    assert told.startswith(refusal(command[1].split(":")[0], NO_JSON)), told
    assert answer(*[word.replace("VALUE", '{"x": 1}') for word in command]) == b""


def test_what_is_wrong_is_told(answer: Answer) -> None:
    """The error says what is wrong and where, and nothing of the value."""
    told = answer("SET", "doc:1", '{"a":1,"\\u0061":2}')
    assert told == refusal("doc", "it is no valid JSON (duplicate member at byte 7)") + b"\r\n"


def test_other_keys_hold_anything(answer: Answer) -> None:
    """Keys of other keyspaces, and of none, are as in Redis."""
    assert answer("SET", "other", "{x") == b""


@pytest.mark.parametrize(
    "command",
    [
        "APPEND doc:1 1", "SETRANGE doc:1 0 1", "SETBIT doc:1 7 1", "BITFIELD doc:1 SET u8 0 1",
        "PFADD doc:1 x", "RESTORE doc:1 0 1", "BITOP NOT doc:1 doc:1", "RENAME {x} doc:{x}",
        "RPOPLPUSH {x} list:{x}", "LMOVE {x} list:{x} LEFT LEFT", "APPEND seat:1 1",
        "INCR seat:1",
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(answer: Answer, command: str) -> None:
    """A command that leaves what it does not carry whole is refused."""
    assert WHOLE.encode() in answer(*command.split())


@pytest.mark.parametrize(
    "command",
    [
        "INCR doc:1", "HINCRBY hash:1 f 1", "RENAME doc:{x} doc:{x}y", "RENAME doc:{x} {x}",
        "GETDEL doc:1", "LMOVE list:{x} list:{x}y LEFT LEFT", "RPOPLPUSH list:{x} {x}",
        "DEL doc:1", "EXPIRE doc:1 5",
    ],
)  # fmt: skip
def test_what_stays_json_passes(answer: Answer, command: str) -> None:
    """Counting leaves a number, and what moves within a keyspace has been judged."""
    assert answer(*command.split()) == b""


def test_a_value_may_be_both_too_long_and_no_json(answer: Answer) -> None:
    """Sizes are looked at first: they cost least."""
    assert b"more than 100 bytes" in answer("HSET", "hash:1", "f", "[" * 200)


def test_a_rule_on_trial_lets_through(rules: wire.Ruleset, answer: Answer) -> None:
    """On trial what is no JSON is counted and let through, and so is what cannot be judged."""
    before = sum(count for *_, count in rules.breaches.requests())
    assert answer("SET", "tried:1", "{x") == answer("APPEND", "tried:1", "x") == b""
    assert sum(count for *_, count in rules.breaches.requests()) == before + 2


def test_split_inline_and_captured_commands_are_judged(stage: Stage) -> None:
    """MSET over slots, a command sent as a line, and one of a transaction: all are judged."""
    client = stage.client()
    assert client.receive_data(wire.pack([b"MSET", b"a", b"1", b"doc:1", b"{x"]), 1.0) is None
    assert client.receive_data(b"SET doc:1 {x\r\n", 1.0) is None
    client.capture = True
    assert client.receive_data(wire.pack([b"SET", b"doc:1", b"{x"]), 1.0) is None
    assert client.spoiled
    assert client.data_to_send() == 3 * (refusal("doc", NO_JSON) + b"\r\n")
    assert client.receive_data(wire.pack([b"MSET", b"a", b"1", b"doc:1", b"{}"]), 1.0) is not None


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ('{"owner":"u"}', ""),
        ('{"owner":"u","count":9.0}', ""),
        ("{}", "its schema says otherwise at its top (required)"),
        ("[]", "its schema says otherwise at its top (type)"),
        ('{"owner":5}', "its schema says otherwise at /owner (type)"),
        ('{"owner":"u","count":10}', "its schema says otherwise at /count (maximum)"),
        ('{"owner":"u","count":1e999}', "its schema says otherwise at /count (type)"),
        ('{"count":%s}' % ("1" * 5000), "its schema says otherwise at its top (number)"),
        ("{x", NO_JSON),
    ],
)  # fmt: skip
def test_values_fit_their_schema(answer: Answer, value: str, rule: str) -> None:
    """A value is JSON first, then it fits, or the error says which part does not and why."""
    expected = refusal("seat", rule) + b"\r\n" if rule else b""
    assert answer("SET", "seat:1", value) == expected
    assert answer("MSET", "seat:1", '{"owner":"u"}', "seat:1", value) == expected
