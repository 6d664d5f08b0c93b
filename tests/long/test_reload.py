"""Reloads at acceptance scale."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.reload import alone, proxy_here, write_rules
from tests.integration.rig import StartProxy
from tests.integration.test_reload import Traffic, assert_all_seen, reload_under_traffic, rules

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600)]

RELOADS = 100
KEYSPACES = 1000
RATE = 2000  # commands per second
CLIENTS = 20


def many(version: int) -> dict[str, Any]:
    """Return keyspaces of which each has other rules in each version."""
    return {
        f"space_{number}": {
            "key": f"space_{number}:{{user:int}}:{{rest}}",
            "cluster": "cache",
            "ttl": {"default": "60s", "max": f"{900 + version}s"},
            "key_grammar": {"characters": "A-Za-z0-9:_-", "max_bytes": 100 + version},
        }
        for number in range(KEYSPACES)
    }


async def test_the_loop_goes_on_while_rules_change(tmp_path: Path) -> None:
    """With a thousand keyspaces a reload keeps the loop for 10 ms at most, whoever else works."""
    write_rules(tmp_path / "policies", KEYSPACES, 0)
    async with proxy_here(tmp_path) as (app, _):
        figures = await alone(app, tmp_path / "policies", KEYSPACES)
    print(figures)
    assert figures["loop_most_ms"] <= 10
    assert figures["own_most_ms"] <= 10


async def test_a_hundred_reloads_in_a_row(proxy_process: StartProxy, tmp_path: Path) -> None:
    """No command fails, none is judged by half of two versions, and each is counted."""
    texts = [yaml.safe_dump(rules(version, **many(version))) for version in (0, 1)]
    traffic, begun = Traffic(CLIENTS, RATE), time.monotonic()
    sidecar, seconds = await reload_under_traffic(
        proxy_process, tmp_path / "rules", texts, RELOADS, traffic
    )
    rate = traffic.done / (time.monotonic() - begun)
    print(
        f"{RELOADS} reloads of {KEYSPACES} keyspaces under {rate:.0f} commands/s: "
        f"{statistics.median(seconds):.2f} s each, at most {max(seconds):.2f}; {traffic.done} "
        f"commands, {len(traffic.wrong)} failed or judged by half"
    )
    await assert_all_seen(traffic, sidecar)
    assert rate >= 0.9 * RATE
