"""Rules about types and sizes, and how seriously they are taken, in the data plane."""

from collections import Counter

import pytest

from proxy import errors, wire
from proxy.commands import INDEX, ROWS
from proxy.effects import TYPE_BITS
from proxy.wire.rules import RULES, Duty, Rule, Segment
from tests.wire.stage import Stage, keyspace, ruleset

TOO_LARGE = errors.line("POLICY value")
MEMBER = errors.line("POLICY member")


def rules(kind: str, trials: dict[Rule, int] | None = None) -> wire.Ruleset:
    """Return one keyspace, k:{id}, of a type: values of up to ten bytes, members of five."""
    space = keyspace(
        "k",
        [b"k:", Segment("id", "text")],
        duties=bytes([Duty.TYPE | Duty.VALUE] * len(ROWS)),
        type_bit=TYPE_BITS[kind],
        max_value_bytes=10,
        max_member_bytes=5,
        value_error=TOO_LARGE,
        member_error=MEMBER,
        enforced=bytes((trials or {}).get(rule, 100) for rule in Rule),
    )
    return ruleset(keyspaces=(space,))


def answered(ruling: wire.Ruleset, command: str) -> bytes:
    """Return what a client is told at once; nothing for a command that is let through."""
    client = Stage(ruling).client()
    request = client.receive_data(wire.pack([word.encode() for word in command.split()]), 1.0)
    assert request is None
    return client.data_to_send()


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("hash", "GET k:1"), ("hash", "SET k:1 v"), ("json", "HGET k:1 f"), ("set", "ZADD k:1 1 m"),
        ("zset", "SUNIONSTORE k:1 k:2"), ("list", "XADD k:1 * f v"), ("stream", "LPUSH k:1 v"),
    ],
)  # fmt: skip
def test_a_command_of_another_type_is_refused(kind: str, command: str) -> None:
    """What a key's type forbids is refused in Redis' words before a byte leaves."""
    assert answered(rules(kind), command) == errors.DATA_PLANE.wrong_type


def two_types() -> wire.Ruleset:
    """Return two keyspaces of one type each, z:{id} and l:{id}, and u:{id} without a type."""
    return ruleset(
        keyspaces=[
            keyspace(
                name,
                [f"{name}:".encode(), Segment("id", "text")],
                duties=bytes([Duty.TYPE] * len(ROWS)),
                **({"type_bit": TYPE_BITS[kind]} if kind else {}),
            )
            for name, kind in (("z", "zset"), ("l", "list"), ("u", None))
        ]
    )


@pytest.mark.parametrize(
    ("command", "passes"),
    [
        ("RENAME l:{1} z:{1}", False), ("RENAMENX z:{1} l:{1}", False),
        ("RENAME l:{1} l:{1}2", True), ("RENAME u:{1} z:{1}", True), ("RENAME l:{1} u:{1}", True),
        ("RENAME {1} z:{1}", True), ("RENAME l:{1} {1}", True),
    ],
)  # fmt: skip
def test_no_key_is_carried_to_another_type(command: str, passes: bool) -> None:
    """Between two keyspaces that say their types nothing is renamed unless they are the same."""
    assert answered(two_types(), command) == (b"" if passes else errors.DATA_PLANE.wrong_type)


def test_a_handler_is_told_of_the_type_of_each_place() -> None:
    """SORT reads a sorted set and stores a list; COPY leaves a key's type as it is."""
    client = Stage(two_types()).client()
    sort, copy = INDEX[b"sort"], INDEX[b"copy"]
    wrong = errors.DATA_PLANE.wrong_type
    assert isinstance(client.locate(b"z:1", sort, place=0), wire.Location)
    assert client.locate(b"z:1", sort, place=1) == wrong
    assert isinstance(client.locate(b"l:1", sort, place=1), wire.Location)
    assert client.locate(b"z:1", copy, place=1, source=1) == wrong
    assert isinstance(client.locate(b"z:1", copy, place=1, source=0), wire.Location)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("hash", "DEL k:1"), ("hash", "HSET k:1 f v"), ("json", "SET k:1 {}"),
        ("counter", "INCR k:1"), ("zset", "GEOPOS k:1 m"), ("string", "PFADD k:1 m"),
        ("set", "TYPE k:1"), ("zset", "EXPIRE k:1 5"), ("zset", "ZUNIONSTORE k:1 2 k:1 k:1"),
    ],
)  # fmt: skip
def test_a_command_of_the_type_or_of_any_passes(kind: str, command: str) -> None:
    """Commands of the key's type pass, and those that work on keys of every type."""
    assert answered(rules(kind), command) == b""


@pytest.mark.parametrize(
    "command",
    [
        "SET k:1 {long}", "SETEX k:1 5 {long}", "SETNX k:1 {long}", "APPEND k:1 {long}",
        "MSET k:1 v k:1 {long}", "GETSET k:1 {long}", "PSETEX k:1 5 {long}",
        "SETRANGE k:1 0 {long}",
    ],
)  # fmt: skip
def test_a_long_value_is_refused(command: str) -> None:
    """Each command that carries a value is held to the limit, wherever the value stands."""
    ruling = rules("string")
    assert answered(ruling, command.format(long="x" * 10)) == b""
    assert answered(ruling, command.format(long="x" * 11)) == TOO_LARGE


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("hash", "HSET k:1 f v {long} v"), ("hash", "HSETNX k:1 {long} v"),
        ("list", "LPUSH k:1 a {long}"), ("list", "LSET k:1 0 {long}"),
        ("set", "SADD k:1 a b {long}"),
        ("zset", "ZADD k:1 NX CH 1 a 2 {long}"), ("zset", "GEOADD k:1 XX 1 2 a 3 4 {long}"),
        ("zset", "ZINCRBY k:1 1 {long}"),
    ],
)  # fmt: skip
def test_a_long_member_is_refused(kind: str, command: str) -> None:
    """Members, fields and elements have a limit of their own, behind options too."""
    ruling = rules(kind)
    assert answered(ruling, command.format(long="x" * 5)) == b""
    assert answered(ruling, command.format(long="x" * 6)) == MEMBER


@pytest.mark.parametrize(
    "command",
    [
        "HSET k:1 f v g {long}", "XADD k:1 * a v b {long}",
        "XADD k:1 MAXLEN ~ 1000 LIMIT 5 * f {long}",
        "XADD k:1 NOMKSTREAM MINID = 1 1-1 f {long}", "HSETEX k:1 EX 5 FIELDS 2 f v g {long}",
    ],
)  # fmt: skip
def test_values_of_fields_are_held_to_the_limit(command: str) -> None:
    """Of fields and values only the values count, behind the options of XADD and HSETEX."""
    ruling = rules("stream" if command.startswith("XADD") else "hash")
    assert answered(ruling, command.format(long="x" * 10)) == b""
    assert answered(ruling, command.format(long="x" * 11)) == TOO_LARGE


def breaches(ruling: wire.Ruleset) -> Counter[tuple[str, str]]:
    return Counter({
        (RULES[rule], wire.OUTCOMES[outcome]): count
        for _, rule, outcome, count in ruling.breaches.requests()
    })  # fmt: skip


def test_a_rule_on_trial_counts_and_lets_through() -> None:
    """A rule that is not enforced counts what it would have refused, and refuses nothing."""
    ruling = rules("string", {Rule.VALUE: 0, Rule.TYPE: 0})
    assert answered(ruling, "SET k:1 " + "x" * 11) == b""
    assert answered(ruling, "HGET k:1 f") == b""
    assert breaches(ruling) == {("value", "ok"): 1, ("type", "ok"): 1}


def test_a_share_is_refused() -> None:
    """A rule that is enforced for a part refuses about that part."""
    ruling = rules("string", {Rule.VALUE: 20})
    stage = Stage(ruling)
    clients = [stage.client() for _ in range(2000)]
    for client in clients:
        client.receive_data(wire.pack([b"SET", b"k:1", b"x" * 11]), 1.0)
    counted = breaches(ruling)
    assert counted["value", "refused"] + counted["value", "ok"] == 2000
    assert 300 < counted["value", "refused"] < 500


def test_a_long_key_on_trial_passes() -> None:
    """The key grammar may be tried out as any other rule."""
    assert b"key" in answered(rules("string"), "GET k:" + "x" * 600)
    assert answered(rules("string", {Rule.KEY_GRAMMAR: 0}), "GET k:" + "x" * 600) == b""


def test_keys_of_no_keyspace_have_no_limits() -> None:
    """The limits are those of a keyspace: other keys are as in Redis."""
    assert answered(rules("hash"), "SET other " + "x" * 100) == b""
