"""Where the keys are, against COMMAND GETKEYS of real servers, at length."""

from pathlib import Path

import pytest

from tests.handlers.servers import PROGRAMS, program_of
from tests.test_keys import compare

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

VECTORS = 100_000  # per server and seed


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Path:
    return program_of(request)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_keys_of_many_vectors(program: Path, seed: int) -> None:
    """Of 100,000 argument vectors, each is seen alike or refused by us: never other keys."""
    compare(program, VECTORS, seed)
