"""What an operator sees of traffic, through a proxy in front of real clusters."""

import asyncio
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.redis import Servers
from proxy.embedded.sidecar import Sidecar
from proxy.handlers.budget import BURST, INTERVAL
from tests.integration.rig import Caller, StartProxy, is_error, resident_bytes, wait_for

pytestmark = pytest.mark.integration

PARTS = ("policy_us", "queue_us", "upstream_us", "write_us")
MIB = 1 << 20

# Who may log in, and how often an address may fail before its next attempts have to wait.
KNOWN = {f"known{number}": {"password": f"right{number}"} for number in range(50)}
GUESSES = 10

# Tables that fill, and what the allocator keeps.
MOST_GROWN = 8 * MIB


async def page(sidecar: Sidecar, path: str) -> list[dict[str, Any]]:
    status, text = await sidecar.get(path)
    assert status == 200
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_traffic_is_seen(proxy_process: StartProxy, tmp_path: Path, protocol: int) -> None:
    """Commands of all ways are in the access log and the slow log, with their four parts."""
    file = tmp_path / "access.log"
    sidecar = await proxy_process(
        access_log={"sample": "100%", "file": str(file), "keys": "plain"},
        slow_log={"slower_than": "0s", "keys": "plain"},
        hot_keys={"sample": "100%", "keys": "plain"},
    )
    caller = await Caller.open(sidecar.port)
    await caller.call("HELLO", protocol)
    keys = [f"thing:{number}" for number in range(8)]
    assert await caller.pipeline([("SET", key, "x" * 30_000, "EX", 60) for key in keys]) == [
        *[b"OK"] * len(keys)
    ]
    assert len(await caller.call("MGET", *keys)) == len(keys)
    assert await caller.call("WATCH", keys[0]) == b"OK"
    await caller.pipeline([("MULTI",), ("GET", keys[0])])
    assert await caller.call("EXEC") == [b"x" * 30_000]
    assert await caller.call("BLPOP", "nothing", "0.01") is None
    assert await caller.call("INCR", keys[0])  # an error of the node

    shown = await caller.call("SLOWLOG", "GET", "-1")
    assert all(len(entry) == 6 for entry in shown)
    names = [entry[3][0] for entry in shown]
    assert {b"SET", b"MGET", b"EXEC", b"WATCH"} <= set(names)
    assert names.count(b"MGET") == 1
    assert b"BLPOP" not in names
    took = {entry[0]: entry[2] for entry in shown}
    entries = {entry["number"]: entry for entry in await page(sidecar, "/slowlog")}
    for number, microseconds in took.items():
        assert sum(entries[number][part] for part in PARTS) == microseconds
    by_name = {entry["name"]: entry for entry in entries.values()}
    assert by_name["mget"]["upstream_us"] > 0
    assert by_name["exec"]["upstream_us"] > 0
    assert by_name["set"]["node"].startswith("127.0.0.1:")

    def lines() -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in file.read_text().splitlines()]
        return {line["name"]: line for line in found}

    await wait_for(lambda: "incr" in lines(), "the lines")
    seen = lines()
    assert seen["set"]["command"] == ["SET", "thing:7", "*" * 64, "EX", "60"]
    assert (seen["set"]["user"], seen["set"]["lengths"]) == ("default", {"2": 30_000})
    assert seen["incr"]["outcome"] == "error"
    assert seen["mget"]["keys"] == keys
    assert {"blpop", "exec", "hello"} <= set(seen)
    assert seen["hello"]["command"] == ["HELLO", "(redacted)"]
    (hot,) = await page(sidecar, "/hotkeys")
    assert hot["keys"][0]["key"] == "thing:0"
    (big,) = await page(sidecar, "/bigkeys")
    assert {row["key"] for row in big["keys"]} == set(keys)


async def test_info_counts_topics(proxy: Sidecar) -> None:
    """INFO tells how many channels and patterns somebody is subscribed to, each once."""
    callers = [await Caller.open(proxy.port) for _ in range(3)]
    for caller in callers[:2]:
        await caller.call("SUBSCRIBE", "sight:a")
    await callers[0].call("PSUBSCRIBE", "sight:*")
    shown = bytes(await callers[2].call("INFO", "stats")).split(b"\r\n")
    assert {b"pubsub_channels:1", b"pubsub_patterns:1", b"pubsubshard_channels:0"} <= set(shown)


def series_of(text: str) -> int:
    return sum(not line.startswith("#") for line in text.splitlines())


async def scrape(sidecar: Sidecar) -> tuple[int, int, float]:
    """Return series, bytes and milliseconds of a scrape, the fastest of five."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        _, text = await sidecar.get("/metrics")
        times.append((time.monotonic() - start) * 1000)
    return series_of(text), len(text), min(times)


def flood_of(count: int) -> Iterator[list[tuple[str | int, ...]]]:
    """Yield pipelines of ever new keys, commands and names, so many of each.

    Users are few, as whoever fails to log in is made to wait (`guessed` has many); so are errors
    of nodes, which keep each script that they have run.
    """
    for start in range(0, count, 100):
        numbers = range(start, min(start + 100, count))
        yield [("GET", f"flood:{number}") for number in numbers]
        yield [(f"nosuch{number}", f"word{number}") for number in numbers]
        if start == 0:
            yield [("AUTH", f"user{number}", f"hunter22{number}") for number in range(8)]
        yield [("CLIENT", "SETNAME", f"client{number}") for number in numbers]
        yield [
            ("EVAL", f"return redis.error_reply('MINE{number % 977} x')", 0)
            for number in numbers[::10]
        ]


async def flooded(
    start: StartProxy, clusters: dict[str, Servers], folder: Path, count: int, **blocks: Any
) -> Sidecar:
    """Send ever new words; nothing that is kept may grow."""
    file = folder / "access.log"
    sidecar = await start(
        clusters,
        access_log={"sample": "100%", "file": str(file)},
        hot_keys={"sample": "100%"},
        **blocks,
    )
    caller = await Caller.open(sidecar.port)
    pipelines = flood_of(count)
    for _ in range(20):  # every kind of command once, and the buffers that they need
        await caller.pipeline(next(pipelines))
    before, memory = await scrape(sidecar), resident_bytes(sidecar.pid)
    begun = time.monotonic()
    for pipeline in pipelines:
        await caller.pipeline(pipeline)
    seconds = time.monotonic() - begun
    after, grown = await scrape(sidecar), resident_bytes(sidecar.pid) - memory
    log = (sidecar.directory / "sidecache.log").read_text()
    text = file.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    per_second = Counter(row["time"][:19] for row in rows).most_common(1)[0][1]
    print(
        f"{count} of each kind in {seconds:.1f} s: series {before[0]} -> {after[0]}, scrape "
        f"{before[1]} -> {after[1]} bytes, {before[2]:.1f} -> {after[2]:.1f} ms; access log "
        f"{len(rows) / seconds:.0f} lines/s, {len(text) / seconds:.0f} bytes/s; log "
        f"{len(log.splitlines()) / seconds:.0f} lines/s; memory {grown / MIB:+.1f} MiB"
    )
    assert grown <= MOST_GROWN
    assert after[0] == before[0] <= 1500
    assert after[1] <= before[1] + 1000  # longer numbers
    assert after[1] <= 256 * 1024
    assert per_second <= 100
    assert len(text) <= 64 * 1024 * (seconds + 1)
    assert len(log.splitlines()) <= 100 * (seconds + 1)
    for line in log.splitlines():
        assert json.loads(line)
    for secret in ("hunter22", "flood:", "nosuch"):
        assert secret not in text
        assert secret not in log
    return sidecar


async def test_nothing_grows_with_what_clients_send(
    proxy_process: StartProxy, both_clusters: dict[str, Servers], tmp_path: Path
) -> None:
    """Thousands of new words, all sampled and slow, add no series; lines stay within limits."""
    sidecar = await flooded(
        proxy_process, both_clusters, tmp_path, 5_000, slow_log={"slower_than": "0s"}
    )
    (hot,) = await page(sidecar, "/hotkeys")
    assert len(hot["keys"]) == 100


async def guess(port: int, number: int) -> None:
    """Fail to log in under ten new names, from an address that nobody else has."""
    source = ipaddress.IPv4Address("127.1.0.0") + number
    caller = await Caller.open(port, str(source))
    names = [f"stranger{number * GUESSES + place}" for place in range(GUESSES)]
    replies = await caller.pipeline(
        [("AUTH", name, "hunter22") for name in names[::2]]
        + [("HELLO", 3, "AUTH", name, "hunter22") for name in names[1::2]]
    )
    assert all(str(reply).startswith("WRONGPASS") for reply in replies), replies
    caller.close()


async def guess_on(port: int, numbers: range) -> None:
    for number in numbers:
        await guess(port, number)


async def log_in(port: int) -> None:
    """Log in as each of those who may, in both ways."""
    caller = await Caller.open(port)
    for number, name in enumerate(KNOWN):
        assert await caller.call("AUTH", name, f"right{number}") == b"OK"
        assert not is_error(await caller.call("HELLO", 3, "AUTH", name, f"right{number}"))
    caller.close()


async def guessed(
    start: StartProxy, clusters: dict[str, Servers], folder: Path, count: int
) -> Sidecar:
    """Try to log in under so many names, from a tenth as many addresses; nothing kept may grow."""
    file = folder / "access.log"
    sidecar = await start(
        clusters, users={"default": {"nopass": True}} | KNOWN,
        access_log={"sample": "100%", "file": str(file)},
    )  # fmt: skip
    begun, last = time.monotonic(), count // GUESSES
    await log_in(sidecar.port)
    warm = 500  # addresses; the table of those who failed fills in the rest
    await guess_on(sidecar.port, range(warm))
    before, memory = await scrape(sidecar), resident_bytes(sidecar.pid)
    await asyncio.gather(
        *(guess_on(sidecar.port, range(warm + first, last, 20)) for first in range(20))
    )
    await log_in(sidecar.port)
    seconds = time.monotonic() - begun
    after, grown = await scrape(sidecar), resident_bytes(sidecar.pid) - memory
    log, text = (sidecar.directory / "sidecache.log").read_text(), file.read_text()
    print(
        f"{count} names in {seconds:.1f} s: series {before[0]} -> {after[0]}, scrape {before[1]} "
        f"-> {after[1]} bytes; access log {len(text.splitlines()) / seconds:.0f} lines/s; log "
        f"{len(log.splitlines()) / seconds:.0f} lines/s; memory {grown / MIB:+.1f} MiB"
    )
    assert grown <= MOST_GROWN
    assert after[0] == before[0] <= 1500
    assert after[1] <= before[1] + 1000  # longer numbers
    assert len(text.splitlines()) <= 100 * (seconds + 1)
    assert len(log.splitlines()) <= 100 * (seconds + 1)
    for word in ("hunter22", "stranger", "right"):
        assert word not in text
        assert word not in log
    caller = await Caller.open(sidecar.port)
    assert len(await caller.call("ACL", "LOG", count)) == 128
    return sidecar


async def test_nothing_grows_with_who_fails_to_log_in(
    proxy_process: StartProxy, both_clusters: dict[str, Servers], tmp_path: Path
) -> None:
    """Thousands of names add no series or lines, and each address has its budget of failures."""
    sidecar = await guessed(proxy_process, both_clusters, tmp_path, 20_000)
    caller = await Caller.open(sidecar.port, "127.0.0.2")
    begun = time.monotonic()
    free = int(BURST / INTERVAL)
    await caller.pipeline([("AUTH", f"more{number}", "hunter22") for number in range(free + 12)])
    # Behind the first, which is another account's, and one more than are free, five a second.
    assert time.monotonic() - begun >= 10 * INTERVAL - 0.05
    assert await (await Caller.open(sidecar.port, "127.0.0.3")).call("PING") == b"PONG"
