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


USES = """-- KEYS[7] and ARGV[7] of a comment are not used. --[[ KEYS[7]
]] --[=[ ARGV[8] ]] KEYS[8] ]=]
local text = "KEYS[7] \\" KEYS[7]" .. 'ARGV[7]'
local fine = {KEYS[1], ARGV[ 1 ]}
local key = KEYS[2] .. ARGV[2]
return KEYS [0]
"""


@pytest.mark.parametrize("more", [False, True])
def test_what_scripts_are_not_given(folder: Folder, more: bool) -> None:
    """KEYS and ARGV beyond those of the policy are told by their place in the script."""
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "take.lua").write_text(USES)
    text = SCRIPT.replace("arguments: [b]", "arguments: [b], more: others") if more else SCRIPT
    told = [
        'lua/take.lua:5:13: KEYS[2] is not there: script "take" has 1 keys',
        'lua/take.lua:5:24: ARGV[2] is not there: script "take" has 1 arguments',
        'lua/take.lua:6:8: KEYS [0] is not there: script "take" has 1 keys',
    ]
    assert folder.complaints(text) == [line for line in told if not (more and "ARGV" in line)]


def test_bodies_are_read_with_the_policies(folder: Folder) -> None:
    """What a file says when the policies are read is what is run, byte for byte."""
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "take.lua").write_bytes(b"return '\xff'\r\n")
    assert folder.load(SCRIPT).bodies == {"take": b"return '\xff'\r\n"}
