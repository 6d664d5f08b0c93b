"""Rules that a process of its own works out are those of the files, complete or not at all."""

import gc
import itertools
import sys
from typing import Any

import pytest

from proxy.policy import draft, files
from proxy.policy.draft import (
    PIECE,
    DraftFailed,
    DraftRefused,
    Order,
    Writer,
    drafted_here,
)
from proxy.policy.loader import load
from proxy.policy.model import Policies
from proxy.wire.rules import Keyspace
from tests.policy.rulebook import CLUSTERS, Folder

MANY = "keyspaces:\n" + "".join(
    f"  k{number}: {{key: 'k{number}:{{id}}', commands: {{deny: [KEYS]}}}}\n"
    for number in range(2 * PIECE + 1)
)


def order(folder: Folder, before: bytes | None = None) -> Order:
    return Order(folder.path, CLUSTERS, before)


@pytest.mark.integration
def test_another_process_gives_the_same(folder: Folder) -> None:
    """Its draft equals one made here, and says when nothing has changed since."""
    folder.write(MANY)
    here, rules = drafted_here(order(folder))
    assert here.ruleset is rules
    assert (here.look, here.mark) == (files.look(folder.path), files.mark(folder.path))
    there = Writer().drafted(order(folder))
    assert there.ruleset is not None
    assert there.ruleset.keyspaces == rules.keyspaces
    assert there.ruleset.roles == rules.roles
    assert (there.look, there.mark) == (here.look, here.mark)
    folder.write(MANY + "# a comment\n")
    again = Writer().drafted(order(folder, here.settled))
    assert again.ruleset is None
    assert again.differences == ()
    assert again.mark != here.mark


@pytest.mark.integration
def test_what_keyspaces_share_is_one_object(folder: Folder) -> None:
    """Values that many rows have are there once, each as what it is; collections go on after."""
    gc.enable()  # the verb check, which other tests run here, leaves it to the end of its process
    folder.write(MANY)
    _, here = drafted_here(order(folder))
    there = Writer().drafted(order(folder)).ruleset
    assert there is not None
    for first, other, *_ in (here.keyspaces, there.keyspaces):
        assert first.denied is other.denied
        assert first.lifetime is other.lifetime
        assert first.pattern[1] is other.pattern[1]
        for name, kind in Keyspace.__annotations__.items():
            if isinstance(kind, type) and issubclass(kind, tuple):
                assert type(getattr(first, name)) is kind, name
    assert gc.isenabled()


@pytest.mark.integration
def test_what_changes_is_told(folder: Folder) -> None:
    """Against the rules in force: what is new, gone or changed, by inheritance too."""
    folder.write("keyspaces: {a: {key: a}, b: {key: b}, c: {key: c, ttl: {max: 5s}}}\n")
    here, _ = drafted_here(order(folder))
    folder.write("keyspaces: {b: {key: b}, c: {key: c, ttl: {max: 6s}}, d: {key: d}}\n")
    draft = Writer().drafted(order(folder, here.settled))
    told = [line.partition(" (")[0] for line in draft.differences]
    assert told == ["keyspace a: gone", "keyspace c: ttl.max 5s -> 6s", "keyspace d: new"]
    folder.write("defaults: {unmatched: reject}\nroles: {r: {}}\n")
    draft = Writer().drafted(order(folder, draft.settled))
    told = [line.partition(" (")[0] for line in draft.differences]
    assert {"role r: new", "defaults: unmatched forward -> reject"} <= set(told)


@pytest.mark.integration
def test_mistakes_come_back(folder: Folder) -> None:
    """Every mistake is told with its place, and which files were looked at."""
    folder.write("keyspaces: {a: {key: 'a{'}}\nroles: {r: {keyspaces: [b]}}\n")
    with pytest.raises(DraftRefused) as there:
        Writer().drafted(order(folder))
    with pytest.raises(DraftRefused) as here:
        drafted_here(order(folder))
    assert there.value.mistakes == here.value.mistakes
    assert [mistake.line for mistake in here.value.mistakes] == [1, 2]
    assert there.value.look == here.value.look == files.look(folder.path)


def test_files_that_go_on_changing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft of files of two moments does not exist."""
    monkeypatch.setattr(draft, "ATTEMPT_PAUSE", 0.0)
    folder.write(MANY)
    sizes = itertools.count(1)

    def load_while_somebody_writes(*arguments: Any) -> Policies:
        policies = load(*arguments)
        folder.write("#" + "x" * next(sizes) + "\n", "b.json")
        return policies

    monkeypatch.setattr(draft, "load", load_while_somebody_writes)
    with pytest.raises(DraftRefused, match="the files change while they are read"):
        drafted_here(order(folder))
    assert next(sizes) == draft.ATTEMPTS + 1


@pytest.mark.integration
def test_processors_that_are_never_idle(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not ended without a share of its own begins again with one."""
    monkeypatch.setattr(draft, "PATIENT", 0.0)
    folder.write(MANY)
    assert Writer().drafted(order(folder)).ruleset is not None


@pytest.mark.integration
def test_a_process_that_fails(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, one that is too slow, is stopped or breaks: each is told for what it is."""
    folder.write(MANY)
    with pytest.raises(DraftFailed, match="the rules were not read within 0 s"):
        Writer(deadline=0.0).drafted(order(folder))
    stopped = Writer()
    stopped.stop()
    with pytest.raises(DraftFailed, match="failed: exit code -9"):
        stopped.drafted(order(folder))
    with pytest.raises(DraftFailed, match=r"failed: .*UnpicklingError"):
        Writer().drafted(order(folder, b"junk"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DraftFailed, match="no process to read the rules: No such file"):
        Writer().drafted(order(folder))
