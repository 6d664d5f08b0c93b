"""The policy files as types: one `Policies` for all files of a folder.

The loader builds it, the compiler makes the data plane's tables of it, `check`, `explain` and
`schema` read it. Every field is documented where it is defined; the JSON Schema for editors is made
of this module. A field that is not set here is taken from `defaults`: see `Policies.effective`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, WithJsonSchema

from proxy.policy.blocks import (
    MODES,
    AddedCommand,
    CommandName,
    CommandRights,
    Commands,
    Drift,
    Fallback,
    Freshness,
    HashTag,
    Invalidation,
    KeyGrammar,
    KeyPattern,
    KeyspaceRights,
    Lock,
    Memory,
    Mode,
    Name,
    Near,
    Origin,
    Publication,
    RateLimit,
    Restore,
    Text,
    Trial,
    Value,
    Write,
)
from proxy.policy.lifetimes import TTL, Collection
from proxy.policy.schemas import Schema
from proxy.units import PositiveSize
from proxy.validation import Location, Strict

# Redis refuses keys and values that are larger (proto-max-bulk-len).
REDIS_MAX_BYTES = 512 << 20

Kind = Literal["cache", "state", "lock", "rate_limit"]
Type = Literal["string", "json", "hash", "list", "set", "zset", "stream", "counter"]


class Shared(Strict):
    """What a keyspace may say for itself and `defaults` for all that do not."""

    cluster: Text = Field("cache", description="Cluster of sidecache.yaml where the keys live.")
    key_grammar: KeyGrammar = Field(KeyGrammar(), description="Which keys are well-formed.")
    ttl: TTL = Field(TTL(), description="How long keys live.")
    value: Value = Field(Value(), description="What a value may be.")
    collection: Collection = Field(Collection(), description="How large a collection may grow.")
    commands: KeyspaceRights = Field(KeyspaceRights(), description="Which commands may be sent.")
    memory: Memory = Field(Memory(), description="What a keyspace may take.")
    reads: Literal["primary", "replica"] = Field(
        "primary", description="Which nodes answer reads; never replica for locks and state."
    )
    transactions: Literal["single", "split"] = Field(
        "single",
        description="MULTI over keys of several slots: refused, or one transaction per slot, which "
        "is not atomic as a whole. split is for kind cache only.",
    )
    undelivered: Literal["drop", "push_back"] = Field(
        "drop",
        description="What a blocking pop took for a client that was gone by then: lost, as in "
        "Redis, or put back at the end that it came from. Counted either way.",
    )
    fallback: Fallback = Field(Fallback(), description="What happens while Redis is away.")
    mode: Mode = Field(
        MODES["enforce"],
        description="observe counts what would have happened, warn logs it as well, enforce 10% "
        "does it to a tenth.",
    )


class Keyspace(Shared):
    """Keys that share one rule."""

    key: KeyPattern = Field(
        description="Pattern of the keys: {name} is all up to the next colon; types are {n:int} "
        "{n:uuid} {n:date} {n:hex} {n:ip} {rest:path}; {{ and }} are literal braces."
    )
    hash_tag: HashTag | None = Field(
        None,
        description="Segment whose value decides the slot, or {literal: word} for keys that share "
        "none, so that scripts and transactions over one value work on a cluster. Nodes see other "
        "names than clients.",
    )
    kind: Kind = Field(
        "cache",
        description="cache may be lost and stale; state is neither evicted nor stale; lock is "
        "decided by PostgreSQL; rate_limit counts.",
    )
    type: Type | None = Field(
        None, description="Type of the values; commands of another type get WRONGTYPE at once."
    )
    security: bool = Field(
        False, description="The answer decides what somebody may do, so it is never stale."
    )
    rate: tuple[RateLimit, ...] = Field((), description="How often, and for whom.")
    origin: Origin | None = Field(None, description="The rows of PostgreSQL behind the keys.")
    freshness: Freshness = Field(Freshness(), description="How old an answer may be.")
    write: Write = Field(Write(), description="What a write does besides changing Redis.")
    invalidate: tuple[Invalidation, ...] = Field(
        (), description="Which changes of which tables make keys stale."
    )
    drift: Drift | None = Field(None, description="Sampling against PostgreSQL.")
    on_loss: Literal["restore", "refill", "lost"] | None = Field(
        None, description="After Redis lost its data: read all again, one by one, or not at all."
    )
    restore: Restore | None = Field(None, description="How the keyspace is filled again.")
    evict: Literal["never", "lru", "lfu", "ttl"] | None = Field(
        None, description="Order in which keys give way when memory is short. never for locks and "
        "state, else lru."
    )  # fmt: skip
    near: Near | None = Field(None, description="Copies inside the sidecar.")
    lock: Lock | None = Field(None, description="How locks of kind lock work.")
    bound: Literal["connection"] | None = Field(
        None,
        description="connection: what a client has set or added is taken away when its connection "
        "closes, unless somebody has written it anew. For type string, json and set.",
    )

    @property
    def judged(self) -> bool:
        """Return whether values are looked into, and so must be written whole."""
        return self.value.is_json or self.value.json_schema is not None

    @property
    def backed(self) -> bool:
        """Return whether commands have to do with PostgreSQL: they read from it, or write to it."""
        return self.origin is not None or self.write.mode != "none" or self.decided

    @property
    def locks(self) -> Lock:
        """Return how locks work, of a keyspace of kind lock."""
        return self.lock or Lock()

    @property
    def decided(self) -> bool:
        """Return whether PostgreSQL decides who holds these locks."""
        return self.kind == "lock" and self.locks.authority == "postgres"

    def trial(self, block: str) -> Trial:
        """Return how seriously a rule is taken: as its block says, or the keyspace's `mode`."""
        own: Trial | None = getattr(getattr(self, block), "mode", None)
        return self.mode if own is None else own

    @property
    def durable(self) -> bool:
        """Return whether losing or ageing a key would be wrong and not only slow."""
        return self.kind in ("lock", "state")


class Defaults(Shared):
    """What every keyspace inherits that does not say otherwise, and what other keys get."""

    unmatched: Literal["forward", "reject"] = Field(
        "forward", description="Keys of no keyspace: sent to the default cluster, or refused."
    )
    unmatched_max_bytes: PositiveSize = Field(
        REDIS_MAX_BYTES,
        description="Longest key of no keyspace. Redis' own limit unless given.",
        json_schema_extra={"default": "512MiB"},
    )


def _renamed(value: object) -> object:
    """Say what does it here where a name is taken away as in redis.conf: by an empty one."""
    if value == "":
        raise ValueError("a command is not taken away by an empty name; name it under "
                         "commands: deny")  # fmt: skip
    return value


NewName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", max_length=40),
    BeforeValidator(_renamed),
]


class GlobalCommands(Strict):
    """Commands for everybody."""

    deny: Commands = Field((), description="Nobody may send these.")
    rename: dict[Text, NewName] = Field(
        {},
        description="Old name to the only name under which clients know the command, with all its "
        "sub-commands. Nodes keep the old one.",
    )
    add: tuple[AddedCommand, ...] = Field(
        (), max_length=500, description="Commands of modules that the nodes have loaded."
    )
    flush: tuple[Text, ...] | None = Field(
        None,
        description="Clusters that FLUSHALL and FLUSHDB may empty. When not given: all but `locks` "
        "and those that a keyspace of kind lock or state lives in.",
    )


class FrameLimits(Strict):
    """What one command of a client may hold."""

    arguments: int = Field(1 << 20, ge=1, le=1 << 20, description="Words of one command.")
    argument_bytes: PositiveSize = Field(
        REDIS_MAX_BYTES, le=REDIS_MAX_BYTES, description="Bytes of one word.",
        json_schema_extra={"default": "512MiB"},
    )  # fmt: skip
    inline_bytes: PositiveSize = Field(
        64 << 10, description="Bytes of a command that is sent as a line.",
        json_schema_extra={"default": "64KiB"},
    )  # fmt: skip
    key_bytes: PositiveSize = Field(
        REDIS_MAX_BYTES, le=REDIS_MAX_BYTES, description="Bytes of one key.",
        json_schema_extra={"default": "512MiB"},
    )  # fmt: skip


class Role(Strict):
    """What a group of users may do."""

    commands: CommandRights = Field(CommandRights(), description="Which commands may be sent.")
    keys: tuple[KeyPattern, ...] | None = Field(
        None,
        description="Patterns of the keys that may be named; others are refused, and not shown by "
        "SCAN, KEYS and RANDOMKEY. All when not given. With this or keyspaces, what reaches keys "
        "without naming them, or other clients (EVAL, EVAL_RO, SCRIPT LOAD, FLUSH and KILL, "
        "FUNCTION but for HELP, CLIENT PAUSE and UNPAUSE, FLUSHALL, FLUSHDB, MONITOR), is denied "
        "unless commands: allow names it.",
    )
    keyspaces: tuple[Text, ...] | None = Field(
        None,
        description="Keyspaces that may be used. All, and keys of none, when not given. A key must "
        "fit this and keys.",
    )
    channels: tuple[Text, ...] | None = Field(
        None, description="Names of the channels that may be used. All when not given."
    )
    rate: tuple[RateLimit, ...] = Field((), description="How often.")
    limits: FrameLimits = Field(FrameLimits(), description="What one command may hold.")


class Channel(Strict):
    """Pub/sub channels that share one rule."""

    channel: KeyPattern = Field(description="Pattern of the names, as for keys.")
    cluster: Text = Field("cache", description="Cluster on which they are published.")
    publish: tuple[Text, ...] | None = Field(None, description="Roles that may publish.")
    subscribe: tuple[Text, ...] | None = Field(None, description="Roles that may subscribe.")
    changes: tuple[Publication, ...] = Field(
        (), description="Which changes of which tables are told on it, whoever made them."
    )


class Script(Strict):
    """A Lua script that is offered as a command."""

    name: CommandName = Field(description="Name of the command, such as SEAT.ACQUIRE.")
    file: Text = Field(
        description="The script, in the folder lua beside or within that of the policies."
    )
    keys: tuple[KeyPattern, ...] = Field(
        description="KEYS, as templates of the arguments, all in one slot."
    )
    arguments: tuple[Name, ...] = Field((), description="ARGV, by name and in order.")
    more: Name | None = Field(
        None, description="What any number of further arguments is called. No key is made of them."
    )
    reads: bool = Field(
        False,
        description="Whether it only reads. Nodes refuse its writes then, and it is run "
        "again where its reply is lost.",
    )
    reply: Literal["array", "map"] = Field(
        "array", description="map: its flat array of names and values is a map under RESP3."
    )
    lock: Literal["acquire", "extend", "release", "confirm", "status", "queue", "mine"] | None = (
        Field(
            None,
            description="What it does to the lock that its first key names, which "
            "PostgreSQL decides.",
        )
    )
    on_unavailable: Literal["error", "origin"] = Field(
        "error",
        description="While Redis is away: refuse, or let PostgreSQL do it, which only a lock can.",
    )


KeyspaceName = Annotated[
    str,
    PlainValidator(lambda name: _keyspace_name(name)),
    WithJsonSchema({"type": "string", "pattern": "^[a-z][a-z0-9_]{0,62}$"}),
]


def _keyspace_name(name: object) -> str:
    """Return the name; it becomes a metric label and stands in error lines."""
    if (
        not isinstance(name, str) or not 0 < len(name) <= 63 or not name[0].isalpha()
        or not all(c in "abcdefghijklmnopqrstuvwxyz0123456789_" for c in name)
    ):  # fmt: skip
        raise ValueError("a name is a lower-case letter and up to 62 of a-z 0-9 _")
    return name


class File(Strict):
    """One policy file. All files of a folder together are the policies."""

    keyspaces: dict[KeyspaceName, Keyspace] = Field(
        {}, description="Keys that share one rule, by a name of your own."
    )
    defaults: Defaults = Field(Defaults(), description="What every keyspace inherits.")
    commands: GlobalCommands = Field(GlobalCommands(), description="Commands for everybody.")
    roles: dict[KeyspaceName, Role] = Field({}, description="What groups of users may do.")
    channels: dict[KeyspaceName, Channel] = Field({}, description="Pub/sub channels.")
    scripts: dict[KeyspaceName, Script] = Field({}, description="Scripts offered as commands.")


Block = TypeVar("Block", bound=Strict)


def inherited(own: Block, parent: Strict) -> Block:
    """Return a block whose unset fields are taken from another; blocks within blocks too."""
    changed: dict[str, Any] = {}
    for name in type(own).model_fields:
        if name not in parent.model_fields_set:
            continue
        mine, theirs = getattr(own, name), getattr(parent, name)
        if name not in own.model_fields_set:
            changed[name] = theirs
        elif isinstance(mine, Strict) and isinstance(theirs, Strict):
            changed[name] = inherited(mine, theirs)
    return own.model_copy(update=changed) if changed else own


class Places:
    """Where things are written, as file:line:column: the nearest that is known above a location."""

    def __init__(self, known: Mapping[Location, str]) -> None:
        self._known = known

    def __call__(self, location: Location) -> str:
        beginnings = (location[:length] for length in range(len(location), 0, -1))
        return next((self._known[at] for at in beginnings if at in self._known), "")


@dataclass(frozen=True)
class Policies:
    """All rules, as written."""

    keyspaces: Mapping[str, Keyspace]
    defaults: Defaults
    commands: GlobalCommands
    roles: Mapping[str, Role]
    channels: Mapping[str, Channel]
    scripts: Mapping[str, Script]
    # Where something is written, as file:line:column; of what is not, the block it would be in.
    place: Callable[[Location], str] = field(default=Places({}), compare=False, repr=False)
    schemas: Mapping[str, Schema] = field(
        default_factory=dict
    )  # by keyspace, of those that have one
    bodies: Mapping[str, bytes] = field(default_factory=dict)  # by script

    @cached_property
    def effective(self) -> Mapping[str, Keyspace]:
        """Return the keyspaces with what they inherit from the defaults."""
        return {name: inherited(own, self.defaults) for name, own in self.keyspaces.items()}

    def __getstate__(self) -> dict[str, object]:
        """Return what travels to another process: places of fields, without the files' trees."""
        known: dict[Location, str] = {}
        for part in ("keyspaces", "roles", "channels", "scripts"):
            for name, own in getattr(self, part).items():
                known[part, name] = self.place((part, name))
                for each in own.model_fields_set:
                    known[part, name, each] = self.place((part, name, each))
        for part in ("defaults", "commands"):
            known |= {(part, each): self.place((part, each))
                      for each in getattr(self, part).model_fields_set}  # fmt: skip
        state = {name: value for name, value in vars(self).items() if name != "effective"}
        return state | {"place": Places(known)}


EMPTY = Policies({}, Defaults(), GlobalCommands(), {}, {}, {})


def _without_defaults(schema: Any) -> Any:
    """Return a schema without the defaults that are blocks or nothing: they say nothing new."""
    if isinstance(schema, list):
        return [_without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_defaults(value)
        for key, value in schema.items()
        # A dict under this name is the schema of a field that is called so.
        if key != "default" or isinstance(value, str | int) or "description" in (value or ())
    }


def json_schema() -> str:
    """Return the JSON Schema of a policy file, as `policies/policy.schema.json` holds it."""
    schema = _without_defaults(File.model_json_schema(by_alias=True))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "sidecache policy file"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
