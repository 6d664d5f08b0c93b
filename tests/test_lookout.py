"""Changes of files are told of once, when they rest."""

import os
import threading
from pathlib import Path

import pytest

from proxy.lookout import PATIENCE, Lookout
from proxy.policy.files import Look, look


class Watched:
    """A file that is looked at by hand, and what was told of it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "a.yaml"
        self.path.write_text("1")
        self.known: Look = look(self.path)
        self.told = 0
        self.now = 1000.0
        self.lookout = Lookout(self.path, lambda: self.known, self.tell)
        self.look()

    def tell(self) -> None:
        self.told += 1

    def look(self, after: float = 1.0) -> int:
        self.now += after
        self.lookout.look(self.now)
        return self.told


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_change_is_told_when_it_rests(watched: Watched) -> None:
    """The look after the change waits for one that is equal; what goes on growing is waited for."""
    assert watched.look() == 0
    for text in ("22", "333", "4444"):
        watched.path.write_text(text)
        assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look() == 1


def test_what_was_tried_is_not_told(watched: Watched) -> None:
    """Files that somebody has loaded meanwhile, by a signal or before, are no news."""
    watched.path.write_text("22")
    watched.look()
    watched.known = look(watched.path)
    assert watched.look() == 0
    watched.path.unlink()
    assert [watched.look(), watched.look()] == [0, 1]


def test_what_nobody_took_in_is_told_again(watched: Watched) -> None:
    """Where whoever was told has failed for other reasons, it is told again, a good while later."""
    watched.path.write_text("22")
    watched.look()
    assert [watched.look(), watched.look(PATIENCE - 2), watched.look(2)] == [1, 1, 2]


def test_it_looks_by_itself(tmp_path: Path) -> None:
    """A thread looks again and again until it is stopped, or has never begun."""
    heard = threading.Event()
    lookout = Lookout(tmp_path, lambda: ((os.devnull, 0, 0, 0),), heard.set, every=0.001)
    lookout.stop()
    lookout = Lookout(tmp_path, lambda: ((os.devnull, 0, 0, 0),), heard.set, every=0.001)
    lookout.start()
    assert heard.wait(10)
    lookout.stop()
    assert "lookout" not in [thread.name for thread in threading.enumerate()]
