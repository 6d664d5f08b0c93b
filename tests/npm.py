"""Programs for Node.js with the packages that they ask for, in a folder of their own."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from proxy.embedded.process import temporary_directory

# npm fetches dozens of small packages; a slow registry gets minutes.
INSTALL_TIMEOUT = 180.0  # seconds


@contextlib.asynccontextmanager
async def installed(files: Iterable[Path]) -> AsyncIterator[Path]:
    """Give a folder with these files, package.json among them, and the packages that it names.

    The test is skipped where they cannot be had.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    with temporary_directory("sidecache-node-") as folder:
        for file in files:
            shutil.copy(file, folder)
        process = await asyncio.create_subprocess_exec(
            npm, "install", "--no-audit", "--no-fund", "--silent",
            cwd=folder, env={**os.environ, "npm_config_fetch_retries": "1"},
        )  # fmt: skip
        try:
            code = await asyncio.wait_for(process.wait(), INSTALL_TIMEOUT)
        except TimeoutError:
            process.kill()
            code = await process.wait()
        if code != 0:
            pytest.skip("npm cannot install the packages from its registry")
        yield folder
