"""INFO."""

from dataclasses import dataclass, replace

import pytest

from proxy.handlers import information
from proxy.handlers.information import human, percentile
from tests.handlers.backed_desk import nobody
from tests.handlers.desk import Client, Desk

# What client libraries and frameworks look for in INFO when they start.
LOOKED_FOR = {
    b"redis_version:7.0.15", b"redis_mode:standalone", b"loading:0", b"role:master",
    b"connected_slaves:0", b"maxmemory_policy:allkeys-lfu", b"cluster_enabled:0",
    b"tcp_port:6379", b"# Keyspace", b"# Server", b"# CPU", b"# sidecache",
    b"cluster_cache:state=up,nodes=2,maxmemory_policy=allkeys-lfu",
    b"cluster_locks:state=redis_down(1/3),nodes=2,maxmemory_policy=noeviction",
    b"connected_clients:1",
}  # fmt: skip


@pytest.mark.parametrize("words", [b"INFO", b"INFO all", b"INFO EVERYTHING", b"INFO x default"])
async def test_info_has_what_clients_look_for(words: bytes) -> None:
    """Every field that some library reads at its start is there."""
    text = Desk().connect().value(*words.split())
    lines = set(text.split(b"\r\n"))
    assert lines >= LOOKED_FOR
    assert any(line.startswith(b"run_id:") and len(line) == 47 for line in lines)


async def test_no_key_is_counted() -> None:
    """Keys are the nodes': no database is said to have none."""
    assert _fields(Desk().connect(), b"keyspace") == {}


async def test_the_peak_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system counts the peak later than the present, the peak is the present."""
    monkeypatch.setattr(information, "most_resident", lambda: 1)
    fields = _fields(Desk().connect(), b"memory")
    assert int(fields[b"used_memory_peak"]) >= int(fields[b"used_memory"]) > 1


@dataclass(frozen=True)
class Far:
    """How far an applier has come."""

    leading: bool = True
    lag: float = 0.0126
    owed: int = 3
    position: int = 4711
    changes: int = 20
    replays: int = 1


async def test_info_tells_of_postgresql() -> None:
    """Where a database is configured, whether it is there, and how far its changes have come."""
    desk = Desk()
    client = desk.connect()
    assert (
        not {b"postgres", b"behind", b"invalidation_cache"} & _fields(client, b"sidecache").keys()
    )
    cache, locks = desk.server.cluster_statistics()
    desk.server.cluster_statistics = lambda: (replace(cache, invalidation=Far()), locks)
    desk.server.postgres = nobody()
    fields = _fields(client, b"sidecache")
    assert fields[b"postgres"] == b"state=down"
    assert fields[b"invalidation_cache"] == (
        b"leading=1,lag=0.013,owed=3,position=4711,changes=20,replays=1"
    )
    assert b"invalidation_locks" not in fields


async def test_info_of_sections() -> None:
    """Sections that are named are shown, in the server's order, with a blank line between."""
    text = Desk().connect().value(b"INFO", b"cluster", b"nosuch", b"MODULES")
    assert text == b"# Modules\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n"


@pytest.fixture
async def asked() -> Client:
    """A client whose GET a node has answered after 3 ms, and whose other one has failed."""
    desk = Desk()
    client = desk.connect()
    for reply in (b"$1\r\nv\r\n", b"-WRONGTYPE x\r\n"):
        client.send(b"GET", b"foo")
        (node,) = (node for node in (desk.node(0), desk.node(1)) if node.sent)
        node.commands()
        node.upstream.receive_data(reply, client.session.active + 0.003)
        desk.settle()
        client.take()
    return client


def _fields(client: Client, section: bytes) -> dict[bytes, bytes]:
    lines = client.value(b"INFO", section).split(b"\r\n")[1:-1]
    return dict(line.split(b":", 1) for line in lines)


async def test_figures_of_commands_are_shown_when_asked_for(asked: Client) -> None:
    """Commandstats and latencystats count what nodes answered; INFO alone leaves them out."""
    stats = _fields(asked, b"commandstats")
    assert list(stats) == [b"cmdstat_get"]
    assert stats[b"cmdstat_get"].startswith(b"calls=2,usec=6")
    assert stats[b"cmdstat_get"].endswith(b",rejected_calls=0,failed_calls=1")
    latency = _fields(asked, b"latencystats")[b"latency_percentiles_usec_get"]
    assert latency == b"p50=4096.000,p99=4096.000,p99.9=4096.000"
    assert b"cmdstat" not in asked.value(b"INFO")
    assert b"cmdstat" in asked.value(b"INFO", b"all")
    assert b"cmdstat" in asked.value(b"INFO", b"default", b"commandstats")


async def test_errors_are_counted_by_who_made_them(asked: Client) -> None:
    """A node's errors and our own refusals are told apart, and their sum is in stats."""
    asked.ask(b"BGSAVE")
    asked.ask(b"SET", b"foo")
    assert _fields(asked, b"errorstats") == {
        b"errorstat_NODE": b"count=1",
        b"errorstat_REFUSED": b"count=2",
    }
    assert _fields(asked, b"stats")[b"total_error_replies"] == b"3"


async def test_resetstat_begins_anew(asked: Client) -> None:
    """CONFIG RESETSTAT sets the counts of INFO to zero and leaves those of the metrics alone."""
    before = asked.session.server.router.ruleset.counters.requests()
    assert before
    assert asked.ask(b"CONFIG", b"RESETSTAT") == b"+OK\r\n"
    stats = _fields(asked, b"stats")
    assert stats[b"total_connections_received"] == b"0"
    assert stats[b"total_error_replies"] == b"0"
    assert int(stats[b"total_commands_processed"]) <= 2
    assert _fields(asked, b"commandstats") == {}
    assert set(before) - set(asked.session.server.router.ruleset.counters.requests()) <= {
        row for row in before if row[2] == 0
    }


async def test_memory_is_that_of_the_process() -> None:
    """What is used is never more than the peak, and sizes are written for people too."""
    fields = _fields(Desk().connect(), b"memory")
    assert 1 << 20 < int(fields[b"used_memory"]) <= int(fields[b"used_memory_peak"]) * 1.1
    assert fields[b"used_memory_human"].endswith(b"M")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.00K"), (1536, "1.50K"), (1 << 20, "1.00M"),
     (5 << 30, "5.00G"), (3 << 40, "3.00T")],
)  # fmt: skip
def test_sizes_are_written_as_redis_does(size: int, text: str) -> None:
    """Two digits behind the point, and the largest unit that fits."""
    assert human(size) == text


@pytest.mark.parametrize(
    ("counts", "percent", "bound"),
    [([0, 1], 50, 2.0), ([99, 0, 1], 99, 1.0), ([99, 0, 1], 99.9, 4.0), ([1, 1, 1, 1], 50, 2.0)],
)
def test_a_percentile_is_a_bound_that_holds(
    counts: list[int], percent: float, bound: float
) -> None:
    """So many percent took no longer: the upper end of the bucket where they end."""
    assert percentile(counts, percent) == bound
