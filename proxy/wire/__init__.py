"""The data plane: pure state machines, no socket, no future, no logger, no clock.

Read in the order a byte travels: tables and patterns, frames, downstream, upstream; beside them
what rules do to a command that passes: times, growth, edits. Only times that a client gives as a
date are held against the system's clock. The contract, typed and documented, is __init__.pyi.
"""

from proxy.wire.downstream import BEHIND, Downstream, Request, find_keys
from proxy.wire.frames import frame_end, pack
from proxy.wire.json_values import JSON_FAULTS, json_fault
from proxy.wire.limits import LIMIT_OUTCOMES, Rate
from proxy.wire.refusals import LONGEST_NAME
from proxy.wire.sketches import Sketches, Trace
from proxy.wire.tables import (
    AMENDMENTS,
    LATENCY_BOUNDS,
    OUTCOMES,
    Counters,
    Latencies,
    Location,
    Router,
    Ruleset,
    SlotMap,
    key_slot,
)
from proxy.wire.upstream import LOOKUP_SECONDS, Batch, Orphan, Train, Upstream

__all__ = [
    "AMENDMENTS",
    "BEHIND",
    "JSON_FAULTS",
    "LATENCY_BOUNDS",
    "LIMIT_OUTCOMES",
    "LONGEST_NAME",
    "LOOKUP_SECONDS",
    "OUTCOMES",
    "Batch",
    "Counters",
    "Downstream",
    "Latencies",
    "Location",
    "Orphan",
    "Rate",
    "Request",
    "Router",
    "Ruleset",
    "Sketches",
    "SlotMap",
    "Trace",
    "Train",
    "Upstream",
    "find_keys",
    "frame_end",
    "json_fault",
    "key_slot",
    "pack",
]
