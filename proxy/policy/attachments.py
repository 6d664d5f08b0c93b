"""The scripts that policies name: whether they are there, and what they use.

The loader gives all policies to `check_files` and `bodies`. A script stands in the folder `lua`
within the policies or beside them, else in the one that is shipped. Schemas are read by `schemas`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.documents import Mistake
from proxy.policy.checks import Complaint
from proxy.policy.model import Policies, Script
from proxy.validation import Location

# The scripts that come with the proxy.
SHIPPED_SCRIPTS = Path(__file__).parent.parent / "lua"

# What of Lua is no code is passed over; of the code only fixed places say what a script needs.
_LUA = re.compile(
    rb"--\[(=*)\[.*?\]\1\]|--[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
    rb"|\b(?P<list>KEYS|ARGV)\s*\[\s*(?P<place>[0-9]{1,9})\s*\]",
    re.DOTALL,
)


def check_files(policies: Policies, where: Callable[[Location], Path]) -> Iterator[Complaint]:
    """Yield scripts that are not there; where tells the file of a location."""
    for name, script in policies.scripts.items():
        at: Location = ("scripts", name, "file")
        folder = where(at).parent
        if _found(folder, script.file) is None:
            tried = " and ".join(str(path) for path in script_paths(folder, script.file))
            yield Complaint(at, f"there is no such script; looked for {tried}")


def bodies(
    policies: Policies, where: Callable[[Location], Path]
) -> tuple[dict[str, bytes], list[Mistake]]:
    """Return the scripts that are there, by name, and what they use without being given it."""
    found: dict[str, bytes] = {}
    mistakes: list[Mistake] = []
    for name, script in policies.scripts.items():
        path = _found(where(("scripts", name, "file")).parent, script.file)
        if path is None:
            continue
        try:
            found[name] = path.read_bytes()
        except OSError as error:
            mistakes.append(Mistake(str(path), 0, 0, f"cannot be read: {error.strerror}"))
            continue
        mistakes += _undeclared(path, found[name], name, script)
    return found, mistakes


def _undeclared(path: Path, body: bytes, name: str, script: Script) -> Iterator[Mistake]:
    """Yield places of KEYS and ARGV that the policy says nothing of."""
    given = {b"KEYS": len(script.keys), b"ARGV": len(script.arguments)}
    for use in _LUA.finditer(body):
        which = use["list"]
        if which is None or (which == b"ARGV" and script.more is not None):
            continue
        if not 1 <= int(use["place"]) <= given[which]:
            line = body.count(b"\n", 0, use.start()) + 1
            column = use.start() - body.rfind(b"\n", 0, use.start())
            what = "keys" if which == b"KEYS" else "arguments"
            yield Mistake(str(path), line, column, f"{use[0].decode()} is not there: script "
                          f'"{name}" has {given[which]} {what}')  # fmt: skip


def _found(folder: Path, file: str) -> Path | None:
    return next((path for path in script_paths(folder, file) if path.is_file()), None)


def script_paths(folder: Path, file: str) -> tuple[Path, ...]:
    """Return where a script of a policy file in a folder may be, first come first."""
    return folder / "lua" / file, folder.parent / "lua" / file, SHIPPED_SCRIPTS / file
