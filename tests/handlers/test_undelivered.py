"""What was taken for a client that had gone: counted, and put back where a policy says so."""

import logging
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from proxy.handlers.undelivered import UNDO
from proxy.policy import compiler
from tests.conftest import Clusters, StartProxy
from tests.fakenode import FakeConnection
from tests.front import Front
from tests.handlers.test_blocked import blocked, house, waiting_on
from tests.integration.rig import Caller, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

ELEMENT = b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"

POLICY = """
keyspaces:
  jobs:
    key: jobs:{name}
    cluster: cache
    hash_tag: name
    undelivered: push_back
    ttl: {default: 600s}
"""


def counts(page: str) -> dict[str, int]:
    """Return the elements that were not delivered, by what became of them."""
    head = 'sidecache_undelivered_elements_total{outcome="'
    lines = (line.removeprefix(head) for line in page.splitlines() if line.startswith(head))
    pairs = (line.split('"} ') for line in lines)
    return {outcome: int(float(count)) for outcome, count in pairs if float(count)}


async def settled(made: Front) -> dict[str, int]:
    await wait_for(lambda: not made.server.tasks, "the end of the wait")
    return counts(made.stand.page())


async def test_an_element_for_nobody_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """What a node took before it heard that nobody waits is counted, and logged without content."""
    async with house() as made:

        def late(connection: FakeConnection, words: list[bytes]) -> bytes:
            waiting_on(made).put(ELEMENT)
            return b":0\r\n"

        made.node.answers["CLIENT UNBLOCK"] = late
        caller = await blocked(made)
        with caplog.at_level(logging.WARNING):
            caller.close()
            await wait_for(lambda: not made.server.sessions, "the end of the client")
            assert await settled(made) == {"dropped": 1}
        assert "elements_undelivered" in caplog.text
        assert not made.node.received("LPUSH")


async def test_a_client_that_has_gone_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that comes in the turn in which the client goes is not taken for delivered."""
    monkeypatch.setattr("proxy.handlers.blocked.MOMENT", 0.0)
    async with house() as made:
        caller = await blocked(made)
        caller.writer.transport.abort()
        # In one turn: the proxy hears of the element first, and the system knows of the client.
        waiting_on(made).put(ELEMENT)
        assert await settled(made) == {"dropped": 1}


async def test_an_unknown_end_is_counted() -> None:
    """Where the node is lost as well, nobody knows whether it took something."""
    async with house() as made:

        def die(connection: FakeConnection, words: list[bytes]) -> bytes:
            waiting_on(made).close("reset")
            return b":0\r\n"

        made.node.answers["CLIENT UNBLOCK"] = die
        (await blocked(made)).close()
        await wait_for(lambda: not made.server.sessions, "the end of the client")
        assert await settled(made) == {"unknown": 1}


async def test_a_wait_that_took_nothing_counts_nothing() -> None:
    """A client that goes while its list is empty is no loss."""
    async with house() as made:
        (await blocked(made)).close()
        await wait_for(lambda: not made.server.sessions, "the end of the client")
        assert await settled(made) == {}


@pytest.mark.parametrize(
    ("words", "value", "undone"),
    [
        (b"BLPOP q 0", [b"q", b"x"], b"LPUSH q x"),
        (b"BRPOP q 0", [b"q", b"x"], b"RPUSH q x"),
        (b"BLMPOP 0 1 q left COUNT 2", [b"q", [b"a", b"b"]], b"LPUSH q b a"),
        (b"BLMPOP 0 2 p q RIGHT", [b"q", [b"b"]], b"RPUSH q b"),
        (b"BZPOPMIN q 0", [b"q", b"m", b"1.5"], b"ZADD q NX 1.5 m"),
        (b"BZPOPMAX q 0", [b"q", b"m", 1.5], b"ZADD q NX 1.5 m"),
        (b"BZMPOP 0 1 q MIN", [b"q", [[b"m", 1.0], [b"n", float("inf")]]],
         b"ZADD q NX 1.0 m inf n"),
    ],
)  # fmt: skip
def test_how_a_pop_is_undone(words: bytes, value: object, undone: bytes) -> None:
    """Elements go back to the end that they came from, in their order, and with their scores."""
    name = words.split()[0].lower()
    assert UNDO[name](words.split(), value) == undone.split()


async def vanish(sidecar: Sidecar, key: str, rounds: int) -> tuple[int, int]:
    """Let clients go while an element comes; return how many were pushed and how many taken."""
    pusher, taken = await Caller.open(sidecar.port), 0
    for number in range(rounds):
        caller = await Caller.open(sidecar.port)
        caller.writer.write(pack("BLPOP", key, "0"))
        await pusher.call("PING")
        pusher.writer.write(pack("RPUSH", key, number))
        # The end of the stream says that the client goes; what comes until then, it has got.
        caller.writer.write_eof()
        taken += len(await caller.rest())
        await pusher.next()
        caller.close()
    pusher.close()
    return rounds, taken


@pytest.mark.parametrize("policy", ["drop", "push_back"])
async def test_nothing_is_lost_silently(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path, policy: str
) -> None:
    """Every element is delivered, still there, or counted as gone; with push_back none is gone."""
    await account(empty_clusters, proxy_process, tmp_path, policy, rounds=100)


async def account(
    clusters: Clusters, proxy_process: StartProxy, folder: Path, policy: str, rounds: int
) -> None:
    (folder / "jobs.yaml").write_text(POLICY.replace("push_back", policy))
    sidecar = await proxy_process(policies=str(folder))
    pushed, taken = await vanish(sidecar, "jobs:a", rounds)

    async def idle() -> bool:
        return 'sidecache_pins{use="blocked"} 0.0\n' in (await sidecar.get("/metrics"))[1]

    await wait_for(idle, "the end of all waits")
    caller = await Caller.open(sidecar.port)
    left, lives = await caller.pipeline([["LLEN", "jobs:a"], ["TTL", "jobs:a"]])
    # What is put back may make the key anew, which is a way to a key without a time.
    assert lives > 500 if left else lives == -2
    caller.close()
    counted = counts((await sidecar.get("/metrics"))[1])
    print(f"\n{policy}: {pushed} pushed, {taken} delivered, {left} left, {counted}")
    assert pushed == taken + left + counted.get("dropped", 0)
    assert "unknown" not in counted
    if policy == "push_back":
        assert "dropped" not in counted


def test_the_policy_is_read(tmp_path: Path) -> None:
    """`undelivered` of a keyspace reaches the tables that handlers ask."""
    (tmp_path / "jobs.yaml").write_text(POLICY)
    ruleset, _ = compiler.from_files(tmp_path, ("cache",))
    assert [space.push_back for space in ruleset.keyspaces] == [True]
