"""No client ever gets a reply that is not its own, whatever happens to links and clients."""

import random
from pathlib import Path

import pytest

from proxy.embedded.redis import Shape
from tests.checker import Plan
from tests.conftest import StartCluster
from tests.integration.hunting import blocks, hunt, rules_in
from tests.integration.rig import front_of, relayed

pytestmark = pytest.mark.integration


async def test_no_wrong_reply_among_fifty_thousand(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    """Resets, stalls beyond the deadline, slices and clients that leave: every reply is right."""
    seed = random.SystemRandom().randrange(1_000_000)
    cluster = await start_cluster(shape=Shape(3, 0))
    async with relayed(cluster, seed) as relays, front_of(blocks(relays), tmp_path) as sidecar:
        plan = Plan(port=sidecar.port, replies=50_000, seconds=40.0, seed=seed)
        tally = await hunt(relays, plan)
        assert sidecar.child.exit_code is None, "the proxy went away"
    assert tally.faults == 0, tally
    assert tally.late == 0, tally
    # Under trouble of this size most replies still are what was asked for.
    assert tally.right > 10_000
    assert tally.abandoned > 0


async def test_what_rules_send_along_is_no_reply(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    """The same where every command is followed by one of ours: no client gets its reply."""
    seed = random.SystemRandom().randrange(1_000_000)
    cluster = await start_cluster(shape=Shape(3, 0))
    rules = rules_in(tmp_path)
    async with (
        relayed(cluster, seed) as relays,
        front_of(blocks(relays), tmp_path, policies=rules) as sidecar,
    ):
        plan = Plan(port=sidecar.port, replies=20_000, seconds=20.0, seed=seed)
        tally = await hunt(relays, plan)
        _, page = await sidecar.get("/metrics")
    assert tally.faults == 0, tally
    assert tally.late == 0, tally
    followed = 'sidecache_policy_amended_total{keyspace="all",how="followed",outcome="ok"} '
    assert float(page.partition(followed)[2].split()[0]) > tally.right / 10
