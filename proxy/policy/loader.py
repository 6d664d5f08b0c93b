"""Policy files to `Policies`, or every mistake of every file.

Used by `app` at start and reload, and by the verbs of the command line. All files of a folder are
read, each is validated on its own, then they are put together and checked as a whole.

Always true: nothing is half loaded: either all rules are right or `PolicyMistakes` names all that
is wrong, each with file, line and column; and a mistake is told once, where it was made: what was
left out because it is wrong is not reported as missing as well.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxy.documents import Mistake, MistakesFound, Node, read_far
from proxy.errors import PolicyError
from proxy.policy import attachments, checks, dependencies, locks, schemas, scripts, writes
from proxy.policy.aliases import check_aliases
from proxy.policy.model import EMPTY, Defaults, File, GlobalCommands, Policies
from proxy.policy.rights import Vocabulary
from proxy.policy.schemas import Schema
from proxy.validation import Broken, Location, locator, validate

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
    broken: Broken


def load(path: Path | None, vocabulary: Vocabulary) -> Policies:
    """Return the policies of a folder or a file, or raise PolicyMistakes. None has no rules."""
    if path is None:
        return EMPTY
    mistakes: list[Mistake] = []
    files = _files(path, mistakes)
    sources = [source for file in files if (source := _read(file, mistakes)) is not None]
    policies, owners = _merge(sources, mistakes)
    bodies, undeclared = attachments.bodies(policies, lambda at: Path(owners.find(at).path))
    mistakes += undeclared
    policies = replace(policies, schemas=_schemas(policies, owners, mistakes), bodies=bodies)
    mistakes += _complaints(policies, vocabulary, owners, _Told(sources, len(sources) < len(files)))
    if mistakes:
        raise PolicyMistakes(mistakes)
    return policies


def files(path: Path | None) -> list[Path]:
    """Return the policy files that a folder or a file stands for; none where it cannot be read."""
    return [] if path is None else _files(path, [])


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
    """Return a file without what is wrong in it, or None where it could not be read to its end."""
    reading = read_far(path)
    mistakes += reading.mistakes
    if reading.root is None:
        return None
    locate = locator(str(path), reading.root)
    file, found, broken = validate(File, reading.root.plain(), locate, items=True)
    # What a mapping lacks nobody can say before its end, and what is no YAML is told already.
    told = {(mistake.line, mistake.column) for mistake in reading.mistakes} | reading.unfinished
    end = reading.mistakes[-1].line if reading.cut else 0
    mistakes += (m for m in found if (m.line, m.column) not in told and m.line != end)
    whole = file is not None and not reading.cut
    return _Source(str(path), reading.root, file, broken) if file and whole else None


class _Told:
    """What is told already, so that what follows from it is not told as well."""

    def __init__(self, sources: Iterable[_Source], cut: bool) -> None:
        self._broken = frozenset().union(*(source.broken for source in sources))
        self._cut = cut  # a file could not be read, and nobody knows what is in it
        self._places: set[Location] = set()

    def knows(self, complaint: checks.Complaint, source: _Source) -> bool:
        """Return whether a complaint follows from a mistake, or has been told of its place."""
        at, absent, part = complaint.location, complaint.absent, complaint.elsewhere
        if at in source.broken or (*at[:2], absent) in source.broken:
            return True
        if part and absent is not None and (self._cut or (part, absent) in self._broken):
            return True
        known = at in self._places
        self._places.add(at)
        return known


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

    def written(self, location: Location) -> str:
        """Return where something is written, or the block in which it is not, or nothing."""
        try:
            source = self.find(location)
        except LookupError:
            return ""
        line, column = source.root.place(_written(source.root, location), key=True)
        return f"{source.path}:{line}:{column}"


def _written(node: Node, location: Location) -> Location:
    """Return the beginning of a location that leads somewhere."""
    for length, part in enumerate(location):
        inner = node.value
        if isinstance(inner, dict) and part in inner:
            node = inner[part].node
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            node = inner[part]
        else:
            return location[:length]
    return location


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
    return Policies(**parts, place=owners.written), owners


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
    policies: Policies, vocabulary: Vocabulary, owners: _Owners, told: _Told
) -> Iterator[Mistake]:
    """Yield what the checks find, but for what follows from a mistake that is told already."""
    for complaint in _all(policies, vocabulary, owners):
        source = owners.find(complaint.location)
        at = source.broken.written(complaint.location)
        if told.knows(complaint._replace(location=at), source):
            continue
        line, column = source.root.place(at, key=complaint.message.startswith("is given"))
        field = f"{at[-1]}: " if isinstance(at[-1], str) else ""
        yield Mistake(source.path, line, column, field + complaint.message)


def _schemas(policies: Policies, owners: _Owners, mistakes: list[Mistake]) -> dict[str, Schema]:
    """Return the schemas of keyspaces; a file is looked for beside the policy that names it."""
    found: dict[str, Schema] = {}
    for name, own in policies.effective.items():
        if own.value.json_schema is None:
            continue
        stated = "json_schema" in policies.keyspaces[name].value.model_fields_set
        at: Location = (*(("keyspaces", name) if stated else ("defaults",)), "value", "schema")
        path, line, column = owners.place(at)
        schema, wrong = schemas.read(Path(path).parent / own.value.json_schema, name)
        for mistake in wrong:
            if not mistake.line:
                message = f"schema: {mistake.path} {mistake.message}"
                mistake = Mistake(path, line, column, message)
            mistakes.append(mistake)
        if schema is not None:
            found[name] = schema
    return found


def _all(policies: Policies, vocabulary: Vocabulary, owners: _Owners) -> Iterator[checks.Complaint]:
    for name, own in policies.effective.items():
        # What locks do without comes first: of one place the first complaint is told.
        found = (*locks.check_lock(own, policies.keyspaces[name]), *checks.check_keyspace(own),
                 *writes.check_write(own))  # fmt: skip
        for complaint in found:
            yield complaint._replace(location=("keyspaces", name, *complaint.location))

    def place(name: str) -> str:
        path, line, _ = owners.place(("keyspaces", name, "key"))
        return f"{path}:{line}"

    yield from checks.check_overlaps(policies, place)
    yield from checks.check_names(policies, vocabulary)
    yield from dependencies.check_dependencies(policies)
    yield from checks.check_budgets(policies, vocabulary)
    yield from scripts.check_scripts(policies, vocabulary)
    yield from attachments.check_files(policies, lambda at: Path(owners.find(at).path))
    yield from check_aliases(policies, vocabulary.extended(policies))
