"""Whether the scripts that policies name are there.

The loader gives all policies to `check_files`. A script stands in the folder `lua` within the
policies or beside them, else in the one that is shipped. Schemas are read by `schemas`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.policy.checks import Complaint
from proxy.policy.model import Policies
from proxy.validation import Location

# The scripts that come with the proxy.
SHIPPED_SCRIPTS = Path(__file__).parent.parent / "lua"


def check_files(policies: Policies, where: Callable[[Location], Path]) -> Iterator[Complaint]:
    """Yield scripts that are not there; where tells the file of a location."""
    for name, script in policies.scripts.items():
        at: Location = ("scripts", name, "file")
        paths = script_paths(where(at).parent, script.file)
        if not any(path.is_file() for path in paths):
            tried = " and ".join(str(path) for path in paths)
            yield Complaint(at, f"there is no such script; looked for {tried}")


def script_paths(folder: Path, file: str) -> tuple[Path, ...]:
    """Return where a script of a policy file in a folder may be, first come first."""
    return folder / "lua" / file, folder.parent / "lua" / file, SHIPPED_SCRIPTS / file
