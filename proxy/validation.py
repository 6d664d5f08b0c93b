"""From a tree with places to a model: what pydantic finds wrong becomes mistakes with a place.

Used by `config` and by the policy loader. A message says what is wrong, what is allowed and what
was probably meant. It shows what was written only where a field takes words of a closed set: all
else may be a secret.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from proxy.documents import MAX_DEPTH, Mistake, Node, quote, suggest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]

# Comparing each missing field with each unknown one costs the product of both.
MOST_COMPARED = 500

# Path, line and column of a location; with True the place of its last key.
Locate = Callable[[Location, bool], tuple[str, int, int]]


class Strict(BaseModel):
    """A block of a file: unknown fields are mistakes, values do not change."""

    # A block is mostly part of another, which is built with all of its parts, and only when first
    # asked: most programs of ours start without reading a file.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True
    )


def locator(path: str, node: Node) -> Locate:
    """Return where the locations of a tree are."""

    def locate(location: Location, key: bool) -> tuple[str, int, int]:
        return (path, *node.place(location, key=key))

    return locate


class Broken(frozenset[Location]):
    """Where something is wrong, and every location above it.

    Of a list without its wrong items, `kept` are the places that the others had in it.
    """

    kept: Mapping[Location, list[int]] = {}

    def written(self, location: Location) -> Location:
        """Return a location among what is left as that of what was written."""
        at: Location = ()
        for part in location:
            kept = self.kept.get(at)
            moved = kept is not None and isinstance(part, int) and part < len(kept)
            at = (*at, kept[int(part)] if kept is not None and moved else part)
        return at


def validate(
    model: type[Model], plain: object, locate: Locate, *, items: bool = False
) -> tuple[Model | None, list[Mistake], Broken]:
    """Return the model without what is wrong in it, the mistakes, and where something is wrong.

    What is wrong is left out and the rest looked at again, so that a caller can check how the
    remaining fields go together; it must not complain that something is missing where the third
    result says that it was left out. With `items` a list loses its wrong items only, and the third
    result knows which those were; else it is left out as a whole. None means that a field is wrong
    or missing without which there is no model.
    """
    try:
        return model.model_validate(plain), [], Broken()
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=True)
    errors = [details for details in errors if not _is_meant(details, errors)]
    mistakes = [_mistake(model, details, locate) for details in errors]
    locations: list[Location] = [details["loc"] for details in errors]
    broken = Broken(loc[:n] for loc in locations for n in range(1, len(loc) + 1))
    return _rest(model, plain, locations, broken, items), mistakes, broken


def _is_meant(missing: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Return whether a field is missing only because its name is misspelt, which is told."""
    if missing["type"] != "missing" or len(errors) > MOST_COMPARED:
        return False
    *above, name = missing["loc"]
    return any(
        other["type"] == "extra_forbidden"
        and list(other["loc"][:-1]) == above
        and suggest(str(other["loc"][-1]), [str(name)])
        for other in errors
    )


def _rest(
    model: type[Model], plain: object, locations: list[Location], broken: Broken, items: bool
) -> Model | None:
    """Return the model of what remains, without each block that lacks what it cannot be without.

    Only the block: a keyspace without a key must not hide what is wrong in the next one. Each
    round leaves out something that is less deep than before, so the depth of a file bounds them.
    """
    for _ in range(MAX_DEPTH):
        kept: dict[Location, list[int]] = {}
        rest = _without(plain, locations, kept if items else None, ())
        broken.kept = kept
        try:
            return model.model_validate(rest)
        except ValidationError as error:
            found = [
                broken.written(details["loc"][:-1] if details["type"] == "missing"
                               else details["loc"])
                for details in error.errors(include_url=False)
            ]  # fmt: skip
        if () in found:
            break
        locations = [*locations, *found]
    return None


def _without(
    plain: Any, locations: Sequence[Location], kept: dict[Location, list[int]] | None, at: Location
) -> Any:
    """Return a copy of plain values without what stands at the locations below a place.

    A list is left out with any of its items, but where `kept` notes which of them remain.
    """
    if not isinstance(plain, dict | list):
        return plain
    inner: dict[int | str, list[Location]] = {}
    for location in locations:
        if location:
            inner.setdefault(location[0], []).append(location[1:])
    copy: dict[int | str, Any] = {}
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        below = inner.get(key)
        if below is None:
            copy[key] = value
        elif all(rest and _leads(value, rest[0], kept is not None) for rest in below):
            copy[key] = _without(value, below, kept, (*at, key))
    if isinstance(plain, dict):
        return copy
    if kept is not None:
        kept[at] = [int(index) for index in copy]
    return list(copy.values())


def _leads(value: object, part: int | str, items: bool) -> bool:
    """Return whether a part of a location can be left out of a value alone."""
    if isinstance(value, dict):
        return part in value
    return items and isinstance(value, list) and isinstance(part, int) and part < len(value)


def _mistake(model: type[BaseModel], details: ErrorDetails, locate: Locate) -> Mistake:
    location = details["loc"]
    kind = details["type"]
    # An unknown key and a key that breaks a rule of its own are wrong where they stand.
    key = kind == "extra_forbidden" or location[-1:] == ("[key]",)
    path, line, column = locate(location, key)
    return Mistake(path, line, column, _message(model, details))


_EXPECTED = {
    "model_type": "expects a mapping ({field: value})",
    "model_attributes_type": "expects a mapping ({field: value})",
    "dict_type": "expects a mapping ({name: value})",
    "tuple_type": "expects a list ([…])",
    "list_type": "expects a list ([…])",
    "string_type": "expects text; put numbers and the like in quotes",
    "int_type": "expects a whole number",
    "int_parsing": "expects a whole number",
    "int_from_float": "expects a whole number",
    "float_type": "expects a number",
    "float_parsing": "expects a number",
    "path_type": "expects the path of a file",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}

# Blocks and lists, which are not there when nothing is written, and so are not switched off.
_BLOCKS = ("model_type", "model_attributes_type", "dict_type", "tuple_type", "list_type")

# Words that people write for nothing.
_NOTHING = ("no", "off", "none", "false", "never", "disabled")

# Words that people write for a field and that a likeness in letters would not find.
_MEANT = {
    "time_to_live": "ttl", "expire": "ttl", "expires": "ttl", "expiry": "ttl", "expiration": "ttl",
    "pattern": "key", "prefix": "key", "maxmemory": "memory", "permissions": "commands",
    "forbid": "deny", "forbidden": "deny", "permit": "allow", "statement": "sql", "query": "read",
}  # fmt: skip

# Of the places where a field belongs instead, so many are named.
_MOST_PLACES = 3


def _message(model: type[BaseModel], details: ErrorDetails) -> str:
    location, kind, context = details["loc"], details["type"], details.get("ctx", {})
    field = str(location[-1]) if location else "the file"
    if kind == "extra_forbidden":
        return _unknown_field(model, location)
    if kind == "missing":
        return f'the field "{field}" is missing'
    if kind == "literal_error":
        return f"{field}: {_unknown_word(_words(model, location), details['input'])}"
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "string_pattern_mismatch":
        text = f"must look like {context['pattern']}"
    else:
        text = _EXPECTED.get(kind) or details["msg"].replace("Input should be", "must be")
    if kind in _BLOCKS:
        text += _emptiness(details["input"])
    named = [str(part) for part in location if isinstance(part, str)]
    return text if not named or named[-1] == "[key]" else f"{named[-1]}: {text}"


def _unknown_field(model: type[BaseModel], location: Location) -> str:
    """Return what is allowed in the place of an unknown field, or where the field belongs."""
    fields, field = fields_at(model, location[:-1]), str(location[-1])
    hint = suggest(field, fields)
    if not hint and _MEANT.get(field) in fields:
        hint = f'; did you mean "{_MEANT[field]}"?'
    if not hint:
        hint = _elsewhere(model, location)
    return f"unknown field {quote(field)}; allowed: {', '.join(sorted(fields))}{hint}"


def _elsewhere(model: type[BaseModel], location: Location) -> str:
    """Return where a field of this name may be written, those below its own place first."""
    here = tuple("<name>" if i == 1 else str(part) for i, part in enumerate(location[:-1]))
    places = _places(model).get(str(location[-1]), ())
    below = [place[len(here) :] for place in places if here and place[: len(here)] == here]
    shown = [".".join(place) for place in below or places]
    return f"; it belongs to {' or '.join(shown[:_MOST_PLACES])}" if shown else ""


@cache
def _places(model: type[BaseModel]) -> Mapping[str, Sequence[tuple[str, ...]]]:
    """Return for each field of a model and its blocks where it stands."""
    found: dict[str, list[tuple[str, ...]]] = {}
    todo: list[tuple[tuple[str, ...], type[BaseModel]]] = [((), model)]
    for place, block in todo:
        for name, field in block.model_fields.items():
            written = field.alias or name
            found.setdefault(written, []).append(place)
            for step, below in (((), ()), (("x",), ("<name>",)), ((0,), ())):
                inner = _follow(field.annotation, step)
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    todo.append(((*place, written, *below), inner))
                    break
    return found


def _unknown_word(words: Sequence[str], written: object) -> str:
    """Return that a word is not one of a closed set, and which is meant."""
    hint = suggest(written, words) if isinstance(written, str) else ""
    given = "this"
    if isinstance(written, str | int | bool):
        # As YAML writes it, not Python.
        given = quote(str(written).lower() if isinstance(written, bool) else written)
    if not hint and str(written).casefold() in _NOTHING:
        word = next((word for word in words if word in ("never", "none")), None)
        hint = f'; did you mean "{word}"?' if word else "; for nothing leave it out"
    return f"{given} is not allowed; allowed: {', '.join(words)}{hint}"


def _emptiness(written: object) -> str:
    """Return a hint where a block was switched off, or what belongs to it is not indented."""
    if written is None:
        return "; nothing is indented below it: fill it or leave it out"
    if str(written).casefold() in _NOTHING:
        return "; for nothing leave it out"
    return ""


def fields_at(annotation: Any, location: Sequence[int | str]) -> list[str]:
    """Return the names of the fields that may be written at a location of a model."""
    found = _follow(annotation, location)
    if isinstance(found, type) and issubclass(found, BaseModel):
        return [field.alias or name for name, field in found.model_fields.items()]
    return []


def _words(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the words of a closed set that may be written at a location of a model."""
    return [str(word) for word in get_args(_follow(model, location))]


def _follow(annotation: Any, location: Sequence[int | str]) -> Any:
    """Return the type that a location leads to, or None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _follow(get_args(annotation)[0], location)
    if origin in (Union, UnionType):
        branches = (_follow(arg, location) for arg in get_args(annotation) if arg is not type(None))
        return next((branch for branch in branches if branch is not None), None)
    if not location:
        return annotation
    if origin in (dict, Mapping):
        return _follow(get_args(annotation)[1], location[1:])
    if origin in (tuple, list):
        inner = get_args(annotation)[0]
        return _follow(inner, location[1:]) if isinstance(location[0], int) else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = _field(annotation, str(location[0]))
        return _follow(field.annotation, location[1:]) if field else None
    return None


def _field(model: type[BaseModel], written: str) -> FieldInfo | None:
    return next((f for name, f in model.model_fields.items() if (f.alias or name) == written), None)
