"""JSON Schema files of `value: {schema: file.json}`, and whether a value fits one.

The loader reads them, so that a mistake in one stops the policies as any other does. The compiler
puts a `Schema` beside the keyspace, and the data plane asks it about values that are JSON. It runs
in the middle of other clients' commands, so patterns are matched without backtracking, and nothing
is fetched: a reference leads to a place of the same file.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema_rs import RegexOptions, ValidationError, Validator, validator_for

from proxy import errors
from proxy.documents import Mistake, Node, read_json

# A pointer is made of member names, which are a client's bytes.
MOST_POINTER = 64  # bytes


@dataclass(frozen=True)
class Schema:
    """A schema for the values of one keyspace."""

    keyspace: str
    document: Any
    _validator: Validator = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the document: rules are worked out in another process."""
        return _compiled, (self.keyspace, self.document)

    def __call__(self, value: bytes) -> bytes | None:
        """Return the error line for a value that does not fit, or None. The value is JSON."""
        try:
            self._validator.validate(json.loads(value))
        except ValidationError as error:
            words = [part for part in error.schema_path if isinstance(part, str)]
            keyword = _shown(words[-1]) if words else "false"
            return errors.no_fit(self.keyspace, _pointer(error.instance_path), keyword)
        except ValueError:
            # A number of more digits than Python reads: 4,300.
            return errors.no_fit(self.keyspace, "", "number")
        return None


def read(path: Path, keyspace: str) -> tuple[Schema | None, list[Mistake]]:
    """Return the schema of a file, or what is wrong with it; line 0 where it cannot be read."""
    document, tree, mistakes = read_json(path)
    if mistakes:
        return None, mistakes
    try:
        return _compiled(keyspace, document), []
    except ValidationError as error:
        return None, [_mistake(path, tree, error)]
    except ValueError as error:
        return None, [Mistake(str(path), 1, 1, f"no JSON Schema: {error}")]


def _compiled(keyspace: str, document: Any) -> Schema:
    validator = validator_for(document, validate_formats=True, ignore_unknown_formats=False,
                              pattern_options=RegexOptions(), offline=True)  # fmt: skip
    return Schema(keyspace, document, validator)


def _mistake(path: Path, tree: Node, error: ValidationError) -> Mistake:
    line, column = tree.place(error.instance_path)
    return Mistake(str(path), line, column, f"no JSON Schema: {error.message}")


def _pointer(path: list[str | int]) -> str:
    """Return a JSON Pointer (RFC 6901) that may stand in an error line."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return _shown("".join(f"/{part}" for part in parts))


def _shown(text: str) -> str:
    escaped = text[: MOST_POINTER + 1].encode("unicode_escape").decode()
    return escaped if len(escaped) <= MOST_POINTER else f"{escaped[: MOST_POINTER - 3]}..."
