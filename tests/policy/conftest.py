"""The folder that every test of the policy language writes into."""

from pathlib import Path

import pytest

from tests.policy.rulebook import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
