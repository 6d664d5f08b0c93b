"""What PostgreSQL has of one key: its statement asked, its rows made a value.

Handlers and control loops read by it, so that all of them ask the same and understand the same.
"""

from collections.abc import Sequence
from typing import Protocol

from proxy.origin.batching import segments_of
from proxy.origin.budget import Share
from proxy.origin.postgres import Argument, Record
from proxy.origin.render import Value, value_of
from proxy.plans import Plan, Statement

# What the database's clock says, in milliseconds since the epoch.
CLOCK = Statement(
    "clock read", "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint::text AS now", ()
)


class Origin(Protocol):
    """What is needed of PostgreSQL."""

    async def fetch(
        self, statement: Statement, arguments: Sequence[Argument], share: Share, *,
        primary: bool = False,
    ) -> list[Record]: ...  # fmt: skip


def read_arguments(plan: Plan, key: bytes) -> list[str]:
    """Return the arguments of a plan's read, in the order of its parameters.

    Raises ValueError for a key of another pattern, and for bytes that no text of PostgreSQL has.
    """
    assert plan.read is not None
    segments = segments_of(plan, key)
    arguments = [segments[name] for name, _ in plan.read.parameters]
    if any("\0" in text for text in segments.values()):
        raise ValueError("PostgreSQL has no text with a zero byte")
    return arguments


async def read_value(
    origin: Origin, plan: Plan, arguments: Sequence[str], share: Share, *, primary: bool = False
) -> Value | None:
    """Return what a key holds; None: there is no row. Raises OriginError."""
    assert plan.read is not None
    return value_of(plan, await origin.fetch(plan.read, arguments, share, primary=primary))


async def clock(origin: Origin, share: Share) -> int:
    """Return the clock of the primary, in milliseconds since the epoch. Raises OriginError."""
    (row,) = await origin.fetch(CLOCK, (), share, primary=True)
    return int(row["now"])
