"""Write-behind and kill -9, at acceptance scale."""

from pathlib import Path

import pytest

from tests.integration.test_behind import survive

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(3600)]


async def test_a_thousand_kills_lose_and_repeat_nothing(activity: str, tmp_path: Path) -> None:
    """At five named points, two hundred times each: 0 lost, 0 applied twice."""
    await survive(activity, tmp_path / "journal", 1000, 3000.0)
