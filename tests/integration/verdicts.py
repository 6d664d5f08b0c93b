"""What a history proves: every check over every seat, and a page of figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests import histories, linear
from tests.histories import NEVER, Operation
from tests.linear import Given

STRICT, LENIENT = Given(), Given(refusals=False, reads=False)
ONLY_REFUSALS, ONLY_READS = Given(reads=False), Given(refusals=False)

# Findings of a kind that are shown; all are counted.
SHOWN = 3


@dataclass
class Verdict:
    """The findings of one history; those of `informative` do not make it wrong."""

    operations: int = 0
    locks: int = 0
    unknown: int = 0
    errors: int = 0
    longest: int = 0  # operations of one lock
    most_owners: int = 0  # of one lock
    wrong: dict[str, list[str]] = field(default_factory=dict)
    informative: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, found: Iterable[object], *, grave: bool = True) -> None:
        texts = [" | ".join(map(str, each)) if isinstance(each, tuple) else str(each)
                 for each in found]  # fmt: skip
        if texts:
            (self.wrong if grave else self.informative).setdefault(kind, []).extend(texts)

    def __str__(self) -> str:
        lines = [
            f"{self.operations} operations on {self.locks} locks, {self.longest} on one of "
            f"{self.most_owners} owners at most; {self.unknown} unknown, {self.errors} errors"
        ]
        for title, kinds in (("WRONG", self.wrong), ("told", self.informative)):
            for kind, found in kinds.items():
                lines += [f"{title}: {len(found)} {kind}", *(f"    {e}" for e in found[:SHOWN])]
        return "\n".join(lines)


def judge(history: Sequence[Operation], limit: int) -> Verdict:
    """Check a history by everything that must hold, and by what may."""
    locks = histories.by_lock(history)
    verdict = Verdict(len(history), len(locks))
    verdict.unknown = sum(each.told == NEVER for each in history)
    verdict.errors = sum(bool(each.error) for each in history)
    scopes: dict[str, list[histories.Hold]] = {}
    for name, operations in locks.items():
        verdict.longest = max(verdict.longest, len(operations))
        owners = {each.owner for each in operations}
        verdict.most_owners = max(verdict.most_owners, len(owners))
        certain = histories.holds_of(operations)
        scopes.setdefault(name.partition("/")[0], []).extend(certain)
        verdict.add("overlapping holds", histories.overlaps(certain))
        verdict.add("tokens not greater", histories.inversions(certain))
        verdict.add("refusals of an owner", histories.false_refusals(operations, certain))
        _order(verdict, operations)
    verdict.add("tokens given twice", histories.repeated(history))
    verdict.add("seats sold twice", histories.sold_twice(history))
    for event, certain in scopes.items():
        verdict.add("owners over the limit", (
            f"{event}: {owner} has {count} at {moment:.3f}"
            for owner, count, moment in histories.hoards(certain, limit)
        ))  # fmt: skip
    return verdict


def _order(verdict: Verdict, operations: Sequence[Operation]) -> None:
    """Look for an order with everything in it, and where there is none for one of what matters."""
    if linear.check(operations, STRICT) is None:
        return
    finding = linear.check(operations, LENIENT)
    if finding is not None:
        verdict.add("histories without an order", [finding])
    for kind, given in (("refusals", ONLY_REFUSALS), ("reads", ONLY_READS)):
        finding = linear.check(operations, given)
        if finding is not None:
            verdict.add(f"histories without an order if {kind} are exact", [finding], grave=False)
