"""Segments: torn ends are cut, damage is told, two processes keep apart."""

from pathlib import Path

import pytest

from proxy.errors import JournalError
from proxy.origin import segments
from proxy.origin.records import Change, Entry, Op, encode
from proxy.origin.segments import Segment, recover


def entry(sequence: int) -> Entry:
    return Entry(sequence, 1.0, "activity", b"key", (Change(Op.ADD, b"views", b"1"),))


def write(directory: Path, first: int, durable: int, *groups: list[int]) -> Path:
    """Make a segment of groups, each synced before the next."""
    segment = Segment(directory, first, durable)
    for group in groups:
        segment.append(b"".join(encode(entry(number), durable) for number in group))
        durable = group[-1]
    segment.close()
    return segment.path


def sequences(directory: Path) -> list[int]:
    return [each.sequence for each in recover(directory).entries]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Segments are read in the order of their numbers."""
    write(tmp_path, 10, 0, [10], [11, 12])
    write(tmp_path, 20, 12, [20])
    found = recover(tmp_path)
    assert [each.sequence for each in found.entries] == [10, 11, 12, 20]
    assert (found.durable, found.last) == (20, 20)


def test_a_torn_end_is_cut_at_every_byte(tmp_path: Path) -> None:
    """Whatever part of the last record reached the disk, the records before it stay."""
    path = write(tmp_path, 1, 0, [1], [2])
    whole = path.read_bytes()
    begin = len(whole) - len(encode(entry(2), 1))
    for length in range(begin, len(whole)):
        path.write_bytes(whole[:length])
        assert sequences(tmp_path) == [1]
        assert path.stat().st_size == begin
    path.write_bytes(whole[:begin] + bytes(len(whole) - begin))
    assert sequences(tmp_path) == [1]


def test_a_group_that_was_torn_in_the_middle_is_cut(tmp_path: Path) -> None:
    """Blocks of one write reach the disk in any order, and none of it was acknowledged."""
    path = write(tmp_path, 1, 0, [1], [2, 3])
    data = bytearray(path.read_bytes())
    data[-len(encode(entry(3), 1)) - 5] ^= 1
    path.write_bytes(data)
    assert sequences(tmp_path) == [1]


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    """What was acknowledged is never dropped in silence: the error names file and offset."""
    path = write(tmp_path, 1, 0, [1], [2], [3])
    data = bytearray(path.read_bytes())
    size = len(encode(entry(2), 1))
    data[-2 * size + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"{path} at offset {len(data) - 2 * size}"):
        recover(tmp_path)
    assert path.read_bytes() == data


def test_an_earlier_segment_that_ends_too_soon_is_told(tmp_path: Path) -> None:
    """The next segment says how far it went."""
    path = write(tmp_path, 1, 0, [1], [2])
    write(tmp_path, 9, 2, [9])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JournalError, match="acknowledged writes"):
        recover(tmp_path)


def test_what_was_refused_does_not_come_back(tmp_path: Path) -> None:
    """Records behind what the next segment calls durable were refused to their clients."""
    write(tmp_path, 1, 0, [1], [2, 3])
    write(tmp_path, 4, 1, [4])
    assert sequences(tmp_path) == [1, 4]


def test_a_segment_that_was_being_made_is_forgotten(tmp_path: Path) -> None:
    """A header that is not whole has no record behind it; elsewhere it is damage."""
    write(tmp_path, 1, 0, [1])
    (tmp_path / f"{9:016x}.segment").write_bytes(b"side")
    assert sequences(tmp_path) == [1]
    (tmp_path / f"{0:016x}.segment").write_bytes(b"side")
    with pytest.raises(JournalError, match="offset 0"):
        recover(tmp_path)


def test_a_checkpoint_leaves_out_what_is_flushed(tmp_path: Path) -> None:
    """A note that is torn says nothing, and everything is read."""
    write(tmp_path, 1, 0, [1], [2], [3])
    segments.write_checkpoint(tmp_path, 3)
    assert sequences(tmp_path) == [3]
    (tmp_path / "checkpoint").write_bytes(b"12345678abcd")
    assert sequences(tmp_path) == [1, 2, 3]
    (tmp_path / "checkpoint").write_bytes(b"1")
    assert sequences(tmp_path) == [1, 2, 3]


def test_a_directory_belongs_to_one_process(tmp_path: Path) -> None:
    """The second one is told, until the first lets it go."""
    first = segments.lock(tmp_path)
    with pytest.raises(JournalError, match="another process"):
        segments.lock(tmp_path)
    first.close()
    segments.lock(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be used"):
        segments.lock(tmp_path / "file")


def test_a_directory_names_one_sidecar(tmp_path: Path) -> None:
    """The name survives a restart and differs from any other."""
    (tmp_path / "other").mkdir()
    assert segments.identity(tmp_path) == segments.identity(tmp_path)
    assert segments.identity(tmp_path).sidecar != segments.identity(tmp_path / "other").sidecar
