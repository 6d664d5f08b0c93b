"""The blocks of a keyspace as types: what stands behind `ttl:`, `write:`, `lock:` and the like.

`model` puts them together. Each field's description is its documentation: it becomes the JSON
Schema that editors complete from. How blocks go together is checked by `checks`; here a field only
knows its own values.
"""

import re
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    model_validator,
)
from pydantic import WithJsonSchema as JsonSchema

from proxy import commands
from proxy.documents import quote, suggest
from proxy.policy.patterns import Pattern, parse, parse_characters
from proxy.policy.tags import HashTag as HashTag
from proxy.policy.tags import HashTagWord as HashTagWord
from proxy.policy.tags import Owner
from proxy.units import Duration, Percentage, PositiveDuration, PositiveSize, RateValue, Switch
from proxy.validation import Strict

# Argument bounds that the data plane knows how to find, and what each of them counts.
BOUNDS = {
    "SCAN COUNT": "most keys looked at by one call of SCAN, HSCAN, SSCAN or ZSCAN",
    "SCAN MATCH": "longest pattern of MATCH and of KEYS, in bytes",
    "MATCH stars": "most stars in such a pattern",
    "LRANGE span": "most elements between start and stop",
    "ZRANGE span": "most members between start and stop; by score or name LIMIT must be there",
    "SETRANGE offset": "highest offset, which is how much memory 24 bytes can ask for",
    "SETBIT offset": "highest bit",
    "BITFIELD offset": "highest bit",
    "SRANDMEMBER count": "most members, with repetitions too",
    "HRANDFIELD count": "most fields, with repetitions too",
    "ZRANDMEMBER count": "most members, with repetitions too",
    "LPOS count": "most positions",
}


def _bounds(value: dict[str, int]) -> dict[str, int]:
    known = {name.casefold(): name for name in BOUNDS}
    for name in value:
        if name.casefold() not in known:
            raise ValueError(f"{quote(name)} is no bound; allowed: {', '.join(BOUNDS)}"
                             f"{suggest(name, BOUNDS)}")  # fmt: skip
    return {known[name.casefold()]: limit for name, limit in value.items()}


def _characters(value: str) -> str:
    parse_characters(value)
    return value


def _per(value: str) -> str:
    if not value or not value.replace("_", "a").isalnum() or value != value.lower():
        raise ValueError("expects client, user, ip, key, keyspace, global or a segment's name")
    return value


def _key_places(value: str | int) -> str:
    """Return where the keys of a command stand, as the command table spells it."""
    text = str(value)
    first, _, rest = text.partition(":")
    last = rest.partition(":")[0] or first
    if re.fullmatch(r"[1-9]\d?(:-?[1-9]\d?(:[1-9])?)?", text) is None or 0 < int(last) < int(first):
        raise ValueError("expects the place of the key, 1 for the word behind the name, or of "
                         "several: 1:2, 1:-1 up to the last word, 1:-1:2 every other")  # fmt: skip
    return text


Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
KeyPattern = Annotated[
    Pattern,
    PlainValidator(parse),
    JsonSchema({"type": "string", "minLength": 1, "examples": ["seat_lock:{event_id}:{seat_id}"]}),
]
Commands = Annotated[
    tuple[Text, ...],
    Field(description="Names (`GET`, `CONFIG SET`) and categories (`@write`)."),
]


class Trial(NamedTuple):
    """How seriously a rule is taken: as `mode` says it."""

    refused: int  # of a hundred breaches
    told: bool  # the log tells of those that are let through
    text: str

    def __str__(self) -> str:
        return self.text


MODES = {"observe": Trial(0, False, "observe"), "warn": Trial(0, True, "warn"),
         "enforce": Trial(100, False, "enforce")}  # fmt: skip


def _mode(value: object) -> Trial:
    if isinstance(value, Trial):
        return value
    words = value.split() if isinstance(value, str) else []
    share = re.fullmatch(r"enforce +([0-9]{1,2}|100) ?%", value) if isinstance(value, str) else None
    if share is not None:
        return Trial(int(share[1]), False, f"enforce {share[1]}%")
    if len(words) == 1 and words[0] in MODES:
        return MODES[words[0]]
    hint = suggest(words[0], MODES) if words else ""
    raise ValueError(f"expects observe, warn, enforce, or a part such as enforce 10%{hint}")


Mode = Annotated[
    Trial,
    PlainValidator(_mode),
    PlainSerializer(str),
    JsonSchema({
        "type": "string",
        "pattern": "^(observe|warn|enforce( +[0-9]{1,3} ?%)?)$",
        "examples": ["observe", "warn", "enforce", "enforce 10%"],
    }),
]  # fmt: skip
OwnMode = Annotated[Mode | None, Field(description="observe, warn or enforce for this rule alone.")]


CommandName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", max_length=40)]


class AddedCommand(Strict):
    """A command that a module gives to the nodes, sent to the node of its keys."""

    name: CommandName = Field(description="Its name, such as JSON.SET.")
    keys: Annotated[
        str,
        PlainValidator(_key_places),
        JsonSchema({"type": ["string", "integer"], "examples": [1, "1:2", "1:-1", "1:-1:2"]}),
    ] = Field("1", description="Which words are keys; all of them must be in one slot.")
    write: bool = Field(
        True, description="Whether it may change data. What only reads is sent again after a loss."
    )
    arity: int | None = Field(
        None,
        description="Words that it has, the name among them, or minus the fewest. When not given: "
        "as many as its keys need, or more.",
    )

    @model_validator(mode="after")
    def _keys_are_there(self) -> Self:
        commands.added(self.name, self.keys, self.write, self.arity)
        return self


class KeyGrammar(Strict):
    """Which keys are well-formed. Typed segments are judged by their type instead."""

    max_bytes: PositiveSize = Field(
        512 << 20, description="Longest key. Redis itself takes 512 MB."
    )
    characters: Annotated[Text, AfterValidator(_characters)] | None = Field(
        None,
        description="Characters that text may have, as ranges: A-Za-z0-9:_- (a minus stands "
        "last). All but control characters when not given.",
    )
    mode: OwnMode = None


class Value(Strict):
    """What a value may be."""

    max_bytes: PositiveSize | None = Field(None, description="Largest value of one argument.")
    is_json: Switch = Field(
        False, alias="json", description="Refuse what is no JSON, has duplicate keys, or members "
        "like __proto__ that attack whoever merges them into an object."
    )  # fmt: skip
    json_schema: Text | None = Field(
        None, alias="schema", description="JSON Schema file that values must fit, relative to the "
        "policy file. Values are JSON then."
    )  # fmt: skip
    mode: OwnMode = None


class CommandRights(Strict):
    """Which commands may be sent."""

    allow: Commands | None = Field(
        None, description="Only these. Everything that is offered when not given."
    )
    deny: Commands = Field((), description="Not these, whatever allow says.")
    bounds: Annotated[dict[str, Count], AfterValidator(_bounds)] = Field(
        {}, description="Limits on arguments. " + "; ".join(f"{k}: {v}" for k, v in BOUNDS.items())
    )


class KeyspaceRights(CommandRights):
    """Which commands may be sent to the keys of a keyspace."""

    mode: OwnMode = None


class RateLimit(Strict):
    """One limit on how often."""

    per: Annotated[str, AfterValidator(_per)] = Field(
        description="Who shares the limit: client, user, ip, key, keyspace, global, or the value "
        "of a segment."
    )
    limit: RateValue = Field(description="So many in a period: 1000/min.")
    burst: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Cells beyond the even pace; gcra only. Else 1 % of the limit, at least one.",
    )
    algorithm: Literal["gcra", "window"] = Field(
        "gcra", description="gcra lets limit + burst through; window is exact in every window, for "
        "limits up to 1000."
    )  # fmt: skip
    scope: Literal["local", "shared"] = Field(
        "local", description="Counted by each sidecar alone, or by all together in Redis."
    )
    on_unavailable: Literal["local", "allow", "deny"] = Field(
        "local", description="While Redis is away: each sidecar its share, everything, nothing."
    )
    commands: Commands = Field((), description="Only these count. All when empty.")
    mode: OwnMode = None


class Origin(Strict):
    """Where the data comes from when Redis does not have it."""

    read: Text = Field(
        description="SELECT with the key's segments as parameters (:event_id). One row is one key."
    )
    columns: dict[Name, Text] = Field(
        {}, description="Field of the hash, or member of the JSON, to the column that fills it. "
        "All columns under their own names when empty."
    )  # fmt: skip
    max_rows: int = Field(1, ge=1, le=100_000, description="More rows than this are an error.")


class Freshness(Strict):
    """How old an answer may be."""

    stale_while_revalidate: Duration | None = Field(
        None, description="After its time an entry is served this much longer while it is fetched."
    )
    stale_if_error: Duration | None = Field(
        None, description="The same while PostgreSQL cannot answer."
    )
    negative: Duration | None = Field(
        None, description="How long it is remembered that there is no such row."
    )
    early: Switch = Field(False, description="Fetch at random a little early (XFetch).")
    lease: PositiveDuration | None = Field(
        None, description="How long one sidecar fetches for all, before another may."
    )


class Flush(Strict):
    """When buffered writes go to PostgreSQL: whichever comes first."""

    every: PositiveDuration = Field(5.0, description="After this time.",
                                    json_schema_extra={"default": "5s"})  # fmt: skip
    rows: int = Field(1000, ge=1, le=100_000, description="With this many rows.")


class Write(Strict):
    """What a write does besides changing Redis."""

    mode: Literal["none", "through", "behind"] = Field(
        "none", description="through: PostgreSQL first. behind: a durable journal now, PostgreSQL "
        "in batches."
    )  # fmt: skip
    sql: Text | None = Field(None, description="The statement, with segments as parameters.")
    version: Name | None = Field(
        None, description="Column that the statement sets to :version, and only where it is below "
        "that: of two sidecars' writes the older one loses."
    )  # fmt: skip
    merge: Literal["replace", "add", "max", "min", "fields"] = Field(
        "replace", description="How buffered writes of one key become one row."
    )
    flush: Flush = Field(Flush(), description="When behind goes to PostgreSQL.")
    journal: PositiveSize = Field(
        64 << 20, description="Most bytes that wait; beyond it writes are refused with -WBFULL.",
        json_schema_extra={"default": "64MiB"},
    )  # fmt: skip


def _counts(value: str) -> str:
    if value.count("{value}") != 1 or value == "{value}":
        raise ValueError("expects a name with {value} in it, such as {value}_count")
    return value


class Patch(Strict):
    """Which fields of a hash a changed row means, so that the rest of it need not be read again."""

    columns: tuple[Name, ...] = Field(
        (), description="Columns of the changed row that the statement is given by name, beside "
        "the segments of the key."
    )  # fmt: skip
    sql: Text = Field(
        description="SELECT of one changed row as it is now: columns field and value, as the hash "
        "has them. A row that is gone takes the key away."
    )
    counts: Annotated[Text, AfterValidator(_counts)] | None = Field(
        None, description="Field that says how many fields have a value: {value}_count. It moves "
        "with them."
    )  # fmt: skip
    greatest: tuple[Text, ...] = Field(
        (), description="Fields that are numbers and keep the greater one, such as last_updated. "
        "They are not counted."
    )  # fmt: skip


class Invalidation(Strict):
    """A table whose changes make keys stale."""

    table: Text = Field(description="Table that is watched.")
    key: dict[Name, Name] = Field(
        description="Segment of the key to the column that holds its value."
    )
    also: dict[str, dict[Name, Name]] = Field(
        {}, description="Other keyspaces that become stale too: their segments to columns."
    )
    patch: Patch | None = Field(
        None, description="Keep the fields of a hash in step instead of taking the key away."
    )


class Publication(Strict):
    """A table whose changes are told on a channel."""

    table: Text = Field(description="Table that is watched.")
    key: dict[Name, Name] = Field(
        {}, description="Segment of the channel's name to the column that holds its value."
    )
    columns: tuple[Name, ...] = Field(
        (), description="Columns of the changed row that the statement is given by name, beside "
        "the segments of the channel."
    )  # fmt: skip
    sql: Text = Field(
        description="SELECT of one changed row as it is now: the column message is published. Of a "
        "row that is gone nothing is told."
    )


class Drift(Strict):
    """Comparing a sample of keys with PostgreSQL."""

    rate: RateValue = Field(description="Keys looked at, such as 5/s.")


class Fallback(Strict):
    """What happens while Redis is away."""

    reads: Literal["origin", "stale", "error"] = Field(
        "error", description="Answered from PostgreSQL, from what is at hand, or not."
    )
    writes: Literal["origin", "journal", "error"] = Field(
        "error", description="Written to PostgreSQL, to the journal, or refused."
    )
    share: Percentage | None = Field(
        None, description="Part of the PostgreSQL budget that this keyspace may take."
    )
    exercise: Percentage | None = Field(
        None, description="Part of reads that go this way every day, so that it is known to work."
    )


class Restore(Strict):
    """How a keyspace is filled again after Redis lost it."""

    sql: Text = Field(description="Statement whose rows are the keys: one column per segment.")
    priority: int = Field(100, ge=0, le=1000, description="Lower goes first.")
    rate: RateValue | None = Field(None, description="Keys written, such as 2000/s.")


class Memory(Strict):
    """What a keyspace may take."""

    budget: PositiveSize | None = Field(None, description="Memory of all its keys together.")
    items: int | None = Field(None, ge=1, description="Most keys.")
    priority: int = Field(
        50, ge=0, le=100, description="When memory is short, lower ones give way first."
    )


class Near(Strict):
    """Copies inside the sidecar."""

    ttl: PositiveDuration = Field(description="Longest life of a copy.")
    items: int = Field(1000, ge=1, le=1_000_000, description="Most copies.")


class PerOwner(Strict):
    """How much one owner may hold."""

    scope: Name = Field(description="Segment within which locks of one owner are counted.")
    # PostgreSQL is given it as an integer.
    max: int = Field(ge=1, le=2**31 - 1, description="Most locks at a time.")


class LockQueue(Strict):
    """Who waits for a lock, in order."""

    heartbeat: PositiveDuration = Field(description="A waiter that is silent longer is dropped.")
    offer: PositiveDuration = Field(
        description="How long a free lock is kept for the next. No longer than heartbeat."
    )


class Lock(Strict):
    """Keyspaces of kind lock: who decides and what holds."""

    authority: Literal["postgres", "redis"] = Field(
        "postgres", description="Who decides. Only PostgreSQL survives the loss of Redis."
    )
    table: Text | None = Field(
        None, description="Table whose rows are locked; sidecache_locks when not given."
    )
    key: dict[Name, Name] = Field({}, description="Segment of the key to the table's column.")
    owner: Owner = Field(
        "value", description="What in the value names the owner: all of it, or $.user_id."
    )
    max_hold: PositiveDuration | None = Field(
        None, description="Longest time a lock is held, however often it is extended."
    )
    per_owner: PerOwner | None = Field(None, description="How much one owner may hold.")
    gate: Switch = Field(True, description="Let Redis turn away contenders before PostgreSQL.")
    queue: LockQueue | None = Field(None, description="Waiting in order. None when not given.")
    blind_del: Literal["connection", "never"] = Field(
        "connection", description="May a bare DEL release? Only from the connection that took "
        "the lock, or never."
    )  # fmt: skip

    @property
    def idle(self) -> list[str]:
        """Return the fields that are given and that nothing acts on, as Redis decides."""
        if self.authority == "postgres":
            return []
        given = self.model_fields_set - {"authority", "owner"}
        return [name for name in type(self).model_fields if name in given]
