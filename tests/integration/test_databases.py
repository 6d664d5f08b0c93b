"""Numbers of databases choose the cluster of keys that no rule names."""

import asyncio
from pathlib import Path

import pytest
import redis
import redis.asyncio

from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, is_error

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  seat: {key: "seat:{number}", kind: state, cluster: locks}
"""


@pytest.fixture
async def numbered(empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path) -> Sidecar:
    """A proxy whose database 2 is the cluster of locks; 1 is that of 0."""
    (tmp_path / "rules.yaml").write_text(RULES)
    return await proxy_process(
        policies=str(tmp_path / "rules.yaml"),
        databases={1: {"cluster": "cache"}, 2: {"cluster": "locks"}},
    )


async def holders(clusters: Clusters, key: str) -> set[str]:
    """Return the names of the clusters that have a key."""
    named: dict[str, Cluster] = {"locks": clusters.locks, "cache": clusters.cache}
    return {
        name
        for name, cluster in named.items()
        for node in cluster.nodes
        if key in await node.ask("KEYS", "*")
    }


@pytest.mark.parametrize("protocol", [2, 3])
async def test_keys_live_where_the_number_says(
    numbered: Sidecar, clusters: Clusters, protocol: int
) -> None:
    """A pipeline that selects in its middle; keys of a keyspace have one home in every database."""
    caller = await Caller.open(numbered.port)
    lines = ["SET k zero", "SELECT 2", "SET k two", "SET seat:1 s", "GET k", "MSET a 1 b 2 c 3",
             "EVAL return(1) 0", "SELECT 1", "GET k", "GET seat:1", "SELECT 2", "MGET a b c",
             "COPY a a2 DB 0", "HELLO 3", "GET k", "SELECT 3", "GET k", "SELECT 0", "GET k",
             "GET a"]  # fmt: skip
    await caller.call("HELLO", protocol)
    replies = await caller.pipeline([tuple(line.split()) for line in lines])
    assert is_error(replies.pop(15))
    assert is_error(replies.pop(12))
    replies.pop(12)
    assert replies == [
        b"OK", b"OK", b"OK", b"OK", b"two", b"OK", 1, b"OK", b"zero", b"s", b"OK",
        [b"1", b"2", b"3"], b"two", b"two", b"OK", b"zero", None,
    ]  # fmt: skip
    assert await holders(clusters, "a") == await holders(clusters, "seat:1") == {"locks"}
    assert await holders(clusters, "k") == {"locks", "cache"}


async def test_what_tells_the_number(numbered: Sidecar) -> None:
    """CLIENT INFO shows it, RESET forgets it, CONFIG says how many there are."""
    caller = await Caller.open(numbered.port)
    assert await caller.call("CONFIG", "GET", "databases") == [b"databases", b"3"]
    await caller.call("SELECT", 2)
    assert b" db=2 " in await caller.call("CLIENT", "INFO")
    await caller.call("SET", "k", "two")
    assert await caller.call("RESET") == b"RESET"
    assert b" db=0 " in await caller.call("CLIENT", "INFO")
    assert await caller.call("GET", "k") is None


async def test_a_scan_shows_the_keys_of_its_database(numbered: Sidecar) -> None:
    """Those of keyspaces are shown in each; a cursor of one is none in another."""
    caller = await Caller.open(numbered.port)
    lines = ["SET zero 0", "SET seat:1 s", "SELECT 2", *(f"SET two:{n} 2" for n in range(9))]
    await caller.pipeline([tuple(line.split()) for line in lines])
    twos = {b"two:%d" % number for number in range(9)}
    assert set(await caller.call("KEYS", "*")) == twos | {b"seat:1"}
    cursor, _ = await caller.call("SCAN", 0, "COUNT", 1)
    await caller.call("SELECT", 0)
    assert is_error(await caller.call("SCAN", cursor, "COUNT", 1))
    assert set(await caller.call("KEYS", "*")) == {b"zero", b"seat:1"}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_transaction_stays_in_its_database(
    numbered: Sidecar, clusters: Clusters, protocol: int
) -> None:
    """Its keys live where they would outside; to select another one inside is refused."""
    caller = await Caller.open(numbered.port)
    await caller.pipeline([("HELLO", protocol), ("SELECT", 2)])
    words = [("WATCH", "w"), ("MULTI",), ("SET", "w", 1), ("SELECT", 2), ("EXEC",)]
    assert (await caller.pipeline(words))[-1] == [b"OK", b"OK"]
    assert await holders(clusters, "w") == {"locks"}
    refused = await caller.pipeline([("MULTI",), ("SELECT", 1), ("SET", "w", 2), ("EXEC",)])
    assert is_error(refused[1])
    assert is_error(refused[3])
    assert b" db=2 " in await caller.call("CLIENT", "INFO")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_channels_have_no_database(numbered: Sidecar, protocol: int) -> None:
    """As in Redis, a message is heard in every database."""
    listener, caller = await Caller.open(numbered.port), await Caller.open(numbered.port)
    await listener.pipeline([("HELLO", protocol), ("SELECT", 1), ("SUBSCRIBE", "news")])
    await caller.pipeline([("SELECT", 2), ("PUBLISH", "news", "heard")])
    assert (await listener.next())[-1] == b"heard"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py(numbered: Sidecar, clusters: Clusters, protocol: int) -> None:
    """The number comes as db= or at the end of a URL."""
    await asyncio.to_thread(use_redis_py, numbered.port, protocol)
    assert await holders(clusters, "plain") == {"locks"}
    url = f"redis://127.0.0.1:{numbered.port}/1?protocol={protocol}"
    async with redis.asyncio.from_url(url) as client:
        await client.set("looped", "1")
        async with client.pipeline() as pipeline:
            pipeline.get("looped")
            assert await pipeline.execute() == [b"1"]
    assert await holders(clusters, "looped") == {"cache"}


def use_redis_py(port: int, protocol: int) -> None:
    with redis.Redis(port=port, db=2, protocol=protocol) as client:
        client.set("plain", "1")
        assert client.get("plain") == b"1"
    with redis.Redis.from_url(f"redis://127.0.0.1:{port}/2", protocol=protocol) as client:
        assert client.get("plain") == b"1"
    with (
        redis.Redis(port=port, db=7, protocol=protocol) as client,
        pytest.raises(redis.RedisError, match=r"cluster mode|Invalid Database"),
    ):
        client.get("plain")
