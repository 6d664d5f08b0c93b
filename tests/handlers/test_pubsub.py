"""Pub/sub commands, byte for byte as a real server answers them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.conftest import StartProxy
from tests.front import front
from tests.handlers.servers import PROGRAMS, program_of, running
from tests.integration.rig import Caller, wait_for
from tests.replies import pack
from tests.upstream.listening import push

pytestmark = pytest.mark.integration

# What is said in order on one connection; a `|` is the end of a command.
SEQUENCES = [
    "UNSUBSCRIBE|PUNSUBSCRIBE|SUNSUBSCRIBE|UNSUBSCRIBE x y|PUNSUBSCRIBE p*|SUNSUBSCRIBE s",
    "SUBSCRIBE a b a|PSUBSCRIBE p* a*|SUBSCRIBE c|UNSUBSCRIBE b nobody b|PUNSUBSCRIBE p*"
    "|UNSUBSCRIBE c|UNSUBSCRIBE a|PUNSUBSCRIBE",
    "SSUBSCRIBE {s}1 {s}2|SUBSCRIBE a|SSUBSCRIBE {s}1|SUNSUBSCRIBE {s}1|UNSUBSCRIBE"
    "|SUNSUBSCRIBE {s}2|GET nosuch",
    "SUBSCRIBE a|PING|PING hello|PING a b|PING|GET|NOSUCH a|SUBSCRIBE|PSUBSCRIBE|SSUBSCRIBE"
    "|PUBLISH a",
    "SUBSCRIBE a|RESET|GET nosuch|PSUBSCRIBE p*|RESET|PING",
    "HELLO 3|SUBSCRIBE a|GET nosuch|ECHO x|SUBSCRIBE a b|PSUBSCRIBE p|UNSUBSCRIBE a b|UNSUBSCRIBE"
    "|PUNSUBSCRIBE|PUNSUBSCRIBE",
    "SUBSCRIBE a|UNSUBSCRIBE|GET nosuch|SUBSCRIBE a|QUIT",
    "PUBSUB CHANNELS|PUBSUB NUMSUB|PUBSUB NUMSUB a b|PUBSUB NUMPAT|PUBSUB SHARDCHANNELS|PUBSUB"
    "|PUBSUB SHARDNUMSUB s|PUBSUB CHANNELS a b|PUBSUB SHARDCHANNELS a b|PUBSUB NUMPAT x"
    "|PUBSUB NOSUCH",
    "HELLO 3|SUBSCRIBE only|PUBSUB CHANNELS|PUBSUB CHANNELS o?ly|PUBSUB CHANNELS ONLY"
    "|PUBSUB NUMSUB only x|PSUBSCRIBE p* q*|PUBSUB NUMPAT|SSUBSCRIBE s|PUBSUB SHARDCHANNELS"
    "|PUBSUB SHARDNUMSUB s",
]

# In the subscribers' mode of RESP2 every other command is refused in the same words.
IN_THE_MODE = [
    "GET nosuch", "SET k v", "MGET {a}1 {a}2", "CLIENT ID", "HELLO 3", "AUTH x", "ECHO x", "INFO",
    "PUBLISH a b", "PUBSUB CHANNELS", "SELECT 0", "CONFIG GET x", "COMMAND COUNT", "DEL a",
    "MULTI", "EXEC", "DISCARD", "WATCH a", "UNWATCH",
]  # fmt: skip


@pytest.fixture(autouse=True)
def close_callers() -> Iterator[None]:
    """Close what a test leaves open."""
    yield
    while Caller.opened:
        Caller.opened.pop().close()


@pytest.fixture(scope="module", params=PROGRAMS)
def server(request: pytest.FixtureRequest) -> Iterator[Path]:
    with running(program_of(request)) as path:
        yield path


async def said(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], sequence: str, end: bytes
) -> bytes:
    """Return everything that is answered to a sequence, sent as one pipeline."""
    reader, writer = streams
    commands = [command.split(" ") for command in sequence.split("|")]
    frames = [pack(*(word.encode() for word in words)) for words in commands]
    writer.write(b"".join(frames) + pack(b"PING", end))
    received = b""
    async with asyncio.timeout(10):
        while not received.endswith(end + b"\r\n"):
            more = await reader.read(65536)
            if not more:
                break
            received += more
    writer.transport.abort()
    return received


@pytest.mark.parametrize("sequence", SEQUENCES)
async def test_same_bytes(server: Path, proxy: Sidecar, sequence: str) -> None:
    """Acknowledgements, counts, errors and their order cannot be told from a server's."""
    real = await said(await asyncio.open_unix_connection(server), sequence, b"the end")
    ours = await said(await asyncio.open_connection(proxy.host, proxy.port), sequence, b"the end")
    if sequence.startswith("HELLO"):
        # It tells an id, a version and a mode.
        real, ours = (answers[answers.index(b">") :] for answers in (real, ours))
    assert ours == real


async def test_the_subscribers_mode_refuses_in_the_same_words(server: Path, proxy: Sidecar) -> None:
    """Under RESP2 a subscriber is told what it may send, whatever else it sends."""
    sequence = "|".join(["SUBSCRIBE a", *IN_THE_MODE])
    real = await said(await asyncio.open_unix_connection(server), sequence, b"end")
    ours = await said(await asyncio.open_connection(proxy.host, proxy.port), sequence, b"end")
    assert ours == real


async def test_the_mode_follows_the_protocol(proxy: Sidecar) -> None:
    """HELLO 2 of a subscriber brings the mode, and messages in the new protocol."""
    caller, publisher = await Caller.open(proxy.port), await Caller.open(proxy.port)
    await caller.pipeline([("HELLO", 3), ("SUBSCRIBE", "follow"), ("HELLO", 2)])
    assert "Can't execute 'get'" in str(await caller.call("GET", "k"))
    await publisher.call("PUBLISH", "follow", "x")
    assert await caller.next() == [b"message", b"follow", b"x"]
    assert await caller.call("UNSUBSCRIBE") == [b"unsubscribe", b"follow", 0]
    assert await caller.call("GET", "nosuch") is None


async def test_a_message_never_precedes_its_acknowledgement(proxy: Sidecar) -> None:
    """Under a stream of messages, whoever joins hears its acknowledgement first."""
    publisher = await Caller.open(proxy.port)
    first = await Caller.open(proxy.port)
    await first.call("SUBSCRIBE", "busy")

    async def joins(number: int) -> None:
        caller = await Caller.open(proxy.port)
        await caller.call("HELLO", 2 + number % 2)
        replies = await caller.pipeline([("SUBSCRIBE", "busy"), ("PING", "x")])
        assert replies[0] == [b"subscribe", b"busy", 1]
        caller.close()

    tasks = [asyncio.create_task(joins(number)) for number in range(20)]
    while not all(task.done() for task in tasks):
        await publisher.pipeline([("PUBLISH", "busy", "x")] * 20)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_node_acknowledges_first(protocol: int) -> None:
    """A client is told that it is subscribed when the node has said so, and waits until then."""
    async with front() as house:
        for word in ("SUBSCRIBE", "PSUBSCRIBE"):
            house.node.answers[word] = b""
        caller, other = await house.connect(), await house.connect()
        await caller.call("HELLO", protocol)
        session = min(house.server.sessions.values(), key=lambda session: session.id)
        caller.writer.write(pack(b"SUBSCRIBE", b"a", b"b") + pack(b"GET", b"k"))
        await wait_for(lambda: len(house.node.received("SUBSCRIBE")) == 2, "both channels")
        (link,) = [c for c in house.node.connections if c.asked(b"subscribe")]
        link.put(push(b"subscribe", b"a", 1) + push(b"message", b"a", b"too early"))
        assert await other.call("PING") in (b"PONG", "PONG")
        assert (session.downstream.pending, session.downstream.blocked) == (1, True)
        link.put(push(b"subscribe", b"b", 1))
        assert [await caller.next() for _ in range(2)] == [
            [b"subscribe", b"a", 1], [b"subscribe", b"b", 2],
        ]  # fmt: skip
        # Under RESP2 the command behind is judged in the mode that has begun.
        assert ("Can't execute" in str(await caller.next())) is (protocol == 2)
        link.put(push(b"message", b"a", b"in time"))
        assert await caller.next() == [b"message", b"a", b"in time"]


async def test_nobody_waits_for_a_node_for_ever() -> None:
    """A client that goes while it waits leaves nothing; one that stays is told in time."""
    async with front() as house:
        house.node.answers["SUBSCRIBE"] = b""
        house.stand.pools.broker._subscribers[0].timeout = 0.1
        stays, goes = await house.connect(), await house.connect()
        for caller in (goes, stays):
            caller.writer.write(pack(b"SUBSCRIBE", b"a"))
        await wait_for(lambda: house.node.received("SUBSCRIBE"), "a subscription")
        goes.close()
        assert "CLUSTERDOWN" in str(await stays.next())
        await wait_for(lambda: not house.server.tasks, "the end of waiting")
        assert house.stand.pools.broker.subscriptions == 0


async def test_what_leaves_is_released(proxy: Sidecar) -> None:
    """A client that goes, resets or is killed leaves no subscription behind."""
    watcher = await Caller.open(proxy.port)
    callers = [await Caller.open(proxy.port) for _ in range(3)]
    for caller in callers:
        await caller.call("SUBSCRIBE", "left")
    assert await watcher.call("PUBSUB", "NUMSUB", "left") == [b"left", 3]
    listed = (await watcher.call("CLIENT", "LIST", "TYPE", "pubsub")).decode().splitlines()
    assert (
        len([line for line in listed if " flags=P " in line and " sub=1 psub=0 ssub=0 " in line])
        == 3
    )
    await callers[0].call("RESET")
    assert await watcher.call("PUBSUB", "NUMSUB", "left") == [b"left", 2]
    callers[1].close()
    assert await watcher.call("CLIENT", "KILL", "TYPE", "pubsub") in (1, 2)
    async with asyncio.timeout(10):
        while await watcher.call("PUBSUB", "NUMSUB", "left") != [b"left", 0]:
            await asyncio.sleep(0.001)


async def test_limits(proxy_process: StartProxy) -> None:
    """A client, and all of them together, may be subscribed to so much; names have a length."""
    limits = {"subscriptions": 3, "subscriptions_total": 5}
    sidecar = await proxy_process(limits=limits)
    one, other = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    assert "too many" in str(await one.call("SUBSCRIBE", *"abcd"))
    assert await one.call("SUBSCRIBE", "a", "b") == [b"subscribe", b"a", 1]
    assert await one.next() == [b"subscribe", b"b", 2]
    assert "too many" in str(await one.call("PSUBSCRIBE", "c", "d"))
    await one.call("SUBSCRIBE", "a", "b", "c")
    assert [await one.next() for _ in range(2)] == [
        [b"subscribe", b"b", 2],
        [b"subscribe", b"c", 3],
    ]
    assert "too many" in str(await other.call("PSUBSCRIBE", "a", "b", "c"))
    assert await other.call("PSUBSCRIBE", "a") == [b"psubscribe", b"a", 1]
    assert "too long" in str(await other.call("PSUBSCRIBE", "x" * 70_000))


async def test_publishing_keeps_its_place(proxy: Sidecar) -> None:
    """Published in one pipeline with other commands: replies and messages in order."""
    caller, publisher = await Caller.open(proxy.port), await Caller.open(proxy.port)
    await caller.call("SUBSCRIBE", "place")
    commands = [[("SET", "k", str(n)), ("PUBLISH", "place", n), ("GET", "k")] for n in range(50)]
    replies = await publisher.pipeline([command for three in commands for command in three])
    assert replies[2::3] == [b"%d" % n for n in range(50)]
    assert [(await caller.next())[2] for _ in range(50)] == [b"%d" % n for n in range(50)]
