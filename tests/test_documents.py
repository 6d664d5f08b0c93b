"""YAML files as trees that remember where everything stands."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import documents
from proxy.documents import Mistake, MistakesFound, Node, plain_overlaid, quote, read, suggest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


def tree(file: Path, text: str) -> Node:
    file.write_text(text)
    root, mistakes = read(file)
    assert not mistakes
    assert root is not None
    return root


def complaints(file: Path, text: str | bytes) -> list[str]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    _, mistakes = read(file)
    return [str(mistake).removeprefix(str(file)) for mistake in mistakes]


def test_scalars(file: Path) -> None:
    """Numbers, true, false and null are themselves; on, off, yes, no and quoted words are text."""
    text = "{a: 1, b: -2.5, c: true, d: null, e: on, f: no, g: '1', h: 010, i: 1_0, on: x, 5: y}"
    assert tree(file, text).plain() == {
        "a": 1, "b": -2.5, "c": True, "d": None, "e": "on", "f": "no", "g": "1", "h": "010",
        "i": "1_0", "on": "x", "5": "y",
    }  # fmt: skip


def test_places(file: Path) -> None:
    """Every key and every value knows its line and column."""
    root = tree(file, "a:\n  b: [x, y]\n  c: z\n")
    assert root.place(("a", "b", 1)) == (2, 10)
    assert root.place(("a", "c")) == (3, 6)
    assert root.place(("a", "c"), key=True) == (3, 3)
    assert root.place(("a", "missing")) == root.place(("a",))
    assert root.place(()) == (1, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ":1:1: the file says nothing"),
        ("# only a comment\n", ":1:1: the file says nothing"),
        ("a: 1\na: 2\n", ':2:1: the key "a" stands here twice, first on line 1'),
        ("a: &x 1\nb: *x\n", ":2:4: aliases are not allowed"),
        ("a: !!python/object:os.system 1\n", ":1:4: tags (!…) are not allowed"),
        ("a: 1\n---\nb: 2\n", ":2:1: a second document"),
        ("a:\n\tb: 1\n", ":2:1: not YAML: a tab; YAML is indented with spaces"),
        ("a: [1, 2\n", "not YAML"),
        ("{[1]: 2}\n", ":1:2: a key must be a word"),
        (b"a: \xff\n", ":1:4: is not UTF-8 text"),
        ("a: b\0c\n", "a character that YAML does not allow"),
        ("[" * 40 + "]" * 40, ":1:33: nested deeper than 32 levels"),
    ],
)
def test_what_is_not_ours(file: Path, text: str | bytes, told: str) -> None:
    """What YAML offers beyond plain data is a mistake with its place."""
    found = complaints(file, text)
    assert any(told in line for line in found), found


def test_several_mistakes_in_one_run(file: Path) -> None:
    """Double keys and tags do not hide each other."""
    assert len(complaints(file, "a: 1\na: 2\nb: !x 1\nb: 3\n")) == 3


def test_a_large_file_is_refused(file: Path) -> None:
    """A file above the limit is not read, and one at the limit is."""
    assert not complaints(file, "a: " + "x" * (documents.MAX_FILE_BYTES - 3))
    assert "is larger than" in complaints(file, "a: " + "x" * documents.MAX_FILE_BYTES)[0]


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """A folder, a pipe and nothing at all are mistakes; a pipe does not hold up the load."""
    os.mkfifo(tmp_path / "pipe")
    told = {name: read(tmp_path / name)[1][0].message for name in ("", "pipe", "missing")}
    assert told["pipe"] == "is not a regular file"
    assert told["missing"] == "cannot be opened: No such file or directory"
    assert told[""] == "is not a regular file"


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab:-{}[],&*!|>'\"#%@ \n\t?\0é0", max_size=40))
def test_any_text_is_a_tree_or_mistakes(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Whatever a file says, reading it returns and raises nothing."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    root, mistakes = read(file)
    assert root is not None or mistakes
    assert all(mistake.line > 0 for mistake in mistakes)


def test_mistakes_are_sorted_and_told_once() -> None:
    """All mistakes of a load are one error, in the order of files and lines."""
    first, second = Mistake("a", 2, 1, "x"), Mistake("a", 10, 1, "y")
    error = MistakesFound([second, first, second, Mistake("FLAG", 0, 0, "z")])
    assert str(error) == "FLAG: z\na:2:1: x\na:10:1: y"


def test_suggestions() -> None:
    """A word near an allowed one is suggested; a far or endless one is not."""
    assert suggest("Lisen", ["listen", "limits"]) == '; did you mean "listen"?'
    assert suggest("zzz", ["listen"]) == ""
    assert suggest("listen" * 1000, ["listen"]) == ""


def test_quotes_are_short_and_printable() -> None:
    """A written word cannot forge a line of a message, nor fill a screen."""
    assert quote("a\nb") == '"a\N{REPLACEMENT CHARACTER}b"'
    assert len(quote("x" * 1000)) < 50


def test_values_over_a_tree(file: Path) -> None:
    """Values are put over a tree by their path, and make what they stand in."""
    root = tree(file, "a: {b: 1, c: 2}\nd: null\n")
    assert plain_overlaid(root, {("a", "b"): 9, ("d", "e"): 8, ("f",): 7}) == {
        "a": {"b": 9, "c": 2}, "d": {"e": 8}, "f": 7,
    }  # fmt: skip
