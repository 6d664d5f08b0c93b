"""Replies from a value are those of a node that holds it."""

import pytest

from proxy.embedded.node import Node
from proxy.origin.answers import ANSWERED, answer
from proxy.origin.render import Value
from tests.origin.asking_both import COMMANDS, Both, Dice

HASH = Value("hash", {b"a": b"1", b"b": b"2"})


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [2, 3])
async def test_replies_are_those_of_a_node(plain_redis: Node, protocol: int) -> None:
    """Every command, right or wrong, of every type, on keys that are there or not."""
    dice, both = Dice(20261129), Both(plain_redis.port, protocol)
    try:
        for _ in range(700):
            commands = [dice.command(b"answers") for _ in range(12)]
            both.compare(dice.value(), commands, dice.choice((0, 0, 3_600_000)))
    finally:
        both.close()
    assert not both.differences, "\n".join(both.differences[:10])


def test_all_that_is_answered_is_compared() -> None:
    """Commands with a clock of their own are the only ones that the comparison leaves out."""
    compared = {name.lower() for name in COMMANDS}
    assert compared | {b"expiretime", b"pexpiretime"} == ANSWERED


def test_what_needs_a_node_is_not_answered() -> None:
    """Nobody guesses: None leaves it to the caller to say so."""
    for words in ([b"HSCAN", b"k", b"0"], [b"SET", b"k", b"v"], [b"DUMP", b"k"], [b"SORT", b"k"]):
        assert answer(HASH, words, 2) is None


def test_times() -> None:
    """What is left is in milliseconds; TTL rounds; a key without a time says so, no key too."""
    assert answer(HASH, [b"PTTL", b"k"], 2, 1499) == b":1499\r\n"
    assert answer(HASH, [b"TTL", b"k"], 2, 1499) == b":1\r\n"
    assert answer(HASH, [b"TTL", b"k"], 2, 1500) == b":2\r\n"
    assert answer(HASH, [b"TTL", b"k"], 2) == b":-1\r\n"
    assert answer(None, [b"PTTL", b"k"], 2, 1500) == b":-2\r\n"
    at = answer(HASH, [b"EXPIRETIME", b"k"], 2, 60_000)
    assert at is not None
    assert 1_700_000_000 < int(at[1:]) < 10_000_000_000


def test_a_key_that_is_named_twice_exists_twice() -> None:
    """EXISTS counts words, as in Redis."""
    assert answer(HASH, [b"EXISTS", b"k", b"k"], 2) == b":2\r\n"
    assert answer(None, [b"EXISTS", b"k", b"k"], 2) == b":0\r\n"


def test_members_that_are_not_there() -> None:
    """An empty map for no hash, null for no field, in the words of each protocol."""
    assert answer(None, [b"HGETALL", b"k"], 2) == b"*0\r\n"
    assert answer(None, [b"HGETALL", b"k"], 3) == b"%0\r\n"
    assert answer(HASH, [b"HMGET", b"k", b"b", b"c"], 3) == b"*2\r\n$1\r\n2\r\n_\r\n"
    assert answer(HASH, [b"GET", b"k"], 2) == (
        b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    )
