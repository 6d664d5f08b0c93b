"""The parts of one command, as entries of the journal: all of them taken, or what else is told.

Used by `behind`. Each part is one key with its changes, and the plan of its keyspace.

Always true: the error line for what was not taken says that nothing was changed only where that is
certain; an increment is taken back to the last digit.
"""

import asyncio
from collections.abc import Sequence

from proxy import errors
from proxy.errors import JournalRefused
from proxy.handlers.told import Told
from proxy.origin.behind import WriteBehind, WriteBehindFull
from proxy.origin.records import Change, Op
from proxy.plans import Plan


def sums(parts: Sequence[tuple[Plan, Told]]) -> bool:
    """Return whether a write is nothing but increments, which can be taken back."""
    return all(change.op is Op.ADD for _, part in parts for change in part.changes)


def lack(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]]) -> None:
    """Note that Redis may lack what is journalled."""
    for plan, part in parts:
        behind.lacks.note(plan, part.key)


async def journalled(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]]) -> bytes | None:
    """Journal all parts; return the error line where that did not work."""
    if any(behind.full(plan) for plan, _ in parts):
        return errors.JOURNAL_FULL
    written = [behind.write(plan, key, changes) for plan, (key, changes) in parts]
    outcomes = await asyncio.gather(*written, return_exceptions=True)
    failed = [each for each in outcomes if isinstance(each, BaseException)]
    if not failed:
        return None
    for error in failed:
        if not isinstance(error, WriteBehindFull | JournalRefused):
            raise error
    if len(failed) < len(parts) or any(not _is_certain(error) for error in failed):
        # Some was taken, or may be yet, and Redis does not hear of it.
        lack(behind, parts)
        return errors.UNKNOWN_WRITE
    full = isinstance(failed[0], WriteBehindFull)
    return errors.JOURNAL_FULL if full else errors.JOURNAL_REFUSED


def _is_certain(error: BaseException) -> bool:
    """Return whether what was refused never shows."""
    return isinstance(error, WriteBehindFull) or (
        isinstance(error, JournalRefused) and error.certain
    )


async def taken_back(behind: WriteBehind, parts: Sequence[tuple[Plan, Told]]) -> bool:
    """Journal the opposite of increments that Redis did not carry out; return whether it is."""
    opposite = [
        (plan, Told(key, tuple(Change(Op.ADD, each.field, _negated(each.value))
                               for each in changes if each.op is Op.ADD)))
        for plan, (key, changes) in parts
    ]  # fmt: skip
    wanted = [(plan, part) for plan, part in opposite if part.changes]
    return await journalled(behind, wanted) is None


def _negated(value: bytes) -> bytes:
    return value[1:] if value[:1] == b"-" else b"-" + value.removeprefix(b"+")
