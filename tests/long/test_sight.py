"""What an operator sees of traffic, at acceptance scale."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from proxy import wire
from proxy.embedded.redis import Servers
from tests.integration.rig import StartProxy
from tests.integration.test_sight import flooded, guessed
from tests.replies import pack
from tests.wire.stage import Stage
from tests.wire.test_sketches import zipf

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

COMMANDS = 8_000_000


@pytest.mark.integration
async def test_a_million_of_everything(
    proxy_process: StartProxy, both_clusters: dict[str, Servers], tmp_path: Path
) -> None:
    """1,000,000 keys, commands and names add no series and no memory; lines stay within limits."""
    await flooded(proxy_process, both_clusters, tmp_path, 1_000_000)


@pytest.mark.integration
async def test_a_million_names_that_fail_to_log_in(
    proxy_process: StartProxy, both_clusters: dict[str, Servers], tmp_path: Path
) -> None:
    """1,000,000 names in AUTH and HELLO add no series and no memory; lines stay within limits."""
    await guessed(proxy_process, both_clusters, tmp_path, 1_000_000)


def test_the_hottest_keys_among_the_sampled() -> None:
    """With every 64th command looked at, the ten hottest of 100,000 keys are known within 10 %."""
    stage = Stage()
    stage.batch.sketches = sketches = wire.Sketches(bytes(16), plain=True)
    sketches.look(0.0, 1 / 64)
    client, (node,) = stage.client(), stage.upstreams
    true = Counter[bytes]()
    keys = zipf(100_000, 11)
    for _ in range(COMMANDS // 100):
        batch = list(itertools.islice(keys, 100))
        true.update(batch)
        client.receive_data(b"".join(pack(b"GET", key) for key in batch), 1.0)
        while client.pending or client.resumable:
            sent = node.data_to_send(1.0).count(b"GET")
            node.receive_data(b"$-1\r\n" * sent, 1.0)
            client.data_to_send()
            client.receive_data(b"", 1.0)
        stage.batch.take_ready()
        stage.batch.take_touched()
    found = {name: (looks, error) for _, _, name, looks, error in sketches.hot_keys(20)}
    for place, (key, times) in enumerate(true.most_common(10)):
        looks, error = found[key]
        print(
            f"{place}: {times} times, estimated {looks * 64:.0f}, error of the sketch {error:.0f}"
        )
        assert looks * 64 == pytest.approx(times, rel=0.1)


def test_a_million_keys_take_no_more_room() -> None:
    """1,000,000 distinct keys leave the tables as large as they were."""
    sketches = wire.Sketches(bytes(16), 50, plain=True)
    before = sketches.memory
    for number in range(1_000_000):
        sketches.add(b"key:%d" % number, number % 50)
        sketches.see(b"key:%d" % number, number % 50, number, False, 1.0)
    assert sketches.memory == before
    assert len(sketches.hot_keys(10_000)) == 1024
