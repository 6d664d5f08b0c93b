"""Whether all keys of a script are in one slot."""

import pytest

from tests.policy.rulebook import Folder

KEYSPACES = """
keyspaces:
  seat_lock: {key: "seat_lock:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
  user_locks: {key: "user_locks:{user_id}:{event_id}", cluster: locks, hash_tag: event_id}
  split: {key: "split:{user_id}:{event_id}", cluster: locks, hash_tag: user_id}
  bare: {key: "bare:{event_id}", cluster: locks}
  far: {key: "far:{event_id}", cluster: cache, hash_tag: event_id}
  word: {key: "word:{x}", cluster: locks, hash_tag: {literal: jobs}}
  words: {key: "words:{x}", cluster: locks, hash_tag: {literal: jobs}}
"""


def complaints(folder: Folder, *keys: str) -> list[str]:
    listed = ", ".join(f"'{key}'" for key in keys)
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").touch()
    return folder.complaints(
        KEYSPACES + f"scripts:\n  take: {{name: T, file: t.lua, keys: [{listed}]}}\n"
    )


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("bare:{e}",),
        ("seat_lock:{e}:{s}", "user_locks:{u}:{e}"),
        ("word:{a}", "words:{b}"),
    ],
)
def test_keys_in_one_slot(folder: Folder, keys: tuple[str, ...]) -> None:
    """Keys that share the tag's argument, or its word, are together; one key always is."""
    assert complaints(folder, *keys) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("seat_lock:{e}:{s}", "split:{u}:{e}"), "is decided by {u}, that of the first key by {e}"),
        (("seat_lock:{e}:{s}", "user_locks:{e}:{u}"), "is decided by {u}"),
        (("seat_lock:{e}:{s}", "bare:{e}"), "is decided by bare:{e}"),
        (("seat_lock:{e}:{s}", "word:{e}"), "is decided by jobs"),
        (("seat_lock:{e}:{s}", "far:{e}"), "lives on cache and the first key on locks"),
        (("seat_lock:{e}:{s}", "nobody:{e}"), "lives on cache"),
    ],
)
def test_keys_that_are_split(folder: Folder, keys: tuple[str, ...], told: str) -> None:
    """A key that another slot or another cluster holds is told at its place in the list."""
    found = complaints(folder, *keys)
    assert len(found) == 1
    assert told in found[0]
    assert found[0].startswith("a.yaml:11:")
