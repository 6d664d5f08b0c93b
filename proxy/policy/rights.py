"""Words for commands in policies: which rows of the command table they mean.

The loader asks whether a word is known, the compiler which rows it names. `GET`, `CONFIG` (with all
its sub-commands), `CONFIG SET`, `@write` and `@all` are words.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from proxy.documents import quote, suggest
from proxy.policy.blocks import CommandRights
from proxy.wire.rules import Command


@dataclass(frozen=True)
class Vocabulary:
    """Names that policies may use and that are defined elsewhere."""

    rows: Sequence[Command]
    categories: Mapping[str, Collection[bytes]]
    clusters: Sequence[str] | None = None  # None where no configuration says which there are

    @cached_property
    def _by_word(self) -> Mapping[str, frozenset[int]]:
        words: dict[str, set[int]] = {"@all": set(range(len(self.rows)))}
        for index, row in enumerate(self.rows):
            container = row.name.partition(b"|")[0].decode()
            words.setdefault(container, set()).add(index)
            words.setdefault(row.name.decode(), set()).add(index)
        indexes = {row.name: index for index, row in enumerate(self.rows)}
        for category, names in self.categories.items():
            words[f"@{category}"] = {indexes[name] for name in names if name in indexes}
        return {word: frozenset(found) for word, found in words.items()}

    def commands(self, word: str) -> frozenset[int]:
        """Return the indexes of the rows that a word means, or raise ValueError with a hint."""
        plain = "|".join(word.casefold().replace("|", " ").split())
        found = self._by_word.get(plain)
        if found is None:
            kind = "category" if plain.startswith("@") else "command"
            near = suggest(plain, self._by_word).replace("|", " ")
            raise ValueError(f"{quote(word)} is no {kind} of Redis that is known here{near}")
        return found

    def allowed(self, rights: CommandRights, denied: Iterable[str] = ()) -> bytes:
        """Return a flag per row: 1 where it may be sent."""
        if rights.allow is None:
            allowed = set(range(len(self.rows)))
        else:
            allowed = self._union(rights.allow)
            # Whoever may do nothing may still say who else it is.
            allowed |= {i for i, row in enumerate(self.rows) if row.unauthenticated}
        allowed -= self._union(rights.deny) | self._union(denied)
        # A container is a way to its sub-commands: open while one of them is.
        containers = {self.rows[i].name.partition(b"|")[0] for i in allowed}
        return bytes(i in allowed or row.name in containers for i, row in enumerate(self.rows))

    def _union(self, words: Iterable[str]) -> set[int]:
        return {index for word in words for index in self.commands(word)}
