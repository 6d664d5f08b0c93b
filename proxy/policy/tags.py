"""What names a part of a key or a value: hash tags and owners of locks, as types for `blocks`."""

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, PlainValidator
from pydantic import WithJsonSchema as JsonSchema


class HashTagWord(NamedTuple):
    """A hash tag that is the same for all keys of a keyspace."""

    literal: str


def _hash_tag(value: object) -> str | HashTagWord:
    if isinstance(value, dict):
        word = value.get("literal")
        if set(value) != {"literal"} or not isinstance(word, str):
            raise ValueError("expects the name of a segment, or {literal: word}")
        if not word or any(c in word for c in "{}") or not word.isprintable():
            raise ValueError("the word of a hash tag has no braces and is not empty")
        return HashTagWord(word)
    if not isinstance(value, str):
        raise ValueError("expects the name of a segment, or {literal: word}")
    return value


_OWNER = r"^(value|\$(\.[A-Za-z_][A-Za-z0-9_]*)+)$"


def _owner(value: str) -> str:
    if not re.fullmatch(_OWNER, value):
        hint = f'; did you mean "$.{value}"?' if value.isidentifier() else ""
        raise ValueError(f"expects value, or a member of the JSON such as $.user_id{hint}")
    return value


HashTag = Annotated[
    str | HashTagWord,
    PlainValidator(_hash_tag),
    JsonSchema({
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {"literal": {"type": "string", "minLength": 1}},
                "required": ["literal"],
                "additionalProperties": False,
            },
        ]
    }),
]  # fmt: skip
Owner = Annotated[str, AfterValidator(_owner), JsonSchema({"type": "string", "pattern": _OWNER})]
