"""What an operator asks for of Redis' copies of PostgreSQL, at the admin port.

    GET /restore                                     how far everything is, as JSON
    POST /-/restore?keyspace=NAME                    bring back what is lacking, all without a name
    POST /-/drift?keyspace=NAME&keys=1000&repair=1   compare keys with their rows

The application hands over the query of an address, whose length the admin port has bounded.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from proxy.backing import Backing
from proxy.control.restore import NotHere
from proxy.errors import ConfigError

PATH: Final = "/restore"

# Keys of each cluster that are compared where nobody says how many.
KEYS: Final = 1000


def page(backing: Backing | None) -> str:
    """Return how far everything is, as JSON; called from threads."""
    return '{"restore": []}\n' if backing is None else backing.restore.page()


def restore(backing: Backing | None, query: str) -> str:
    """Begin to bring keys back; say what was begun. Raises NotHere and ConfigError."""
    said = _fields(query, ("keyspace",))
    return _there(backing).restore.start(said.get("keyspace"))


async def drift(backing: Backing | None, query: str) -> str:
    """Compare keys with their rows, and return lines of text. Raises SidecacheError."""
    said = _fields(query, ("keyspace", "keys", "repair"))
    keys = said.get("keys", str(KEYS))
    if not keys.isdecimal() or not 0 < len(keys) < 10:
        raise ConfigError("keys: expects a number, such as 1000")
    repair = said.get("repair") == "1"
    return await _there(backing).drift.report(said.get("keyspace"), int(keys), repair=repair)


def _there(backing: Backing | None) -> Backing:
    if backing is None:
        raise NotHere("no database is configured, so Redis has the only copy")
    return backing


def _fields(query: str, known: tuple[str, ...]) -> Mapping[str, str]:
    try:
        said = parse_qs(query, strict_parsing=bool(query), max_num_fields=len(known))
    except ValueError:
        said = {"": []}
    if not said.keys() <= set(known):
        raise ConfigError(f"the query takes {', '.join(known)}")
    return {name: values[-1] for name, values in said.items()}
