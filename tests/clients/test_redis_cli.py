"""The modes of redis-cli that admins use, through the proxy: bulk loading, latency, MONITOR."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.clients.test_everyday import run
from tests.integration.rig import Caller
from tests.replies import pack

StartProxy = Callable[..., Awaitable[Sidecar]]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("empty_clusters")]

ROLES = """
roles:
  default: {commands: {deny: [MONITOR]}}
  admin: {}
"""


async def test_a_hundred_thousand_commands_are_piped(
    redis_cli: str, proxy: Sidecar, tmp_path: Path
) -> None:
    """`--pipe` loads 100,000 commands over both clusters and counts as many replies, no error."""
    commands = tmp_path / "commands"
    commands.write_bytes(b"".join(pack("INCR", f"piped:{n % 5000}") for n in range(100_000)))
    out = await run(redis_cli, "-p", str(proxy.port), "--pipe", stdin=commands)
    assert "errors: 0, replies: 100000" in out
    caller = await Caller.open(proxy.port)
    counts = await caller.pipeline([("GET", f"piped:{n}") for n in range(5000)])
    caller.close()
    assert set(counts) == {b"20"}


async def test_latency_is_measured(redis_cli: str, proxy: Sidecar) -> None:
    """`--latency` samples PING and tells least, most and average in milliseconds."""
    out = await run(redis_cli, "-p", str(proxy.port), "--raw", "--latency")
    least, most, average, samples = map(float, out.split())
    assert samples >= 1
    assert 0 <= least <= average <= most < 1000


async def test_monitor_shows_what_others_send(
    redis_cli: str, proxy_process: StartProxy, tmp_path: Path
) -> None:
    """`monitor` prints a line per command for the role that may, and a refusal for others."""
    (tmp_path / "roles.yaml").write_text(ROLES)
    users = {
        "default": {"nopass": True, "role": "default"},
        "ops": {"password": "s3cret", "role": "admin"},
    }
    sidecar = await proxy_process(policies=str(tmp_path), users=users)
    port = str(sidecar.port)
    assert (await run(redis_cli, "-p", port, "monitor")).startswith("NOPERM")
    words = (redis_cli, "-p", port, "--user", "ops", "--pass", "s3cret", "--no-auth-warning")
    process = await asyncio.create_subprocess_exec(
        *words, "monitor", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20.0):
            assert await process.stdout.readline() == b"OK\n"
            caller = await Caller.open(sidecar.port)
            assert await caller.call("SET", "watched", "two words") == b"OK"
            line = (await process.stdout.readline()).decode()
            caller.close()
    finally:
        process.kill()
        await process.communicate()
    assert re.fullmatch(r'\d+\.\d{6} \[0 127\.0\.0\.1:\d+\] "SET" "watched" "two words"\n', line)
