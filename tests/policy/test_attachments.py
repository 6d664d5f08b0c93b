"""Whether the scripts that policies name are there; what is wrong with them is in `broken`."""

from pathlib import Path

import pytest

from proxy.policy.attachments import script_paths
from tests.policy.rulebook import Folder

SCRIPT = "scripts: {take: {name: TAKE, file: take.lua, keys: ['a:{b}'], arguments: [b]}}\n"


@pytest.mark.parametrize("place", range(2))
def test_where_scripts_are(folder: Folder, place: int) -> None:
    """A script is taken from `lua` within the policies, or beside them."""
    rules = folder.path / "rules"
    rules.mkdir()
    inner = Folder(rules)
    assert "no such script" in inner.complaints(SCRIPT)[0]
    path: Path = script_paths(rules, "take.lua")[place]
    path.parent.mkdir()
    path.touch()
    assert inner.complaints(SCRIPT) == []
