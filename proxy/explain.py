"""What would become of a command: which rules judge it, where it goes, what if something is away.

Used by the verb `explain` and by the admin port. The data plane judges: a client of its own sends
the command to nodes that only write down what they are given, and what is left to a handler is put
through that handler's checks (`outcomes`). Nothing is looked up in the policies but words for
people and where they stand.

Always true: nothing is sent, and nothing that is counted or limited in a running proxy changes,
because the rules are a copy without chance and memory: what is said of a command depends on nothing
but the command. Every line is bounded and has no control character.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy import commands, errors, wire
from proxy.handlers.channels import KEYED
from proxy.outcomes import outcome_of
from proxy.policy import compiler, duties
from proxy.policy.model import Keyspace, Policies
from proxy.units import show_duration
from proxy.wire import rules
from proxy.wire.scripts import run_of

# Hash slots of a Redis Cluster.
SLOTS = 16384

# Of a command with thousands of keys, and of what a node is sent, people look at the first few.
MOST_KEYS = 8
MOST_FRAMES = 8
MOST_BYTES = 200  # of a frame

# The address of the node that owns a slot of a cluster, or None where nobody knows.
NodeOf = Callable[[int, int], str | None]


class Key(NamedTuple):
    """A key of the command and where it lives."""

    text: bytes
    keyspace: str | None
    name: bytes  # as nodes see it; empty where a rule refuses the key
    cluster: str
    slot: int
    node: str | None


class Verdict(NamedTuple):
    """What one rule of a keyspace says."""

    keyspace: str
    rule: str
    says: str


@dataclass(frozen=True)
class Explanation:
    """All that is known of a command before it is sent."""

    outcome: str  # as `outcomes.Outcome` names it
    line: str = ""  # the error line of a refusal
    keys: tuple[Key, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    frames: tuple[tuple[str, bytes], ...] = ()  # cluster, and one command as a node gets it
    arguments: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def refused(self) -> bool:
        return self.outcome == "refused"


_OUTCOMES = {
    "forwarded": "forwarded to the node of its slot",
    "pinned": "sent to the node of its slot, on a connection of its own",
    "backed": "carried out in Redis and PostgreSQL, as the origin of its keyspace says",
    "split": "split: one part for each slot, answered as one",
    "handled": "forwarded, and names in the reply are translated back",
    "run": "a script, run by the node of its keys",
    "decided": "done by PostgreSQL, which decides who holds a lock",
    "answered": "answered by the proxy",
}


class Explainer:
    """Explains commands by one set of rules."""

    def __init__(
        self, policies: Policies, clusters: Sequence[str], node_of: NodeOf = lambda *_: None
    ) -> None:
        """Lay out a copy of the rules. Raises PolicyMistakes for a cluster that is not there."""
        self.policies = policies
        self.clusters = tuple(clusters)
        self.node_of = node_of
        arguments = rows_of(policies, clusters)
        self.keyspaces = tuple(arguments["keyspaces"])  # as they are in force
        self.ruleset = repeatable(arguments)
        self._rows = commands.known(self.ruleset.commands)

    @property
    def roles(self) -> list[str]:
        return [role.name for role in self.ruleset.roles]

    def explain(
        self, arguments: Sequence[bytes], role: str = "default", protocol: int = 2
    ) -> Explanation:
        """Return what would become of a command of somebody with a role."""
        nodes, side = self._client(role, protocol)
        before = self._breaches()
        request = side.receive_data(wire.pack(arguments), 0.0)
        found = outcome_of(side, request, side.data_to_send())
        broken = {place for place, n in self._breaches().items() if n != before.get(place, 0)}
        frames = tuple(
            (self.clusters[cluster], frame)
            for cluster, node in enumerate(nodes)
            for frame in frames_of(node.data_to_send(0.0))
        )
        if found.sent:
            frames = tuple((self.clusters[cluster], frame) for cluster, frame in found.sent)
        row = row_of(self.ruleset, arguments)
        words = words_of(self.ruleset, row, arguments)
        places = keys_of(self.ruleset, row, words)[:MOST_KEYS]
        keys = tuple(self._key(words[at]) for at in places)
        side.connection_lost()
        take_down(nodes)
        return Explanation(
            found.name, found.line, keys, tuple(self._verdicts(keys, row, broken)), frames,
            tuple(arguments),
        )  # fmt: skip

    def _client(self, role: str, protocol: int) -> tuple[list[wire.Upstream], wire.Downstream]:
        """Return a node per cluster, and a client of theirs."""
        nodes, router, batch = stand(self.ruleset, len(self.clusters))
        side = wire.Downstream(router, batch, 0)
        side.assume(role)
        side.protocol = protocol
        return nodes, side

    def _breaches(self) -> dict[tuple[int, int, int], int]:
        return {(space, rule, outcome): count
                for space, rule, outcome, count in self.ruleset.breaches.requests()}  # fmt: skip

    def _key(self, key: bytes) -> Key:
        index = self.ruleset.find_keyspace(key)
        keyspace = self.ruleset.keyspaces[index].name if index >= 0 else None
        name = self.ruleset.upstream_name(key)
        found = self.ruleset.keyspaces[index].cluster if index >= 0 else -1
        cluster = found if found >= 0 else self.ruleset.default_cluster
        slot = wire.key_slot(name)
        return Key(key, keyspace, name, self.clusters[cluster], slot, self.node_of(cluster, slot))

    def _verdicts(
        self, keys: Sequence[Key], row: int, broken: set[tuple[int, int, int]]
    ) -> Iterator[Verdict]:
        """Yield what each rule says, in the order in which they are asked."""
        refused = wire.OUTCOMES.index("refused")
        for name in dict.fromkeys(key.keyspace for key in keys if key.keyspace is not None):
            index = next(i for i, own in enumerate(self.ruleset.keyspaces) if own.name == name)
            own = self.ruleset.keyspaces[index]
            asked = own.duties[row] if row < len(own.duties) else 0
            ended = False
            for rule in rules.Rule:
                duty = rules.Duty.__members__.get(rule.name)
                if (index, rule, refused) in broken:
                    yield Verdict(name, rule.name.lower(), "refuses it")
                    ended = True
                elif any(place[:2] == (index, rule) for place in broken):
                    yield Verdict(name, rule.name.lower(), self._trial(name, rule))
                elif not ended and (duty is None or asked & duty):
                    # Whether a limit is full depends on what else is sent.
                    says = "counts it" if rule is rules.Rule.RATE else "has nothing against it"
                    yield Verdict(name, rule.name.lower(), says)

    def _trial(self, keyspace: str, rule: rules.Rule) -> str:
        trial = duties.trials(self.policies.effective[keyspace])[rule]
        return f"would refuse it, and lets it through: mode {trial}"

    def lines(self, found: Explanation) -> list[str]:
        """Return an explanation for people."""
        lines: list[str] = []
        for key in found.keys:
            lines += self._key_lines(key, found)
        for keyspace, rule, says in found.verdicts:
            lines.append(
                f"rule       {rule} of {keyspace} {says}{self._rule_place(keyspace, rule)}"
            )
        lines += self._frame_lines(found)
        for name in dict.fromkeys(key.keyspace for key in found.keys if key.keyspace is not None):
            lines += away(self.policies.effective[name])
        verdict = f"refused: {found.line}" if found.refused else _OUTCOMES[found.outcome]
        return [*lines, f"verdict    {verdict}"]

    def _key_lines(self, key: Key, found: Explanation) -> list[str]:
        where = "" if key.keyspace is None else self.policies.place(("keyspaces", key.keyspace))
        lines = [
            f"key        {errors.quoted(key.text)}",
            f"keyspace   {key.keyspace or 'none'}{f'  ({where})' if where else ''}",
        ]
        if found.refused and found.line.startswith("-POLICY key"):
            return lines
        node = f", node {key.node}" if key.node else ""
        return [
            *lines,
            f"nodes see  {errors.quoted(key.name, len(key.name) * 4)}",
            f"slot       {key.slot} of cluster {key.cluster}{node}",
        ]

    def _rule_place(self, keyspace: str, rule: str) -> str:
        block = {"bounds": "commands"}.get(rule, rule)
        where = self.policies.place(("keyspaces", keyspace, block))
        return f"  ({where})" if where else ""

    def _frame_lines(self, found: Explanation) -> Iterator[str]:
        if found.outcome not in ("forwarded", "handled", "pinned", "run"):
            return
        as_it_is = [frame for _, frame in found.frames] == [wire.pack(found.arguments)]
        for cluster, frame in found.frames[:MOST_FRAMES] if not as_it_is else ():
            yield f"node gets  {_shown(frame)}  (cluster {cluster})"
        if as_it_is:
            yield "node gets  the command as it is"


def rows_of(policies: Policies, clusters: Sequence[str]) -> compiler.Arguments:
    """Return the rows of rules. Raises PolicyMistakes for a cluster that is not there."""
    rows, families, categories = commands.ROWS, commands.FAMILIES, commands.CATEGORIES
    return compiler.ruleset_arguments(policies, rows, families, categories, clusters)


def repeatable(arguments: compiler.Arguments) -> wire.Ruleset:
    """Return rules that judge a command alike each time: without chance, and without memory.

    Rate limits are left out, times are not jittered, and a rule that is enforced in part is on
    trial.
    """
    keyspaces = [
        own._replace(
            rates=(),
            lifetime=own.lifetime._replace(jitter=0.0),
            enforced=bytes(share if share == 100 else 0 for share in own.enforced),
        )
        for own in arguments["keyspaces"]
    ]
    still = arguments.copy()
    still["keyspaces"] = keyspaces
    still["roles"] = [role._replace(rates=()) for role in arguments["roles"]]
    return wire.Ruleset(**still)


def stand(
    ruleset: wire.Ruleset, clusters: int
) -> tuple[list[wire.Upstream], wire.Router, wire.Batch]:
    """Return a node per cluster that owns all of its slots, and what leads clients to them."""
    batch = wire.Batch(lambda: None)
    latencies = wire.Latencies(clusters)
    nodes = [wire.Upstream(batch, latencies, i, 1.0) for i in range(clusters)]
    owned = [(True, array("h", [i]) * SLOTS) for i in range(clusters)]
    slots = wire.SlotMap(owned, [((node,), (node,)) for node in nodes])
    return nodes, wire.Router(ruleset, slots), batch


def take_down(nodes: Sequence[wire.Upstream]) -> None:
    """Let nodes forget what nobody will answer: the collector does not see their queues."""
    for node in nodes:
        node.connection_lost()


def row_of(ruleset: wire.Ruleset, arguments: Sequence[bytes]) -> int:
    """Return the row of a command, -1 for none."""
    index = ruleset.find_command(b"|".join(arguments[:2]))
    return ruleset.find_command(arguments[0]) if index < 0 else index


def words_of(ruleset: wire.Ruleset, row: int, arguments: Sequence[bytes]) -> Sequence[bytes]:
    """Return the words among which a command's keys stand, none for one that is not whole.

    Of a script's command they are those of its run.
    """
    arity = ruleset.commands[row].arity if row >= 0 else 0
    if row < 0 or (len(arguments) != arity if arity > 0 else len(arguments) < -arity):
        return ()
    return run_of(ruleset.commands[row].script, arguments)


def keys_of(ruleset: wire.Ruleset, row: int, words: Sequence[bytes]) -> Sequence[int]:
    """Return where the keys are among such words, none where that is not certain."""
    if row >= 0 and ruleset.commands[row].name in KEYED:
        return ()
    return (wire.find_keys(ruleset, row, wire.pack(words)) or ()) if words else ()


def frames_of(data: bytes) -> Iterator[bytes]:
    """Yield the commands that were queued for a node, one by one."""
    at = 0
    while at < len(data):
        end = wire.frame_end(data, at)
        yield data[at:end]
        at = end


def _shown(frame: bytes) -> str:
    """Return a command as one would type it, its beginning."""
    words = frame.split(b"\r\n")[2::2]
    return errors.quoted(b" ".join(words)[:MOST_BYTES], MOST_BYTES * 4)


def away(own: Keyspace) -> list[str]:
    """Return what a keyspace's rules say of the time when Redis or PostgreSQL is away."""
    return [f"away       {text}" for text in (*_without_redis(own), *_without_postgres(own))]


def _without_redis(own: Keyspace) -> Iterator[str]:
    if own.kind == "lock":
        decides = own.lock.authority if own.lock is not None else "postgres"
        yield (
            "without Redis: PostgreSQL goes on to decide who holds a lock"
            if decides == "postgres"
            else "without Redis: no lock is granted, because Redis decides"
        )
    else:
        reads = {
            "origin": "reads are answered from PostgreSQL",
            "stale": "reads are answered from what is at hand",
            "error": "reads get an error",
        }[own.fallback.reads]
        writes = {
            "origin": "writes go to PostgreSQL",
            "journal": "writes go to the journal",
            "error": "writes get an error",
        }[own.fallback.writes]
        yield f"without Redis: {reads}, {writes}"
    loss = {
        "restore": "all keys are read from PostgreSQL again",
        "refill": "keys are read from PostgreSQL again as they are asked for",
        "lost": "the keys are gone",
    }
    if own.on_loss is not None:
        yield f"after Redis lost its data: {loss[own.on_loss]}"


def _without_postgres(own: Keyspace) -> Iterator[str]:
    if own.kind == "lock" and (own.lock is None or own.lock.authority == "postgres"):
        yield "without PostgreSQL: no lock is granted"
    if own.freshness.stale_if_error:
        kept = show_duration(own.freshness.stale_if_error)
        yield f"without PostgreSQL: an entry is served for {kept} after its time"
    elif own.origin is not None:
        yield "without PostgreSQL: what is not in Redis gets an error"
    written = {
        "through": "without PostgreSQL: writes get an error, because they go there first",
        "behind": "without PostgreSQL: writes wait in the journal",
    }
    if own.write.mode in written:
        yield written[own.write.mode]
