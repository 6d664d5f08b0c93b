"""Policy files to `Policies`, or every mistake of every file.

Used by `app` at start and reload, and by the verbs of the command line. All files of a folder are
read, each is validated on its own, then they are put together and checked as a whole.

Always true: nothing is half loaded: either all rules are right or `PolicyMistakes` names all that
is wrong, each with file, line and column; and a mistake is told once, where it was made: what was
left out because it is wrong is not reported as missing as well.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.documents import Mistake, MistakesFound, Node, read
from proxy.errors import PolicyError
from proxy.policy import checks, scripts
from proxy.policy.model import EMPTY, Defaults, File, GlobalCommands, Policies
from proxy.policy.rights import Vocabulary
from proxy.validation import Location, locator, validate

# A folder with more was named by mistake, such as the root of a file system.
MAX_FILES = 200

# Parts of a file whose entries have names; the other two parts stand in one file only.
_NAMED = ("keyspaces", "roles", "channels", "scripts")
_SINGLE = ("defaults", "commands")


class PolicyMistakes(MistakesFound, PolicyError):
    """Every mistake of the policy files."""


@dataclass(frozen=True)
class _Source:
    """One file: where things stand in it, and what of it was wrong."""

    path: str
    root: Node
    file: File
    broken: frozenset[Location]


def load(path: Path | None, vocabulary: Vocabulary) -> Policies:
    """Return the policies of a folder or a file, or raise PolicyMistakes. None has no rules."""
    if path is None:
        return EMPTY
    mistakes: list[Mistake] = []
    sources = [s for file in _files(path, mistakes) if (s := _read(file, mistakes)) is not None]
    policies, owners = _merge(sources, mistakes)
    broken = frozenset().union(*(source.broken for source in sources))
    mistakes += _complaints(policies, vocabulary, owners, broken)
    if mistakes:
        raise PolicyMistakes(mistakes)
    return policies


def _files(path: Path, mistakes: list[Mistake]) -> list[Path]:
    """Return the policy files of a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    try:
        # Names with a dot in front are an editor's, or the versions of a mounted ConfigMap.
        files = sorted(
            file
            for file in path.iterdir()
            if file.suffix in (".yaml", ".yml") and not file.name.startswith(".")
        )
    except OSError as error:
        mistakes.append(Mistake(str(path), 0, 0, f"cannot be read: {error.strerror}"))
        return []
    if not files:
        mistakes.append(Mistake(str(path), 0, 0, "there is no .yaml file in this folder"))
    if len(files) > MAX_FILES:
        message = f"more than {MAX_FILES} files; is this the folder of the policies?"
        mistakes.append(Mistake(str(path), 0, 0, message))
        return []
    return files


def _read(path: Path, mistakes: list[Mistake]) -> _Source | None:
    root, found = read(path)
    mistakes += found
    if root is None:
        return None
    file, found, broken = validate(File, root.plain(), locator(str(path), root))
    mistakes += found
    return None if file is None else _Source(str(path), root, file, broken)


class _Owners:
    """Which file each part comes from, so that what is wrong can be placed."""

    def __init__(self) -> None:
        self._sources: dict[Location, _Source] = {}

    def claim(self, location: Location, source: _Source) -> _Source | None:
        """Note who defines something; return the file that does already, if one does."""
        return self._sources.setdefault(location, source)

    def find(self, location: Location) -> _Source:
        for length in (2, 1):
            source = self._sources.get(location[:length])
            if source is not None:
                return source
        raise LookupError(f"nobody defines {location!r}")

    def place(self, location: Location, *, key: bool = False) -> tuple[str, int, int]:
        source = self.find(location)
        return (source.path, *source.root.place(location, key=key))


def _merge(sources: Iterable[_Source], mistakes: list[Mistake]) -> tuple[Policies, _Owners]:
    """Put the files together; what two of them define is a mistake in the second."""
    owners = _Owners()
    parts: dict[str, Any] = {name: {} for name in _NAMED}
    parts |= {"defaults": Defaults(), "commands": GlobalCommands()}
    for source in sources:
        for location, value in _definitions(source.file):
            first = owners.claim(location, source)
            if first is not source:
                mistakes.append(_defined_twice(location, first, source))
            elif len(location) == 1:
                parts[str(location[0])] = value
            else:
                parts[str(location[0])][location[1]] = value
    return Policies(**parts), owners


def _definitions(file: File) -> Iterator[tuple[Location, object]]:
    for part in _NAMED:
        entries: Mapping[str, object] = getattr(file, part)
        yield from (((part, name), value) for name, value in entries.items())
    yield from (((part,), getattr(file, part)) for part in _SINGLE if part in file.model_fields_set)


def _defined_twice(location: Location, first: _Source | None, second: _Source) -> Mistake:
    line, column = second.root.place(location, key=True)
    where = ""
    if first is not None:
        where = f", first at {first.path}:{first.root.place(location, key=True)[0]}"
    what = " ".join(str(part).removesuffix("s") if i == 0 and len(location) > 1 else f'"{part}"'
                    for i, part in enumerate(location))  # fmt: skip
    return Mistake(second.path, line, column, f"{what} is defined twice{where}")


def _complaints(
    policies: Policies, vocabulary: Vocabulary, owners: _Owners, broken: frozenset[Location]
) -> Iterator[Mistake]:
    """Yield what the checks find, but for what follows from a mistake that is told already."""
    for complaint in _all(policies, vocabulary, owners):
        source = owners.find(complaint.location)
        missed = (*complaint.location[:2], complaint.absent)
        if complaint.location in source.broken or missed in source.broken:
            continue
        if ("keyspaces", complaint.absent) in broken:
            continue
        key = complaint.message.startswith("is given")
        path, line, column = owners.place(complaint.location, key=key)
        last = complaint.location[-1]
        field = f"{last}: " if isinstance(last, str) else ""
        yield Mistake(path, line, column, field + complaint.message)


def _all(policies: Policies, vocabulary: Vocabulary, owners: _Owners) -> Iterator[checks.Complaint]:
    for name, own in policies.effective.items():
        for complaint in checks.check_keyspace(own):
            yield complaint._replace(location=("keyspaces", name, *complaint.location))

    def place(name: str) -> str:
        path, line, _ = owners.place(("keyspaces", name, "key"))
        return f"{path}:{line}"

    yield from checks.check_overlaps(policies, place)
    yield from checks.check_names(policies, vocabulary)
    yield from checks.check_invalidation(policies)
    yield from scripts.check_scripts(policies)
