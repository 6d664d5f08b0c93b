"""The journal on a real disk, and on disks that fail."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from proxy.errors import JournalError, JournalRefused
from proxy.origin import journal as module
from proxy.origin import segments
from proxy.origin.journal import Journal
from proxy.origin.merging import Batch
from proxy.origin.records import Change, Entry, Op

CHANGES = (Change(Op.ADD, b"views", b"1"),)


class Landing:
    """Who is shown what is durable."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, entries: Sequence[Entry]) -> None:
        self.entries += entries


@pytest.fixture
def landing() -> Landing:
    return Landing()


@pytest.fixture
async def journal(tmp_path: Path, landing: Landing) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path, landing)
    yield opened
    await opened.close()


async def append(journal: Journal, count: int = 1) -> list[Entry]:
    futures = [journal.append(journal.entry("activity", b"k", CHANGES)) for _ in range(count)]
    return list(await asyncio.gather(*futures))


async def test_entries_are_durable_in_their_order(
    journal: Journal, landing: Landing, tmp_path: Path
) -> None:
    """A future ends when its entry was synced and shown, and a restart finds all of them."""
    entries = await append(journal, 100)
    assert landing.entries == entries
    assert journal.durable == entries[-1].sequence
    await journal.close()
    again = Journal(tmp_path, landing)
    assert again.recovered == entries
    assert (await append(again))[0].sequence > entries[-1].sequence
    await again.close()


async def test_a_group_shares_one_sync(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while the disk is busy is synced together."""
    synced = 0
    sync = os.fdatasync

    def counted(file: int) -> None:
        nonlocal synced
        synced += 1
        sync(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    await append(journal, 1000)
    assert synced <= 3


async def test_a_full_segment_is_followed_by_another(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments below the checkpoint are deleted, the one that is written never."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 200)
    entries = [(await append(journal))[0] for _ in range(12)]
    count = len(list(tmp_path.glob("*.segment")))
    assert count >= 4
    size = journal.size
    await journal.checkpoint(entries[6].sequence)
    assert len(list(tmp_path.glob("*.segment"))) < count
    assert journal.size < size
    await journal.checkpoint(entries[-1].sequence + 1)
    await journal.close()
    again = Journal(tmp_path, Landing())
    assert again.recovered == []
    # The numbers go on although nothing is left of the entries.
    assert again.entry("activity", b"k", CHANGES).sequence > entries[-1].sequence
    await again.close()


async def test_what_a_batch_was_merged_of_is_read_again(
    tmp_path: Path, landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own keys' entries alone, over two segments, also those of an earlier run."""
    monkeypatch.setattr(segments, "_MARKED", 200)
    journal = Journal(tmp_path, landing)
    first = await append(journal, 20)
    await journal.close()
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2000)
    journal = Journal(tmp_path, landing)
    later = [entry for _ in range(50) for entry in await append(journal)]
    assert len([*tmp_path.glob("*.segment")]) > 2
    other = journal.entry("activity", b"other", CHANGES)
    await journal.append(other)
    place = "activity", b"k"
    for wanted in (first[5:9], first[15:] + later[:5], later[20:33], later[-5:]):
        batch = Batch()
        for entry in wanted:
            batch.add(entry, "add")
        assert await journal.of(batch) == {place: wanted}
    batch = Batch()
    batch.add(other, "add")
    assert await journal.of(batch) == {("activity", b"other"): [other]}
    await journal.close()


async def test_a_checkpoint_before_the_first_write(journal: Journal) -> None:
    """A new journal has nothing to delete."""
    await journal.checkpoint(journal.durable + 1)
    await append(journal)


async def test_a_second_process_is_kept_out(journal: Journal, tmp_path: Path) -> None:
    """Two writers of one directory would mix their numbers."""
    with pytest.raises(JournalError, match="another process"):
        Journal(tmp_path, Landing())


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the next syncs of data fail as a broken disk does."""
    left = 0
    sync = os.fdatasync

    def broken(file: int) -> None:
        nonlocal left
        if left:
            left -= 1
            raise OSError(5, "Input/output error")
        sync(file)

    def fail(times: int) -> None:
        nonlocal left
        left = times

    monkeypatch.setattr(os, "fdatasync", broken)
    return fail


async def test_after_a_failed_sync_the_segment_is_left(
    journal: Journal, landing: Landing, tmp_path: Path, failing: Callable[[int], None]
) -> None:
    """What was in that group is refused for certain, and the next is in a new segment."""
    before = await append(journal)
    failing(1)
    with pytest.raises(JournalRefused, match="Input/output") as refused:
        await append(journal)
    assert refused.value.certain
    after = await append(journal)
    assert landing.entries == before + after
    assert len(list(tmp_path.glob("*.segment"))) == 2
    await journal.close()
    again = Journal(tmp_path, landing)
    assert again.recovered == before + after
    await again.close()


async def test_a_disk_that_is_full_refuses_and_works_again(
    journal: Journal, landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a write that found no room is left, and writes are tried again after a while."""
    before = await append(journal)
    write, full = os.write, True

    def limited(file: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(JournalRefused, match="No space") as refused:
        await append(journal, 3)
    assert refused.value.certain
    assert journal.failure is not None
    assert not journal.available
    full = False
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    after = await append(journal)
    assert landing.entries == before + after
    assert journal.failure is None
