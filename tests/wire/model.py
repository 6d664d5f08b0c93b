"""The reference that the data plane is compared with: slow and obvious."""

from collections.abc import Sequence

from proxy import keys
from proxy.commands import Row


def find_keys(row: Row, arguments: Sequence[bytes]) -> list[int] | None:
    """Return the positions of a command's keys, None where they are not certain."""
    return keys.find_keys(row, arguments)
