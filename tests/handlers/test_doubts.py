"""Of which grants nobody knows whether they were made."""

import pytest

from proxy.handlers import doubts as module
from proxy.handlers.claims import Claim
from proxy.handlers.doubts import Doubts


def claim(seconds: float = 30) -> Claim:
    return Claim("me", seconds, session="mine", same=False)


def test_a_doubt_is_of_one_owner_and_ends() -> None:
    """Who may hold a lock without knowing is believed once, until the lock is over."""
    doubts = Doubts()
    doubts.note(b"a", claim())
    assert doubts.taken(b"a", "you") is None
    assert doubts.taken(b"b", "me") is None
    assert doubts.taken(b"a", "me") == "mine"
    assert doubts.taken(b"a", "me") is None
    doubts.note(b"a", claim(0))
    assert doubts.taken(b"a", "me") is None


def test_doubts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the oldest is forgotten."""
    monkeypatch.setattr(module, "DOUBTED", 2)
    doubts = Doubts()
    for key in (b"a", b"b", b"c"):
        doubts.note(key, claim())
    assert [doubts.taken(key, "me") for key in (b"a", b"b", b"c")] == [None, "mine", "mine"]
