"""Real wire objects around one router, for tests that drive the data plane without a socket."""

from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

from proxy import errors, wire
from proxy.commands import FAMILIES, ROWS
from proxy.wire import rules

SLOTS = 16384
TIMEOUT = 1.0  # seconds until a node must have answered


def keyspace(name: str, pattern: Sequence[bytes | rules.Segment], **changes: Any) -> rules.Keyspace:
    """Return a keyspace that refuses nothing."""
    plain = rules.Keyspace(
        name=name,
        pattern=pattern,
        cluster=0,
        hash_tag=None,
        characters=None,
        max_key_bytes=512,
        denied=bytes(len(ROWS)),
        key_error=errors.line(f"POLICY key refused by keyspace '{name}'"),
        denied_error=errors.line(f"NOPERM denied in keyspace '{name}'"),
        brace_error=errors.line(f"POLICY brace refused by keyspace '{name}'"),
    )
    return plain._replace(**changes)


def role(limits: rules.Limits | None = None, refused: Sequence[bytes] = ()) -> rules.Role:
    """Return the role `default`, which may send everything but what is named."""
    allowed = bytes(row.name not in refused for row in ROWS)
    return rules.Role("default", allowed, limits or rules.Limits())


def ruleset(**changes: Any) -> wire.Ruleset:
    """Return the rules of the command table, with one role and no keyspace."""
    plain: dict[str, Any] = {
        "commands": ROWS,
        "keyspaces": (),
        "roles": (role(),),
        "families": (*FAMILIES, "unknown"),
        "errors": errors.DATA_PLANE,
        "default_cluster": 0,
        "reject_unmatched": False,
        "max_key_bytes": 512,
    }
    return wire.Ruleset(**{**plain, **changes})


def evenly(nodes: int) -> "array[int]":
    """Return the owners of all slots, in as many ranges as there are nodes."""
    return _evenly(nodes)[:]


@cache
def _evenly(nodes: int) -> "array[int]":
    return array("h", [slot * nodes // SLOTS for slot in range(SLOTS)])


class Stage:
    """One sharded cluster, its nodes, and the batch that tells who has something to say."""

    def __init__(self, rules: wire.Ruleset | None = None, nodes: int = 1) -> None:
        self.batch = wire.Batch(lambda: None)
        self.latencies = wire.Latencies(2)
        self.upstreams = [
            wire.Upstream(self.batch, self.latencies, 0, TIMEOUT) for _ in range(nodes)
        ]
        self.owners = evenly(nodes)
        self.router = wire.Router(rules or ruleset(), self.slot_map())

    def slot_map(self) -> wire.SlotMap:
        clusters = [(True, self.owners), (True, self.owners)]
        return wire.SlotMap(clusters, [((node,), (node,)) for node in self.upstreams])

    def client(self, role_name: str | None = "default", lane: int = 0) -> wire.Downstream:
        downstream = wire.Downstream(self.router, self.batch, lane)
        downstream.assume(role_name)
        return downstream
