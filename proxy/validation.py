"""From a tree with places to a model: what pydantic finds wrong becomes mistakes with a place.

Used by `config` and by the policy loader. A message says what is wrong, what is allowed and what
was probably meant. It shows what was written only where a field takes words of a closed set: all
else may be a secret.
"""

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from proxy.documents import MAX_DEPTH, Mistake, Node, quote, suggest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]

# Path, line and column of a location; with True the place of its last key.
Locate = Callable[[Location, bool], tuple[str, int, int]]


class Strict(BaseModel):
    """A block of a file: unknown fields are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def locator(path: str, node: Node) -> Locate:
    """Return where the locations of a tree are."""

    def locate(location: Location, key: bool) -> tuple[str, int, int]:
        return (path, *node.place(location, key=key))

    return locate


def validate(
    model: type[Model], plain: object, locate: Locate
) -> tuple[Model | None, list[Mistake], frozenset[Location]]:
    """Return the model without what is wrong in it, the mistakes, and where something is wrong.

    What is wrong is left out and the rest looked at again, so that a caller can check how the
    remaining fields go together; it must not complain that something is missing where the third
    result, which holds every location above a mistake as well, says that it was left out. None
    means that a field is wrong or missing without which there is no model.
    """
    try:
        return model.model_validate(plain), [], frozenset()
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=True)
    mistakes = [_mistake(model, details, locate) for details in errors]
    locations: list[Location] = [details["loc"] for details in errors]
    broken = frozenset(loc[:n] for loc in locations for n in range(1, len(loc) + 1))
    return _rest(model, _without(plain, locations)), mistakes, broken


def _rest(model: type[Model], plain: object) -> Model | None:
    """Return the model of what remains, without each block that lacks what it cannot be without.

    Only the block: a keyspace without a key must not hide what is wrong in the next one. Each
    round leaves out something that is less deep than before, so the depth of a file bounds them.
    """
    for _ in range(MAX_DEPTH):
        try:
            return model.model_validate(plain)
        except ValidationError as error:
            locations = [
                details["loc"][:-1] if details["type"] == "missing" else details["loc"]
                for details in error.errors(include_url=False)
            ]
        if () in locations:
            break
        plain = _without(plain, locations)
    return None


def _without(plain: Any, locations: Sequence[Location]) -> Any:
    """Return a copy of plain values without what stands at the locations."""
    inner: dict[int | str, list[Location]] = {}
    for location in locations:
        if location:
            inner.setdefault(location[0], []).append(location[1:])
    if not isinstance(plain, dict):
        return plain
    copy = {}
    for key, value in plain.items():
        below = inner.get(key)
        if below is None:
            copy[key] = value
        elif isinstance(value, dict) and all(rest and rest[0] in value for rest in below):
            copy[key] = _without(value, below)
    return copy


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


def _message(model: type[BaseModel], details: ErrorDetails) -> str:
    location, kind, context = details["loc"], details["type"], details.get("ctx", {})
    field = str(location[-1]) if location else "the file"
    if kind == "extra_forbidden":
        fields = fields_at(model, location[:-1])
        allowed = ", ".join(sorted(fields))
        return f"unknown field {quote(field)}; allowed: {allowed}{suggest(field, fields)}"
    if kind == "missing":
        return f'the field "{field}" is missing'
    if kind == "literal_error":
        words = _words(model, location)
        written = details["input"]
        hint = suggest(written, words) if isinstance(written, str) else ""
        given = quote(written) if isinstance(written, str | int | bool) else "this"
        return f"{field}: {given} is not allowed; allowed: {', '.join(words)}{hint}"
    if kind == "value_error":
        text = str(context["error"])
    else:
        text = _EXPECTED.get(kind) or details["msg"].replace("Input should be", "must be")
    named = [str(part) for part in location if isinstance(part, str)]
    return text if not named or named[-1] == "[key]" else f"{named[-1]}: {text}"


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
        return _follow(get_args(annotation)[0], location[1:])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = _field(annotation, str(location[0]))
        return _follow(field.annotation, location[1:]) if field else None
    return None


def _field(model: type[BaseModel], written: str) -> FieldInfo | None:
    return next((f for name, f in model.model_fields.items() if (f.alias or name) == written), None)
