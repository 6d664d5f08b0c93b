"""New rules under traffic: nothing is lost, and no command is judged by half of two versions."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from proxy.embedded.sidecar import Sidecar
from tests.integration.rig import Caller, StartProxy, is_error, wait_for

pytestmark = pytest.mark.integration

# What changes together: the cluster of two keyspaces, and the name of keys of a third at nodes
# together with a command that it denies.
VERSIONS = (("cache", None, ["GETDEL"]), ("locks", "id", ["GETEX"]))

# Commands per pipeline: more than a client may have in flight, so that some wait for the others.
DEPTH = 60

RELOAD_SECONDS = 60.0


def rules(version: int, **more: Any) -> dict[str, Any]:
    cluster, tag, denied = VERSIONS[version]
    spaces = {
        "left": {"key": "left:{id}", "cluster": cluster, "hash_tag": "id"},
        "right": {"key": "right:{id}", "cluster": cluster, "hash_tag": "id"},
        "named": {"key": "named:{id}", "cluster": "cache", "commands": {"deny": denied}},
    }
    if tag is not None:
        spaces["named"]["hash_tag"] = tag
    return {"keyspaces": spaces | more}


def swap(folder: Path, version: int, document: object) -> None:
    """Put a version of the folder in force as kubelet does: by the swap of one link."""
    there = folder / f"..{version}"
    there.mkdir(parents=True)
    (there / "rules.yaml").write_text(
        document if isinstance(document, str) else yaml.safe_dump(document)
    )
    (folder / "..data_tmp").symlink_to(there.name)
    (folder / "..data_tmp").rename(folder / "..data")
    if not (folder / "rules.yaml").exists():
        (folder / "rules.yaml").symlink_to("..data/rules.yaml")


def commands(number: int) -> list[tuple[str, ...]]:
    """Return a pipeline of which each command stands under several rules."""
    one, other = f"{number}", f"{number + 1}"
    return [
        ("MSET", f"left:{one}", "1", f"right:{one}", "2"),
        ("MSET", f"left:{one}", "1", f"right:{other}", "2"),
        ("MULTI",),
        ("SET", f"left:{other}", "3"),
        ("SET", f"right:{other}", "4"),
        ("EXEC",),
        ("GETEX", f"named:{one}"),
        ("GETDEL", f"named:{one}"),
    ]


SIZE = len(commands(0))
EXEC = 5  # its place among them, and what it says where rules have changed since MULTI
OUTLIVED = "EXECABORT Transaction discarded because the rules have changed"


class Traffic:
    """Clients that pipeline, and what was wrong with what they got."""

    def __init__(self, clients: int = 4, rate: float | None = None) -> None:
        """rate is commands per second of all clients; without one they know no pause."""
        self.wrong: list[Any] = []
        self.done = 0
        self.greetings = 0
        self.denied = [0, 0]
        self.stopping = False
        self._clients = clients
        self._interval = clients * (DEPTH // SIZE * SIZE) / rate if rate else 0.0

    async def run(self, port: int) -> None:
        """Run all clients until `stopping`."""
        await asyncio.gather(*(self._client(port, number) for number in range(self._clients)))

    async def _client(self, port: int, number: int) -> None:
        """Send pipelines at their times; every other client connects anew for each."""
        loop, caller, place = asyncio.get_running_loop(), None, number
        due = loop.time() + self._interval * place / self._clients
        while not self.stopping:
            await asyncio.sleep(due - loop.time())
            due += self._interval
            if caller is None:
                caller = await self._connected(port, 2 + place // 2 % 2)
            await self._ask(caller, number)
            number += 1
            if place % 2:
                caller.close()
                caller = None
        if caller is not None:
            caller.close()

    async def _connected(self, port: int, protocol: int) -> Caller:
        caller = await Caller.open(port)
        await caller.call("HELLO", protocol)
        self.greetings += 1
        return caller

    async def _ask(self, caller: Caller, number: int) -> None:
        batch = [commands(number + index) for index in range(DEPTH // SIZE)]
        replies = await caller.pipeline([words for some in batch for words in some])
        for index in range(0, len(replies), SIZE):
            self.judge(replies[index : index + SIZE])

    def judge(self, replies: list[Any]) -> None:
        """Look at the replies of one list of commands."""
        self.done += len(replies)
        self.wrong += [
            reply
            for place, reply in enumerate(replies[:-2])
            if is_error(reply) and (place, str(reply)) != (EXEC, OUTLIVED)
        ]
        # Which of the two is denied says whose rules they were; those in between may change.
        for position, reply in enumerate(replies[-2:]):
            if is_error(reply):
                self.denied[position] += 1
                if not str(reply).startswith("NOPERM"):
                    self.wrong.append(reply)


async def reload_under_traffic(
    start: StartProxy, folder: Path, texts: Sequence[str], times: int, traffic: Traffic
) -> tuple[Sidecar, list[float]]:
    """Change between two texts so often under traffic; return the seconds of each reload."""
    swap(folder, 0, texts[0])
    sidecar = await start(policies={"path": str(folder), "watch": False})
    clients = asyncio.create_task(traffic.run(sidecar.port))
    seconds = []
    for version in range(1, times + 1):
        swap(folder, version, texts[version % 2])
        begun, before = time.monotonic(), traffic.done
        assert (await asked_to_reload(sidecar)).startswith("changed")
        seconds.append(time.monotonic() - begun)
        await wait_for(lambda before=before: traffic.done > before + 100, "traffic")
    traffic.stopping = True
    await clients
    return sidecar, seconds


async def asked_to_reload(sidecar: Sidecar) -> str:
    """Have the rules read again by the admin port; return what it answers."""
    request = Request(f"{sidecar.admin_url}/-/reload", method="POST")

    def answer() -> str:
        with urlopen(request, timeout=RELOAD_SECONDS) as response:
            return bytes(response.read()).decode()

    return await asyncio.to_thread(answer)


async def assert_all_seen(traffic: Traffic, sidecar: Sidecar) -> None:
    """Nothing was refused or judged by half of two versions, and every command is counted."""
    assert traffic.wrong == []
    assert min(traffic.denied) > 0
    counted = await figure(sidecar, "sidecache_requests_total")
    assert counted == traffic.done + traffic.greetings


def reloaded(sidecar: Sidecar, times: int) -> Callable[[], Any]:
    async def done() -> bool:
        return await figure(sidecar, 'sidecache_reloads_total{outcome="changed"}') == times

    return done


async def figure(sidecar: Sidecar, name: str) -> float:
    """Return the sum of all series that begin so."""
    _, page = await sidecar.get("/metrics")
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


async def info(caller: Caller) -> dict[bytes, bytes]:
    lines = (await caller.call("INFO", "sidecache")).splitlines()
    return dict(line.split(b":", 1) for line in lines if b":" in line)


async def test_no_command_sees_half_of_two_versions(
    proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Rules that change together are seen together, every command is answered and counted."""
    texts, traffic = [yaml.safe_dump(rules(version)) for version in (0, 1)], Traffic()
    sidecar, _ = await reload_under_traffic(proxy_process, tmp_path / "rules", texts, 4, traffic)
    await assert_all_seen(traffic, sidecar)


async def test_a_transaction_is_judged_by_one_version(
    proxy_process: StartProxy, tmp_path: Path
) -> None:
    """One that is open when rules change is discarded, unless nothing has changed."""
    folder = tmp_path / "rules"
    swap(folder, 0, rules(0))
    sidecar = await proxy_process(policies={"path": str(folder), "watch": False})
    caller = await Caller.open(sidecar.port)
    await caller.pipeline([("MULTI",), ("SET", "left:1", 1)])
    swap(folder, 1, rules(1))
    os.kill(sidecar.pid or 0, signal.SIGHUP)
    await wait_for(reloaded(sidecar, 1), "the reload")
    queued, ended = await caller.pipeline([("SET", "right:1", 2), ("EXEC",)])
    assert queued == b"QUEUED"
    assert str(ended) == OUTLIVED
    assert await caller.call("GET", "left:1") is None
    await caller.pipeline([("MULTI",), ("SET", "left:1", 1)])
    assert (await asked_to_reload(sidecar)).startswith("unchanged")
    assert await caller.call("EXEC") == [b"OK"]
    caller.close()


async def test_files_that_change(proxy_process: StartProxy, tmp_path: Path) -> None:
    """The swap of a volume and an editor's rename are noticed; nonsense changes nothing."""
    folder = tmp_path / "rules"
    swap(folder, 0, rules(0))
    sidecar = await proxy_process(policies=str(folder))
    caller = await Caller.open(sidecar.port)
    assert str(await caller.call("GETDEL", "named:1")).startswith("NOPERM")
    first = await info(caller)
    swap(folder, 1, rules(1))
    await wait_for(reloaded(sidecar, 1), "the swap", 30.0)
    assert await caller.call("GETDEL", "named:1") is None
    second = await info(caller)
    assert second[b"rules"] != first[b"rules"]
    assert second[b"rules_last_reload"] == b"ok"

    swap(folder, 2, yaml.safe_dump(rules(0))[:-30] + "\n  left: [")

    async def refused() -> bool:
        return "rules=refused" in (await sidecar.get("/readyz"))[1]

    await wait_for(refused, "the refusal", 30.0)
    assert await caller.call("GETDEL", "named:1") is None
    third = await info(caller)
    assert third[b"rules"] == second[b"rules"]
    assert third[b"rules_last_reload"] == b"refused"
    log = (sidecar.directory / "sidecache.log").read_text()
    assert f"{folder}/rules.yaml:" in log

    (folder / "rules.new").write_text(yaml.safe_dump(rules(0)))
    (folder / "rules.new").rename(folder / "rules.yaml")
    await wait_for(reloaded(sidecar, 2), "the rename", 30.0)
    assert str(await caller.call("GETDEL", "named:1")).startswith("NOPERM")
    assert not await refused()
    caller.close()
