"""What people really get wrong: each file of `broken` and what is told of it, all in one run.

Every line `#! LINE:COLUMN words` of a file, or of the file `expected` of a folder, is a mistake:
its place, and words of what is said. There are no others.
"""

import re
from pathlib import Path

import pytest

from tests.policy.rulebook import complaints

BROKEN = sorted(Path(__file__).with_name("broken").iterdir())

_EXPECTED = re.compile(r"#! (\S+) (.*)$", re.MULTILINE)


def expected(path: Path) -> list[tuple[str, str]]:
    """Return place and words of every mistake, each place with its file."""
    file = path / "expected" if path.is_dir() else path
    text = file.read_bytes().decode(errors="ignore")
    before = "" if path.is_dir() else f"{path.name}:"
    return [(f"{before}{place}", words) for place, words in _EXPECTED.findall(text)]


@pytest.mark.parametrize("path", BROKEN, ids=[path.stem for path in BROKEN])
def test_every_mistake_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is found in the same run, at its word, with what helps to mend it."""
    monkeypatch.chdir(path.parent)
    wanted = expected(path)
    found = complaints(path)
    assert wanted
    assert [line.split(": ")[0] for line in found] == [place for place, _ in wanted]
    for line, (_, words) in zip(found, wanted, strict=True):
        assert words in line
        assert line.isprintable()
