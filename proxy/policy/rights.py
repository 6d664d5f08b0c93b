"""Words for commands in policies: which rows of the command table they mean.

The loader asks whether a word is known, the compiler which rows it names. `GET`, `CONFIG` (with all
its sub-commands), `CONFIG SET`, `@write` and `@all` are words.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from proxy import commands
from proxy.documents import quote, suggest
from proxy.policy.blocks import CommandRights
from proxy.policy.model import Policies
from proxy.wire.rules import Command

# What reaches keys that the command does not name, what stops other clients, and what takes away,
# ends or shows scripts of others. Nobody can judge those by the name of a key, so a role that may
# not use all keys has these only where `allow` names them.
UNNAMED = (
    "EVAL", "EVAL_RO", "SCRIPT LOAD", "SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION LOAD",
    "FUNCTION RESTORE", "FUNCTION DELETE", "FUNCTION FLUSH", "FUNCTION KILL", "FUNCTION LIST",
    "FUNCTION DUMP", "FUNCTION STATS", "CLIENT PAUSE", "CLIENT UNPAUSE", "FLUSHALL", "FLUSHDB",
    "MONITOR",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Names that policies may use and that are defined elsewhere, and what stands behind them."""

    rows: Sequence[Command]
    categories: Mapping[str, Collection[bytes]]
    clusters: Sequence[str] | None = None  # None where no configuration says which there are
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes, of clusters that say it

    def extended(self, policies: Policies) -> "Vocabulary":
        """Return the words with those of commands that policies add, but for what is known.

        Of what scripts offer first come the rows: what runs is the compiler's.
        """
        rows, categories = list(self.rows), {name: set(of) for name, of in self.categories.items()}
        names = {row.name for row in rows}
        for row in _added(policies):
            if row.name in names:
                continue
            names.add(row.name)
            rows.append(commands.command(row))
            for category in row.categories:
                categories.setdefault(category, set()).add(row.name)
        return replace(self, rows=tuple(rows), categories=categories)

    @cached_property
    def indexes(self) -> Mapping[bytes, int]:
        """The index of each row, by its name."""
        return {row.name: index for index, row in enumerate(self.rows)}

    @cached_property
    def _by_word(self) -> Mapping[str, frozenset[int]]:
        words: dict[str, set[int]] = {"@all": set(range(len(self.rows)))}
        for index, row in enumerate(self.rows):
            container = row.name.partition(b"|")[0].decode()
            words.setdefault(container, set()).add(index)
            words.setdefault(row.name.decode(), set()).add(index)
        for category, names in self.categories.items():
            words[f"@{category}"] = {self.indexes[name] for name in names if name in self.indexes}
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
        # Most keyspaces have the same rights as many others.
        asked = rights.allow, (*rights.deny, *denied)
        if asked not in self._flags:
            self._flags[asked] = self._allowed(*asked)
        return self._flags[asked]

    @cached_property
    def _flags(self) -> dict[object, bytes]:
        return {}

    def _allowed(self, allow: Iterable[str] | None, deny: Iterable[str]) -> bytes:
        if allow is None:
            allowed = set(range(len(self.rows)))
        else:
            allowed = self._union(allow)
            # Whoever may do nothing may still say who else it is.
            allowed |= {i for i, row in enumerate(self.rows) if row.unauthenticated}
        allowed -= self._union(deny)
        # A container is a way to its sub-commands: open while one of them is.
        containers = {self.rows[i].name.partition(b"|")[0] for i in allowed}
        return bytes(i in allowed or row.name in containers for i, row in enumerate(self.rows))

    def _union(self, words: Iterable[str]) -> set[int]:
        return {index for word in words for index in self.commands(word)}


def _added(policies: Policies) -> Iterator[commands.Row]:
    for own in policies.commands.add:
        yield commands.added(own.name, own.keys, own.write, own.arity)
    for script in policies.scripts.values():
        more = script.more is not None
        yield commands.offered(script.name, len(script.arguments), more, script.reads)
