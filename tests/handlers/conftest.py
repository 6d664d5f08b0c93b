"""What a test of the handlers leaves behind, and what ends it."""

from collections.abc import AsyncIterator

import pytest

from tests.handlers.backed_desk import LOOKING


@pytest.fixture(autouse=True)
async def _nobody_looks_for_ever() -> AsyncIterator[None]:
    yield
    while LOOKING:
        await LOOKING.pop().stop()
