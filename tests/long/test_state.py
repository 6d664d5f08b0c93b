"""Clients come and go in every state, at acceptance scale."""

from pathlib import Path

import pytest

from tests.conftest import Clusters
from tests.integration.test_state import WAYS, bench, visit

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(3600)]


async def test_no_state_reaches_another_client_ever(
    empty_clusters: Clusters, tmp_path: Path, seed: int
) -> None:
    """A hundred times each: 0 differences, and nothing is held or open at the end."""
    async with bench(empty_clusters, tmp_path, seed) as made:
        await visit(made, 100, *((way,) for way in WAYS))
