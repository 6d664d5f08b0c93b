"""A text that never prints itself.

Passwords and URLs with passwords are kept as `Secret` from the moment they are read. Whoever needs
the text asks for it by name, which makes every place that handles one easy to find.
"""

from typing import final


@final
class Secret:
    """A password or the like: only `reveal` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)
