"""Unmodified job queues and frameworks do their work through the proxy, on two clusters.

Each runs as a process of its own with the settings that it comes with; the policies are the shipped
examples. They are the judges: a program prints `done` when all it got was right.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.integration.rig import StartProxy
from tests.npm import installed

HERE = Path(__file__).parent / "frameworks"
ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "policies" / "examples"

RUN_TIMEOUT = 120.0

pytestmark = pytest.mark.integration


@pytest.fixture
async def sidecar(proxy_process: StartProxy, tmp_path: Path) -> Sidecar:
    """A proxy with the policies of all the frameworks."""
    for file in EXAMPLES.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    shutil.copytree(EXAMPLES / "lua", tmp_path / "lua")
    return await proxy_process(policies=str(tmp_path))


@pytest.fixture(scope="module")
async def node_folder() -> AsyncIterator[Path]:
    """A folder with the frameworks of npm."""
    async with installed([*HERE.glob("*.mjs"), HERE / "package.json"]) as folder:
        yield folder


async def judge(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a program that prints `done` when everything was right."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "done" in out.decode().splitlines(), out.decode()[-3000:]


@contextlib.asynccontextmanager
async def worker(*command: str, **environment: str) -> AsyncIterator[None]:
    """Run a worker meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10.0)
        if process.returncode is None:
            process.kill()
            await process.wait()


def url_of(sidecar: Sidecar) -> str:
    return f"redis://127.0.0.1:{sidecar.port}"


async def test_celery(sidecar: Sidecar) -> None:
    """Celery as broker and result backend: 500 tasks, then groups, chords, ETA and retries."""
    program = "tests.integration.frameworks.celery_jobs"
    url = url_of(sidecar)
    celery = (sys.executable, "-m", "celery", "-A", program, "worker", "-c", "2", "-l", "ERROR")
    async with worker(*celery, BROKER=url):
        await judge(sys.executable, "-m", program, "500", BROKER=url)


async def test_rq(sidecar: Sidecar) -> None:
    """RQ does 200 jobs, one of them behind another."""
    program = "tests.integration.frameworks.rq_jobs"
    await judge(sys.executable, "-m", program, url_of(sidecar), "200")


async def test_django(sidecar: Sidecar) -> None:
    """Django's cache and its cached sessions."""
    program = "tests.integration.frameworks.django_site"
    await judge(sys.executable, "-m", program, url_of(sidecar))


async def test_bullmq(sidecar: Sidecar, node_folder: Path) -> None:
    """BullMQ does 500 jobs with delays, priorities and retries, flows, and outlives a worker."""
    await judge("node", "bullmq.mjs", str(sidecar.port), "500", cwd=node_folder)


async def test_socketio(sidecar: Sidecar, node_folder: Path) -> None:
    """Two Socket.IO servers share their rooms."""
    await judge("node", "socketio.mjs", str(sidecar.port), cwd=node_folder)
