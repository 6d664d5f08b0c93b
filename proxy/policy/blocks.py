"""The blocks of a keyspace as types: what stands behind `ttl:`, `write:`, `lock:` and the like.

`model` puts them together. Each field's description is its documentation: it becomes the JSON
Schema that editors complete from. How blocks go together is checked by `checks`; here a field only
knows its own values.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints
from pydantic import WithJsonSchema as JsonSchema

from proxy.documents import quote, suggest
from proxy.policy.patterns import Pattern, parse, parse_characters
from proxy.units import Duration, Percentage, PositiveDuration, PositiveSize, RateValue, Switch
from proxy.validation import Strict

# Argument bounds that the data plane knows how to find, and what each of them counts.
BOUNDS = {
    "SCAN COUNT": "most keys looked at by one call of SCAN, HSCAN, SSCAN or ZSCAN",
    "SCAN MATCH": "longest MATCH pattern, in bytes",
    "LRANGE span": "most elements between start and stop",
    "ZRANGE span": "most members between start and stop",
    "SETRANGE offset": "highest offset, which is how much memory 24 bytes can ask for",
    "SETBIT offset": "highest bit",
    "BITFIELD offset": "highest bit",
    "SRANDMEMBER count": "most members, with repetitions too",
    "HRANDFIELD count": "most fields, with repetitions too",
    "ZRANDMEMBER count": "most members, with repetitions too",
    "LPOS count": "most positions",
}


class HashTagWord(NamedTuple):
    """A hash tag that is the same for all keys of a keyspace."""

    literal: str


def _hash_tag(value: object) -> str | HashTagWord:
    if isinstance(value, dict):
        word = value.get("literal")
        if set(value) != {"literal"} or not isinstance(word, str):
            raise ValueError("expects the name of a segment, or {literal: word}")
        if not word or any(c in word for c in "{}") or not word.isprintable():
            raise ValueError("the word of a hash tag has no braces and is not empty")
        return HashTagWord(word)
    if not isinstance(value, str):
        raise ValueError("expects the name of a segment, or {literal: word}")
    return value


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


Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]
KeyPattern = Annotated[
    Pattern,
    PlainValidator(parse),
    JsonSchema({"type": "string", "minLength": 1, "examples": ["seat_lock:{event_id}:{seat_id}"]}),
]
HashTag = Annotated[
    str | HashTagWord,
    PlainValidator(_hash_tag),
    JsonSchema({
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {"literal": {"type": "string", "minLength": 1}},
                "required": ["literal"],
                "additionalProperties": False,
            },
        ]
    }),
]  # fmt: skip
Commands = Annotated[
    tuple[Text, ...],
    Field(description="Names (`GET`, `CONFIG SET`) and categories (`@write`)."),
]
Mode = Literal["observe", "warn", "enforce"]


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


class TTL(Strict):
    """How long keys live, on every path that creates, keeps or strips a time to live."""

    default: PositiveDuration | None = Field(None, description="Given to keys that come without.")
    min: PositiveDuration | None = Field(None, description="Shorter times are raised to this.")
    max: PositiveDuration | None = Field(None, description="Longer times are cut to this.")
    jitter: Percentage | None = Field(
        None, description="Shortens the default by a random part of up to this, so that keys made "
        "together do not end together."
    )  # fmt: skip
    missing: Literal["apply", "reject", "allow"] | None = Field(
        None, description="What happens to a key without a time to live: it gets the default, is "
        "refused, or lives for ever. `apply` when there is a default, else `allow`."
    )  # fmt: skip
    refresh: Literal["never", "on_read", "on_write"] = Field(
        "never", description="What starts the time anew: on_read makes it sliding."
    )


class Value(Strict):
    """What a value may be."""

    max_bytes: PositiveSize | None = Field(None, description="Largest value of one argument.")
    is_json: Switch = Field(
        False, alias="json", description="Refuse what is no JSON, has duplicate keys, or members "
        "like __proto__ that attack whoever merges them into an object."
    )  # fmt: skip
    json_schema: Text | None = Field(
        None, alias="schema", description="JSON Schema file that values must fit, relative to the "
        "policy file."
    )  # fmt: skip


class Collection(Strict):
    """How large a collection may grow. The trim rides along in the same write."""

    max_items: int | None = Field(None, ge=1, description="Most members, fields or entries.")
    max_member_bytes: PositiveSize | None = Field(None, description="Largest member or field.")
    keep: Literal["highest", "lowest", "newest", "oldest"] | None = Field(
        None, description="Which end is kept: by score for a zset, by age for a list or stream."
    )
    exact: Switch = Field(
        True, description="off lets a stream trim whole nodes only (MAXLEN ~), which is cheaper."
    )


class CommandRights(Strict):
    """Which commands may be sent."""

    allow: Commands | None = Field(
        None, description="Only these. Everything that is offered when not given."
    )
    deny: Commands = Field((), description="Not these, whatever allow says.")
    bounds: Annotated[dict[str, Annotated[int, Field(ge=0)]], AfterValidator(_bounds)] = Field(
        {}, description="Limits on arguments. " + "; ".join(f"{k}: {v}" for k, v in BOUNDS.items())
    )


class RateLimit(Strict):
    """One limit on how often."""

    per: Annotated[str, AfterValidator(_per)] = Field(
        description="Who shares the limit: client, user, ip, key, keyspace, global, or the value "
        "of a segment."
    )
    limit: RateValue = Field(description="So many in a period: 1000/min.")
    burst: int | None = Field(None, ge=0, description="Cells beyond the even pace; gcra only.")
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
    mode: Mode | None = Field(None, description="observe, warn or enforce for this limit alone.")


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
        None, description="Column that grows with every write, so that an older one loses."
    )
    merge: Literal["replace", "add", "max", "min", "fields"] = Field(
        "replace", description="How buffered writes of one key become one row."
    )
    flush: Flush = Field(Flush(), description="When behind goes to PostgreSQL.")
    journal: PositiveSize = Field(
        64 << 20, description="Most bytes that wait; beyond it writes are refused with -WBFULL.",
        json_schema_extra={"default": "64MiB"},
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
    max: int = Field(ge=1, description="Most locks at a time.")


class LockQueue(Strict):
    """Who waits for a lock, in order."""

    heartbeat: PositiveDuration = Field(description="A waiter that is silent longer is dropped.")
    offer: PositiveDuration = Field(description="How long a free lock is kept for the next.")


class Lock(Strict):
    """Keyspaces of kind lock: who decides and what holds."""

    authority: Literal["postgres", "redis"] = Field(
        "postgres", description="Who decides. Only PostgreSQL survives the loss of Redis."
    )
    table: Text | None = Field(
        None, description="Table whose rows are locked; sidecache_locks when not given."
    )
    key: dict[Name, Name] = Field({}, description="Segment of the key to the table's column.")
    owner: Annotated[str, StringConstraints(pattern=r"^(value|\$(\.[A-Za-z_][A-Za-z0-9_]*)+)$")] = (
        Field("value", description="What in the value names the owner: all of it, or $.user_id.")
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
