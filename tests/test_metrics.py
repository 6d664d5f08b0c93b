"""The metrics page, read back by the parser of prometheus-client."""

import time
from array import array
from collections.abc import Iterable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy import log
from proxy.metrics import MAX_NODES, Metrics, series
from proxy.wire import (
    LATENCY_BOUNDS,
    Batch,
    Downstream,
    Latencies,
    Router,
    Ruleset,
    SlotMap,
    Upstream,
    pack,
)
from proxy.wire.rules import (
    Command,
    Errors,
    KeyKind,
    Keys,
    Keyspace,
    Limits,
    Path,
    Pause,
    Role,
    Segment,
)

FAMILIES = tuple(f"family{n}" for n in range(20))
CLUSTERS = ("locks", "cache")


def make_command(name: bytes, family: int) -> Command:
    return Command(
        name, -2, Path.FORWARD, Keys(KeyKind.RANGE, 1, 1, 1), False, True, False, False, False,
        Pause.NEVER, family, b"-ERR arity\r\n", b"-ERR refused\r\n",
    )  # fmt: skip


def make_keyspace(name: str) -> Keyspace:
    pattern = (f"{name}:".encode(), Segment("id", "text"))
    return Keyspace(name, pattern, 0, None, None, 512, b"", b"-POLICY key\r\n", b"-NOPERM\r\n")


def make_ruleset(*keyspaces: str) -> Ruleset:
    commands = [make_command(f"command{n}".encode(), n) for n in range(len(FAMILIES))]
    denied = bytes(len(commands))
    errors = Errors(*(f"-{field.upper()} no\r\n".encode() for field in Errors._fields))
    return Ruleset(
        commands=commands,
        keyspaces=[make_keyspace(name)._replace(denied=denied) for name in keyspaces],
        roles=[Role("default", b"\x01" * len(commands), Limits())],
        families=FAMILIES,
        errors=errors,
        default_cluster=0,
        reject_unmatched=False,
        max_key_bytes=512,
    )


class Traffic:
    """A client and a node, joined without sockets."""

    def __init__(self, ruleset: Ruleset) -> None:
        batch = Batch(lambda: None)
        self.latencies = Latencies(len(CLUSTERS))
        self.node = Upstream(batch, self.latencies, 0, 1.0)
        owners = array("h", [0] * 16384)
        slots = SlotMap([(True, owners), (False, owners[:1])], [[[self.node], [self.node]]])
        self.router = Router(ruleset, slots)
        self.client = Downstream(self.router, batch, 0)
        self.client.assume("default")

    def ask(self, *keys: str, command: str = "command0") -> None:
        frames = b"".join(pack([command.encode(), key.encode()]) for key in keys)
        assert self.client.receive_data(frames, 1.0) is None
        self.node.data_to_send(1.001)

    def answer(self, replies: bytes) -> bytes:
        assert not self.node.receive_data(replies, 1.003)
        return self.client.data_to_send()


def make_metrics(ruleset: Ruleset, traffic: Traffic) -> Metrics:
    return Metrics("1.2.3", CLUSTERS, traffic.latencies, ruleset)


def page(pieces: Iterable[bytes]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return name → sorted labels → value, as Prometheus understands the page."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(b"".join(pieces).decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            series_of = found.setdefault(sample.name, {})
            assert labels not in series_of, f"{sample.name}{labels} twice"
            series_of[labels] = sample.value
    return found


def requests(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """Return (keyspace, command, outcome) → count."""
    return {
        (dict(labels)["keyspace"], dict(labels)["command"], dict(labels)["outcome"]): value
        for labels, value in page(metrics.render()).get("sidecache_requests_total", {}).items()
    }


def test_every_request_is_counted_once_with_its_outcome() -> None:
    """The page counts each request once, by keyspace, command family and outcome."""
    ruleset = make_ruleset("seat", "cart")
    traffic = Traffic(ruleset)
    metrics = make_metrics(ruleset, traffic)
    traffic.ask("seat:1", "seat:2", "cart:1", "elsewhere")
    assert (
        traffic.answer(b"+OK\r\n-ERR no\r\n+OK\r\n+OK\r\n") == b"+OK\r\n-ERR no\r\n+OK\r\n+OK\r\n"
    )
    traffic.ask("cart:2", command="command3")
    traffic.client.connection_lost()
    assert requests(metrics) == {
        ("seat", "family0", "ok"): 1,
        ("seat", "family0", "error"): 1,
        ("cart", "family0", "ok"): 1,
        ("none", "family0", "ok"): 1,
        ("cart", "family3", "abandoned"): 1,
    }


def test_histograms_agree_with_themselves_and_with_the_clock() -> None:
    """Buckets are cumulative, end in the count, and sums are the seconds that passed."""
    ruleset = make_ruleset("seat")
    traffic = Traffic(ruleset)
    traffic.ask("seat:1", "seat:2")
    traffic.answer(b"+OK\r\n+OK\r\n")
    found = page(make_metrics(ruleset, traffic).render())
    cluster = (("cluster", "locks"),)
    for name, seconds in (
        ("sidecache_request_queue_seconds", 0.001),
        ("sidecache_request_upstream_seconds", 0.002),
        ("sidecache_request_seconds", 0.003),
    ):
        buckets = {
            float(dict(labels)["le"]): value
            for labels, value in found[f"{name}_bucket"].items()
            if dict(labels)["cluster"] == "locks"
        }
        assert sorted(buckets) == [*LATENCY_BOUNDS, float("inf")]
        assert [buckets[bound] for bound in sorted(buckets)] == sorted(buckets.values())
        assert all(value == (2 if bound > seconds else 0) for bound, value in buckets.items())
        assert found[f"{name}_count"][cluster] == 2
        assert found[f"{name}_sum"][cluster] == pytest.approx(2 * seconds)
        assert found[f"{name}_count"][("cluster", "cache"),] == 0


def test_a_reload_keeps_counts_by_name() -> None:
    """After a reload counts continue under the same names, whatever their new positions are."""
    first = make_ruleset("seat", "cart")
    traffic = Traffic(first)
    metrics = make_metrics(first, traffic)
    traffic.ask("seat:1", "cart:1", "cart:2")
    traffic.answer(b"+OK\r\n+OK\r\n+OK\r\n")
    second = make_ruleset("fresh", "cart", "seat")
    metrics.adopt(second)
    traffic.router.ruleset = second
    traffic.ask("fresh:1", "cart:3")
    traffic.answer(b"+OK\r\n+OK\r\n")
    expected = {"seat": 1, "cart": 3, "fresh": 1}
    assert {name: n for (name, _, _), n in requests(metrics).items()} == expected
    assert {name: n for (name, _, _), n in requests(metrics).items()} == expected


def test_a_request_in_flight_during_reloads_is_counted() -> None:
    """A request that was judged by rules of two reloads ago still counts, once."""
    ruleset = make_ruleset("seat", "cart")
    traffic = Traffic(ruleset)
    metrics = make_metrics(ruleset, traffic)
    traffic.ask("cart:1", "cart:2", "cart:3")
    traffic.answer(b"+OK\r\n")
    for names in (["cart"], ["other", "cart"]):
        ruleset = make_ruleset(*names)
        metrics.adopt(ruleset)
        traffic.router.ruleset = ruleset
        traffic.answer(b"+OK\r\n")
    assert requests(metrics) == {("cart", "family0", "ok"): 3}


def test_a_keyspace_that_is_gone_takes_its_series_along() -> None:
    """Reloads with ever new keyspaces do not pile up series."""
    ruleset = make_ruleset("keep", "gone0")
    traffic = Traffic(ruleset)
    metrics = make_metrics(ruleset, traffic)
    for n in range(1, 20):
        traffic.ask("keep:1", f"gone{n - 1}:1")
        traffic.answer(b"+OK\r\n+OK\r\n")
        ruleset = make_ruleset(f"gone{n}", "keep")
        metrics.adopt(ruleset)
        traffic.router.ruleset = ruleset
    assert requests(metrics) == {("keep", "family0", "ok"): 19}


def test_no_caller_can_add_a_series() -> None:
    """A word outside the closed sets counts as other."""
    ruleset = make_ruleset("seat")
    metrics = make_metrics(ruleset, Traffic(ruleset))
    node = metrics.node("locks", "127.0.0.1:7000")
    for n in range(100):
        metrics.connections_closed.count(f"reason {n}")
        metrics.connections_refused.count(f"reason {n}")
        node.redirect(f"kind {n}")
        node.error(f"error {n}")
    metrics.connections_closed.count("idle", amount=2)
    found = page(metrics.render())
    closed = found["sidecache_connections_closed_total"]
    assert closed[(("reason", "other"),)] == 100
    assert closed[(("reason", "idle"),)] == 2
    labels = (("cluster", "locks"), ("node", "127.0.0.1:7000"), ("reason", "other"))
    assert found["sidecache_node_redirects_total"] == {labels: 100}
    assert found["sidecache_node_errors_total"] == {labels: 100}


def test_node_series_follow_the_topology() -> None:
    """A node shows its connections, load and state while the topology knows it, and not after."""
    ruleset = make_ruleset("seat")
    metrics = make_metrics(ruleset, Traffic(ruleset))
    node = metrics.node("locks", "127.0.0.1:7000")
    node.connections, node.in_flight, node.state = (lambda: 2), (lambda: 17), "up"
    metrics.node("cache", "127.0.0.1:7000")
    assert metrics.node("locks", "127.0.0.1:7000") is node
    labels = (("cluster", "locks"), ("node", "127.0.0.1:7000"))
    found = page(metrics.render())
    assert found["sidecache_node_connections"][labels] == 2
    assert found["sidecache_node_in_flight"][labels] == 17
    assert found["sidecache_node_state"][(*labels, ("state", "up"))] == 1
    assert found["sidecache_node_state"][(*labels, ("state", "down"))] == 0
    metrics.keep_nodes("locks", ["127.0.0.1:7001"])
    found = page(metrics.render())
    assert set(found["sidecache_node_connections"]) == {(("cluster", "cache"), labels[1])}


def test_a_topology_that_names_endless_nodes_does_not_grow_the_page() -> None:
    """Beyond the limit nodes share one label."""
    ruleset = make_ruleset("seat")
    metrics = make_metrics(ruleset, Traffic(ruleset))
    for n in range(10 * MAX_NODES):
        metrics.node("locks", f"10.0.0.1:{n}").error("timeout")
    found = page(metrics.render())
    assert len(found["sidecache_node_connections"]) == MAX_NODES + 1
    assert sum(found["sidecache_node_errors_total"].values()) == 10 * MAX_NODES


def test_the_page_says_what_runs_and_how_it_is() -> None:
    """Build, clients, reloads, drain, lag and dropped log lines are on the page from the start."""
    ruleset = make_ruleset("seat")
    metrics = make_metrics(ruleset, Traffic(ruleset))
    metrics.clients.set_function(lambda: 3)
    metrics.draining.set(1)
    metrics.reloads.count("failed")
    metrics.topology_refreshes.count("locks", "changed")
    metrics.connections_received.count(amount=4)
    found = page(metrics.render())
    assert [dict(labels)["version"] for labels in found["sidecache_build_info"]] == ["1.2.3"]
    assert found["sidecache_clients"][()] == 3
    assert found["sidecache_draining"][()] == 1
    assert found["sidecache_reloads_total"][(("outcome", "failed"),)] == 1
    assert found["sidecache_reloads_total"][(("outcome", "changed"),)] == 0
    refreshes = found["sidecache_topology_refreshes_total"]
    assert refreshes[(("cluster", "locks"), ("outcome", "changed"))] == 1
    assert found["sidecache_connections_received_total"][()] == 4
    assert found["sidecache_log_lines_dropped_total"][()] == log.dropped()
    assert found["process_resident_memory_bytes"][()] > 0
    assert not any(name.endswith("_created") for name in found)


def fill(traffic: Traffic, keyspaces: int) -> None:
    """Use every command in every keyspace."""
    for command in range(len(FAMILIES)):
        for keyspace in range(keyspaces):
            traffic.ask(f"keyspace{keyspace}:1", command=f"command{command}")
            traffic.answer(b"+OK\r\n")


def test_the_number_of_series_is_known_before_traffic() -> None:
    """`series` is an upper bound that a busy page with every node in trouble comes close to."""
    ruleset = make_ruleset(*(f"keyspace{n}" for n in range(10)))
    traffic = Traffic(ruleset)
    metrics = make_metrics(ruleset, traffic)
    fill(traffic, 10)
    for n in range(6):
        metrics.node("locks", f"10.0.0.1:{n}").error("timeout")
    shown = sum(len(values) for values in page(metrics.render()).values())
    fixed, per_node = series(ruleset, CLUSTERS)
    bound = fixed + 6 * per_node
    assert shown <= bound
    # One outcome of four was used, no rule was broken, and no node saw every error.
    assert bound - shown == 10 * 20 * 3 + 20 * 4 + 10 * 8 * 2 + 10 * 3 + 6 * 16


def test_a_thousand_series_render_in_pieces_of_less_than_a_millisecond() -> None:
    """No piece of a page of 1,000 request series and twelve nodes holds the processor for 1 ms."""
    ruleset = make_ruleset(*(f"keyspace{n}" for n in range(50)))
    traffic = Traffic(ruleset)
    metrics = make_metrics(ruleset, traffic)
    fill(traffic, 50)
    for n in range(12):
        metrics.node("locks", f"127.0.0.1:70{n:02}").error("timeout")
    assert len(requests(metrics)) == 1000
    best: dict[int, float] = {}
    for _ in range(20):
        begun = time.thread_time()
        for index, _piece in enumerate(metrics.render()):
            ended = time.thread_time()
            best[index] = min(best.get(index, 1.0), ended - begun)
            begun = ended
    assert max(best.values()) < 0.001, best


def test_labels_are_escaped() -> None:
    """A quote, a backslash or a line break in a name cannot break the page."""
    ruleset = make_ruleset('odd"name\\with\nbreaks')
    traffic = Traffic(ruleset)
    traffic.ask('odd"name\\with\nbreaks:1')
    assert len(requests(make_metrics(ruleset, traffic))) == 1
