"""Leases, fills and invalidations: what nodes are asked, and what scripts do there."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.embedded.node import Node
from proxy.handlers import leases
from proxy.handlers.leases import AWAY, FILL, HELD, LEASE, NONE, THERE, WON
from proxy.handlers.targets import Target, target_of
from proxy.origin.render import Value, fill_arguments, held
from proxy.plans import Plan
from tests.handlers.backed_desk import BackedDesk, plan
from tests.integration.rig import Caller


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan())


@pytest.fixture
def target(table: BackedDesk) -> Target:
    found = target_of(table.server.router.ruleset, b"user:1")
    assert found is not None
    return found


async def test_a_node_says_whose_turn_it_is(table: BackedDesk, target: Target) -> None:
    """One script tells whether to fetch, and an error means that nobody can be asked."""
    for reply, said in {
        b"$3\r\nwon\r\n": WON, b"$4\r\nheld\r\n": HELD, b"$5\r\nthere\r\n": THERE,
        b"$4\r\nnone\r\n": NONE, b"-LOADING\r\n": AWAY, b":1\r\n": AWAY,
    }.items():  # fmt: skip
        task = asyncio.create_task(table.leases.take(target, b"t", 7))
        assert await table.asked() == [[b"lease", *target.keys, b"t", b"3000", b"7"]]
        await table.answer(reply)
        assert await task == said


async def test_a_silent_node_is_away(
    table: BackedDesk, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a node longer than a moment."""
    monkeypatch.setattr(leases, "SECONDS", 0.01)
    assert await table.leases.take(target, b"t", 0) == AWAY
    assert not await table.leases.fill(target, b"t", [b"kept", b"0"])


async def test_what_could_not_be_invalidated_is_owed(
    table: BackedDesk, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalidation that did not arrive is sent again until it did; memory is bounded."""
    monkeypatch.setattr(leases, "ROUND", 0.001)
    table.away()
    await table.leases.void(target)
    await table.leases.void(target)
    assert table.leases.owed == 1
    monkeypatch.setattr(leases, "OWED", 2)
    swept: list[Plan] = []
    table.leases.beyond(swept.append)
    for number in range(5):
        name = b"user:%d" % number
        await table.leases.void(target._replace(key=name, name=name))
    assert table.leases.owed == 2
    # Three were pushed out: all keys of the keyspace go.
    assert swept == [target.plan] * 3
    watch = asyncio.create_task(table.leases.watch())
    for pair in table.nodes:
        for node in pair:
            node.upstream.available = True
    async with asyncio.timeout(5):
        while table.leases.owed:
            await asyncio.sleep(0.001)
            table.settle()
            for number in (0, 1):
                asked = table.node(number).commands()
                table.node(number).answer(*[b":1\r\n"] * len(asked))
    watch.cancel()


async def test_what_is_pushed_out_or_owed_again_in_a_round(
    table: BackedDesk, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ends the loop, and the later of two changes of a key stays owed."""
    monkeypatch.setattr(leases, "OWED", 2)
    began, go_on = asyncio.Event(), asyncio.Event()
    gone = {b"a": True, b"b": False}

    async def void(cluster: int, keys: Sequence[bytes]) -> bool:
        if owing:
            return False
        began.set()
        await go_on.wait()
        return gone[keys[1]]

    monkeypatch.setattr(table.leases, "_void", void)
    owing = True
    first, second, third = (target._replace(key=name, name=name) for name in (b"a", b"b", b"c"))
    await table.leases.void(first)
    await table.leases.void(second)
    owing = False
    round_ = asyncio.create_task(table.leases._repay())
    await began.wait()
    owing = True
    await table.leases.void(first)
    await table.leases.void(third)
    go_on.set()
    await round_
    assert len(table.leases._owed) == 2
    assert b"c" in table.leases._owed


@pytest.fixture
async def node(plain_redis: Node) -> AsyncIterator[Caller]:
    made = await Caller.open(plain_redis.port)
    await made.call("FLUSHALL")
    yield made
    made.close()


KEYS = ("{k}lease", "{k}", "{k}none")


@pytest.mark.integration
async def test_one_of_many_gets_the_lease(node: Caller) -> None:
    """A missing key is fetched by one; one that is there or known to be none by nobody."""

    async def take(token: str, least: int = 0) -> str:
        said = await node.call("EVAL", LEASE.body, 3, *KEYS, token, 1000, least)
        return str(said.decode())

    assert await take("a") == "won"
    assert await take("b") == "held"
    assert 0 < await node.call("PTTL", "{k}lease") <= 1000
    await node.call("SET", "{k}none", "")
    assert await take("c") == "none"
    await node.call("SET", "{k}", "v", "PX", 5000)
    assert await take("d") == "there"
    assert await take("e", 6000) == "none"
    await node.call("PERSIST", "{k}")
    assert await take("f", 6000) == "there"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("value", "question"),
    [
        (Value("string", b"text"), ("GET",)),
        (Value("hash", {b"%d" % n: b"v%d" % n for n in range(3000)}), ("HGETALL",)),
        (Value("list", [b"%d" % n for n in range(3000)]), ("LRANGE", 0, -1)),
        (Value("set", frozenset(b"%d" % n for n in range(3000))), ("SMEMBERS",)),
        (
            Value("zset", [(b"%d" % n, float(n)) for n in range(3000)]),
            ("ZRANGE", 0, -1, "WITHSCORES"),
        ),
    ],
    ids=lambda value: value.type if isinstance(value, Value) else "",
)
async def test_a_fill_replaces_all_there_was(
    node: Caller, value: Value, question: tuple[str | int, ...]
) -> None:
    """A value of any type and size is put in the place of the former one, with its time."""
    await node.call("HSET", "{k}", "former", "field")
    await node.call("SET", "{k}none", "")
    await node.call("SET", "{k}lease", "mine")
    fill = ("EVAL", FILL.body, 3, *KEYS)
    arguments = fill_arguments(value, 5000)
    assert await node.call(*fill, "theirs", *arguments) == 0
    assert await node.call("TYPE", "{k}") == b"hash"
    assert await node.call(*fill, "mine", *arguments) == 1
    assert await node.call("EXISTS", "{k}lease", "{k}none") == 0
    assert 0 < await node.call("PTTL", "{k}") <= 5000
    said = await node.call(question[0], "{k}", *question[1:])
    elements = said if isinstance(said, list) else [said]
    assert held(value.type, elements) == value


@pytest.mark.integration
async def test_a_fill_of_nothing(node: Caller) -> None:
    """No row leaves a marker for a while; a fetch that failed leaves the key as it is."""
    fill = ("EVAL", FILL.body, 3, *KEYS)
    await node.call("MSET", "{k}", "old", "{k}lease", "mine")
    assert await node.call(*fill, "mine", "kept", 0) == 1
    assert await node.call("EXISTS", "{k}", "{k}lease", "{k}none") == 1
    await node.call("SET", "{k}lease", "mine")
    assert await node.call(*fill, "mine", "none", 500) == 1
    assert await node.call("EXISTS", "{k}", "{k}lease") == 0
    assert 0 < await node.call("PTTL", "{k}none") <= 500
    await node.call("SET", "{k}lease", "mine")
    assert await node.call(*fill, "mine", "none", 0) == 1
    assert await node.call("DBSIZE") == 0
