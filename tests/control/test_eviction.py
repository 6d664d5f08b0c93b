"""What nodes say they evict is what INFO shows."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.control import eviction
from proxy.control.eviction import Eviction, policy_in
from tests.fakenode import FakeCluster
from tests.integration.rig import wait_for
from tests.upstream.stand import Stand, cluster_config, fake_cluster

pytestmark = pytest.mark.integration


def memory(policy: str) -> bytes:
    text = f"# Memory\r\nused_memory:1\r\nmaxmemory_policy:{policy}\r\n".encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


class Asked:
    """A cluster of three fake nodes whose primaries are asked."""

    def __init__(self, nodes: FakeCluster, stand: Stand) -> None:
        self.nodes = nodes.nodes
        self.stand = stand
        self.eviction = Eviction(stand.pools)

    def answer(self, *answers: bytes) -> None:
        for node, answer in zip(self.nodes, answers, strict=True):
            node.answers["INFO"] = answer

    async def says(self, policy: str) -> None:
        said = self.eviction.said
        await wait_for(lambda: said(self.stand.cluster) == policy, f"it says {policy}")


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    async with fake_cluster(3) as nodes:
        made = Asked(nodes, Stand(cluster_config(nodes.nodes)))
        made.answer(*[memory("noeviction")] * 3)
        await made.stand.start()
        watching = asyncio.create_task(made.eviction.watch())
        yield made
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await made.stand.stop()


async def test_what_all_nodes_say(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown until they have said it; asked once, and again when the answer is old."""
    assert asked.eviction.said(asked.stand.cluster) == "unknown"
    await asked.says("noeviction")
    assert [len(node.received("INFO")) for node in asked.nodes] == [1, 1, 1]
    asked.answer(*[memory("allkeys-lru")] * 3)
    monkeypatch.setattr(eviction, "AGE", 0.0)
    await asked.says("allkeys-lru")


async def test_nodes_that_differ(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that evicts outweighs those that do not; one that says nothing leaves it unknown."""
    await asked.says("noeviction")
    monkeypatch.setattr(eviction, "AGE", 0.0)
    asked.answer(memory("noeviction"), memory("volatile-ttl"), b"-NOPERM no\r\n")
    await asked.says("volatile-ttl")
    asked.answer(memory("noeviction"), memory("noeviction"), b"-NOPERM no\r\n")
    await asked.says("unknown")


@pytest.mark.parametrize("reply", [b"-ERR no\r\n", b"$0\r\n\r\n", memory("\u00e4"), b":1\r\n"])
def test_a_reply_that_does_not_say_it(reply: bytes) -> None:
    """Nothing is made of it."""
    assert policy_in(reply) == "unknown"
