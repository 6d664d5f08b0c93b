"""MEMORY and LATENCY."""

import pytest

from tests.handlers.desk import Desk


@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_memory_is_about_the_process(protocol: bytes) -> None:
    """STATS has numbers of this process, under the names that a server gives them."""
    client = Desk().connect()
    client.ask(b"HELLO", protocol)
    stats = client.value(b"MEMORY", b"STATS")
    if protocol == b"2":
        stats = dict(zip(stats[::2], stats[1::2], strict=True))
    assert stats[b"total.allocated"] > 1 << 20
    assert stats[b"keys.count"] == 0
    assert b"holds no keys" in client.value(b"MEMORY", b"DOCTOR")
    assert client.ask(b"MEMORY", b"PURGE") == b"+OK\r\n"


async def test_usage_goes_to_the_node_of_the_key() -> None:
    """The key of MEMORY USAGE is its third word."""
    desk = Desk()
    client = desk.connect()
    client.send(b"MEMORY", b"USAGE", b"foo", b"SAMPLES", b"5")  # slot 12182
    assert desk.node(1).commands() == [[b"MEMORY", b"USAGE", b"foo", b"SAMPLES", b"5"]]


async def test_no_latency_events() -> None:
    """The proxy records no events and says where its latencies are."""
    client = Desk().connect()
    assert client.value(b"LATENCY", b"LATEST") == []
    assert client.value(b"LATENCY", b"HISTORY", b"command") == []
    assert client.value(b"LATENCY", b"RESET") == 0
    assert b"INFO latencystats" in client.value(b"LATENCY", b"DOCTOR")
    assert b"No samples available for event 'x'" in client.ask(b"LATENCY", b"GRAPH", b"x")
