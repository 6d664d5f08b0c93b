"""Of which grants nobody knows whether they were made."""

import pytest

from proxy.handlers import doubts as module
from proxy.handlers.doubts import Doubts


def test_a_doubt_is_of_one_owner_and_ends() -> None:
    """Who may hold a lock without knowing is believed, until it is told or the lock is over."""
    doubts = Doubts()
    doubts.note(b"a", "me", 30)
    assert doubts.about(b"a", "me")
    assert not doubts.about(b"a", "you")
    assert not doubts.about(b"b", "me")
    doubts.settle(b"a")
    doubts.settle(b"b")
    assert not doubts.about(b"a", "me")
    doubts.note(b"a", "me", 0)
    assert not doubts.about(b"a", "me")


def test_doubts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the oldest is forgotten."""
    monkeypatch.setattr(module, "DOUBTED", 2)
    doubts = Doubts()
    for key in (b"a", b"b", b"c"):
        doubts.note(key, "me", 30)
    assert [doubts.about(key, "me") for key in (b"a", b"b", b"c")] == [False, True, True]
