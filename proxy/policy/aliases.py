"""Commands under other names: `commands: rename`, checked and compiled.

Clients know a renamed command by the new name alone; the old one is unknown to them, as after
Redis' rename-command. Nodes, roles, keyspaces and handlers keep the old name: the data plane puts
it back before anything else is judged.
"""

from collections.abc import Iterator, Mapping, Sequence

from proxy.documents import quote, suggest
from proxy.policy.checks import Complaint
from proxy.policy.model import Policies
from proxy.policy.rights import Vocabulary
from proxy.validation import Location
from proxy.wire.rules import Command

# What the data plane keeps of a name, the word of a sub-command and the bar before it included.
LONGEST_NAME = 40  # bytes


def renamed(rows: Sequence[Command], names: Mapping[str, str]) -> Sequence[Command]:
    """Return the rows with the names that clients know, those of sub-commands too."""
    if not names:
        return rows
    aliases = {old.casefold().encode(): new.casefold().encode() for old, new in names.items()}
    found = []
    for row in rows:
        container, bar, word = row.name.partition(b"|")
        alias = aliases.get(container)
        found.append(row if alias is None else row._replace(alias=alias + bar + word))
    return found


def check_aliases(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    """Yield old names of nothing, and new ones that are too long or taken by another command."""
    names = {row.name.decode() for row in vocabulary.rows}
    plain = {name for name in names if "|" not in name}
    taken = plain - {old.casefold() for old in policies.commands.rename}
    for old, new in policies.commands.rename.items():
        at: Location = ("commands", "rename", old)
        known = old.casefold()
        if known not in plain:
            yield Complaint(at, f"{quote(old)} is no command with a name of its own"
                            f"{suggest(known, plain)}")  # fmt: skip
            continue
        # A sub-command is looked up by both words.
        words = [len(name) - len(known) for name in names if name.startswith(known + "|")]
        most = LONGEST_NAME - max(words, default=0)
        if len(new) > most:
            yield Complaint(at, f"a new name of {old} has at most {most} characters")
        if new.casefold() in taken:
            yield Complaint(at, f"{quote(new)} is the name of another command")
        taken.add(new.casefold())
