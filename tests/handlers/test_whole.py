"""lua/upon.lua at a real node; what is put into Redis is shown by test_behind_lacking."""

from collections.abc import AsyncIterator

import pytest

from proxy.embedded.redis import Cluster
from proxy.handlers.in_redis import MOST_WORDS, UPON
from tests.integration.rig import Caller, Word, is_error

pytestmark = pytest.mark.integration

KEYS = ("{k}", "{k}lease", "{k}none")


@pytest.fixture
async def node(cache_cluster: Cluster) -> AsyncIterator[Caller]:
    """A connection to the node that has the slot of k."""
    await cache_cluster.flush()
    for each in cache_cluster.primaries:
        caller = await Caller.open(each.port)
        if not is_error(await caller.call("GET", KEYS[0])):
            yield caller
            caller.close()
            return
        caller.close()


async def upon(node: Caller, *commands: tuple[Word, ...], protocol: int = 2) -> Word:
    words = [word for command in commands for word in (len(command), *command)]
    said: Word = await node.call("EVAL", UPON.body, 3, *KEYS, protocol, 1, -1, *words)
    return said


async def test_nothing_is_carried_out_upon_nothing(node: Caller) -> None:
    """A fetch of it may go on."""
    await node.call("SET", KEYS[1], "token")
    assert str(await upon(node, ("HINCRBY", "{k}", "views", 1))).startswith("ABSENT")
    assert await node.call("EXISTS", *KEYS) == 1


async def test_commands_are_carried_out_in_their_order(node: Caller) -> None:
    """The first one is answered, in Redis' own words; every fetch of the key has ended."""
    await node.call("SET", KEYS[1], "token")
    await node.call("HSET", KEYS[0], "views", 41)
    commands: tuple[tuple[Word, ...], ...] = (
        ("HINCRBY", "{k}", "views", 1), ("PEXPIRE", "{k}", 60_000),
    )  # fmt: skip
    assert await upon(node, *commands) == 42
    assert 0 < await node.call("PTTL", KEYS[0]) <= 60_000
    assert await node.call("EXISTS", *KEYS) == 1
    wrong = str(await upon(node, ("INCR", "{k}")))
    assert wrong == "WRONGTYPE Operation against a key holding the wrong kind of value"
    pairs = [word for number in range(MOST_WORDS // 2 - 1) for word in (f"f{number}", "v")]
    assert await upon(node, ("HSET", "{k}", *pairs)) == MOST_WORDS // 2 - 1


async def test_large_sums_are_told_to_the_last_digit(node: Caller) -> None:
    """As text: Lua's numbers end at 2^53."""
    await node.call("SET", KEYS[0], 2**53 - 1)
    assert await upon(node, ("INCRBY", "{k}", 2)) == b"%d" % (2**53 + 1)
    await node.call("DEL", KEYS[0])
    await node.call("HSET", KEYS[0], "n", -(2**62))
    assert await upon(node, ("HINCRBY", "{k}", "n", -1)) == b"%d" % (-(2**62) - 1)


async def test_marked_replies_are_told_as_they_are(node: Caller) -> None:
    """A double and a set of RESP3 are those that the node itself tells."""
    await node.call("HELLO", 3)
    await node.call("ZADD", KEYS[0], 1, "m")
    for words in (("ZINCRBY", "{k}", 1.5, "m"), ("ZADD", "{k}", "INCR", 1.5, "m")):
        command = tuple(map(str, words))
        said, own = await upon(node, command, protocol=3), await node.call(*command)
        assert (type(said), said) == (type(own), own - 1.5)
    assert await upon(node, ("ZPOPMIN", "{k}"), protocol=3) == [b"m", 7.0]
    await node.call("SADD", KEYS[0], "one")
    assert type(await upon(node, ("SPOP", "{k}", "2"), protocol=3)) is type(
        await node.call("SMEMBERS", KEYS[0])
    )
