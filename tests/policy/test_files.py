"""What a look at the files of the rules sees, and what their hash is made of."""

import os
from pathlib import Path

import pytest

from proxy.policy.files import MAX_ENTRIES, look, mark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("keyspaces: {}\n")
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "s.json").write_text("{}")
    return tmp_path


def mounted(path: Path, version: str, text: str) -> None:
    """Put a version in force as kubelet does: a folder of its own, and one link that is swapped."""
    folder = path / f"..{version}"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text(text)
    (path / "..data_tmp").symlink_to(folder.name)
    (path / "..data_tmp").rename(path / "..data")
    if not (path / "a.yaml").exists():
        (path / "a.yaml").symlink_to("..data/a.yaml")


def test_nothing_happened(folder: Path) -> None:
    """Looks at files that nobody touched are equal, whatever else lies there."""
    seen = look(folder)
    (folder / "README.md").write_text("words")
    (folder / ".a.yaml.swp").write_text("an editor's")
    assert look(folder) == seen
    assert [entry[0] for entry in seen] == ["a.yaml", "schemas/s.json"]


def test_every_change_shows(folder: Path) -> None:
    """A write, a rename over it, a new file, one that is gone, one that is named: all are seen."""
    seen = [look(folder), look(folder / "a.yaml")]

    def changed() -> bool:
        seen.append(look(folder))
        return seen[-1] not in seen[:-1]

    (folder / "a.yaml").write_text("keyspaces: {}\n# more\n")
    assert changed()
    (folder / "new").write_text("keyspaces: {}\n# more\n")
    (folder / "new").rename(folder / "a.yaml")
    assert changed()
    (folder / "b.yaml").touch()
    assert changed()
    (folder / "b.yaml").unlink()
    (folder / "schemas" / "s.json").write_text("[]")
    assert changed()
    (folder / "a.yaml").unlink()
    assert changed()


def test_the_swap_of_a_volume_shows(tmp_path: Path) -> None:
    """A version of the same names, sizes and times that a link now leads to is another one."""
    mounted(tmp_path, "2026_1", "keyspaces: {}\n")
    first = look(tmp_path)
    mounted(tmp_path, "2026_2", "keyspaces: {}\n")
    times = (tmp_path / "..2026_1" / "a.yaml").stat()
    os.utime(tmp_path / "..2026_2" / "a.yaml", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert look(tmp_path) != first
    assert [entry[0] for entry in look(tmp_path)] == ["..data ..2026_2", "a.yaml"]


def test_what_cannot_be_read_is_seen(tmp_path: Path) -> None:
    """A folder that is gone, or a link to nowhere, is a look like any other."""
    assert look(None) == ()
    away = look(tmp_path / "away")
    assert away == look(tmp_path / "away") != look(tmp_path)
    (tmp_path / "a.yaml").symlink_to("nowhere")
    assert look(tmp_path)[0][3] < 0
    assert mark(tmp_path) != mark(None)


def test_a_look_is_bounded(tmp_path: Path) -> None:
    """A folder that was named by mistake costs no more than a large one."""
    for number in range(MAX_ENTRIES + 10):
        (tmp_path / f"{number}.yaml").touch()
    (tmp_path / "round").symlink_to(".")
    assert len(look(tmp_path)) == MAX_ENTRIES


def test_the_hash_is_of_names_and_content(folder: Path, tmp_path: Path) -> None:
    """Two copies have one hash, and any other content or name has another."""
    first = mark(folder)
    os.utime(folder / "a.yaml", (1, 1))
    assert mark(folder) == first
    (folder / "a.yaml").rename(folder / "b.yaml")
    second = mark(folder)
    (folder / "schemas" / "s.json").write_text("[]")
    assert len({first, second, mark(folder), mark(None)}) == 4
    mounted(tmp_path / "volume", "1", "keyspaces: {}\n")
    mounted(tmp_path / "volume", "2", "keyspaces: {}\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.yaml").write_text("keyspaces: {}\n")
    assert mark(tmp_path / "volume") == mark(tmp_path / "plain")
