"""Commands that wait, over one scripted node and over real clusters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import errors
from proxy.embedded.sidecar import Sidecar
from proxy.handlers.blocking import _last_id, _number, block_at
from tests.conftest import Clusters, StartProxy
from tests.fakenode import Answer, key_slot
from tests.front import Front, front
from tests.handlers.desk import Desk
from tests.handlers.test_blocked import blocked, waiting_on
from tests.integration.rig import Caller, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

FORCED = b"-UNBLOCKED force unblocked, instance state changed (master -> replica?)\r\n"


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[Front]:
    async with front() as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "BLPOP": Answer(b""), "XREAD": Answer(b"")}
        yield made


async def test_a_wait_goes_on_for_the_time_that_is_left() -> None:
    """A primary that became a replica sends the client to the next with what is left."""
    async with house() as made:
        caller = await made.connect()
        caller.writer.write(pack("BLPOP", "q", "2"))
        await wait_for(lambda: made.node.received("BLPOP"), "the wait")
        waiting_on(made).put(FORCED)
        await wait_for(lambda: len(made.node.received("BLPOP")) == 2, "the second wait")
        first, second = (words[2] for words in made.node.received("BLPOP"))
        assert first == b"2"
        assert 0 < float(second) < 2
        waiting_on(made).put(b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n")
        assert await caller.next() == [b"q", b"x"]


async def test_a_wait_without_end_goes_on_without_end() -> None:
    """A time-out of 0 stays one."""
    async with house() as made:
        caller = await blocked(made)
        waiting_on(made).put(FORCED)
        await wait_for(lambda: len(made.node.received("BLPOP")) == 2, "the second wait")
        assert made.node.received("BLPOP")[1][2] == b"0"
        waiting_on(made).put(b"*-1\r\n")
        assert await caller.next() is None


async def test_a_pop_whose_node_is_lost() -> None:
    """Nobody knows whether it took something, so the client is told that and nothing is sent."""
    async with house() as made:
        caller = await blocked(made)
        waiting_on(made).close("reset")
        assert str(await caller.next()).encode() == errors.UNKNOWN_OUTCOME[1:-2]
        assert len(made.node.received("BLPOP")) == 1


async def test_a_read_whose_node_is_lost() -> None:
    """XREAD takes nothing, so it goes on, and from where `$` was when it came."""
    async with house() as made:
        made.node.answers["XINFO"] = b"*2\r\n$17\r\nlast-generated-id\r\n$3\r\n5-1\r\n"
        caller = await made.connect()
        caller.writer.write(pack("XREAD", "BLOCK", "0", "STREAMS", "s", "$"))
        await wait_for(lambda: made.node.received("XREAD"), "the wait")
        next(c for c in made.node.connections if c.asked(b"XREAD")).close("reset")
        await wait_for(lambda: len(made.node.received("XREAD")) == 2, "the second wait")
        made.node.answers["XINFO"] = b"-ERR asked again\r\n"
        assert [words[-1] for words in made.node.received("XREAD")] == [b"5-1", b"5-1"]
        next(c for c in made.node.connections if c.open and c.asked(b"XREAD")).put(b"*-1\r\n")
        assert await caller.next() is None


async def test_a_read_waits_for_what_was_sent_before() -> None:
    """A write in front of XREAD BLOCK in one pipeline is answered before the node hears of it."""
    async with house() as made:
        made.node.answers["SET"] = Answer(b"+OK\r\n", delay=0.05)
        made.node.answers["XREAD"] = lambda connection, words: (
            b"*-1\r\n" if made.node.received("EXISTS") else b"-ERR too early\r\n"
        )
        caller = await made.connect()
        read = ("XREAD", "BLOCK", "100", "STREAMS", "s", "0")
        assert await caller.pipeline([("SET", "k", "v"), read]) == [b"OK", None]
        assert await caller.pipeline([read]) == [None]
        assert len(made.node.received("EXISTS")) == 1


async def test_a_node_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait with a time-out ends soon behind it, whatever the node does."""
    monkeypatch.setattr("tests.front.TIMEOUT", 0.1)
    async with house() as made:
        caller = await made.connect()
        reply = await caller.call("BLPOP", "q", "0.05")
        assert str(reply).encode() == errors.UNKNOWN_OUTCOME[1:-2]


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (b"XREAD BLOCK 5 STREAMS a 0", 2),
        (b"XREAD BLOCK 5 COUNT 1 block 6 STREAMS a 0", 6),
        (b"XREADGROUP GROUP BLOCK c NOACK STREAMS a >", 0),
        (b"XREADGROUP GROUP g c NOACK BLOCK 1 STREAMS a >", 6),
        (b"XREAD STREAMS BLOCK 0", 0),
    ],
)
def test_where_block_stands(words: bytes, at: int) -> None:
    """As an option, the last one; not as a name of anything."""
    assert block_at(words.split()) == at


def test_timeouts_and_ids() -> None:
    """What a node will refuse is no limit of ours; a stream that does not exist ends at 0-0."""
    assert [_number(text) for text in (b"1.5", b"0", b"x", b"-1", b"inf", b"nan")] == [
        1.5, 0.0, 0.0, 0.0, 0.0, 0.0,
    ]  # fmt: skip
    assert _last_id(b"-ERR no such key\r\n") == b"0-0"
    assert _last_id(b"%1\r\n$17\r\nlast-generated-id\r\n$3\r\n5-1\r\n") == b"5-1"
    assert _last_id(b"-WRONGTYPE x\r\n") is None


# From here on over real clusters.


@contextlib.asynccontextmanager
async def pair(sidecar: Sidecar, protocol: int) -> AsyncIterator[tuple[Caller, Caller]]:
    """Two clients that speak one protocol."""
    callers = [await Caller.open(sidecar.port) for _ in range(2)]
    for caller in callers:
        await caller.call("HELLO", protocol)
    yield callers[0], callers[1]
    for caller in callers:
        caller.close()


async def waits(sidecar: Sidecar, count: int = 1) -> None:
    """Wait until so many clients wait."""

    async def shown() -> bool:
        _, page = await sidecar.get("/metrics")
        return f'sidecache_pins{{use="blocked"}} {count}.0\n' in page

    await wait_for(shown, "the wait")


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    ("command", "feed", "reply"),
    [
        ("BLPOP none q 0", "RPUSH q a b", [b"q", b"a"]),
        ("BRPOP q 0", "RPUSH q a b", [b"q", b"b"]),
        ("BLMOVE q to LEFT RIGHT 0", "RPUSH q a b", b"a"),
        ("BRPOPLPUSH q to 0", "RPUSH q a b", b"b"),
        ("BLMPOP 0 2 none q RIGHT COUNT 5", "RPUSH q a b", [b"q", [b"b", b"a"]]),
        ("BZPOPMIN q 0", "ZADD q 1 a 2 b", [b"q", b"a", 1.0]),
        ("BZPOPMAX q 0", "ZADD q 1 a 2 b", [b"q", b"b", 2.0]),
        ("BZMPOP 0 1 q MIN", "ZADD q 1 a", [b"q", [[b"a", 1.0]]]),
        ("XREAD BLOCK 0 STREAMS q $", "XADD q 1-1 f v", [[b"q", [[b"1-1", [b"f", b"v"]]]]]),
    ],
)
async def test_every_command_waits_for_its_data(
    proxy: Sidecar,
    empty_clusters: Clusters,
    protocol: int,
    command: str,
    feed: str,
    reply: object,
) -> None:
    """Each is answered when another client brings what it waits for."""
    # One slot for the names, whatever they are.
    words = [f"{{t}}{word}" if word in ("q", "to", "none") else word for word in command.split()]
    async with pair(proxy, protocol) as (caller, other):
        caller.writer.write(pack(*words))
        await waits(proxy)
        await other.call(*[f"{{t}}{word}" if word == "q" else word for word in feed.split()])
        assert named(await caller.next()) == reply


def named(value: object) -> object:
    """Return a reply without tags, with scores as numbers and maps as pairs."""
    if isinstance(value, dict):
        return [[named(key), named(part)] for key, part in value.items()]
    if isinstance(value, list):
        return [named(part) for part in value]
    if isinstance(value, bytes):
        return float(value) if value.isdigit() else value.removeprefix(b"{t}")
    return value


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_group_reads(proxy: Sidecar, empty_clusters: Clusters, protocol: int) -> None:
    """XREADGROUP waits too, behind the XGROUP of the same pipeline."""
    async with pair(proxy, protocol) as (caller, other):
        caller.writer.write(
            pack("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
            + pack("XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "s", ">")
        )
        await waits(proxy)
        await other.call("XADD", "s", "1-1", "f", "v")
        assert await caller.next() == b"OK"
        assert named(await caller.next()) == [[b"s", [[b"1-1", [b"f", b"v"]]]]]
        assert (await other.call("XPENDING", "s", "g"))[0] == 1


@pytest.mark.parametrize("protocol", [2, 3])
async def test_same_bytes_as_a_node(
    proxy: Sidecar, empty_clusters: Clusters, protocol: int
) -> None:
    """Time-outs and mistakes are answered in the bytes of a node."""
    commands = [
        "BLPOP q 0.01", "BLMOVE {q}a {q}b LEFT LEFT 0.01", "BRPOPLPUSH {q}a {q}b 0.01",
        "BLMPOP 0.01 1 q LEFT", "BZPOPMIN q 0.01", "BZMPOP 0.01 1 q MIN",
        "XREAD BLOCK 10 STREAMS q $", "BLPOP q x", "BLPOP q -1", "BLPOP a b 0", "BLMPOP 0 0 q LEFT",
        "BLMPOP 0.01 1 q FOO", "XREAD BLOCK x STREAMS q $", "XREAD BLOCK -1 STREAMS q $",
        "XREADGROUP GROUP g c BLOCK 10 STREAMS q >", "BLPOP string 0.01",
        "XREAD BLOCK 10 STREAMS string $", "XREAD BLOCK 10 STREAMS q 0-0x",
    ]  # fmt: skip
    async with pair(proxy, protocol) as (caller, _):
        await caller.call("SET", "string", "x")
        for command in commands:
            words = command.split()
            key = next(word for word in words[1:] if "q" in word or word in ("a", "string"))
            node = await empty_clusters.cache.owner(key_slot(key.encode()))
            direct = await Caller.open(node.port)
            await direct.call("HELLO", protocol)
            expected, got = await direct.call(*words), await caller.call(*words)
            direct.close()
            assert repr(got) == repr(expected), command


async def test_others_do_not_wait(proxy: Sidecar, empty_clusters: Clusters) -> None:
    """A hundred clients that wait leave the shared connections to the rest."""
    crowd = [await Caller.open(proxy.port) for _ in range(100)]
    for caller in crowd:
        caller.writer.write(pack("BLPOP", "q", "0"))
    await waits(proxy, 100)
    other = await Caller.open(proxy.port)
    assert await other.pipeline([("SET", "q2", "v"), ("GET", "q2")]) == [b"OK", b"v"]
    await other.call("RPUSH", "q", *range(100))
    taken = await asyncio.gather(*(caller.next() for caller in crowd))
    assert sorted(int(element) for _, element in taken) == list(range(100))
    await waits(proxy, 0)
    for caller in (other, *crowd):
        caller.close()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_renamed_keys(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path, protocol: int
) -> None:
    """Keys that nodes know by other names come back as the client wrote them, in errors too."""
    (tmp_path / "jobs.yaml").write_text(
        "keyspaces: {jobs: {key: 'jobs:{name}:{kind}', cluster: cache, hash_tag: name}}\n"
    )
    sidecar = await proxy_process(policies=str(tmp_path))
    async with pair(sidecar, protocol) as (caller, other):
        for command, feed, key in (
            ("BLPOP jobs:a:1 jobs:a:2 0", "RPUSH jobs:a:2 x", b"jobs:a:2"),
            ("BLMPOP 0 1 jobs:a:1 LEFT", "RPUSH jobs:a:1 x", b"jobs:a:1"),
            ("BZPOPMIN jobs:a:3 0", "ZADD jobs:a:3 1 x", b"jobs:a:3"),
            ("XREAD BLOCK 0 STREAMS jobs:a:4 $", "XADD jobs:a:4 1-1 f v", b"jobs:a:4"),
        ):
            caller.writer.write(pack(*command.split()))
            await waits(sidecar)
            await other.call(*feed.split())
            found = named(await caller.next())
            assert isinstance(found, list)
            assert key in (found[0], found[0][0])
            await waits(sidecar, 0)
        words = ["XREADGROUP", "GROUP", "g", "c", "BLOCK", "10", "STREAMS", "jobs:a:4", ">"]
        assert "'jobs:a:4'" in str(await caller.call(*words))
        assert str(await caller.call("BLPOP", "jobs:a:1", "jobs:b:1", "0")).startswith("CROSSSLOT")


@pytest.mark.parametrize(
    "line",
    [
        b"XREAD STREAMS a b 0", b"XREADGROUP GROUP g c STREAMS a b 0",
        b"XREAD COUNT 1 BLOCK 0 STREAMS a b 0",
    ],
)  # fmt: skip
async def test_streams_without_an_id_each(line: bytes) -> None:
    """The error has Redis' words, whether the command waits or not."""
    assert Desk().connect().ask(*line.split()) == (
        b"-ERR Unbalanced XREAD list of streams: "
        b"for each stream key an ID or '$' must be specified.\r\n"
    )
