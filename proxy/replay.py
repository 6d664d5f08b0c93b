"""What changes for recorded commands from one set of rules to another.

Used by the verb `explain`. Each command is judged by the data plane under both rules, as `explain`
judges one, and by itself: what depends on commands before it (rate limits, transactions) is not
known here, so rate limits are compared as rules. Changes are counted by what changes, so that a
million lines make a short answer.

Always true: memory is bounded whatever is read; nothing of a recorded command but the number of
its line is told, because keys and values may be personal data.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy import errors, explain, outcomes, wire
from proxy.policy import differences, duties
from proxy.policy.blocks import HashTagWord
from proxy.policy.model import Policies
from proxy.recording import Line
from proxy.wire import rules

# What changes differently from all these is counted together.
MOST_CHANGES = 1000

# Of the lines where something changes, or which could not be read, so many are named.
MOST_EXAMPLES = 3
MOST_UNREAD = 20

# Nodes that only write down keep what is unanswered; they are replaced after so many bytes.
_MOST_KEPT = 1 << 20
_COMMAND_BYTES = 1 << 10  # of one, beside its words

# Of what rules write; longer words are scripts, or a client's.
_MOST_WORD = 24  # bytes
_MOST_WORDS = 12
_MOST_COMMANDS = 4

_RATES = re.compile(r"(keyspaces?|role) [^:]*: rate\b")


class Judgement(NamedTuple):
    """What one set of rules makes of a command."""

    verdict: str
    rule: str  # that the verdict comes from
    keyspaces: tuple[str, ...]  # of its keys
    clusters: tuple[str, ...]
    names: tuple[bytes, ...]  # of its keys, as nodes see them
    frames: bytes  # all that nodes get


class Change(NamedTuple):
    """One thing that is otherwise under the new rules."""

    keyspace: str
    rule: str
    before: str
    after: str


class Judge:
    """Judges commands by one set of rules, each as if it were the first."""

    def __init__(self, policies: Policies, clusters: Sequence[str]) -> None:
        """Lay out a copy of the rules. Raises PolicyMistakes for a cluster that is not there."""
        self.policies = policies
        self._clusters = clusters
        self._ruleset = explain.repeatable(explain.rows_of(policies, clusters))
        self._names = [own.name for own in self._ruleset.keyspaces]
        self._on_trial = {
            index for index, own in enumerate(self._ruleset.keyspaces) if min(own.enforced) < 100
        }
        self._breaches: set[tuple[int, int, int, int]] = set()
        self._stand = explain.stand(self._ruleset, len(clusters))
        self._kept = 0

    @property
    def roles(self) -> set[str]:
        return {role.name for role in self._ruleset.roles}

    def judge(self, arguments: Sequence[bytes], role: str) -> Judgement:
        """Return what becomes of a command of somebody with a role."""
        ruleset = self._ruleset
        outcome, line, frames = self._send(arguments, role)
        row = explain.row_of(ruleset, arguments)
        words = explain.words_of(ruleset, row, arguments)
        places = explain.keys_of(ruleset, row, words)
        if outcome == "split":
            # A handler makes a command for each slot; what rules do to one key they do to it there.
            ends = (*places[1:], len(arguments))
            parts = (
                [arguments[0], *arguments[at:end]] for at, end in zip(places, ends, strict=True)
            )
            frames = b"".join(self._send(part, role)[2] for part in parts)
        keys = [words[at] for at in places]
        spaces = [ruleset.find_keyspace(key) for key in keys]
        verdict, rule = outcome, ""
        if outcome == "refused" or not self._on_trial.isdisjoint(spaces):
            verdict, rule = self._cause(outcome, line)
        return Judgement(
            verdict, rule,
            tuple(self._names[space] if space >= 0 else "none" for space in spaces),
            tuple(self._cluster(space) for space in spaces),
            tuple(ruleset.upstream_name(key) for key in keys) if outcome != "refused" else (),
            frames,
        )  # fmt: skip

    def tag(self, keyspace: str) -> str:
        """Return what decides the slot of the keys of a keyspace."""
        own = self.policies.effective.get(keyspace)
        if own is None or own.hash_tag is None:
            return "the key"
        return own.hash_tag.literal if isinstance(own.hash_tag, HashTagWord) else own.hash_tag

    def _send(self, arguments: Sequence[bytes], role: str) -> tuple[str, str, bytes]:
        """Return outcome, error line, and what nodes get of a command."""
        if self._kept >= _MOST_KEPT:
            explain.take_down(self._stand[0])
            self._stand = explain.stand(self._ruleset, len(self._clusters))
            self._kept = 0
        nodes, router, batch = self._stand
        side = wire.Downstream(router, batch, 0)
        side.assume(role)
        frame = wire.pack(arguments)
        self._kept += len(frame) + _COMMAND_BYTES
        request = side.receive_data(frame, 0.0)
        outcome = outcomes.outcome_of(side, request, side.data_to_send())
        frames = b"".join([node.data_to_send(0.0) for node in nodes])
        side.connection_lost()
        return outcome.name, outcome.line, b"".join(frame for _, frame in outcome.sent) or frames

    def _cluster(self, space: int) -> str:
        found = self._ruleset.keyspaces[space].cluster if space >= 0 else -1
        return self._clusters[found if found >= 0 else self._ruleset.default_cluster]

    def _cause(self, outcome: str, line: str) -> tuple[str, str]:
        """Return the verdict on the last command, and the rule that it comes from."""
        breaches = set(self._ruleset.breaches.requests())
        fresh, self._breaches = breaches - self._breaches, breaches
        refused = wire.OUTCOMES.index("refused")
        # The one that refuses counts, whatever was on trial before it.
        for space, rule, found, _ in sorted(fresh, key=lambda each: each[2] != refused):
            name = rules.Rule(rule).name.lower()
            if found == refused:
                return f"refused by {name}", name
            if outcome != "refused":
                trial = duties.trials(self.policies.effective[self._names[space]])[rule]
                return f"{outcome}, though {name} is broken (mode {trial})", name
        if outcome != "refused":
            return outcome, ""
        code = line[1:].partition(" ")[0]
        return f"refused with {code}", "rights" if code == "NOPERM" else "command"


@dataclass
class Changed:
    """How often something changes, and where first."""

    shown: int = MOST_EXAMPLES
    commands: int = 0
    lines: list[int] = field(default_factory=list)

    def count(self, line: int) -> None:
        self.commands += 1
        if len(self.lines) < self.shown:
            self.lines.append(line)


class Replay:
    """Compares two sets of rules by what they make of recorded commands."""

    def __init__(self, before: Policies, after: Policies, clusters: Sequence[str]) -> None:
        """Lay out both rules. Raises PolicyMistakes for a cluster that is not there."""
        self._before, self._after = Judge(before, clusters), Judge(after, clusters)
        self.roles = self._before.roles | self._after.roles
        self.changes: dict[Change, Changed] = {}
        self.rest = Changed()  # changes beyond MOST_CHANGES
        self.commands = self.changed = 0
        self.unread: dict[str, Changed] = {}
        lines = differences.differences(before, after, limit=sys.maxsize)
        self.rates = [line for line in lines if _RATES.match(line)]

    @property
    def differs(self) -> bool:
        return bool(self.changed or self.rates)

    def run(self, lines: Iterable[Line], role_of: Callable[[str | None], str | None]) -> None:
        """Judge recorded commands; role_of knows the role of a user, None for one of nobody's."""
        for line in lines:
            role = None if line.wrong else role_of(line.user)
            if role is None:
                self._leave_out(line)
                continue
            self.commands += 1
            before = self._before.judge(line.words, role)
            after = self._after.judge(line.words, role)
            if before != after:
                self._count(line.number, set(self._compared(before, after, line.words)))

    def _leave_out(self, line: Line) -> None:
        why = line.wrong or "a user that is not there"
        self.unread.setdefault(why, Changed(MOST_UNREAD)).count(line.number)

    def _count(self, number: int, changes: set[Change]) -> None:
        self.changed += bool(changes)
        for change in changes:
            known = change in self.changes or len(self.changes) < MOST_CHANGES
            found = self.changes.setdefault(change, Changed()) if known else self.rest
            found.count(number)

    def _compared(
        self, before: Judgement, after: Judgement, arguments: Sequence[bytes]
    ) -> Iterator[Change]:
        """Yield what a command's sender or its nodes would see of the new rules."""
        first = next(iter(after.keyspaces), "none")
        if before.verdict != after.verdict:
            yield Change(
                first, after.rule or before.rule or "command", before.verdict, after.verdict
            )
        for old, new in zip(before.keyspaces, after.keyspaces, strict=False):
            if old != new:
                yield Change(new, "keyspace", old, new)
        if not before.names or not after.names:
            return
        places = zip(before.clusters, after.clusters, after.keyspaces, strict=False)
        for old, new, space in places:
            if old != new:
                yield Change(space, "cluster", old, new)
        for at, (one, other) in enumerate(zip(before.names, after.names, strict=False)):
            if one != other:
                spaces = before.keyspaces[at], after.keyspaces[at]
                tags = self._before.tag(spaces[0]), self._after.tag(spaces[1])
                yield Change(spaces[1], "hash_tag", *(f"slot of {tag}" for tag in tags))
        if before.frames and after.frames:
            now = time.time()
            old, new = (_added(found, arguments, now) for found in (before, after))
            if old != new:
                yield Change(first, "node gets", old, new)


def _added(found: Judgement, arguments: Sequence[bytes], now: float) -> str:
    """Return the words that rules have put into a command or behind it, those of many keys once."""
    own = Counter(arguments)
    names = set(found.names)
    added: dict[str, None] = {}
    for frame in explain.frames_of(found.frames):
        fresh: list[str] = []
        for word in _words(frame):
            if own[word]:
                own[word] -= 1
            elif word not in names and word not in own:
                fresh.append(_shown(word, now))
        if fresh:
            added[" ".join(fresh[:_MOST_WORDS])] = None
    return f"also {', '.join(list(added)[:_MOST_COMMANDS])}" if added else "what was sent"


def _shown(word: bytes, now: float) -> str:
    if len(word) > _MOST_WORD:
        return "…"
    # A point in time is another each time; how far it is away is what the rule says.
    if len(word) == 13 and word.isdigit():
        return f"{round(int(word) / 1000 - now)}s-from-now"
    return errors.quoted(word)


def _words(frame: bytes) -> Iterator[bytes]:
    at = frame.index(b"\r\n") + 2
    while at < len(frame):
        end = frame.index(b"\r\n", at)
        size = int(frame[at + 1 : end])
        yield frame[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def lines(replay: Replay) -> Iterator[str]:
    """Yield for people what was found: the most frequent changes first."""
    found = sorted(replay.changes.items(), key=lambda item: (-item[1].commands, item[0]))
    for change, count in found:
        yield (f"keyspace {change.keyspace}: {change.rule}: {change.before} -> {change.after}"
               f"  ({_counted(count, 'command')})")  # fmt: skip
    if replay.rest.commands:
        yield f"and other changes  ({_counted(replay.rest, 'command')})"
    for line in replay.rates[: differences.MAX_LINES]:
        yield f"not judged, because it depends on what else is sent: {line}"
    for why, count in replay.unread.items():
        yield f"not read: {why}  ({_counted(count, 'line')})"
    unread = sum(count.commands for count in replay.unread.values())
    yield f"{replay.commands:,} commands, {replay.changed:,} judged otherwise; {unread:,} not read"


def _counted(count: Changed, what: str) -> str:
    more = ", …" if count.commands > len(count.lines) else ""
    places = ", ".join(map(str, count.lines))
    return f"{count.commands:,} {what}{'s' * (count.commands != 1)}: line {places}{more}"
