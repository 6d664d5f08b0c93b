"""Rate limits through real proxies and clusters: who is refused, who is not, and without Redis."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.node import Node
from proxy.embedded.redis import Servers, Shape
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.upstream.errands import Script
from tests.conftest import Clusters, StartCluster
from tests.integration.rig import Caller, StartProxy, wait_for
from tests.quiet import Stopwatch
from tests.wallclock import WallClock

pytestmark = pytest.mark.integration

# What the application allows: by user, address, event and altogether.
RULES = (Path(__file__).parents[2] / "policies" / "abuse.yaml").read_text()

SEVEN = {
    "rate_limit:user:{}:booking:hourly": 5,
    "rate_limit:user:{}:booking:daily": 20,
    "rate_limit:user:{}:api:minute": 60,
    "rate_limit:ip:10.0.0.{}:booking:hourly": 50,
    "rate_limit:ip:10.0.0.{}:api:minute": 300,
    "rate_limit:event:{}:booking:minute": 100,
    "rate_limit:global:booking:second": 50,
}


def counts(replies: list[Any]) -> Counter[str]:
    """Return how many replies were values, and how many refusals of a limit."""
    return Counter("refused" if "RATELIMITED" in str(reply) else "passed" for reply in replies)


async def with_rules(start: StartProxy, folder: Path, text: str, **blocks: Any) -> Sidecar:
    (folder / "rules.yaml").write_text(text)
    return await start(policies=str(folder / "rules.yaml"), **blocks)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_seven_limits(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path, protocol: int
) -> None:
    """Below its limit nobody is refused, at ten times it what is allowed passes and no more."""
    sidecar = await with_rules(proxy_process, tmp_path, RULES)
    caller = await Caller.open(sidecar.port)
    await caller.call("HELLO", protocol)
    for pattern, limit in SEVEN.items():
        ids = ("1", "2") if "{}" in pattern else ("1",)
        few = max(1, limit // 100)
        for name in ids:
            key = pattern.format(name)
            assert counts(await caller.pipeline([["INCR", key]] * few)) == {"passed": few}
            start = time.monotonic()
            found = counts(await caller.pipeline([["INCR", key]] * (10 * limit)))
            windows = 1 + int(time.monotonic() - start) if "second" in key else 1
            assert limit - few <= found["passed"] <= limit * windows - few, key
            # What does not count passes, whatever was refused; a second may be over.
            held = await caller.call("GET", key)
            assert "second" in key or int(held) == found["passed"] + few
    line = str(await caller.call("INCR", "rate_limit:user:1:booking:hourly"))
    front = "RATELIMITED keyspace rate_user_booking_hourly allows 5/h per user_id; retry_after_ms="
    assert line.startswith(front)
    assert 3_500_000 < int(line.removeprefix(front)) <= 3_600_000
    # What the limits count by is nobody's business.
    assert not [key for key in await caller.call("KEYS", "*") if b"sidecache" in key]
    caller.close()


async def test_a_full_limit_leaves_no_transaction_open(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """A client's pool gets no connection back that queues what its next user sends."""
    text = "roles: {default: {rate: [{per: user, limit: 10/min, algorithm: window}]}}"
    sidecar = await with_rules(proxy_process, tmp_path, text)
    caller = await Caller.open(sidecar.port)
    sent = [("MULTI",), *[("SET", f"{{z}}{n}", n) for n in range(10)], ("EXEC",)]
    assert (await caller.pipeline(sent))[-1] == [b"OK"] * 10
    assert "RATELIMITED" in str(await caller.call("GET", "{z}1"))
    assert str(await caller.call("EXEC")) == "ERR EXEC without MULTI"
    caller.close()


SHARED = """
keyspaces:
  even: {key: "even:{x}", rate: [{per: global, limit: 1000/s, scope: shared}]}
  exact: {key: "exact:{x}", rate: [{per: global, limit: 200/s, scope: shared, algorithm: window}]}
"""


async def flood(callers: list[Caller], key: str, seconds: float) -> int:
    """Send as fast as replies come, and return how many commands passed."""
    end = time.monotonic() + seconds

    async def one(caller: Caller) -> int:
        passed = 0
        while time.monotonic() < end:
            passed += counts(await caller.pipeline([["SET", key, "v"]] * 10))["passed"]
            await asyncio.sleep(0.001)
        return passed

    return sum(await asyncio.gather(*map(one, callers)))


@pytest.mark.long
async def test_three_sidecars_share_a_limit(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Far above the limit, what three sidecars let through together is the limit, within 2 %."""
    sidecars = [await with_rules(proxy_process, tmp_path, SHARED) for _ in range(3)]
    callers = [await Caller.open(sidecar.port) for sidecar in sidecars for _ in range(2)]
    await flood(callers, "even:1", 0.2)  # the burst
    start = time.monotonic()
    passed = await flood(callers, "even:1", 10.0)
    shares = {"even": passed / (1000 * (time.monotonic() - start))}
    # A window's cells come in heaps, a period apart: six of them in five periods and a half.
    shares["exact"] = await flood(callers, "exact:1", 5.5) / (6 * 200)
    print("of what was due:", {key: f"{share:.4f}" for key, share in shares.items()})
    for share in shares.values():
        assert abs(share - 1) <= 0.02, shares
    for caller in callers:
        caller.close()


async def test_two_sidecars_count_together(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """What one sidecar has let through, another does not let through again."""
    text = SHARED.replace("200/s", "100/min")
    sidecars = [await with_rules(proxy_process, tmp_path, text) for _ in range(2)]
    callers = [await Caller.open(sidecar.port) for sidecar in sidecars]
    commands = [["SET", "exact:1", "v"]] * 90
    found = await asyncio.gather(*(caller.pipeline(commands) for caller in callers))
    assert sum((counts(replies) for replies in found), Counter()) == {"passed": 100, "refused": 80}
    for caller in callers:
        caller.close()


AWAY = """
keyspaces:
  free: {key: "free:{x}", cluster: locks}
defaults: {cluster: cache}
roles:
  default:
    rate:
      - {per: user, limit: 30/h, scope: shared, on_unavailable: deny, commands: [STRLEN]}
      - {per: user, limit: 30/h, scope: shared, on_unavailable: allow, commands: [TTL]}
      - {per: user, limit: 30/h, burst: 29, scope: shared, commands: [GET]}
"""


ALONE = re.compile(r'outcome="alone",reason="role default 2: 30/h per user"} (\d+)')


async def decided_alone(sidecar: Sidecar) -> int:
    """Return how many GETs were let through without Redis."""
    found = ALONE.search((await sidecar.get("/metrics"))[1])
    return int(found[1]) if found else 0


async def test_redis_is_away(
    clusters: Clusters, start_cluster: StartCluster, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """While the cluster that counts is down, a limit does as it says; one log line, one gauge."""
    cache = await start_cluster(shape=Shape(1, 0))
    (tmp_path / "rules.yaml").write_text(AWAY)
    sidecar = await proxy_process(
        {"locks": clusters.locks, "cache": cache}, policies=str(tmp_path / "rules.yaml")
    )
    caller = await Caller.open(sidecar.port)
    assert counts(await caller.pipeline([["GET", "free:1"]] * 5)) == {"passed": 5}
    # A busy machine may be too slow for an answer to the first one.
    early = await decided_alone(sidecar)
    (node,) = cache.nodes
    os.kill(node.pid or 0, signal.SIGSTOP)
    try:
        for command, passed in (("STRLEN", 0), ("TTL", 40), ("GET", 30 - early)):
            watch = Stopwatch(sidecar.pid)
            found = counts(await caller.pipeline([[command, "free:1"]] * 40))
            assert found["passed"] == passed, (command, found)
            assert watch.spent < 2
        _, page = await sidecar.get("/metrics")
        assert 'sidecache_rate_limits_alone{cluster="cache"} 1.0' in page
        assert await decided_alone(sidecar) == 30
    finally:
        os.kill(node.pid or 0, signal.SIGCONT)
    assert sidecar.child.launch.log.read_text().count("shared_rates_away") == 1
    caller.close()


async def test_a_reload_forgets_nothing(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Rules that are read again go on with the counts of limits that did not change."""
    text = (
        'keyspaces:\n  k: {key: "k:{x}", rate: [{per: x, limit: 5/h, algorithm: window}, '
        "{per: client, limit: 9/h, burst: 9}]}\n"
    )
    sidecar = await with_rules(proxy_process, tmp_path, text)
    caller = await Caller.open(sidecar.port)
    assert counts(await caller.pipeline([["GET", "k:1"]] * 7)) == {"passed": 5, "refused": 2}
    (tmp_path / "rules.yaml").write_text(text + '  other: {key: "other:{x}"}\n')
    os.kill(sidecar.pid or 0, signal.SIGHUP)

    async def reloaded() -> bool:
        _, page = await sidecar.get("/metrics")
        return 'sidecache_reloads_total{outcome="changed"} 1.0' in page

    await wait_for(reloaded, "the reload")
    assert counts(await caller.pipeline([["GET", "k:1"]] * 3)) == {"refused": 3}
    assert counts(await caller.pipeline([["GET", "k:2"]] * 7)) == {"passed": 5, "refused": 2}
    _, page = await sidecar.get("/metrics")
    line = (
        'sidecache_rate_limited_total{keyspace="k",outcome="accepted",reason="0: 5/h per x"} 10.0'
    )
    assert line in page
    caller.close()


async def test_who_shares(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """Connections of one user and of one address share their limits, and have their own besides."""
    lines = "".join(
        f'  {per}s: {{key: "{per}:{{x}}", rate: [{{per: {per}, limit: 5/h, algorithm: window}}]}}\n'
        for per in ("user", "ip", "client")
    )
    sidecar = await with_rules(proxy_process, tmp_path, "keyspaces:\n" + lines)
    first, second = await Caller.open(sidecar.port), await Caller.open(sidecar.port)
    for per, left in (("user", 2), ("ip", 2), ("client", 5)):
        assert counts(await first.pipeline([["GET", f"{per}:1"]] * 3)) == {"passed": 3}
        assert counts(await second.pipeline([["GET", f"{per}:2"]] * 9))["passed"] == left
    first.close()
    second.close()


JUMPING = """
keyspaces:
  exact: {key: "exact:{x}", rate: [{per: x, limit: 5/h, algorithm: window}]}
  even: {key: "even:{x}", rate: [{per: x, limit: 5/h, burst: 4}]}
  shared: {key: "shared:{x}", rate: [{per: x, limit: 5/h, algorithm: window, scope: shared}]}
  short: {key: "short:{x}", rate: [{per: x, limit: 5/s, algorithm: window}]}
"""


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_a_wall_clock_that_jumps(
    empty_clusters: Clusters, both_clusters: dict[str, Servers], tmp_path: Path, seconds: int
) -> None:
    """An hour forth or back: what was used stays used, and what is due then is not put off."""
    (tmp_path / "rules.yaml").write_text(JUMPING)
    configuration = configuration_for(
        both_clusters, policies=str(tmp_path / "rules.yaml"), slow_log={"slower_than": "0s"}
    )
    sidecar = Sidecar(configuration, tmp_path)
    clock = WallClock(sidecar, tmp_path)
    async with sidecar:
        caller = await Caller.open(sidecar.port)

        async def passed(space: str) -> int:
            return counts(await caller.pipeline([["GET", f"{space}:1"]] * 9))["passed"]

        spaces = ("exact", "even", "shared", "short")
        assert [await passed(space) for space in spaces] == [5] * 4
        clock.set_ahead(seconds)
        assert [await passed(space) for space in spaces[:3]] == [0] * 3
        line = str(await caller.call("GET", "exact:1"))
        assert 3_590_000 < int(line.rpartition("=")[2]) <= 3_600_000
        await wait_for(lambda: passed("short"), "room a second later", 5.0)
        ((_, when, *_),) = await caller.call("SLOWLOG", "GET", 1)
        assert when == pytest.approx(time.time() + seconds, abs=60)
        caller.close()


async def reserve(node: Node, key: str, *words: object) -> list[int]:
    script = Script("rate").body.decode()
    reply = await node.ask("EVAL", script, 1, key, *map(str, words))
    return [int(number) for number in reply]


async def test_the_script_grants_what_is_left(plain_redis: Node) -> None:
    """Of an exact window and of an even pace: as many as there is room for, and until when."""
    await plain_redis.ask("DEL", "{w}", "{e}", "{f}")
    assert await reserve(plain_redis, "{w}", 3, 5, 60_000_000, -1) == [3, 0]
    granted, wait = await reserve(plain_redis, "{w}", 9, 5, 60_000_000, -1)
    assert (granted, 59_000_000 < wait <= 60_000_000) == (2, True)
    assert await plain_redis.ask("LLEN", "{w}") == 5
    assert 0 < await plain_redis.ask("PTTL", "{w}") <= 60_000
    # One at once, and two beyond the pace of one in twelve seconds.
    granted, wait = await reserve(plain_redis, "{e}", 9, 5, 60_000_000, 24_000_000)
    assert (granted, 11_000_000 < wait <= 12_000_000) == (3, True)
    assert 0 < await plain_redis.ask("PTTL", "{e}") <= 36_001
    # Four sevenths of a second, as they are told: rounded.
    assert (await reserve(plain_redis, "{f}", 9, 7, 1_000_000, "571428.571"))[0] == 5


async def test_a_clock_that_goes_back_opens_and_closes_nothing(plain_redis: Node) -> None:
    """A node that is promoted with a clock an hour behind counts on from what it was given."""
    now = (time.time() + 3600) * 1e6
    await plain_redis.ask("DEL", "{w}", "{e}")
    for _ in range(5):
        await plain_redis.ask("RPUSH", "{w}", f"{now:.2f}")
    granted, wait = await reserve(plain_redis, "{w}", 1, 5, 60_000_000, -1)
    assert (granted, 59_000_000 < wait <= 60_000_000) == (0, True)
    await plain_redis.ask("SET", "{e}", f"{now:.2f}")
    granted, wait = await reserve(plain_redis, "{e}", 1, 5, 60_000_000, 24_000_000)
    assert (granted, 11_000_000 < wait <= 12_000_000) == (0, True)
    # The next in twelve seconds, and not in an hour.
    assert float(await plain_redis.ask("GET", "{e}")) < time.time() * 1e6 + 36_000_001
    assert await plain_redis.ask("PTTL", "{e}") <= 36_001
