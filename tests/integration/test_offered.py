"""The example of the README: a command that is one entry of YAML and one file of Lua.

Policies and script are those of `policies/examples`, in front of real clusters.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.node import Node, NodeOptions
from proxy.embedded.redis import Cluster, Servers, Shape
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.conftest import Clusters, StartCluster, StartProxy
from tests.fakenode import key_slot
from tests.integration.rig import ROOT, Caller, is_error, wait_for

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "policies" / "examples"

ROLES = """
roles:
  reader: {commands: {allow: ["@read", "@connection", MULTI, EXEC]}}
  others: {keys: ["other:{x}"]}
"""

USERS: dict[str, Any] = {
    "default": {"nopass": True},
    "reader": {"password": "pw", "role": "reader"},
    "others": {"password": "pw", "role": "others"},
}

MOST = 50  # items of a cart


def lay_out(folder: Path) -> Path:
    """Put the example's policies and script into a folder, with roles beside them."""
    (folder / "policies").mkdir(parents=True)
    shutil.copy(EXAMPLES / "cart.yaml", folder / "policies")
    shutil.copytree(EXAMPLES / "lua", folder / "lua")
    (folder / "policies" / "roles.yaml").write_text(ROLES)
    return folder


@pytest.fixture(scope="module")
async def sidecar(
    both_clusters: dict[str, Servers], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sidecar]:
    folder = lay_out(tmp_path_factory.mktemp("offered"))
    configuration = configuration_for(both_clusters, policies="policies", users=USERS)
    async with Sidecar(configuration, folder) as sidecar:
        yield sidecar


@pytest.fixture(params=[2, 3])
async def caller(
    request: pytest.FixtureRequest, sidecar: Sidecar, empty_clusters: Clusters
) -> AsyncIterator[Caller]:
    caller = await Caller.open(sidecar.port)
    await caller.call("HELLO", request.param)
    caller.protocol = request.param  # type: ignore[attr-defined]
    yield caller
    caller.close()


def told(caller: Caller, outcome: bytes, quantity: int, items: int) -> Any:
    """Return a reply of the example as its client sees it."""
    pairs = [(b"outcome", outcome), (b"quantity", quantity), (b"items", items)]
    flat = [part for pair in pairs for part in pair]
    return dict(pairs) if caller.protocol == 3 else flat  # type: ignore[attr-defined]


async def test_a_cart_takes_so_many_items(caller: Caller) -> None:
    """Each item is counted, and what is in a full cart may grow, but nothing comes in."""
    for number in range(MOST):
        reply = await caller.call("CART.ADD", "usr_1", f"sku_{number}", 2)
        assert reply == told(caller, b"added", 2, number + 1)
    assert await caller.call("cart.add", "usr_1", "sku_50", 1) == told(caller, b"full", 0, MOST)
    assert await caller.call("Cart.Add", "usr_1", "sku_49", 3) == told(caller, b"added", 5, MOST)
    assert await caller.call("HLEN", "cart:usr_1") == MOST
    assert 0 < await caller.call("TTL", "cart:usr_1") <= 7 * 86400
    assert str(await caller.call("CART.ADD", "usr_1", "sku_1", "x")).startswith("ERR quantity")


async def test_order_in_a_pipeline(caller: Caller) -> None:
    """A pipeline of 200 commands on one cart is answered, and carried out, in its order."""
    commands: list[tuple[str | int, ...]] = []
    replies: list[Any] = []
    for number in range(1, 101):
        commands += [("CART.ADD", "usr_2", "sku", 1), ("HGET", "cart:usr_2", "sku")]
        replies += [told(caller, b"added", number, 1), b"%d" % number]
    assert await caller.pipeline(commands) == replies


async def test_in_a_transaction(caller: Caller) -> None:
    """It runs inside MULTI between its neighbours, and its map is one there as well."""
    await caller.pipeline([("MULTI",), ("CART.ADD", "usr_3", "sku", 4), ("HLEN", "cart:usr_3"),
                           ("CART.ADD", "usr_3", "sku", 1)])  # fmt: skip
    replies = [told(caller, b"added", 4, 1), 1, told(caller, b"added", 5, 1)]
    assert await caller.call("EXEC") == replies


async def test_nodes_that_have_forgotten_it(caller: Caller, clusters: Clusters) -> None:
    """After SCRIPT FLUSH, on the nodes or through the proxy, nobody notices anything."""
    for number in range(1, 21):
        if number % 2:
            for node in clusters.cache.primaries:
                await node.ask("SCRIPT", "FLUSH")
        else:
            assert await caller.call("SCRIPT", "FLUSH") == b"OK"
        pipeline = [("CART.ADD", f"usr_{n}", "sku", 1) for n in range(10)]
        assert await caller.pipeline(pipeline) == [told(caller, b"added", number, 1)] * 10
        for node in clusters.cache.primaries:
            await node.ask("SCRIPT", "FLUSH")
        await caller.pipeline([("MULTI",), ("CART.ADD", "usr_x", "sku", 1)])
        assert await caller.call("EXEC") == [told(caller, b"added", number, 1)]


async def test_who_may_not(caller: Caller) -> None:
    """A role without the command, or without its keys, is refused by whatever way it comes."""
    script = (EXAMPLES / "lua" / "cart_add.lua").read_text()
    ways: list[list[str | int]] = [
        ["CART.ADD"], ["EVAL", script, 1, "cart:u"], ["FCALL", "cart_add", 1, "cart:u"],
        ["FCALL", "CART.ADD", 1, "cart:u"],
    ]  # fmt: skip
    for user in ("reader", "others"):
        await caller.call("AUTH", user, "pw")
        for way in ways:
            assert str(await caller.call(*way, "u", "sku", 1)).startswith("NOPERM")
    await caller.call("AUTH", "others", "pw")
    named = await caller.call("COMMAND", "GETKEYS", "CART.ADD", "u", "sku", 1)
    assert named == [b"cart:u"]
    await caller.call("AUTH", "reader", "pw")
    assert await caller.call("COMMAND", "INFO", "CART.ADD") == [None]
    await caller.call("AUTH", "default", "")
    assert await caller.call("EXISTS", "cart:u") == 0


async def test_its_body_by_other_commands(caller: Caller) -> None:
    """EVAL, EVALSHA and FCALL of it are the command, and answer as it does."""
    script = (EXAMPLES / "lua" / "cart_add.lua").read_text()
    sha = await caller.call("SCRIPT", "LOAD", script)
    for number, way in enumerate((("EVAL", script), ("EVALSHA", sha), ("FCALL", "cart_add")), 1):
        reply = await caller.call(*way, 1, "cart:usr_4", "usr_4", "sku", 1)
        assert reply == told(caller, b"added", number, 1)
        assert str(await caller.call(*way, 1, "cart:usr_5", "usr_4", "sku", 1)).startswith("POLICY")


async def test_reloads_bring_and_take_commands(
    proxy_process: StartProxy, tmp_path: Path, empty_clusters: Clusters
) -> None:
    """A client that stays connected has the commands, and the bodies, of the rules in force."""
    folder = lay_out(tmp_path / "own")
    path, script = folder / "policies" / "cart.yaml", folder / "lua" / "cart_add.lua"
    sidecar = await proxy_process(policies=str(folder / "policies"))
    caller = await Caller.open(sidecar.port)
    text = path.read_text()

    async def reload(answers: Any, *words: str | int) -> None:
        assert sidecar.pid is not None
        os.kill(sidecar.pid, signal.SIGHUP)
        await wait_for(lambda: answered(answers, *words), "the reload")

    async def answered(answers: Any, *words: str | int) -> bool:
        return bool(answers(await caller.call(*words)))

    assert not is_error(await caller.call("CART.ADD", "u", "sku", 1))
    script.write_text("return ARGV[3]")
    await reload(lambda reply: reply == b"7", "CART.ADD", "u", "sku", 7)
    path.write_text(text.replace("CART.ADD", "CART.PUT"))
    await reload(lambda reply: reply == b"8", "CART.PUT", "u", "sku", 8)
    assert str(await caller.call("CART.ADD", "u", "sku", 1)).startswith("ERR unknown command")
    path.write_text(text)
    await reload(lambda reply: reply == b"9", "CART.ADD", "u", "sku", 9)
    caller.close()


async def owner_of(cluster: Cluster, key: str) -> Node:
    slot = key_slot(key.encode())
    for node in cluster.primaries:
        ranges = (await cluster.members())[node.id].ranges
        if any(first <= slot <= last for first, last in ranges):
            return node
    raise LookupError(key)


async def test_its_primary_is_killed(
    start_cluster: StartCluster, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Explicit errors, CLUSTERDOWN once its node is known to be gone, and then the replica.

    What was acknowledged was counted at most once each, and what was refused was not.
    """
    cluster = await start_cluster(NodeOptions(node_timeout=1.0), Shape(3, 3))
    folder = lay_out(tmp_path / "own")
    sidecar = await proxy_process(
        {"locks": cluster, "cache": cluster}, policies=str(folder / "policies")
    )
    caller = await Caller.open(sidecar.port)
    assert not is_error(await caller.call("CART.ADD", "u", "sku", 1))
    node = await owner_of(cluster, "cart:u")
    added, unknown, errors = 1, 0, set()
    node.kill()
    async with asyncio.timeout(30):
        while True:
            reply = await caller.call("CART.ADD", "u", "sku", 1)
            if not is_error(reply):
                break
            word = str(reply).partition(" ")[0]
            errors.add(word)
            unknown += word != "CLUSTERDOWN"
    assert "CLUSTERDOWN" in errors
    assert errors <= {"CLUSTERDOWN", "ERR", "TRYAGAIN"}, errors
    counted = int(await caller.call("HGET", "cart:u", "sku"))
    # A replica may lack what was acknowledged an instant before.
    assert added <= counted <= added + unknown + 1
    caller.close()


LOCK = """
keyspaces:
  seat_lock:
    key: seat_lock:{event}:{seat}
    cluster: locks
    hash_tag: event
    kind: lock
    ttl: {default: 600s}
scripts:
  take:
    name: SEAT.TAKE
    file: take.lua
    keys: ["seat_lock:{event}:{seat}"]
    arguments: [event, seat]
    lock: status
    on_unavailable: origin
  bare: {name: BARE, file: bare.lua, keys: ["seat_lock:{a}:{b}"], arguments: [a, b]}
"""


async def test_a_lock_is_nothing_for_a_script_alone(
    proxy_process: StartProxy, clusters: Clusters, tmp_path: Path, url: str
) -> None:
    """What PostgreSQL decides never runs as a bare script: in a transaction, or without `lock:`."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "lua").mkdir()
    (tmp_path / "policies" / "seats.yaml").write_text(LOCK)
    for name in ("take", "bare"):
        body = f"return redis.call('SET', KEYS[1], '{name}')"
        (tmp_path / "lua" / f"{name}.lua").write_text(body)
    sidecar = await proxy_process(policies=str(tmp_path / "policies"), database={"url": url})
    caller = await Caller.open(sidecar.port)
    for words in (("SEAT.TAKE",), ("FCALL", "seat_take", "1", "seat_lock:e:s"), ("BARE",)):
        assert await caller.call("MULTI") == b"OK"
        assert is_error(await caller.call(*words, "e", "s"))
        assert str(await caller.call("EXEC")).startswith("EXECABORT")
    for words in (("BARE",), ("FCALL", "bare", "1", "seat_lock:e:s")):
        assert str(await caller.call(*words, "e", "s")).startswith("POLICY")
    for words in (("SEAT.TAKE",), ("EVAL", body.replace("bare", "take"), "1", "seat_lock:e:s")):
        assert await caller.call(*words, "e", "s") != b"OK"
    for node in clusters.locks.primaries:
        assert not await node.ask("KEYS", "seat_lock:{e}:s")
    caller.close()
