"""From a tree with places to a model."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, field_validator

from proxy.documents import Mistake, read
from proxy.validation import Location, Strict, fields_at, locator, validate


class Inner(Strict):
    size: int = 1
    mode: Literal["fast", "safe"] = "fast"
    word: str = Field("x", alias="in")
    secret: int = 0

    @field_validator("secret")
    @classmethod
    def refuse(cls, value: int) -> int:
        if value:
            raise ValueError("must stay 0")
        return value


class Outer(Strict):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = Field({})
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def check(path: Path, text: str) -> tuple[Outer | None, list[Mistake], frozenset[Location]]:
    path.write_text(text)
    root, _ = read(path)
    assert root is not None
    return validate(Outer, root.plain(), locator("f", root))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\niner: {}\n", 'f:2:1: unknown field "iner"; allowed: inner, many, maybe, name, '
         'several; did you mean "inner"?'),
        ("name: a\ninner: {sise: 1}\n", 'f:2:9: unknown field "sise"; allowed: in, mode, secret, '
         'size; did you mean "size"?'),
        ("inner: {}\n", 'f:1:1: the field "name" is missing'),
        ("name: a\ninner: {mode: save}\n", 'f:2:15: mode: "save" is not allowed; allowed: fast, '
         'safe; did you mean "safe"?'),
        ("name: a\nmany: {x: {size: big}}\n", "f:2:18: size: expects a whole number"),
        ("name: a\nmany: {x: 1}\n", "f:2:11: x: expects a mapping ({field: value})"),
        ("name: a\nseveral: [{size: 1}, {size: x}]\n", "f:2:29: size: expects a whole number"),
        ("name: a\nmaybe: {mode: [1]}\n", "f:2:15: mode: this is not allowed; allowed: fast, safe"),
        ("name: 5\n", "f:1:7: name: expects text; put numbers and the like in quotes"),
        ("name: a\ninner: {secret: 12345}\n", "f:2:17: secret: must stay 0"),
    ],
)  # fmt: skip
def test_messages(tmp_path: Path, text: str, told: str) -> None:
    """A mistake has its place, what is allowed, what was meant, and nothing that was written."""
    _, mistakes, _ = check(tmp_path / "a", text)
    assert [str(mistake) for mistake in mistakes] == [told]


def test_the_rest_of_a_model_is_looked_at(tmp_path: Path) -> None:
    """What is wrong is left out, told and marked; the rest is there."""
    text = "name: a\ninner: {size: x, mode: safe}\nmany: {p: {size: 2}, q: {size: y}}\n"
    model, mistakes, broken = check(tmp_path / "a", text)
    assert model is not None
    assert len(mistakes) == 2
    assert (model.name, model.inner, model.many["p"].size) == ("a", Inner(mode="safe"), 2)
    assert {("inner", "size"), ("inner",), ("many", "q", "size")} <= broken
    assert ("many", "p") not in broken


def test_without_a_needed_field_there_is_no_model(tmp_path: Path) -> None:
    """Where what is wrong cannot be left out, there is no model, and the mistake is told."""
    model, mistakes, _ = check(tmp_path / "a", "name: [x]\n")
    assert model is None
    assert len(mistakes) == 1


def test_fields_at_a_location() -> None:
    """The fields of a block are found through mappings, lists and alternatives, by alias."""
    inner = ["size", "mode", "in", "secret"]
    for location in (("inner",), ("many", "x"), ("several", 0), ("maybe",)):
        assert fields_at(Outer, location) == inner
    assert fields_at(Outer, ("nowhere",)) == []
