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


def guards(text: str, column: str) -> bool:
    """Return whether a row is changed only where a column is below the write's :version.

    The column is set to it in the same breath: to :version itself, or to what an upsert excludes.
    """
    old = rf'(?<![\w.:])(?:(?!excluded\.)\w+\.)?"?{re.escape(column)}"?(?!\w)'
    new = rf'(?:\bexcluded\."?{re.escape(column)}"?(?!\w)|:version\b)'
    compared = rf"(?:{old}\s*<=?\s*{new}|{new}\s*>=?\s*{old})"
    wanted = rf"\bset\b.*{old}\s*=\s*{new}.*\bwhere\b.*{compared}"
    return re.search(wanted, _bare(text), re.IGNORECASE | re.DOTALL) is not None


def adds(text: str) -> bool:
    """Return whether an upsert adds what it excludes to what a column holds."""
    found = re.search(r"\+\s*excluded\.|\bexcluded\.\S+\s*\+", _bare(text), re.IGNORECASE)
    return found is not None


def _bare(text: str) -> str:
    """Return the text without what is in quotes, other than names, and without comments."""
    return _TOKEN.sub(lambda found: " " if found[0][0] in "'-/$" else found[0], text)
