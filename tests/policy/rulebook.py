"""Policies from text, as an operator would write them, for the tests of the policy language."""

from pathlib import Path

from proxy import commands, wire
from proxy.policy import compiler, loader
from proxy.policy.loader import PolicyMistakes
from proxy.policy.model import Policies
from proxy.policy.rights import Vocabulary

CLUSTERS = ("locks", "cache")
VOCABULARY = Vocabulary(commands.ROWS, commands.CATEGORIES, CLUSTERS)
SHIPPED = Path(__file__).parents[2] / "policies"


def load(path: Path) -> Policies:
    return loader.load(path, VOCABULARY)


def compiled(policies: Policies) -> wire.Ruleset:
    return compiler.compile(
        policies, commands.ROWS, commands.FAMILIES, commands.CATEGORIES, CLUSTERS
    )


def complaints(path: Path) -> list[str]:
    """Return what is wrong with a file or folder, each line without the folder's path."""
    try:
        load(path)
    except PolicyMistakes as found:
        folder = path if path.is_dir() else path.parent
        return [str(mistake).replace(f"{folder}/", "") for mistake in found.mistakes]
    return []


class Folder:
    """A folder of policies that a test writes into."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str | bytes, name: str = "a.yaml") -> Path:
        file = self.path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def load(self, text: str) -> Policies:
        return load(self.write(text))

    def compile(self, text: str) -> wire.Ruleset:
        return compiled(self.load(text))

    def complaints(self, text: str | bytes) -> list[str]:
        return complaints(self.write(text))

    def keyspace(self, fields: str, key: str = "a:{x}:{y}") -> list[str]:
        """Return what is wrong with one keyspace `k`; its fields are lines of YAML."""
        lines = "".join(f"    {line}\n" for line in fields.splitlines())
        return self.complaints(f"keyspaces:\n  k:\n    key: {key}\n{lines}")
