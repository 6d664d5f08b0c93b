"""Rights of users through a real proxy before real clusters: keys, names of commands, reloads."""

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.embedded.redis import Servers
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.conftest import Clusters
from tests.integration.rig import Caller, is_error, wait_for

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  ours: {key: "ours:{tenant}:{rest:path}", cluster: cache, hash_tag: tenant}
  theirs: {key: "theirs:{rest:path}", cluster: locks}
channels:
  news: {channel: "news:{topic}"}
roles:
  default: {}
  admin: {}
  ours: {keyspaces: [ours], channels: [news]}
  one: {keys: ["ours:1:{rest:path}", "free:{x}"], channels: []}
commands:
  rename: {CONFIG: CONFIG_b835r2d2, DEL: REMOVE}
"""

USERS: dict[str, Any] = {
    "default": {"nopass": True},
    "one": {"password": ["old", "new"], "role": "one"},
    "ours": {"password": "pw", "role": "ours"},
    "boss": {"password": "pw", "role": "admin"},
}

NO_KEY = "NOPERM No permissions to access a key"


@pytest.fixture(scope="module")
async def started(
    both_clusters: dict[str, Servers], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sidecar]:
    folder = tmp_path_factory.mktemp("rights")
    (folder / "policies").mkdir()
    (folder / "policies" / "rules.yaml").write_text(RULES)
    configuration = configuration_for(both_clusters, policies="policies", users=USERS)
    async with Sidecar(configuration, folder) as sidecar:
        yield sidecar


@pytest.fixture
async def sidecar(started: Sidecar, empty_clusters: Clusters) -> AsyncIterator[Sidecar]:
    """One proxy for all tests, which has its users again after each."""
    yield started
    if started.configuration["users"] != USERS:
        await reload(started, USERS)


@pytest.fixture
async def filled(sidecar: Sidecar) -> AsyncIterator[Caller]:
    """A client that may do all, behind keys of everybody."""
    caller = await Caller.open(sidecar.port)
    for name in ("ours:1:a", "ours:1:b", "ours:2:a", "theirs:x", "free:1", "other"):
        assert await caller.call("SET", name, "v") == b"OK"
    yield caller
    caller.close()


async def login(sidecar: Sidecar, user: str, password: str, protocol: int = 2) -> Caller:
    caller = await Caller.open(sidecar.port)
    assert not is_error(await caller.call("HELLO", protocol, "AUTH", user, password))
    return caller


@pytest.mark.parametrize("protocol", [2, 3])
async def test_keys_of_others_are_neither_named_nor_seen(
    sidecar: Sidecar, filled: Caller, protocol: int
) -> None:
    """Every way to name a key of another is refused, and none of them is ever shown."""
    one = await login(sidecar, "one", "old", protocol)
    refused = [
        ["GET", "other"], ["SET", "ours:2:a", "x"], ["MGET", "ours:1:a", "theirs:x"],
        ["MGET", "free:1", "free:2", "other"], ["MSET", "free:1", "x", "other", "x"],
        ["REMOVE", "ours:1:a", "other"], ["EXISTS", "free:1", "ours:2:a"],
        ["COPY", "ours:1:a", "ours:2:c"], ["RENAME", "ours:1:a", "other"],
        ["SORT", "ours:1:l", "STORE", "other"], ["SORT_RO", "other"],
        ["BLPOP", "ours:1:l", "ours:2:l", 0], ["BLMOVE", "ours:1:l", "other", "LEFT", "LEFT", 0],
        ["XREAD", "BLOCK", 0, "STREAMS", "theirs:s", 0], ["XREAD", "STREAMS", "theirs:s", 0],
        ["WATCH", "ours:1:a", "other"], ["EVALSHA", "0" * 40, 1, "other"],
        ["EVALSHA_RO", "0" * 40, 2, "ours:1:a", "ours:2:a"], ["FCALL", "f", 1, "other"],
        ["ZUNIONSTORE", "other", 1, "ours:1:z"], ["OBJECT", "ENCODING", "other"],
        ["MEMORY", "USAGE", "other"], ["DUMP", "other"], ["LMPOP", 1, "other", "LEFT"],
        ["BZMPOP", 0, 1, "other", "MIN"], ["GEORADIUS", "ours:1:g", 1, 1, 1, "m", "STORE", "o"],
    ]  # fmt: skip
    for command, reply in zip(refused, await one.pipeline(refused), strict=True):
        assert str(reply) == NO_KEY, command
    assert await one.call("MGET", "ours:1:a", "free:1") == [b"v", b"v"]
    mine = {b"ours:1:a", b"ours:1:b", b"free:1"}
    assert set(await one.call("KEYS", "*")) == mine
    assert await scanned(one) == mine
    assert await one.call("KEYS", "other") == []
    assert await one.call("SCAN", 0, "MATCH", "other") == [b"0", []]
    drawn = {await one.call("RANDOMKEY") for _ in range(20)}
    assert drawn <= mine | {None}
    for command in (["EVAL", "return 1", 0], ["FLUSHALL"], ["SCRIPT", "LOAD", "return 1"]):
        assert str(await one.call(*command)).startswith("NOPERM this user has no permissions"), (
            command
        )
    assert await filled.call("GET", "other") == b"v"


async def scanned(caller: Caller) -> set[bytes]:
    found: set[bytes] = set()
    cursor = b"0"
    while True:
        cursor, names = await caller.call("SCAN", cursor)
        found |= set(names)
        if cursor == b"0":
            return found


async def test_a_transaction_with_a_foreign_key_does_nothing(
    sidecar: Sidecar, filled: Caller
) -> None:
    """One key of another spoils the transaction, and nothing of it reaches a node."""
    one = await login(sidecar, "one", "new")
    replies = await one.pipeline(
        [["MULTI"], ["SET", "ours:1:a", "w"], ["SET", "other", "w"], ["EXEC"]]
    )
    assert str(replies[2]) == NO_KEY
    assert str(replies[3]).startswith("EXECABORT")
    assert await filled.call("GET", "ours:1:a") == b"v"


async def test_a_role_of_keyspaces(sidecar: Sidecar, filled: Caller) -> None:
    """A role of keyspaces uses their keys, of all tenants, and no key of none."""
    ours = await login(sidecar, "ours", "pw")
    assert await ours.call("GET", "ours:2:a") == b"v"
    for name in ("theirs:x", "other", "free:1", "ours:1"):
        assert str(await ours.call("GET", name)) == NO_KEY
    assert set(await ours.call("KEYS", "*")) == {b"ours:1:a", b"ours:1:b", b"ours:2:a"}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_renamed_commands(sidecar: Sidecar, filled: Caller, protocol: int) -> None:
    """A renamed command answers to the new name only, on one node and over several."""
    caller = await login(sidecar, "boss", "pw", protocol)
    assert await caller.call("config_B835R2D2", "GET", "databases")
    assert "unknown command 'CONFIG'" in str(await caller.call("CONFIG", "GET", "databases"))
    assert "unknown command 'DEL'" in str(await caller.call("DEL", "other"))
    assert await caller.call("REMOVE", "other") == 1
    assert await caller.call("REMOVE", "free:1", "other", "ours:1:b", "nobody") == 2
    assert await caller.pipeline([["MULTI"], ["REMOVE", "ours:1:a"], ["EXEC"]]) == [
        b"OK", b"QUEUED", [1],
    ]  # fmt: skip
    names = await caller.call("COMMAND", "LIST")
    assert b"remove" in names
    assert b"del" not in names


async def reload(sidecar: Sidecar, users: dict[str, Any]) -> None:
    """Let a proxy read other users, and wait until it has."""
    before = await _reloads(sidecar)
    sidecar.configuration = {**sidecar.configuration, "users": users}
    sidecar.write_configuration()
    assert sidecar.pid is not None
    os.kill(sidecar.pid, signal.SIGHUP)

    async def done() -> bool:
        return await _reloads(sidecar) > before

    await wait_for(done, "the reload")


async def _reloads(sidecar: Sidecar) -> float:
    _, page = await sidecar.get("/metrics")
    head = "sidecache_reloads_total{"
    lines = [line for line in page.splitlines() if line.startswith(head)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_users_change_without_reconnect(sidecar: Sidecar, filled: Caller) -> None:
    """At a reload another role holds from the next command on; who may not be there has to go."""
    one = await login(sidecar, "one", "old")
    ours, boss = await login(sidecar, "ours", "pw"), await login(sidecar, "boss", "pw")
    assert str(await one.call("GET", "other")) == NO_KEY
    await one.call("MULTI")
    await one.call("SET", "free:1", "w")
    users = {**USERS, "one": {"password": "new", "role": "default"}}
    del users["boss"]
    await reload(sidecar, users)
    assert str(await one.call("EXEC")).startswith("EXECABORT")
    assert await one.call("GET", "other") == b"v"
    assert await ours.call("GET", "ours:2:a") == b"v"
    assert await boss.rest() == []
    assert str(await ours.call("AUTH", "one", "old")).startswith("WRONGPASS")
    await reload(sidecar, {**users, "one": {"password": "third"}, "ours": {"enabled": False}})
    assert await one.rest() == []
    assert await ours.rest() == []
    assert await filled.call("PING") == b"PONG"


async def test_a_file_with_a_mistake_keeps_all_users(sidecar: Sidecar, filled: Caller) -> None:
    """Where one user is wrong, none changes."""
    one = await login(sidecar, "one", "old")
    await reload(sidecar, {"default": {"nopass": True}, "one": {"role": "nosuch", "password": "x"}})
    assert str(await one.call("GET", "other")) == NO_KEY
    await reload(sidecar, {"one": {}})
    assert str(await one.call("GET", "other")) == NO_KEY
    assert await one.call("AUTH", "boss", "pw") == b"OK"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_who_may_hear_a_channel_no_longer_is_disconnected(
    sidecar: Sidecar, protocol: int
) -> None:
    """Another role without the channel ends the connection, one with it does not."""
    ours = await login(sidecar, "ours", "pw", protocol)
    boss = await login(sidecar, "boss", "pw", protocol)
    for caller in (ours, boss):
        await caller.call("SUBSCRIBE", "news:a")
    users = {**USERS, "ours": {"password": "pw", "role": "one"}}
    users["boss"] = {"password": "pw", "role": "default"}
    await reload(sidecar, users)
    assert await ours.rest() == []
    assert not is_error(await boss.call("PING"))
