"""Bounds on arguments: what asks for too much is refused, and what is no number is the node's."""

from pathlib import Path

import pytest

from proxy import wire
from proxy.commands import INDEX, ROWS
from proxy.embedded.programs import Program
from proxy.policy import bounds
from proxy.policy.blocks import BOUNDS, CommandRights
from proxy.wire import rules
from tests.handlers.servers import Client, running
from tests.wire.stage import Stage, keyspace, role, ruleset

# Every bound is ten here but for patterns, of which there are more stars than that in no test.
LIMITS = {**dict.fromkeys(BOUNDS, 10), "SCAN MATCH": 12, "MATCH stars": 2}

TAKEN = """
SCAN 0|SCAN 0 COUNT 10|SCAN 0 MATCH a*b* COUNT 10 TYPE string|SCAN 0 MATCH COUNT|SCAN 0 COUNT
SCAN 0 TYPE COUNT MATCH x|SCAN 999999 COUNT 1|SCAN 0 COUNT -5|SCAN 0 COUNT 0|SCAN 0 COUNT 010
HSCAN k 0 COUNT 10 NOVALUES|SSCAN k 99 MATCH 123456789012|ZSCAN k 0 count 10|HSCAN k 0 NOVALUES
KEYS 12345678*0*2|KEYS *
LRANGE k 0 9|LRANGE k 5 14|LRANGE k -10 -1|LRANGE k -20 -11|LRANGE k 5 4|LRANGE k -1 -5
LRANGE k -10 1000|LRANGE k -1000 9|LRANGE k a 99|LRANGE k 0 1x|LRANGE k +0 99|LRANGE k 0 099
LRANGE k 9223372036854775807 9223372036854775807|LRANGE k -0 99|LRANGE k "" 99
ZRANGE k 0 9|ZRANGE k 0 9 WITHSCORES|ZRANGE k -10 -1 REV|ZRANGE k (1 99 BYSCORE LIMIT 0 10
ZRANGE k [a [z BYLEX LIMIT 90 10 REV|ZRANGE k 0 99 BYSCORE LIMIT 0 x|ZRANGESTORE {k}d k 0 9
ZREVRANGE k 0 9|ZRANGEBYSCORE k -inf +inf LIMIT 0 10|ZREVRANGEBYLEX k + - limit 5 10
ZRANGEBYSCORE k 0 99 WITHSCORES LIMIT 0 10|ZRANGESTORE {k}d k 0 99 BYSCORE LIMIT 0 10
SETRANGE k 10 x|SETRANGE k -1 x|SETRANGE k a x|SETBIT k 10 1|SETBIT k 0 1
BITFIELD k|BITFIELD k SET u1 10 1|BITFIELD k GET u8 3
BITFIELD k GET u4 #1 OVERFLOW FAIL INCRBY u1 #10 1
BITFIELD k SET x 99 1|BITFIELD k SET u99 99 1|BITFIELD k GET u8|BITFIELD k OVERFLOW GET SET u1 0 1
BITFIELD_RO k GET u8 0
SRANDMEMBER k|SRANDMEMBER k 10|SRANDMEMBER k -10|HRANDFIELD k -10 WITHVALUES|ZRANDMEMBER k 10
LPOS k v|LPOS k v COUNT 10|LPOS k v RANK 99 COUNT 1 MAXLEN 0|LPOS k COUNT|LPOS k v RANK COUNT
LPOS k v COUNT -1|GET k|MGET k k|ZCARD k|GETRANGE k 0 99|GETBIT k 99
"""

REFUSED = """
SCAN 0 COUNT 11|SCAN 0 COUNT 99999999999999999999999|SCAN 0 MATCH x COUNT 11|SCAN 0 COUNT 1 COUNT 11
SCAN 0 TYPE COUNT COUNT 11|SCAN 0 MATCH 1234567890123|SCAN 0 MATCH ***|scan 0 match a*b*c*
HSCAN k 0 COUNT 11|HSCAN k 0 NOVALUES COUNT 11|SSCAN k 0 count 11|ZSCAN k 0 MATCH ***
KEYS 1234567890123|KEYS ***|SCAN 0 COUNT 9223372036854775808
LRANGE k 0 10|LRANGE k 0 -1|LRANGE k 5 15|LRANGE k -11 -1|LRANGE k 0 -1000|LRANGE k -11 10
LRANGE k 0 9223372036854775808|LRANGE k -99999999999999999999 9|LRANGE k 0 9223372036854775807
LRANGE k -9223372036854775807 -1
ZRANGE k 0 10|ZRANGE k 0 -1 WITHSCORES|ZRANGE k 0 9 BYSCORE|ZRANGE k [a [b BYLEX REV
ZRANGE k 0 9 BYSCORE LIMIT 0 11|ZRANGE k 0 9 BYSCORE LIMIT 0 -1|ZRANGE k 0 9 LIMIT 0 11 BYLEX
ZRANGE k 0 9 BYSCORE LIMIT 0 1 LIMIT 0 11
ZRANGESTORE {k}d k 0 10|ZREVRANGE k 0 10|ZRANGEBYSCORE k 0 1|ZREVRANGEBYSCORE k 1 0 WITHSCORES
ZRANGEBYLEX k - + LIMIT 0 11|ZREVRANGEBYLEX k + - LIMIT 0 -1|ZRANGESTORE {k}d k 0 9 BYSCORE
SETRANGE k 11 x|SETRANGE k 536870911 x|SETBIT k 4294967295 1|SETBIT k 99999999999999999999 1
BITFIELD k SET u1 11 1|BITFIELD k SET u8 4 1|BITFIELD k INCRBY u8 #1 1
BITFIELD k GET u64 #4294967295
BITFIELD k SET u1 0 1 SET u1 11 1|BITFIELD k OVERFLOW SAT INCRBY i8 11 1
BITFIELD k SET u64 #9223372036854775807 1|BITFIELD k SET u8 9223372036854775807 1
BITFIELD_RO k GET u8 8
SRANDMEMBER k 11|SRANDMEMBER k -20000000|HRANDFIELD k -11|ZRANDMEMBER k -11 WITHSCORES
LPOS k v COUNT 0|LPOS k v COUNT 11|LPOS k v RANK 1 COUNT 0 MAXLEN 5
"""


def lines(text: str) -> list[str]:
    return [line for line in text.replace("\n", "|").split("|") if line]


def words(line: str) -> list[bytes]:
    return [b"" if word == '""' else word.encode() for word in line.split(" ")]


BOUNDED = bounds.of(CommandRights(bounds=LIMITS), "role 'default'", INDEX)


@pytest.fixture(scope="module")
def by_role() -> wire.Ruleset:
    return ruleset(roles=(role()._replace(bounds=BOUNDED),))


@pytest.fixture(scope="module")
def by_keyspace() -> wire.Ruleset:
    concerned = {bound.command for bound in BOUNDED}
    duties = bytes(rules.Duty.BOUNDS * (index in concerned) for index in range(len(ROWS)))
    space = keyspace("all", [rules.Segment("k", "text")], duties=duties, bounds=BOUNDED)
    return ruleset(keyspaces=(space,))


def refusal(own: wire.Ruleset, command: list[bytes]) -> bytes:
    """Return the line with which a command is refused for an argument, or nothing."""
    side = Stage(own).client()
    side.receive_data(wire.pack(command), 0.0)
    line = side.data_to_send()
    return line if line.startswith(b"-POLICY argument") else b""


@pytest.mark.parametrize("line", lines(TAKEN))
def test_taken(by_role: wire.Ruleset, by_keyspace: wire.Ruleset, line: str) -> None:
    """What stays within a bound passes, and what is no number or no option is left to the node."""
    assert not refusal(by_role, words(line))
    assert not refusal(by_keyspace, words(line))


@pytest.mark.parametrize("line", lines(REFUSED))
def test_refused(by_role: wire.Ruleset, by_keyspace: wire.Ruleset, line: str) -> None:
    """What may ask for more than a bound is refused in words that name the bound and its limit."""
    command = words(line)
    reply = refusal(by_role, command)
    assert reply.startswith(b"-POLICY argument refused by role 'default': ")
    assert b" is at most 1" in reply or b" is at most 2" in reply
    if command[0].upper() not in (b"SCAN", b"KEYS"):
        assert refusal(by_keyspace, command) == reply


def test_nothing_is_sent(by_role: wire.Ruleset) -> None:
    """A refused command does not reach the node, in a transaction neither."""
    stage = Stage(by_role)
    stage.upstreams[0].available = True
    side = stage.client()
    side.receive_data(wire.pack([b"LRANGE", b"k", b"0", b"-1"]), 0.0)
    side.capture = True
    assert side.receive_data(wire.pack([b"LRANGE", b"k", b"0", b"-1"]), 0.0) is None
    assert side.spoiled
    assert stage.upstreams[0].data_to_send(0.0) == b""


def test_trials_are_counted(by_keyspace: wire.Ruleset) -> None:
    """A bound of a keyspace in observe lets pass and is counted."""
    enforced = bytes(100 * (rule is not rules.Rule.BOUNDS) for rule in rules.Rule)
    own = ruleset(keyspaces=(by_keyspace.keyspaces[0]._replace(enforced=enforced),))
    assert not refusal(own, words("LRANGE k 0 -1"))
    assert own.breaches.requests() == [(0, rules.Rule.BOUNDS, wire.OUTCOMES.index("ok"), 1)]


def test_a_bound_of_no_command() -> None:
    """A row that names no command is a mistake of the compiler, found when rules are laid out."""
    wrong = (BOUNDED[0]._replace(command=len(ROWS)),)
    with pytest.raises(ValueError, match="names a command"):
        ruleset(roles=(role()._replace(bounds=wrong),))


# No numbers for us; each in the place of one that would be refused.
ODD = [
    "",
    " 99",
    "99 ",
    "+99",
    "099",
    "-0",
    "-",
    "--99",
    "9 9",
    "0x63",
    "99.0",
    "1e9",
    "٩٩",
    "99\0",
]

PLACES = [
    ["LRANGE", "k", "0", "?"], ["LRANGE", "k", "?", "99"], ["SETRANGE", "k", "?", "x"],
    ["SETBIT", "k", "?", "1"], ["BITFIELD", "k", "SET", "u1", "?", "1"],
    ["BITFIELD", "k", "SET", "u1", "#?", "1"], ["SRANDMEMBER", "k", "?"],
    ["HRANDFIELD", "k", "?"], ["ZRANDMEMBER", "k", "?"], ["LPOS", "k", "v", "COUNT", "?"],
    ["ZRANGE", "k", "0", "?"], ["ZRANGEBYSCORE", "k", "0", "9", "LIMIT", "0", "?"],
    ["SCAN", "0", "COUNT", "?"], ["HSCAN", "h", "0", "COUNT", "?"],
]  # fmt: skip


@pytest.mark.integration
def test_what_is_left_to_the_node_is_refused_there(
    by_role: wire.Ruleset, redis_binary: Program
) -> None:
    """No text that is no number for us is one for a node."""
    if redis_binary.image:
        pytest.skip("a server in a container has no unix socket here")
    with running(Path(redis_binary.path)) as path:
        client = Client(path)
        client.ask(b"HSET", b"h", b"f", b"v")
        for place in PLACES:
            for odd in ODD:
                command = [word.replace("?", odd).encode() for word in place]
                assert not refusal(by_role, command)
                assert client.ask_raw(*command).startswith(b"-"), command
        client.close()


def test_every_bound_is_known() -> None:
    """Each bound that policies may name has commands, and none is bound that does not exist."""
    assert {row for bound in BOUNDED if (row := ROWS[bound.command].name)} <= set(INDEX)
    for name in BOUNDS:
        assert bounds.of(CommandRights(bounds={name: 1}), "x", INDEX), name
