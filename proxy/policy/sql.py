"""What can be told of an SQL text without a database: its parameters and its first word.

A parameter is `:name`. Text in quotes, comments, dollar quotes and casts (`::text`) are passed
over. Whether the statement is right is decided by PostgreSQL, when it is prepared.
"""

import re
from collections.abc import Callable

_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*'                      # text
  | "(?:[^"]|"")*"                      # an identifier
  | --[^\n]*                            # a comment
  | /\*.*?\*/
  | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$     # a dollar quote
  | ::\s*\w+                            # a cast
  | (?<![\w\]]):(?P<name>[A-Za-z_]\w*)   # a parameter; behind a word or ] it is an array slice
  | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)


def parameters(text: str) -> list[str]:
    """Return the names of the parameters, each once, in the order of the text."""
    names = (match["name"] for match in _TOKEN.finditer(text))
    return list(dict.fromkeys(name for name in names if name))


def replaced(text: str, written: Callable[[str], str]) -> str:
    """Return the text with what is written in the place of each parameter."""
    return _TOKEN.sub(lambda found: written(found["name"]) if found["name"] else found[0], text)


def single(text: str) -> bool:
    """Return whether the text is one statement."""
    return not any(m["end"] and text[m.end() :].strip() for m in _TOKEN.finditer(text))


def reads(text: str) -> bool:
    """Return whether the text begins like a statement that only reads."""
    plain = re.sub(r"\A(?:\s|--[^\n]*\n|/\*.*?\*/)+", "", text, flags=re.DOTALL)
    return re.match(r"(?:select|with|values|table)\b", plain, re.IGNORECASE) is not None
