"""Client libraries that do not come with the project's own packages."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.npm import installed

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
async def node_clients() -> AsyncIterator[Path]:
    """A folder with ioredis, node-redis and redlock from npm; skipped where they cannot be had."""
    files = [HERE / name for name in ("package.json", "everyday.mjs", "redlock.mjs")]
    async with installed(files) as folder:
        yield folder
