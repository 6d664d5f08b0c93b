"""What goes with the connection that wrote it, on real clusters with the shipped policies."""

from collections.abc import AsyncIterator

import pytest

from proxy.embedded.node import Node
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters, StartCluster, StartProxy
from tests.integration.rig import Caller, wait_for
from tests.policy.rulebook import SHIPPED

pytestmark = pytest.mark.integration

SET = "event_subscribers:e1:seat_updates"


def value_of(connection: str) -> str:
    return f'[{{"connection_id":"{connection}"}}]'


@pytest.fixture
async def sidecar(empty_clusters: Clusters, proxy_process: StartProxy) -> Sidecar:
    return await proxy_process(policies=str(SHIPPED))


@pytest.fixture
async def callers(sidecar: Sidecar) -> AsyncIterator[tuple[Caller, Caller]]:
    one, other = [await Caller.open(sidecar.port) for _ in range(2)]
    yield one, other
    for caller in (one, other):
        caller.close()


async def test_what_a_dead_connection_wrote_goes(callers: tuple[Caller, Caller]) -> None:
    """Of two clients one is cut off: its keys and members go, and nothing of the other's."""
    one, other = callers
    for name, caller in (("one", one), ("other", other)):
        assert await caller.call("SET", f"ws_connections:{name}", value_of(name)) == b"OK"
        assert await caller.call("SETEX", f"ws_connections:{name}2", 60, value_of(name)) == b"OK"
        assert await caller.call("SADD", SET, f"conn_{name}", f"conn_{name}2") == 2
        assert await caller.call("RPUSH", f"notifications:{name}", '{"id":"n"}') == 1
    one.close()
    await wait_for(lambda: gone(other, "ws_connections:one", "ws_connections:one2"), "the end")
    await wait_for(lambda: members_are(other, {b"conn_other", b"conn_other2"}), "the end")
    kept = ("ws_connections:other", "ws_connections:other2", "notifications:one")
    assert [await other.call("EXISTS", key) for key in kept] == [1, 1, 1]
    assert 3500 < await other.call("TTL", SET) <= 3600


async def test_who_wrote_it_last_keeps_it(callers: tuple[Caller, Caller]) -> None:
    """What another client has written since stays: another value, or the same once more."""
    one, other = callers
    for key in ("changed", "again", "last"):
        await one.call("SET", f"ws_connections:{key}", value_of("one"))
    await one.call("SADD", SET, "conn_again", "conn_last")
    await other.call("SET", "ws_connections:changed", value_of("other"))
    await other.call("SET", "ws_connections:again", value_of("one"))
    assert await other.call("SADD", SET, "conn_again") == 0
    one.close()
    await wait_for(lambda: gone(other, "ws_connections:last"), "the end")
    await wait_for(lambda: members_are(other, {b"conn_again"}), "the end")
    assert await other.call("GET", "ws_connections:changed") == value_of("other").encode()
    assert await other.call("GET", "ws_connections:again") == value_of("one").encode()


async def test_what_was_never_written_or_is_taken_away_is_no_concern(
    callers: tuple[Caller, Caller],
) -> None:
    """SET NX that failed, and what the client removed itself and others wrote since, stay.

    So does what a transaction wrote.
    """
    one, other = callers
    await other.call("SET", "ws_connections:held", value_of("x"))
    assert await one.call("SET", "ws_connections:held", value_of("x"), "NX") is None
    await one.call("SADD", SET, "conn_a", "conn_b")
    assert await one.call("SREM", SET, "conn_a") == 1
    assert await one.call("MULTI") == b"OK"
    await one.call("SADD", SET, "conn_a")
    assert await one.call("EXEC") == [1]
    one.close()
    await wait_for(lambda: members_are(other, {b"conn_a"}), "the end")
    assert await other.call("EXISTS", "ws_connections:held") == 1


@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_was_under_way_goes_too(callers: tuple[Caller, Caller], protocol: int) -> None:
    """A thousand writes of which no reply was read are gone soon after their client."""
    one, other = callers
    await one.call("HELLO", protocol)
    await one.pipeline([("SADD", f"event_subscribers:e{n}", "u") for n in range(1000)])
    one.writer.write(
        b"".join(
            b"*3\r\n$4\r\nSADD\r\n$%d\r\nevent_subscribers:f%d\r\n$1\r\nu\r\n"
            % (len(b"event_subscribers:f%d" % n), n)
            for n in range(100)
        )
    )
    await wait_for(lambda: there(other, "event_subscribers:f99"), "the last write")
    one.close()
    names = [f"event_subscribers:{kind}{n}" for kind, most in (("e", 1000), ("f", 100))
             for n in range(most)]  # fmt: skip
    await wait_for(lambda: gone(other, *names), "the end")


async def test_a_node_that_is_down_is_asked_again(
    start_cluster: StartCluster, proxy_process: StartProxy, empty_clusters: Clusters
) -> None:
    """What is on a node that dies before the client is taken from the replica that follows it."""
    cluster: Cluster = await start_cluster()
    sidecar = await proxy_process(
        {"locks": cluster, "cache": empty_clusters.cache}, policies=str(SHIPPED)
    )
    one, other = [await Caller.open(sidecar.port) for _ in range(2)]
    names = [f"event_subscribers:e{n}" for n in range(30)]
    await one.pipeline([("SADD", name, "u") for name in names])
    node = cluster.primaries[0]
    (replica,) = await cluster.replicas_of(node)
    held = await node.ask("DBSIZE")
    assert held > 0
    await wait_for(lambda: holds(replica, held), "replication")
    node.kill()
    one.close()
    await wait_for(lambda: gone(other, *names), "the end", 30.0)


async def holds(node: Node, keys: int) -> bool:
    return bool(await node.ask("DBSIZE") == keys)


async def there(caller: Caller, key: str) -> bool:
    return bool(await caller.call("EXISTS", key) == 1)


async def gone(caller: Caller, *keys: str) -> bool:
    return bool(await caller.call("EXISTS", *keys) == 0)


async def members_are(caller: Caller, expected: set[bytes]) -> bool:
    found = await caller.call("SMEMBERS", SET)
    return isinstance(found, list | set) and set(found) == expected
