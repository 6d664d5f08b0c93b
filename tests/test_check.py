"""What `sidecache check` prints."""

import json
from pathlib import Path

from proxy import check
from proxy.documents import Mistake
from proxy.policy import compiler
from tests.policy.rulebook import SHIPPED


def test_what_is_accepted() -> None:
    """Rules without mistakes are counted, with the series that they may make."""
    ruleset, clusters = compiler.from_files(SHIPPED, ("locks", "cache"))
    found = check.accepted(ruleset, clusters, SHIPPED)
    assert json.loads(check.as_json(found))["keyspaces"] == len(ruleset.keyspaces)
    assert found["files"] == len(list(SHIPPED.glob("*.yaml")))
    lines = check.as_lines(found).splitlines()
    assert lines[0].startswith(f"no mistakes: {len(ruleset.keyspaces)} keyspaces, ")
    assert f"{found['series']['fixed']:,} metric series" in lines[0]
    assert "clusters locks, cache" in lines[1]


def test_what_is_refused() -> None:
    """Mistakes are lines with a place, and objects in JSON; a sentence has no place."""
    found = check.refused([Mistake("a.yaml", 3, 4, "wrong"), "nobody has this role"])
    assert check.as_lines(found) == "a.yaml:3:4: wrong\nnobody has this role"
    assert json.loads(check.as_json(found))["mistakes"] == [
        {"file": "a.yaml", "line": 3, "column": 4, "message": "wrong"},
        {"file": None, "line": 0, "column": 0, "message": "nobody has this role"},
    ]


def test_files_of_nothing() -> None:
    """Without a folder no file is counted."""
    ruleset, clusters = compiler.from_files(None, ("cache",))
    assert check.accepted(ruleset, clusters, Path("/nowhere"))["files"] == 1
    assert check.accepted(ruleset, clusters, None)["files"] == 0


def test_what_is_no_mistake_and_should_be_known(tmp_path: Path) -> None:
    """That Redis alone decides about locks is said aloud, with its place."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "keyspaces:\n  job: {key: 'job:{id}', kind: lock, ttl: {default: 5s},\n"
        "    lock: {authority: redis}}\n"
    )
    ruleset, clusters = compiler.from_files(path, ("locks",))
    lines = check.as_lines(check.accepted(ruleset, clusters, path)).splitlines()
    assert lines[0].startswith(f"{path}:3:12: note: locks of job are decided by Redis alone")
    assert lines[1].startswith("no mistakes")


def test_a_longest_time_alone(tmp_path: Path) -> None:
    """That keys without a time to live keep none is told where only the longest one is said."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "keyspaces:\n  a: {key: 'a:{id}', ttl: {max: 5s}}\n"
        "  b: {key: 'b:{id}', ttl: {max: 5s, default: 4s}}\n"
        "  c: {key: 'c:{id}', ttl: {max: 5s, missing: allow}}\n"
    )
    ruleset, clusters = compiler.from_files(path, ("locks",))
    [note] = check.accepted(ruleset, clusters, path)["notes"]
    assert note.startswith(f"{path}:2:28: note: keys of a that come without a time to live keep")
