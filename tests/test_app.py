"""The composition root: start, reload, readiness, drain and exit codes, with real sockets."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import config
from proxy.app import App, load_rules
from proxy.documents import MistakesFound
from proxy.embedded.postgres import Postgres
from proxy.embedded.sidecar import fetch
from proxy.errors import StartError
from proxy.origin import installing
from proxy.policy import compiler, planning
from tests.fakenode import Answer, FakeCluster, FakeNode
from tests.integration.rig import Caller, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

# The process that works out rules gives way to all others of the machine.
DRAFTING = 60.0  # seconds

RULES = """
keyspaces:
  thing:
    key: thing:{id}
    cluster: cache
    kind: cache
    ttl: {default: 60s}
"""

DENYING = (
    RULES
    + """
    commands: {deny: [GET]}
"""
)


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode()
    await node.start()
    yield node
    await node.stop()


def configured(folder: Path, node: FakeNode, rules: str = RULES, **blocks: Any) -> config.Config:
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "rules.yaml").write_text(rules)
    file = folder / "sidecache.yaml"
    document = {
        "listen": {"tcp": "127.0.0.1:0"},
        "admin": "127.0.0.1:0",
        "clusters": {
            # No test waits for this deadline.
            "cache": {
                "mode": "single",
                "nodes": [f"redis://127.0.0.1:{node.port}"],
                "timeout": "10s",
            },
        },
        # Nothing is read again but when a test asks for it.
        "policies": {"path": "policies", "watch": "off"},
        "drain": {"timeout": "2s"},
    }
    file.write_text(yaml.safe_dump(document | blocks))
    return config.load(file)


# Nobody but the test asks for a reload, however slow the machine is.
UNWATCHED = {"path": "policies", "watch": False}


class Running:
    """An application that runs in this process."""

    def __init__(self, app: App, task: asyncio.Task[int]) -> None:
        self.app = app
        self.task = task
        self.callers: list[Caller] = []

    async def connect(self) -> Caller:
        port = self.app._server._listeners[0].sockets[0].getsockname()[1]
        self.callers.append(await Caller.open(port))
        return self.callers[-1]

    async def page(self, path: str) -> tuple[int, str]:
        return await fetch(*self.app._admin.address, path)

    async def end(self) -> int:
        return await asyncio.wait_for(self.task, 10.0)


@contextlib.asynccontextmanager
async def running(settings: config.Config) -> AsyncIterator[Running]:
    app = App(settings)
    before = asyncio.all_tasks()
    task = asyncio.create_task(app.run())
    made = Running(app, task)
    try:
        await wait_for(lambda: app._started or task.done(), "the start")
        yield made
    finally:
        app.drain()
        await asyncio.wait([task])
        for caller in made.callers:
            caller.close()
        gc.unfreeze()
    await wait_for(lambda: asyncio.all_tasks() <= before, "the end of all tasks")


async def test_from_start_to_the_end(node: FakeNode, tmp_path: Path) -> None:
    """It serves, says that it is ready, finishes on SIGTERM, and leaves no task behind."""
    async with running(configured(tmp_path, node)) as it:
        caller = await it.connect()
        assert await caller.call("SET", "thing:1", "v") == b"OK"
        assert await it.page("/startupz") == (200, "started\n")
        assert await it.page("/readyz") == (200, "cache=up\n")
        assert (await it.page("/livez"))[0] == 200
        status, page = await it.page("/metrics")
        assert status == 200
        assert 'sidecache_requests_total{keyspace="thing"' in page
        os.kill(os.getpid(), signal.SIGTERM)
        assert await it.end() == 0
        assert await caller.rest() == []
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await it.page("/livez")


async def test_readiness_tells_of_clusters_and_of_draining(tmp_path: Path) -> None:
    """A cluster that is away makes answers worse, not the proxy unready; draining makes it so."""
    away = FakeNode()
    await away.start()
    await away.stop()
    async with running(configured(tmp_path, away)) as it:
        caller = await it.connect()
        assert await caller.call("PING") == b"PONG"

        async def says(text: str) -> bool:
            return await it.page("/readyz") == (200, text)

        await wait_for(lambda: says("cache=redis_down(1/1)\n"), "the loss")
        assert str(await caller.call("GET", "thing:1")).startswith("CLUSTERDOWN")
        await away.start()
        await wait_for(lambda: says("cache=up\n"), "the node")
        assert await caller.call("SET", "thing:1", "v") == b"OK"
        away.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.3)
        caller.writer.write(pack("GET", "thing:1"))
        await wait_for(lambda: away.received("GET"), "the command")
        it.app.drain()
        assert await it.page("/readyz") == (503, "draining\n")
        assert await caller.next() == b"v"
        assert await it.end() == 0
    await away.stop()


async def test_info_and_readiness_tell_the_same(node: FakeNode, tmp_path: Path) -> None:
    """PostgreSQL away, then the node as well, then the end: both say so, and so do the metrics."""
    backed = RULES + "    type: string\n    origin: {read: 'SELECT v FROM t WHERE id = :id'}\n"
    database = {"url": "postgresql://x@127.0.0.1:1/x"}
    async with running(configured(tmp_path, node, backed, database=database)) as it:
        caller = await it.connect()

        async def told(state: str) -> bool:
            info = (await caller.call("INFO", "sidecache")).decode()
            metric = f'sidecache_state{{cluster="cache",state="{state.upper()}"}} 1.0'
            return (
                f"cluster_cache:state={state}(1/1)," in info
                and metric in (await it.page("/metrics"))[1]
            )

        await wait_for(lambda: told("pg_down"), "the loss of PostgreSQL")
        assert await it.page("/readyz") == (200, "cache=pg_down(1/1)\n")
        info = await caller.call("INFO", "sidecache")
        assert b"postgres:state=down\r\n" in info
        assert b"invalidation_cache:leading=0,lag=0.000,owed=0,position=0," in info
        await node.stop()
        await wait_for(lambda: told("both_down"), "the loss of both")
        assert await it.page("/readyz") == (200, "cache=both_down(1/1)\n")
        # A client with half a request keeps the process for as long as this test looks at it.
        lasting = await it.connect()
        lasting.writer.write(b"*1\r\n")
        it.app.drain()
        await wait_for(lambda: told("draining"), "the drain")
        assert await it.page("/readyz") == (503, "draining\n")


async def test_locks_that_are_not_installed_show(
    node: FakeNode, tmp_path: Path, postgres_server: Postgres
) -> None:
    """/readyz says so, who asks for one hears it, and neither does after the install."""
    url = await postgres_server.create_database("uninstalled")
    rules = (
        "keyspaces:\n  mutex: {key: 'mutex:{id}', cluster: cache, kind: lock,"
        " ttl: {default: 60s}, lock: {owner: value}}\n"
    )
    settings = configured(tmp_path, node, rules, database={"url": url})
    async with running(settings) as it:
        caller = await it.connect()

        async def says(word: bool) -> bool:
            status, text = await it.page("/readyz")
            assert status == 200
            return ("lock_functions=misfit" in text.split()) == word

        await wait_for(lambda: says(True), "the misfit")
        said = str(await caller.call("SET", "mutex:1", "me", "NX"))
        assert said.endswith("run sidecache sql install")
        plans = planning.locks_of(compiler.read(tmp_path / "policies", ("cache",)))
        await installing.run(url, (), apply=True, remove=False, locks=plans)
        assert await caller.call("SET", "mutex:1", "me", "NX") == b"OK"
        await wait_for(lambda: says(False), "the end of it")
    await postgres_server.drop_database("uninstalled")


async def test_an_incomplete_drain_is_exit_code_1(node: FakeNode, tmp_path: Path) -> None:
    """Who could not be answered within the time for it makes the exit code 1."""
    settings = configured(tmp_path, node, drain={"timeout": "100ms"})
    async with running(settings) as it:
        caller = await it.connect()
        node.answers["GET"] = Answer(b"", 60.0)
        caller.writer.write(pack("GET", "thing:1"))
        await wait_for(lambda: node.received("GET"), "the command")
        it.app.drain()
        it.app.drain()
        assert await it.end() == 1


async def test_a_port_in_use(node: FakeNode, tmp_path: Path) -> None:
    """An address that is taken is an error that names the setting, and leaves nothing behind."""
    path = str(tmp_path / "redis.sock")
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as file:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file.bind(path)
        file.listen()
        address = "{}:{}".format(*taken.getsockname())
        for blocks, words in (
            ({"listen": {"tcp": address}}, ("cannot listen", "listen:", "SIDECACHE_LISTEN")),
            ({"listen": {"unix": path}}, ("cannot listen", path, "another", "SIDECACHE_UNIX")),
            ({"admin": address}, (address, "admin:", "SIDECACHE_ADMIN")),
        ):
            before = asyncio.all_tasks()
            with pytest.raises(StartError) as raised:
                await App(configured(tmp_path, node, **blocks)).run()
            assert all(word in str(raised.value) for word in words)
            await wait_for(lambda b=before: asyncio.all_tasks() <= b, "the end of all tasks")


async def test_new_rules_reach_idle_and_busy_clients(node: FakeNode, tmp_path: Path) -> None:
    """A reload is judged by whole commands: what was sent before runs by the old rules."""
    async with running(configured(tmp_path, node, policies=UNWATCHED)) as it:
        idle, busy = await it.connect(), await it.connect()
        assert await idle.call("SET", "thing:1", "v") == b"OK"
        node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.1)
        busy.writer.write(pack("GET", "thing:1"))
        await wait_for(lambda: node.received("GET"), "the command")
        (tmp_path / "policies" / "rules.yaml").write_text(DENYING)
        assert (await it.app.reload()).startswith("changed")
        busy.writer.write(pack("GET", "thing:1") + pack("SET", "thing:1", "w"))
        assert str(await idle.call("GET", "thing:1")).startswith("NOPERM")
        assert await busy.next() == b"v"
        assert str(await busy.next()).startswith("NOPERM")
        assert await busy.next() == b"OK"
        assert len(node.received("GET")) == 1
        assert (await it.app.reload()).startswith("unchanged")
        page = (await it.page("/metrics"))[1]
        assert 'sidecache_reloads_total{outcome="changed"} 1.0' in page
        assert 'sidecache_reloads_total{outcome="unchanged"} 1.0' in page


async def test_a_bad_file_changes_nothing(
    node: FakeNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With any mistake the old rules stay in force with their counts, by verb and by SIGHUP."""
    async with running(configured(tmp_path, node, DENYING, policies=UNWATCHED)) as it:
        caller = await it.connect()
        assert str(await caller.call("GET", "thing:1")).startswith("NOPERM")
        rules = it.app._router.ruleset
        (tmp_path / "policies" / "rules.yaml").write_text("keyspaces: {thing: {key: 'thing:{'}}")
        with pytest.raises(MistakesFound):
            await it.app.reload()
        (tmp_path / "policies" / "rules.yaml").write_text("unknown: yes\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await wait_for(lambda: caplog.messages.count("reload_failed") == 2, "the signal", DRAFTING)
        assert it.app._router.ruleset is rules
        assert (await it.page("/readyz"))[1].split() == ["cache=up", "rules=refused"]
        assert b"rules_last_reload:refused\r\nrules_mistakes:1\r\n" in await caller.call("INFO")
        assert str(await caller.call("GET", "thing:1")).startswith("NOPERM")
        page = (await it.page("/metrics"))[1]
        assert 'sidecache_reloads_total{outcome="failed"} 2.0' in page
        assert "sidecache_reload_failed 1.0" in page
        (tmp_path / "policies" / "rules.yaml").write_text(RULES)
        os.kill(os.getpid(), signal.SIGHUP)
        await wait_for(lambda: it.app._router.ruleset is not rules, "the signal", DRAFTING)
        assert await caller.call("SET", "thing:1", "v") == b"OK"
        assert await caller.call("GET", "thing:1") == b"v"
        assert await it.page("/readyz") == (200, "cache=up\n")
        assert b"rules_last_reload:ok\r\n" in await caller.call("INFO")
        assert "sidecache_reload_failed 0.0" in (await it.page("/metrics"))[1]


async def test_a_role_in_use_cannot_be_taken_away(node: FakeNode, tmp_path: Path) -> None:
    """A reload without the role of a configured user fails, and the user keeps its rights."""
    role = RULES + "\nroles: {default: {}, booking: {}}\n"
    users = {"app": {"nopass": True, "role": "booking"}, "default": {"nopass": True}}
    async with running(configured(tmp_path, node, role, users=users)) as it:
        caller = await it.connect()
        assert await caller.call("AUTH", "app", "x") == b"OK"
        (tmp_path / "policies" / "rules.yaml").write_text(RULES)
        with pytest.raises(StartError, match='"app" has the role "booking"'):
            await it.app.reload()
        assert await caller.call("SET", "thing:1", "v") == b"OK"
    with pytest.raises(StartError, match="which no policy describes; there is: default"):
        load_rules(configured(tmp_path, node, RULES, users=users))


async def test_writes_behind_begin_with_a_journal(node: FakeNode, tmp_path: Path) -> None:
    """A reload to rules that need one fails where there is none, and says what to set."""
    database = {"url": "postgresql://x@127.0.0.1:1/x"}
    behind = RULES.replace("ttl: {default: 60s}", "type: string\n    write: {mode: behind, sql: "
                           "'UPDATE t SET v = :value WHERE id = :id'}")  # fmt: skip
    async with running(configured(tmp_path, node, policies=UNWATCHED, database=database)) as it:
        (tmp_path / "policies" / "rules.yaml").write_text(behind)
        with pytest.raises(
            StartError, match=r"keyspaces thing are written behind.*SIDECACHE_JOURNAL"
        ):
            await it.app.reload()
    with pytest.raises(StartError, match="needs a journal"):
        load_rules(configured(tmp_path, node, behind, database=database))
    load_rules(configured(tmp_path, node, behind))
    journal = {"directory": "journal"}
    load_rules(configured(tmp_path, node, behind, database=database, journal=journal))


async def test_the_access_log_is_read_again(node: FakeNode, tmp_path: Path) -> None:
    """A reload takes what the configuration says of the access log then, or changes nothing."""
    settings = configured(tmp_path, node, policies=UNWATCHED)
    async with running(settings) as it:
        it.app._reread = lambda: config.load(tmp_path / "sidecache.yaml")
        caller = await it.connect()
        configured(tmp_path, node, access_log={"sample": "100%", "file": "."})
        with pytest.raises(StartError, match="cannot write the access log"):
            await it.app.reload()
        configured(tmp_path, node, access_log={"sample": "100%", "file": "access.log"})
        assert (await it.app.reload()).startswith("changed")
        assert (await it.app.reload()).startswith("unchanged")
        assert await caller.call("SET", "thing:1", "v") == b"OK"
    assert '"name": "set"' in (tmp_path / "access.log").read_text()


async def test_a_loop_that_fails_ends_the_process(
    node: FakeNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part that should run for ever and does not is told, and whoever restarts us is called."""

    async def fails() -> None:
        raise RuntimeError("a mistake of ours")

    async with running(configured(tmp_path, node)) as it:
        it.app._spawn(fails())
        assert await it.end() == 1
        assert "task_failed" in caplog.messages


async def test_two_clusters_with_slots(tmp_path: Path) -> None:
    """Each keyspace goes to its cluster, and the statistics know both."""
    locks, cache = FakeCluster(2), FakeCluster(2)
    await locks.start()
    await cache.start()
    clusters = {
        name: {"nodes": [f"redis://127.0.0.1:{node.port}" for node in cluster.nodes]}
        for name, cluster in (("locks", locks), ("cache", cache))
    }
    rules = RULES + "  lock: {key: 'lock:{id}', cluster: locks, kind: state, ttl: {default: 60s}}\n"
    try:
        settings = configured(tmp_path, locks.nodes[0], rules, clusters=clusters)
        async with running(settings) as it:

            async def says() -> bool:
                return set((await it.page("/readyz"))[1].split()) == {"locks=up", "cache=up"}

            await wait_for(says, "both clusters")
            caller = await it.connect()
            await wait_for(lambda: all(c.nodes for c in it.app._pools.clusters), "the topologies")
            assert await caller.pipeline([("SET", "lock:1", 1), ("SET", "thing:1", 2)]) == [
                b"OK", b"OK",
            ]  # fmt: skip
            assert [b"lock:1" in n.values for n in cache.nodes] == [False, False]
            assert any(b"lock:1" in node.values for node in locks.nodes)
            assert any(b"thing:1" in node.values for node in cache.nodes)
            assert b"cluster" in await caller.call("INFO")
            status, text = await it.page("/-/explain?command=GET+lock:1")
            assert status == 200, text
            holder = next(node for node in locks.nodes if b"lock:1" in node.values)
            assert f"of cluster locks, node 127.0.0.1:{holder.port}" in text
            assert "keyspace   lock  (" in text
    finally:
        await locks.stop()
        await cache.stop()


async def test_info_says_what_nodes_say(tmp_path: Path, node: FakeNode) -> None:
    """Job queues read whether keys may be evicted: each reply is the node's own word."""
    text = b"# Memory\r\nmaxmemory_policy:volatile-ttl\r\n"
    node.answers["INFO"] = b"$%d\r\n%b\r\n" % (len(text), text)
    async with running(configured(tmp_path, node)) as it:
        caller = await it.connect()

        async def known() -> bool:
            return b"maxmemory_policy:volatile-ttl" in await caller.call("INFO", "memory")

        await wait_for(known, "the answer of the node")
        assert await caller.call("CONFIG", "GET", "maxmemory-policy") == [
            b"maxmemory-policy", b"volatile-ttl",
        ]  # fmt: skip
        assert b"maxmemory_policy=volatile-ttl" in await caller.call("INFO", "sidecache")
