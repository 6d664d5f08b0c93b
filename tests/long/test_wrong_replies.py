"""The hunt for wrong replies at acceptance scale, and proof that it finds what it hunts."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.embedded.node import Node
from proxy.embedded.process import Child, Launch, reserve_port, temporary_directory, wait_until
from proxy.embedded.redis import Shape
from tests.checker import Plan
from tests.conftest import StartCluster
from tests.integration.hunting import blocks, hunt, rules_in
from tests.integration.rig import ROOT, Caller, check, front_of, relayed, run_from
from tests.mutants import TIMED_OUT, VANISHED, Mutant, build

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

REPLIES = int(os.environ.get("SIDECACHE_LONG_REPLIES", "2000000"))

# A harness that needs longer would not have found it in the short run of the suite.
FOUND_WITHIN = 10.0  # seconds


@pytest.mark.parametrize("ruled", [False, True])
async def test_no_wrong_reply_among_two_million(
    start_cluster: StartCluster, tmp_path: Path, seed: int, ruled: bool
) -> None:
    """2,000,000 replies under resets, stalls, slices and leaving clients: none wrong.

    Also where rules send a command of theirs behind each.
    """
    cluster = await start_cluster(shape=Shape(3, 0))
    more = {"policies": rules_in(tmp_path)} if ruled else {}
    async with (
        relayed(cluster, seed) as relays,
        front_of(blocks(relays), tmp_path, **more) as sidecar,
    ):
        plan = Plan(port=sidecar.port, replies=REPLIES, seconds=1500.0, seed=seed)
        tally = await hunt(relays, plan)
    assert tally.faults == 0, tally
    assert tally.replies >= REPLIES
    assert tally.late == 0, tally


async def test_the_hunt_finds_the_fault_of_redis_py_4_5_1(plain_redis: Node) -> None:
    """A proxy over one shared client of that version is convicted within ten seconds."""
    with temporary_directory("sidecache-standin-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), "redis==4.5.1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"redis 4.5.1 cannot be installed: {done.stderr[-300:]}")
        port = reserve_port()
        script = ROOT / "tests" / "standins" / "shared_client.py"
        launch = Launch(
            arguments=(sys.executable, str(script), str(port), str(plain_redis.port)),
            directory=folder,
            log=folder / "standin.log",
            environment={**os.environ, "PYTHONPATH": str(folder)},
        )
        child = Child("stand-in", launch)
        child.start()
        try:
            await wait_until(lambda: _silent(port), 10.0, [child])
            tally = await check(
                Plan(port=port, seconds=FOUND_WITHIN, protocol3_share=0.0, stop_at_finding=True)
            )
        finally:
            await child.stop()
    print(f"\n{tally}")
    assert tally.wrong + tally.extra > 0
    assert tally.first_finding is not None
    assert tally.first_finding <= FOUND_WITHIN


async def _silent(port: int) -> str | None:
    try:
        caller = await Caller.open(port)
    except OSError as error:
        return str(error)
    caller.close()
    return None


@pytest.mark.parametrize("mutant", [VANISHED, TIMED_OUT], ids=lambda mutant: mutant.name)
async def test_the_hunt_finds_mutants(
    start_cluster: StartCluster, tmp_path: Path, seed: int, mutant: Mutant
) -> None:
    """Our own code with a fault in its queue is convicted within ten seconds."""
    tree = await asyncio.to_thread(build, mutant, tmp_path)
    cluster = await start_cluster(shape=Shape(3, 0))
    async with relayed(cluster, seed) as relays:
        sidecar = front_of(blocks(relays), tmp_path)
        run_from(sidecar, tree)
        async with sidecar:
            plan = Plan(port=sidecar.port, seconds=FOUND_WITHIN, seed=seed, stop_at_finding=True)
            tally = await hunt(relays, plan)
    assert tally.faults > 0, tally
