"""Seeds of what is left to chance, and cleaning up behind runs that failed half-way."""

import os
import random
from collections.abc import Iterator

import pytest

from tests.integration.rig import Caller


@pytest.fixture(autouse=True)
def close_callers() -> Iterator[None]:
    """Close the connections that a test left open, so that only the test itself is red."""
    yield
    while Caller.opened:
        Caller.opened.pop().close()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of a whole run, told before it begins; SIDECACHE_SEED repeats one."""
    chosen = int(os.environ.get("SIDECACHE_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"\nseed {chosen}: {request.node.name}")
    return chosen
