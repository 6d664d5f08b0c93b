"""Keyspaces for whose locks PostgreSQL has no functions, or only such as other policies call.

Of theirs no lock is granted until `sidecache sql install`. Whoever calls such a function tells what
came of it: `postgres` does for clients, `control.expiry` for sweeps. `/readyz` asks.
"""

from collections.abc import Iterable

import asyncpg

from proxy import log
from proxy.plans import Plan, Statement

# What calls a function, by the last word of a statement's name.
_CALLS = frozenset(("take", "grab", "release", "confirm", "queue", "sweep"))


class Misfits:
    """Those that were met in one database."""

    def __init__(self) -> None:
        self._missing: dict[str, str] = {}  # by keyspace: the call that found no function
        self._states = log.StateLog()

    def refused(self, statement: Statement, error: BaseException | None) -> bool:
        """Return whether what a statement calls is not there, by the driver's error."""
        keyspace, _, verb = statement.name.rpartition(" ")
        undefined = isinstance(error, asyncpg.UndefinedFunctionError) and verb in _CALLS
        # A context has what goes wrong within a function that is there.
        if not undefined or getattr(error, "context", None):
            return False
        self._missing[keyspace] = statement.text
        self._states.change(
            log.ERROR, keyspace, "misfit", "lock_functions_misfit",
            keyspace=keyspace, remedy="sidecache sql install",
        )  # fmt: skip
        return True

    def answered(self, statement: Statement) -> None:
        """Hear that a statement has been answered."""
        if not self._missing:
            return
        keyspace, _, verb = statement.name.rpartition(" ")
        if verb in _CALLS and self._missing.pop(keyspace, None) is not None:
            self._states.change(log.INFO, keyspace, "fit", "lock_functions_fit", keyspace=keyspace)

    def among(self, plans: Iterable[Plan]) -> bool:
        """Return whether functions that one of these plans calls were not there."""
        return any(
            plan.locking is not None
            and self._missing.get(plan.name) in [call.text for call in plan.locking.calls]
            for plan in plans
        )
