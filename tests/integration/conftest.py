"""Cleaning up behind runs that failed half-way."""

from collections.abc import Iterator

import pytest

from tests.integration.rig import Caller


@pytest.fixture(autouse=True)
def close_callers() -> Iterator[None]:
    """Close the connections that a test left open, so that only the test itself is red."""
    yield
    while Caller.opened:
        Caller.opened.pop().close()
